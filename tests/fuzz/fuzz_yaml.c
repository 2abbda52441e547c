/* YAML: whatever the bytes, the parser ends with a tree or a message. A tree is valid JSON when
 * written, and strict JSON when read back. */
#include <stdlib.h>
#include <string.h>

#include "file/json.h"
#include "file/yaml.h"

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tare_context *ctx;
    check(tare_context_create(&ctx, NULL) == TARE_OK);
    arena a;
    arena_init(&a, ctx);
    buffer first, second;
    buffer_init(&first, ctx);
    buffer_init(&second, ctx);
    const value *root, *again;
    tare_status status = yaml_parse(ctx, &a, (const char *)data, size, "fuzz", &root);
    check(status == TARE_OK || (status == TARE_E_FORMAT && !root && tare_last_error(ctx)[0]));
    if (status == TARE_OK) {
        json_write_value(&first, root, 0, 0);
        check(json_parse(ctx, &a, first.data, first.length, "fuzz", JSON_STRICT, &again) ==
              TARE_OK);
        json_write_value(&second, again, 0, 0);
        check(first.length == second.length && !memcmp(first.data, second.data, first.length));
    }
    buffer_free(&first);
    buffer_free(&second);
    arena_free(&a);
    check(tare_memory_used(ctx) == 0);
    tare_context_free(ctx);
    return 0;
}
