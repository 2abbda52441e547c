/* Threads over OpenMP. */
#include "base/parallel.h"

#include <omp.h>
#include <sched.h>

int parallel_default_threads(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    return 1;
}

int parallel_threads(const tare_context *ctx)
{
    return ctx->options.threads;
}

void parallel_for(const tare_context *ctx, size_t count,
                  void (*body)(void *user, size_t index, int thread), void *user)
{
    int threads = ctx->options.threads;
    if (count < (size_t)threads)
        threads = count > 0 ? (int)count : 1;
#pragma omp parallel num_threads(threads)
    {
        /* Of this thread's own task only: a team of one is no "parallel region" to oneDNN, which
         * would start threads. */
        omp_set_num_threads(1);
        int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < count; i++)
            body(user, i, thread);
    }
}
