/* Unicode normalization on utf8proc's tables, and replacements. utf8proc_map() is not used: it
 * allocates by itself, and its ordering of combining marks is quadratic in a run of them. */
#include "tokenizer/normalizer.h"

#include <string.h>
#include <utf8proc.h>

#include "tokenizer/unicode.h"

enum { COMBINING_CLASSES = 256 };

void normalizer_init(normalizer *n, tare_context *ctx)
{
    *n = (normalizer){.ctx = ctx};
}

void normalizer_free(normalizer *n)
{
    for (size_t i = 0; i < n->count; i++) {
        pattern_free(n->ctx, &n->steps[i].pattern);
        mem_free(n->ctx, n->steps[i].text);
    }
    mem_free(n->ctx, n->steps);
    *n = (normalizer){.ctx = n->ctx};
}

/* ---- reading ---- */

/* Appends a step, which the caller completes. */
static tare_status add_step(const stage_reader *r, normalizer *n, normalizer_op op)
{
    enum { MAX_STEPS = 16 };
    if (n->count == MAX_STEPS)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: a normalizer of more than %d steps", r->what,
                         MAX_STEPS);
    tare_status status = mem_grow(n->ctx, (void **)&n->steps, &n->capacity, n->count + 1,
                                  sizeof(normalizer_step));
    if (status == TARE_OK)
        n->steps[n->count++] = (normalizer_step){.op = op};
    return status;
}

static tare_status read_nfc(const stage_reader *r, const value *stage, void *target)
{
    (void)stage;
    return add_step(r, target, NORMALIZE_NFC);
}

static tare_status read_nfd(const stage_reader *r, const value *stage, void *target)
{
    (void)stage;
    return add_step(r, target, NORMALIZE_NFD);
}

static tare_status read_nfkc(const stage_reader *r, const value *stage, void *target)
{
    (void)stage;
    return add_step(r, target, NORMALIZE_NFKC);
}

static tare_status read_nfkd(const stage_reader *r, const value *stage, void *target)
{
    (void)stage;
    return add_step(r, target, NORMALIZE_NFKD);
}

static tare_status read_prepend(const stage_reader *r, const value *stage, void *target)
{
    normalizer *n = target;
    tare_status status = add_step(r, n, NORMALIZE_PREPEND);
    if (status != TARE_OK)
        return status;
    normalizer_step *step = &n->steps[n->count - 1];
    return stage_text(r, stage, "prepend", &step->text, &step->length);
}

static tare_status read_replace(const stage_reader *r, const value *stage, void *target)
{
    normalizer *n = target;
    tare_status status = add_step(r, n, NORMALIZE_REPLACE);
    if (status != TARE_OK)
        return status;
    normalizer_step *step = &n->steps[n->count - 1];
    status = stage_text(r, stage, "content", &step->text, &step->length);
    return status == TARE_OK ? pattern_read(r, stage, "Replace", &step->pattern) : status;
}

static const stage_type types[] = {
    {"NFC", read_nfc},   {"NFD", read_nfd},         {"NFKC", read_nfkc},
    {"NFKD", read_nfkd}, {"Prepend", read_prepend}, {"Replace", read_replace},
};

tare_status normalizer_read(normalizer *n, const stage_reader *r, const value *v)
{
    return stage_read_tree(r, "normalizer", v, types, sizeof types / sizeof types[0], "normalizers",
                           n);
}

/* ---- running ---- */

void normalizer_scratch_init(normalizer_scratch *s, tare_context *ctx)
{
    *s = (normalizer_scratch){.matches = {.ctx = ctx}};
    buffer_init(&s->text[0], ctx);
    buffer_init(&s->text[1], ctx);
}

void normalizer_scratch_free(normalizer_scratch *s)
{
    tare_context *ctx = s->text[0].ctx;
    mem_free(ctx, s->codes);
    mem_free(ctx, s->sorted);
    mem_free(ctx, s->matches.items);
    buffer_free(&s->text[0]);
    buffer_free(&s->text[1]);
    normalizer_scratch_init(s, ctx);
}

static int combining_class(int32_t code)
{
    return utf8proc_get_property(code)->combining_class;
}

/* Orders codes[from..to), marks that follow each other, by combining class; stable, by counting. */
static tare_status order_marks(normalizer_scratch *s, size_t from, size_t to)
{
    size_t first[COMBINING_CLASSES + 1] = {0}, count = to - from;
    if (count < 2)
        return TARE_OK;
    tare_status status = mem_grow(s->text[0].ctx, (void **)&s->sorted, &s->sorted_capacity, count,
                                  sizeof(int32_t));
    if (status != TARE_OK)
        return status;
    for (size_t i = from; i < to; i++)
        first[combining_class(s->codes[i]) + 1]++;
    for (int i = 0; i < COMBINING_CLASSES; i++)
        first[i + 1] += first[i];
    for (size_t i = from; i < to; i++)
        s->sorted[first[combining_class(s->codes[i])]++] = s->codes[i];
    memcpy(s->codes + from, s->sorted, count * sizeof(int32_t));
    return TARE_OK;
}

