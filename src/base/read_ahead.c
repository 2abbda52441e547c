#include "base/read_ahead.h"

#include <assert.h>

#include "base/memory.h"
#include "base/parallel.h"
#include "base/thread.h"

struct read_ahead {
    tare_context *ctx;
    read_ahead_work work;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t next, limit;            /* what is read next; items before `limit` may be */
    size_t expected;               /* what is taken next */
    size_t given, written;         /* items before these have been */
    bool filled[READ_AHEAD_SLOTS]; /* read, and not taken yet */
    size_t failed;                 /* the first item that did; SIZE_MAX: none */
    tare_status status;            /* its */
    error_note error;
    bool stop;
    pthread_t threads[READ_AHEAD_READERS + 1];
    size_t num_threads;
};

static size_t slot_of(const read_ahead *r, size_t index)
{
    return index % read_ahead_slots(&r->work);
}

static void run_unlocked(read_ahead *r, read_ahead_item item, size_t index)
{
    error_note error = {.text = ""};
    pthread_mutex_unlock(&r->lock);
    context_divert_errors(&error);
    tare_status status = item(r->work.user, index, slot_of(r, index));
    pthread_mutex_lock(&r->lock);
    if (status != TARE_OK && index < r->failed) {
        r->failed = index;
        r->status = status;
        r->error = error;
    }
    pthread_cond_broadcast(&r->changed);
}

static void *read_items(void *argument)
{
    read_ahead *r = argument;
    parallel_alone();
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        if (r->next == r->limit || r->failed != SIZE_MAX) {
            pthread_cond_wait(&r->changed, &r->lock);
            continue;
        }
        size_t index = r->next++;
        run_unlocked(r, r->work.read, index);
        r->filled[slot_of(r, index)] = true;
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static void *write_items(void *argument)
{
    read_ahead *r = argument;
    parallel_alone();
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        if (r->written == r->given || r->written > r->failed) {
            pthread_cond_wait(&r->changed, &r->lock);
            continue;
        }
        run_unlocked(r, r->work.write, r->written);
        r->written++;
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

tare_status read_ahead_start(tare_context *ctx, const read_ahead_work *work, read_ahead **out)
{
    assert(work->readers <= READ_AHEAD_READERS && read_ahead_slots(work) <= READ_AHEAD_SLOTS);
    read_ahead *r = *out = mem_calloc(ctx, 1, sizeof *r);
    if (!r)
        return TARE_E_MEMORY;
    r->ctx = ctx;
    r->work = *work;
    r->failed = SIZE_MAX;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    size_t threads = work->readers > 0 && work->write ? work->readers + 1 : work->readers;
    for (; r->num_threads < threads; r->num_threads++) {
        if (thread_start(&r->threads[r->num_threads],
                         r->num_threads < work->readers ? read_items : write_items, r))
            continue;
        read_ahead_stop(r);
        *out = NULL;
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: the system refused a thread");
    }
    return TARE_OK;
}

/* Of the items before `end`; a failed one's error becomes that of whoever asks. */
static tare_status outcome(const read_ahead *r, size_t end)
{
    if (r->failed >= end)
        return TARE_OK;
    context_set_error(r->ctx, &r->error);
    return r->status;
}

static void wait_written(read_ahead *r, size_t end)
{
    while (r->written < end && r->failed >= end)
        pthread_cond_wait(&r->changed, &r->lock);
}

tare_status read_ahead_take(read_ahead *r, size_t index, size_t *slot)
{
    tare_status status = context_check_cancelled(r->ctx);
    *slot = slot_of(r, index);
    if (status != TARE_OK)
        return status;
    if (r->num_threads == 0)
        return r->work.read(r->work.user, index, *slot);
    pthread_mutex_lock(&r->lock);
    if (r->failed != SIZE_MAX && index != r->expected) {
        status = outcome(r, SIZE_MAX);
        pthread_mutex_unlock(&r->lock);
        return status;
    }
    if (index != r->expected) { /* nobody is at work: the last pass has ended */
        assert(r->next == r->expected && r->written == r->given);
        r->next = r->limit = r->given = r->written = index;
    }
    r->expected = index + 1;
    if (r->work.write && index > r->work.behind) /* they leave the slot that is filled now */
        wait_written(r, index - r->work.behind);
    r->limit = size_min(index + r->work.ahead + 1, r->work.count);
    pthread_cond_broadcast(&r->changed);
    while (!r->filled[*slot] && r->failed > index)
        pthread_cond_wait(&r->changed, &r->lock);
    r->filled[*slot] = false;
    status = outcome(r, index + 1);
    pthread_mutex_unlock(&r->lock);
    return status;
}

tare_status read_ahead_give(read_ahead *r, size_t index)
{
    if (r->num_threads == 0)
        return r->work.write(r->work.user, index, slot_of(r, index));
    pthread_mutex_lock(&r->lock);
    r->given = index + 1;
    pthread_cond_broadcast(&r->changed);
    tare_status status = outcome(r, index + 1);
    pthread_mutex_unlock(&r->lock);
    return status;
}

tare_status read_ahead_wait(read_ahead *r)
{
    pthread_mutex_lock(&r->lock);
    wait_written(r, r->given);
    tare_status status = outcome(r, r->given);
    pthread_mutex_unlock(&r->lock);
    return status;
}

size_t read_ahead_bytes(void)
{
    return mem_block_bytes(sizeof(read_ahead));
}

void read_ahead_stop(read_ahead *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    for (size_t i = 0; i < r->num_threads; i++)
        pthread_join(r->threads[i], NULL);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
    mem_free(r->ctx, r);
}
