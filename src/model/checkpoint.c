/* Opening the weight files of a checkpoint, or a table of tensors in memory, and finding tensors.
 */
#include "model/checkpoint.h"

#include <string.h>

#include "base/strings.h"
#include "file/json.h"
#include "tensor/convert.h"

#define SINGLE_FILE "model.safetensors"
#define INDEX_FILE  "model.safetensors.index.json"

enum { INDEX_LIMIT = 256 << 20, MAX_FILES = 10000 };

typedef struct tensor_place {
    const tensor_info *tensor;
    size_t file;
    const void *data; /* in memory, instead of a file */
} tensor_place;

struct checkpoint {
    tare_context *ctx;
    arena arena; /* tensors in memory; names completed */
    char *dir;   /* or what stands for it in messages */
    safetensors **files;
    size_t num_files;
    tensor_place *places; /* [count] */
    size_t count, capacity;
    strmap by_name; /* tensor name -> place */
};

static tare_status add_file(checkpoint *c, const char *name)
{
    char *path = path_join(c->ctx, c->dir, name);
    if (!path)
        return TARE_E_MEMORY;
    tare_status status = safetensors_open(c->ctx, path, &c->files[c->num_files]);
    mem_free(c->ctx, path);
    if (status == TARE_OK)
        c->num_files++;
    return status;
}

static const char *file_name(const checkpoint *c, size_t index)
{
    const char *path = safetensors_path(c->files[index]), *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Shards are loaded in the order of their names by transformers and vLLM, so of two tensors with
 * one name the last file's stays. */
static void settle_twin(checkpoint *c, tensor_place *earlier, const tensor_place *place)
{
    bool later = strcmp(file_name(c, place->file), file_name(c, earlier->file)) > 0;
    TARE_WARN(c->ctx, "%s: tensor \"%s\" is in %s and in %s: the one in %s is taken", c->dir,
              place->tensor->name, file_name(c, earlier->file), file_name(c, place->file),
              file_name(c, later ? place->file : earlier->file));
    if (later)
        *earlier = *place;
}

static tare_status add_place(checkpoint *c, const tensor_place *place)
{
    const tensor_info *tensor = place->tensor;
    tare_status status = TARE_OK;
    uint32_t twin;
    if (strmap_get(&c->by_name, tensor->name, strlen(tensor->name), &twin)) {
        tensor_place *earlier = &c->places[twin];
        if (place->data)
            return TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: tensor \"%s\" is given twice", c->dir,
                             tensor->name);
        if (earlier->tensor != tensor)
            settle_twin(c, earlier, place);
        return TARE_OK;
    }
    TRY(mem_grow(c->ctx, (void **)&c->places, &c->capacity, c->count + 1, sizeof *c->places));
    TRY(strmap_put(&c->by_name, tensor->name, strlen(tensor->name), (uint32_t)c->count, NULL));
    c->places[c->count++] = *place;
done:
    return status;
}

/* What a shard's header lists, as far as it is not there yet. */
static tare_status add_tensors(checkpoint *c, size_t shard)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < safetensors_count(c->files[shard]); i++)
        TRY(add_place(
            c, &(tensor_place){.tensor = safetensors_at(c->files[shard], i), .file = shard}));
done:
    return status;
}

static tare_status open_single(checkpoint *c)
{
    tare_status status = TARE_OK;
    c->files = mem_calloc(c->ctx, 1, sizeof *c->files);
    if (!c->files)
        return TARE_E_MEMORY;
    TRY(add_file(c, SINGLE_FILE));
    TRY(add_tensors(c, 0));
done:
    return status;
}

/* A shard is a plain file name: an index must not make tare read outside the folder. */
static bool is_plain_name(const value *v)
{
    return v->type == VALUE_STRING && v->length > 0 && strlen(v->text) == v->length &&
           !strchr(v->text, '/') && !strchr(v->text, '\\') && strcmp(v->text, "..") != 0 &&
           strcmp(v->text, ".") != 0;
}

/* Opens each shard that the map names, in the order of first mention; `shards` maps its name to its
 * index. */
