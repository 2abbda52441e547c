/* Gaps inside of a block that nobody may touch, where AddressSanitizer looks on: it knows only of
 * whole blocks by itself. */
#ifndef TARE_BASE_POISON_H
#define TARE_BASE_POISON_H

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TARE_ASAN 1
#endif
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(TARE_ASAN)
#include <sanitizer/asan_interface.h>
#define POISON(from, size)   ASAN_POISON_MEMORY_REGION(from, size)
#define UNPOISON(from, size) ASAN_UNPOISON_MEMORY_REGION(from, size)
#else
#define POISON(from, size)   ((void)(from), (void)(size))
#define UNPOISON(from, size) ((void)(from), (void)(size))
#endif

#endif
