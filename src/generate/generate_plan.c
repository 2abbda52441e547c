/* What a call of tare_generate will hold and read, known before it begins. Weights kept in memory
 * come first, whatever that does to the batch. Else they are read once for each pass, so the layout
 * with the fewest passes is taken: all prompts together, if they fit. Of equal ones that which does
 * least beside: keys and values go to scratch files, then the next layer is not read ahead, then
 * one linear at a time is in memory. */
#include "base/machine.h"
#include "generate/generate.h"

/* READ_BATCH: a sequence that is spilled holds a file open, of which a process has about 1000. */
enum { KEPT_BATCH = 16, READ_BATCH = 512, PASS_ROWS = 512 };

size_t generation_most(const model_config *config, size_t length, size_t max_new)
{
    size_t limit = model_config_max_tokens(config);
    if (length > limit)
        return 0;
    /* The last token is chosen, but need not go through the model. */
    return max_new <= limit - length + 1 ? length + max_new : limit + 1;
}

typedef struct work_size {
    size_t prompts; /* that are not too long */
    size_t longest; /* prompt */
    size_t most;    /* tokens of a sequence that go through the model */
    size_t text;    /* most new tokens of one */
    size_t tokens;  /* of all prompts */
} work_size;

static work_size measure(const tare_model *model, const generation_work *work)
{
    work_size s = {0};
    for (size_t i = 0; i < work->n; i++) {
        size_t most = generation_most(&model->config, work->lengths[i], work->max_new);
        if (most == 0)
            continue;
        s.prompts++;
        s.longest = size_max(s.longest, work->lengths[i]);
        s.text = size_max(s.text, most - work->lengths[i]);
        s.most = size_max(s.most, size_max(most - 1, work->lengths[i]));
        s.tokens += work->lengths[i];
    }
    return s;
}

/* How many rows pass at a time. Where weights are read for each pass, all prompts begin together,
 * so that they end together; where they are read for each batch, a pass is one batch. */
static void lay_rows(const work_size *s, generation_layout *l)
{
    size_t all, places = l->batch;
    if (!size_mul(places, s->longest, &all))
        all = SIZE_MAX / 2;
    all = size_min(all, s->tokens + places);
    if (l->mode == WEIGHTS_KEPT || l->mode == WEIGHTS_LINEAR)
        l->pass_rows = l->batch_rows = size_min(all, size_max(s->longest, PASS_ROWS)) + places;
    else {
        l->pass_rows = all + places;
        l->batch_rows = size_min(l->pass_rows, size_max(s->longest, PASS_ROWS));
    }
    if (l->mode == WEIGHTS_LINEAR)
        l->pass_rows = l->batch_rows = s->longest + places;
}

static size_t key_value_bytes(const tare_model *model, const work_size *s, size_t places,
                              bool spill)
{
    const model_config *c = &model->config;
    size_t kv[2];
    model_config_kv_columns(c, kv);
    size_t bytes = kv_cache_bytes(c->num_layers, kv, s->most, spill);
    return size_mul(bytes, places, &bytes) && bytes < MEM_ABSURD ? bytes : MEM_ABSURD;
}

/* Accounted bytes at most, beside those that are held already. */
static size_t peak_bytes(tare_model *model, const generation_work *work, const work_size *s,
                         const generation_layout *l)
{
    size_t texts = s->prompts * 128 + size_max(s->tokens, 1) * sizeof(uint32_t) +
                   l->batch * sequence_bytes(s->most + 1, work->sampled);
    size_t results;
    size_t longest = size_min(work->max_new, model_config_max_tokens(&model->config) + 1);
    if (!size_mul(s->prompts, mem_array_bytes(longest, sizeof(uint32_t)), &results))
        results = MEM_ABSURD;
    size_t bytes = texts + size_min(results, MEM_ABSURD) + forward_bytes(model, l, s->most) +
                   sampler_bytes(model->config.vocab_size, work->sampled) +
                   mem_array_bytes(l->batch, sizeof(sequence)) + 16384;
    if (work->max_new > 0)
        bytes += key_value_bytes(model, s, l->batch, l->spill);
    if (l->mode == WEIGHTS_KEPT) {
        size_t loading = kept_weights_loading_bytes(model);
        bytes = size_max(loading, kept_weights_bytes(model) + bytes);
    }
    return bytes;
}

static size_t rounds_of(const work_size *s, size_t places)
{
    return s->prompts / places + (s->prompts % places != 0);
}

/* Of single passes: as many prompts as there are places and rows for. */
static size_t count_single_passes(const tare_model *model, const generation_work *work,
                                  const generation_layout *l)
{
    size_t passes = 0, places = 0, rows = 0;
    for (size_t i = 0; i < work->n; i++) {
        if (generation_most(&model->config, work->lengths[i], 0) == 0)
            continue;
        if (passes == 0 || places == l->batch || rows + work->lengths[i] > l->pass_rows) {
            passes++;
            places = rows = 0;
        }
        places++;
        rows += work->lengths[i];
    }
    return passes;
}

/* Passes if no text ends early: a prompt takes one a token from where it finds a place. With
 * rows for one prompt a pass, the last of the first round begins late. */
static size_t count_passes(const tare_model *model, const generation_work *work, const work_size *s,
                           const generation_layout *l)
{
    size_t passes;
    if (work->max_new == 0)
        return count_single_passes(model, work, l);
    if (!size_mul(rounds_of(s, l->batch), s->text, &passes) || passes > SIZE_MAX / 2)
        return SIZE_MAX;
    return passes + (l->mode == WEIGHTS_LINEAR ? l->batch - 1 : 0);
}

