#include "pipeline/streams.h"

#include <string.h>

struct state_stream {
    tare_context *ctx;
    size_t rows, cols, most;
    float *data;            /* in memory: all rows; spilled: one batch, once it is asked for */
    scratch_file *files[2]; /* NULL: in memory */
    int before;             /* which file holds the boundary before the layer */
};

static uint64_t row_bytes(const state_stream *s)
{
    return (uint64_t)s->cols * sizeof(float);
}

static size_t rows_in_memory(size_t rows, size_t most, bool spilled)
{
    return spilled ? size_min(most, rows) : rows;
}

size_t stream_bytes(size_t rows, size_t cols, size_t most, bool spilled)
{
    return mem_block_bytes(sizeof(state_stream)) +
           mem_array_bytes(rows_in_memory(rows, most, spilled), cols * sizeof(float));
}

static tare_status make_room(state_stream *s)
{
    size_t rows = rows_in_memory(s->rows, s->most, s->files[0] != NULL);
    if (!s->data)
        s->data = mem_alloc_array(s->ctx, rows, s->cols * sizeof *s->data);
    return s->data ? TARE_OK : TARE_E_MEMORY;
}

tare_status stream_create(tare_context *ctx, size_t rows, size_t cols, size_t most,
                          const char *folder, state_stream **out)
{
    tare_status status = TARE_OK;
    size_t cells = 0, bytes = 0;
    *out = NULL;
    state_stream *s = mem_calloc(ctx, 1, sizeof *s);
    if (!s)
        return TARE_E_MEMORY;
    *s = (state_stream){.ctx = ctx, .rows = rows, .cols = cols, .most = size_min(most, rows)};
    if (!size_mul(rows, cols, &cells) || !size_mul(cells, sizeof(float), &bytes))
        TRY(TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: hidden states of %zu tokens", rows));
    for (int i = 0; folder && i < 2; i++)
        TRY(scratch_create(ctx, folder, bytes, &s->files[i]));
    if (!folder)
        TRY(make_room(s));
    *out = s;
    s = NULL;
done:
    stream_free(s);
    return status;
}

void stream_free(state_stream *s)
{
    if (!s)
        return;
    scratch_free(s->files[0]);
    scratch_free(s->files[1]);
    mem_free(s->ctx, s->data);
    mem_free(s->ctx, s);
}

size_t stream_rows(const state_stream *s)
{
    return s->rows;
}

tare_status stream_get(state_stream *s, size_t first, size_t count, float **x)
{
    if (!s->files[0]) {
        *x = s->data + first * s->cols;
        return TARE_OK;
    }
    tare_status status = make_room(s);
    if (status != TARE_OK)
        return status;
    *x = s->data;
    return scratch_read(s->files[s->before], first * row_bytes(s), *x, count * row_bytes(s));
}

tare_status stream_put(state_stream *s, size_t first, size_t count, const float *x)
{
    if (s->files[0])
        return scratch_write(s->files[1 - s->before], first * row_bytes(s), x,
                             count * row_bytes(s));
    if (x != s->data + first * s->cols)
        memcpy(s->data + first * s->cols, x, count * row_bytes(s));
    return TARE_OK;
}

void stream_flip(state_stream *s)
{
    s->before = 1 - s->before;
}

tare_status stream_archive(state_stream *s, archive *a)
{
    tare_status status = TARE_OK;
    TRY(make_room(s));
    for (size_t first = 0, count; first < s->rows; first += count) {
        float *x = s->files[0] ? s->data : s->data + first * s->cols;
        count = s->rows - first < s->most ? s->rows - first : s->most;
        if (!archive_reads(a))
            TRY(stream_get(s, first, count, &x));
        TRY(archive_bytes(a, x, count * row_bytes(s)));
        if (archive_reads(a))
            TRY(stream_put(s, first, count, x));
    }
    if (archive_reads(a))
        stream_flip(s);
done:
    return status;
}
