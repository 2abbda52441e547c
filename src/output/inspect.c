/* `tare inspect`: what a checkpoint folder, an output folder, a safetensors file or an npy file
 * holds. One list of facts is made for both forms of the report, lines and JSON. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "file/json.h"
#include "model/checkpoint.h"
#include "output/reader.h"

typedef struct report {
    tare_context *ctx;
    bool json, first; /* first: no comma yet at this level */
    void (*line)(void *user, const char *text);
    void *user;
    buffer text; /* the line or the whole JSON document */
} report;

static void put_key(report *r, const char *key)
{
    if (!r->first)
        buffer_puts(&r->text, ", ");
    r->first = false;
    json_write_string(&r->text, key, strlen(key));
    buffer_puts(&r->text, ": ");
}

/* Names come from foreign files: what could steer a terminal does not reach it. */
static void end_line(report *r)
{
    for (size_t i = 0; i < r->text.length; i++)
        if ((unsigned char)r->text.data[i] < ' ' || r->text.data[i] == 0x7f)
            r->text.data[i] = '?';
    if (r->text.status == TARE_OK && r->line)
        r->line(r->user, r->text.data);
    r->text.length = 0;
}

static void put_text(report *r, const char *key, const char *value_text)
{
    if (r->json) {
        put_key(r, key);
        json_write_string(&r->text, value_text, strlen(value_text));
        return;
    }
    buffer_printf(&r->text, "%s: %s", key, value_text);
    end_line(r);
}

static void put_number(report *r, const char *key, uint64_t number)
{
    if (r->json) {
        put_key(r, key);
        buffer_printf(&r->text, "%" PRIu64, number);
        return;
    }
    buffer_printf(&r->text, "%s: %" PRIu64, key, number);
    end_line(r);
}

/* Groups: {"key": {…}} in JSON, indented lines in text. */
static void open_group(report *r, const char *key)
{
    if (r->json) {
        put_key(r, key);
        buffer_putc(&r->text, '{');
        r->first = true;
        return;
    }
    buffer_printf(&r->text, "%s:", key);
    end_line(r);
}

static void close_group(report *r)
{
    if (r->json)
        buffer_putc(&r->text, '}');
    r->first = false;
}

/* A row of a table of counts. */
static void put_counts(report *r, const char *key, uint64_t tensors, uint64_t parameters,
                       uint64_t bytes)
{
    if (r->json) {
        put_key(r, key);
        buffer_printf(&r->text,
                      "{\"tensors\": %" PRIu64 ", \"parameters\": %" PRIu64 ", \"bytes\": %" PRIu64
                      "}",
                      tensors, parameters, bytes);
        return;
    }
    buffer_printf(&r->text,
                  "  %-13s %8" PRIu64 " tensors %15" PRIu64 " parameters %15" PRIu64 " bytes", key,
                  tensors, parameters, bytes);
    end_line(r);
}

static void put_tensor(report *r, const tensor_info *t)
{
    if (r->json) {
        put_key(r, t->name);
        buffer_printf(&r->text, "{\"dtype\": \"%s\", \"shape\": [", dtype_name(t->dtype));
        for (int i = 0; i < t->rank; i++)
            buffer_printf(&r->text, "%s%zu", i ? ", " : "", t->shape[i]);
        buffer_printf(&r->text, "], \"bytes\": %" PRIu64 "}", t->bytes);
        return;
    }
    char shape[256];
    tensor_shape_text(t, shape, sizeof shape);
    buffer_printf(&r->text, "  %s %s", t->name, shape);
    end_line(r);
}

/* ---- single files ---- */

static tare_status inspect_safetensors(report *r, const char *path)
{
    safetensors *s = NULL;
    uint64_t parameters = 0;
    tare_status status = TARE_OK;
    TRY(safetensors_open(r->ctx, path, &s));
    put_text(r, "kind", "safetensors");
    put_number(r, "tensors_total", safetensors_count(s));
    for (size_t i = 0; i < safetensors_count(s); i++)
        parameters += tensor_elements(safetensors_at(s, i));
    put_number(r, "parameters", parameters);
    put_number(r, "bytes", safetensors_file_size(s));
    open_group(r, "tensors");
    for (size_t i = 0; i < safetensors_count(s); i++)
        put_tensor(r, safetensors_at(s, i));
    close_group(r);
done:
    safetensors_close(s);
    return status;
}

