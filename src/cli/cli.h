/* The command line: one file a command, on the public API alone. Results go to stdout, progress and
 * log to stderr. Exit: 0 done; 2 wrong command line, recipe, refused budget or folder; 1 everything
 * else; 130, 143 after SIGINT, SIGTERM. */
#ifndef TARE_CLI_CLI_H
#define TARE_CLI_CLI_H

#include <stdio.h>

#include "tare/tare.h"

enum { EXIT_USAGE = 2, MAX_POSITIONAL = 4, MAX_SETTINGS = 256 };

typedef enum flag_kind {
    FLAG_SWITCH,      /* *(bool *) = true */
    FLAG_OFF,         /* *(bool *) = false */
    FLAG_TEXT,        /* *(const char **) = value */
    FLAG_COUNT,       /* *(size_t *) = value, above 0 */
    FLAG_SETTING,     /* recipe setting = value */
    FLAG_ON_SETTING,  /* recipe setting = "true" */
    FLAG_OFF_SETTING, /* recipe setting = "false" */
    FLAG_SECTION /* recipe setting = "true", and with a number behind it `target`, another one */
} flag_kind;

typedef struct flag {
    const char *name; /* with its dashes; NULL ends a table */
    flag_kind kind;
    void *target;        /* bool, const char * or size_t; of FLAG_SECTION char */
    const char *setting; /* "quant.w_bit" */
} flag;

/* A setting given on the command line; applied after the recipe file, so that flags win. */
typedef struct given_setting {
    const char *setting, *value;
} given_setting;

/* What every command takes. */
typedef struct common {
    const char *threads, *cpu;
    bool quiet, verbose, json, help;
    const char *positional[MAX_POSITIONAL];
    size_t num_positional;
    given_setting settings[MAX_SETTINGS];
    size_t num_settings;
} common;

typedef struct command {
    const char *name, *summary, *usage; /* usage: the text of `tare help NAME` */
    int (*run)(int argc, char **argv);
    const flag *settings; /* that it takes beside its own flags; NULL: none */
} command;

extern const command command_quantize, command_retype, command_calib, command_generate,
    command_verify, command_inspect, command_tokenize;

/* Settings of an output's making, for commands whose `settings` they are; ends with a NULL name. */
extern const flag cli_output_settings[];

/* Parses argv[1..] by `flags`, the command's settings and the common ones, with exactly
 * `positional` arguments. 0, or EXIT_USAGE after a message; -1 if --help was given (printed). */
int cli_parse(const command *c, int argc, char **argv, const flag *flags, size_t positional,
              common *out);
/* A context with log, progress and signal handling as `options` say. NULL after a message. */
tare_context *cli_open(const common *options, int *exit_code);
/* Prints the error of `status`, frees the context, gives the exit code. */
int cli_close(tare_context *ctx, tare_status status);
/* Recipe file (may be NULL), then the given settings, into `recipe`. */
tare_status cli_recipe(const common *options, const char *file, tare_recipe *recipe);
/* EXIT_USAGE, after a message. */
int cli_missing(const command *c, const char *option);
/* Runs, or only plans, with the recipe of an earlier output (o->statistics), the file's and the
 * given settings, and prints the summary. Gives the exit code. */
int cli_quantize(const common *options, tare_quantize_options *o, const char *recipe_file,
                 bool dry_run);
/* A JSON string on stdout. */
void cli_print_json(const char *text);
/* The same of text that may hold NUL bytes. */
void cli_print_json_string(const char *text, size_t length);
/* The result of a dry run, on stdout. */
void cli_print_plan(const tare_quantize_options *o, const tare_plan *p, bool json);
/* What verifying the sets of a mix will take, on stdout; `batch_given`: --batch-size. `probe`:
 * measures the machine for an estimate of the time. */
tare_status cli_print_calib_plan(tare_calib *calib, tare_model *model, const char *model_name,
                                 bool batch_given, bool probe, bool json);
/* "12 min" */
const char *cli_duration(double seconds, char *text, size_t length);
/* "1.2 GiB" */
const char *cli_size(double bytes, char *text, size_t length);

#endif
