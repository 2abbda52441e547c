/* Which linears an engine fuses into one matrix: those of a unit that has several. */
#include <string.h>

#include "output/verify_internal.h"

bool fused_group_of(const block_graph *graph, const char *module, buffer *key)
{
    size_t length = strlen(module);
    const linear_spec *spec = graph_linear_of(graph, module, length);
    if (!spec || graph->units[spec->unit].count < 2)
        return false;
    key->length = 0;
    buffer_append(key, module, length - strlen(spec->name));
    buffer_puts(key, graph->units[spec->unit].kind);
    return key->status == TARE_OK;
}