/* Decomposes the run `text` into s->codes and orders its marks. */
static tare_status decompose(normalizer_scratch *s, int options, const uint8_t *text, size_t length,
                             size_t *out_count)
{
    enum { LONGEST = 18 }; /* of one code point: U+FDFA, in compatibility forms */
    tare_status status = TARE_OK;
    size_t count = 0, marks = 0, size; /* marks: where the present run of them began */
    int boundclass = 0;
    for (size_t i = 0; i < length; i += size) {
        int32_t code = (int32_t)utf8_decode(text + i, &size);
        TRY(mem_grow(s->text[0].ctx, (void **)&s->codes, &s->capacity, count + LONGEST,
                     sizeof(int32_t)));
        utf8proc_ssize_t n = utf8proc_decompose_char(code, s->codes + count, LONGEST,
                                                     (utf8proc_option_t)options, &boundclass);
        if (n < 0 || n > LONGEST) {
            s->codes[count] = code;
            n = 1;
        }
        for (utf8proc_ssize_t k = 0; k < n; k++, count++) {
            if (combining_class(s->codes[count]) != 0)
                continue;
            TRY(order_marks(s, marks, count));
            marks = count + 1;
        }
    }
    TRY(order_marks(s, marks, count));
    *out_count = count;
done:
    return status;
}

/* Normalizes a run that no code point outside it can change. */
static tare_status normalize_run(normalizer_scratch *s, int options, const uint8_t *text,
                                 size_t length, buffer *out)
{
    size_t count = 0;
    tare_status status = decompose(s, options, text, length, &count);
    if (status != TARE_OK)
        return status;
    if (options & UTF8PROC_COMPOSE) {
        utf8proc_ssize_t composed = utf8proc_normalize_utf32(s->codes, (utf8proc_ssize_t)count,
                                                             (utf8proc_option_t)options);
        if (composed >= 0)
            count = (size_t)composed;
    }
    for (size_t i = 0; i < count; i++) {
        char bytes[4];
        buffer_append(out, bytes, utf8_encode((uint32_t)s->codes[i], bytes));
    }
    return out->status;
}

/* Runs are cut before each ASCII character and around each inert one: neither ever combines with
 * what precedes it. */
static tare_status normalize(normalizer_scratch *s, int options, const uint8_t *p, size_t length,
                             buffer *out)
{
    const uint8_t *end = p + length;
    tare_status status = TARE_OK;
    size_t size;
    out->length = 0;
    while (p < end && status == TARE_OK) {
        const uint8_t *stop = p;
        while (stop < end && *stop < 0x80)
            stop++;
        if (stop < end && stop > p)
            stop--; /* a mark may follow this one */
        if (stop > p) {
            buffer_append(out, p, (size_t)(stop - p));
            status = out->status;
            p = stop;
            continue;
        }
        if (unicode_flags(utf8_decode(p, &size)) & UNICODE_INERT) {
            buffer_append(out, p, size);
            status = out->status;
            p += size;
            continue;
        }
        for (stop = p + size; stop < end && *stop >= 0x80; stop += size) {
            if (unicode_flags(utf8_decode(stop, &size)) & UNICODE_INERT)
                break;
        }
        status = normalize_run(s, options, p, (size_t)(stop - p), out);
        p = stop;
    }
    return status;
}

static bool is_ascii(const char *text, size_t length)
{
    bool ascii = true;
    for (size_t i = 0; i < length && ascii; i++)
        ascii = (uint8_t)text[i] < 0x80;
    return ascii;
}

/* What the step makes of `text`, in `target`; *same: that is the text itself. */
static tare_status run_step(const normalizer_step *step, const char *text, size_t length,
                            normalizer_scratch *s, buffer *target, bool *same)
{
    static const int options[] = {
        [NORMALIZE_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [NORMALIZE_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [NORMALIZE_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [NORMALIZE_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    target->length = 0;
    *same = false;
    if (step->op == NORMALIZE_REPLACE)
        return pattern_replace(&step->pattern, text, length, step->text, step->length, &s->matches,
                               target);
    if (step->op == NORMALIZE_PREPEND) {
        *same = length == 0;
        buffer_append(target, step->text, step->length);
        buffer_append(target, text, length);
        return target->status;
    }
    *same = is_ascii(text, length);
    return *same ? TARE_OK : normalize(s, options[step->op], (const uint8_t *)text, length, target);
}

tare_status normalizer_run(const normalizer *n, const char *text, size_t length,
                           normalizer_scratch *s, const char **out, size_t *out_length)
{
    int next = 0; /* of the two buffers, the one that does not hold the text */
    for (size_t i = 0; i < n->count; i++) {
        bool same;
        tare_status status = run_step(&n->steps[i], text, length, s, &s->text[next], &same);
        if (status != TARE_OK)
            return status;
        if (same)
            continue;
        text = s->text[next].length ? s->text[next].data : "";
        length = s->text[next].length;
        next = !next;
        if (length > UINT32_MAX)
            return TARE_FAIL(n->ctx, TARE_E_DATA, "a text of %zu bytes once normalized", length);
    }
    *out = text;
    *out_length = length;
    return TARE_OK;
}
