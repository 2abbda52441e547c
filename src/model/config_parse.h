/* What the files that read config.json share. */
#ifndef TARE_MODEL_CONFIG_PARSE_H
#define TARE_MODEL_CONFIG_PARSE_H

#include "file/json.h"
#include "model/config.h"

enum { MAX_DIM = 1 << 24, MAX_LAYERS = 1 << 16 };

typedef struct parse {
    tare_context *ctx;
    arena *arena;
    const char *what;
    const value *root;
    model_config *out;
} parse;

#define REFUSE(p, ...)                                                                             \
    TARE_WRAP((p)->ctx, TARE_FAIL((p)->ctx, TARE_E_MODEL, __VA_ARGS__), "%s", (p)->what)

/* A required (fallback 0) or optional size in 1..limit. */
tare_status parse_size(parse *p, const char *key, size_t fallback, size_t limit, size_t *out);

/* config_experts.c: which layers have experts, their sizes and their router; the geometry of latent
 * attention. */
tare_status parse_experts(parse *p);
tare_status parse_latent_sizes(parse *p);

#endif
