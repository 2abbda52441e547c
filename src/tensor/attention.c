/* Causal attention, thin version: one query row at a time. */
#include "tensor/attention.h"

#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "tensor/kernels.h"

typedef struct attention_job {
    const kernels *kernels;
    attention_shape shape;
    const float *q, *k, *v;
    size_t q_stride, k_stride, v_stride, out_stride;
    float *out, *scratch;
} attention_job;

static void attention_row(void *user, size_t index, int thread)
{
    const attention_job *job = user;
    const attention_shape *s = &job->shape;
    size_t head = index % s->num_heads, i = index / s->num_heads, d = s->head_dim;
    size_t kv = head / (s->num_heads / s->num_kv_heads);
    size_t first = s->window && i + 1 > s->window ? i + 1 - s->window : 0;
    const float *q = job->q + i * job->q_stride + head * d;
    float *out = job->out + i * job->out_stride + head * d;
    float *p = job->scratch + (size_t)thread * attention_scratch_size(s);
    float scale = (float)(1 / sqrt((double)d));
    for (size_t j = first; j <= i; j++)
        p[j] = job->kernels->dot(q, job->k + j * job->k_stride + kv * d, d) * scale;
    job->kernels->softmax(p + first, i + 1 - first);
    memset(out, 0, d * sizeof *out);
    for (size_t j = first; j <= i; j++)
        job->kernels->axpy(p[j], job->v + j * job->v_stride + kv * d, d, out);
}

void attention_forward(const tare_context *ctx, const attention_shape *shape, const float *q,
                       size_t q_stride, const float *k, size_t k_stride, const float *v,
                       size_t v_stride, float *out, size_t out_stride, float *scratch)
{
    attention_job job = {kernels_get(ctx), *shape,   q,          k,   v,      q_stride,
                         k_stride,         v_stride, out_stride, out, scratch};
    parallel_for(ctx, shape->tokens * shape->num_heads, attention_row, &job);
}

size_t attention_scratch_size(const attention_shape *shape)
{
    return shape->tokens;
}
