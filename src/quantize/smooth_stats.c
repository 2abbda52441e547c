/* Statistics of a group's input (1.3), sample by sample. */
#include <float.h>

#include "base/parallel.h"
#include "quantize/smooth_internal.h"

/* Columns of one piece of work. Fixed, because m2's sums are made a piece at a time. */
enum { PIECE = 64 };

typedef struct update_job {
    smooth_stats *stats;
    const float *x;
    size_t rows;
    const float *centre;  /* [C]; second pass */
    double *sums;         /* [2,pieces] sum and sum of squares of x - b; second pass */
    unsigned char *wrong; /* [pieces] NaN or infinity seen; first pass */
} update_job;

static size_t piece_count(size_t channels)
{
    return channels / PIECE + (channels % PIECE != 0);
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
    job->wrong[index] = (unsigned char)wrong;
    bool fresh = job->stats->samples == 0;
    for (size_t c = 0; c < count; c++) {
        float *M = job->stats->max + first + c, *m = job->stats->min + first + c;
        *M = fresh || max[c] > *M ? max[c] : *M;
        *m = fresh || min[c] < *m ? min[c] : *m;
    }
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
            float d = job->x[t * channels + c] - job->centre[c];
            sum += d;
            squares += (double)d * d;
            job->stats->theta[c] = d > job->stats->theta[c] ? d : job->stats->theta[c];
        }
    }
    job->sums[2 * index] = sum;
    job->sums[2 * index + 1] = squares;
}

static tare_status update_m2(tare_context *ctx, smooth_stats *stats, update_job *job)
{
    size_t pieces = piece_count(stats->channels);
    float *centre = mem_alloc_array(ctx, stats->channels, sizeof *centre);
    job->sums = mem_alloc_array(ctx, 2 * pieces, sizeof *job->sums);
    tare_status status = centre && job->sums ? TARE_OK : TARE_E_MEMORY;
    if (status == TARE_OK) {
        double sum = 0, squares = 0, n = (double)job->rows * (double)stats->channels;
        for (size_t c = 0; c < stats->channels; c++)
            centre[c] = smooth_centre(stats, c, TARE_F32);
        job->centre = centre;
        parallel_for(ctx, pieces, update_centred, job);
        for (size_t i = 0; i < pieces; i++) {
            sum += job->sums[2 * i];
            squares += job->sums[2 * i + 1];
        }
        double variance = n > 1 ? (squares - sum * sum / n) / (n - 1) : 0;
        stats->sigma = fmaxf(stats->sigma, (float)sqrt(fmax(variance, 0)));
    }
    mem_free(ctx, centre);
    mem_free(ctx, job->sums);
    return status;
}

tare_status smooth_stats_create(tare_context *ctx, const smooth_config *cfg, const smooth_group *g,
                                smooth_stats **out)
{
    tare_status status = TARE_OK;
    smooth_stats *stats = mem_calloc(ctx, 1, sizeof *stats);
    *out = NULL;
    if (!stats)
        return TARE_E_MEMORY;
    stats->method = cfg->method;
    stats->source = g->name;
    stats->target = g->num_targets ? g->targets[0]->name : "nothing";
    stats->channels = g->channels;
    stats->max = mem_calloc(ctx, g->channels, sizeof *stats->max);
    stats->min = mem_calloc(ctx, g->channels, sizeof *stats->min);
    if (cfg->method == SMOOTH_M2)
        stats->theta = mem_alloc_array(ctx, g->channels, sizeof *stats->theta);
    if (!stats->max || !stats->min || (cfg->method == SMOOTH_M2 && !stats->theta)) {
        status = TARE_E_MEMORY;
        goto done;
    }
    for (size_t c = 0; stats->theta && c < g->channels; c++)
        stats->theta[c] = -FLT_MAX;
    *out = stats;
    stats = NULL;
done:
    smooth_stats_free(ctx, stats);
    return status;
}

void smooth_stats_free(tare_context *ctx, smooth_stats *stats)
{
    if (!stats)
        return;
    mem_free(ctx, stats->max);
    mem_free(ctx, stats->min);
    mem_free(ctx, stats->theta);
    mem_free(ctx, stats);
}

tare_status smooth_stats_update(tare_context *ctx, smooth_stats *stats, const float *x, size_t rows)
{
    tare_status status = TARE_OK;
    if (rows == 0 || stats->channels == 0)
        return TARE_OK;
    size_t pieces = piece_count(stats->channels);
    update_job job = {.stats = stats, .x = x, .rows = rows, .wrong = mem_alloc(ctx, pieces)};
    if (!job.wrong)
        return TARE_E_MEMORY;
    parallel_for(ctx, pieces, update_extremes, &job);
    for (size_t i = 0; i < pieces && !stats->bad_sample; i++) {
        if (job.wrong[i])
            stats->bad_sample = stats->samples + 1;
    }
    if (stats->bad_sample) {
        status = TARE_FAIL(ctx, TARE_E_NUMERIC,
                           "smoothing %s -> %s (%zu channels): the input has NaN or infinity in "
                           "sample %zu",
                           stats->source, stats->target, stats->channels, stats->bad_sample - 1);
        goto done;
    }
    if (stats->method == SMOOTH_M2)
        TRY(update_m2(ctx, stats, &job));
    stats->first_rows = stats->samples == 0 ? rows : stats->first_rows;
    stats->rows += rows;
    stats->samples++;
done:
    mem_free(ctx, job.wrong);
    return status;
}
