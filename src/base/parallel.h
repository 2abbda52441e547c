/* Threads: a parallel loop over independent pieces of work. What a piece computes must not depend
 * on which thread runs it, nor on how many there are. Inside a piece every library that uses OpenMP
 * (oneDNN) sees one thread. */
#ifndef TARE_BASE_PARALLEL_H
#define TARE_BASE_PARALLEL_H

#include "base/context.h"

/* The context's threads; called by tare_context_create and _free alone. */
tare_status parallel_create(tare_context *ctx);
void parallel_free(tare_context *ctx);

/* Calls body(user, i, thread) for i in [0,count), in any order, on the context's threads; 0 <=
 * thread < threads. */
void parallel_for(const tare_context *ctx, size_t count,
                  void (*body)(void *user, size_t index, int thread), void *user);
/* The calling thread runs its loops alone from now on: it works in the background, and must not
 * take the threads from who computes. */
void parallel_alone(void);
int parallel_threads(const tare_context *ctx);
/* Cores that this process may use: its affinity, and no more than its CPU quota fills. */
int parallel_default_threads(void);

#endif
