#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/number.h"
#include "base/sort.h"
#include "file/io_internal.h"

enum { REMOVE_MAX_DEPTH = 32 };

bool path_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

bool path_is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

char *path_join(tare_context *ctx, const char *dir, const char *name)
{
    size_t a = strlen(dir), b = strlen(name);
    bool slash = a > 0 && dir[a - 1] != '/';
    char *path = mem_alloc(ctx, a + b + 2);
    if (!path)
        return NULL;
    memcpy(path, dir, a);
    if (slash)
        path[a++] = '/';
    memcpy(path + a, name, b + 1);
    return path;
}

/* Cuts the last component off `path`: "a/b" -> "a", "/b" -> "/", "b" -> ".". Returns where the
 * component began. */
static size_t cut_last(char *path)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    size_t parent = begin;
    while (parent > 1 && path[parent - 1] == '/')
        parent--;
    if (parent == 0) {
        memcpy(path, ".", 2);
        return begin;
    }
    path[parent] = '\0';
    return begin;
}

/* Appends the components of `rest` to the real path in `real` [PATH_MAX]; "." and ".." are resolved
 * by their text, which is right for folders that do not exist yet and so cannot be links. */
static bool append_components(char *real, const char *rest)
{
    while (*rest) {
        size_t n = strcspn(rest, "/");
        size_t length = strlen(real);
        if (n == 2 && memcmp(rest, "..", 2) == 0) {
            cut_last(real);
        } else if (n > 0 && !(n == 1 && rest[0] == '.')) {
            if (length + 1 + n + 1 > PATH_MAX)
                return false;
            if (length > 1)
                real[length++] = '/';
            memcpy(real + length, rest, n);
            real[length + n] = '\0';
        }
        rest += n;
        rest += strspn(rest, "/");
    }
    return true;
}

tare_status path_real(tare_context *ctx, const char *path, char **out)
{
    char prefix[PATH_MAX], real[PATH_MAX];
    size_t rest = strlen(path); /* where the part that does not exist begins */
    struct stat st;
    *out = NULL;
    if (rest == 0)
        return io_fail(ctx, "resolve", path, ENOENT);
    if (rest >= sizeof prefix)
        return io_fail(ctx, "resolve", path, ENAMETOOLONG);
    memcpy(prefix, path, rest + 1);
    while (!realpath(prefix, real)) {
        int failed = errno;
        /* A link that leads nowhere could lead anywhere tomorrow. */
        if (failed != ENOENT || lstat(prefix, &st) == 0 || strcmp(prefix, ".") == 0)
            return io_fail(ctx, "resolve", path, failed);
        rest = cut_last(prefix);
    }
    if (!append_components(real, path + rest))
        return io_fail(ctx, "resolve", path, ENAMETOOLONG);
    *out = mem_strdup(ctx, real);
    return *out ? TARE_OK : TARE_E_MEMORY;
}

static tare_status check_parent(tare_context *ctx, const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? mem_strndup(ctx, path, slash > path ? (size_t)(slash - path) : 1)
                         : mem_strdup(ctx, ".");
    if (!folder)
        return TARE_E_MEMORY;
    tare_status status = TARE_OK;
    struct stat st;
    int failed = stat(folder, &st) != 0 ? errno : S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
    if (!failed && faccessat(AT_FDCWD, folder, W_OK | X_OK, AT_EACCESS) != 0)
        failed = errno;
    if (failed)
        status = context_fail_errno(ctx, TARE_E_USAGE, failed, "cannot save '%s': folder '%s': %s",
                                    path, folder, errno_text(failed));
    mem_free(ctx, folder);
    return status;
}

tare_status path_check_place(tare_context *ctx, const char *path)
{
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return TARE_FAIL(ctx, TARE_E_USAGE, "cannot save '%s': it is %s", path,
                         S_ISDIR(st.st_mode) ? "a folder" : "no regular file");
    return check_parent(ctx, path);
}

bool path_contains(const char *outer, const char *inner)
{
    size_t n = strlen(outer);
    if (strncmp(outer, inner, n) != 0)
        return false;
    return inner[n] == '\0' || inner[n] == '/' || (n > 0 && outer[n - 1] == '/');
}

static tare_status fail_folder(tare_context *ctx, const char *path, int error)
{
    tare_status status = io_fail(ctx, "create folder", path, error);
    bool refused = error == EACCES || error == EPERM || error == EROFS || error == ENOTDIR ||
                   error == EEXIST;
    return refused ? TARE_E_FOLDER : status;
}

/* `mode` is that of the last folder; its missing parents have what the umask leaves. */
static tare_status create_folders(tare_context *ctx, const char *path, mode_t mode)
{
    tare_status status = TARE_OK;
    if (!*path)
        return fail_folder(ctx, path, ENOENT);
    char *part = mem_strdup(ctx, path);
    if (!part)
        return TARE_E_MEMORY;
    for (size_t end = 0; status == TARE_OK && part[end];) {
        end += strspn(part + end, "/");
        end += strcspn(part + end, "/");
        char next = part[end];
        part[end] = '\0';
        bool last = next == '\0' || path[end + strspn(path + end, "/")] == '\0';
        int failed = mkdir(part, last ? mode : 0777) != 0 ? errno : 0;
        /* What is there already may also say EACCES or EROFS. */
        if (failed && !path_is_folder(part))
            status = fail_folder(ctx, part, failed);
        part[end] = next;
    }
    mem_free(ctx, part);
    return status;
}

