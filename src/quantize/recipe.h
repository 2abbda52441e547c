/* A recipe: every setting of a run, by the names of a recipe file. One table (recipe.c) gives each
 * its type, range and default; the YAML reader, tare_recipe_set (and through it the command line)
 * and tare_run.json all go by it. */
#ifndef TARE_QUANTIZE_RECIPE_H
#define TARE_QUANTIZE_RECIPE_H

#include "base/dtype.h"
#include "base/strings.h"
#include "model/mtp.h"
#include "quantize/engines.h"
#include "quantize/max_memory.h"
#include "quantize/scheme.h"
#include "quantize/schemes.h"

/* A list of strings that the recipe owns. */
typedef struct string_list {
    char **items;
    size_t count, capacity;
} string_list;

void string_list_clear(tare_context *ctx, string_list *l);
tare_status string_list_add(tare_context *ctx, string_list *l, const char *text, size_t length);

/* Linears whose name `pattern` matches get `scheme`. */
typedef struct mix_entry {
    char *pattern;
    linear_scheme scheme;
} mix_entry;

typedef struct mix_list {
    mix_entry *items;
    size_t count, capacity;
} mix_list;

void mix_list_clear(tare_context *ctx, mix_list *l);
tare_status mix_list_add(tare_context *ctx, mix_list *l, const char *pattern, size_t length,
                         linear_scheme scheme);

typedef enum weight_setting {
    WEIGHTS_SSZ,    /* scales of 4 bits by least squares */
    WEIGHTS_MINMAX, /* all scales by the largest weight */
    WEIGHTS_GPTQ    /* the same, and integers by what their linears read (quantize/gptq.h) */
} weight_setting;

typedef enum compute_setting { COMPUTE_AUTO, COMPUTE_FP32, COMPUTE_BF16 } compute_setting;

struct tare_recipe {
    tare_context *ctx;
    /* quant */
    int64_t scheme; /* linear_scheme; -1: as the bits say */
    int64_t w_bit, a_bit, act_method, seed;
    int64_t a_sym;        /* 1: symmetric static activations; -1: as the save types say */
    int64_t final_scales; /* 1: an input's scale knows all samples before it is used; -1: with
                             act_method 4 and gptq */
    bool mm_tensor, w_sym;
    int64_t weight_method; /* weight_setting */
    double pr;
    int64_t kv_cache; /* 1: c8, INT8 keys and values; 0: as they are */
    bool kv_sym;      /* their offsets are 0 */
    bool kv_pairs;    /* keys that positions turn together share a scale for every position */
    int64_t mtp;      /* mtp_mode; -1: nobody said, which is MTP_NONE */
    mix_list mix;     /* in order; the first that matches counts */
    /* rotation */
    bool rotation; /* the section itself */
    int64_t rotation_seed;
    bool rotation_r1, rotation_r2;       /* of the residual stream; of values */
    bool rotation_align, rotation_flips; /* r1 by what samples show */
    /* anti_outlier */
    int64_t anti_method;            /* a smooth_method; 0: none */
    int64_t anti_w_bit, anti_a_bit; /* seen by m3 alone */
    bool anti_w_sym;                /* the same */
    string_list disable_anti_names;
    double anti_alpha, anti_beta; /* of m6; NaN: searched */
    /* fa_quant */
    bool fa_quant;     /* the section itself: `fa_quant: {}` or true */
    bool fa_amp_given; /* somebody named it */
    int64_t fa_amp;
    bool fa_balance;  /* magnitudes of queries and keys are made equal first */
    int64_t fa_v_mse; /* v_method: 1: mse, 0: max */
    /* fallback */
    int64_t disable_level; /* n of "Ln" */
    bool disable_last_linear;
    string_list disable_names;
    /* calibration */
    int64_t samples, max_length; /* 0: all; none */
    /* save */
    string_list save_types;
    int64_t part_file_size; /* GiB; 0: one file; -1: the save type's default */
    int64_t npy_values;     /* 0: numpy, 1: torch, -1: as compat says */
    /* run */
    int64_t dtype;   /* DTYPE_SETTING_*: tare_dtype, or -1: as config.json says */
    int64_t compute; /* compute_setting */
    int64_t compat;  /* 0: none, 1: msmodelslim */
    serving_target target;
    max_memory max_memory;
};

/* The scheme of linears that nothing else is said of. */
linear_scheme recipe_scheme(const tare_recipe *recipe);
/* May a linear have this scheme by the run's own or by mix? */
bool recipe_uses(const tare_recipe *recipe, linear_scheme scheme);
/* How weights of that scheme are quantized. */
weight_method recipe_weight_method(const tare_recipe *recipe, linear_scheme scheme);
/* Are weights rounded by their inputs? */
bool recipe_gptq(const tare_recipe *recipe);
/* Are static inputs observed over all samples before these go on? */
bool recipe_final_scales(const tare_recipe *recipe);
/* Do npy files hold torch tensors? By default only under compat, as in the reference's. */
bool recipe_npy_torch(const tare_recipe *recipe);
/* Checks what no single setting shows: widths that go together, settings without the one that they
 * belong to. TARE_E_USAGE; warns of what is odd but allowed. */
tare_status recipe_check(const tare_recipe *recipe);
/* Its two halves: of what is computed, of what the save types can hold. */
tare_status recipe_check_scheme(const tare_recipe *recipe);
tare_status recipe_check_save(const tare_recipe *recipe);
/* A copy without max_memory whose lists live in `a`; not to be freed. */
tare_status recipe_copy(const tare_recipe *recipe, arena *a, tare_recipe *out);
/* Changes are all or nothing: *draft <- a copy with lists of its own, to be changed (also after a
 * failure it is to be settled). Then, if `status` is TARE_OK, it becomes the recipe; else the
 * recipe stays as it is. Returns `status`. */
tare_status recipe_draft(const tare_recipe *recipe, tare_recipe *draft);
tare_status recipe_settle(tare_recipe *recipe, tare_recipe *draft, tare_status status);
/* Appends the effective settings as a JSON map, indented by two spaces from `level` on. */
void recipe_write(const tare_recipe *recipe, buffer *out, int level);

/* The recipes that ship with the library (recipes/, compiled in): their YAML text and name, ordered
 * by name. */
typedef struct shipped_recipe {
    const char *name; /* "default" */
    const unsigned char *text;
    size_t length;
} shipped_recipe;

extern const shipped_recipe shipped_recipes[];
extern const size_t num_shipped_recipes;

#endif
