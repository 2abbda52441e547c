/* A pickle machine for dicts of numpy arrays or torch tensors. It has a stack, a memo, and exactly
 * two kinds of objects: dtypes and arrays; the payload of an array stays in the file. Nothing is
 * called: the globals it knows are numbers. */
#include <string.h>

#include "file/npy_torch.h"

static bool is_int(const pvalue *v, int64_t number)
{
    return v->kind == V_INT && v->number == number;
}

static bool is_text(const machine *m, const pvalue *v, const char *text)
{
    return v->kind == V_STRING && strcmp(m->table->text.data + v->at, text) == 0;
}

/* ---- globals */

static const struct {
    const char *module, *name;
    global number;
} globals[] = {{"numpy.core.multiarray", "_reconstruct", G_RECONSTRUCT},
               {"numpy._core.multiarray", "_reconstruct", G_RECONSTRUCT},
               {"numpy", "ndarray", G_NDARRAY},
               {"numpy", "dtype", G_DTYPE},
               {"torch._utils", "_rebuild_tensor_v2", G_TENSOR},
               {"torch.storage", "_load_from_bytes", G_STORAGE},
               {"collections", "OrderedDict", G_HOOKS}};

static tare_status push_named(machine *m, const char *module, const char *name)
{
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (strcmp(module, globals[i].module) == 0 && strcmp(name, globals[i].name) == 0)
            return machine_push(m, V_GLOBAL, globals[i].number);
    return FAIL_AT(m, "it wants to use %.100s.%.100s, which is refused", module, name);
}

static tare_status stack_global(machine *m)
{
    if (m->depth < 2 || machine_top(m, 0)->kind != V_STRING || machine_top(m, 1)->kind != V_STRING)
        return machine_reject(m, "a global has no name");
    buffer *text = &m->table->text;
    size_t module = (size_t)machine_top(m, 1)->at, name = (size_t)machine_top(m, 0)->at;
    m->depth -= 2;
    tare_status status = push_named(m, text->data + module, text->data + name);
    /* As in machine_forget_tuple: the two names are the newest strings, so they can go. */
    if (m->memo_count == 0 && module < name) {
        text->length = module;
        text->data[module] = '\0';
    }
    return status;
}

/* The opcode of older protocols: two lines of text. */
static tare_status text_global(machine *m)
{
    char lines[2][64];
    for (int i = 0; i < 2; i++) {
        for (size_t n = 0;; n++) {
            tare_status status = machine_fetch(m, &lines[i][n], 1);
            if (status != TARE_OK)
                return status;
            if (lines[i][n] == '\n') {
                lines[i][n] = '\0';
                break;
            }
            if (lines[i][n] == '\0' || n + 1 == sizeof lines[i])
                return machine_reject(m, "a global's name is too long");
        }
    }
    return push_named(m, lines[0], lines[1]);
}

/* ---- objects */

static const struct {
    const char *code;
    tare_dtype dtype;
} dtype_codes[] = {
    {"i1", TARE_I8}, {"i4", TARE_I32}, {"i8", TARE_I64}, {"f2", TARE_F16}, {"f4", TARE_F32}};

/* dtype(code, False, True) */
static tare_status new_dtype(machine *m, const pvalue *args)
{
    if (args->size != 3 || machine_item(m, args, 0)->kind != V_STRING ||
        machine_item(m, args, 1)->kind != V_BOOL || machine_item(m, args, 2)->kind != V_BOOL)
        return machine_reject(m, "a dtype has wrong arguments");
    dtype_object object = {.is_object = is_text(m, machine_item(m, args, 0), "O8")};
    size_t i = 0, codes = sizeof dtype_codes / sizeof *dtype_codes;
    while (!object.is_object && i < codes &&
           !is_text(m, machine_item(m, args, 0), dtype_codes[i].code))
        i++;
    if (i == codes)
        return FAIL_AT(m, "arrays of dtype '%.20s' are not supported (i1 i4 i8 f2 f4 are)",
                       m->table->text.data + machine_item(m, args, 0)->at);
    if (!object.is_object)
        object.dtype = dtype_codes[i].dtype;
    if (m->dtype_count >= NPY_MAX_STACK)
        return machine_reject(m, "too many dtypes");
    tare_status status = mem_grow(m->ctx, &m->dtypes, &m->dtype_room, m->dtype_count + 1,
                                  sizeof object);
    if (status != TARE_OK)
        return status;
    ((dtype_object *)m->dtypes)[m->dtype_count] = object;
    *machine_top(m, 0) = (pvalue){.kind = V_DTYPE, .at = m->dtype_count++};
    return TARE_OK;
}

