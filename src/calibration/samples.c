/* Reading calibration files, and taking samples from memory. */
#include "calibration/samples.h"

#include <string.h>

#include "base/strings.h"
#include "calibration/text.h"
#include "file/foreign.h"
#include "file/io.h"
#include "file/json.h"

#define FILE_LIMIT ((size_t)4 << 30)

typedef struct loader {
    tare_context *ctx;
    const sample_options *options;
    tare_tokenizer *tokenizer; /* opened with the first text */
    sample_set *set;
    size_t ids_capacity, lengths_capacity;
    size_t row; /* in the file, from 1 */
} loader;

/* What messages call the source. */
static const char *source_name(const sample_options *o)
{
    return o->file ? o->file : "calibration data";
}

#define REFUSE(l, ...)                                                                             \
    TARE_WRAP((l)->ctx, TARE_FAIL((l)->ctx, TARE_E_DATA, __VA_ARGS__), "%s: row %zu",              \
              source_name((l)->options), (l)->row)

static bool is_full(const loader *l)
{
    return l->options->samples && l->set->count == l->options->samples;
}

static tare_status add_ids(loader *l, const uint32_t *ids, size_t count)
{
    tare_status status = TARE_OK;
    sample_set *s = l->set;
    const sample_options *o = l->options;
    if (count == 0 && !o->keep_empty)
        return REFUSE(l, "a sample without tokens cannot calibrate anything");
    if (o->max_length && count > o->max_length) {
        count = o->max_length;
        s->truncated++;
    }
    size_t sequence = o->sequences ? count / o->sequences[l->row - 1] : count;
    if (o->model_max && sequence > o->model_max)
        return REFUSE(l, "%zu tokens exceed the model's maximum of %zu; --max-length %zu truncates",
                      sequence, o->model_max, o->model_max);
    for (size_t i = 0; o->vocab_size && i < count; i++) {
        if (ids[i] >= o->vocab_size)
            return REFUSE(l, "token id %u is out of range: the vocabulary has %zu", ids[i],
                          o->vocab_size);
    }
    TRY(mem_grow(l->ctx, (void **)&s->ids, &l->ids_capacity, s->tokens + count, sizeof *s->ids));
    TRY(mem_grow(l->ctx, (void **)&s->lengths, &l->lengths_capacity, s->count + 1,
                 sizeof *s->lengths));
    memcpy(s->ids + s->tokens, ids, count * sizeof *ids);
    s->lengths[s->count++] = count;
    s->tokens += count;
    if (count > s->longest)
        s->longest = count;
done:
    return status;
}

static tare_status add_text(loader *l, const char *text, size_t length)
{
    tare_status status = TARE_OK;
    uint32_t *ids = NULL;
    size_t count;
    if (!l->tokenizer && !l->options->model)
        return REFUSE(l, "text needs a tokenizer, and the model has no folder with one");
    if (!l->tokenizer)
        TRY(tare_tokenizer_open(l->ctx, l->options->model, &l->tokenizer));
    TRY(TARE_WRAP(l->ctx, tare_tokenizer_encode(l->tokenizer, text, length, true, &ids, &count),
                  "%s: row %zu", l->options->file, l->row));
    TRY(add_ids(l, ids, count));
done:
    mem_free(l->ctx, ids);
    return status;
}

static tare_status add_id_list(loader *l, const value *list)
{
    tare_status status = TARE_OK;
    uint32_t *ids = mem_alloc_array(l->ctx, list->count, sizeof *ids);
    if (!ids)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < list->count; i++) {
        const value *v = &list->items[i];
        if (v->type != VALUE_NUMBER || !v->is_integer || v->integer < 0 ||
            v->integer > UINT32_MAX) {
            status = REFUSE(l, "element %zu is not a token id", i + 1);
            goto done;
        }
        ids[i] = (uint32_t)v->integer;
    }
    TRY(add_ids(l, ids, list->count));
done:
    mem_free(l->ctx, ids);
    return status;
}

/* One row of any kind. */
static tare_status add_row(loader *l, const value *row)
{
    static const char *const keys[] = {"inputs_pretokenized", "prompt", "text"};
    if (row->type == VALUE_STRING)
        return add_text(l, row->text, row->length);
    if (row->type == VALUE_LIST)
        return add_id_list(l, row);
    for (size_t i = 0; row->type == VALUE_MAP && i < sizeof keys / sizeof *keys; i++) {
        const value *v = value_get(row, keys[i]);
        if (v && v->type == VALUE_STRING && v->length > 0)
            return add_text(l, v->text, v->length);
    }
    return REFUSE(l, "holds no text under \"inputs_pretokenized\", \"prompt\" or \"text\", and no "
                     "list of token ids");
}

static tare_status load_list(loader *l, const char *data, size_t length)
{
    tare_status status = TARE_OK;
    json_reader *r = NULL;
    json_token token;
    const value *item;
    arena a;
    arena_init(&a, l->ctx);
    TRY(json_reader_create(l->ctx, data, length, l->options->file, JSON_PYTHON, &r));
    TRY(json_next(r, &token)); /* [ */
    for (l->row = 1; !is_full(l); l->row++) {
        TRY(json_next_item(r, &a, &item));
        if (!item) {
            TRY(json_next(r, &token)); /* nothing stands behind it */
            break;
        }
        TRY(add_row(l, item));
        arena_free(&a);
    }
done:
    json_reader_free(r);
    arena_free(&a);
    return status;
}

