/* A call that quantizes: its run, with what that is given and the plan. Everything that can be
 * refused is refused by job_plan, before the first weight is read. */
#ifndef TARE_PIPELINE_JOB_H
#define TARE_PIPELINE_JOB_H

#include "pipeline/memory_plan.h"
#include "pipeline/run.h"

typedef struct run_job {
    run_env env;
    run_plan plan;
    memory_plan memory; /* that plan.layout comes from */
    run run;
    arena arena;
    tare_recipe *defaults; /* where the caller gives no recipe */
    tare_recipe effective; /* what env.recipe points to if the caller's does not hold as it is */
    size_t earlier_peak;   /* of the context, before this call */
    size_t owners_limit;   /* memory_limit of the context, before this call and after it */
} run_job;

/* *o <- the options of a call, whole. Is there one model, and at most one source of samples? */
tare_status take_options(tare_context *ctx, const tare_quantize_options *given,
                         tare_quantize_options *o);

/* With the recipe of `options`, or the default one. To be ended even if it fails. */
tare_status job_begin(run_job *j, tare_context *ctx, const tare_quantize_options *options);
/* Stops what is under way, frees all, and gives the call's own peak of memory. */
size_t job_end(run_job *j);
/* Opens the model and decides everything that can be known from headers, shapes and lengths. */
tare_status job_plan(run_job *j);
/* The same, and makes ready: from then on accounted memory stays within the budget. */
tare_status job_prepare(run_job *j);
/* What lives through all layers. */
tare_status job_workspace(run_job *j);
/* Before a pass: the best layout for it alone. */
void job_pass(run_job *j, run_pass pass);

#endif
