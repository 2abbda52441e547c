/* A pool of threads that sleep when there is nothing to do. (OpenMP's own pool spins while it
 * waits, and its wait policy can only be set from outside the process: on a machine that is shared,
 * half of the time went there.) OpenMP stays in use by oneDNN, which must see one thread inside a
 * piece of work. */
#include "base/parallel.h"

#include <errno.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/machine.h"
#include "base/thread.h"

/* Looks at the job counter this often before sleeping: the next loop mostly begins within
 * microseconds. */
enum { SPINS = 2000 };

typedef struct worker {
    struct thread_pool *pool;
    pthread_t thread;
    int index; /* from 1; the caller of parallel_for is 0 */
} worker;

struct thread_pool {
    pthread_mutex_t lock;
    pthread_cond_t started, finished;
    atomic_size_t generation; /* of the job; changes under the lock */
    bool stop;
    atomic_bool busy; /* a loop runs: one inside it, or beside it, runs in its caller alone */
    void (*body)(void *user, size_t index, int thread);
    void *user;
    size_t count;
    atomic_size_t next;    /* index to be taken */
    atomic_size_t at_work; /* workers that have not finished the job */
    pid_t process;         /* whose threads they are: a fork does not copy them */
    size_t most_workers, num_workers;
    worker workers[];
};

static _Thread_local bool alone;

void parallel_alone(void)
{
    alone = true;
}

/* The kernel refuses a set that is smaller than its own; how large that is it does not say. */
static int affinity_count(void)
{
    enum { FIRST = 1024, MOST = 1 << 20 };
    for (int cpus = FIRST; cpus <= MOST; cpus *= 2) {
        size_t size = CPU_ALLOC_SIZE(cpus);
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (!set)
            break;
        bool told = sched_getaffinity(0, size, set) == 0;
        bool larger = !told && errno == EINVAL;
        int count = told ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (!larger)
            return count;
    }
    return 0;
}

int parallel_default_threads(void)
{
    int cpus = affinity_count();
    uint64_t quota = machine_cpu_quota("");
    if (cpus < 1)
        cpus = 1;
    return quota < (uint64_t)cpus ? (int)quota : cpus;
}

int parallel_threads(const tare_context *ctx)
{
    return ctx->options.threads;
}

static void take_pieces(struct thread_pool *p, int thread)
{
    for (size_t i; (i = atomic_fetch_add(&p->next, 1)) < p->count;)
        p->body(p->user, i, thread);
}

static inline void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The generation after `seen`. */
static size_t wait_for_job(struct thread_pool *p, size_t seen)
{
    for (int i = 0; i < SPINS && atomic_load(&p->generation) == seen; i++)
        pause_briefly();
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->generation) == seen)
        pthread_cond_wait(&p->started, &p->lock);
    seen = atomic_load(&p->generation);
    pthread_mutex_unlock(&p->lock);
    return seen;
}

static void *work(void *argument)
{
    worker *w = argument;
    struct thread_pool *p = w->pool;
    omp_set_num_threads(1);
    for (size_t seen = 0;;) {
        seen = wait_for_job(p, seen);
        if (p->stop)
            return NULL;
        take_pieces(p, w->index);
        if (atomic_fetch_sub(&p->at_work, 1) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->finished);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void announce(struct thread_pool *p, bool stop)
{
    pthread_mutex_lock(&p->lock);
    p->stop = stop;
    atomic_fetch_add(&p->generation, 1);
    pthread_cond_broadcast(&p->started);
    pthread_mutex_unlock(&p->lock);
}

static void start(struct thread_pool *p)
{
    p->process = getpid();
    p->num_workers = 0;
    atomic_store(&p->generation, 0);
    atomic_store(&p->busy, false);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->started, NULL);
    pthread_cond_init(&p->finished, NULL);
    for (size_t i = 0; i < p->most_workers; i++) {
        p->workers[i] = (worker){.pool = p, .index = (int)i + 1};
        if (!thread_start(&p->workers[i].thread, work, &p->workers[i]))
            break; /* fewer threads do the same work */
        p->num_workers++;
    }
}

tare_status parallel_create(tare_context *ctx)
{
    size_t workers = (size_t)ctx->options.threads - 1;
    if (workers == 0)
        return TARE_OK;
    struct thread_pool *p = calloc(1, sizeof *p + workers * sizeof *p->workers);
    if (!p)
        return TARE_E_MEMORY; /* not accounted, as the context itself */
    p->most_workers = workers;
    start(p);
    ctx->pool = p;
    return TARE_OK;
}

void parallel_free(tare_context *ctx)
{
    struct thread_pool *p = ctx->pool;
    if (!p)
        return;
    if (p->process == getpid()) { /* else nobody is there to join, and a lock may be held */
        announce(p, true);
        for (size_t i = 0; i < p->num_workers; i++)
            pthread_join(p->workers[i].thread, NULL);
        pthread_mutex_destroy(&p->lock);
        pthread_cond_destroy(&p->started);
        pthread_cond_destroy(&p->finished);
    }
    free(p);
    ctx->pool = NULL;
}

static void wait_until_finished(struct thread_pool *p)
{
    for (int i = 0; i < SPINS && atomic_load(&p->at_work) > 0; i++)
        pause_briefly();
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->at_work) > 0)
        pthread_cond_wait(&p->finished, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void run_alone(size_t count, void (*body)(void *user, size_t index, int thread), void *user)
{
    for (size_t i = 0; i < count; i++)
        body(user, i, 0);
}

void parallel_for(const tare_context *ctx, size_t count,
                  void (*body)(void *user, size_t index, int thread), void *user)
{
    struct thread_pool *p = ctx->pool;
    int outer = omp_get_max_threads();
    omp_set_num_threads(1);
    if (p && p->process != getpid())
        start(p);
    if (!p || alone || count < 2 || atomic_exchange(&p->busy, true)) {
        run_alone(count, body, user);
    } else {
        p->body = body;
        p->user = user;
        p->count = count;
        atomic_store(&p->next, 0);
        atomic_store(&p->at_work, p->num_workers);
        announce(p, false);
        take_pieces(p, 0);
        wait_until_finished(p);
        atomic_store(&p->busy, false);
    }
    omp_set_num_threads(outer);
}
