/* How many tokens of the samples chose each expert of each layer: the coverage of a mixture
 * (spec/schemes.md 8). It is known when the router of a layer has seen all of them, before the
 * first expert runs. */
#include <string.h>

#include "file/json.h"
#include "pipeline/run.h"

static size_t experts_of(const run *r)
{
    return r->model->graphs[BLOCK_EXPERTS].route.experts;
}

tare_status coverage_begin(run *r)
{
    size_t cells;
    if (!r->plan->calibrates || experts_of(r) == 0)
        return TARE_OK;
    if (!size_mul(r->model->num_blocks, experts_of(r), &cells))
        return TARE_E_MEMORY;
    r->coverage = arena_calloc(r->env->arena, cells, sizeof *r->coverage);
    return r->coverage ? TARE_OK : TARE_E_MEMORY;
}

static uint32_t *tokens_of(const run *r, const model_block *b)
{
    return r->coverage + b->index * experts_of(r);
}

static uint32_t median(const uint32_t *of, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t less = 0, same = 0;
        for (size_t j = 0; j < count; j++) {
            less += of[j] < of[i];
            same += of[j] == of[i];
        }
        if (less <= count / 2 && count / 2 < less + same)
            return of[i];
    }
    return 0;
}

/* One warning a layer for the experts that no token chose. */
static void tell(const run *r, const model_block *b, size_t tokens)
{
    size_t count = block_experts(b), unreached = 0;
    const uint32_t *of = tokens_of(r, b);
    uint32_t least = of[0], most = 0;
    for (size_t e = 0; e < count; e++) {
        unreached += of[e] == 0;
        least = of[e] < least ? of[e] : least;
        most = of[e] > most ? of[e] : most;
    }
    TARE_DEBUG(r->ctx,
               "%s: %zu tokens, each through %zu of %zu experts: least %u, median %u, most %u, "
               "%zu unreached",
               b->name, tokens, b->graph->route.chosen, count, least, median(of, count), most,
               unreached);
    if (unreached > 0)
        TARE_WARN(r->ctx,
                  "%s: no token of the samples reached %zu of %zu experts; they are quantized by "
                  "their weights alone, as all are",
                  b->name, unreached, count);
}

tare_status coverage_count(run *r, const model_block *b, const flow *f)
{
    tare_status status = TARE_OK;
    const route_spec *route = &b->graph->route;
    uint32_t *tokens = tokens_of(r, b);
    float *routing;
    TRY(stream_get(f->routing, 0, f->tokens, &routing));
    for (size_t row = 0; row < f->tokens; row++) {
        for (size_t i = 0; i < route->chosen; i++)
            tokens[(size_t)routing[row * 2 * route->chosen + i]]++;
    }
    tell(r, b, f->tokens);
done:
    return status;
}

tare_status coverage_archive(run *r, archive *a)
{
    size_t cells = r->model->num_blocks * experts_of(r);
    return r->coverage ? archive_bytes(a, r->coverage, cells * sizeof *r->coverage) : TARE_OK;
}

void coverage_write(const run *r, buffer *out)
{
    bool first = true;
    if (!r->coverage)
        return;
    buffer_puts(out, "  \"coverage\": {");
    for (size_t i = 0; i < r->model->num_blocks; i++) {
        const model_block *b = &r->model->blocks[i];
        buffer_puts(out, !block_experts(b) ? "" : first ? "\n    " : ",\n    ");
        if (!block_experts(b))
            continue;
        first = false;
        json_write_string(out, b->name, strlen(b->name));
        for (size_t e = 0; e < block_experts(b); e++)
            buffer_printf(out, "%s%u", e ? ", " : ": [", tokens_of(r, b)[e]);
        buffer_putc(out, ']');
    }
    buffer_puts(out, "\n  },\n");
}

void coverage_tell(const run *r)
{
    const tare_quantize_options *o = r->env->options;
    for (size_t i = 0; r->coverage && o->coverage && i < r->model->num_blocks; i++) {
        const model_block *b = &r->model->blocks[i];
        if (block_experts(b))
            o->coverage(o->coverage_user, b->name, tokens_of(r, b), block_experts(b));
    }
}
