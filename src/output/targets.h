/* What engines load: one table of facts (targets_table.c), each with its source. `tare verify
 * --target` and `tare quantize --target` go by it, and docs/targets.md is made from it.
 *
 *     const target_fact *fact = target_judge(&target, &layer);
 *
 * says what becomes of a layer, and why. */
#ifndef TARE_OUTPUT_TARGETS_H
#define TARE_OUTPUT_TARGETS_H

#include "quantize/engines.h"
#include "quantize/save_types.h"

/* What a fact is about; none of them: a limit of serving, which no file shows. */
enum {
    SUBJECT_LINEAR = 1,    /* any but a routed expert's */
    SUBJECT_EXPERT = 2,    /* a linear of a routed expert */
    SUBJECT_ATTENTION = 4, /* its key/value cache or its FA scales */
    SUBJECT_LINEARS = SUBJECT_LINEAR | SUBJECT_EXPERT,
    SUBJECT_ANY = SUBJECT_LINEARS | SUBJECT_ATTENTION
};

/* Types of the description, one bit each; C8 and FAQUANT are those of attention. */
typedef enum target_type {
    TYPE_FLOAT = 1 << 0,
    TYPE_W8A8 = 1 << 1,
    TYPE_W8A8_DYNAMIC = 1 << 2,
    TYPE_W8A8_MIX = 1 << 3,
    TYPE_W8A16 = 1 << 4,
    TYPE_W4A8_DYNAMIC = 1 << 5,
    TYPE_W4A16 = 1 << 6,
    TYPE_W8A8S = 1 << 7,
    TYPE_NF4 = 1 << 8,
    TYPE_OTHER = 1 << 9, /* one that no table here knows */
    TYPE_C8 = 1 << 10,
    TYPE_FAQUANT = 1 << 11
} target_type;

/* What else an engine looks at, a bit each. */
enum {
    TRAIT_ASYMMETRIC = 1 << 0,     /* static activations with a zero point */
    TRAIT_WEIGHT_OFFSETS = 1 << 1, /* weight_offset that is not 0 */
    TRAIT_GROUPS = 1 << 2,         /* more than one scale a row */
    TRAIT_STAGED = 1 << 3,         /* W4A8 with a second scale for each group */
    TRAIT_NEW_BIAS = 1 << 4,       /* which the architecture does not have */
    TRAIT_FUSED_DIFFER = 1 << 5,   /* members of its fused group have other types */
    TRAIT_FUSED_MISSING = 1 << 6,  /* members of its fused group are not there */
    TRAIT_EXPERTS_DIFFER = 1 << 7, /* so have experts of its layer */
    TRAIT_NO_WEIGHT_SCALE = 1 << 8,
    TRAIT_DEQ_DTYPE = 1 << 9,      /* deq_scale is not of the serving dtype's kind */
    TRAIT_FLOAT16 = 1 << 10,       /* the serving dtype is float16 */
    TRAIT_BFLOAT16 = 1 << 11,      /* or bfloat16 */
    TRAIT_PREFIX = 1 << 12,        /* its name begins that of a FLOAT sibling */
    TRAIT_CONFIG = 1 << 13,        /* config.json has another quantization_config */
    TRAIT_NO_QUANTIZE = 1 << 14,   /* config.json does not name the type in `quantize` */
    TRAIT_QUANT_TYPE = 1 << 15,    /* several types, and model_quant_type names not the first */
    TRAIT_LATENT = 1 << 16,        /* latent attention (MLA) */
    TRAIT_HEAD_DIM = 1 << 17,      /* heads that 32 does not divide */
    TRAIT_NO_CACHE_TYPE = 1 << 18, /* the description lacks kv_cache_type "C8" */
    TRAIT_CACHE_OFFSETS = 1 << 19, /* offsets of the cache that are not 0 */
    TRAIT_NO_FAK = 1 << 20,        /* fa_quant_type is not "FAKQuant" */
    TRAITS = 21
};

typedef struct target_layer {
    const char *name;
    layout layout;
    unsigned subject, type; /* one bit each */
    unsigned traits;
    const char *family; /* model_type; "": not known */
} target_layer;

typedef struct target_fact {
    engine engine;
    uint32_t from, to;        /* versions, both included; 0: no bound */
    unsigned layouts;         /* SAVE_* bits; 0: any */
    unsigned subjects, types; /* types 0: any */
    unsigned traits, without; /* needs all of the first, and none of the second */
    const char *families;     /* those of these model types, with spaces between; NULL: any */
    const char *others;       /* those of other model types than these; NULL: any */
    tare_verdict verdict;
    int rule;          /* of docs/verify.md that it is reported as */
    const char *why;   /* half a sentence; "" if there is nothing to say */
    const char *works; /* what would load instead; NULL: nothing to say */
    const char *source;
} target_fact;

extern const target_fact target_facts[];
extern const size_t num_target_facts;

/* The fact that decides: of all that hold the first of the worst verdict. A layer that the table
 * has nothing on is not known. */
const target_fact *target_judge(const serving_target *t, const target_layer *layer);
bool target_fact_holds(const target_fact *fact, const serving_target *t, const target_layer *layer);
/* Bits of the layouts that it reads at all. */
unsigned target_layouts(const serving_target *t);
/* The layout of `found` (bits) that it would be given: the first that it reads; if it reads none,
 * the first there is. */
layout target_layout(const serving_target *t, unsigned found);

/* By the string of a description. */
target_type target_type_of(const char *type);
/* "W8A8", of one bit */
const char *target_type_text(unsigned type);
/* "loads", "runs unquantized", "is refused", "is not known" */
const char *target_verdict_text(tare_verdict verdict);

#endif
