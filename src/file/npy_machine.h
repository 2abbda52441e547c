/* The machine under npy_unpickle.c: input, stack, memo and tuples of values. Every value costs the
 * file at least one byte, and there are limits on stack, memo and strings, so memory is bounded by
 * what is really there. Every function fails with TARE_E_FORMAT on a malformed pickle. */
#ifndef TARE_FILE_NPY_MACHINE_H
#define TARE_FILE_NPY_MACHINE_H

#include "file/npy_internal.h"

enum {
    NPY_MAX_STACK = 1 << 20,
    NPY_WINDOW = 64 * 1024 /* of the file, held in memory */
};

typedef enum value_kind {
    V_MARK,
    V_NONE,
    V_BOOL,    /* number */
    V_INT,     /* number */
    V_STRING,  /* at, size: in table.text */
    V_BYTES,   /* at, size: in the file */
    V_TUPLE,   /* at, size: in `items` */
    V_GLOBAL,  /* number: which */
    V_DTYPE,   /* at: in `dtypes` */
    V_ARRAY,   /* at: in `arrays`; a torch tensor too */
    V_STORAGE, /* of torch; at, size: its data in the file; low: its tare_dtype */
    V_HOOKS,   /* an empty OrderedDict */
    V_LIST,    /* there is one, */
    V_DICT     /* and one */
} value_kind;

typedef enum global {
    G_RECONSTRUCT,
    G_NDARRAY,
    G_DTYPE,
    G_TENSOR,  /* torch._utils._rebuild_tensor_v2 */
    G_STORAGE, /* torch.storage._load_from_bytes */
    G_HOOKS    /* collections.OrderedDict */
} global;

typedef struct pvalue {
    uint32_t kind;
    uint32_t low; /* of a tuple: where the oldest items it needs begin */
    union {
        uint64_t at;
        int64_t number;
    };
    uint64_t size;
} pvalue;

typedef struct dtype_object {
    bool is_object; /* O8 */
    bool built;
    tare_dtype dtype;
} dtype_object;

typedef struct array_object {
    enum { NEW, BUILT, ROOT } state;
    npy_entry entry;
} array_object;

typedef struct machine {
    tare_context *ctx;
    file *file;
    npy_table *table;
    unsigned char *window; /* [NPY_WINDOW]: bytes window_at.. of the file */
    uint64_t window_at, at, end;
    size_t window_size;
    /* Dynamic arrays of pvalue, dtype_object, array_object, and the two of the table. */
    void *stack, *memo, *items, *dtypes, *arrays, *entries, *key_at;
    size_t depth, memo_count, item_count, dtype_count, array_count;
    size_t stack_room, memo_room, item_room, dtype_room, array_room, entry_room, key_room;
    bool has_list, has_dict, dict_in_list;
    bool stopped;
} machine;

#define FAIL_AT(m, format, ...)                                                                    \
    TARE_FAIL((m)->ctx, TARE_E_FORMAT, "%s: byte %llu: " format, file_path((m)->file),             \
              (unsigned long long)(m)->at, __VA_ARGS__)

tare_status machine_reject(machine *m, const char *what);

/* ---- input: `size` bytes; a little-endian number of at most 8 bytes */
tare_status machine_fetch(machine *m, void *out, size_t size);
tare_status machine_fetch_number(machine *m, int bytes, uint64_t *out);

/* ---- stack: the value `below` the topmost (which must be there); pushing. The argument of the
 * last four is the number of bytes that the number or the length takes in the file. */
static inline pvalue *machine_top(machine *m, size_t below)
{
    return (pvalue *)m->stack + m->depth - 1 - below;
}
tare_status machine_push(machine *m, value_kind kind, int64_t number);
tare_status machine_push_int(machine *m, int bytes, bool is_signed);
tare_status machine_push_long(machine *m);
tare_status machine_push_string(machine *m, int length_bytes);
tare_status machine_push_bytes(machine *m, int length_bytes);

/* ---- memo: stores the topmost value; pushes a stored one */
tare_status machine_memo_put(machine *m, uint64_t index);
tare_status machine_memo_put_at(machine *m, int bytes);
tare_status machine_memo_get_at(machine *m, int bytes);

/* ---- tuples: the `count` topmost values, or those down to the mark, become one */
tare_status machine_make_tuple(machine *m, size_t count);
tare_status machine_make_marked_tuple(machine *m);
/* Call it when a tuple taken off the stack is not needed any more. */
void machine_forget_tuple(machine *m, const pvalue *tuple);
static inline const pvalue *machine_item(const machine *m, const pvalue *tuple, size_t index)
{
    return (const pvalue *)m->items + tuple->at + index;
}

#endif
