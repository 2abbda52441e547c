#include "base/sort.h"

#include <stdint.h>
#include <string.h>

#include "base/carver.h"
#include "base/parallel.h"

/* ---- pointers ---- */

static void sift_down(void **items, size_t root, size_t count,
                      int (*compare)(const void *, const void *))
{
    void *item = items[root];
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && compare(items[child], items[child + 1]) < 0)
            child++;
        if (compare(item, items[child]) >= 0)
            break;
        items[root] = items[child];
    }
    items[root] = item;
}

void sort_pointers(void **items, size_t count, int (*compare)(const void *a, const void *b))
{
    for (size_t i = count / 2; i-- > 0;)
        sift_down(items, i, count, compare);
    for (size_t last = count; last-- > 1;) {
        void *largest = items[0];
        items[0] = items[last];
        items[last] = largest;
        sift_down(items, 0, last, compare);
    }
}

/* ---- floats ---- */

/* Radix sort on the bits, which order like the numbers once the sign is taken care of: by the upper
 * bits into buckets, all threads together, then each bucket by the lower bits in two rounds. */
enum {
    LOW_BITS = 10,
    MIDDLE_BITS = 11,
    HIGH_BITS = 11,
    BUCKETS = 1 << HIGH_BITS,
    SMALL = 64 /* a bucket up to this is sorted by insertion */
};

typedef struct float_sort {
    float *x, *scratch;
    size_t count, pieces; /* a piece a thread */
    size_t *counts;       /* [pieces, BUCKETS] elements, then places of the piece in each bucket */
    size_t *begins;       /* [BUCKETS + 1] */
    uint32_t *rounds;     /* [pieces, 1 << MIDDLE_BITS] */
} float_sort;

static uint32_t key_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static size_t bucket_of(float x)
{
    return key_of(x) >> (LOW_BITS + MIDDLE_BITS);
}

static void piece_bounds(const float_sort *s, size_t piece, size_t *begin, size_t *end)
{
    size_t step = s->count / s->pieces + 1;
    *begin = piece * step < s->count ? piece * step : s->count;
    *end = s->count - *begin < step ? s->count : *begin + step;
}

static void count_piece(void *user, size_t piece, int thread)
{
    const float_sort *s = user;
    size_t begin, end, *counts = s->counts + piece * BUCKETS;
    (void)thread;
    memset(counts, 0, BUCKETS * sizeof *counts);
    piece_bounds(s, piece, &begin, &end);
    for (size_t i = begin; i < end; i++)
        counts[bucket_of(s->x[i])]++;
}

static void place_pieces(float_sort *s)
{
    size_t at = 0;
    for (size_t b = 0; b < BUCKETS; b++) {
        s->begins[b] = at;
        for (size_t piece = 0; piece < s->pieces; piece++) {
            size_t n = s->counts[piece * BUCKETS + b];
            s->counts[piece * BUCKETS + b] = at;
            at += n;
        }
    }
    s->begins[BUCKETS] = at;
}

static void scatter_piece(void *user, size_t piece, int thread)
{
    const float_sort *s = user;
    size_t begin, end, *places = s->counts + piece * BUCKETS;
    (void)thread;
    piece_bounds(s, piece, &begin, &end);
    for (size_t i = begin; i < end; i++)
        s->scratch[places[bucket_of(s->x[i])]++] = s->x[i];
}

static void insertion_sort(float *x, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        float moving = x[i];
        size_t j = i;
        for (; j > 0 && key_of(x[j - 1]) > key_of(moving); j--)
            x[j] = x[j - 1];
        x[j] = moving;
    }
}

/* One stable round by `bits` bits from `shift` on. */
static void radix_round(const float *from, float *to, size_t count, int shift, int bits,
                        uint32_t *counts)
{
    uint32_t mask = (1u << bits) - 1, at = 0;
    memset(counts, 0, ((size_t)1 << bits) * sizeof *counts);
    for (size_t i = 0; i < count; i++)
        counts[key_of(from[i]) >> shift & mask]++;
    for (uint32_t b = 0; b <= mask; b++) {
        uint32_t n = counts[b];
        counts[b] = at;
        at += n;
    }
    for (size_t i = 0; i < count; i++)
        to[counts[key_of(from[i]) >> shift & mask]++] = from[i];
}

/* From scratch, where the buckets are, to x. */
static void sort_bucket(void *user, size_t bucket, int thread)
{
    const float_sort *s = user;
    size_t begin = s->begins[bucket], count = s->begins[bucket + 1] - begin;
    float *x = s->x + begin, *scratch = s->scratch + begin;
    uint32_t *counts = s->rounds + ((size_t)thread << MIDDLE_BITS);
    if (count > SMALL) {
        radix_round(scratch, x, count, 0, LOW_BITS, counts);
        radix_round(x, scratch, count, LOW_BITS, MIDDLE_BITS, counts);
    }
    if (count > 0)
        memcpy(x, scratch, count * sizeof *x);
    if (count <= SMALL)
        insertion_sort(x, count);
}

static void lay_out(carver *c, void *component)
{
    float_sort *s = component;
    s->counts = carve(c, s->pieces * BUCKETS, sizeof *s->counts);
    s->begins = carve(c, BUCKETS + 1, sizeof *s->begins);
    s->rounds = carve(c, s->pieces << MIDDLE_BITS, sizeof *s->rounds);
}

tare_status sort_floats(tare_context *ctx, float *x, size_t count, float *scratch)
{
    tare_status status = TARE_OK;
    float_sort s = {
        .x = x, .scratch = scratch, .count = count, .pieces = (size_t)parallel_threads(ctx)};
    if (count > UINT32_MAX)
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory: %zu numbers to sort", count);
    TRY(carver_alloc(ctx, lay_out, &s));
    parallel_for(ctx, s.pieces, count_piece, &s);
    place_pieces(&s);
    parallel_for(ctx, s.pieces, scatter_piece, &s);
    parallel_for(ctx, BUCKETS, sort_bucket, &s);
done:
    mem_free(ctx, s.counts);
    return status;
}

size_t sort_floats_bytes(const tare_context *ctx)
{
    return carver_bytes(lay_out, &(float_sort){.pieces = (size_t)parallel_threads(ctx)});
}
