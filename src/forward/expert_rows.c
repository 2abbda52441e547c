#include "forward/expert_rows.h"

#include <string.h>

#include "base/parallel.h"
#include "tensor/kernels.h"
#include "tensor/rounded.h"

void expert_rows_lay_out(carver *c, expert_rows *e, size_t rows)
{
    e->x = carve(c, rows, e->columns * sizeof *e->x);
    e->weights = carve(c, rows, sizeof *e->weights);
    e->places = carve(c, rows, sizeof *e->places);
}

/* The expert's place among those that a row chose; route->chosen: it is none of them. */
static size_t place_of(const route_spec *route, size_t expert, const float *chosen)
{
    size_t i = 0;
    while (i < route->chosen && chosen[i] != (float)expert)
        i++;
    return i;
}

size_t expert_rows_count(const route_spec *route, size_t expert, const float *routing, size_t rows)
{
    size_t count = 0;
    for (size_t row = 0; row < rows; row++)
        count += place_of(route, expert, routing + row * 2 * route->chosen) < route->chosen;
    return count;
}

void expert_rows_gather(expert_rows *e, const route_spec *route, size_t expert, const float *x,
                        const float *routing, size_t rows, size_t place)
{
    for (size_t row = 0; row < rows; row++) {
        const float *chosen = routing + row * 2 * route->chosen;
        size_t i = place_of(route, expert, chosen);
        if (i == route->chosen)
            continue;
        memcpy(e->x + e->count * e->columns, x + row * e->columns, e->columns * sizeof *x);
        e->weights[e->count] = chosen[route->chosen + i];
        e->places[e->count++] = place + row;
    }
}

typedef struct add_work {
    const expert_rows *rows;
    const kernels *kernels;
    float *y, *sums;
    tare_dtype round;
} add_work;

static void add_row(void *user, size_t row, int thread)
{
    const add_work *w = user;
    size_t columns = w->rows->columns;
    float *y = w->y + row * columns, *sum = w->sums + w->rows->places[row] * columns;
    (void)thread;
    round_values(y, columns, w->round);
    for (size_t i = 0; i < columns; i++)
        y[i] *= w->rows->weights[row];
    round_values(y, columns, w->round);
    w->kernels->add(sum, y, columns);
    round_values(sum, columns, w->round);
}

void expert_rows_add(const tare_context *ctx, const expert_rows *e, float *y, float *sums,
                     tare_dtype round)
{
    add_work work = {e, kernels_get(ctx), y, sums, round};
    parallel_for(ctx, e->count, add_row, &work);
}
