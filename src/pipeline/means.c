/* Before a rotated model is quantized: the means of what its norms put out, by which the rotation
 * is aligned (model/rotate.h). The first samples pass the float model, and are forgotten. */
#include "pipeline/means.h"

#include <string.h>

#include "base/carver.h"

enum { MEANS_SAMPLES = 8 };

struct stream_means {
    struct stream_means *self;
    const tare_model *model;
    double *sums;  /* [BLOCK_NORMS, hidden_size] of the block in work */
    float **means; /* [num_blocks * BLOCK_NORMS]; NULL: none */
    float *room;   /* that they lie in */
    bool open;     /* the pass goes on */
};

static bool wants_to_align(const tare_recipe *r)
{
    return r->rotation && r->rotation_r1 && (r->rotation_align || r->rotation_flips);
}

bool plan_aligns(const run_plan *plan)
{
    return wants_to_align(plan->env->recipe) && !plan->weights_alone && !plan->smoothing_given &&
           (plan->keeps_statistics || plan->env->options->statistics);
}

bool plan_passes_means(const run_plan *plan)
{
    return plan_aligns(plan) && plan->calibrates;
}

size_t count_passes(const run_plan *plan)
{
    bool scores_first = plan->two_passes && plan->env->goal == GOAL_OUTPUT;
    return (size_t)1 + scores_first + plan_passes_means(plan);
}

/* ---- which norms ---- */

/* The first unit that reads the norm is the one that is watched. */
static int watched_norm(const tare_model *m, const model_block *b, graph_unit unit)
{
    int norm = model_stream_norm(m, b, unit);
    for (graph_unit u = 0; norm >= 0 && u < unit; u++)
        if (model_stream_norm(m, b, u) == norm)
            return -1;
    return norm;
}

static size_t count_norms(const tare_model *m)
{
    size_t count = 0;
    for (size_t i = 0; i < m->num_blocks; i++)
        for (graph_unit u = 0; u < m->blocks[i].graph->num_units; u++)
            count += watched_norm(m, &m->blocks[i], u) >= 0;
    return count;
}

static void lay_out(carver *c, void *component)
{
    struct stream_means *s = component;
    size_t h = s->model->config.hidden_size, norms = s->model->num_blocks * BLOCK_NORMS;
    s->self = carve(c, 1, sizeof *s);
    s->sums = carve(c, BLOCK_NORMS * h, sizeof *s->sums);
    s->means = carve(c, norms, sizeof *s->means);
    s->room = carve(c, count_norms(s->model) * h, sizeof *s->room);
}

tare_status means_create(run *r, stream_means **out)
{
    struct stream_means made = {.model = r->model};
    *out = NULL;
    tare_status status = carver_alloc(r->ctx, lay_out, &made);
    if (status != TARE_OK)
        return status;
    const tare_model *m = r->model;
    size_t h = m->config.hidden_size, used = 0;
    memset(made.sums, 0, BLOCK_NORMS * h * sizeof *made.sums);
    memset(made.means, 0, m->num_blocks * BLOCK_NORMS * sizeof *made.means);
    for (size_t i = 0; i < m->num_blocks; i++) {
        for (graph_unit u = 0; u < m->blocks[i].graph->num_units; u++) {
            int norm = watched_norm(m, &m->blocks[i], u);
            if (norm >= 0)
                made.means[i * BLOCK_NORMS + (size_t)norm] = made.room + h * used++;
        }
    }
    *(*out = made.self) = made;
    return TARE_OK;
}

void means_free(run *r, stream_means *s)
{
    mem_free(r->ctx, s);
}

bool means_are_open(const run *r)
{
    return r->means && r->means->open;
}

float *const *means_of(const stream_means *s)
{
    return s->means;
}

/* ---- the pass ---- */

void means_add(run *r, const model_block *b, graph_unit unit, const float *x, size_t rows)
{
    struct stream_means *s = r->means;
    size_t h = r->model->config.hidden_size;
    int norm = s && s->open ? watched_norm(r->model, b, unit) : -1;
    for (size_t i = 0; norm >= 0 && i < rows; i++, x += h) {
        double *sums = s->sums + (size_t)norm * h;
        for (size_t c = 0; c < h; c++)
            sums[c] += (double)x[c];
    }
}

void means_end_block(run *r, const model_block *b)
{
    struct stream_means *s = r->means;
    size_t h = r->model->config.hidden_size;
    for (size_t norm = 0; s && s->open && norm < BLOCK_NORMS; norm++) {
        float *mean = s->means[b->index * BLOCK_NORMS + norm];
        double *sums = s->sums + norm * h;
        for (size_t c = 0; mean && c < h; c++)
            mean[c] = (float)(sums[c] / (double)r->plan->float_tokens);
        memset(sums, 0, h * sizeof *sums);
    }
}

run_plan plan_of_means(const run_plan *plan)
{
    run_plan p = *plan;
    p.smooths = p.wants_scores = p.float_beside = false;
    p.two_passes = true;
    p.float_samples = plan_passes_means(plan) ? size_min(plan->env->samples.count, MEANS_SAMPLES)
                                              : 0;
    p.float_tokens = 0;
    for (size_t i = 0; i < p.float_samples; i++)
        p.float_tokens += plan->env->samples.lengths[i];
    return p;
}

/* A state that the run goes on from waits until the rotation is what it was. */
tare_status means_pass(run_job *j)
{
    tare_status status = TARE_OK;
    run *r = &j->run;
    const run_plan plan = j->plan;
    const run_resume resume = r->resume;
    if (wants_to_align(j->env.recipe) && !plan_aligns(&plan))
        TARE_INFO(r->ctx, "rotation: fitted to no samples in a run such as this one");
    if (!plan_passes_means(&plan))
        return TARE_OK;
    TRY(means_create(r, &r->means));
    j->plan = plan_of_means(&plan);
    r->resume = (run_resume){.journal = resume.journal}; /* which says where states are spilled */
    job_pass(j, PASS_MEANS);
    r->means->open = true;
    TRY(float_pass(r));
    r->means->open = false;
    TRY(model_align(r->model, (const float *const *)r->means->means));
done:
    j->plan = plan;
    r->resume = resume;
    return TARE_WRAP(r->ctx, status, "rotation");
}

/* ---- memory ---- */

size_t means_bytes(const run_plan *plan)
{
    const tare_model *m = plan->env->model;
    return plan_aligns(plan) ? carver_bytes(lay_out, &(struct stream_means){.model = m}) +
                                   model_align_bytes(m, count_norms(m))
                             : 0;
}

void means_hold(ledger *l)
{
    const run_plan *plan = l->plan;
    run_plan means = plan_of_means(plan);
    l->plan = &means;
    float_pass_hold(l);
    l->plan = plan;
}
