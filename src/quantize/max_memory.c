/* Reading run.max_memory. */
#include "quantize/recipe.h"

#include <stdlib.h>
#include <string.h>

#include "base/number.h"

#define EXAMPLE "a size is a number and a unit: 25GiB, 1.5 MiB, 500GB"

typedef struct size_unit {
    const char *name; /* in lower case */
    double bytes;
} size_unit;

static const size_unit units[] = {{"kib", 1024.0}, {"mib", 1048576.0}, {"gib", 1073741824.0},
                                  {"kb", 1e3},     {"mb", 1e6},        {"gb", 1e9}};

/* "25gb" and "25Gb" may mean gigabits: an accelerator library takes them for that. */
static bool is_ambiguous(const char *unit)
{
    size_t length = strlen(unit);
    return length == 2 && unit[1] == 'b';
}

static double unit_bytes(const char *unit)
{
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (ascii_same(unit, units[i].name))
            return units[i].bytes;
    }
    return 0;
}

/* Length of the decimal number (digits, perhaps a point and digits) that `text` begins with. */
static size_t number_length(const char *text)
{
    size_t whole = strspn(text, "0123456789");
    if (whole == 0 || text[whole] != '.')
        return whole;
    size_t part = strspn(text + whole + 1, "0123456789");
    return part ? whole + 1 + part : 0;
}

tare_status memory_size_parse(tare_context *ctx, const char *text, uint64_t *bytes)
{
    size_t length = number_length(text);
    const char *unit = text + length + (length && text[length] == ' ');
    double factor = unit_bytes(unit);
    if (length == 0 || (factor == 0 && *unit))
        return TARE_FAIL(ctx, TARE_E_USAGE, "\"%.80s\" is not a size; %s", text, EXAMPLE);
    if (factor == 0)
        return TARE_FAIL(ctx, TARE_E_USAGE, "\"%.80s\" has no unit; %s", text, EXAMPLE);
    if (is_ambiguous(unit))
        return TARE_FAIL(ctx, TARE_E_USAGE, "\"%.80s\" is ambiguous, as a small b means bits; %s",
                         text, EXAMPLE);
    double value = number_read(text, NULL) * factor;
    if (!(value >= 1))
        return TARE_FAIL(ctx, TARE_E_USAGE, "\"%.80s\" is less than a byte; %s", text, EXAMPLE);
    if (value >= 0x1p63)
        return TARE_FAIL(ctx, TARE_E_USAGE, "\"%.80s\" is more than any machine has; %s", text,
                         EXAMPLE);
    *bytes = (uint64_t)value;
    return TARE_OK;
}

static tare_status refuse_device(tare_context *ctx, const char *name)
{
    return TARE_FAIL(ctx, TARE_E_USAGE,
                     "device '%.80s' is not recognized: use an integer id or 'cpu'%s", name,
                     "; each once");
}

static tare_status find_device(tare_context *ctx, const max_memory *m, const char *name,
                               int64_t *device)
{
    size_t digits = strspn(name, "0123456789");
    *device = DEVICE_CPU;
    if (strcmp(name, "cpu") != 0) {
        if (digits == 0 || digits > 9 || name[digits] || (name[0] == '0' && digits > 1))
            return refuse_device(ctx, name);
        *device = strtoll(name, NULL, 10);
    }
    return max_memory_of(m, *device) ? refuse_device(ctx, name) : TARE_OK;
}

static tare_status add(tare_context *ctx, max_memory *m, int64_t device, uint64_t bytes)
{
    tare_status status = mem_grow(ctx, (void **)&m->items, &m->capacity, m->count + 1,
                                  sizeof *m->items);
    if (status == TARE_OK)
        m->items[m->count++] = (device_limit){device, bytes};
    return status;
}

tare_status max_memory_add(tare_context *ctx, max_memory *m, const char *device, const char *size)
{
    tare_status status = TARE_OK;
    int64_t id;
    uint64_t bytes = 0;
    TRY(find_device(ctx, m, device, &id));
    TRY(memory_size_parse(ctx, size, &bytes));
    TRY(add(ctx, m, id, bytes));
done:
    return status;
}

tare_status max_memory_add_bytes(tare_context *ctx, max_memory *m, const char *device,
                                 int64_t bytes)
{
    tare_status status = TARE_OK;
    int64_t id;
    TRY(find_device(ctx, m, device, &id));
    if (bytes <= 0)
        return TARE_FAIL(ctx, TARE_E_USAGE, "%lld is no number of bytes; %s", (long long)bytes,
                         EXAMPLE);
    TRY(add(ctx, m, id, (uint64_t)bytes));
done:
    return status;
}

static tare_status add_entry(tare_context *ctx, max_memory *m, char *entry)
{
    char *equals = strchr(entry, '=');
    if (!equals)
        return TARE_FAIL(ctx, TARE_E_USAGE, "\"%.80s\" has no '='; cpu=8GiB is an example", entry);
    *equals = '\0';
    return max_memory_add(ctx, m, entry, equals + 1);
}

tare_status max_memory_add_text(tare_context *ctx, max_memory *m, const char *text)
{
    tare_status status = TARE_OK;
    while (status == TARE_OK) {
        size_t n = strcspn(text, ",");
        char *entry = mem_strndup(ctx, text, n);
        status = entry ? add_entry(ctx, m, entry) : TARE_E_MEMORY;
        mem_free(ctx, entry);
        if (!text[n])
            break;
        text += n + 1;
    }
    return status;
}

uint64_t max_memory_of(const max_memory *m, int64_t device)
{
    for (size_t i = 0; i < m->count; i++) {
        if (m->items[i].device == device)
            return m->items[i].bytes;
    }
    return 0;
}

void max_memory_warn(tare_context *ctx, const max_memory *m)
{
    for (size_t i = 0; i < m->count; i++) {
        if (m->items[i].device != DEVICE_CPU)
            TARE_WARN(ctx, "max_memory: there is no device %lld here; its limit has no effect",
                      (long long)m->items[i].device);
    }
}

tare_status max_memory_copy(tare_context *ctx, const max_memory *m, max_memory *out)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; status == TARE_OK && i < m->count; i++)
        status = add(ctx, out, m->items[i].device, m->items[i].bytes);
    return status;
}

void max_memory_clear(tare_context *ctx, max_memory *m)
{
    mem_free(ctx, m->items);
    *m = (max_memory){0};
}

uint64_t tare_recipe_memory_limit(const tare_recipe *r)
{
    return max_memory_of(&r->max_memory, DEVICE_CPU);
}
