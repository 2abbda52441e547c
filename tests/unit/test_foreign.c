/* file/foreign: kinds by their first bytes (from the formats' own descriptions), what is none, and
 * each reader that asks. Real files of each kind: tests/cli/test_foreign.py. */
#include "fixture.h"

#include "file/csv.h"
#include "file/foreign.h"
#include "file/json.h"
#include "file/npy.h"
#include "file/safetensors.h"
#include "file/yaml.h"

typedef struct sample {
    const char *bytes;
    size_t length;
    const char *name; /* part of it; NULL: none */
} sample;

#define S(bytes, name)                                                                             \
    {                                                                                              \
        bytes, sizeof(bytes) - 1, name                                                             \
    }

static const sample SAMPLES[] = {
    S("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    S("version https://example.com/", NULL),
    S("<!DOCTYPE html>\n<html>", "HTML"),
    S("\n <HTML lang=tr>", "HTML"),
    S("<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "XML"),
    S("<ht", NULL),
    S("Entry not found", "server"),
    S("GGUF\3\0\0\0", "GGUF"),
    S("PK\3\4\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0archive/data.pkl", "PyTorch"),
    S("PK\3\4\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0a.npy", "npz"),
    S("PK\3\4\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\0\0a.txt", "zip"),
    S("PK\5\6", "zip"),
    S("PK\3", NULL),
    S("\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "PyTorch"),
    S("\x80\x04\x95\x05\0\0\0\0\0\0\0", "pickle"),
    S("\x80\x03}q\0.", "pickle"),
    S("\x80\x03", NULL),
    S("\x1f\x8b\x08\0\0\0\0\0\0\3", "gzip"),
    S("\x28\xb5\x2f\xfd\x04", "zstd"),
    S("BZh91AY&SY", "bzip2"),
    S("\xfd"
      "7zXZ\0\0\4",
      "xz"),
    S("PAR1\x15\4", "parquet"),
    S("ARROW1\0\0", "Arrow file"),
    S("\xff\xff\xff\xff\x10\1\0\0\x10\0\0\0", "Arrow stream"),
    S("\xff\xff\xff\xff\xff\xff\xff\xff{}", NULL),
    S("SQLite format 3\0\x10\0", "SQLite"),
    S("\xff\xfe{\0\"\0", "UTF-16"),
    S("\xfe\xff\0{\0\"", "UTF-16"),
    S("{\0\"\0a\0\"\0", "UTF-16"),
    S("\0{\0\"\0a\0\"", "UTF-16"),
    S("\xff\xfe\0\0{\0\0\0", "UTF-32"),
    S("\0\0\xfe\xff\0\0\0{", "UTF-32"),
    S("{\0\0\0\"\0\0\0a\0\0\0", "UTF-32"),
    S("\0\0\0{\0\0\0\"\0\0\0a", "UTF-32"),
    S("{\0", NULL),
    S("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "zeros"),
    S("\0\0\0\0\0\0\0\0", NULL), /* too few to say */
    S("", "empty"),
    /* A length of 0x8b1f is no gzip, of 0xfeff no UTF-16, where a header of JSON follows. */
    S("\x1f\x8b\x08\0\0\0\0\0{\"", "safetensors"),
    S("\xff\xfe\0\0\0\0\0\0{}", "safetensors"),
    S("\x48\0\0\0\0\0\0\0{\"__metadata__\"", "safetensors"),
    S("\x41\0\0\0\0\0\0\0x", NULL),
    S("\x93NUMPY\1\0", "npy"),
    S("{\"a\": 1}", NULL),
    S("\xe4\xbd\xa0\xe5\xa5\xbd", NULL),
    S("BZ and hello", NULL),
    S("\xef\xbb\xbf{}", NULL),
};
enum { NUM_SAMPLES = sizeof SAMPLES / sizeof *SAMPLES };

static void test_kinds(void **state)
{
    (void)state;
    for (size_t i = 0; i < NUM_SAMPLES; i++) {
        const sample *s = &SAMPLES[i];
        char *exact = malloc(s->length + !s->length); /* so that a read beyond it shows */
        memcpy(exact, s->bytes, s->length);
        const foreign_kind *kind = foreign_recognise(exact, s->length);
        if (!kind != !s->name || (kind && !strstr(kind->name, s->name)))
            fail_msg("sample %zu: %s", i, kind ? kind->name : "unknown");
        if (kind)
            assert_true(*kind->help);
        free(exact);
    }
    char tar[512] = "a.json";
    memcpy(tar + 257, "ustar", 6);
    assert_non_null(strstr(foreign_recognise(tar, sizeof tar)->name, "tar"));
    assert_null(foreign_recognise(tar, 260));
}

/* Each reader names what is not its own, and nothing that is. */
static void test_readers(void **state)
{
    (void)state;
    tare_context *ctx = new_context(1);
    const char *d = temporary_folder();
    char path[128];
    const value *root;
    csv_table table;
    safetensors *tensors;
    npy_dict *dict;
    arena a;
    arena_init(&a, ctx);
    snprintf(path, sizeof path, "%s/f", d);
    for (size_t i = 0; i < NUM_SAMPLES; i++) {
        const sample *s = &SAMPLES[i];
        char part[64];
        if (!s->name)
            continue;
        snprintf(part, sizeof part, "%s: this is ", path);
        write_file(d, "f", s->bytes, s->length);
        assert_fails(ctx, json_parse_file(ctx, &a, path, 1 << 20, &root), TARE_E_FORMAT, part);
        assert_non_null(strstr(tare_last_error(ctx), s->name));
        bool own = strcmp(s->name, "safetensors") == 0;
        assert_fails(ctx, safetensors_open(ctx, path, &tensors), TARE_E_FORMAT, own ? path : part);
        assert_true(own != !!strstr(tare_last_error(ctx), part));
        own = strcmp(s->name, "npy") == 0;
        assert_fails(ctx, npy_open(ctx, path, &dict), TARE_E_FORMAT, own ? path : part);
        assert_true(own != !!strstr(tare_last_error(ctx), part));
        /* Some are well-formed to a reader of lines or scalars. */
        if (yaml_parse_file(ctx, &a, path, 1 << 20, &root) != TARE_OK)
            assert_non_null(strstr(tare_last_error(ctx), part));
        if (csv_parse(ctx, s->bytes, s->length, path, &table) != TARE_OK)
            assert_non_null(strstr(tare_last_error(ctx), part));
        else
            csv_free(&table);
    }
    /* No JSON, and no file of another kind: the reader's own words, also of a mark. */
    write_text(d, "f", "{\"a\": x}");
    assert_fails(ctx, json_parse_file(ctx, &a, path, 1 << 20, &root), TARE_E_FORMAT,
                 "line 1: expected a value, found 'x'");
    write_text(d, "f", "\xef\xbb\xbf{\"a\": 1}");
    assert_fails(ctx, json_parse_file(ctx, &a, path, 1 << 20, &root), TARE_E_FORMAT,
                 "found a byte order mark; save it as UTF-8 without one");
    arena_free(&a);
    assert_ok(ctx, folder_remove(ctx, d));
    free_context(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kinds),
                                       cmocka_unit_test(test_readers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
