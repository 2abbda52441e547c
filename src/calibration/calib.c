/* Opening a mix, its sets, sizes and seeds. */
#include "calibration/calib.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/number.h"
#include "base/sized.h"
#include "file/io.h"

void tare_calib_options_init_sized(tare_calib_options *options, size_t size)
{
    static const tare_calib_options defaults = {.skip_bad = TARE_CALIB_UNSET,
                                                .mmlu_shots = TARE_CALIB_UNSET,
                                                .gsm8k_sampling = TARE_CALIB_UNSET};
    sized_init(options, size, &defaults, sizeof defaults);
}

tare_status seed_set(tare_context *ctx, calib_seed *seed, const uint32_t *words, size_t count)
{
    while (count && !words[count - 1]) /* zeros in front: the same number is the same seed */
        count--;
    uint32_t *copy = mem_alloc_array(ctx, count, sizeof *copy);
    if (!copy)
        return TARE_E_MEMORY;
    if (count)
        memcpy(copy, words, count * sizeof *copy);
    mem_free(ctx, seed->words);
    *seed = (calib_seed){copy, count};
    return TARE_OK;
}

static void seed_free(tare_context *ctx, calib_seed *seed)
{
    mem_free(ctx, seed->words);
    *seed = (calib_seed){0};
}

/* ---- sets ---- */

static void set_free(tare_context *ctx, calib_set *s)
{
    if (s->kind && s->data)
        s->kind->free(ctx, s->data);
    if (!s->kind && s->source.release)
        s->source.release(s->source.user);
    seed_free(ctx, &s->seed);
    mem_free(ctx, s->name);
    *s = (calib_set){0};
}

static calib_set *find_set(const tare_calib *c, const char *name)
{
    for (size_t i = 0; i < c->num_sets; i++) {
        if (strcmp(c->sets[i].name, name) == 0)
            return &c->sets[i];
    }
    return NULL;
}

/* Puts *s, which it takes, at the end or in the place of the set of its name. */
static tare_status put_set(tare_calib *c, calib_set *s)
{
    calib_set *old = find_set(c, s->name);
    if (!old) {
        tare_status status = mem_grow(c->ctx, (void **)&c->sets, &c->sets_capacity, c->num_sets + 1,
                                      sizeof *c->sets);
        if (status != TARE_OK)
            return status;
        old = &c->sets[c->num_sets++];
    } else {
        set_free(c->ctx, old);
    }
    *old = *s;
    *s = (calib_set){0};
    return TARE_OK;
}

static tare_status check_folder(tare_context *ctx, const char *path)
{
    struct stat st;
    int failed = stat(path, &st) != 0 ? errno : S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
    if (!failed)
        return TARE_OK;
    return context_fail_errno(ctx, TARE_E_IO, failed, "cannot open folder '%s': %s", path,
                              errno_text(failed));
}

static tare_status load_set(tare_calib *c, const config_entry *e)
{
    tare_status status = TARE_OK;
    calib_set s = {.kind = e->kind, .compat_batch = CALIB_COMPAT_BATCH};
    if (!(s.name = mem_strdup(c->ctx, e->name)))
        return TARE_E_MEMORY;
    c->input.skipped = c->input.digest = 0;
    if (e->kind->folder)
        TRY(check_folder(c->ctx, e->path));
    TRY(e->kind->load(&c->input, e->path, &s.data, &s.count));
    s.skipped = c->input.skipped;
    s.digest = c->input.digest;
    TRY(put_set(c, &s));
done:
    set_free(c->ctx, &s);
    return status;
}

/* ---- opening ---- */

