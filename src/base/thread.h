/* Threads with stacks that a budget has room for. */
#ifndef TARE_BASE_THREAD_H
#define TARE_BASE_THREAD_H

#include <pthread.h>
#include <stdbool.h>

/* False: the system refused. Its stack is 1 MiB, where no function takes more than 64 KiB: the
 * usual 8 MiB would count against a limit on memory (RLIMIT_DATA) that no thread ever fills. */
bool thread_start(pthread_t *thread, void *(*body)(void *), void *user);

#endif
