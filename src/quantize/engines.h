/* The engines that outputs are for, by name and version: "vllm-ascend@0.23". What each of them
 * loads is the table of output/targets.h. */
#ifndef TARE_QUANTIZE_ENGINES_H
#define TARE_QUANTIZE_ENGINES_H

#include <stdint.h>

#include "base/context.h"

typedef enum engine {
    ENGINE_NONE,
    ENGINE_VLLM_ASCEND,
    ENGINE_SGLANG, /* on Ascend */
    ENGINE_MINDIE,
    ENGINE_VLLM,
    ENGINES
} engine;

/* Versions compare as numbers. */
#define ENGINE_VERSION(major, minor) ((uint32_t)(major) << 16 | (uint32_t)(minor))
#define ENGINE_MAIN                  UINT32_MAX /* the branch that the next release comes from */

enum { ENGINE_VERSIONS = 8 };

typedef struct engine_row {
    const char *name;
    /* Those that the table knows, oldest first; ends with 0. */
    uint32_t versions[ENGINE_VERSIONS];
} engine_row;

/* What an output is for; engine ENGINE_NONE: nobody said. */
typedef struct serving_target {
    engine engine;
    uint32_t version; /* one of the engine's */
} serving_target;

const engine_row *engine_of(engine which);
/* "vllm-ascend", "vllm-ascend@0.23", also "@v0.23.0" and "@0.23.0.post1"; without a version the
 * newest that is known. TARE_E_USAGE names what is known. */
tare_status serving_target_parse(tare_context *ctx, const char *text, serving_target *out);
/* "0.23", "main"; returns `out`. */
enum { VERSION_TEXT = 24 };
const char *engine_version_text(uint32_t version, char out[VERSION_TEXT]);
/* "vllm-ascend@0.23"; returns `out`. */
enum { TARGET_TEXT = 64 };
const char *serving_target_text(const serving_target *t, char out[TARGET_TEXT]);

#endif
