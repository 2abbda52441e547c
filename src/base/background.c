#include "base/background.h"

#include <pthread.h>

#include "base/memory.h"
#include "base/parallel.h"

typedef struct queued_job {
    background_job job;
    void *user;
} queued_job;

struct background {
    tare_context *ctx;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t submitted_one, done_one;
    uint64_t submitted, done; /* numbers of jobs so far; a ticket is `submitted` after its job */
    tare_status status;       /* of the first job that failed, and its error */
    error_note error;
    bool stop;
    size_t depth;
    queued_job jobs[]; /* [depth], a ring */
};

static void *work(void *argument)
{
    background *b = argument;
    parallel_alone();
    context_divert_errors(&b->error); /* jobs run one by one, and none behind a failed one */
    pthread_mutex_lock(&b->lock);
    for (;;) {
        while (b->done == b->submitted && !b->stop)
            pthread_cond_wait(&b->submitted_one, &b->lock);
        if (b->stop)
            break;
        queued_job next = b->jobs[b->done % b->depth];
        tare_status status = b->status;
        pthread_mutex_unlock(&b->lock);
        if (status == TARE_OK)
            status = next.job(next.user);
        pthread_mutex_lock(&b->lock);
        b->status = status;
        b->done++;
        pthread_cond_broadcast(&b->done_one);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

tare_status background_create(tare_context *ctx, size_t depth, background **out)
{
    background *b = mem_calloc(ctx, 1, sizeof *b + depth * sizeof *b->jobs);
    *out = NULL;
    if (!b)
        return TARE_E_MEMORY;
    b->ctx = ctx;
    b->depth = depth;
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->submitted_one, NULL);
    pthread_cond_init(&b->done_one, NULL);
    if (pthread_create(&b->thread, NULL, work, b) != 0) {
        mem_free(ctx, b);
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: the system refused a thread");
    }
    *out = b;
    return TARE_OK;
}

/* The failed job's error becomes that of whoever asks. */
static tare_status take_status(background *b)
{
    if (b->status != TARE_OK)
        context_set_error(b->ctx, &b->error);
    return b->status;
}

tare_status background_submit(background *b, background_job job, void *user, uint64_t *ticket)
{
    pthread_mutex_lock(&b->lock);
    while (b->submitted - b->done == b->depth && b->status == TARE_OK)
        pthread_cond_wait(&b->done_one, &b->lock);
    tare_status status = take_status(b);
    if (status == TARE_OK) {
        b->jobs[b->submitted++ % b->depth] = (queued_job){job, user};
        if (ticket)
            *ticket = b->submitted;
        pthread_cond_signal(&b->submitted_one);
    }
    pthread_mutex_unlock(&b->lock);
    return status;
}

tare_status background_wait(background *b, uint64_t ticket)
{
    pthread_mutex_lock(&b->lock);
    while (b->done < ticket && b->status == TARE_OK)
        pthread_cond_wait(&b->done_one, &b->lock);
    tare_status status = take_status(b);
    pthread_mutex_unlock(&b->lock);
    return status;
}

void background_free(background *b)
{
    if (!b)
        return;
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_signal(&b->submitted_one);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->submitted_one);
    pthread_cond_destroy(&b->done_one);
    mem_free(b->ctx, b);
}
