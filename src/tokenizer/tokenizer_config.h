/* What stands beside a tokenizer.json and changes its ids: tokenizer_config.json and, where that
 * one has no added_tokens_decoder, special_tokens_map.json and added_tokens.json; config.json where
 * none of them names the tokenizer's class. All of it counts as in transformers 4.57
 * (AutoTokenizer, PreTrainedTokenizerFast and the classes of the table in tokenizer_class.c). It is
 * the one reader of these files: chat prompts and the verifier of calibration sets ask it too. */
#ifndef TARE_TOKENIZER_TOKENIZER_CONFIG_H
#define TARE_TOKENIZER_TOKENIZER_CONFIG_H

#include "file/value.h"
#include "tokenizer/added_tokens.h"

typedef enum special_kind {
    SPECIAL_BOS,
    SPECIAL_EOS,
    SPECIAL_UNK,
    SPECIAL_SEP,
    SPECIAL_PAD,
    SPECIAL_CLS,
    SPECIAL_MASK,
    NUM_SPECIAL
} special_kind;

/* Names as in the files: "bos_token", ... */
extern const char *const special_names[NUM_SPECIAL];

/* What a class of transformers does with a tokenizer.json. */
typedef struct tokenizer_class {
    const char *name;                  /* without "Fast" */
    const char *bos, *eos, *unk, *pad; /* tokens where the files say nothing; NULL: none */
    const char *const *more;           /* special tokens of its own, up to NULL; may be NULL */
    bool has_template;         /* sets the post-processor from add_bos_token, add_eos_token */
    bool add_bos;              /* default of add_bos_token */
    bool pad_is_set;           /* tokenizer.json's padding names no pad_token */
    bool token_objects;        /* tokens given as text are special and not normalized */
    bool keeps_prefix_space;   /* add_prefix_space counts only where it is said */
    bool deep_prefix_space;    /* true counts in every ByteLevel, not in the outermost alone */
    bool prefix_space_is_slow; /* add_prefix_space makes it convert the slow tokenizer */
} tokenizer_class;

/* The class of a name, with or without "Fast"; NULL: not known. */
const tokenizer_class *tokenizer_class_named(const char *name);
/* The class of the tokenizers of a model_type; the plain one if it is not known. */
const tokenizer_class *tokenizer_class_of_model(const char *model_type);
/* Of a tokenizer.json alone. */
extern const tokenizer_class tokenizer_class_plain;

/* A token as the files give it. */
typedef struct config_token {
    const char *text; /* NULL: none; borrowed from the files' trees */
    size_t length;
    bool is_text; /* given as text, not as an object with flags */
    bool special, single_word, lstrip, rstrip;
    bool has_normalized, normalized; /* not said: normalized where it is not special */
    int64_t id;                      /* of the key in added_tokens_decoder */
    uint32_t latest;                 /* there: of the first of a content the index of its last */
    uint32_t next;                   /* there: another of the content; UINT32_MAX */
} config_token;

/* All members live in the arena given to tokenizer_config_read. */
typedef struct tokenizer_config {
    tare_context *ctx;
    arena *arena;
    const char *what;       /* path of tokenizer_config.json */
    const value *overrides; /* a map whose members win; NULL */
    const value *root;      /* tokenizer_config.json; NULL: there is none */
    const value *map;       /* special_tokens_map.json where it counts; NULL */
    const value *added;     /* added_tokens.json where it counts; NULL */
    const value *model;     /* config.json; NULL: there is none, or nobody asked */
    const tokenizer_class *class;
    const char *class_source;  /* where the class is from, for messages */
    const char *unknown_class; /* a name that is not known: the class is the plain one; NULL */
    bool has_slow_model;       /* a tokenizer.model lies there */
} tokenizer_config;

/* Reads the files of `folder`; absent ones are none. `overrides` may be NULL. TARE_E_MODEL or
 * TARE_E_FORMAT names a file that is not as it should be. */
tare_status tokenizer_config_read(tare_context *ctx, arena *a, const char *folder,
                                  const value *overrides, tokenizer_config *out);
/* Sets the class from root and model: the last step of tokenizer_config_read. */
tare_status tokenizer_config_find_class(tokenizer_config *c);
/* A member of the files, the one that wins; NULL: there is none. */
const value *tokenizer_config_get(const tokenizer_config *c, const char *key);
/* *out: true or false; null is false; `otherwise` where nothing is said. */
tare_status tokenizer_config_bool(const tokenizer_config *c, const char *key, bool otherwise,
                                  bool *out);
/* A token as text or as a map with its "content". TARE_E_MODEL for anything else. */
tare_status tokenizer_config_token(const tokenizer_config *c, const value *v, const char *key,
                                   config_token *out);
/* Of files and class; out->text is NULL if there is none. */
tare_status tokenizer_config_special(const tokenizer_config *c, special_kind kind,
                                     config_token *out);

/* The tokens that transformers adds to those of `file` (the root of a tokenizer.json), in order;
 * in the arena of `c`. */
tare_status tokenizer_config_additions(const tokenizer_config *c, const value *file,
                                       added_token **out, size_t *count);

/* The stage "pre_tokenizer" of `file` as add_prefix_space and fix_mistral_regex change it; the
 * stage itself where nothing changes. Warns where transformers would build the tokenizer from
 * other files than tokenizer.json. */
tare_status tokenizer_config_pretokenizer(const tokenizer_config *c, const value *file,
                                          const value **out);

#endif
