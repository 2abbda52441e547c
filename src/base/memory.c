/* Accounted memory and arenas. Each block has a 64-byte head that holds its size, so that frees are
 * accounted too. */
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/number.h"
#include "base/poison.h"

enum { ALIGNMENT = 64, MAP_THRESHOLD = 256 * 1024, KEEP_THRESHOLD = 1024 * 1024, PAGE = 4096 };

typedef struct block_head {
    size_t total; /* bytes with the head, as accounted */
    size_t size;  /* as asked for */
    bool fresh;   /* mapped for this, and so full of zeros */
    char padding[ALIGNMENT - 2 * sizeof(size_t) - sizeof(bool)];
} block_head;

_Static_assert(sizeof(block_head) == ALIGNMENT, "payload must stay aligned");

static size_t used_bytes(const tare_context *ctx)
{
    return atomic_load(&ctx->held) & ~(size_t)CONTEXT_OWNED;
}

static void unmap(tare_context *ctx, block_head *head)
{
    size_t total = head->total;
    UNPOISON(head, total);
    munmap(head, total);
    context_let_go(ctx, total);
}

/* ---- blocks that wait ---- */

static void drop_kept(tare_context *ctx)
{
    for (int i = 0; i < CONTEXT_KEPT; i++) {
        block_head *head = atomic_exchange(&ctx->kept[i], NULL);
        if (head)
            unmap(ctx, head);
    }
}

/* NULL: none of this size waits. */
static block_head *take_kept(tare_context *ctx, size_t total)
{
    for (int i = 0; i < CONTEXT_KEPT && atomic_load(&ctx->keep_most) > 0; i++) {
        void *nothing = NULL;
        block_head *head = atomic_exchange(&ctx->kept[i], NULL);
        if (head && head->total == total) {
            UNPOISON(head + 1, total - sizeof *head);
            return head;
        }
        if (head && !atomic_compare_exchange_strong(&ctx->kept[i], &nothing, head))
            unmap(ctx, head);
    }
    return NULL;
}

/* In the place of one that nobody wanted for longest. False: there is no room. */
static bool keep(tare_context *ctx, block_head *head)
{
    size_t most = atomic_load(&ctx->keep_most);
    if (head->total < KEEP_THRESHOLD || used_bytes(ctx) > most)
        return false;
    POISON(head + 1, head->total - sizeof *head); /* whoever takes it may do so at once */
    for (int i = 0; i < CONTEXT_KEPT; i++) {
        void *nothing = NULL;
        if (atomic_compare_exchange_strong(&ctx->kept[i], &nothing, head))
            return true;
    }
    size_t place = atomic_fetch_add(&ctx->keep_next, 1) % CONTEXT_KEPT;
    block_head *old = atomic_exchange(&ctx->kept[place], head);
    if (old)
        unmap(ctx, old);
    return true;
}

void mem_keep_blocks(tare_context *ctx, size_t most)
{
    atomic_store(&ctx->keep_most, most);
    if (most == 0)
        drop_kept(ctx);
}

/* ---- blocks ---- */

static tare_status allowed(tare_context *ctx, size_t bytes)
{
    const tare_context_options *o = &ctx->options;
    if (!o->allow_allocation || o->allow_allocation(o->user, bytes))
        return TARE_OK;
    return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: %zu bytes were refused", bytes);
}

/* Books `bytes`, or fails. The peak is raised first-come, so it is exact whatever the order of
 * threads. */
static tare_status account(tare_context *ctx, size_t bytes)
{
    const tare_context_options *o = &ctx->options;
    size_t most = atomic_load(&ctx->keep_most);
    atomic_fetch_add(&ctx->held, bytes);
    if (most > 0 && used_bytes(ctx) > most)
        drop_kept(ctx);
    size_t used = used_bytes(ctx);
    if (o->memory_limit && used > o->memory_limit) {
        context_let_go(ctx, bytes);
        return TARE_FAIL(ctx, TARE_E_MEMORY,
                         "out of memory: %zu bytes more would exceed the budget of %zu MiB", bytes,
                         o->memory_limit >> 20);
    }
    size_t peak = atomic_load(&ctx->memory_peak);
    while (used > peak && !atomic_compare_exchange_weak(&ctx->memory_peak, &peak, used)) {
    }
    return TARE_OK;
}

