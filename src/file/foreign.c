/* Magic numbers from the formats' own descriptions and from file(1)'s collection. */
#include "file/foreign.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/number.h"

#define ANOTHER "another kind of file is needed here"
#define UNPACK  "unpack it first"

/* ---- kinds that begin with fixed bytes ---- */

typedef struct magic {
    const char *bytes;
    size_t length, offset;
    foreign_kind kind;
} magic;

#define MAGIC(bytes, offset, name, help)                                                           \
    {                                                                                              \
        bytes, sizeof(bytes) - 1, offset,                                                          \
        {                                                                                          \
            name, help, false, FOREIGN_TEXT                                                        \
        }                                                                                          \
    }
#define TEXT(bytes, name, help)                                                                    \
    {                                                                                              \
        bytes, sizeof(bytes) - 1, 0,                                                               \
        {                                                                                          \
            name, help, true, FOREIGN_TEXT                                                         \
        }                                                                                          \
    }

#define PYTORCH        "a PyTorch checkpoint (pickle), which can run code"
#define TO_SAFETENSORS "save the model as safetensors"
#define GGML           "a model of llama.cpp in an old format"
#define FLOAT_ORIGINAL "tare reads the float original as safetensors"
#define EXPORT         "export its data as JSON lines or text"
#define SERVER         "what a server says instead of sending the file"
#define DOWNLOAD       "download it again, with a token if it is not public"
#define TEXT_16        "text in UTF-16"
#define TEXT_32        "text in UTF-32"
#define SAVE_AS_UTF8   "save it as UTF-8"

