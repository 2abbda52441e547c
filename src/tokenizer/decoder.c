/* Decoders: each step makes new pieces of all the pieces. */
#include "tokenizer/decoder.h"

#include <string.h>

#include "tokenizer/unicode.h"

void decoder_init(decoder *d, tare_context *ctx)
{
    *d = (decoder){.ctx = ctx};
    byte_alphabet_init(&d->alphabet);
}

void decoder_free(decoder *d)
{
    for (size_t i = 0; i < d->count; i++) {
        pattern_free(d->ctx, &d->steps[i].pattern);
        mem_free(d->ctx, d->steps[i].text);
    }
    mem_free(d->ctx, d->steps);
    d->steps = NULL;
    d->count = d->capacity = 0;
}

/* ---- reading ---- */

/* Appends a step; *out is it, for the caller to complete. */
static tare_status add_step(const stage_reader *r, decoder *d, decoder_op op, decoder_step **out)
{
    enum { MAX_STEPS = 16 };
    if (d->count == MAX_STEPS)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: a decoder of more than %d steps", r->what,
                         MAX_STEPS);
    tare_status status = mem_grow(d->ctx, (void **)&d->steps, &d->capacity, d->count + 1,
                                  sizeof(decoder_step));
    if (status != TARE_OK)
        return status;
    *out = &d->steps[d->count++];
    **out = (decoder_step){.op = op};
    return TARE_OK;
}

static tare_status read_byte_level(const stage_reader *r, const value *stage, void *target)
{
    decoder_step *step;
    (void)stage;
    return add_step(r, target, DECODE_BYTE_LEVEL, &step);
}

static tare_status read_byte_fallback(const stage_reader *r, const value *stage, void *target)
{
    decoder_step *step;
    (void)stage;
    return add_step(r, target, DECODE_BYTE_FALLBACK, &step);
}

static tare_status read_fuse(const stage_reader *r, const value *stage, void *target)
{
    decoder_step *step;
    (void)stage;
    return add_step(r, target, DECODE_FUSE, &step);
}

static tare_status read_metaspace(const stage_reader *r, const value *stage, void *target)
{
    decoder_step *step = NULL;
    tare_status status = add_step(r, target, DECODE_METASPACE, &step);
    return status == TARE_OK ? metaspace_read(r, stage, &step->metaspace) : status;
}

static tare_status read_replace(const stage_reader *r, const value *stage, void *target)
{
    decoder_step *step = NULL;
    tare_status status = TARE_OK;
    TRY(add_step(r, target, DECODE_REPLACE, &step));
    TRY(stage_text(r, stage, "content", &step->text, &step->length));
    TRY(pattern_read(r, stage, "Replace", &step->pattern));
done:
    return status;
}

static tare_status read_strip(const stage_reader *r, const value *stage, void *target)
{
    decoder_step *step = NULL;
    tare_status status = TARE_OK;
    TRY(add_step(r, target, DECODE_STRIP, &step));
    TRY(stage_text(r, stage, "content", &step->text, &step->length));
    TRY(value_get_size(r->ctx, stage, r->what, "start", &step->start));
    TRY(value_get_size(r->ctx, stage, r->what, "stop", &step->stop));
    if (step->length == 0 || step->length != utf8_length((uint8_t)step->text[0]))
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: the content of Strip must be one character",
                         r->what);
done:
    return status;
}

static const stage_type types[] = {
    {"ByteFallback", read_byte_fallback}, {"ByteLevel", read_byte_level}, {"Fuse", read_fuse},
    {"Metaspace", read_metaspace},        {"Replace", read_replace},      {"Strip", read_strip},
};

tare_status decoder_read(decoder *d, const stage_reader *r, const value *v)
{
    d->present = v && v->type != VALUE_NULL;
    return stage_read_tree(r, "decoder", v, types, sizeof types / sizeof types[0], "decoders", d);
}