static tare_status open_shards(checkpoint *c, const value *map, strmap *shards)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < map->count; i++) {
        const value *shard = &map->items[i];
        bool existed;
        if (!is_plain_name(shard))
            return TARE_FAIL(c->ctx, TARE_E_MODEL,
                             "%s/%s: \"%s\" must name a file in the same folder, without a path",
                             c->dir, INDEX_FILE, shard->text ? shard->text : "");
        TRY(strmap_put(shards, shard->text, shard->length, (uint32_t)c->num_files, &existed));
        if (existed)
            continue;
        if (c->num_files == MAX_FILES)
            return TARE_FAIL(c->ctx, TARE_E_MODEL, "%s/%s: names more than %d files", c->dir,
                             INDEX_FILE, MAX_FILES);
        TRY(TARE_WRAP(c->ctx, add_file(c, shard->text), "%s/%s", c->dir, INDEX_FILE));
    }
done:
    return status;
}

/* Warns where the index is not what the headers say. */
static void compare_index(const checkpoint *c, const value *map, const strmap *shards)
{
    size_t absent = 0, misplaced = 0;
    const char *first_absent = "", *first_misplaced = "";
    for (size_t i = 0; i < map->count; i++) {
        const char *name = map->keys[i].text;
        uint32_t shard = 0;
        strmap_get(shards, map->items[i].text, map->items[i].length, &shard);
        if (!checkpoint_find(c, name) && absent++ == 0)
            first_absent = name;
        else if (checkpoint_find(c, name) && !safetensors_find(c->files[shard], name) &&
                 misplaced++ == 0)
            first_misplaced = name;
    }
    if (absent)
        TARE_WARN(c->ctx, "%s/%s: %zu of its tensors are in no file (first: %s)", c->dir,
                  INDEX_FILE, absent, first_absent);
    if (misplaced)
        TARE_WARN(c->ctx,
                  "%s/%s: %zu of its tensors are in other files than it says (first: %s); they are "
                  "read where they are",
                  c->dir, INDEX_FILE, misplaced, first_misplaced);
    if (c->count > map->count - absent)
        TARE_WARN(c->ctx, "%s/%s: %zu tensors of its files are not in it; they are read too",
                  c->dir, INDEX_FILE, c->count - (map->count - absent));
}

/* The index is a list of files; which tensors there are, and where, the headers say. Those that
 * are where it says come first, in its order. */
static tare_status add_indexed(checkpoint *c, const value *map, const strmap *shards)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < map->count; i++) {
        uint32_t shard = 0;
        strmap_get(shards, map->items[i].text, map->items[i].length, &shard);
        const tensor_info *t = safetensors_find(c->files[shard], map->keys[i].text);
        if (t)
            TRY(add_place(c, &(tensor_place){.tensor = t, .file = shard}));
    }
    for (size_t i = 0; i < c->num_files; i++)
        TRY(add_tensors(c, i));
    compare_index(c, map, shards);
done:
    return status;
}

static tare_status open_index(checkpoint *c)
{
    tare_status status = TARE_OK;
    const value *root;
    arena parsed; /* of a model with many experts it is large, and the headers have all names */
    strmap shards;
    strmap_init(&shards, c->ctx);
    arena_init(&parsed, c->ctx);
    char *path = path_join(c->ctx, c->dir, INDEX_FILE);
    if (!path)
        return TARE_E_MEMORY;
    TRY(json_parse_file(c->ctx, &parsed, path, INDEX_LIMIT, &root));
    const value *map = value_get(root, "weight_map");
    if (!map || map->type != VALUE_MAP || map->count == 0) {
        status = TARE_FAIL(c->ctx, TARE_E_MODEL,
                           "%s: key \"weight_map\" must be a map from tensors to files", path);
        goto done;
    }
    size_t most = map->count < MAX_FILES ? map->count : MAX_FILES;
    c->files = mem_calloc(c->ctx, most, sizeof *c->files);
    if (!c->files) {
        status = TARE_E_MEMORY;
        goto done;
    }
    TRY(open_shards(c, map, &shards));
    TRY(add_indexed(c, map, &shards));
done:
    strmap_free(&shards);
    arena_free(&parsed);
    mem_free(c->ctx, path);
    return status;
}