static uint64_t budget_of(const tare_model *model)
{
    uint64_t limit = model->ctx->options.memory_limit;
    if (limit)
        return limit;
    machine_memory machine = machine_memory_read("");
    if (machine.available == UINT64_MAX)
        return UINT64_MAX;
    return (uint64_t)((double)machine.available * 0.8) + tare_memory_used(model->ctx);
}

/* Tokens that pass, and bytes of keys and values that scratch files take and give back. */
static void count_traffic(const tare_model *model, const generation_work *work,
                          const generation_layout *l, tare_generation_plan *p)
{
    const model_config *c = &model->config;
    size_t kv[2];
    model_config_kv_columns(c, kv);
    double token = sizeof(float) * (double)c->num_layers * (double)(kv[0] + kv[1]);
    double written = 0, read = 0;
    for (size_t i = 0; i < work->n; i++) {
        size_t length = work->lengths[i], most = generation_most(c, length, work->max_new);
        if (most == 0)
            continue;
        double later = most > length ? (double)(most - length - 1) : 0; /* passes of one token */
        written += (double)length + later;
        read += later * (double)length + later * (later - 1) / 2;
    }
    p->tokens = (uint64_t)written;
    p->scratch_written = l->spill ? (uint64_t)(written * token) : 0;
    p->scratch_read = l->spill ? (uint64_t)(read * token) : 0;
}

static void describe(const tare_model *model, const generation_work *work, const work_size *s,
                     const generation_layout *l, tare_generation_plan *p)
{
    p->weights_kept = l->mode == WEIGHTS_KEPT;
    p->read_ahead = l->mode == WEIGHTS_AHEAD;
    p->spill = l->spill;
    p->batch = l->batch;
    p->passes = count_passes(model, work, s, l);
    p->key_values = work->max_new > 0 ? key_value_bytes(model, s, l->batch, false) : 0;
    p->weights = p->weights_kept ? kept_weights_bytes(model)
                                 : weight_source_bytes(model, l->mode, l->batch);
    p->bytes_read_once = p->weights_kept ? weight_source_read(model) : 0;
    p->bytes_read_pass = p->weights_kept ? 0 : weight_source_read(model);
    p->parameters = weight_source_parameters(model);
    count_traffic(model, work, l, p);
}

static size_t most_places(const generation_work *work, const work_size *s)
{
    return size_min(s->prompts, work->max_batch ? work->max_batch : READ_BATCH);
}

/* The largest batch below `places` that saves a round: of equal shares. */
static size_t next_places(const work_size *s, size_t places)
{
    size_t rounds = rounds_of(s, places), next;
    if (places == 1)
        return 0;
    rounds += 1 + rounds / 8;
    next = s->prompts / rounds + (s->prompts % rounds != 0);
    return size_min(next, places - 1);
}

/* The candidate after `l`; false: there is none. */
static bool next_candidate(const generation_work *work, const work_size *s, generation_layout *l)
{
    if (l->mode == WEIGHTS_KEPT) {
        if (l->batch > 1) {
            l->batch /= 2;
            return true;
        }
        l->mode = WEIGHTS_AHEAD;
        l->batch = most_places(work, s);
        return true;
    }
    /* Each sequence has a scratch file of its own, and a process few descriptors. */
    if (!l->spill && work->may_spill && work->max_new > 0 && l->batch <= READ_BATCH) {
        l->spill = true;
        return true;
    }
    l->spill = false;
    if (l->mode < WEIGHTS_LINEAR) {
        l->mode++;
        return true;
    }
    l->mode = WEIGHTS_AHEAD;
    l->batch = next_places(s, l->batch);
    return l->batch > 0;
}

static tare_status refuse(const tare_model *model, const generation_work *work,
                          const tare_generation_plan *plan)
{
    uint64_t reserve = model->ctx->memory_reserve;
    return TARE_FAIL(model->ctx, TARE_E_BUDGET,
                     "a memory budget of %llu MiB is too small to generate: the smallest that "
                     "works here is %llu MiB%s",
                     (unsigned long long)((plan->budget + reserve) >> 20),
                     (unsigned long long)((plan->smallest + reserve + (1 << 20) - 1) >> 20),
                     work->may_spill ? "" : "; less might do with a scratch folder");
}

tare_status generation_layout_make(tare_model *model, const generation_work *work,
                                   generation_layout *out, tare_generation_plan *plan)
{
    work_size s = measure(model, work);
    size_t fewest = SIZE_MAX;
    bool found = false;
    /* What is kept already is planned anew. */
    size_t used = tare_memory_used(model->ctx) -
                  (model->generation ? model->generation->weight_bytes : 0);
    *plan = (tare_generation_plan){.budget = budget_of(model)};
    *out = (generation_layout){.mode = WEIGHTS_KEPT};
    if (s.prompts == 0)
        return TARE_OK;
    generation_layout l = {
        .mode = WEIGHTS_KEPT,
        .batch = size_min(s.prompts, work->max_batch ? work->max_batch : KEPT_BATCH)};
    do {
        lay_rows(&s, &l);
        uint64_t peak = used + (uint64_t)peak_bytes(model, work, &s, &l);
        size_t passes = l.mode == WEIGHTS_KEPT ? 0 : count_passes(model, work, &s, &l);
        if (peak <= plan->budget && (!found || passes < fewest)) {
            found = true;
            fewest = passes;
            *out = l;
            plan->peak = peak;
        }
        if (plan->smallest == 0 || peak < plan->smallest)
            plan->smallest = peak;
        if (l.mode == WEIGHTS_KEPT)
            plan->smallest_kept = peak; /* at last with a batch of one */
    } while (next_candidate(work, &s, &l));
    if (!found)
        return refuse(model, work, plan);
    describe(model, work, &s, out, plan);
    return TARE_OK;
}
