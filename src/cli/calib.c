/* tare calib */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const char usage[] =
    "usage: tare calib --config FILE.json --size NAME=N[,NAME=N...] --out FILE.json [options]\n"
    "\n"
    "Draws samples {\"prompt\", \"ans\"} from several question sets, shuffles them together and "
    "writes\n"
    "a JSON list that tare quantize --calib takes.\n"
    "\n"
    "  --config FILE.json       the sets: {\"configurations\": [{\"dataset_name\": NAME, "
    "\"dataset_path\": PATH}, ...]};\n"
    "                           NAME is boolq, ceval_5_shot, gsm8k or mmlu, or any name with "
    "\"type\": \"jsonl\"\n"
    "  --size NAME=N,...        how many samples of each set; repeatable; \"\" asks for nothing\n"
    "  --out FILE.json          the mix\n"
    "  --overwrite              replace an existing FILE.json\n"
    "  --seed S                 shuffles the mix (default 0)\n"
    "  --sample-seed S          chooses the samples of every set (default: 0)\n"
    "  --mmlu-shots K           0 to 5 examples before each question of mmlu (default 0)\n"
    "  --skip-bad               leave bad records out, and count them, instead of stopping\n"
    "  --compat msmodelslim     the reference system's treatment of CSV cells and of batches\n"
    "\n"
    "  --model DIR --positive   only samples that this checkpoint answers right\n"
    "  --batch-size N           most prompts that it is asked together (default 4); the result "
    "does "
    "not depend on it\n"
    "  --gsm8k-sampling         sampled instead of greedy answers to gsm8k\n"
    "  --gsm8k-seed S           draws them (default 0)\n"
    "  --max-memory cpu=SIZE    most memory that the process may hold, for example cpu=8GiB; "
    "weights "
    "that do not fit\n"
    "                           are read for each new token, of as many prompts together as fit, "
    "unless --batch-size\n"
    "                           is given\n"
    "  --scratch-dir DIR        where keys and values go that do not fit (default: the folder "
    "FILE.json.tare)\n"
    "  --resume                 go on with the sets that a run finished before it was interrupted "
    "or "
    "killed\n"
    "  --dry-run                only say what the verification will take: passes over the weights, "
    "bytes, memory,\n"
    "                           time, and what is cheaper; with --json, as JSON. Needs no --out\n"
    "  --no-probe               with --dry-run: do not measure this machine, so without a time\n"
    "  --threads N              threads (default: one a core that affinity and CPU quota leave); "
    "the result does not\n"
    "                           depend on them\n"
    "  --quiet, --verbose       less, more on stderr\n"
    "\n"
    "The config file may hold compat, skip_bad, mmlu_shots, sample_seed, gsm8k_sampling and "
    "gsm8k_seed, too; the\n"
    "command line wins.\n";

typedef struct calib_flags {
    const char *config, *out, *seed, *sample_seed, *shots, *compat;
    const char *model, *gsm8k_seed, *max_memory, *scratch_dir;
    size_t batch_size;
    bool skip_bad, overwrite, positive, gsm8k_sampling, resume, dry_run, probe, json, quiet;
} calib_flags;

/* The words of the seeds. */
typedef struct seeds {
    uint32_t shuffle[2], sample[2], gsm8k[2];
} seeds;

/* A list of name=N that was given. */
typedef struct sizes {
    char **names;
    int64_t *values;
    size_t count, capacity;
} sizes;

static int refuse(const char *what, const char *value)
{
    fprintf(stderr, "tare calib: %s: \"%s\"; see tare help calib\n", what, value);
    return EXIT_USAGE;
}

/* ---- values ---- */

/* The words of |S| < 2^64, written as decimal digits with an optional sign. */
static int parse_seed(const char *option, const char *text, uint32_t words[2])
{
    const char *digits = text + (*text == '-' || *text == '+');
    char *end;
    errno = 0;
    unsigned long long value = strtoull(digits, &end, 10);
    if (*digits < '0' || *digits > '9' || *end || errno)
        return refuse(option, text);
    words[0] = (uint32_t)value;
    words[1] = (uint32_t)(value >> 32);
    return 0;
}

static int parse_shots(const char *text, int32_t *out)
{
    if (text[0] < '0' || text[0] > '5' || text[1])
        return refuse("--mmlu-shots takes a number from 0 to 5", text);
    *out = text[0] - '0';
    return 0;
}

static bool has_name(const sizes *s, const char *name)
{
    for (size_t i = 0; i < s->count; i++) {
        if (strcmp(s->names[i], name) == 0)
            return true;
    }
    return false;
}

/* More than int64 holds is as many as there are. */
static bool parse_count(const char *digits, int64_t *out)
{
    if (!*digits || digits[strspn(digits, "0123456789")])
        return false;
    errno = 0;
    *out = strtoll(digits, NULL, 10);
    return true;
}