static tare_status open_files(checkpoint *c)
{
    tare_status status = TARE_OK;
    char *single = path_join(c->ctx, c->dir, SINGLE_FILE);
    char *index = path_join(c->ctx, c->dir, INDEX_FILE);
    if (!single || !index)
        status = TARE_E_MEMORY;
    else if (!path_is_folder(c->dir))
        status = TARE_FAIL(c->ctx, TARE_E_MODEL,
                           "%s: is not a folder; give the checkpoint's folder", c->dir);
    else if (path_exists(single))
        status = open_single(c);
    else if (path_exists(index))
        status = open_index(c);
    else
        status = TARE_FAIL(c->ctx, TARE_E_MODEL,
                           "%s: holds neither %s nor %s; weights in other formats (.bin, .pt) "
                           "must be converted to safetensors first",
                           c->dir, SINGLE_FILE, INDEX_FILE);
    mem_free(c->ctx, single);
    mem_free(c->ctx, index);
    return status;
}

/* ---- tensors in memory ---- */

static bool is_contiguous(const tare_tensor *t)
{
    size_t step = 1;
    for (size_t i = t->rank; t->strides && i-- > 0;) {
        if (t->shape[i] != 1 && (t->strides[i] < 0 || (size_t)t->strides[i] != step))
            return false;
        step *= t->shape[i];
    }
    return true;
}

static tare_status describe_tensor(checkpoint *c, const tare_tensor *t, tensor_info *out)
{
    size_t bytes = 1;
    const char *name = t->name ? t->name : "";
    *out = (tensor_info){.rank = (int)t->rank, .bytes = t->bytes};
    if (!*name)
        return TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: a tensor has no name", c->dir);
    if (!t->dtype || !dtype_from_name(t->dtype, strlen(t->dtype), &out->dtype))
        return TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: %s: unknown dtype \"%s\"", c->dir, name,
                         t->dtype ? t->dtype : "");
    if (t->rank > TENSOR_MAX_RANK || (t->rank && !t->shape))
        return TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: %s: %zu dimensions, at most %d are possible",
                         c->dir, name, t->rank, (int)TENSOR_MAX_RANK);
    bool fits = true;
    for (size_t i = 0; i < t->rank; i++) {
        out->shape[i] = t->shape[i];
        fits = fits && size_mul(bytes, t->shape[i], &bytes);
    }
    fits = fits && size_mul(bytes, dtype_size(out->dtype), &bytes);
    if (!fits || bytes != t->bytes || (bytes && !t->data))
        return TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: %s: %zu bytes are not what its shape takes",
                         c->dir, name, t->data ? t->bytes : 0);
    if (!is_contiguous(t))
        return TARE_FAIL(c->ctx, TARE_E_MODEL, "%s: %s: its rows are not contiguous in memory",
                         c->dir, name);
    out->name = arena_strndup(&c->arena, name, strlen(name));
    return out->name ? TARE_OK : TARE_E_MEMORY;
}

static tare_status take_tensors(checkpoint *c, const tare_tensor *tensors, size_t count)
{
    tare_status status = TARE_OK;
    static const char nothing; /* data of a tensor without elements */
    tensor_info *infos = arena_alloc_array(&c->arena, count, sizeof *infos);
    if (!infos)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < count; i++) {
        const void *data = tensors[i].data ? tensors[i].data : &nothing;
        TRY(describe_tensor(c, &tensors[i], &infos[i]));
        TRY(add_place(c, &(tensor_place){.tensor = &infos[i], .data = data}));
    }
done:
    return status;
}

/* ---- names ---- */

/* Of a decoder's own modules, as a checkpoint of the bare decoder (AutoModel) names them. */
static bool is_bare_name(const char *name)
{
    return str_starts_with(name, "layers.") || str_starts_with(name, "embed_tokens.") ||
           str_starts_with(name, "norm.");
}

/* A checkpoint in which no name begins with "model" is one of the bare decoder, as transformers has
 * it: its tensors get the names that they have in the whole model. */
