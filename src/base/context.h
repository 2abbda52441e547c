/* The context inside: error message, log, cancellation. Errors travel as status codes; the sentence
 * that explains one is written once where it happens (TARE_FAIL) and each level that knows more
 * puts its word in front (TARE_WRAP). */
#ifndef TARE_BASE_CONTEXT_H
#define TARE_BASE_CONTEXT_H

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>

#include "tare/tare.h"

/* What went wrong, and errno behind it, or 0. */
typedef struct error_note {
    char text[2048];
    int number;
} error_note;

enum { CONTEXT_KEPT = 12 };

struct tare_context {
    tare_context_options options; /* threads resolved: never 0 */
    /* What holds the context: bytes of all blocks (multiples of 64), and CONTEXT_OWNED until
     * tare_context_free. So whatever hangs off it keeps it alive, as it is made of blocks. */
    atomic_size_t held;
    atomic_size_t memory_peak;
    size_t memory_reserve; /* of a budget for the whole process: what memory_limit leaves out */
    _Atomic(void *) spare; /* base/memory.c: scratch that waits for its next use */
    atomic_bool keeps_scratch;
    /* base/memory.c: large blocks that were freed and wait for the next of their size, while all
     * blocks with them hold at most so many bytes; 0: none wait. */
    _Atomic(void *) kept[CONTEXT_KEPT];
    atomic_size_t keep_most, keep_next; /* the second: whose place the next one takes */
    atomic_int cancelled;
    atomic_flag error_lock;
    pthread_mutex_t callback_lock; /* log and progress: one call at a time */
    struct thread_pool *pool;      /* base/parallel.c; NULL: one thread */
    error_note error;
};

enum { CONTEXT_OWNED = 1 };

/* Takes `amount` from `held`; what leaves nothing ends the context. */
void context_let_go(tare_context *ctx, size_t amount);

/* Sets the message of `ctx` and returns `status`. Thread-safe. */
tare_status context_fail(tare_context *ctx, tare_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same for a failure of the operating system, with its errno. */
tare_status context_fail_errno(tare_context *ctx, tare_status status, int error_number,
                               const char *format, ...) __attribute__((format(printf, 4, 5)));
/* From now on errors of this thread go to `note` (NULL: to the context again), and tare_last_error
 * on this thread reads them there. A thread that works for another one keeps its errors to itself
 * until the other asks: what fails later must not take the place of what failed first. */
void context_divert_errors(error_note *note);
/* Saving the error while something is tidied up, and putting it back. */
error_note context_error(tare_context *ctx);
void context_set_error(tare_context *ctx, const error_note *note);
/* Puts "<text>: " before the message, and returns `status`; does nothing for TARE_OK. */
tare_status context_wrap(tare_context *ctx, tare_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void context_log(tare_context *ctx, tare_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define TARE_FAIL(ctx, status, ...) context_fail((ctx), (status), __VA_ARGS__)
#define TARE_WRAP(ctx, status, ...) context_wrap((ctx), (status), __VA_ARGS__)
#define TARE_WARN(ctx, ...)         context_log((ctx), TARE_LOG_WARNING, __VA_ARGS__)
#define TARE_INFO(ctx, ...)         context_log((ctx), TARE_LOG_INFO, __VA_ARGS__)
#define TARE_DEBUG(ctx, ...)        context_log((ctx), TARE_LOG_DEBUG, __VA_ARGS__)

/* TARE_OK, or TARE_E_CANCELLED with its message once tare_cancel() was called. */
tare_status context_check_cancelled(tare_context *ctx);

/* Runs `call`; on failure stores the status in the local variable `status` and jumps to the label
 * `done`. The one clean-up idiom: `tare_status status = TARE_OK; … TRY(f()); … done: free(); return
 * status;` */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        if ((status = (call)) != TARE_OK)                                                          \
            goto done;                                                                             \
    } while (0)

#endif