static const magic magics[] = {
    MAGIC("version https://git-lfs.github.com/spec/", 0, "a Git LFS pointer, not the file itself",
          "git lfs pull fetches it"),
    TEXT("Entry not found", SERVER, DOWNLOAD),
    TEXT("Repository not found", SERVER, DOWNLOAD),
    TEXT("Invalid username or password", SERVER, DOWNLOAD),
    TEXT("Access to model ", SERVER, DOWNLOAD),
    MAGIC("GGUF", 0, "a GGUF model", FLOAT_ORIGINAL),
    MAGIC("lmgg", 0, GGML, FLOAT_ORIGINAL),
    MAGIC("fmgg", 0, GGML, FLOAT_ORIGINAL),
    MAGIC("tjgg", 0, GGML, FLOAT_ORIGINAL),
    MAGIC("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 0, PYTORCH, TO_SAFETENSORS),
    MAGIC("\x89HDF\r\n\x1a\n", 0, "an HDF5 file", TO_SAFETENSORS),
    MAGIC("TFL3", 4, "a TensorFlow Lite model", FLOAT_ORIGINAL),
    MAGIC("\x1f\x8b\x08", 0, "compressed by gzip", UNPACK " (gunzip)"),
    MAGIC("\x28\xb5\x2f\xfd", 0, "compressed by zstd", UNPACK " (unzstd)"),
    MAGIC("BZh", 0, "compressed by bzip2", UNPACK " (bunzip2)"),
    MAGIC("\xfd"
          "7zXZ\x00",
          0, "compressed by xz", UNPACK " (unxz)"),
    MAGIC("\x04\x22\x4d\x18", 0, "compressed by lz4", UNPACK " (unlz4)"),
    MAGIC("7z\xbc\xaf\x27\x1c", 0, "a 7-Zip archive", UNPACK),
    MAGIC("Rar!\x1a\x07", 0, "a RAR archive", UNPACK),
    MAGIC("ustar", 257, "a tar archive", UNPACK " (tar -xf)"),
    MAGIC("PAR1", 0, "a parquet file", EXPORT),
    MAGIC("ARROW1", 0, "an Arrow file", EXPORT),
    MAGIC("FEA1", 0, "an Arrow (feather) file", EXPORT),
    MAGIC("Obj\x01", 0, "an Avro file", EXPORT),
    MAGIC("SQLite format 3\x00", 0, "an SQLite database", EXPORT),
    MAGIC("%PDF-", 0, "a PDF document", EXPORT),
    MAGIC("\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0, "an old Office document", EXPORT),
};

static const foreign_kind *find_magic(const unsigned char *p, size_t length)
{
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++) {
        const magic *m = &magics[i];
        if (length >= m->offset + m->length && memcmp(p + m->offset, m->bytes, m->length) == 0)
            return &m->kind;
    }
    return NULL;
}

/* ---- kinds that need a look ---- */

/* Does `name` [length] end with `suffix`? */
static bool ends_with(const unsigned char *name, size_t length, const char *suffix)
{
    size_t n = strlen(suffix);
    return length >= n && memcmp(name + length - n, suffix, n) == 0;
}

/* A zip by its first member: its name stands behind 30 bytes, the length of that at 26. */
static const foreign_kind *find_zip(const unsigned char *p, size_t length)
{
    static const foreign_kind pytorch = {PYTORCH, TO_SAFETENSORS, false, FOREIGN_TEXT};
    static const foreign_kind npz = {"an npz archive", ANOTHER, false, FOREIGN_TEXT};
    static const foreign_kind office = {"an Office document", EXPORT, false, FOREIGN_TEXT};
    static const foreign_kind zip = {"a zip archive", UNPACK " (unzip)", false, FOREIGN_TEXT};
    if (length < 4 || (memcmp(p, "PK\x03\x04", 4) != 0 && memcmp(p, "PK\x05\x06", 4) != 0))
        return NULL;
    size_t name = length >= 30 ? p[26] | (size_t)p[27] << 8 : 0;
    if (name == 0 || length < 30 + name)
        return &zip;
    if (ends_with(p + 30, name, "data.pkl"))
        return &pytorch;
    if (ends_with(p + 30, name, ".npy"))
        return &npz;
    return ends_with(p + 30, name, "[Content_Types].xml") ? &office : &zip;
}

/* A pickle of protocol 2 to 5: of a dict, list, tuple, mark or class, or in frames. */
static const foreign_kind *find_pickle(const unsigned char *p, size_t length)
{
    static const foreign_kind pickle = {"a Python pickle, which can run code", TO_SAFETENSORS,
                                        false, FOREIGN_TEXT};
    return length >= 3 && p[0] == 0x80 && p[1] >= 2 && p[1] <= 5 && p[2] && strchr("}](c\x95", p[2])
               ? &pickle
               : NULL;
}

/* The stream of Arrow that the datasets library caches: a marker, the length of the schema. */
static const foreign_kind *find_arrow_stream(const unsigned char *p, size_t length)
{
    static const foreign_kind arrow = {"an Arrow stream", EXPORT, false, FOREIGN_TEXT};
    return length >= 8 && memcmp(p, "\xff\xff\xff\xff", 4) == 0 && p[7] == 0 && (p[4] || p[5])
               ? &arrow
               : NULL;
}

static const foreign_kind *find_npy(const unsigned char *p, size_t length)
{
    static const foreign_kind npy = {"an npy file", ANOTHER, false, FOREIGN_NPY};
    return length >= 6 && memcmp(p, "\x93NUMPY", 6) == 0 ? &npy : NULL;
}

/* A header length of at most 100 MB, and the JSON that follows. */
static const foreign_kind *find_safetensors(const unsigned char *p, size_t length)
{
    static const foreign_kind safetensors = {"a safetensors file", ANOTHER, false,
                                             FOREIGN_SAFETENSORS};
    return length >= 10 && p[4] == 0 && p[5] == 0 && p[6] == 0 && p[7] == 0 && p[8] == '{' &&
                   (p[9] == '"' || p[9] == '}')
               ? &safetensors
               : NULL;
}

static const foreign_kind *find_page(const unsigned char *p, size_t length)
{
    static const foreign_kind page = {"an HTML or XML page", DOWNLOAD, true, FOREIGN_TEXT};
    static const char *const starts[] = {"<!doctype", "<html", "<head", "<body",
                                         "<script",   "<?xml", "<error"};
    size_t at = length >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (at < length && strchr(" \t\r\n", p[at]) && p[at])
        at++;
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        size_t n = strlen(starts[i]);
        if (length - at >= n && ascii_same_n((const char *)p + at, starts[i], n))
            return &page;
    }
    return NULL;
}

