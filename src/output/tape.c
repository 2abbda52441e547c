/* Keeping the calls of a run, and making them again. */
#include "output/tape.h"

#include <string.h>

#include "base/progress.h"
#include "output/output_internal.h"

enum { ALIGN = 16 };

/* One call of output_write_*. Its arrays lie behind each other in the file, each at a multiple of
 * ALIGN. */
typedef struct tape_write {
    size_t unit;
    uint64_t place, size;  /* in the file, all arrays */
    uint64_t first, count; /* FLOAT: bytes; linear: rows */
    unsigned parts;        /* of a linear: 1 << tensor_role */
    bool has_bias;         /* a norm */
} tape_write;

struct output_tape {
    tare_context *ctx;
    arena arena; /* names; that of the output, once it is finished */
    char *folder;
    scratch_file *file;
    uint64_t end;
    output_options options;
    output_unit *units; /* mem_free */
    size_t num_units;
    const char **float_linears; /* mem_free */
    size_t num_float_linears;
    tape_write *writes; /* mem_free */
    size_t num_writes, capacity;
    bool complete;
};

typedef struct piece {
    const void *data;
    uint64_t size;
} piece;

static uint64_t aligned(uint64_t at)
{
    return (at + ALIGN - 1) / ALIGN * ALIGN;
}

tare_status output_tape_create(tare_context *ctx, const char *folder, output_tape **out)
{
    output_tape *t = *out = mem_calloc(ctx, 1, sizeof *t);
    if (!t)
        return TARE_E_MEMORY;
    t->ctx = ctx;
    arena_init(&t->arena, ctx);
    t->folder = mem_strdup(ctx, folder);
    if (t->folder)
        return TARE_OK;
    *out = NULL;
    output_tape_free(t);
    return TARE_E_MEMORY;
}

void output_tape_free(output_tape *t)
{
    if (!t)
        return;
    scratch_free(t->file);
    mem_free(t->ctx, t->units);
    mem_free(t->ctx, t->float_linears);
    mem_free(t->ctx, t->writes);
    mem_free(t->ctx, t->folder);
    arena_free(&t->arena);
    mem_free(t->ctx, t);
}

uint64_t output_tape_bytes(const output_tape *t)
{
    return t->end;
}

bool output_tape_complete(const output_tape *t)
{
    return t->complete;
}

/* ---- keeping ---- */

static uint64_t linear_bytes(const linear_form *l)
{
    uint64_t bytes = 0;
    for (int part = 0; part < TENSOR_COUNT; part++)
        if (form_has_part(l, (tensor_role)part))
            bytes += aligned(part_bytes(l, (tensor_role)part, l->n));
    return bytes;
}

/* About what all units will take, to know early whether it fits. */
static uint64_t planned_bytes(const output *o)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < o->num_units; i++) {
        const output_unit *u = &o->units[i];
        if (u->kind == UNIT_FLOAT)
            bytes += aligned(u->tensor.bytes);
        else if (u->kind == UNIT_NORM)
            bytes += 2 * ALIGN + u->tensor.shape[0] * 2 * sizeof(float);
        else if (u->kind == UNIT_LINEAR)
            bytes += linear_bytes(&u->linear);
        else
            bytes += (u->heads[0] + u->heads[1] + u->heads[2]) * sizeof(float) + FA_KINDS * ALIGN;
    }
    return bytes;
}

tare_status output_tape_begin(output *o)
{
    output_tape *t = o->options.tape;
    return scratch_create(o->ctx, t->folder, planned_bytes(o), &t->file);
}

static tare_status keep(output *o, const output_unit *u, tape_write *w, const piece *pieces,
                        size_t count)
{
    output_tape *t = o->options.tape;
    tare_status status = TARE_OK;
    w->unit = (size_t)(u - o->units);
    w->place = aligned(t->end);
    for (size_t i = 0; i < count; i++) {
        uint64_t at = w->place + aligned(w->size);
        if (pieces[i].size == 0)
            continue;
        TRY(scratch_write(t->file, at, pieces[i].data, pieces[i].size));
        w->size = at - w->place + pieces[i].size;
    }
    TRY(mem_grow(o->ctx, (void **)&t->writes, &t->capacity, t->num_writes + 1, sizeof *t->writes));
    t->writes[t->num_writes++] = *w;
    t->end = w->place + w->size;
done:
    return status;
}

tare_status output_tape_float(output *o, const output_unit *u, uint64_t offset, const void *data,
                              size_t size)
{
    return keep(o, u, &(tape_write){.first = offset, .count = size}, &(piece){data, size}, 1);
}

tare_status output_tape_norm(output *o, const output_unit *u, const void *weight, const float *bias)
{
    const piece pieces[] = {{weight, u->tensor.bytes},
                            {bias, bias ? u->tensor.shape[0] * sizeof(float) : 0}};
    return keep(o, u, &(tape_write){.has_bias = bias != NULL}, pieces, 2);
}

tare_status output_tape_linear(output *o, const output_unit *u, const linear_parts *parts)
{
    tape_write w = {.first = parts->first, .count = parts->count};
    piece pieces[TENSOR_COUNT] = {{0}};
    for (int part = 0; part < TENSOR_COUNT; part++) {
        if (!parts->data[part])
            continue;
        w.parts |= 1u << part;
        pieces[part] = (piece){parts->data[part],
                               part_bytes(&u->linear, (tensor_role)part, parts->count)};
    }
    return keep(o, u, &w, pieces, TENSOR_COUNT);
}