/* What `options` say wins over the config. */
static tare_status apply_options(tare_calib *c, const calib_config *config,
                                 const tare_calib_options *o)
{
    tare_status status = TARE_OK;
    bool compat = o->compat ? strcmp(o->compat, "msmodelslim") == 0 : config->compat;
    calib_seed gsm8k = config->gsm8k_seed, sample = config->sample_seed;
    if (o->compat && *o->compat && !compat)
        return TARE_FAIL(c->ctx, TARE_E_USAGE, "compat must be \"msmodelslim\", not \"%s\"",
                         o->compat);
    if (o->mmlu_shots != TARE_CALIB_UNSET && (o->mmlu_shots < 0 || o->mmlu_shots > CALIB_MAX_SHOTS))
        return TARE_FAIL(c->ctx, TARE_E_USAGE, "mmlu_shots must be from 0 to %d, not %d",
                         CALIB_MAX_SHOTS, o->mmlu_shots);
    c->input.compat = compat;
    c->input.skip_bad = o->skip_bad == TARE_CALIB_UNSET ? config->skip_bad : o->skip_bad != 0;
    c->input.mmlu_shots = o->mmlu_shots == TARE_CALIB_UNSET ? config->mmlu_shots
                                                            : (uint32_t)o->mmlu_shots;
    c->gsm8k_sampling = o->gsm8k_sampling == TARE_CALIB_UNSET ? config->gsm8k_sampling
                                                              : o->gsm8k_sampling != 0;
    if (o->gsm8k_seed)
        gsm8k = (calib_seed){(uint32_t *)o->gsm8k_seed, o->gsm8k_seed_words};
    for (size_t i = 0; i < 2 && i < gsm8k.count; i++)
        c->gsm8k_seed[i] = gsm8k.words[i];
    if (o->sample_seed)
        sample = (calib_seed){(uint32_t *)o->sample_seed, o->sample_seed_words};
    c->has_sample_seed = o->sample_seed || config->has_sample_seed;
    TRY(seed_set(c->ctx, &c->sample_seed, sample.words, sample.count));
done:
    return status;
}

static tare_status find_save_path(tare_calib *c, const char *path)
{
    tare_status status = path_real(c->ctx, path, &c->save_path);
    if (status != TARE_OK)
        return status == TARE_E_IO ? TARE_E_USAGE : status;
    buffer folder;
    buffer_init(&folder, c->ctx);
    buffer_printf(&folder, "%s.tare", c->save_path);
    c->work_folder = folder.data;
    return folder.status;
}

static tare_status check_save_path(tare_calib *c, const char *path, bool overwrite)
{
    tare_status status = TARE_OK;
    bool exists = false;
    struct stat st;
    if (!str_ends_with(path, ".json"))
        return TARE_FAIL(c->ctx, TARE_E_USAGE, "cannot save '%s': its name must end in .json",
                         path);
    TRY(path_check_place(c->ctx, path));
    if (stat(path, &st) == 0) {
        if (input_has_read(&c->input, &st))
            return TARE_FAIL(c->ctx, TARE_E_USAGE,
                             "cannot save '%s': the mix is made from this file", path);
        exists = true;
    }
    TRY(find_save_path(c, path));
    /* A run that was killed behind its end, or that had --overwrite, goes on. */
    if (exists && !overwrite && !(c->resume && path_exists(c->work_folder)))
        TRY(TARE_FAIL(c->ctx, TARE_E_USAGE, "cannot save '%s': it exists (--overwrite replaces it)",
                      path));
    if (exists)
        TARE_WARN(c->ctx, "%s exists and will be replaced", path);
    TRY(path_check_place(c->ctx, c->save_path)); /* where a link leads */
done:
    return status;
}

tare_status tare_calib_open(tare_context *ctx, const char *config_path, const char *save_path,
                            const tare_calib_options *options, tare_calib **out)
{
    tare_status status = TARE_OK;
    tare_calib_options o;
    calib_config config;
    *out = NULL;
    tare_calib_options_init(&o);
    status = SIZED_TAKE(ctx, tare_calib_options, options, &o);
    if (status != TARE_OK)
        return status;
    tare_calib *c = mem_calloc(ctx, 1, sizeof *c);
    if (!c)
        return TARE_E_MEMORY;
    c->ctx = c->input.ctx = ctx;
    c->batch_size = 4;
    TRY(config_read(&c->input, config_path, &config));
    c->config_digest = c->input.digest;
    TRY(apply_options(c, &config, &o));
    for (size_t i = 0; i < config.count; i++)
        TRY(load_set(c, &config.entries[i]));
    c->keep = o.keep || o.resume;
    c->resume = o.resume;
    c->overwrite = o.overwrite;
    if (save_path && *save_path)
        TRY(check_save_path(c, save_path, o.overwrite));
    *out = c;
    c = NULL;
done:
    config_free(&config);
    tare_calib_free(c);
    return status;
}

void tare_calib_free(tare_calib *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->num_sets; i++)
        set_free(c->ctx, &c->sets[i]);
    mem_free(c->ctx, c->sets);
    seed_free(c->ctx, &c->shuffle_seed);
    seed_free(c->ctx, &c->sample_seed);
    mem_free(c->ctx, c->save_path);
    mem_free(c->ctx, c->work_folder);
    input_free(&c->input);
    mem_free(c->ctx, c);
}