static tare_status load_json_line(loader *l, const char *line, size_t length)
{
    tare_status status = TARE_OK;
    const value *root;
    arena a;
    arena_init(&a, l->ctx);
    status = json_parse(l->ctx, &a, line, length, NULL, JSON_PYTHON, &root);
    if (status == TARE_OK)
        status = add_row(l, root);
    else
        status = TARE_WRAP(l->ctx, status, "%s: row %zu: JSON", l->options->file, l->row);
    arena_free(&a);
    return status;
}

/* Lines end in \n or \r\n; the last one may lack it. */
static tare_status load_lines(loader *l, const char *data, size_t length, bool json)
{
    tare_status status = TARE_OK;
    for (size_t at = 0; at < length && !is_full(l);) {
        const char *end = memchr(data + at, '\n', length - at);
        size_t whole = end ? (size_t)(end - data) - at : length - at;
        size_t n = whole > 0 && data[at + whole - 1] == '\r' ? whole - 1 : whole;
        l->row++;
        if (!text_is_blank((text_span){data + at, n}) || (l->options->keep_empty && !json))
            TRY(json ? load_json_line(l, data + at, n) : add_text(l, data + at, n));
        at += whole + 1;
    }
done:
    return status;
}

/* Any bytes are lines of text: what is surely none is refused at once. */
static tare_status load_text(loader *l, const char *data, size_t length)
{
    const foreign_kind *kind = foreign_recognise(data, length);
    if (kind && !kind->text)
        return foreign_explain(l->ctx, TARE_E_DATA, l->options->file, data, length);
    return load_lines(l, data, length, false);
}

static tare_status load_data(loader *l, const char *data, size_t length)
{
    if (length >= 3 &&
        memcmp(data, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark, as some editors leave it */
        data += 3;
        length -= 3;
    }
    if (str_ends_with(l->options->file, ".txt"))
        return load_text(l, data, length);
    size_t first = strspn(data, " \t\r\n");
    tare_status status = first < length && data[first] == '[' ? load_list(l, data, length)
                                                              : load_lines(l, data, length, true);
    return foreign_explain(l->ctx, status, l->options->file, data, length);
}

/* `kept` of the sample's sequences. */
static tare_status check_sequences(const loader *l, size_t length, size_t sequences,
                                   const size_t *kept)
{
    if (sequences == 0 || length % sequences != 0)
        return REFUSE(l, "%zu tokens are no %zu sequences of equal length", length, sequences);
    for (size_t i = 0; kept && i < sequences; i++)
        if (kept[i] == 0 || kept[i] > length / sequences)
            return REFUSE(l, "of a sequence of %zu tokens %zu are no padding", length / sequences,
                          kept[i]);
    return TARE_OK;
}

static tare_status load_memory(loader *l)
{
    tare_status status = TARE_OK;
    const sample_options *o = l->options;
    const uint32_t *ids = o->ids;
    const size_t *kept = o->kept;
    if (o->sequences && o->max_length)
        return TARE_FAIL(l->ctx, TARE_E_USAGE, "samples of several sequences cannot be cut");
    l->set->sequences = o->sequences;
    l->set->kept = o->kept;
    for (size_t i = 0; i < o->count && !is_full(l); ids += o->lengths[i++]) {
        l->row = i + 1;
        if (o->sequences) {
            TRY(check_sequences(l, o->lengths[i], o->sequences[i], kept));
            kept = kept ? kept + o->sequences[i] : NULL;
        }
        TRY(add_ids(l, ids, o->lengths[i]));
    }
done:
    return status;
}

tare_status sample_set_load(tare_context *ctx, const sample_options *options, sample_set *out)
{
    tare_status status = TARE_OK;
    char *data = NULL;
    size_t length;
    loader l = {.ctx = ctx, .options = options, .set = out};
    *out = (sample_set){0};
    if (options->file && strcmp(options->file, SAMPLES_BUILTIN) == 0) {
        TRY(load_data(&l, (const char *)builtin_prompts, builtin_prompts_size));
    } else if (options->file) {
        TRY(file_read_all(ctx, options->file, FILE_LIMIT, &data, &length));
        TRY(load_data(&l, data, length));
    } else {
        TRY(load_memory(&l));
    }
    if (out->count == 0 && !options->keep_empty)
        status = TARE_FAIL(ctx, TARE_E_DATA, "%s: holds no calibration samples",
                           source_name(options));
done:
    tare_tokenizer_free(l.tokenizer);
    mem_free(ctx, data);
    if (status != TARE_OK)
        sample_set_free(ctx, out);
    return status;
}

void sample_set_free(tare_context *ctx, sample_set *set)
{
    mem_free(ctx, set->lengths);
    mem_free(ctx, set->ids);
    *set = (sample_set){0};
}

tare_status tare_tokenize_file(tare_context *ctx, const char *model, const char *file_name,
                               tare_status (*row)(void *user, const uint32_t *ids, size_t count),
                               void *user)
{
    tare_status status = TARE_OK;
    sample_set set;
    sample_options options = {.file = file_name, .model = model, .keep_empty = true};
    TRY(sample_set_load(ctx, &options, &set));
    size_t at = 0;
    for (size_t i = 0; i < set.count; i++) {
        TRY(row(user, set.ids + at, set.lengths[i]));
        at += set.lengths[i];
    }
done:
    sample_set_free(ctx, &set);
    return status;
}