static int add_size(sizes *s, char *item)
{
    char *equals = strrchr(item, '=');
    int64_t value;
    if (!equals || !parse_count(equals + 1, &value))
        return refuse("--size takes NAME=N", item);
    *equals = 0;
    if (has_name(s, item))
        return refuse("--size names a set twice", item);
    s->names[s->count] = item;
    s->values[s->count++] = value;
    return 0;
}

/* Room for every item of every --size; the names point into *text, a copy of the values. */
static int parse_sizes(const common *options, sizes *s, char **text)
{
    size_t items = 0, length = 1;
    for (size_t i = 0; i < options->num_settings; i++) {
        const char *value = options->settings[i].value;
        length += strlen(value) + 1;
        for (items++; *value; value++)
            items += *value == ',';
    }
    *text = malloc(length);
    s->names = malloc(items * sizeof *s->names);
    s->values = malloc(items * sizeof *s->values);
    if (!*text || !s->names || !s->values) {
        fprintf(stderr, "tare calib: out of memory\n");
        return 1;
    }
    char *p = *text;
    for (size_t i = 0; i < options->num_settings; i++) {
        strcpy(p, options->settings[i].value);
        for (char *item = p, *comma; *p; item = comma + 1) {
            if ((comma = strchr(item, ',')))
                *comma = 0;
            int code = add_size(s, item);
            if (code)
                return code;
            if (!comma)
                break;
        }
        p += strlen(options->settings[i].value) + 1;
    }
    return 0;
}

/* ---- the run ---- */

static void print_stats(tare_calib *calib)
{
    for (size_t i = 0; i < tare_calib_num_sets(calib); i++) {
        tare_calib_stats s = {.size = sizeof s};
        const char *name = tare_calib_set_name(calib, i);
        if (tare_calib_get_stats(calib, name, &s) == TARE_OK)
            fprintf(stderr, "%s: requested %llu, available %llu, delivered %llu, skipped %llu\n",
                    name, (unsigned long long)s.requested, (unsigned long long)s.available,
                    (unsigned long long)s.delivered, (unsigned long long)s.skipped);
    }
}

/* Mixes, or with --dry-run says what that takes; `model` NULL: nobody is asked. */
static tare_status mix(tare_calib *calib, tare_model *model, const calib_flags *f, const sizes *s,
                       const uint32_t seed[2])
{
    tare_status status = tare_calib_set_sizes(calib, (const char *const *)s->names, s->values,
                                              s->count);
    if (status == TARE_OK && f->batch_size)
        status = tare_calib_set_batch_size(calib, f->batch_size < INT64_MAX ? (int64_t)f->batch_size
                                                                            : INT64_MAX);
    if (status == TARE_OK)
        status = tare_calib_set_shuffle_seed(calib, seed, 2);
    if (status == TARE_OK && f->dry_run)
        return cli_print_calib_plan(calib, model, f->model, f->batch_size > 0, f->probe, f->json);
    if (status == TARE_OK)
        status = tare_calib_process(calib, NULL);
    return status;
}

/* The same with a model that judges. */
static tare_status mix_positive(tare_context *ctx, tare_calib *calib, const calib_flags *f,
                                const sizes *s, const uint32_t seed[2])
{
    tare_model *model = NULL;
    tare_tokenizer *tokenizer = NULL;
    tare_calib_verifier verifier = {.size = sizeof verifier};
    tare_status status = tare_model_open(ctx, f->model, &model);
    if (status == TARE_OK)
        status = tare_tokenizer_open(ctx, f->model, &tokenizer);
    if (status == TARE_OK)
        status = tare_model_verifier_create(model, tokenizer, &verifier);
    if (status == TARE_OK)
        status = tare_calib_set_verifier(calib, &verifier);
    if (status == TARE_OK) /* a dry run writes nothing: any name serves */
        status = tare_model_verifier_set_scratch(&verifier, f->scratch_dir ? f->scratch_dir
                                                            : f->dry_run
                                                                ? "."
                                                                : tare_calib_work_folder(calib));
    if (status == TARE_OK)
        status = mix(calib, model, f, s, seed);
    tare_model_verifier_free(&verifier);
    tare_tokenizer_free(tokenizer);
    tare_model_free(model);
    return status;
}

static tare_status open_and_mix(tare_context *ctx, const calib_flags *f,
                                const tare_calib_options *o, const sizes *s, const uint32_t seed[2])
{
    tare_calib *calib = NULL;
    tare_status status = f->max_memory ? tare_context_set_max_memory(ctx, f->max_memory) : TARE_OK;
    if (status == TARE_OK)
        status = tare_calib_open(ctx, f->config, f->dry_run ? NULL : f->out, o, &calib);
    if (status == TARE_OK)
        status = f->positive ? mix_positive(ctx, calib, f, s, seed) : mix(calib, NULL, f, s, seed);
    if (status == TARE_OK && !f->quiet && !f->dry_run)
        print_stats(calib);
    tare_calib_free(calib);
    return status;
}

