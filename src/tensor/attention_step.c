/* Attention of single queries over keys and values that are kept: what generation does once a
 * prompt has been read. A piece of work is the query heads of one sequence that share a key/value
 * head, so its keys and values pass through the cache once. */
#include <string.h>

#include "base/parallel.h"
#include "tensor/attention.h"
#include "tensor/kernels.h"

typedef struct step_job {
    const kernels *kernels;
    const attention_shape *shape;
    const attention_step *steps;
    float scale, *scratch;
    size_t stride; /* of the scratch, for one thread */
} step_job;

static void step_heads(void *user, size_t index, int thread)
{
    const step_job *job = user;
    const attention_shape *s = job->shape;
    const attention_step *step = &job->steps[index / s->num_kv_heads];
    size_t d = s->head_dim, kv = index % s->num_kv_heads, group = s->num_heads / s->num_kv_heads;
    size_t first = s->window && step->tokens > s->window ? step->tokens - s->window : 0;
    size_t count = step->tokens - first, stride = s->num_kv_heads * d;
    size_t wide = attention_value_dim(s), v_stride = s->num_kv_heads * wide;
    const float *k = step->k + first * stride + kv * d, *v = step->v + first * v_stride + kv * wide;
    const float *q = step->q + kv * group * d;
    float *out = step->out + kv * group * wide;
    float *scores = job->scratch + (size_t)thread * job->stride; /* [group, count] */
    for (size_t j = 0; j < count; j++) {
        for (size_t g = 0; g < group; g++)
            scores[g * count + j] = job->kernels->dot(q + g * d, k + j * stride, d) * job->scale;
    }
    if (s->softcap != 0)
        job->kernels->softcap(scores, group * count, s->softcap);
    for (size_t g = 0; g < group; g++)
        job->kernels->softmax(scores + g * count, count);
    memset(out, 0, group * wide * sizeof *out);
    for (size_t j = 0; j < count; j++) {
        for (size_t g = 0; g < group; g++)
            job->kernels->axpy(scores[g * count + j], v + j * v_stride, wide, out + g * wide);
    }
}

void attention_steps(const tare_context *ctx, const attention_shape *shape,
                     const attention_step *steps, size_t count, float *scratch)
{
    step_job job = {.kernels = kernels_get(ctx),
                    .shape = shape,
                    .steps = steps,
                    .scale = attention_scale(shape),
                    .scratch = scratch,
                    .stride = attention_scratch_size(shape)};
    parallel_for(ctx, count * shape->num_kv_heads, step_heads, &job);
}
