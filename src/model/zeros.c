#include "model/zeros.h"

#include <string.h>

#include "base/strings.h"

enum { FIRST_BYTES = 4 << 10, MOST_BYTES = 64 << 10, NAMES_SHOWN = 12 };

typedef struct search {
    tare_model *model;
    void *room; /* of one piece */
    size_t count;
    buffer names;
} search;

/* -0 is zero too. */
static bool all_zero(tare_dtype dtype, const char *data, size_t size)
{
    uint32_t found = 0, word;
    uint32_t mask = dtype == TARE_F32        ? 0x7fffffffu
                    : dtype_size(dtype) == 1 ? 0x7f7f7f7fu
                                             : 0x7fff7fffu;
    size_t i = 0;
    for (; i + sizeof word <= size; i += sizeof word) {
        memcpy(&word, data + i, sizeof word);
        found |= word & mask;
    }
    for (word = 0; i < size; i++) /* half a word */
        word = word << 8 | (unsigned char)data[i];
    return (found | (word & (mask & 0x80u ? ~0x8080u : mask))) == 0;
}

static tare_status look_at(search *s, const tensor_info *t)
{
    checkpoint *c = s->model->checkpoint;
    size_t n;
    void *data;
    for (uint64_t at = 0; at < t->bytes; at += n) {
        size_t step = at == 0 ? FIRST_BYTES : MOST_BYTES;
        n = t->bytes - at < step ? (size_t)(t->bytes - at) : step;
        if (checkpoint_is_hole(c, t, at))
            break;
        tare_status status = context_check_cancelled(s->model->ctx);
        if (status == TARE_OK)
            status = checkpoint_read_in(c, t, at, n, s->room, &data); /* NaN is found elsewhere */
        if (status != TARE_OK || !all_zero(t->dtype, data, n))
            return status;
    }
    if (s->count++ < NAMES_SHOWN)
        buffer_printf(&s->names, "%s%s", s->count > 1 ? ", " : "", t->name);
    else if (s->count == NAMES_SHOWN + 1)
        buffer_puts(&s->names, ", …");
    return TARE_OK;
}

/* A norm whose weight counts from 1 may well be at 0. */
static tare_status look_at_norm(search *s, const tensor_info *t)
{
    return s->model->config.arch->norm_base != 0 ? TARE_OK : look_at(s, t);
}

/* Of a layer's experts, of which a model may have tens of thousands, the first and the last: a
 * download that was cut lacks the end of a file. */
static tare_status look_at_experts(search *s, const model_block *b)
{
    tare_status status = TARE_OK;
    size_t count = block_experts(b);
    for (size_t e = 0; e < count; e += size_max(count - 1, 1)) {
        for (size_t i = 0; i < EXPERT_LINEARS; i++)
            TRY(look_at(s, expert_linear(s->model, b, e, i)->weight.tensor));
    }
done:
    return status;
}

static tare_status look_at_block(search *s, const model_block *b)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < b->graph->num_linears; i++)
        TRY(look_at(s, block_linear(s->model, b, i)->weight.tensor));
    for (size_t i = 0; i < b->graph->num_norms; i++)
        TRY(look_at_norm(s, b->norms[i]));
    TRY(look_at_experts(s, b));
done:
    return status;
}

static tare_status look_at_all(search *s)
{
    tare_status status = TARE_OK;
    const tare_model *m = s->model;
    TRY(look_at(s, m->embedding.tensor));
    for (size_t layer = 0; layer < m->num_blocks; layer++)
        TRY(look_at_block(s, &m->blocks[layer]));
    TRY(look_at_norm(s, m->final_norm));
    if (m->head->weight.tensor != m->embedding.tensor)
        TRY(look_at(s, m->head->weight.tensor));
    TRY(s->names.status);
done:
    return status;
}

tare_status model_warn_of_zeros(tare_model *model)
{
    search s = {.model = model, .room = mem_alloc(model->ctx, file_read_room(MOST_BYTES))};
    buffer_init(&s.names, model->ctx);
    tare_status status = s.room ? look_at_all(&s) : TARE_E_MEMORY;
    if (status == TARE_OK && s.count > 0)
        TARE_WARN(model->ctx, "%s: %zu weights are zero throughout (is the download complete?): %s",
                  model->dir, s.count, s.names.data);
    buffer_free(&s.names);
    mem_free(model->ctx, s.room);
    return status;
}