static block_head *map(tare_context *ctx, size_t total)
{
    block_head *head = take_kept(ctx, total);
    if (head)
        return head;
    if (account(ctx, total) != TARE_OK)
        return NULL;
    if (total >= MAP_THRESHOLD) {
        head = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (head == MAP_FAILED)
            head = NULL;
        else
            madvise(head, total, MADV_HUGEPAGE); /* a hint: fewer page faults on large tensors */
    } else {
        head = aligned_alloc(ALIGNMENT, total);
    }
    if (head) {
        head->fresh = true;
        return head;
    }
    TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: the system refused %zu bytes", total);
    context_let_go(ctx, total);
    return NULL;
}

void *mem_alloc(tare_context *ctx, size_t size)
{
    size_t total;
    if (!size_add(size, sizeof(block_head) + ALIGNMENT - 1, &total)) {
        TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: an absurd size of %zu bytes", size);
        return NULL;
    }
    total &= ~(size_t)(ALIGNMENT - 1);
    block_head *head = allowed(ctx, total) == TARE_OK ? map(ctx, total) : NULL;
    if (!head)
        return NULL;
    head->total = total;
    head->size = size;
    return head + 1;
}

size_t mem_block_bytes(size_t size)
{
    size_t total;
    if (!size_add(size, sizeof(block_head) + ALIGNMENT - 1, &total) || total > MEM_ABSURD - PAGE)
        return MEM_ABSURD;
    total &= ~(size_t)(ALIGNMENT - 1);
    return total < MAP_THRESHOLD ? total : (total + PAGE - 1) & ~(size_t)(PAGE - 1);
}

size_t mem_array_bytes(size_t count, size_t size)
{
    size_t bytes;
    return size_mul(count, size, &bytes) ? mem_block_bytes(bytes) : MEM_ABSURD;
}

void *mem_alloc_array(tare_context *ctx, size_t count, size_t size)
{
    size_t bytes;
    if (!size_mul(count, size, &bytes)) {
        TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: %zu elements of %zu bytes overflow", count,
                  size);
        return NULL;
    }
    return mem_alloc(ctx, bytes);
}

void *mem_calloc(tare_context *ctx, size_t count, size_t size)
{
    void *p = mem_alloc_array(ctx, count, size);
    if (p && !(((block_head *)p - 1)->fresh && ((block_head *)p - 1)->total >= MAP_THRESHOLD))
        memset(p, 0, count * size); /* fresh mappings are zero already */
    return p;
}

void mem_free(tare_context *ctx, void *pointer)
{
    if (!pointer)
        return;
    block_head *head = (block_head *)pointer - 1;
    size_t total = head->total;
    UNPOISON(pointer, total - sizeof *head);
    head->fresh = false;
    if (total >= MAP_THRESHOLD) {
        if (!keep(ctx, head))
            unmap(ctx, head);
        return;
    }
    free(head);
    context_let_go(ctx, total);
}

void tare_free(tare_context *ctx, void *pointer)
{
    mem_free(ctx, pointer);
}

void *mem_take_scratch(tare_context *ctx, size_t count, size_t size)
{
    size_t bytes;
    void *spare = atomic_exchange(&ctx->spare, NULL);
    if (spare && size_mul(count, size, &bytes) && ((block_head *)spare - 1)->size >= bytes)
        return spare;
    mem_free(ctx, spare);
    return mem_alloc_array(ctx, count, size);
}

void mem_give_scratch(tare_context *ctx, void *pointer)
{
    if (pointer && atomic_load(&ctx->keeps_scratch))
        pointer = atomic_exchange(&ctx->spare, pointer);
    mem_free(ctx, pointer);
}

void mem_keep_scratch(tare_context *ctx, bool keep)
{
    atomic_store(&ctx->keeps_scratch, keep);
    if (!keep)
        mem_free(ctx, atomic_exchange(&ctx->spare, NULL));
}

void *mem_realloc(tare_context *ctx, void *pointer, size_t size)
{
    void *fresh = mem_alloc(ctx, size);
    if (!fresh || !pointer)
        return fresh;
    size_t old = ((block_head *)pointer - 1)->size;
    memcpy(fresh, pointer, old < size ? old : size);
    mem_free(ctx, pointer);
    return fresh;
}