/* In place of the topmost value. */
static tare_status add_array(machine *m, const array_object *array)
{
    if (m->array_count >= NPY_MAX_STACK)
        return machine_reject(m, "too many arrays");
    tare_status status = mem_grow(m->ctx, &m->arrays, &m->array_room, m->array_count + 1,
                                  sizeof *array);
    if (status != TARE_OK)
        return status;
    ((array_object *)m->arrays)[m->array_count] = *array;
    *machine_top(m, 0) = (pvalue){.kind = V_ARRAY, .at = m->array_count++};
    return TARE_OK;
}

/* _reconstruct(ndarray, (0,), b'b') */
static tare_status new_array(machine *m, const pvalue *args)
{
    const pvalue *shape = args->size == 3 ? machine_item(m, args, 1) : NULL;
    if (!shape || machine_item(m, args, 0)->kind != V_GLOBAL ||
        machine_item(m, args, 0)->number != G_NDARRAY || shape->kind != V_TUPLE ||
        shape->size != 1 || !is_int(machine_item(m, shape, 0), 0) ||
        machine_item(m, args, 2)->kind != V_BYTES || machine_item(m, args, 2)->size != 1)
        return machine_reject(m, "an array has wrong arguments");
    return add_array(m, &(array_object){.state = NEW});
}

static tare_status take_shape(machine *m, const pvalue *shape, npy_entry *entry, size_t *bytes)
{
    for (size_t i = 0; i < shape->size; i++) {
        const pvalue *v = machine_item(m, shape, i);
        if (v->kind != V_INT || v->number < 0 || (uint64_t)v->number > SIZE_MAX)
            return machine_reject(m, "an array's shape is not a tuple of sizes");
        entry->shape[i] = (size_t)v->number;
        if (!size_mul(*bytes, entry->shape[i], bytes))
            return machine_reject(m, "an array's shape is too large");
    }
    entry->rank = (int)shape->size;
    return TARE_OK;
}

/* Steps in elements, one for each size: those of an array in C order? Where there is one element or
 * none, a step leads nowhere and may be anything. */
static bool is_contiguous(const machine *m, const npy_entry *entry, const pvalue *strides)
{
    uint64_t step = 1;
    for (size_t i = strides->size; i-- > 0; step *= entry->shape[i])
        if (entry->shape[i] != 1 && !is_int(machine_item(m, strides, i), (int64_t)step))
            return entry->bytes == 0;
    return true;
}

/* _rebuild_tensor_v2(storage, offset in elements, shape, strides, requires_grad, OrderedDict()) */
static tare_status new_tensor(machine *m, const pvalue *args)
{
    static const value_kind KINDS[] = {V_STORAGE, V_INT, V_TUPLE, V_TUPLE, V_BOOL, V_HOOKS};
    bool right = args->size == sizeof KINDS / sizeof *KINDS;
    for (size_t i = 0; right && i < args->size; i++)
        right = machine_item(m, args, i)->kind == KINDS[i];
    if (!right || machine_item(m, args, 3)->size != machine_item(m, args, 2)->size)
        return machine_reject(m, "a tensor has wrong arguments");
    const pvalue storage = *machine_item(m, args, 0);
    int64_t first = machine_item(m, args, 1)->number;
    tare_dtype dtype = (tare_dtype)storage.low;
    array_object tensor = {.state = BUILT, .entry = {.dtype = dtype, .torch = true}};
    size_t bytes = dtype_size(dtype), elements = (size_t)(storage.size / bytes);
    tare_status status = take_shape(m, machine_item(m, args, 2), &tensor.entry, &bytes);
    if (status != TARE_OK)
        return status;
    tensor.entry.bytes = bytes;
    if (!is_contiguous(m, &tensor.entry, machine_item(m, args, 3)))
        return machine_reject(m, "a tensor is not stored row by row");
    if (first < 0 || (uint64_t)first > elements ||
        bytes > storage.size - (uint64_t)first * dtype_size(dtype))
        return machine_reject(m, "a tensor reaches beyond its storage");
    tensor.entry.offset = storage.at + (uint64_t)first * dtype_size(dtype);
    return add_array(m, &tensor);
}