/* ---- settings ---- */

tare_status tare_calib_add_set(tare_calib *c, const char *name, const tare_calib_source *source)
{
    tare_status status = TARE_OK;
    calib_set s = {.compat_batch = c->batch_size};
    status = SIZED_TAKE(c->ctx, tare_calib_source, source, &s.source);
    if (status != TARE_OK)
        return TARE_WRAP(c->ctx, status, "Dataset %s", name);
    if (!s.source.count || !s.source.process)
        return TARE_FAIL(c->ctx, TARE_E_USAGE, "Dataset %s: count and process are needed", name);
    if (!(s.name = mem_strdup(c->ctx, name)))
        return TARE_E_MEMORY;
    TRY(seed_set(c->ctx, &s.seed, c->shuffle_seed.words, c->shuffle_seed.count));
    TRY(put_set(c, &s));
done:
    if (status != TARE_OK)
        s.source.release = NULL; /* stays with the caller */
    set_free(c->ctx, &s);
    return status;
}

tare_status tare_calib_set_sizes(tare_calib *c, const char *const *names, const int64_t *sizes,
                                 size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (sizes[i] < 0)
            return TARE_FAIL(c->ctx, TARE_E_USAGE, "Dataset %s: a size of %lld is below 0",
                             names[i], (long long)sizes[i]);
        if (!find_set(c, names[i]))
            return TARE_FAIL(c->ctx, TARE_E_USAGE, "Dataset %s has no handler", names[i]);
    }
    for (size_t i = 0; i < count; i++)
        find_set(c, names[i])->requested = (uint64_t)sizes[i];
    return TARE_OK;
}

tare_status tare_calib_set_batch_size(tare_calib *c, int64_t size)
{
    if (size == 0)
        return TARE_FAIL(c->ctx, TARE_E_USAGE, "batch_size cant be zero");
    if (size < 0)
        return TARE_FAIL(c->ctx, TARE_E_USAGE, "batch_size must be above 0, not %lld",
                         (long long)size);
    c->batch_size = (uint64_t)size;
    c->batch_size_given = true;
    return TARE_OK;
}

tare_status tare_calib_set_shuffle_seed(tare_calib *c, const uint32_t *words, size_t count)
{
    return seed_set(c->ctx, &c->shuffle_seed, words, count);
}

tare_status tare_calib_set_verifier(tare_calib *c, const tare_calib_verifier *verifier)
{
    tare_calib_verifier known = {0};
    tare_status status = SIZED_TAKE(c->ctx, tare_calib_verifier, verifier, &known);
    if (status != TARE_OK)
        return status;
    c->has_verifier = verifier != NULL;
    c->verifier = known;
    return TARE_OK;
}

size_t tare_calib_num_sets(const tare_calib *c)
{
    return c->num_sets;
}

const char *tare_calib_set_name(const tare_calib *c, size_t index)
{
    return index < c->num_sets ? c->sets[index].name : NULL;
}

tare_status tare_calib_get_plan(tare_calib *c, const char *name, tare_calib_plan *plan)
{
    const calib_set *s = find_set(c, name);
    if (!s)
        return TARE_FAIL(c->ctx, TARE_E_USAGE, "Dataset %s has no handler", name);
    tare_status status = TARE_OK;
    tare_calib_plan made = {0};
    TRY(SIZED_TAKE(c->ctx, tare_calib_plan, plan, &made));
    made = (tare_calib_plan){.generation = made.generation};
    TRY(SIZED_CHECK(c->ctx, tare_generation_plan, made.generation));
    status = set_plan(c, s, &made);
    sized_give(plan, &made, sizeof made);
done:
    return status;
}

const char *tare_calib_work_folder(const tare_calib *c)
{
    return c->work_folder;
}

tare_status tare_calib_get_stats(tare_calib *c, const char *name, tare_calib_stats *stats)
{
    const calib_set *s = find_set(c, name);
    if (!s)
        return TARE_FAIL(c->ctx, TARE_E_USAGE, "Dataset %s has no handler", name);
    tare_calib_stats made = {.available = s->count,
                             .skipped = s->skipped,
                             .requested = s->requested,
                             .delivered = s->delivered};
    tare_status status = SIZED_CHECK(c->ctx, tare_calib_stats, stats);
    if (status == TARE_OK && !s->kind)
        status = s->source.count(s->source.user, &made.available);
    if (status == TARE_OK)
        sized_give(stats, &made, sizeof made);
    return status;
}