static tare_status complete_names(checkpoint *c)
{
    tare_status status = TARE_OK;
    size_t bare = 0;
    for (size_t i = 0; i < c->count; i++) {
        if (str_starts_with(c->places[i].tensor->name, "model"))
            return TARE_OK;
        bare += is_bare_name(c->places[i].tensor->name);
    }
    if (bare == 0)
        return TARE_OK;
    for (size_t i = 0; i < c->count; i++) {
        const tensor_info *t = c->places[i].tensor;
        if (!is_bare_name(t->name))
            continue;
        tensor_info *full = arena_alloc(&c->arena, sizeof *full);
        char *name = arena_printf(&c->arena, "model.%s", t->name);
        if (!full || !name)
            return TARE_E_MEMORY;
        *full = *t;
        full->name = name;
        c->places[i].tensor = full;
        TRY(strmap_put(&c->by_name, name, strlen(name), (uint32_t)i, NULL));
    }
done:
    return status;
}

/* ---- opening and closing ---- */

static checkpoint *new_checkpoint(tare_context *ctx, const char *dir)
{
    checkpoint *c = mem_calloc(ctx, 1, sizeof *c);
    if (!c)
        return NULL;
    c->ctx = ctx;
    arena_init(&c->arena, ctx);
    strmap_init(&c->by_name, ctx);
    if (!(c->dir = mem_strdup(ctx, dir))) {
        checkpoint_close(c);
        return NULL;
    }
    return c;
}

static tare_status opened(checkpoint *c, tare_status status, checkpoint **out)
{
    *out = status == TARE_OK ? c : NULL;
    if (status != TARE_OK)
        checkpoint_close(c);
    return status;
}

tare_status checkpoint_open(tare_context *ctx, const char *dir, checkpoint **out)
{
    checkpoint *c = new_checkpoint(ctx, dir);
    tare_status status = c ? open_files(c) : TARE_E_MEMORY;
    return opened(c, status == TARE_OK ? complete_names(c) : status, out);
}

tare_status checkpoint_from_tensors(tare_context *ctx, const char *what, const tare_tensor *tensors,
                                    size_t count, checkpoint **out)
{
    checkpoint *c = new_checkpoint(ctx, what);
    tare_status status = c ? take_tensors(c, tensors, count) : TARE_E_MEMORY;
    return opened(c, status == TARE_OK ? complete_names(c) : status, out);
}

tare_status checkpoint_reopen(tare_context *ctx, const checkpoint *source, checkpoint **out)
{
    tare_status status = TARE_OK;
    if (source->num_files > 0)
        return checkpoint_open(ctx, source->dir, out);
    checkpoint *c = new_checkpoint(ctx, source->dir);
    if (!c)
        status = TARE_E_MEMORY;
    for (size_t i = 0; i < source->count && status == TARE_OK; i++)
        status = add_place(c, &source->places[i]);
    return opened(c, status, out);
}

void checkpoint_close(checkpoint *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->num_files; i++)
        safetensors_close(c->files[i]);
    mem_free(c->ctx, c->files);
    mem_free(c->ctx, c->places);
    strmap_free(&c->by_name);
    arena_free(&c->arena);
    mem_free(c->ctx, c->dir);
    mem_free(c->ctx, c);
}

tare_context *checkpoint_context(const checkpoint *c)
{
    return c->ctx;
}

size_t checkpoint_count(const checkpoint *c)
{
    return c->count;
}

const tensor_info *checkpoint_at(const checkpoint *c, size_t index)
{
    return c->places[index].tensor;
}

const tensor_info *checkpoint_find(const checkpoint *c, const char *name)
{
    uint32_t place;
    return strmap_get(&c->by_name, name, strlen(name), &place) ? c->places[place].tensor : NULL;
}

tare_status checkpoint_check_finite(checkpoint *c, const tensor_info *t, uint64_t offset,
                                    const void *data, size_t size)
{
    size_t width = dtype_size(t->dtype), n = size / width;
    size_t at = first_not_finite(t->dtype, data, n);
    if (at == n)
        return TARE_OK;
    return TARE_FAIL(c->ctx, TARE_E_NUMERIC, "%s: element %llu is NaN or infinite", t->name,
                     (unsigned long long)(offset / width + at));
}

static const tensor_place *place_of(const checkpoint *c, const tensor_info *tensor)
{
    uint32_t place = 0;
    strmap_get(&c->by_name, tensor->name, strlen(tensor->name), &place);
    return &c->places[place];
}