/* What a global is called with becomes what it would return. */
static tare_status call(machine *m, int64_t callable, const pvalue *args)
{
    switch (callable) {
    case G_RECONSTRUCT:
        return new_array(m, args);
    case G_DTYPE:
        return new_dtype(m, args);
    case G_TENSOR:
        return new_tensor(m, args);
    case G_STORAGE:
        if (args->size != 1)
            return machine_reject(m, "a torch storage that is not bytes");
        return torch_load_storage(m, machine_item(m, args, 0), machine_top(m, 0));
    case G_HOOKS:
        if (args->size != 0)
            return machine_reject(m, "an OrderedDict that is not empty");
        *machine_top(m, 0) = (pvalue){.kind = V_HOOKS};
        return TARE_OK;
    default:
        return machine_reject(m, "a call of something unknown");
    }
}

static tare_status reduce(machine *m)
{
    if (m->depth < 2 || machine_top(m, 0)->kind != V_TUPLE || machine_top(m, 1)->kind != V_GLOBAL)
        return machine_reject(m, "a call of something unknown");
    pvalue args = *machine_top(m, 0);
    m->depth--;
    tare_status status = call(m, machine_top(m, 0)->number, &args);
    machine_forget_tuple(m, &args);
    return status;
}

/* (3, order, None, None, None, -1, -1, flags) */
static tare_status build_dtype(machine *m, dtype_object *object, const pvalue *state)
{
    bool one_byte = object->is_object || dtype_size(object->dtype) == 1;
    bool right = state->size == 8 && is_int(machine_item(m, state, 0), 3) &&
                 is_text(m, machine_item(m, state, 1), one_byte ? "|" : "<") &&
                 is_int(machine_item(m, state, 5), -1) && is_int(machine_item(m, state, 6), -1) &&
                 is_int(machine_item(m, state, 7), object->is_object ? 63 : 0);
    for (size_t i = 2; right && i < 5; i++)
        right = machine_item(m, state, i)->kind == V_NONE;
    if (!right || object->built)
        return machine_reject(m, "a dtype of another byte order or kind");
    object->built = true;
    return TARE_OK;
}

/* (1, shape, dtype, False, payload) */
static tare_status build_array(machine *m, array_object *array, const pvalue *state)
{
    if (state->size != 5 || !is_int(machine_item(m, state, 0), 1) ||
        machine_item(m, state, 1)->kind != V_TUPLE || machine_item(m, state, 2)->kind != V_DTYPE ||
        machine_item(m, state, 3)->kind != V_BOOL || array->state != NEW)
        return machine_reject(m, "an array has a wrong state");
    const pvalue *shape = machine_item(m, state, 1), *payload = machine_item(m, state, 4);
    const dtype_object *dtype = (const dtype_object *)m->dtypes + machine_item(m, state, 2)->at;
    if (!dtype->built)
        return machine_reject(m, "an array has a wrong state");
    if (machine_item(m, state, 3)->number)
        return machine_reject(m, "an array is stored by columns (Fortran order)");
    if (dtype->is_object) {
        if (shape->size != 0 || payload->kind != V_LIST || !m->dict_in_list)
            return machine_reject(m, "an array of objects that is not the dict");
        array->state = ROOT;
        return TARE_OK;
    }
    if (payload->kind != V_BYTES)
        return machine_reject(m, "an array has no data");
    size_t bytes = dtype_size(dtype->dtype);
    tare_status status = take_shape(m, shape, &array->entry, &bytes);
    if (status == TARE_OK && bytes != payload->size)
        status = FAIL_AT(m, "an array of %zu bytes has %llu bytes of data", bytes,
                         (unsigned long long)payload->size);
    array->entry.dtype = dtype->dtype;
    array->entry.offset = payload->at;
    array->entry.bytes = payload->size;
    array->state = BUILT;
    return status;
}