tare_status output_tape_fa(output *o, const output_unit *u, const float *const scales[FA_KINDS])
{
    piece pieces[FA_KINDS];
    for (int i = 0; i < FA_KINDS; i++)
        pieces[i] = (piece){scales[i], u->heads[i] * sizeof(float)};
    return keep(o, u, &(tape_write){0}, pieces, FA_KINDS);
}

static tare_status keep_text(output_tape *t, const char **text)
{
    if (*text && !(*text = arena_strndup(&t->arena, *text, strlen(*text))))
        return TARE_E_MEMORY;
    return TARE_OK;
}

/* Takes over what the output knows. */
tare_status output_tape_finish(output *o)
{
    output_tape *t = o->options.tape;
    tare_status status = TARE_OK;
    arena_free(&t->arena);
    t->arena = o->arena;
    arena_init(&o->arena, o->ctx);
    t->units = o->units;
    t->num_units = o->num_units;
    t->float_linears = o->float_linears;
    t->num_float_linears = o->num_float_linears;
    o->units = NULL;
    o->float_linears = NULL;
    o->num_units = o->num_float_linears = 0;
    t->options = o->options;
    TRY(keep_text(t, &t->options.model_dir));
    TRY(keep_text(t, &t->options.config_json));
    t->complete = true;
done:
    return status;
}

/* ---- playing ---- */

static tare_status declare(const output_unit *u, output *o)
{
    const linear_form *l = &u->linear;
    tensor_info bias = {.name = u->name, .rank = 1, .shape = {l->n}, .dtype = l->bias_dtype};
    switch (u->kind) {
    case UNIT_FLOAT:
        return u->new_bias   ? output_declare_new_bias(o, &u->tensor)
               : u->kv_cache ? output_declare_kv_cache(o, &u->tensor)
                             : output_declare_float(o, &u->tensor);
    case UNIT_NORM:
        return output_declare_norm(o, &u->tensor, u->norm);
    case UNIT_FA:
        return output_declare_fa(o, u->name, u->heads);
    default:
        break;
    }
    return output_declare_linear(o, u->name, l, l->has_bias ? &bias : NULL, u->is_head);
}

/* The next array of `size` bytes; NULL if there is none. */
static void *next_piece(char **at, const char *begin, uint64_t size)
{
    char *data = *at;
    if (size == 0)
        return NULL;
    *at += aligned((uint64_t)(data - begin) + size) - (uint64_t)(data - begin);
    return data;
}

static tare_status write_linear(output *o, const output_unit *u, const tape_write *w, char *data)
{
    linear_parts parts = {.first = w->first, .count = w->count};
    char *at = data;
    for (int part = 0; part < TENSOR_COUNT; part++)
        if (w->parts >> part & 1)
            parts.data[part] = next_piece(&at, data,
                                          part_bytes(&u->linear, (tensor_role)part, w->count));
    return output_write_linear(o, u->name, &parts);
}

static tare_status write_fa(output *o, const output_unit *u, char *data)
{
    const float *scales[FA_KINDS];
    char *at = data;
    for (int i = 0; i < FA_KINDS; i++)
        scales[i] = next_piece(&at, data, u->heads[i] * sizeof(float));
    return output_write_fa(o, u->name, scales);
}

static tare_status write_norm(output *o, const output_unit *u, const tape_write *w, char *data)
{
    char *at = data;
    const void *weight = next_piece(&at, data, u->tensor.bytes);
    const float *bias = next_piece(&at, data, w->has_bias ? u->tensor.shape[0] * sizeof(float) : 0);
    return output_write_norm(o, u->name, weight, bias);
}

static tare_status write_again(const output_tape *t, const tape_write *w, output *o)
{
    tare_status status = TARE_OK;
    const output_unit *u = &t->units[w->unit];
    char *data = mem_alloc(t->ctx, w->size);
    TRY(data ? TARE_OK : TARE_E_MEMORY);
    TRY(context_check_cancelled(t->ctx));
    TRY(scratch_read(t->file, w->place, data, w->size));
    if (u->kind == UNIT_FLOAT)
        TRY(output_write_float(o, u->name, w->first, data, w->count));
    else if (u->kind == UNIT_NORM)
        TRY(write_norm(o, u, w, data));
    else if (u->kind == UNIT_FA)
        TRY(write_fa(o, u, data));
    else
        TRY(write_linear(o, u, w, data));
done:
    mem_free(t->ctx, data);
    return status;
}

static tare_status play(const output_tape *t, output *o)
{
    tare_status status = TARE_OK;
    progress p;
    for (size_t i = 0; i < t->num_units; i++)
        TRY(declare(&t->units[i], o));
    for (size_t i = 0; i < t->num_float_linears; i++)
        TRY(output_declare_float_linear(o, t->float_linears[i]));
    TRY(output_begin(o));
    progress_begin(&p, t->ctx, "save", "tensor", t->num_writes);
    for (size_t i = 0; i < t->num_writes; i++) {
        TRY(write_again(t, &t->writes[i], o));
        progress_unit_done(&p);
    }
done:
    return status;
}

tare_status output_tape_play(const output_tape *t, const output_options *how, const char *run_json,
                             uint64_t *bytes)
{
    tare_status status = TARE_OK;
    output *o = NULL;
    output_options options = t->options;
    options.tape = NULL;
    options.before_publish = NULL;
    options.journal = false;
    options.dir = how->dir;
    options.save = how->save;
    options.part_file_size = how->part_file_size;
    options.safetensors_name = how->safetensors_name;
    options.json_name = how->json_name;
    options.overwrite = how->overwrite;
    options.verify = how->verify;
    TRY(output_open(t->ctx, &options, &o));
    TRY(play(t, o));
    TRY(output_finish(o, run_json, bytes));
done:
    output_free(o);
    return status;
}
