#include "file/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/number.h"
#include "file/json.h"

enum { JOURNAL_LIMIT = 256 << 20, DIGEST = 16 }; /* hex digits */
#define LOCK_NAME    "lock"
#define JOURNAL_NAME "journal"

struct journal {
    tare_context *ctx;
    char *folder, *path;
    int lock;
    arena home;
    const value **records; /* mem_free */
    size_t count, capacity;
    uint64_t end;        /* of the whole records */
    file_writer *writer; /* NULL: nothing was added yet */
};

/* ---- the lock ---- */

/* The file that is locked may have been removed by the run that held it: then try the new one. */
static tare_status take_lock(journal *j)
{
    char *path = path_join(j->ctx, j->folder, LOCK_NAME);
    tare_status status = path ? TARE_OK : TARE_E_MEMORY;
    struct stat mine, now;
    while (status == TARE_OK) {
        j->lock = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (j->lock < 0) {
            status = TARE_FAIL(j->ctx, TARE_E_FOLDER, "cannot create '%s': %s", path,
                               errno_text(errno));
        } else if (flock(j->lock, LOCK_EX | LOCK_NB) != 0) {
            status = TARE_FAIL(j->ctx, TARE_E_FOLDER, "another run of tare works in '%s'",
                               j->folder);
        } else if (fstat(j->lock, &mine) == 0 && stat(path, &now) == 0 &&
                   mine.st_ino == now.st_ino) {
            break;
        } else {
            close(j->lock);
        }
    }
    mem_free(j->ctx, path);
    return status;
}

/* ---- records ---- */

static void digest_of(const char *line, size_t length, char hex[DIGEST + 1])
{
    static const char digits[] = "0123456789abcdef";
    uint64_t h = XXH3_64bits(line, length);
    for (int i = 0; i < DIGEST; i++)
        hex[i] = digits[h >> (60 - 4 * i) & 15];
    hex[DIGEST] = '\0';
}

/* The length of the JSON text of a whole line; 0: it is not whole. */
static size_t check_line(const char *line, size_t length)
{
    char hex[DIGEST + 1];
    if (length < DIGEST + 2 || line[length - DIGEST - 1] != ' ')
        return 0;
    digest_of(line, length - DIGEST - 1, hex);
    return memcmp(hex, line + length - DIGEST, DIGEST) == 0 ? length - DIGEST - 1 : 0;
}

static tare_status add_record(journal *j, const char *json, size_t length)
{
    const value *v;
    tare_status status = TARE_OK;
    TRY(json_parse(j->ctx, &j->home, json, length, j->path, JSON_STRICT, &v));
    TRY(mem_grow(j->ctx, (void **)&j->records, &j->capacity, j->count + 1, sizeof *j->records));
    j->records[j->count++] = v;
done:
    return status;
}

static tare_status read_records(journal *j)
{
    tare_status status = TARE_OK;
    char *text = NULL;
    size_t length = 0;
    if (!path_exists(j->path))
        return TARE_OK;
    TRY(file_read_all(j->ctx, j->path, JOURNAL_LIMIT, &text, &length));
    for (const char *line = text, *end; (end = memchr(line, '\n', (size_t)(text + length - line)));
         line = end + 1) {
        size_t json = check_line(line, (size_t)(end - line));
        if (json == 0)
            break;
        TRY(add_record(j, line, json));
        j->end = (uint64_t)(end + 1 - text);
    }
done:
    mem_free(j->ctx, text);
    return status;
}

/* ---- its life ---- */

tare_status journal_open(tare_context *ctx, const char *folder, journal **out)
{
    tare_status status = TARE_OK;
    *out = NULL;
    journal *j = mem_calloc(ctx, 1, sizeof *j);
    if (!j)
        return TARE_E_MEMORY;
    *j = (journal){.ctx = ctx, .lock = -1};
    arena_init(&j->home, ctx);
    j->folder = mem_strdup(ctx, folder);
    j->path = path_join(ctx, folder, JOURNAL_NAME);
    TRY(j->folder && j->path ? TARE_OK : TARE_E_MEMORY);
    status = folder_create_private(ctx, folder);
    TRY(status == TARE_E_IO ? TARE_E_FOLDER : status);
    TRY(take_lock(j));
    TRY(read_records(j));
    *out = j;
    j = NULL;
done:
    journal_close(j);
    return status;
}

void journal_close(journal *j)
{
    if (!j)
        return;
    file_leave(j->writer);
    if (j->lock >= 0)
        (void)close(j->lock);
    arena_free(&j->home);
    mem_free(j->ctx, j->records);
    mem_free(j->ctx, j->folder);
    mem_free(j->ctx, j->path);
    mem_free(j->ctx, j);
}

const char *journal_folder(const journal *j)
{
    return j->folder;
}

size_t journal_count(const journal *j)
{
    return j->count;
}

const value *journal_at(const journal *j, size_t index)
{
    return j->records[index];
}

static bool is_lock(const void *user, const char *name)
{
    (void)user;
    return strcmp(name, LOCK_NAME) == 0;
}

static tare_status remove_content(journal *j)
{
    file_leave(j->writer);
    j->writer = NULL;
    return folder_clear(j->ctx, j->folder, is_lock, NULL);
}

tare_status journal_restart(journal *j)
{
    j->count = 0;
    j->end = 0;
    return remove_content(j);
}

tare_status journal_add(journal *j, const char *json)
{
    tare_status status = TARE_OK;
    char hex[DIGEST + 1];
    buffer line;
    buffer_init(&line, j->ctx);
    if (!j->writer && path_exists(j->path))
        TRY(file_reopen(j->ctx, j->path, 0, j->end, &j->writer));
    else if (!j->writer)
        TRY(file_create(j->ctx, j->path, 0, &j->writer));
    digest_of(json, strlen(json), hex);
    buffer_printf(&line, "%s %s\n", json, hex);
    TRY(line.status);
    TRY(file_append(j->writer, line.data, line.length));
    TRY(file_sync(j->writer));
    TRY(folder_sync(j->ctx, j->folder));
done:
    buffer_free(&line);
    return status;
}

tare_status journal_remove(journal *j)
{
    tare_status status = TARE_OK;
    char *lock = path_join(j->ctx, j->folder, LOCK_NAME);
    TRY(lock ? TARE_OK : TARE_E_MEMORY);
    TRY(remove_content(j));
    if (unlink(lock) != 0 || rmdir(j->folder) != 0)
        status = TARE_FAIL(j->ctx, TARE_E_IO, "remove '%s': %s", j->folder, errno_text(errno));
done:
    mem_free(j->ctx, lock);
    return status;
}
