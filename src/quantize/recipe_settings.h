/* The rows of the table of settings: private to the files that read and write recipes. */
#ifndef TARE_QUANTIZE_RECIPE_SETTINGS_H
#define TARE_QUANTIZE_RECIPE_SETTINGS_H

#include "quantize/recipe.h"
#include "quantize/save_types.h"

typedef enum setting_type {
    SETTING_INT,
    SETTING_FLOAT,
    SETTING_BOOL,
    SETTING_SWITCH, /* int64_t: 0, 1, or -1 if nobody said */
    SETTING_CHOICE, /* one of names[]; stored as its number */
    SETTING_LEVEL,  /* "L0", "L1", … */
    SETTING_LIST,
    SETTING_MIX,    /* pattern = scheme pairs, in order */
    SETTING_AMP,    /* fa_amp, whose refusals have the reference's words */
    SETTING_MEMORY, /* device = size pairs; not written, as no output depends on them */
    SETTING_TARGET, /* an engine and its version */
    SETTING_SECTION /* bool, with the key "": the section is there, as a map or as true */
} setting_type;

typedef struct setting {
    const char *section, *key;
    setting_type type;
    size_t offset;         /* in struct tare_recipe */
    double low, high;      /* of numbers */
    const choice *choices; /* ends with a NULL name */
} setting;

enum { NUM_SETTINGS = 46 };

extern const setting recipe_settings[NUM_SETTINGS];

/* Where a recipe keeps a setting. */
static inline void *setting_at(const tare_recipe *r, const setting *s)
{
    return (char *)(uintptr_t)r + s->offset;
}

#endif
