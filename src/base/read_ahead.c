#include "base/read_ahead.h"

#include "base/memory.h"
#include "base/parallel.h"

/* The first item that failed. */
typedef struct failure {
    tare_status status;
    size_t index;
    error_note error;
} failure;

struct read_ahead {
    tare_context *ctx;
    read_ahead_work work;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t next, limit;    /* what is read next; items before `limit` may be */
    size_t expected;       /* what is taken next */
    size_t given, written; /* items before these have been */
    bool stop;
    failure reading, writing;
    pthread_t threads[READ_AHEAD_READERS + 1];
    size_t num_threads;
    bool filled[READ_AHEAD_SLOTS]; /* [slots] read, and not taken yet */
};

static size_t slot_of(const read_ahead *r, size_t index)
{
    return index % read_ahead_slots(&r->work);
}

/* Runs one item, unlocked. */
static bool run_item(read_ahead *r, read_ahead_item item, size_t index, failure *f)
{
    error_note error = {.text = ""};
    pthread_mutex_unlock(&r->lock);
    context_divert_errors(&error);
    tare_status status = item(r->work.user, index, slot_of(r, index));
    pthread_mutex_lock(&r->lock);
    if (status != TARE_OK && (f->status == TARE_OK || index < f->index))
        *f = (failure){status, index, error};
    pthread_cond_broadcast(&r->changed);
    return status == TARE_OK;
}

static void *read_items(void *argument)
{
    read_ahead *r = argument;
    parallel_alone();
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        if (r->next == r->limit || r->reading.status != TARE_OK) {
            pthread_cond_wait(&r->changed, &r->lock);
            continue;
        }
        size_t index = r->next++;
        if (run_item(r, r->work.read, index, &r->reading))
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
        if (r->written == r->given || r->writing.status != TARE_OK)
            pthread_cond_wait(&r->changed, &r->lock);
        else if (run_item(r, r->work.write, r->written, &r->writing))
            r->written++;
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static tare_status start_thread(read_ahead *r, void *(*main)(void *))
{
    if (pthread_create(&r->threads[r->num_threads], NULL, main, r) != 0)
        return TARE_FAIL(r->ctx, TARE_E_MEMORY, "out of memory: the system refused a thread");
    r->num_threads++;
    return TARE_OK;
}

tare_status read_ahead_start(tare_context *ctx, const read_ahead_work *work, read_ahead **out)
{
    tare_status status = TARE_OK;
    read_ahead *r = mem_calloc(ctx, 1, sizeof *r);
    *out = r;
    if (!r)
        return TARE_E_MEMORY;
    r->ctx = ctx;
    r->work = *work;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    for (size_t i = 0; i < work->readers; i++)
        TRY(start_thread(r, read_items));
    if (work->readers > 0 && work->write)
        TRY(start_thread(r, write_items));
done:
    if (status != TARE_OK) {
        read_ahead_stop(r);
        *out = NULL;
    }
    return status;
}

/* The failed item's error becomes that of whoever asks. */
static tare_status tell(const read_ahead *r, const failure *f)
{
    if (f->status != TARE_OK)
        context_set_error(r->ctx, &f->error);
    return f->status;
}

/* Until the items before `end` are written. */
static tare_status wait_written(read_ahead *r, size_t end)
{
    while (r->written < end && r->writing.status == TARE_OK)
        pthread_cond_wait(&r->changed, &r->lock);
    return tell(r, &r->writing);
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
    if (index != r->expected)
        r->next = r->limit = r->given = r->written = index;
    r->expected = index + 1;
    if (r->work.write && index > r->work.behind) /* they leave the slot that is filled now */
        TRY(wait_written(r, index - r->work.behind));
    r->limit = size_min(index + r->work.ahead + 1, r->work.count);
    pthread_cond_broadcast(&r->changed);
    while (!r->filled[*slot] && (r->reading.status == TARE_OK || index < r->reading.index))
        pthread_cond_wait(&r->changed, &r->lock);
    if (!r->filled[*slot])
        TRY(tell(r, &r->reading));
    r->filled[*slot] = false;
done:
    pthread_mutex_unlock(&r->lock);
    return status;
}

tare_status read_ahead_give(read_ahead *r, size_t index)
{
    if (r->num_threads == 0)
        return r->work.write(r->work.user, index, slot_of(r, index));
    pthread_mutex_lock(&r->lock);
    r->given = index + 1;
    tare_status status = tell(r, &r->writing);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return status;
}

tare_status read_ahead_wait(read_ahead *r)
{
    pthread_mutex_lock(&r->lock);
    tare_status status = wait_written(r, r->given);
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
