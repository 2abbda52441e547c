/* Which linears an engine fuses into one matrix. */
#include <string.h>

#include "output/verify_internal.h"

bool fused_group_of(const architecture *arch, const char *module, buffer *key)
{
    size_t length = strlen(module);
    for (size_t i = 0; i < arch->num_linears; i++) {
        const linear_spec *spec = &arch->linears[i];
        size_t tail = strlen(spec->name);
        if (spec->group != GROUP_QKV && spec->group != GROUP_GATE_UP)
            continue;
        if (length <= tail || strcmp(module + length - tail, spec->name) != 0 ||
            module[length - tail - 1] != '.')
            continue;
        key->length = 0;
        buffer_append(key, module, length - tail);
        buffer_puts(key, linear_group_name(spec->group));
        return key->status == TARE_OK;
    }
    return false;
}
