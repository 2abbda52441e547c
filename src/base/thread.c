#include "base/thread.h"

enum { STACK_BYTES = 1 << 20 };

bool thread_start(pthread_t *thread, void *(*body)(void *), void *user)
{
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0)
        return false;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    bool started = pthread_create(thread, &attributes, body, user) == 0;
    pthread_attr_destroy(&attributes);
    return started;
}