char *mem_strndup(tare_context *ctx, const char *text, size_t length)
{
    char *copy = length < SIZE_MAX ? mem_alloc(ctx, length + 1) : NULL;
    if (!copy)
        return NULL;
    memcpy(copy, text, length);
    copy[length] = 0;
    return copy;
}

char *mem_strdup(tare_context *ctx, const char *text)
{
    return mem_strndup(ctx, text, strlen(text));
}

tare_status mem_grow(tare_context *ctx, void **array, size_t *capacity, size_t need, size_t size)
{
    if (need <= *capacity)
        return TARE_OK;
    size_t fresh = *capacity < 16 ? 16 : *capacity, bytes;
    while (fresh < need) {
        if (!size_mul(fresh, 2, &fresh))
            fresh = need;
    }
    if (!size_mul(fresh, size, &bytes))
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: %zu elements of %zu bytes overflow",
                         fresh, size);
    void *grown = mem_realloc(ctx, *array, bytes);
    if (!grown)
        return TARE_E_MEMORY;
    *array = grown;
    *capacity = fresh;
    return TARE_OK;
}

/* ---- arenas ---- */

typedef struct arena_block {
    struct arena_block *next;
    size_t used, capacity;
    char padding[ALIGNMENT - sizeof(void *) - 2 * sizeof(size_t)];
    char data[];
} arena_block;

enum { ARENA_BLOCK = 64 * 1024 };

void arena_init(arena *a, tare_context *ctx)
{
    a->ctx = ctx;
    a->blocks = NULL;
}

/* A large request gets a block of its own behind the current one, so the rest of that one stays in
 * use. */
static arena_block *arena_add_block(arena *a, size_t size)
{
    size_t capacity = size > ARENA_BLOCK / 4 ? size : ARENA_BLOCK, total;
    if (!size_add(capacity, sizeof(arena_block), &total)) {
        TARE_FAIL(a->ctx, TARE_E_MEMORY, "out of memory: an absurd size of %zu bytes", size);
        return NULL;
    }
    arena_block *b = mem_alloc(a->ctx, total);
    if (!b)
        return NULL;
    b->used = 0;
    b->capacity = capacity;
    if (a->blocks && capacity != ARENA_BLOCK) {
        b->next = a->blocks->next;
        a->blocks->next = b;
    } else {
        b->next = a->blocks;
        a->blocks = b;
    }
    return b;
}

/* The beginning of a block is aligned for anything. */
static void *take(arena *a, size_t size, size_t alignment)
{
    arena_block *b = a->blocks;
    size_t start = b ? (b->used + alignment - 1) & ~(alignment - 1) : 0;
    if (!b || start > b->capacity || b->capacity - start < size) {
        b = arena_add_block(a, size);
        start = 0;
    }
    if (!b)
        return NULL;
    b->used = start + size;
    return b->data + start;
}

void *arena_alloc(arena *a, size_t size)
{
    size_t rounded;
    if (!size_add(size, ALIGNMENT - 1, &rounded)) {
        TARE_FAIL(a->ctx, TARE_E_MEMORY, "out of memory: an absurd size of %zu bytes", size);
        return NULL;
    }
    return take(a, rounded & ~(size_t)(ALIGNMENT - 1), ALIGNMENT);
}

void *arena_alloc_array(arena *a, size_t count, size_t size)
{
    size_t bytes;
    if (!size_mul(count, size, &bytes)) {
        TARE_FAIL(a->ctx, TARE_E_MEMORY, "out of memory: %zu elements of %zu bytes overflow", count,
                  size);
        return NULL;
    }
    return arena_alloc(a, bytes);
}

void *arena_calloc(arena *a, size_t count, size_t size)
{
    void *p = arena_alloc_array(a, count, size);
    if (p)
        memset(p, 0, count * size);
    return p;
}

char *arena_strndup(arena *a, const char *text, size_t length)
{
    char *copy = length < SIZE_MAX ? take(a, length + 1, 1) : NULL;
    if (!copy)
        return NULL;
    memcpy(copy, text, length);
    copy[length] = 0;
    return copy;
}

char *arena_printf(arena *a, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = text_vformat(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : take(a, (size_t)n + 1, 1);
    if (text)
        text_vformat(text, (size_t)n + 1, format, again);
    va_end(again);
    return text;
}

void arena_free(arena *a)
{
    while (a->blocks) {
        arena_block *b = a->blocks;
        a->blocks = b->next;
        mem_free(a->ctx, b);
    }
}