static int set_options(const calib_flags *f, tare_calib_options *o, seeds *s)
{
    int code = f->seed ? parse_seed("--seed takes a whole number below 2^64", f->seed, s->shuffle)
                       : 0;
    tare_calib_options_init(o);
    if (!code && f->sample_seed) {
        code = parse_seed("--sample-seed takes a whole number below 2^64", f->sample_seed,
                          s->sample);
        o->sample_seed = s->sample;
        o->sample_seed_words = 2;
    }
    if (!code && f->gsm8k_seed) {
        code = parse_seed("--gsm8k-seed takes a whole number below 2^64", f->gsm8k_seed, s->gsm8k);
        o->gsm8k_seed = s->gsm8k;
        o->gsm8k_seed_words = 2;
    }
    if (!code && f->shots)
        code = parse_shots(f->shots, &o->mmlu_shots);
    o->compat = f->compat;
    o->skip_bad = f->skip_bad ? 1 : TARE_CALIB_UNSET;
    o->gsm8k_sampling = f->gsm8k_sampling ? 1 : TARE_CALIB_UNSET;
    o->overwrite = f->overwrite;
    o->keep = f->positive;
    o->resume = f->positive && f->resume;
    return code;
}

static int execute(const common *options, const calib_flags *f, const sizes *s)
{
    tare_calib_options o;
    seeds words = {0};
    int code = set_options(f, &o, &words);
    if (code)
        return code;
    tare_context *ctx = cli_open(options, &code);
    if (!ctx)
        return code;
    if (f->model && !f->positive && !options->quiet)
        fprintf(stderr, "warning: --model does nothing without --positive\n");
    return cli_close(ctx, open_and_mix(ctx, f, &o, s, words.shuffle));
}

static int missing(const char *what)
{
    fprintf(stderr, "tare calib: %s is missing; see tare help calib\n", what);
    return EXIT_USAGE;
}

static int run(int argc, char **argv)
{
    calib_flags f = {.probe = true};
    const flag flags[] = {{"--config", FLAG_TEXT, &f.config, NULL},
                          {"--out", FLAG_TEXT, &f.out, NULL},
                          {"--size", FLAG_SETTING, NULL, "size"},
                          {"--seed", FLAG_TEXT, &f.seed, NULL},
                          {"--sample-seed", FLAG_TEXT, &f.sample_seed, NULL},
                          {"--mmlu-shots", FLAG_TEXT, &f.shots, NULL},
                          {"--compat", FLAG_TEXT, &f.compat, NULL},
                          {"--skip-bad", FLAG_SWITCH, &f.skip_bad, NULL},
                          {"--overwrite", FLAG_SWITCH, &f.overwrite, NULL},
                          {"--model", FLAG_TEXT, &f.model, NULL},
                          {"--positive", FLAG_SWITCH, &f.positive, NULL},
                          {"--batch-size", FLAG_COUNT, &f.batch_size, NULL},
                          {"--gsm8k-sampling", FLAG_SWITCH, &f.gsm8k_sampling, NULL},
                          {"--gsm8k-seed", FLAG_TEXT, &f.gsm8k_seed, NULL},
                          {"--max-memory", FLAG_TEXT, &f.max_memory, NULL},
                          {"--scratch-dir", FLAG_TEXT, &f.scratch_dir, NULL},
                          {"--resume", FLAG_SWITCH, &f.resume, NULL},
                          {"--dry-run", FLAG_SWITCH, &f.dry_run, NULL},
                          {"--no-probe", FLAG_OFF, &f.probe, NULL},
                          {NULL, FLAG_SWITCH, NULL, NULL}};
    common options;
    sizes s = {0};
    char *text = NULL;
    int code = cli_parse(&command_calib, argc, argv, flags, 0, &options);
    if (code)
        return code < 0 ? 0 : code;
    if (!f.config)
        return missing("--config FILE.json");
    if (options.num_settings == 0)
        return missing("--size NAME=N");
    f.json = options.json;
    f.quiet = options.quiet;
    if (!f.dry_run && (!f.out || !*f.out))
        return missing("--out FILE.json");
    if (f.positive && !f.model)
        return missing("--model DIR (for --positive)");
    code = parse_sizes(&options, &s, &text);
    if (!code)
        code = execute(&options, &f, &s);
    free(s.values);
    free(s.names);
    free(text);
    return code;
}

const command command_calib = {"calib", "mix question sets into calibration prompts", usage, run,
                               NULL};