/* Text without a byte order mark begins, here, with ASCII: at least two characters of `width` bytes
 * of which all but one are zero, and no other characters among the first 16. */
static bool is_wide(const unsigned char *p, size_t length, size_t width, size_t low)
{
    size_t count = length / width < 16 ? length / width : 16;
    for (size_t i = 0; i < count * width; i++) {
        bool is_low = i % width == low, printable = p[i] >= ' ' && p[i] < 0x7f;
        if (is_low ? !printable && !(p[i] && strchr("\t\r\n", p[i])) : p[i] != 0)
            return false;
    }
    return count >= 2;
}

static const foreign_kind *find_wide_text(const unsigned char *p, size_t length)
{
    static const foreign_kind text16 = {TEXT_16, SAVE_AS_UTF8, false, FOREIGN_TEXT};
    static const foreign_kind text32 = {TEXT_32, SAVE_AS_UTF8, false, FOREIGN_TEXT};
    if (length >= 4 && length % 4 == 0 &&
        (memcmp(p, "\xff\xfe\x00\x00", 4) == 0 || memcmp(p, "\x00\x00\xfe\xff", 4) == 0))
        return &text32;
    if (length >= 2 && length % 2 == 0 &&
        (memcmp(p, "\xff\xfe", 2) == 0 || memcmp(p, "\xfe\xff", 2) == 0))
        return &text16;
    if (is_wide(p, length, 4, 0) || is_wide(p, length, 4, 3))
        return &text32;
    return is_wide(p, length, 2, 0) || is_wide(p, length, 2, 1) ? &text16 : NULL;
}

static const foreign_kind *find_nothing(const unsigned char *p, size_t length)
{
    static const foreign_kind empty = {"empty", "download or write it again", true, FOREIGN_TEXT};
    static const foreign_kind zeros = {"nothing but zeros at its beginning",
                                       "a download or copy of it was cut off; fetch it again",
                                       false, FOREIGN_TEXT};
    size_t n = length < FOREIGN_HEAD ? length : FOREIGN_HEAD;
    if (n == 0)
        return &empty;
    for (size_t i = 0; i < n || n < 16; i++) { /* the other kinds may begin with fewer */
        if (i == n || p[i])
            return NULL;
    }
    return &zeros;
}

/* ---- all of them ---- */

const foreign_kind *foreign_recognise(const void *data, size_t length)
{
    static const foreign_kind *(*const finders[])(const unsigned char *, size_t) = {
        find_nothing, find_safetensors,  find_npy,  find_magic,    find_zip,
        find_pickle,  find_arrow_stream, find_page, find_wide_text};
    const foreign_kind *kind = NULL;
    for (size_t i = 0; !kind && i < sizeof finders / sizeof *finders; i++)
        kind = finders[i](data, length);
    return kind;
}

static tare_status explain(tare_context *ctx, tare_status status, const char *what,
                           foreign_reader reader, const void *data, size_t length)
{
    const foreign_kind *kind = foreign_recognise(data, length);
    if (kind && kind->reader != FOREIGN_TEXT && kind->reader == reader)
        return status;
    return kind ? TARE_FAIL(ctx, status, "%s: this is %s; %s", what, kind->name, kind->help)
                : status;
}

tare_status foreign_explain(tare_context *ctx, tare_status status, const char *what,
                            const void *data, size_t length)
{
    return status == TARE_E_FORMAT || status == TARE_E_DATA
               ? explain(ctx, status, what, FOREIGN_TEXT, data, length)
               : status;
}

tare_status foreign_explain_path(tare_context *ctx, tare_status status, const char *path,
                                 foreign_reader reader)
{
    unsigned char head[FOREIGN_HEAD];
    struct stat st;
    if (status != TARE_E_FORMAT && status != TARE_E_DATA)
        return status;
    /* By the system's own calls: what fails here must not replace the message. */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    ssize_t n = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)
                    ? pread(fd, head, sizeof head, 0)
                    : -1;
    if (fd >= 0)
        (void)close(fd);
    return n < 0 ? status : explain(ctx, status, path, reader, head, (size_t)n);
}
