/* generation_config.json: how a checkpoint wants its text to be made. */
#include <string.h>

#include "file/io.h"
#include "file/json.h"
#include "model/generate.h"

enum { FILE_LIMIT = 4 << 20 };

/* Settings of transformers that tare does not follow, with the values that mean nothing. */
typedef struct foreign_setting {
    const char *name;
    bool greedy;    /* changes greedy decoding too, not sampling alone */
    double neutral; /* a number that has no effect; null, false and empty lists never have */
} foreign_setting;

static const foreign_setting foreign[] = {
    {"num_beams", true, 1},
    {"num_beam_groups", true, 1},
    {"penalty_alpha", true, 0},
    {"dola_layers", true, 0},
    {"max_time", true, -1},
    {"stop_strings", true, 0},
    {"min_length", true, 0},
    {"min_new_tokens", true, 0},
    {"encoder_repetition_penalty", true, 1},
    {"no_repeat_ngram_size", true, 0},
    {"encoder_no_repeat_ngram_size", true, 0},
    {"bad_words_ids", true, 0},
    {"force_words_ids", true, 0},
    {"constraints", true, 0},
    {"sequence_bias", true, 0},
    {"forced_bos_token_id", true, -1},
    {"forced_eos_token_id", true, -1},
    {"forced_decoder_ids", true, 0},
    {"exponential_decay_length_penalty", true, 0},
    {"suppress_tokens", true, 0},
    {"begin_suppress_tokens", true, 0},
    {"guidance_scale", true, 1},
    {"diversity_penalty", true, 0},
    {"watermarking_config", true, 0},
    {"token_healing", true, 0},
    {"min_p", false, 0},
    {"top_h", false, 0},
    {"typical_p", false, 1},
    {"epsilon_cutoff", false, 0},
    {"eta_cutoff", false, 0},
};

static bool is_set(const value *v, double neutral)
{
    switch (v ? v->type : VALUE_NULL) {
    case VALUE_BOOL:
        return v->boolean;
    case VALUE_NUMBER:
        return (v->is_integer ? (double)v->integer : v->number) != neutral;
    case VALUE_STRING:
    case VALUE_LIST:
    case VALUE_MAP:
        return v->count > 0 || v->length > 0;
    case VALUE_NULL:
        break;
    }
    return false;
}

static void note_foreign(const value *root, generation_config *c)
{
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        buffer *to = foreign[i].greedy ? &c->greedy_ignored : &c->sampling_ignored;
        if (is_set(value_get(root, foreign[i].name), foreign[i].neutral))
            buffer_printf(to, "%s%s", to->length ? ", " : "", foreign[i].name);
    }
}

/* eos_token_id: an id or a list of them; absent or null: *count stays 0. */
static tare_status read_eos(tare_model *model, arena *a, const value *root, const char *what,
                            generation_config *c)
{
    const value *v = value_get(root, "eos_token_id");
    if (!v || v->type == VALUE_NULL)
        return TARE_OK;
    size_t count = v->type == VALUE_LIST ? v->count : 1;
    uint32_t *ids = arena_alloc_array(a, count, sizeof *ids);
    if (!ids)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count; i++) {
        const value *id = v->type == VALUE_LIST ? &v->items[i] : v;
        if (id->type != VALUE_NUMBER || !id->is_integer || id->integer < 0 ||
            id->integer > UINT32_MAX)
            return TARE_FAIL(model->ctx, TARE_E_FORMAT,
                             "%s: key \"eos_token_id\" must be a token id or a list of them", what);
        ids[i] = (uint32_t)id->integer;
    }
    c->eos_ids = ids;
    c->num_eos = count;
    return TARE_OK;
}

static tare_status read_settings(tare_model *model, const value *root, const char *what,
                                 generation_config *c)
{
    tare_status status = TARE_OK;
    tare_context *ctx = model->ctx;
    size_t top_k = SIZE_MAX;
    TRY(value_get_size(ctx, root, what, "top_k", &top_k));
    if (top_k != SIZE_MAX)
        c->top_k = top_k < INT64_MAX ? (int64_t)top_k : INT64_MAX;
    TRY(value_get_double(ctx, root, what, "temperature", &c->temperature));
    TRY(value_get_double(ctx, root, what, "top_p", &c->top_p));
    TRY(value_get_double(ctx, root, what, "repetition_penalty", &c->repetition_penalty));
done:
    return status;
}

/* NULL of a file that is empty: it is as good as absent, as in transformers. */
static tare_status read_file(tare_context *ctx, arena *a, const char *path, const value **root)
{
    tare_status status = TARE_OK;
    char *text = NULL;
    size_t length, blank = 0;
    *root = NULL;
    TRY(file_read_all(ctx, path, FILE_LIMIT, &text, &length));
    while (blank < length && strchr(" \t\r\n", text[blank]) && text[blank])
        blank++;
    if (blank == length)
        goto done;
    TRY(json_parse(ctx, a, text, length, path, JSON_STRICT, root));
    if ((*root)->type != VALUE_MAP)
        TRY(TARE_FAIL(ctx, TARE_E_FORMAT, "%s: must be a map of settings", path));
done:
    mem_free(ctx, text);
    return status;
}

tare_status generation_config_read(tare_model *model, generation *g)
{
    tare_status status = TARE_OK;
    tare_context *ctx = model->ctx;
    const value *root = NULL;
    char *path = model->folder ? path_join(ctx, model->folder, "generation_config.json") : NULL;
    generation_config *c = arena_calloc(&g->arena, 1, sizeof *c);
    TRY((path || !model->folder) && c ? TARE_OK : TARE_E_MEMORY);
    *c = (generation_config){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .top_k = 50};
    buffer_init(&c->greedy_ignored, ctx);
    buffer_init(&c->sampling_ignored, ctx);
    g->config = c;
    if (path && path_exists(path))
        TRY(read_file(ctx, &g->arena, path, &root));
    if (root) {
        TRY(read_eos(model, &g->arena, root, path, c));
        TRY(read_settings(model, root, path, c));
        note_foreign(root, c);
    }
    if (!c->eos_ids) {
        TRY(json_parse(ctx, &g->arena, model->config_json, model->config_length, "config.json",
                       JSON_PYTHON, &root));
        TRY(read_eos(model, &g->arena, root, "config.json", c));
    }
    TRY(c->greedy_ignored.status);
    TRY(c->sampling_ignored.status);
done:
    mem_free(ctx, path);
    return status;
}