/* ---- bytes ---- */

/* Bytes of the well-formed character at `p`; 0 if there is none, and then *skip gets the length of
 * the ill-formed part that one U+FFFD stands for: the longest prefix of a character, or one byte.
 */
static size_t check_character(const uint8_t *p, const uint8_t *end, size_t *skip)
{
    size_t more = *p < 0x80 ? 0 : *p < 0xe0 ? 1 : *p < 0xf0 ? 2 : 3;
    uint8_t low = 0x80, high = 0xbf; /* of the second byte */
    *skip = 1;
    if (more && (*p < 0xc2 || *p > 0xf4))
        return 0;
    if (*p == 0xe0)
        low = 0xa0;
    else if (*p == 0xed)
        high = 0x9f;
    else if (*p == 0xf0)
        low = 0x90;
    else if (*p == 0xf4)
        high = 0x8f;
    for (size_t i = 1; i <= more; i++) {
        if (p + i == end || p[i] < low || p[i] > high)
            return 0;
        low = 0x80;
        high = 0xbf;
        *skip = i + 1;
    }
    return more + 1;
}

/* As Rust's String::from_utf8_lossy. */
static void append_lossy(const char *data, size_t length, buffer *out)
{
    if (length == 0) /* of no tokens: data may be NULL */
        return;
    const uint8_t *p = (const uint8_t *)data, *end = p + length, *good = p;
    while (p < end) {
        size_t skip, size = check_character(p, end, &skip);
        if (size) {
            p += size;
            continue;
        }
        buffer_append(out, good, (size_t)(p - good));
        buffer_puts(out, "\xef\xbf\xbd");
        p += skip;
        good = p;
    }
    buffer_append(out, good, (size_t)(p - good));
}

/* All tokens become one piece: a character may be spread over several. */
static tare_status decode_byte_level(const decoder *d, pieces *tokens, pieces *spare)
{
    tare_status status = TARE_OK;
    buffer bytes;
    buffer_init(&bytes, d->ctx);
    for (size_t i = 0; i < tokens->count; i++)
        byte_alphabet_decode(&d->alphabet, tokens->text + tokens->spans[i].start,
                             tokens->spans[i].length, &bytes);
    TRY(bytes.status);
    spare->count = 0;
    spare->own.length = 0;
    append_lossy(bytes.data, bytes.length, &spare->own);
    TRY(pieces_add(spare, 0, spare->own.length));
    TRY(pieces_finish_rewrite(tokens, spare));
done:
    buffer_free(&bytes);
    return status;
}

/* ---- token by token ---- */

