#include "base/sized.h"

#include <string.h>

#include "base/context.h"

/* Every struct has a member beside its size; none will ever be larger than a page. */
enum { LEAST = 2 * sizeof(size_t), MOST = 4096 };

static size_t size_of(const void *given)
{
    size_t size;
    memcpy(&size, given, sizeof size);
    return size;
}

void sized_init(void *given, size_t given_size, const void *defaults, size_t size)
{
    memset(given, 0, given_size);
    memcpy(given, defaults, given_size < size ? given_size : size);
    if (given_size >= sizeof given_size)
        memcpy(given, &given_size, sizeof given_size);
}

tare_status sized_check(tare_context *ctx, const char *name, const void *given)
{
    if (!given)
        return TARE_OK;
    size_t size = size_of(given), length = strlen(name);
    if (size >= LEAST && size <= MOST)
        return TARE_OK;
    bool options = length > 8 && strcmp(name + length - 8, "_options") == 0;
    if (ctx && options)
        TARE_FAIL(ctx, TARE_E_USAGE, "%s: its size is %zu; call %s_init first", name, size, name);
    else if (ctx)
        TARE_FAIL(ctx, TARE_E_USAGE, "%s: its size is %zu; set it to sizeof(%s) first", name, size,
                  name);
    return TARE_E_USAGE;
}

tare_status sized_take(tare_context *ctx, const char *name, const void *given, void *known,
                       size_t size)
{
    tare_status status = sized_check(ctx, name, given);
    if (!given || status != TARE_OK)
        return status;
    size_t given_size = size_of(given);
    for (size_t i = size; i < given_size; i++) {
        if (((const char *)given)[i] && ctx)
            TARE_FAIL(ctx, TARE_E_USAGE, "%s: it has a setting that tare %s does not know", name,
                      tare_version());
        if (((const char *)given)[i])
            return TARE_E_USAGE;
    }
    memcpy(known, given, given_size < size ? given_size : size);
    memcpy(known, &size, sizeof size);
    return TARE_OK;
}

void sized_give(void *given, const void *known, size_t size)
{
    if (!given)
        return;
    size_t given_size = size_of(given), own = sizeof given_size;
    size_t copied = given_size < size ? given_size : size;
    memset((char *)given + own, 0, given_size - own);
    memcpy((char *)given + own, (const char *)known + own, copied - own);
}
