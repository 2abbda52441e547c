/* Speed of the tokenizer on one thread, as CSV: what,unit,value.
 *     bench_tokenizer [MODEL [TEXT]]
 * MODEL is a tokenizer.json or its folder, by default that of the demo; TEXT by default README.md.
 * The text is repeated up to 16 MiB. The speed of utf8_valid() on the same bytes is the yardstick.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/strings.h"
#include "file/io.h"

enum { SIZE = 16 << 20, LONG_WORD = 1 << 20, ROUNDS = 3 };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void require(const tare_context *ctx, tare_status status)
{
    if (status == TARE_OK)
        return;
    fprintf(stderr, "bench_tokenizer: %s\n", tare_last_error(ctx));
    exit(1);
}

/* The best of some rounds. */
static void bench_encode(tare_context *ctx, tare_tokenizer *t, const char *what, const char *text,
                         size_t length)
{
    double best = 1e9;
    size_t count = 0, decoded_length;
    uint32_t *ids = NULL;
    char *decoded;
    for (int i = 0; i < ROUNDS; i++) {
        tare_free(ctx, ids);
        double begin = seconds();
        require(ctx, tare_tokenizer_encode(t, text, length, true, &ids, &count));
        double time = seconds() - begin;
        best = time < best ? time : best;
    }
    printf("encode %s,MB/s,%.1f\n", what, (double)length / best * 1e-6);
    printf("encode %s,M tokens/s,%.1f\n", what, (double)count / best * 1e-6);
    double begin = seconds();
    require(ctx, tare_tokenizer_decode(t, ids, count, false, &decoded, &decoded_length));
    printf("decode %s,MB/s,%.1f\n", what, (double)length / (seconds() - begin) * 1e-6);
    tare_free(ctx, decoded);
    tare_free(ctx, ids);
}

static void bench_valid(const char *text, size_t length)
{
    double begin = seconds();
    bool valid = utf8_valid(text, length);
    printf("utf8_valid (%s),MB/s,%.0f\n", valid ? "valid" : "not valid",
           (double)length / (seconds() - begin) * 1e-6);
}

int main(int argc, char **argv)
{
    const char *model = argc > 1 ? argv[1] : "build/demo/SmolLM2-135M-Instruct";
    const char *path = argc > 2 ? argv[2] : "README.md";
    tare_context *ctx;
    tare_tokenizer *t;
    char *source, *text;
    size_t file_length, length = 0;
    if (argc < 2 && !path_exists(model)) {
        printf("# no %s (make demo): usage: bench_tokenizer [MODEL [TEXT]]\n", model);
        return 0;
    }
    if (tare_context_create(&ctx, NULL) != TARE_OK)
        return 1;
    require(ctx, file_read_all(ctx, path, SIZE, &source, &file_length));
    double begin = seconds();
    require(ctx, tare_tokenizer_open(ctx, model, &t));
    printf("open,ms,%.1f\n", (seconds() - begin) * 1e3);
    printf("open,peak MB,%.1f\n", (double)tare_memory_peak(ctx) * 1e-6);
    text = mem_alloc(ctx, SIZE + 1);
    if (!text || !file_length)
        return 1;
    for (; length + file_length <= SIZE; length += file_length)
        memcpy(text + length, source, file_length);
    bench_valid(text, length);
    bench_encode(ctx, t, path, text, length);
    memset(text, 'a', LONG_WORD);
    bench_encode(ctx, t, "1 MiB of one letter", text, LONG_WORD);
    mem_free(ctx, text);
    mem_free(ctx, source);
    tare_tokenizer_free(t);
    tare_context_free(ctx);
    return 0;
}
