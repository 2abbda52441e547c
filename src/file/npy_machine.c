#include "file/npy_machine.h"

#include <string.h>

enum {
    MAX_MEMO = 1 << 22,
    MAX_ITEMS = 1 << 24, /* of all tuples */
    MAX_STRING = 64 * 1024,
    MAX_TUPLE = 8 /* the state of a dtype; also the highest rank */
};

tare_status machine_reject(machine *m, const char *what)
{
    return FAIL_AT(m, "%s (not a dict of arrays as numpy saves it)", what);
}

/* ---- input */

tare_status machine_fetch(machine *m, void *out, size_t size)
{
    unsigned char *next = out;
    if (size > m->end - m->at)
        return machine_reject(m, "the file is truncated");
    while (size > 0) {
        if (m->at < m->window_at || m->at - m->window_at >= m->window_size) {
            uint64_t left = m->end - m->at;
            size_t want = left < NPY_WINDOW ? (size_t)left : NPY_WINDOW;
            m->window_size = 0; /* its content is undefined if the read fails */
            tare_status status = file_read_at(m->file, m->at, m->window, want);
            if (status != TARE_OK)
                return status;
            m->window_at = m->at;
            m->window_size = want;
        }
        size_t from = (size_t)(m->at - m->window_at);
        size_t part = m->window_size - from < size ? m->window_size - from : size;
        memcpy(next, m->window + from, part);
        next += part;
        m->at += part;
        size -= part;
    }
    return TARE_OK;
}

tare_status machine_fetch_number(machine *m, int bytes, uint64_t *out)
{
    unsigned char raw[8];
    tare_status status = machine_fetch(m, raw, (size_t)bytes);
    *out = 0;
    for (int i = bytes - 1; status == TARE_OK && i >= 0; i--)
        *out = *out << 8 | raw[i];
    return status;
}

/* ---- stack */

static tare_status push(machine *m, pvalue v)
{
    if (m->depth >= NPY_MAX_STACK)
        return machine_reject(m, "too many values on the stack");
    tare_status status = mem_grow(m->ctx, &m->stack, &m->stack_room, m->depth + 1, sizeof(pvalue));
    if (status == TARE_OK)
        ((pvalue *)m->stack)[m->depth++] = v;
    return status;
}

tare_status machine_push(machine *m, value_kind kind, int64_t number)
{
    return push(m, (pvalue){.kind = kind, .number = number});
}

tare_status machine_push_int(machine *m, int bytes, bool is_signed)
{
    uint64_t raw;
    tare_status status = machine_fetch_number(m, bytes, &raw);
    if (status != TARE_OK)
        return status;
    int shift = 64 - 8 * bytes;
    int64_t number = (int64_t)raw;
    if (is_signed && bytes > 0)
        number = (int64_t)(raw << shift) >> shift;
    return machine_push(m, V_INT, number);
}

tare_status machine_push_long(machine *m)
{
    uint64_t bytes;
    tare_status status = machine_fetch_number(m, 1, &bytes);
    if (status == TARE_OK && bytes > 8)
        return machine_reject(m, "an integer is too large");
    return status == TARE_OK ? machine_push_int(m, (int)bytes, true) : status;
}

tare_status machine_push_string(machine *m, int length_bytes)
{
    static const char zeros[256];
    tare_status status;
    uint64_t length;
    buffer *text = &m->table->text;
    size_t start = text->length;
    if ((status = machine_fetch_number(m, length_bytes, &length)) != TARE_OK)
        return status;
    if (length > MAX_STRING || length > m->end - m->at)
        return machine_reject(m, "a string is too long");
    for (size_t left = (size_t)length + 1; left > 0;) {
        size_t part = left < sizeof zeros ? left : sizeof zeros;
        buffer_append(text, zeros, part);
        left -= part;
    }
    if (text->status != TARE_OK)
        return text->status;
    if ((status = machine_fetch(m, text->data + start, (size_t)length)) != TARE_OK)
        return status;
    if (memchr(text->data + start, '\0', (size_t)length) ||
        !utf8_valid(text->data + start, (size_t)length))
        return machine_reject(m, "a string is not UTF-8 text");
    return push(m, (pvalue){.kind = V_STRING, .at = start, .size = length});
}