static tare_status build(machine *m)
{
    if (m->depth < 2 || machine_top(m, 0)->kind != V_TUPLE ||
        (machine_top(m, 1)->kind != V_DTYPE && machine_top(m, 1)->kind != V_ARRAY))
        return machine_reject(m, "a state for something unknown");
    pvalue state = *machine_top(m, 0);
    m->depth--;
    uint64_t at = machine_top(m, 0)->at;
    tare_status status = machine_top(m, 0)->kind == V_DTYPE
                             ? build_dtype(m, (dtype_object *)m->dtypes + at, &state)
                             : build_array(m, (array_object *)m->arrays + at, &state);
    machine_forget_tuple(m, &state);
    return status;
}

/* ---- list and dict */

static tare_status add_entry(machine *m, const pvalue *key, const pvalue *v)
{
    tare_status status = TARE_OK;
    npy_table *t = m->table;
    if (key->kind != V_STRING || v->kind != V_ARRAY)
        return machine_reject(m, "an entry is not a named array");
    const array_object *array = (const array_object *)m->arrays + v->at;
    if (array->state != BUILT)
        return machine_reject(m, "an entry is not a named array");
    if (t->count >= NPY_MAX_STACK)
        return machine_reject(m, "too many entries");
    TRY(mem_grow(m->ctx, &m->entries, &m->entry_room, t->count + 1, sizeof(npy_entry)));
    t->entries = m->entries;
    TRY(mem_grow(m->ctx, &m->key_at, &m->key_room, t->count + 1, sizeof(size_t)));
    t->key_at = m->key_at;
    t->entries[t->count] = array->entry;
    t->key_at[t->count++] = (size_t)key->at;
done:
    return status;
}

static tare_status set_item(machine *m)
{
    if (m->depth < 3 || machine_top(m, 2)->kind != V_DICT)
        return machine_reject(m, "an entry of no dict");
    tare_status status = add_entry(m, machine_top(m, 1), machine_top(m, 0));
    if (m->memo_count == 0)
        m->array_count = (size_t)machine_top(m, 0)->at; /* as in machine_forget_tuple */
    m->depth -= 2;
    return status;
}

static tare_status set_items(machine *m)
{
    tare_status status = TARE_OK;
    size_t count = 0;
    while (count < m->depth && machine_top(m, count)->kind != V_MARK)
        count++;
    if (count + 1 >= m->depth || count % 2 || machine_top(m, count + 1)->kind != V_DICT)
        return machine_reject(m, "entries of no dict");
    for (size_t i = count; status == TARE_OK && i > 0; i -= 2)
        status = add_entry(m, machine_top(m, i - 1), machine_top(m, i - 2));
    m->depth -= count + 1;
    return status;
}

static tare_status append(machine *m)
{
    if (m->depth < 2 || machine_top(m, 1)->kind != V_LIST || machine_top(m, 0)->kind != V_DICT ||
        m->dict_in_list)
        return machine_reject(m, "a list of something else than one dict");
    m->dict_in_list = true;
    m->depth--;
    return TARE_OK;
}

static tare_status push_container(machine *m, value_kind kind, bool *exists)
{
    if (*exists)
        return machine_reject(m, "more than one dict or list");
    *exists = true;
    return machine_push(m, kind, 0);
}

/* ---- opcodes, named in the comments as in Python's pickletools */

static tare_status protocol(machine *m)
{
    uint64_t version;
    tare_status status = machine_fetch_number(m, 1, &version);
    if (status == TARE_OK && (version < 2 || version > 4))
        return machine_reject(m, "a pickle of an unknown protocol");
    return status;
}

static tare_status frame(machine *m)
{
    uint64_t length;
    tare_status status = machine_fetch_number(m, 8, &length);
    if (status == TARE_OK && length > m->end - m->at)
        return machine_reject(m, "the file is truncated");
    return status;
}

