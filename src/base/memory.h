/* Accounted memory. Every allocation of the library goes through these functions: they keep the
 * bytes in use and their peak in the context, refuse what would exceed its memory_limit, and ask
 * its allow_allocation hook first. All pointers are 64-byte aligned. Blocks of 256 KiB and more are
 * mapped on their own, so freeing gives them back to the operating system at once. Thread-safe. On
 * failure NULL is returned and the context's message is set (TARE_E_MEMORY). */
#ifndef TARE_BASE_MEMORY_H
#define TARE_BASE_MEMORY_H

#include "base/context.h"
#include "base/sizes.h"

/* Contents undefined. A size of 0 gives a valid pointer. */
void *mem_alloc(tare_context *ctx, size_t size);
/* Zeroed, `count` * `size` bytes; an overflowing product fails. */
void *mem_calloc(tare_context *ctx, size_t count, size_t size);
/* `count` * `size` bytes, undefined; an overflowing product fails. */
void *mem_alloc_array(tare_context *ctx, size_t count, size_t size);
/* Keeps the old block on failure. `pointer` NULL: as mem_alloc. */
void *mem_realloc(tare_context *ctx, void *pointer, size_t size);
/* NULL is allowed. */
void mem_free(tare_context *ctx, void *pointer);
/* From now on freed blocks of a MiB or more wait, counted as used, for the next request of their
 * size, instead of being unmapped and cleared anew each time; all go as soon as more than `most`
 * bytes would be used. 0: none wait any more. */
void mem_keep_blocks(tare_context *ctx, size_t most);
/* Scratch of a call that comes again and again. While mem_keep_scratch(ctx, true) holds, the block
 * that was given back last waits for the next taker, counted as used, instead of being unmapped and
 * cleared anew each time. */
void *mem_take_scratch(tare_context *ctx, size_t count, size_t size);
void mem_give_scratch(tare_context *ctx, void *pointer);
void mem_keep_scratch(tare_context *ctx, bool keep);
char *mem_strdup(tare_context *ctx, const char *text);
char *mem_strndup(tare_context *ctx, const char *text, size_t length);
/* The bytes that an allocation of `size` takes, at most: its head, and whole pages where it is
 * mapped. mem_array_bytes: of `count` * `size` bytes. Never more than MEM_ABSURD, so that dozens of
 * such numbers can be added without overflow. */
#define MEM_ABSURD (SIZE_MAX / 4096)
size_t mem_block_bytes(size_t size);
size_t mem_array_bytes(size_t count, size_t size);

/* Grows *array (elements of `size` bytes) so that at least `need` fit; doubles. For dynamic arrays.
 */
tare_status mem_grow(tare_context *ctx, void **array, size_t *capacity, size_t need, size_t size);

/* What dies together: allocations from an arena are freed all at once. Not thread-safe. Texts stand
 * one behind the other, without gaps. */
typedef struct arena {
    tare_context *ctx;
    struct arena_block *blocks;
} arena;

void arena_init(arena *a, tare_context *ctx);
void *arena_alloc(arena *a, size_t size); /* 64-byte aligned, undefined */
void *arena_alloc_array(arena *a, size_t count, size_t size);
void *arena_calloc(arena *a, size_t count, size_t size);
char *arena_strndup(arena *a, const char *text, size_t length);
char *arena_printf(arena *a, const char *format, ...) __attribute__((format(printf, 2, 3)));
void arena_free(arena *a);

#endif
