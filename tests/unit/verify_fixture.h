/* What the tests of `tare verify` share: an output in which one thing is broken, and which rules
 * say so. */
#ifndef TARE_TESTS_VERIFY_FIXTURE_H
#define TARE_TESTS_VERIFY_FIXTURE_H

#include "output_fixture.h"

#include <fcntl.h>

#define SHARD        "quant_model_weights-00001-of-00001.safetensors"
#define INDEX        "quant_model_weights.safetensors.index.json"
#define DESCRIPTION  "quant_model_description.json"
#define SAFE_WEIGHTS "quant_model_weight_w8a8.safetensors"
#define SAFE_TYPES   "quant_model_description_w8a8.json"

/* ---- findings ---- */

typedef struct findings {
    unsigned failed, warned; /* bit of each rule */
    char text[16384];
} findings;

static inline void keep(void *user, const tare_finding *f)
{
    findings *all = user;
    size_t used = strlen(all->text);
    bool failure = f->severity == TARE_FINDING_FAILURE;
    *(failure ? &all->failed : &all->warned) |= 1u << f->rule;
    snprintf(all->text + used, sizeof all->text - used, "%s rule %d: %s: found %s, expected %s\n",
             failure ? "failure" : "warning", f->rule, f->tensor, f->found, f->expected);
}

static inline tare_status run_verify(tare_context *ctx, const output_case *c, const char *base,
                                     findings *all, tare_verify_result *result)
{
    tare_verify_options options;
    tare_verify_options_init(&options);
    memset(all, 0, sizeof *all);
    options.dir = c->out;
    options.base = base;
    options.compat = c->num.compat ? "msmodelslim" : NULL;
    options.target = c->target;
    options.finding = keep;
    options.user = all;
    return tare_verify(ctx, &options, result);
}

/* Exactly the rules `failed` and `warned` (sets of 1 << rule) report. */
static inline void expect_findings(const output_case *c, const char *base, unsigned failed,
                                   unsigned warned)
{
    findings all;
    tare_context *ctx = new_context(1);
    tare_status status = run_verify(ctx, c, base, &all, NULL);
    if (status != (failed ? TARE_E_VERIFY : TARE_OK) || all.failed != failed ||
        all.warned != warned)
        fail_msg("status %d (%s); failures %#x (expected %#x), warnings %#x (%#x):\n%s",
                 (int)status, tare_last_error(ctx), all.failed, failed, all.warned, warned,
                 all.text);
    free_context(ctx);
}

#define RULE(n) (1u << (n))

/* ---- breaking things ---- */

static inline void file_path_of(const output_case *c, const char *name, char *path, size_t size)
{
    snprintf(path, size, "%s/%s", c->out, name);
}

/* Overwrites bytes of a tensor. */
static inline void patch(const output_case *c, const char *name, const char *tensor, size_t offset,
                         const void *data, size_t size)
{
    char path[256];
    safetensors *s;
    tare_context *ctx = new_context(1);
    file_path_of(c, name, path, sizeof path);
    assert_ok(ctx, safetensors_open(ctx, path, &s));
    const tensor_info *t = safetensors_find(s, tensor);
    assert_non_null(t);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, data, size, (off_t)(t->offset + offset)), size);
    close(fd);
    safetensors_close(s);
    free_context(ctx);
}

static inline void patch_float(const output_case *c, const char *tensor, float x)
{
    patch(c, SHARD, tensor, 0, &x, sizeof x);
}

/* Replaces the first `from` in a file by `to`; a safetensors header keeps its length. */
static inline void replace(const output_case *c, const char *name, const char *from, const char *to)
{
    static char text[65536];
    char path[256];
    file_path_of(c, name, path, sizeof path);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t size = fread(text, 1, sizeof text, f), at = 0, length = strlen(from);
    fclose(f);
    while (at + length <= size && memcmp(text + at, from, length) != 0)
        at++;
    if (at + length > size)
        fail_msg("%s holds no %s", name, from);
    f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(text, 1, at, f);
    fwrite(to, 1, strlen(to), f);
    fwrite(text + at + length, 1, size - at - length, f);
    fclose(f);
}

static inline void delete_file(const output_case *c, const char *name)
{
    char path[256];
    file_path_of(c, name, path, sizeof path);
    assert_int_equal(unlink(path), 0);
}

/* The model's weights, so that the output can be compared with its base. */
static inline void write_model_weights(const output_case *c)
{
    const tensor_info tensors[] = {bf16_tensor("model.embed_tokens.weight", 2, 3),
                                   bf16_tensor("model.norm.weight", 3, 0),
                                   bf16_tensor(O_PROJ ".weight", 3, 2),
                                   bf16_tensor(Q_PROJ ".weight", 2, 3),
                                   bf16_tensor(K_PROJ ".weight", 1, 3),
                                   bf16_tensor(Q_PROJ ".bias", 2, 0)};
    const void *data[] = {EMBED_BF16, NORM_BF16, O_BF16, Q_BF16, K_BF16, BIAS_BF16};
    const size_t sizes[] = {12, 6, 12, 12, 6, 4};
    char path[256];
    safetensors_writer *w;
    tare_context *ctx = new_context(1);
    snprintf(path, sizeof path, "%s/model.safetensors", c->model);
    assert_ok(ctx, safetensors_create(ctx, path, tensors, 6, &w));
    for (size_t i = 0; i < 6; i++)
        assert_ok(ctx, safetensors_write(w, i, 0, data[i], sizes[i]));
    assert_ok(ctx, safetensors_finish(w));
    free_context(ctx);
}

/* ---- the corpus ---- */

typedef void (*breakage)(const output_case *c);

/* One broken thing, and the rules that fail and warn because of it. */
typedef struct broken {
    breakage action;
    unsigned failed, warned;
} broken;

/* Each one in an output of its own. */
static inline void break_each(const broken *rows, size_t count, unsigned save)
{
    for (size_t i = 0; i < count; i++) {
        output_case c;
        init_case(&c);
        c.save = save;
        make_good_output(&c);
        rows[i].action(&c);
        expect_findings(&c, NULL, rows[i].failed, rows[i].warned);
        end_case(&c);
    }
}

#endif
