/* What the files of the executor share. */
#ifndef TARE_FORWARD_EXECUTOR_INTERNAL_H
#define TARE_FORWARD_EXECUTOR_INTERNAL_H

#include "base/carver.h"
#include "forward/executor.h"

typedef struct graph_run {
    tare_model *model;
    const model_block *block;
    const block_norms *norms;
    const block_ops *ops;
    const batch *b;
    workspace *w;
} graph_run;

float *graph_run_value(const graph_run *r, graph_value v);

/* Of one piece of parallel work. */
enum { ROW_BLOCK = 32 };
static inline size_t row_blocks(size_t rows)
{
    return (rows + ROW_BLOCK - 1) / ROW_BLOCK;
}

/* executor_experts.c */
tare_status run_route(const graph_run *r, const graph_node *n);
tare_status run_experts(const graph_run *r, const graph_node *n);
/* Sets w->experts, if the model has any. */
void expert_room_lay_out(carver *c, const tare_model *model, workspace *w);

#endif
