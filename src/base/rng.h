/* CPython's generator (Mersenne Twister MT19937, seeded by array), so that a seed chooses the same
 * samples as Python's `random` would: random.seed(s), getrandbits, and the shuffle of random.py.
 * Source: M. Matsumoto, T. Nishimura, "Mersenne Twister", 1998; CPython Modules/_randommodule.c. */
#ifndef TARE_BASE_RNG_H
#define TARE_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

enum { RNG_STATE = 624 };

typedef struct rng {
    uint32_t state[RNG_STATE];
    size_t next;
} rng;

/* Seeds by the 32-bit words of |seed|, lowest first; no words are the seed 0. */
void rng_seed(rng *r, const uint32_t *words, size_t count);
uint32_t rng_u32(rng *r);
/* Uniform in [0, limit), limit > 0. */
uint32_t rng_below(rng *r, uint32_t limit);
/* Uniform in [0, 1), with 53 bits: random.random(). */
double rng_double(rng *r);
/* Shuffles `count` items. */
void rng_shuffle(rng *r, uint32_t *items, uint32_t count);

#endif