static tare_status inspect_npy(report *r, const char *path)
{
    npy_dict *d = NULL;
    size_t tensors = 0;
    tare_status status = TARE_OK;
    TRY(npy_open(r->ctx, path, &d));
    for (size_t i = 0; i < npy_count(d); i++)
        tensors += npy_at(d, i)->torch;
    put_text(r, "kind", "npy");
    put_text(r, "values",
             tensors == 0              ? "numpy"
             : tensors == npy_count(d) ? "torch"
                                       : "numpy and torch");
    put_number(r, "tensors_total", npy_count(d));
    open_group(r, "tensors");
    for (size_t i = 0; i < npy_count(d); i++) {
        const npy_entry *e = npy_at(d, i);
        tensor_info t = {.name = e->key, .dtype = e->dtype, .rank = e->rank, .bytes = e->bytes};
        memcpy(t.shape, e->shape, sizeof t.shape);
        put_tensor(r, &t);
    }
    close_group(r);
done:
    npy_close(d);
    return status;
}

/* ---- output folders ---- */

typedef struct tally {
    uint64_t tensors, parameters, bytes;
} tally;

static void add_to(tally *t, const tensor_info *info)
{
    t->tensors++;
    t->parameters += tensor_elements(info);
    t->bytes += info->bytes;
}

/* Linears of the decoder layers that stayed FLOAT. */
static size_t count_fallbacks(const reader_layout *f)
{
    size_t count = 0, length;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        if (role_of_name(t->info.name, &length) != TENSOR_WEIGHT || t->info.rank != 2 ||
            reader_find_linear(f, t->info.name, length))
            continue;
        count += graph_linear_of(&f->graph, t->info.name, length) != NULL;
    }
    return count;
}

/* The type under which a tensor is counted: numpy has no description. */
static const char *counted_type(const reader_layout *f, const reader_tensor *t)
{
    size_t length;
    tensor_role role = role_of_name(t->info.name, &length);
    if (t->type || f->layout != LAYOUT_NUMPY)
        return t->type ? t->type : "(none)";
    const reader_linear *l = reader_find_linear(f, t->info.name, length);
    bool quantized = l && role != TENSOR_FLOAT && role != TENSOR_BIAS;
    return scheme_of(quantized ? l->form.scheme : SCHEME_FLOAT)->type;
}

enum { MAX_TYPES = 16 };

static void inspect_layout(report *r, const reader_layout *f)
{
    const char *types[MAX_TYPES];
    tally tallies[MAX_TYPES] = {{0}}, all = {0};
    size_t count = 0;
    for (size_t i = 0; i < f->num_tensors; i++) {
        const reader_tensor *t = &f->tensors[i];
        const char *type = counted_type(f, t);
        size_t at = 0;
        while (at < count && strcmp(types[at], type) != 0)
            at++;
        if (at == count && count == MAX_TYPES)
            at--; /* a description of nonsense: the last type takes the rest */
        else if (at == count)
            types[count++] = type;
        add_to(&tallies[at], &t->info);
        add_to(&all, &t->info);
    }
    open_group(r, save_types_text(1u << f->layout));
    put_text(r, "folder", f->dir);
    put_text(r, "model_quant_type", f->quant_type);
    put_number(r, "quantized_linears", f->num_linears);
    put_number(r, "float_linears", count_fallbacks(f));
    open_group(r, "types");
    for (size_t i = 0; i < count; i++)
        put_counts(r, types[i], tallies[i].tensors, tallies[i].parameters, tallies[i].bytes);
    put_counts(r, "total", all.tensors, all.parameters, all.bytes);
    close_group(r);
    close_group(r);
}

