/* Balance (specification: spec/rotation.md 4, 5): factors between two linears, or between queries
 * and keys, so that no channel stands out. What counts of a channel is its largest value relative
 * to the residual stream that its token's error enters. */
#include "quantize/smooth_internal.h"

/* Measured on SmolLM2: 0.4 to 0.5 are the best, 0.6 and more are worse. */
#define BALANCE_EXPONENT 0.5

/* M of row i of the source: the largest of the channels that read it. */
static float largest_of(const smooth_task *t, size_t i)
{
    const smooth_rows *rows = &t->g->rows;
    size_t first = i / rows->width * rows->repeat * rows->width + i % rows->width;
    float most = 0;
    for (size_t q = 0; q < rows->repeat; q++)
        most = fmaxf(most, smooth_largest(t->stats, first + q * rows->width));
    return most;
}

/* (M / geometric mean of all M)^a; channels that are 0 in every sample stay as they are. */
tare_status smooth_solve_balance(const smooth_task *t)
{
    const smooth_rows *rows = &t->g->rows;
    double sum = 0, a = t->cfg->has_alpha ? t->cfg->alpha : BALANCE_EXPONENT;
    size_t n = rows->heads * rows->width, alive = 0;
    for (size_t i = 0; i < n; i++) {
        float most = largest_of(t, i);
        sum += most > 0 ? log((double)most) : 0;
        alive += most > 0;
    }
    for (size_t i = 0; i < n; i++) {
        float most = largest_of(t, i);
        t->out->r[i] = most > 0 ? (float)exp(a * (log((double)most) - sum / (double)alive)) : 1;
    }
    for (size_t c = 0; c < t->g->channels; c++)
        t->out->s[c] = t->out->r[c / (rows->repeat * rows->width) * rows->width + c % rows->width];
    t->out->alpha = a;
    return TARE_OK;
}

float smooth_balance_factor(float queries, float keys, bool exact)
{
    if (!(queries > 0) || !(keys > 0))
        return 1;
    double factor = sqrt((double)keys / (double)queries);
    return (float)(exact ? exp2(rint(log2(factor))) : factor);
}
