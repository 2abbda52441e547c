/* Rows that chose an expert: gathered for it, and what it makes of them added to each row's sum.
 * Nothing depends on threads or batches as long as experts go in one order. */
#ifndef TARE_FORWARD_EXPERT_ROWS_H
#define TARE_FORWARD_EXPERT_ROWS_H

#include "base/carver.h"
#include "model/graph.h"
#include "tensor/round.h"

typedef struct expert_rows {
    size_t columns, count;
    float *x;       /* [count, columns] */
    float *weights; /* [count] of the expert in each */
    size_t *places; /* [count] of each among the sums */
} expert_rows;

/* For at most `rows`, and e->columns. */
void expert_rows_lay_out(carver *c, expert_rows *e, size_t rows);
/* How many of `rows` chose `expert`. */
size_t expert_rows_count(const route_spec *route, size_t expert, const float *routing, size_t rows);
/* Appends those of x [rows, columns] that chose `expert` by routing [rows, 2*chosen]; the sum of
 * the first row is number `place`. */
void expert_rows_gather(expert_rows *e, const route_spec *route, size_t expert, const float *x,
                        const float *routing, size_t rows, size_t place);
/* sums [.., columns] += weight * y [count, columns], as a model in `round` rounds each step; y is
 * used up. */
void expert_rows_add(const tare_context *ctx, const expert_rows *e, float *y, float *sums,
                     tare_dtype round);

#endif
