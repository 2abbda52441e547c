/* Contexts: creation, the last error, log, cancellation. The context itself is the one block that
 * is not accounted. */
#include "base/context.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/parallel.h"

#ifndef TARE_VERSION
#error "TARE_VERSION comes from CMakeLists.txt"
#endif

const char *tare_version(void)
{
    return TARE_VERSION;
}

void tare_context_options_init(tare_context_options *options)
{
    memset(options, 0, sizeof *options);
}

/* There is no context yet that could keep the sentence: it goes to the log. */
static tare_status check_cpu(const tare_context_options *options)
{
    char text[160];
    tare_status status = options ? cpu_check(options->cpu, text, sizeof text) : TARE_OK;
    if (status != TARE_OK && options->log)
        options->log(options->user, TARE_LOG_ERROR, text);
    return status;
}

tare_status tare_context_create(tare_context **out, const tare_context_options *options)
{
    *out = NULL;
    tare_status status = check_cpu(options);
    if (status != TARE_OK)
        return status;
    tare_context *ctx = calloc(1, sizeof *ctx);
    if (!ctx)
        return TARE_E_MEMORY;
    if (options)
        ctx->options = *options;
    if (ctx->options.threads <= 0)
        ctx->options.threads = parallel_default_threads();
    atomic_init(&ctx->memory_used, 0);
    atomic_init(&ctx->memory_peak, 0);
    atomic_init(&ctx->cancelled, 0);
    atomic_flag_clear(&ctx->error_lock);
    pthread_mutex_init(&ctx->callback_lock, NULL);
    status = parallel_create(ctx);
    if (status == TARE_OK)
        *out = ctx;
    else
        tare_context_free(ctx);
    return status;
}

void tare_context_free(tare_context *ctx)
{
    if (!ctx)
        return;
    parallel_free(ctx);
    pthread_mutex_destroy(&ctx->callback_lock);
    free(ctx);
}

const char *tare_last_error(const tare_context *ctx)
{
    return ctx->error;
}

int tare_last_errno(const tare_context *ctx)
{
    return ctx->error_number;
}

void tare_cancel(tare_context *ctx)
{
    atomic_store(&ctx->cancelled, 1);
}

void tare_cancel_clear(tare_context *ctx)
{
    atomic_store(&ctx->cancelled, 0);
}

size_t tare_memory_used(const tare_context *ctx)
{
    return atomic_load(&ctx->memory_used);
}

size_t tare_memory_peak(const tare_context *ctx)
{
    return atomic_load(&ctx->memory_peak);
}

static void error_lock(tare_context *ctx)
{
    while (atomic_flag_test_and_set_explicit(&ctx->error_lock, memory_order_acquire)) {
    }
}

static void error_unlock(tare_context *ctx)
{
    atomic_flag_clear_explicit(&ctx->error_lock, memory_order_release);
}

/* Text of foreign files ends up in messages: no control character may reach a terminal. */
static void make_printable(char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
    }
}

static void set_error(tare_context *ctx, int error_number, const char *format, va_list args)
{
    char text[sizeof ctx->error];
    vsnprintf(text, sizeof text, format, args);
    make_printable(text);
    error_lock(ctx);
    memcpy(ctx->error, text, sizeof text);
    ctx->error_number = error_number;
    error_unlock(ctx);
}

tare_status context_fail(tare_context *ctx, tare_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set_error(ctx, 0, format, args);
    va_end(args);
    return status;
}

tare_status context_fail_errno(tare_context *ctx, tare_status status, int error_number,
                               const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set_error(ctx, error_number, format, args);
    va_end(args);
    return status;
}

tare_status context_wrap(tare_context *ctx, tare_status status, const char *format, ...)
{
    if (status == TARE_OK)
        return status;
    char text[sizeof ctx->error];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    make_printable(text);
    size_t used = n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    error_lock(ctx);
    const char *parts[] = {": ", ctx->error};
    for (size_t i = 0; i < 2; i++) {
        size_t room = sizeof text - 1 - used, length = strlen(parts[i]);
        length = length < room ? length : room;
        memcpy(text + used, parts[i], length);
        used += length;
    }
    text[used] = 0;
    memcpy(ctx->error, text, sizeof text);
    error_unlock(ctx);
    return status;
}

void context_log(tare_context *ctx, tare_log_level level, const char *format, ...)
{
    if (!ctx->options.log)
        return;
    char text[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    make_printable(text);
    pthread_mutex_lock(&ctx->callback_lock);
    ctx->options.log(ctx->options.user, level, text);
    pthread_mutex_unlock(&ctx->callback_lock);
}

tare_status context_check_cancelled(tare_context *ctx)
{
    if (atomic_load(&ctx->cancelled))
        return TARE_FAIL(ctx, TARE_E_CANCELLED, "cancelled");
    return TARE_OK;
}
