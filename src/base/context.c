/* Contexts: creation, the last error, log, cancellation. The context itself is the one block that
 * is not accounted. */
#include "base/context.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "base/number.h"
#include "base/parallel.h"
#include "base/sized.h"

#ifndef TARE_VERSION
#error "TARE_VERSION comes from CMakeLists.txt"
#endif

const char *tare_version(void)
{
    return TARE_VERSION;
}

void tare_context_options_init_sized(tare_context_options *options, size_t size)
{
    const tare_context_options defaults = {0};
    sized_init(options, size, &defaults, sizeof defaults);
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
    tare_context_options known;
    *out = NULL;
    tare_context_options_init(&known);
    tare_status status = SIZED_TAKE(NULL, tare_context_options, options, &known);
    if (status == TARE_OK)
        status = check_cpu(&known);
    if (status != TARE_OK)
        return status;
    tare_context *ctx = calloc(1, sizeof *ctx);
    if (!ctx)
        return TARE_E_MEMORY;
    ctx->options = known;
    if (ctx->options.threads <= 0)
        ctx->options.threads = parallel_default_threads();
    atomic_init(&ctx->held, CONTEXT_OWNED);
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

void context_let_go(tare_context *ctx, size_t amount)
{
    if (atomic_fetch_sub(&ctx->held, amount) != amount)
        return;
    parallel_free(ctx);
    pthread_mutex_destroy(&ctx->callback_lock);
    free(ctx);
}

void tare_context_free(tare_context *ctx)
{
    if (!ctx)
        return;
    pthread_mutex_lock(&ctx->callback_lock); /* what `user` points to may go now */
    ctx->options.log = NULL;
    ctx->options.progress = NULL;
    ctx->options.allow_allocation = NULL;
    pthread_mutex_unlock(&ctx->callback_lock);
    mem_keep_scratch(ctx, false);
    context_let_go(ctx, CONTEXT_OWNED);
}

static _Thread_local error_note *diverted; /* NULL: errors go to the context */

void context_divert_errors(error_note *note)
{
    diverted = note;
}

static error_note *note_of(tare_context *ctx)
{
    return diverted ? diverted : &ctx->error;
}

const char *tare_last_error(const tare_context *ctx)
{
    return diverted ? diverted->text : ctx->error.text;
}

int tare_last_errno(const tare_context *ctx)
{
    return diverted ? diverted->number : ctx->error.number;
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
    return atomic_load(&ctx->held) & ~(size_t)CONTEXT_OWNED;
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
    error_note fresh = {.number = error_number};
    text_vformat(fresh.text, sizeof fresh.text, format, args);
    make_printable(fresh.text);
    context_set_error(ctx, &fresh);
}

error_note context_error(tare_context *ctx)
{
    error_lock(ctx);
    error_note note = *note_of(ctx);
    error_unlock(ctx);
    return note;
}

void context_set_error(tare_context *ctx, const error_note *note)
{
    error_lock(ctx);
    *note_of(ctx) = *note;
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
    char text[sizeof ctx->error.text];
    va_list args;
    va_start(args, format);
    int n = text_vformat(text, sizeof text, format, args);
    va_end(args);
    make_printable(text);
    size_t used = n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    error_lock(ctx);
    char *whole = note_of(ctx)->text;
    const char *parts[] = {": ", whole};
    for (size_t i = 0; i < 2; i++) {
        size_t room = sizeof text - 1 - used, length = strlen(parts[i]);
        length = length < room ? length : room;
        memcpy(text + used, parts[i], length);
        used += length;
    }
    text[used] = 0;
    memcpy(whole, text, sizeof text);
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
    text_vformat(text, sizeof text, format, args);
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
