/* Statistics of a group's input (1.3), sample by sample. */
#include <float.h>

#include "base/parallel.h"
#include "quantize/smooth_internal.h"

/* Columns of one piece of work. Fixed, because m2's sums are made a piece at a time. */
enum { PIECE = 64 };

typedef struct update_job {
    smooth_stats *stats;
    const float *x, *units;
    size_t rows;
} update_job;

static size_t piece_count(size_t channels)
{
    return size_divide_up(channels, PIECE);
}

static void lay_out(carver *c, void *component)
{
    smooth_stats *s = component;
    size_t pieces = piece_count(s->channels);
    s->self = carve(c, 1, sizeof *s);
    s->max = carve(c, s->channels, sizeof *s->max);
    s->min = carve(c, s->channels, sizeof *s->min);
    s->wrong = carve(c, pieces, 1);
    if (s->method != SMOOTH_M2)
        return;
    s->theta = carve(c, s->channels, sizeof *s->theta);
    s->centre = carve(c, s->channels, sizeof *s->centre);
    s->sums = carve(c, 2 * pieces, sizeof *s->sums);
}

static void update_extremes(void *user, size_t index, int thread)
{
    (void)thread;
    const update_job *job = user;
    size_t channels = job->stats->channels, first = index * PIECE;
    size_t count = channels - first < PIECE ? channels - first : PIECE;
    float max[PIECE], min[PIECE];
    int wrong = 0;
    for (size_t c = 0; c < count; c++)
        max[c] = min[c] = job->x[first + c];
    for (size_t t = 0; t < job->rows; t++) {
        const float *x = job->x + t * channels + first;
        for (size_t c = 0; c < count; c++) {
            max[c] = x[c] > max[c] ? x[c] : max[c];
            min[c] = x[c] < min[c] ? x[c] : min[c];
            wrong |= !(fabsf(x[c]) <= FLT_MAX);
        }
    }
    job->stats->wrong[index] = (unsigned char)wrong;
    bool fresh = job->stats->samples == 0;
    for (size_t c = 0; c < count; c++) {
        float *M = job->stats->max + first + c, *m = job->stats->min + first + c;
        *M = fresh || max[c] > *M ? max[c] : *M;
        *m = fresh || min[c] < *m ? min[c] : *m;
    }
}

/* Magnitudes alone, each row in its own unit. */
static void update_measured(void *user, size_t index, int thread)
{
    (void)thread;
    const update_job *job = user;
    size_t channels = job->stats->channels, first = index * PIECE;
    size_t count = channels - first < PIECE ? channels - first : PIECE;
    float *max = job->stats->max + first;
    int wrong = 0;
    for (size_t t = 0; t < job->rows; t++) {
        const float *x = job->x + t * channels + first;
        float unit = job->units[t];
        for (size_t c = 0; c < count; c++) {
            float a = unit > 0 ? fabsf(x[c]) / unit : 0;
            max[c] = a > max[c] ? a : max[c];
            wrong |= !(fabsf(x[c]) <= FLT_MAX);
        }
    }
    job->stats->wrong[index] = (unsigned char)wrong;
}

/* tau, the maximum over all elements, is the maximum of theta. */
static void update_centred(void *user, size_t index, int thread)
{
    (void)thread;
    const update_job *job = user;
    size_t channels = job->stats->channels, first = index * PIECE;
    size_t end = first + PIECE < channels ? first + PIECE : channels;
    double sum = 0, squares = 0;
    for (size_t t = 0; t < job->rows; t++) {
        for (size_t c = first; c < end; c++) {
            float d = job->x[t * channels + c] - job->stats->centre[c];
            sum += d;
            squares += (double)d * d;
            job->stats->theta[c] = d > job->stats->theta[c] ? d : job->stats->theta[c];
        }
    }
    job->stats->sums[2 * index] = sum;
    job->stats->sums[2 * index + 1] = squares;
}

static void update_m2(const tare_context *ctx, smooth_stats *stats, update_job *job)
{
    size_t pieces = piece_count(stats->channels);
    double sum = 0, squares = 0, n = (double)job->rows * (double)stats->channels;
    for (size_t c = 0; c < stats->channels; c++)
        stats->centre[c] = smooth_centre(stats, c, TARE_F32);
    parallel_for(ctx, pieces, update_centred, job);
    for (size_t i = 0; i < pieces; i++) {
        sum += stats->sums[2 * i];
        squares += stats->sums[2 * i + 1];
    }
    double variance = n > 1 ? (squares - sum * sum / n) / (n - 1) : 0;
    stats->sigma = fmaxf(stats->sigma, (float)sqrt(fmax(variance, 0)));
}

tare_status smooth_stats_create(tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                                smooth_stats **out)
{
    smooth_stats stats = {.method = cfg->method,
                          .source = g->name,
                          .target = g->num_targets ? g->targets[0]->name : "nothing",
                          .channels = g->channels};
    tare_status status = carver_alloc(ctx, lay_out, &stats);
    *out = stats.self;
    if (status != TARE_OK)
        return status;
    for (size_t c = 0; c < g->channels; c++) {
        stats.max[c] = stats.min[c] = 0;
        if (stats.theta)
            stats.theta[c] = -FLT_MAX;
    }
    **out = stats;
    return TARE_OK;
}

size_t smooth_stats_bytes(const smooth_config *cfg, size_t channels)
{
    return carver_bytes(lay_out, &(smooth_stats){.method = cfg->method, .channels = channels});
}

void smooth_stats_free(tare_context *ctx, smooth_stats *stats)
{
    mem_free(ctx, stats);
}

tare_status smooth_stats_update(tare_context *ctx, smooth_stats *stats, const float *x,
                                const float *units, size_t rows)
{
    if (rows == 0 || stats->channels == 0)
        return TARE_OK;
    size_t pieces = piece_count(stats->channels);
    update_job job = {.stats = stats, .x = x, .units = units, .rows = rows};
    parallel_for(ctx, pieces, units ? update_measured : update_extremes, &job);
    for (size_t i = 0; i < pieces && !stats->bad_sample; i++) {
        if (stats->wrong[i])
            stats->bad_sample = stats->samples + 1;
    }
    if (stats->bad_sample)
        return TARE_FAIL(ctx, TARE_E_NUMERIC,
                         "smoothing %s -> %s (%zu channels): the input has NaN or infinity in "
                         "sample %zu",
                         stats->source, stats->target, stats->channels, stats->bad_sample - 1);
    if (stats->method == SMOOTH_M2)
        update_m2(ctx, stats, &job);
    stats->first_rows = stats->samples == 0 ? rows : stats->first_rows;
    stats->rows += rows;
    stats->samples++;
    return TARE_OK;
}