static tare_status read_bytes(checkpoint *c, const tensor_info *tensor, uint64_t offset, void *data,
                              size_t size)
{
    const tensor_place *p = place_of(c, tensor);
    if (!p->data)
        return safetensors_read(c->files[p->file], tensor, offset, data, size);
    if (size)
        memcpy(data, (const char *)p->data + offset, size);
    return TARE_OK;
}

tare_status checkpoint_read(checkpoint *c, const tensor_info *tensor, uint64_t offset, void *data,
                            size_t size)
{
    tare_status status = read_bytes(c, tensor, offset, data, size);
    return status == TARE_OK ? checkpoint_check_finite(c, tensor, offset, data, size) : status;
}

tare_status checkpoint_read_in(checkpoint *c, const tensor_info *tensor, uint64_t offset,
                               size_t size, void *room, void **data)
{
    const tensor_place *p = place_of(c, tensor);
    if (!p->data)
        return safetensors_read_in(c->files[p->file], tensor, offset, size, room, data);
    *data = room;
    return read_bytes(c, tensor, offset, room, size);
}

bool checkpoint_same_data(const checkpoint *c, const tensor_info *a, const tensor_info *b)
{
    const void *data = checkpoint_data(c, a);
    return data && data == checkpoint_data(c, b) && a->bytes == b->bytes;
}

tare_status checkpoint_differs(checkpoint *c, const tensor_info *a, const tensor_info *b,
                               bool *differs)
{
    enum { PIECE = 64 << 10 };
    tare_status status = TARE_OK;
    *differs = a->dtype != b->dtype || a->bytes != b->bytes;
    if (*differs || checkpoint_same_data(c, a, b))
        return TARE_OK;
    char *x = mem_alloc(c->ctx, PIECE), *y = mem_alloc(c->ctx, PIECE);
    TRY(x && y ? TARE_OK : TARE_E_MEMORY);
    for (uint64_t at = 0, n; at < a->bytes && !*differs; at += n) {
        n = a->bytes - at < PIECE ? a->bytes - at : PIECE;
        TRY(context_check_cancelled(c->ctx));
        TRY(checkpoint_read(c, a, at, x, n));
        TRY(checkpoint_read(c, b, at, y, n));
        *differs = memcmp(x, y, n) != 0;
    }
done:
    mem_free(c->ctx, y);
    mem_free(c->ctx, x);
    return status;
}

bool checkpoint_has_data(const checkpoint *c, const tensor_info *tensor, uint64_t offset,
                         size_t size)
{
    const tensor_place *p = place_of(c, tensor);
    return p->data || safetensors_has_data(c->files[p->file], tensor, offset, size);
}

bool checkpoint_is_hole(const checkpoint *c, const tensor_info *tensor, uint64_t offset)
{
    const tensor_place *p = place_of(c, tensor);
    return !p->data && safetensors_is_hole(c->files[p->file], tensor, offset);
}

const void *checkpoint_data(const checkpoint *c, const tensor_info *tensor)
{
    return place_of(c, tensor)->data;
}

size_t checkpoint_file_count(const checkpoint *c)
{
    return c->num_files;
}

const safetensors *checkpoint_file(const checkpoint *c, size_t index)
{
    return c->files[index];
}

size_t checkpoint_file_of(const checkpoint *c, const tensor_info *tensor)
{
    return place_of(c, tensor)->file;
}

size_t checkpoint_first_file(const checkpoint *c)
{
    size_t first = 0;
    for (size_t i = 1; i < c->num_files; i++)
        first = strcmp(file_name(c, i), file_name(c, first)) < 0 ? i : first;
    return first;
}

tare_status checkpoint_check_unchanged(const checkpoint *c)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; i < c->num_files && status == TARE_OK; i++)
        status = safetensors_check_unchanged(c->files[i]);
    return status;
}

uint64_t checkpoint_bytes(const checkpoint *c)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < c->num_files; i++)
        sum += safetensors_file_size(c->files[i]);
    for (size_t i = 0; c->num_files == 0 && i < c->count; i++)
        sum += c->places[i].tensor->bytes;
    return sum;
}