tare_status machine_push_bytes(machine *m, int length_bytes)
{
    uint64_t length;
    tare_status status = machine_fetch_number(m, length_bytes, &length);
    if (status != TARE_OK)
        return status;
    if (length > m->end - m->at)
        return machine_reject(m, "the file is truncated: it ends inside the data of an array");
    status = push(m, (pvalue){.kind = V_BYTES, .at = m->at, .size = length});
    m->at += length;
    return status;
}

/* ---- memo */

tare_status machine_memo_put(machine *m, uint64_t index)
{
    /* Picklers count up; a gap would only serve to make the memo large. */
    if (m->depth == 0 || machine_top(m, 0)->kind == V_MARK || index > m->memo_count ||
        index >= MAX_MEMO)
        return machine_reject(m, "a memo entry is out of order");
    if (index == m->memo_count) {
        tare_status status = mem_grow(m->ctx, &m->memo, &m->memo_room, m->memo_count + 1,
                                      sizeof(pvalue));
        if (status != TARE_OK)
            return status;
        m->memo_count++;
    }
    ((pvalue *)m->memo)[index] = *machine_top(m, 0);
    return TARE_OK;
}

tare_status machine_memo_put_at(machine *m, int bytes)
{
    uint64_t index;
    tare_status status = machine_fetch_number(m, bytes, &index);
    return status == TARE_OK ? machine_memo_put(m, index) : status;
}

tare_status machine_memo_get_at(machine *m, int bytes)
{
    uint64_t index;
    tare_status status = machine_fetch_number(m, bytes, &index);
    if (status != TARE_OK)
        return status;
    if (index >= m->memo_count)
        return machine_reject(m, "a memo entry is missing");
    return push(m, ((const pvalue *)m->memo)[index]);
}

/* ---- tuples */

/* The `count` topmost values become one tuple. */
tare_status machine_make_tuple(machine *m, size_t count)
{
    if (count > MAX_TUPLE || count > m->depth)
        return machine_reject(m, "a tuple is too long");
    if (m->item_count > MAX_ITEMS - count)
        return machine_reject(m, "too many tuples");
    tare_status status = mem_grow(m->ctx, &m->items, &m->item_room, m->item_count + count,
                                  sizeof(pvalue));
    if (status != TARE_OK)
        return status;
    pvalue tuple = {
        .kind = V_TUPLE, .at = m->item_count, .low = (uint32_t)m->item_count, .size = count};
    for (size_t i = 0; i < count; i++) {
        const pvalue *v = machine_top(m, count - 1 - i);
        if (v->kind == V_MARK)
            return machine_reject(m, "a tuple reaches over a mark");
        if (v->kind == V_TUPLE && v->low < tuple.low)
            tuple.low = v->low;
        ((pvalue *)m->items)[m->item_count++] = *v;
    }
    m->depth -= count;
    return push(m, tuple);
}

tare_status machine_make_marked_tuple(machine *m)
{
    size_t count = 0;
    while (count < m->depth && count <= MAX_TUPLE && machine_top(m, count)->kind != V_MARK)
        count++;
    if (count == m->depth || count > MAX_TUPLE)
        return machine_reject(m, "a tuple is too long");
    tare_status status = machine_make_tuple(m, count);
    if (status == TARE_OK) {
        *machine_top(m, 1) = *machine_top(m, 0);
        m->depth--;
    }
    return status;
}

/* A consumed tuple's items can be forgotten when nothing but the stack refers to values: each value
 * then stands in one place, and what was made after the tuple's oldest item is in it or gone. */
void machine_forget_tuple(machine *m, const pvalue *tuple)
{
    if (m->memo_count == 0)
        m->item_count = tuple->low;
}
