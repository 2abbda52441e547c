/* The search of m6: tiles of weights, candidates, and the product that judges one. */
#ifndef TARE_QUANTIZE_SMOOTH_M6_H
#define TARE_QUANTIZE_SMOOTH_M6_H

#include "quantize/smooth_internal.h"

enum { M6_STEPS = 21 }; /* exponents 0, 1/20 .. 1 */

/* Rows of one target. */
typedef struct m6_panel {
    const smooth_weight *w;
    size_t first, count; /* count <= SMOOTH_BLOCK */
} m6_panel;

typedef struct m6_candidate {
    int alpha, beta; /* in 20ths */
    bool stopped;    /* cannot win any more */
    double *squares; /* [panels] sums of squared errors */
    double err;      /* once all panels are done */
} m6_candidate;

typedef struct m6_search {
    const smooth_task *t;
    m6_panel *panels;
    size_t num_panels, tile; /* panels held at a time */
    size_t threads;
    double *squares;           /* [M6_STEPS,panels] of the candidates */
    float *p;                  /* [C] of the candidate in work */
    float *x;                  /* [SMOOTH_BLOCK,C] input rows, then those over p */
    float *w;                  /* [SMOOTH_BLOCK,C] */
    float *reference;          /* [tile][Tn][SMOOTH_BLOCK], rows count wide: X W^T */
    double *reference_squares; /* [panels] */
    double *cells;             /* [tile * M6_CELLS] */
    double best_squares;       /* of the best candidate with all panels done; no early stop: inf */
    /* Exact integers */
    float *scaled;     /* [threads,C] a row of weights times p */
    float *steps;      /* [tile*SMOOTH_BLOCK] d of each row */
    int64_t *row_sums; /* [tile*SMOOTH_BLOCK] */
    int8_t *q;         /* [tile*SMOOTH_BLOCK,C] */
    uint8_t *u;        /* [SMOOTH_BLOCK,C] */
    int32_t *acc;      /* [SMOOTH_BLOCK,tile*SMOOTH_BLOCK] */
    /* Native dtype */
    float *product; /* [SMOOTH_BLOCK,SMOOTH_BLOCK] */
} m6_search;

enum { M6_CELL_ROWS = 32, M6_CELLS = SMOOTH_BLOCK / M6_CELL_ROWS };

/* Scale and offset of Z = X/p over all samples. */
typedef struct m6_range {
    float d, z;
    bool wide; /* some quantized value may lie outside 0..255 */
} m6_range;

/* p [C] of a candidate; false if one is not finite and positive. */
bool m6_factors(const m6_search *m, const m6_candidate *c);
/* From the extremes of the channels: dividing by p > 0 and rounding are monotonous, so this is what
 * a pass over all of Z would find. */
m6_range m6_input_range(const m6_search *m);

/* Adds to the candidate's squares those of panels [first, end). Sets `stopped` early if allowed. */
tare_status m6_evaluate_integer(m6_search *m, size_t first, size_t end, m6_candidate *c);
tare_status m6_evaluate_native(m6_search *m, size_t first, size_t end, m6_candidate *c);

#endif