static tare_status inspect_output(report *r, const char *path, bool *is_output)
{
    reader output;
    tare_status status = reader_open(r->ctx, path, &(reader_options){0}, &output);
    *is_output = output.found != 0;
    if (status == TARE_OK && output.found) {
        put_text(r, "kind", "output");
        put_text(r, "layouts", save_types_text(output.found));
        if (output.faults > 0)
            put_number(r, "unreadable_files", output.faults);
        for (size_t i = 0; i < output.num_layouts; i++)
            inspect_layout(r, &output.layouts[i]);
    }
    reader_close(&output);
    return status;
}

/* ---- checkpoints ---- */

static void put_geometry(report *r, const value *config)
{
    static const char *const KEYS[] = {"model_type",
                                       "torch_dtype",
                                       "dtype",
                                       "num_hidden_layers",
                                       "hidden_size",
                                       "intermediate_size",
                                       "num_attention_heads",
                                       "num_key_value_heads",
                                       "head_dim",
                                       "vocab_size",
                                       "max_position_embeddings"};
    for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++) {
        const value *v = value_get(config, KEYS[i]);
        if (!v)
            v = value_get(value_get(config, "text_config"), KEYS[i]);
        if (v && v->type == VALUE_STRING)
            put_text(r, KEYS[i], v->text);
        else if (v && v->is_integer && v->integer >= 0)
            put_number(r, KEYS[i], (uint64_t)v->integer);
    }
}

static tare_status inspect_config(report *r, const char *path)
{
    enum { CONFIG_MAX_BYTES = 16 << 20 };
    const value *config = NULL;
    char *data = NULL, *name = path_join(r->ctx, path, "config.json");
    size_t length;
    arena a;
    tare_status status = TARE_OK;

    arena_init(&a, r->ctx);
    TRY(name ? TARE_OK : TARE_E_MEMORY);
    TRY(file_read_all(r->ctx, name, CONFIG_MAX_BYTES, &data, &length));
    TRY(json_parse(r->ctx, &a, data, length, name, JSON_PYTHON, &config));
    put_geometry(r, config);
done:
    mem_free(r->ctx, data);
    mem_free(r->ctx, name);
    arena_free(&a);
    return status;
}

static tare_status inspect_checkpoint(report *r, const char *path)
{
    checkpoint *c = NULL;
    tally by_dtype[TARE_DTYPE_COUNT] = {{0}}, all = {0};
    tare_status status = TARE_OK;

    TRY(checkpoint_open(r->ctx, path, &c));
    put_text(r, "kind", "checkpoint");
    TRY(inspect_config(r, path));
    for (size_t i = 0; i < checkpoint_count(c); i++) {
        add_to(&by_dtype[checkpoint_at(c, i)->dtype], checkpoint_at(c, i));
        add_to(&all, checkpoint_at(c, i));
    }
    put_number(r, "weight_files", checkpoint_file_count(c));
    put_number(r, "weight_file_bytes", checkpoint_bytes(c));
    open_group(r, "dtypes");
    for (int i = 0; i < TARE_DTYPE_COUNT; i++)
        if (by_dtype[i].tensors > 0)
            put_counts(r, dtype_name((tare_dtype)i), by_dtype[i].tensors, by_dtype[i].parameters,
                       by_dtype[i].bytes);
    put_counts(r, "total", all.tensors, all.parameters, all.bytes);
    close_group(r);
done:
    checkpoint_close(c);
    return status;
}

static tare_status inspect_path(report *r, const char *path)
{
    bool is_output;
    tare_status status = TARE_OK;
    if (!path_is_folder(path))
        return str_ends_with(path, ".npy") ? inspect_npy(r, path) : inspect_safetensors(r, path);
    TRY(inspect_output(r, path, &is_output));
    if (!is_output)
        TRY(inspect_checkpoint(r, path));
done:
    return status;
}

tare_status tare_inspect(tare_context *ctx, const char *path, bool json,
                         void (*line)(void *user, const char *text), void *user)
{
    report r = {.ctx = ctx, .json = json, .first = true, .line = line, .user = user};
    tare_status status = TARE_OK;
    buffer_init(&r.text, ctx);
    if (json)
        buffer_putc(&r.text, '{');
    TRY(inspect_path(&r, path));
    if (json) {
        buffer_putc(&r.text, '}');
        end_line(&r);
    }
    status = r.text.status;
done:
    buffer_free(&r.text);
    return status;
}
