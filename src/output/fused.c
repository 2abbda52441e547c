/* What the architecture's tables say of a module: its row, and which linears an engine fuses into
 * one matrix. */
#include <string.h>

#include "output/verify_internal.h"

const linear_spec *verify_linear_spec(const architecture *arch, const char *module, size_t length)
{
    for (size_t i = 0; i < arch->num_linears; i++) {
        size_t tail = strlen(arch->linears[i].name);
        if (length > tail && module[length - tail - 1] == '.' &&
            memcmp(module + length - tail, arch->linears[i].name, tail) == 0)
            return &arch->linears[i];
    }
    return NULL;
}

bool fused_group_of(const architecture *arch, const char *module, buffer *key)
{
    size_t length = strlen(module);
    const linear_spec *spec = verify_linear_spec(arch, module, length);
    if (!spec || (spec->group != GROUP_QKV && spec->group != GROUP_GATE_UP))
        return false;
    key->length = 0;
    buffer_append(key, module, length - strlen(spec->name));
    buffer_puts(key, linear_group_name(spec->group));
    return key->status == TARE_OK;
}
