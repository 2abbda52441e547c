#include "base/rng.h"

/* From state[i-1] into state[i]; at the end of the state its last word wraps to the first. */
static uint32_t mixed_before(const rng *r, size_t i)
{
    return r->state[i - 1] ^ r->state[i - 1] >> 30;
}

static size_t step(rng *r, size_t i)
{
    if (++i < RNG_STATE)
        return i;
    r->state[0] = r->state[RNG_STATE - 1];
    return 1;
}

void rng_seed(rng *r, const uint32_t *words, size_t count)
{
    static const uint32_t zero = 0;
    if (count == 0) {
        words = &zero;
        count = 1;
    }
    r->state[0] = 19650218;
    for (uint32_t i = 1; i < RNG_STATE; i++)
        r->state[i] = 1812433253 * mixed_before(r, i) + i;
    size_t i = 1, j = 0;
    for (size_t n = count > RNG_STATE ? count : RNG_STATE; n > 0; n--) {
        r->state[i] = (r->state[i] ^ mixed_before(r, i) * 1664525) + words[j] + (uint32_t)j;
        i = step(r, i);
        j = j + 1 < count ? j + 1 : 0;
    }
    for (size_t n = RNG_STATE - 1; n > 0; n--) {
        r->state[i] = (r->state[i] ^ mixed_before(r, i) * 1566083941) - (uint32_t)i;
        i = step(r, i);
    }
    r->state[0] = 0x80000000;
    r->next = RNG_STATE;
}

uint32_t rng_u32(rng *r)
{
    if (r->next == RNG_STATE) {
        for (size_t k = 0; k < RNG_STATE; k++) {
            uint32_t y = (r->state[k] & 0x80000000) | (r->state[(k + 1) % RNG_STATE] & 0x7fffffff);
            r->state[k] = r->state[(k + 397) % RNG_STATE] ^ y >> 1 ^ (y & 1 ? 0x9908b0df : 0);
        }
        r->next = 0;
    }
    uint32_t y = r->state[r->next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680;
    y ^= y << 15 & 0xefc60000;
    return y ^ y >> 18;
}

uint32_t rng_below(rng *r, uint32_t limit)
{
    int bits = 32 - __builtin_clz(limit); /* of `limit`, not of limit - 1: as CPython does */
    for (;;) {
        uint32_t n = rng_u32(r) >> (32 - bits);
        if (n < limit)
            return n;
    }
}

double rng_double(rng *r)
{
    uint32_t high = rng_u32(r) >> 5, low = rng_u32(r) >> 6;
    return ((double)high * 67108864.0 + (double)low) / 9007199254740992.0;
}

void rng_shuffle(rng *r, uint32_t *items, uint32_t count)
{
    for (uint32_t i = count; i-- > 1;) {
        uint32_t j = rng_below(r, i + 1), item = items[i];
        items[i] = items[j];
        items[j] = item;
    }
}
