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
    mem_free(d->ctx, d->steps);
    d->steps = NULL;
    d->count = d->capacity = 0;
}

static tare_status read_byte_level(const stage_reader *r, const value *stage, void *target)
{
    enum { MAX_STEPS = 16 };
    decoder *d = target;
    (void)stage;
    if (d->count == MAX_STEPS)
        return TARE_FAIL(r->ctx, TARE_E_MODEL, "%s: a decoder of more than %d steps", r->what,
                         MAX_STEPS);
    tare_status status = mem_grow(d->ctx, (void **)&d->steps, &d->capacity, d->count + 1,
                                  sizeof(decoder_op));
    if (status == TARE_OK)
        d->steps[d->count++] = DECODE_BYTE_LEVEL;
    return status;
}

static const stage_type types[] = {
    {"ByteLevel", read_byte_level},
};

tare_status decoder_read(decoder *d, const stage_reader *r, const value *v)
{
    d->present = v && v->type != VALUE_NULL;
    return stage_read_tree(r, "decoder", v, types, sizeof types / sizeof types[0], "decoders", d);
}

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

tare_status decoder_run(const decoder *d, pieces *tokens, pieces *spare, buffer *out)
{
    for (size_t i = 0; i < d->count; i++) {
        tare_status status = decode_byte_level(d, tokens, spare);
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