tare_status folder_create(tare_context *ctx, const char *path)
{
    return create_folders(ctx, path, 0777);
}

tare_status folder_create_private(tare_context *ctx, const char *path)
{
    return create_folders(ctx, path, 0700);
}

tare_status folder_sync(tare_context *ctx, const char *path)
{
    tare_status status = TARE_OK;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return io_fail(ctx, "open folder", path, errno);
    int failed;
    do
        failed = fsync(fd) != 0 ? errno : 0;
    while (failed == EINTR);
    if (failed && failed != EINVAL) /* EINVAL: the file system has nothing to sync here */
        status = io_fail(ctx, "sync folder", path, failed);
    (void)close(fd); /* opened for reading only */
    return status;
}

static bool is_dot(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

tare_status folder_list(tare_context *ctx, const char *path, char ***names, size_t *count)
{
    tare_status status = TARE_OK;
    void *list = NULL;
    size_t capacity = 0, used = 0;
    *names = NULL;
    *count = 0;
    DIR *dir = opendir(path);
    if (!dir)
        return io_fail(ctx, "open folder", path, errno);
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry)
            break;
        if (is_dot(entry->d_name))
            continue;
        TRY(mem_grow(ctx, &list, &capacity, used + 1, sizeof(char *)));
        char *name = mem_strdup(ctx, entry->d_name);
        if (!name) {
            status = TARE_E_MEMORY;
            goto done;
        }
        ((char **)list)[used++] = name;
    }
    if (errno) {
        status = io_fail(ctx, "list folder", path, errno);
        goto done;
    }
    sort_pointers(list, used, compare_names);
    *names = list;
    *count = used;
    list = NULL;
done:
    folder_list_free(ctx, list, used);
    (void)closedir(dir);
    return status;
}

void folder_list_free(tare_context *ctx, char **names, size_t count)
{
    for (size_t i = 0; names && i < count; i++)
        mem_free(ctx, names[i]);
    mem_free(ctx, names);
}

tare_status file_rename(tare_context *ctx, const char *from, const char *to)
{
    if (rename(from, to) == 0)
        return TARE_OK;
    int failed = errno;
    io_fail(ctx, "rename", from, failed);
    return TARE_WRAP(ctx, TARE_E_IO, "writing '%s'", to);
}

/* Removes what is in the folder `fd`, which it closes. `path` is for messages. */
static tare_status remove_content(tare_context *ctx, int fd, const char *path, int depth)
{
    tare_status status = TARE_OK;
    if (depth > REMOVE_MAX_DEPTH) {
        (void)close(fd);
        return TARE_FAIL(ctx, TARE_E_IO, "cannot remove '%s': nested too deeply (over %d folders)",
                         path, REMOVE_MAX_DEPTH);
    }
    DIR *dir = fdopendir(fd);
    if (!dir) {
        status = io_fail(ctx, "open folder", path, errno);
        (void)close(fd);
        return status;
    }
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry)
            break;
        if (is_dot(entry->d_name) || unlinkat(fd, entry->d_name, 0) == 0 || errno == ENOENT)
            continue;
        if (errno != EISDIR && errno != EPERM) /* POSIX and Linux for "it is a folder" */ {
            status = io_fail(ctx, "remove a file in", path, errno);
            goto done;
        }
        int inner = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (inner < 0) {
            status = io_fail(ctx, "open a folder in", path, errno);
            goto done;
        }
        TRY(remove_content(ctx, inner, path, depth + 1));
        if (unlinkat(fd, entry->d_name, AT_REMOVEDIR) != 0) {
            status = io_fail(ctx, "remove a folder in", path, errno);
            goto done;
        }
    }
    if (errno)
        status = io_fail(ctx, "list folder", path, errno);
done:
    (void)closedir(dir);
    return status;
}

tare_status path_remove(tare_context *ctx, const char *path)
{
    if (unlink(path) == 0 || errno == ENOENT)
        return TARE_OK;
    return errno == EISDIR || errno == EPERM ? folder_remove(ctx, path)
                                             : io_fail(ctx, "remove", path, errno);
}

tare_status folder_remove(tare_context *ctx, const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? TARE_OK : io_fail(ctx, "remove folder", path, errno);
    tare_status status = remove_content(ctx, fd, path, 0);
    if (status == TARE_OK && rmdir(path) != 0 && errno != ENOENT)
        status = io_fail(ctx, "remove folder", path, errno);
    return status;
}

tare_status folder_free_space(tare_context *ctx, const char *path, uint64_t *bytes)
{
    struct statvfs st;
    *bytes = 0;
    if (statvfs(path, &st) != 0)
        return io_fail(ctx, "look for free space on", path, errno);
    if (__builtin_mul_overflow((uint64_t)st.f_bavail, (uint64_t)st.f_frsize, bytes))
        *bytes = UINT64_MAX;
    return TARE_OK;
}

tare_status folder_clear(tare_context *ctx, const char *path,
                         bool (*keep)(const void *user, const char *name), const void *user)
{
    char **names = NULL;
    size_t count = 0;
    tare_status status = TARE_OK;
    TRY(folder_list(ctx, path, &names, &count));
    for (size_t i = 0; i < count; i++) {
        if (keep(user, names[i]))
            continue;
        char *one = path_join(ctx, path, names[i]);
        TRY(one ? TARE_OK : TARE_E_MEMORY);
        status = path_remove(ctx, one);
        mem_free(ctx, one);
        TRY(status);
    }
done:
    folder_list_free(ctx, names, count);
    return status;
}