static tare_status stop(machine *m)
{
    bool right = m->depth == 1 && machine_top(m, 0)->kind == V_ARRAY &&
                 ((const array_object *)m->arrays)[machine_top(m, 0)->at].state == ROOT;
    m->stopped = true;
    if (!right)
        return machine_reject(m, "the pickle ends early");
    return m->at == m->end ? TARE_OK : machine_reject(m, "bytes follow the pickle");
}

static tare_status step_value(machine *m, unsigned char opcode)
{
    switch (opcode) {
    case 'N': /* NONE */
        return machine_push(m, V_NONE, 0);
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        return machine_push(m, V_BOOL, opcode == 0x88);
    case 'K': /* BININT1 */
        return machine_push_int(m, 1, false);
    case 'M': /* BININT2 */
        return machine_push_int(m, 2, false);
    case 'J': /* BININT */
        return machine_push_int(m, 4, true);
    case 0x8a: /* LONG1 */
        return machine_push_long(m);
    case 0x8c: /* SHORT_BINUNICODE */
        return machine_push_string(m, 1);
    case 'X': /* BINUNICODE */
        return machine_push_string(m, 4);
    case 'C': /* SHORT_BINBYTES */
        return machine_push_bytes(m, 1);
    case 'B': /* BINBYTES */
        return machine_push_bytes(m, 4);
    case 0x8e: /* BINBYTES8 */
        return machine_push_bytes(m, 8);
    case ']': /* EMPTY_LIST */
        return push_container(m, V_LIST, &m->has_list);
    case '}': /* EMPTY_DICT */
        return push_container(m, V_DICT, &m->has_dict);
    default:
        m->at--; /* for the message */
        return FAIL_AT(
            m, "pickle opcode 0x%02x is refused (not a dict of arrays as numpy saves it)", opcode);
    }
}

static tare_status step(machine *m, unsigned char opcode)
{
    switch (opcode) {
    case 0x80: /* PROTO */
        return protocol(m);
    case 0x95: /* FRAME */
        return frame(m);
    case '(': /* MARK */
        return machine_push(m, V_MARK, 0);
    case ')': /* EMPTY_TUPLE */
        return machine_make_tuple(m, 0);
    case 0x85: /* TUPLE1 */
    case 0x86: /* TUPLE2 */
    case 0x87: /* TUPLE3 */
        return machine_make_tuple(m, (size_t)opcode - 0x84);
    case 't': /* TUPLE */
        return machine_make_marked_tuple(m);
    case 'c': /* GLOBAL */
        return text_global(m);
    case 0x93: /* STACK_GLOBAL */
        return stack_global(m);
    case 'R': /* REDUCE */
        return reduce(m);
    case 'b': /* BUILD */
        return build(m);
    case 's': /* SETITEM */
        return set_item(m);
    case 'u': /* SETITEMS */
        return set_items(m);
    case 'a': /* APPEND */
        return append(m);
    case 0x94: /* MEMOIZE */
        return machine_memo_put(m, m->memo_count);
    case 'q': /* BINPUT */
        return machine_memo_put_at(m, 1);
    case 'r': /* LONG_BINPUT */
        return machine_memo_put_at(m, 4);
    case 'h': /* BINGET */
        return machine_memo_get_at(m, 1);
    case 'j': /* LONG_BINGET */
        return machine_memo_get_at(m, 4);
    case '.': /* STOP */
        return stop(m);
    default:
        return step_value(m, opcode);
    }
}

tare_status npy_unpickle(tare_context *ctx, file *f, uint64_t offset, npy_table *table)
{
    tare_status status = TARE_OK;
    machine m = {.ctx = ctx, .file = f, .table = table, .at = offset, .end = file_size(f)};
    if (!(m.window = mem_alloc(ctx, NPY_WINDOW))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    while (!m.stopped) {
        unsigned char opcode;
        TRY(machine_fetch(&m, &opcode, 1));
        TRY(step(&m, opcode));
    }
done:
    mem_free(ctx, m.window);
    mem_free(ctx, m.stack);
    mem_free(ctx, m.memo);
    mem_free(ctx, m.items);
    mem_free(ctx, m.dtypes);
    mem_free(ctx, m.arrays);
    return status;
}
