#include "calibration/result.h"

#include <string.h>

#include "base/rng.h"
#include "file/json.h"

tare_status result_create(tare_context *ctx, tare_calib_result **out)
{
    tare_calib_result *r = mem_calloc(ctx, 1, sizeof *r);
    *out = r;
    if (!r)
        return TARE_E_MEMORY;
    r->ctx = ctx;
    arena_init(&r->arena, ctx);
    return TARE_OK;
}

void tare_calib_result_free(tare_calib_result *r)
{
    if (!r)
        return;
    arena_free(&r->arena);
    mem_free(r->ctx, r->entries);
    mem_free(r->ctx, r);
}

tare_status result_add(tare_calib_result *r, const drawn_sample *s, const char *set)
{
    tare_status status = TARE_OK;
    buffer ans;
    buffer_init(&ans, r->ctx);
    json_write_data(&ans, s->ans, 0, 0);
    TRY(ans.status);
    TRY(mem_grow(r->ctx, (void **)&r->entries, &r->capacity, r->count + 1, sizeof *r->entries));
    tare_calib_sample copy = {.prompt = arena_strndup(&r->arena, s->prompt, s->prompt_length),
                              .prompt_length = s->prompt_length,
                              .ans = arena_strndup(&r->arena, ans.data, ans.length),
                              .ans_length = ans.length,
                              .extra_length = s->extra_length,
                              .record = s->record};
    if (s->extra)
        copy.extra = arena_strndup(&r->arena, s->extra, s->extra_length);
    if (!copy.prompt || !copy.ans || (s->extra && !copy.extra)) {
        status = TARE_E_MEMORY;
        goto done;
    }
    r->entries[r->count++] = (tare_calib_entry){copy, set};
done:
    buffer_free(&ans);
    return status;
}

void result_cut(tare_calib_result *r, size_t count)
{
    if (r->count > count)
        r->count = count;
}

tare_status result_shuffle(tare_calib_result *r, const calib_seed *seed)
{
    tare_status status = TARE_E_MEMORY;
    if (r->count > UINT32_MAX)
        return TARE_FAIL(r->ctx, TARE_E_DATA, "a mix of more than %u samples", UINT32_MAX);
    uint32_t count = (uint32_t)r->count;
    uint32_t *order = mem_alloc_array(r->ctx, count, sizeof *order);
    tare_calib_entry *entries = mem_alloc_array(r->ctx, count, sizeof *entries);
    rng *g = mem_alloc(r->ctx, sizeof *g);
    if (!order || !entries || !g)
        goto done;
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    rng_seed(g, seed->words, seed->count);
    rng_shuffle(g, order, count);
    for (uint32_t i = 0; i < count; i++)
        entries[i] = r->entries[order[i]];
    if (count)
        memcpy(r->entries, entries, count * sizeof *entries);
    status = TARE_OK;
done:
    mem_free(r->ctx, g);
    mem_free(r->ctx, entries);
    mem_free(r->ctx, order);
    return status;
}

/* ---- what the caller sees ---- */

size_t tare_calib_result_count(const tare_calib_result *r)
{
    return r->count;
}

void tare_calib_result_entry(const tare_calib_result *r, size_t index, tare_calib_entry *entry)
{
    *entry = index < r->count ? r->entries[index] : (tare_calib_entry){0};
}

static void write_member(buffer *out, const char *separator, const value *key, const value *v)
{
    buffer_puts(out, separator);
    buffer_puts(out, "\n    ");
    json_write_data(out, key, 2, 2);
    buffer_puts(out, ": ");
    json_write_data(out, v, 2, 2);
}

/* The texts of answers are JSON in one line: read again, they are laid out. */
static tare_status write_entry(tare_context *ctx, const tare_calib_sample *s, buffer *out)
{
    tare_status status = TARE_OK;
    static const value prompt_key = {.type = VALUE_STRING, .text = "prompt", .length = 6};
    static const value ans_key = {.type = VALUE_STRING, .text = "ans", .length = 3};
    value prompt = {.type = VALUE_STRING, .text = s->prompt, .length = s->prompt_length};
    const value *ans, *extra = NULL;
    arena a;
    arena_init(&a, ctx);
    TRY(json_parse(ctx, &a, s->ans, s->ans_length, "ans", JSON_DATA, &ans));
    if (s->extra)
        TRY(json_parse(ctx, &a, s->extra, s->extra_length, "extra", JSON_DATA, &extra));
    buffer_puts(out, "\n  {");
    write_member(out, "", &prompt_key, &prompt);
    write_member(out, ",", &ans_key, ans);
    for (size_t i = 0; extra && i < extra->count; i++)
        write_member(out, ",", &extra->keys[i], &extra->items[i]);
    buffer_puts(out, "\n  }");
    status = out->status;
done:
    arena_free(&a);
    return status;
}

tare_status tare_calib_result_json(const tare_calib_result *r, char **text, size_t *length)
{
    tare_status status = TARE_OK;
    buffer out;
    *text = NULL;
    *length = 0;
    buffer_init(&out, r->ctx);
    buffer_putc(&out, '[');
    for (size_t i = 0; i < r->count; i++) {
        if (i)
            buffer_putc(&out, ',');
        TRY(write_entry(r->ctx, &r->entries[i].sample, &out));
    }
    buffer_puts(&out, r->count ? "\n]" : "]");
    TRY(out.status);
    *text = out.data;
    *length = out.length;
    out.data = NULL;
done:
    buffer_free(&out);
    return status;
}

tare_status tare_calib_token_ids(const tare_calib_result *r, size_t index,
                                 tare_tokenizer *tokenizer, uint32_t **ids, size_t *count)
{
    *ids = NULL;
    *count = 0;
    if (index >= r->count)
        return TARE_FAIL(r->ctx, TARE_E_USAGE, "the mix has no entry %zu", index);
    const tare_calib_sample *s = &r->entries[index].sample;
    return TARE_WRAP(
        r->ctx, tare_tokenizer_encode(tokenizer, s->prompt, s->prompt_length, true, ids, count),
        "entry %zu of the mix", index);
}
