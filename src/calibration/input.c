#include "calibration/input.h"

#include <string.h>
#include <xxhash.h>

#include "file/io.h"

#define FILE_LIMIT ((uint64_t)4 << 30)

void input_free(calib_input *in)
{
    mem_free(in->ctx, in->files);
    in->files = NULL;
    in->num_files = in->files_capacity = 0;
}

bool input_has_read(const calib_input *in, const struct stat *st)
{
    for (size_t i = 0; i < in->num_files; i++) {
        if (in->files[i].device == st->st_dev && in->files[i].inode == st->st_ino)
            return true;
    }
    return false;
}

static tare_status remember(calib_input *in, const struct stat *st)
{
    if (input_has_read(in, st))
        return TARE_OK;
    tare_status status = mem_grow(in->ctx, (void **)&in->files, &in->files_capacity,
                                  in->num_files + 1, sizeof *in->files);
    if (status == TARE_OK)
        in->files[in->num_files++] = (struct file_identity){st->st_dev, st->st_ino};
    return status;
}

tare_status input_read(calib_input *in, const char *path, input_text *out)
{
    tare_status status = TARE_OK;
    file *f = NULL;
    struct stat st;
    *out = (input_text){0};
    TRY(file_open(in->ctx, path, &f));
    TRY(file_stat(f, &st));
    if (st.st_mode & S_IWOTH)
        TARE_WARN(in->ctx, "%s: everybody may write to this file (chmod o-w)", path);
    TRY(remember(in, &st));
    if (file_size(f) > FILE_LIMIT) {
        status = TARE_FAIL(in->ctx, TARE_E_DATA, "'%s' has more than %llu bytes", path,
                           (unsigned long long)FILE_LIMIT);
        goto done;
    }
    out->length = (size_t)file_size(f);
    if (!(out->data = mem_alloc(in->ctx, out->length + 1))) {
        status = TARE_E_MEMORY;
        goto done;
    }
    TRY(file_read_at(f, 0, out->data, out->length));
    in->digest = XXH3_64bits_withSeed(out->data, out->length, in->digest);
    out->data[out->length] = 0;
    out->text = out->data;
    if (out->length >= 3 && memcmp(out->data, "\xef\xbb\xbf", 3) == 0) {
        out->text += 3;
        out->length -= 3;
    }
done:
    file_close(f);
    if (status != TARE_OK) {
        mem_free(in->ctx, out->data);
        *out = (input_text){0};
    }
    return status;
}

tare_status input_judge(calib_input *in, tare_status status, const char *path, size_t line,
                        bool *bad)
{
    *bad = status == TARE_E_DATA || status == TARE_E_FORMAT;
    if (!*bad)
        return status;
    if (!in->skip_bad)
        return TARE_WRAP(in->ctx, TARE_E_DATA, "%s:%zu", path, line);
    in->skipped++;
    return TARE_OK;
}

void input_report(calib_input *in, const char *path, uint64_t count)
{
    if (count > 0)
        TARE_WARN(in->ctx, "%s: %llu bad records skipped", path, (unsigned long long)count);
}
