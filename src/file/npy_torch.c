#include "file/npy_torch.h"

#include <string.h>

enum { MAX_NAME = 64 }; /* of a class, a key or a location */

static const struct {
    const char *name;
    tare_dtype dtype;
} storages[] = {{"FloatStorage", TARE_F32},     {"HalfStorage", TARE_F16},
                {"BFloat16Storage", TARE_BF16}, {"CharStorage", TARE_I8},
                {"IntStorage", TARE_I32},       {"LongStorage", TARE_I64}};
enum { NUM_STORAGES = sizeof storages / sizeof *storages };

const char *torch_storage_name(tare_dtype dtype)
{
    for (size_t i = 0; i < NUM_STORAGES; i++)
        if (storages[i].dtype == dtype)
            return storages[i].name;
    return NULL;
}

static tare_status unknown_layout(machine *m)
{
    return machine_reject(m, "a torch storage of an unknown layout");
}

static tare_status expect(machine *m, const char *text, size_t size)
{
    char found[sizeof TORCH_HEAD];
    tare_status status = machine_fetch(m, found, size);
    if (status == TARE_OK && memcmp(found, text, size) != 0)
        return unknown_layout(m);
    return status;
}
#define EXPECT(m, text) expect(m, text, sizeof text - 1)

/* Length and text. */
static tare_status fetch_name(machine *m, char name[MAX_NAME], size_t *length)
{
    uint64_t size;
    tare_status status = machine_fetch_number(m, 4, &size);
    if (status != TARE_OK)
        return status;
    if (size > MAX_NAME)
        return unknown_layout(m);
    *length = (size_t)size;
    return machine_fetch(m, name, *length);
}

static tare_status fetch_dtype(machine *m, tare_dtype *dtype)
{
    char name[MAX_NAME];
    tare_status status;
    size_t length = 0, i = 0;
    do {
        if (length == sizeof name)
            return unknown_layout(m);
        if ((status = machine_fetch(m, &name[length], 1)) != TARE_OK)
            return status;
    } while (name[length++] != '\n');
    m->at--; /* the line's end belongs to what follows */
    name[length - 1] = '\0';
    while (i < NUM_STORAGES && strcmp(name, storages[i].name) != 0)
        i++;
    if (i == NUM_STORAGES)
        return FAIL_AT(m, "a tensor in a %s is not supported",
                       utf8_valid(name, length - 1) ? name : "?");
    *dtype = storages[i].dtype;
    return TARE_OK;
}

/* An integer with its opcode. */
static tare_status fetch_count(machine *m, uint64_t *count)
{
    unsigned char opcode;
    uint64_t size;
    tare_status status = machine_fetch(m, &opcode, 1);
    if (status != TARE_OK)
        return status;
    switch (opcode) {
    case 'K': /* BININT1 */
        return machine_fetch_number(m, 1, count);
    case 'M': /* BININT2 */
        return machine_fetch_number(m, 2, count);
    case 'J': /* BININT */
        return machine_fetch_number(m, 4, count);
    case 0x8a: /* LONG1 */
        if ((status = machine_fetch_number(m, 1, &size)) != TARE_OK)
            return status;
        return size <= 8 ? machine_fetch_number(m, (int)size, count) : unknown_layout(m);
    default:
        return unknown_layout(m);
    }
}

/* From m->at to m->end. */
static tare_status read_storage(machine *m, pvalue *out)
{
    char key[MAX_NAME], location[MAX_NAME], again[MAX_NAME];
    size_t key_length = 0, location_length = 0, again_length = 0, bytes;
    uint64_t count = 0, count_again = 0;
    tare_dtype dtype = TARE_F32;
    tare_status status = TARE_OK;
    TRY(EXPECT(m, TORCH_HEAD));
    TRY(fetch_dtype(m, &dtype));
    TRY(EXPECT(m, TORCH_KEY));
    TRY(fetch_name(m, key, &key_length));
    TRY(EXPECT(m, TORCH_LOCATION));
    TRY(fetch_name(m, location, &location_length));
    TRY(EXPECT(m, TORCH_ELEMENTS));
    TRY(fetch_count(m, &count));
    TRY(EXPECT(m, TORCH_KEYS));
    TRY(fetch_name(m, again, &again_length));
    TRY(EXPECT(m, TORCH_END));
    TRY(machine_fetch_number(m, 8, &count_again));
    if (key_length != again_length || memcmp(key, again, key_length) != 0 || count != count_again ||
        count > SIZE_MAX || !size_mul((size_t)count, dtype_size(dtype), &bytes) ||
        bytes != m->end - m->at)
        return machine_reject(m, "a torch storage that contradicts itself");
    *out = (pvalue){.kind = V_STORAGE, .low = dtype, .at = m->at, .size = bytes};
done:
    return status;
}

tare_status torch_load_storage(machine *m, const pvalue *bytes, pvalue *out)
{
    uint64_t at = m->at, end = m->end;
    if (bytes->kind != V_BYTES)
        return machine_reject(m, "a torch storage that is not bytes");
    m->at = bytes->at;
    m->end = bytes->at + bytes->size;
    tare_status status = read_storage(m, out);
    if (status != TARE_OK)
        return status; /* the place in the message is that of the fault */
    m->at = at;
    m->end = end;
    return TARE_OK;
}