/* The byte of a token "<0xNN>"; as Rust reads a number, NN may be a plus sign and one digit. */
static bool byte_of_token(const char *token, size_t length, char *byte)
{
    if (length != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>')
        return false;
    unsigned number = 0;
    for (size_t i = token[3] == '+' ? 4 : 3; i < 5; i++) {
        char c = token[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                           : -1;
        if (digit < 0)
            return false;
        number = number * 16 + (unsigned)digit;
    }
    *byte = (char)number;
    return true;
}

/* The bytes behind `start` in the buffer become one piece; U+FFFD for each if they are no text. */
static tare_status finish_bytes(pieces *out, size_t start)
{
    size_t count = out->own.length - start;
    if (out->own.status != TARE_OK || count == 0)
        return out->own.status;
    if (!utf8_valid(out->own.data + start, count)) {
        out->own.length = start;
        for (size_t i = 0; i < count; i++)
            buffer_puts(&out->own, "\xef\xbf\xbd");
    }
    return pieces_add(out, start, out->own.length - start);
}

static tare_status decode_byte_fallback(const pieces *tokens, pieces *out)
{
    tare_status status = TARE_OK;
    size_t start = 0; /* of what follows the last piece: bytes */
    for (size_t i = 0; i < tokens->count; i++) {
        const char *token = tokens->text + tokens->spans[i].start;
        size_t length = tokens->spans[i].length;
        char byte;
        if (byte_of_token(token, length, &byte)) {
            buffer_putc(&out->own, byte);
            continue;
        }
        TRY(finish_bytes(out, start));
        start = out->own.length;
        buffer_append(&out->own, token, length);
        TRY(pieces_add(out, start, length));
        start = out->own.length;
    }
    TRY(finish_bytes(out, start));
done:
    return status;
}

static void replace_metaspace(const metaspace *m, bool first, const char *token, size_t length,
                              buffer *out)
{
    const char *end = token + length;
    bool drop = first && m->prepend != PREPEND_NEVER;
    for (const char *found; token < end; token = found + m->length) {
        found = memmem(token, (size_t)(end - token), m->replacement, m->length);
        buffer_append(out, token, (size_t)((found ? found : end) - token));
        if (!found)
            break;
        if (!drop)
            buffer_putc(out, ' ');
    }
}

static void strip_token(const decoder_step *step, const char *token, size_t length, buffer *out)
{
    size_t n = step->length;
    for (size_t i = 0; i < step->start && length >= n && memcmp(token, step->text, n) == 0; i++) {
        token += n;
        length -= n;
    }
    for (size_t i = 0;
         i < step->stop && length >= n && memcmp(token + length - n, step->text, n) == 0; i++)
        length -= n;
    buffer_append(out, token, length);
}

/* The steps that treat each token alone. */
static tare_status decode_tokens(const decoder_step *step, const pieces *tokens, pieces *out)
{
    tare_status status = TARE_OK;
    match_list matches = {.ctx = tokens->ctx};
    for (size_t i = 0; i < tokens->count; i++) {
        const char *token = tokens->text + tokens->spans[i].start;
        size_t length = tokens->spans[i].length, start = out->own.length;
        if (step->op == DECODE_REPLACE)
            TRY(pattern_replace(&step->pattern, token, length, step->text, step->length, &matches,
                                &out->own));
        else if (step->op == DECODE_METASPACE)
            replace_metaspace(&step->metaspace, i == 0, token, length, &out->own);
        else
            strip_token(step, token, length, &out->own);
        TRY(out->own.status);
        TRY(pieces_add(out, start, out->own.length - start));
    }
done:
    mem_free(tokens->ctx, matches.items);
    return status;
}

static tare_status fuse(const pieces *tokens, pieces *out)
{
    for (size_t i = 0; i < tokens->count; i++)
        buffer_append(&out->own, tokens->text + tokens->spans[i].start, tokens->spans[i].length);
    return out->own.status == TARE_OK ? pieces_add(out, 0, out->own.length) : out->own.status;
}

static tare_status run_step(const decoder *d, const decoder_step *step, pieces *tokens,
                            pieces *spare)
{
    tare_status status = TARE_OK;
    if (step->op == DECODE_BYTE_LEVEL)
        return decode_byte_level(d, tokens, spare);
    spare->count = 0;
    spare->own.length = 0;
    if (step->op == DECODE_FUSE)
        TRY(fuse(tokens, spare));
    else if (step->op == DECODE_BYTE_FALLBACK)
        TRY(decode_byte_fallback(tokens, spare));
    else
        TRY(decode_tokens(step, tokens, spare));
    TRY(pieces_finish_rewrite(tokens, spare));
done:
    return status;
}

tare_status decoder_run(const decoder *d, pieces *tokens, pieces *spare, buffer *out)
{
    for (size_t i = 0; i < d->count; i++) {
        tare_status status = run_step(d, &d->steps[i], tokens, spare);
        if (status != TARE_OK)
            return status;
    }
    for (size_t i = 0; i < tokens->count; i++) {
        if (i && !d->present)
            buffer_putc(out, ' ');
        buffer_append(out, tokens->text + tokens->spans[i].start, tokens->spans[i].length);
    }
    return out->status;
}
