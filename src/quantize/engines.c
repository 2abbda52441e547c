/* The table of engines and their versions, and reading "engine@version". */
#include "quantize/engines.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/strings.h"

#define V ENGINE_VERSION

static const engine_row rows[ENGINES] = {
    [ENGINE_NONE] = {"none", {0}},
    [ENGINE_VLLM_ASCEND] = {"vllm-ascend",
                            {V(0, 23), V(0, 24), V(0, 25), V(0, 26), ENGINE_MAIN, 0}},
    [ENGINE_SGLANG] = {"sglang", {ENGINE_MAIN, 0}},
    [ENGINE_MINDIE] = {"mindie", {V(3, 1), 0}},
    [ENGINE_VLLM] = {"vllm", {V(0, 33), 0}},
};

const engine_row *engine_of(engine which)
{
    return &rows[which];
}

const char *engine_version_text(uint32_t version, char out[VERSION_TEXT])
{
    if (version == ENGINE_MAIN)
        snprintf(out, VERSION_TEXT, "main");
    else
        snprintf(out, VERSION_TEXT, "%u.%u", (unsigned)(version >> 16),
                 (unsigned)(version & 0xffff));
    return out;
}

const char *serving_target_text(const serving_target *t, char out[TARGET_TEXT])
{
    char version[VERSION_TEXT];
    snprintf(out, TARGET_TEXT, "%s@%s", rows[t->engine].name,
             engine_version_text(t->version, version));
    return out;
}

/* Digits of a number below 65536; 0: none. */
static size_t read_number(const char *text, uint32_t *out)
{
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 5)
        return 0;
    unsigned long x = strtoul(text, NULL, 10);
    *out = (uint32_t)x;
    return x < 65536 ? digits : 0;
}

/* Major and minor count: what follows them ("0.23.0.post1", "0.23rc1") is a release of the same
 * kind. 0: no version. */
static uint32_t read_version(const char *text)
{
    uint32_t major, minor;
    if (strcmp(text, "main") == 0)
        return ENGINE_MAIN;
    text += *text == 'v';
    size_t used = read_number(text, &major);
    if (used == 0 || text[used] != '.')
        return 0;
    text += used + 1;
    used = read_number(text, &minor);
    if (used == 0 ||
        strspn(text + used, "0123456789.abcdefghijklmnopqrstuvwxyz+-") != strlen(text + used))
        return 0;
    return ENGINE_VERSION(major, minor);
}

static bool knows_version(const engine_row *e, uint32_t version)
{
    for (const uint32_t *known = e->versions; *known; known++)
        if (*known == version)
            return true;
    return false;
}

static uint32_t newest(const engine_row *e)
{
    const uint32_t *known = e->versions;
    while (known[1])
        known++;
    return *known;
}

static void list_versions(buffer *out, const engine_row *e)
{
    char text[VERSION_TEXT];
    for (const uint32_t *known = e->versions; *known; known++)
        buffer_printf(out, "%s%s@%s", known == e->versions ? "" : ", ", e->name,
                      engine_version_text(*known, text));
}

static tare_status refuse(tare_context *ctx, const char *text, const engine_row *only)
{
    buffer known;
    buffer_init(&known, ctx);
    for (int i = ENGINE_NONE + 1; i < ENGINES; i++) {
        if (only && only != &rows[i])
            continue;
        buffer_puts(&known, known.length ? ", " : "");
        list_versions(&known, &rows[i]);
    }
    tare_status status = known.status;
    if (status == TARE_OK)
        status = TARE_FAIL(ctx, TARE_E_USAGE, "target %.80s is unknown; known are %s", text,
                           known.data);
    buffer_free(&known);
    return status;
}

tare_status serving_target_parse(tare_context *ctx, const char *text, serving_target *out)
{
    const char *at = strchr(text, '@');
    size_t length = at ? (size_t)(at - text) : strlen(text);
    *out = (serving_target){ENGINE_NONE, 0};
    for (int i = ENGINE_NONE + 1; i < ENGINES; i++) {
        const engine_row *e = &rows[i];
        if (strlen(e->name) != length || memcmp(e->name, text, length) != 0)
            continue;
        uint32_t version = at ? read_version(at + 1) : newest(e);
        if (version == 0 || !knows_version(e, version))
            return refuse(ctx, text, e);
        *out = (serving_target){(engine)i, version};
        return TARE_OK;
    }
    return refuse(ctx, text, NULL);
}
