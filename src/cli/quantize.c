/* tare quantize */
#include <stdlib.h>

#include "cli/cli.h"

static const char usage[] =
    "usage: tare quantize MODEL --out DIR [--calib FILE] [options]\n"
    "\n"
    "Quantizes the Hugging Face checkpoint in the folder MODEL to W8A8, W8A8_DYNAMIC, W8A8_MIX, "
    "W8A16, W4A8_DYNAMIC\n"
    "or several of them, and writes a checkpoint that Ascend engines load.\n"
    "\n"
    "  --out DIR                  output folder\n"
    "  --calib FILE|builtin       calibration prompts, which w8a8 needs: JSONL with "
    "inputs_pretokenized, prompt or text;\n"
    "                             a JSON list of strings, of {\"prompt\": ...} or of lists of "
    "token "
    "ids; a .txt with a\n"
    "                             prompt a line; builtin: 50 prompts that ship with tare\n"
    "  --recipe FILE.yaml|NAME    settings from a file, or a recipe that ships with tare (default, "
    "best-static,\n"
    "                             all-int8, best-c8, llama3.1-70b, qwen2.5-72b, deepseek-v3-w8a8, "
    "-w8a8-fa3, -w4a8, "
    "deepseek-v3.1-w8a8-fa3,\n"
    "                             deepseek-r1-w8a8-fa3, qwen3-moe-w8a8), or an output's settings; "
    "the options below\n"
    "                             win over it\n"
    "  --samples N                use the first N prompts\n"
    "  --max-length N             cut prompts to N tokens (longer than the model's maximum is an "
    "error otherwise)\n"
    "  --dtype NAME               serving dtype, for which scales are rounded: bfloat16, float16 "
    "or float32\n"
    "\n"
    "What is quantized, and how:\n"
    "  --scheme w8a8|w8a8_dynamic|w8a16|w8a8_mix\n"
    "                             activations by one calibrated scale (default), each token by its "
    "own, weights alone, or\n"
    "                             the first two in one; only w8a8, w8a8_mix, --anti-method, "
    "--fa-quant and\n"
    "                             --kv-cache need prompts\n"
    "  --mix PATTERN=TYPE         linears of another type: a scheme, float, or w4a8_dynamic for "
    "routed experts; a name\n"
    "                             wins over patterns, of which the first counts; comma-separated; "
    "repeatable\n"
    "  --a-bit 8|16               16: the same as --scheme w8a16\n"
    "  --no-w-sym                 asymmetric weights, with --scheme w8a16\n"
    "  --act-method 1|2|3|4       range of activations: mean of extremes, histogram, chosen per "
    "layer, squared error\n"
    "                             of norm outputs (default 1)\n"
    "  --final-scales, --no-final-scales\n"
    "                             all samples show what a layer reads before they go through it, "
    "or "
    "not (default:\n"
    "                             with --act-method 4 and with gptq)\n"
    "  --act-sym, --no-act-sym    activations of w8a8 with offset 0, or with one (default: with "
    "one, "
    "unless --save is\n"
    "                             compressed-tensors alone)\n"
    "  --mm-tensor                one weight scale per matrix instead of one per output channel "
    "(not per token)\n"
    "  --weight-method ssz|minmax|gptq\n"
    "                             gptq: round weights by what their linears read; else scales of "
    "w4a8_dynamic:\n"
    "                             a least-squares search, or the largest weight (default ssz)\n"
    "  --rotate [SEED]            turn the residual stream and attention's values by random "
    "rotations, "
    "folded into\n"
    "                             the weights, so that nothing stands out (default seed 0)\n"
    "  --anti-method METHOD       m1..m6: smooth outliers of activations into the weights first; "
    "balance: between\n"
    "                             up_proj and a down_proj that is not static (default "
    "none)\n"
    "  --disable-anti-names NAMES linears whose group is not smoothed; comma-separated; "
    "repeatable\n"
    "  --alpha F --beta F         strengths of m6 (default: searched); of balance (alpha, default "
    "0.5)\n"
    "  --fa-quant                 INT8 scales for attention's q, k and v (FA3)\n"
    "  --fa-balance               queries and keys get equal magnitudes first, channel by channel\n"
    "  --fa-v-method max|mse      v's scales: by its largest value, or with the smallest squared "
    "error (default max)\n"
    "  --fa-amp N                 the N attentions that are hardest to quantize go without them "
    "(default 0)\n"
    "  --kv-cache c8              INT8 scales for the key/value cache (not with --fa-quant)\n"
    "  --kv-pairs                 of keys, two channels that positions turn together share a scale "
    "that holds at\n"
    "                             every position (not with --no-kv-sym)\n"
    "  --no-kv-sym                with offsets, too (safe_tensor, numpy)\n"
    "  --mtp none|float|mix       MTP layers (DeepSeek-V3): left out (default, with a warning), "
    "copied "
    "as floats, or\n"
    "                             calibrated and quantized as the other layers\n"
    "  --disable-names NAMES      linears that stay float: names or * ? [] patterns, "
    "comma-separated; repeatable\n"
    "  --disable-level Ln         the n hardest linears stay float, by a score on the first 5 "
    "prompts (default L0)\n"
    "  --no-disable-last-linear   quantize lm_head too\n"
    "  --pr F --seed N            quantize each activation with probability F while calibrating "
    "(default 1.0)\n"
    "  --target vllm-ascend|sglang|mindie|vllm\n"
    "                             the engine that loads the output, with a version as in "
    "vllm-ascend@0.23: what it would\n"
    "                             refuse is refused before any work, what it would run unquantized "
    "is a warning\n"
    "                             (docs/targets.md)\n"
    "  --compat msmodelslim       the reference system's arithmetic and file names\n"
    "\n"
    "What is written:\n"
    "  --save TYPES               ascendv1 (default), safe_tensor, numpy, compressed-tensors; "
    "comma-separated\n"
    "  --npy-values numpy|torch   what the files of save type numpy hold (default numpy; with "
    "--compat "
    "torch)\n"
    "  --part-file-size GIB       size of a shard; 0: one file\n"
    "  --save-rotation FILE       with --rotate: the residual stream's rotation as safetensors; as "
    "DIR/optional/\n"
    "                             quarot.safetensors the description names it, for drafts of "
    "speculative decoding\n"
    "  --overwrite                replace an earlier output in DIR\n"
    "  --resume                   go on with a run that was interrupted or killed\n"
    "  --checkpoint-every K       make a checkpoint after K layers (default: after 20 seconds)\n"
    "  --no-resume                make no checkpoints\n"
    "  --scratch-dir DIR          where hidden states go that do not fit in memory (default: "
    "inside "
    "the output folder)\n"
    "  --no-verify                leave out the check of the result\n"
    "  --copy-code                also copy the checkpoint's *.py files (they are never run)\n"
    "\n"
    "  --compute auto|fp32|bf16   arithmetic of float matrix products\n"
    "  --max-memory cpu=SIZE      most memory that the process may hold, for example cpu=8GiB; a "
    "budget that is too\n"
    "                             small is refused before any work (default: 80 % of what is "
    "free). "
    "Give what you can\n"
    "                             spare: less only takes more time\n"
    "  --dry-run                  only say what the run will take: memory, disk, operations, time; "
    "reads no weights\n"
    "                             and writes nothing (--out is not needed)\n"
    "  --no-probe                 with --dry-run: do not measure this machine, so without a time\n"
    "  --threads N                threads (default: one a core that affinity and CPU quota leave); "
    "the output does not\n"
    "                             depend on them\n"
    "  --json                     print the summary as JSON\n"
    "  --quiet, --verbose         less, more on stderr\n";

/* VmHWM. (getrusage's ru_maxrss also counts what the process was before it became tare: a shell, or
 * a large Python program that forked.) */
static size_t peak_resident_bytes(void)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/self/status", "re");
    while (f && kib == 0 && fgets(line, sizeof line, f))
        sscanf(line, "VmHWM: %llu", &kib);
    if (f)
        fclose(f);
    return (size_t)kib * 1024;
}

/* Tokens of each expert: what was told of each layer, as members of a JSON map. */
typedef struct coverage_text {
    FILE *json;
    char *text;
    size_t length, experts, unreached;
} coverage_text;

static void take_coverage(void *user, const char *layer, const uint32_t *tokens, size_t experts)
{
    coverage_text *c = user;
    fprintf(c->json, "%s\"%s\": ", c->experts ? ", " : "", layer);
    for (size_t i = 0; i < experts; i++) {
        fprintf(c->json, "%s%u", i ? ", " : "[", tokens[i]);
        c->unreached += tokens[i] == 0;
    }
    fputc(']', c->json);
    c->experts += experts;
}

static void print_summary(const tare_quantize_options *o, const tare_quantize_result *r,
                          const coverage_text *c)
{
    char in[32], out[32], peak[32];
    printf("model       %s\n", o->model);
    printf("output      %s\n", o->out);
    if (r->was_finished)
        return;
    printf("quantized   %zu of %zu linear layers\n", r->linears_quantized, r->linears);
    if (r->samples > 0)
        printf("calibration %zu samples, %zu tokens\n", r->samples, r->tokens);
    if (r->truncated > 0)
        printf("truncated   %zu samples\n", r->truncated);
    if (c->unreached > 0)
        printf("unreached   %zu of %zu experts\n", c->unreached, c->experts);
    printf("weights     %s -> %s (%.1f %%)\n", cli_size((double)r->bytes_in, in, sizeof in),
           cli_size((double)r->bytes_out, out, sizeof out),
           r->bytes_in ? 100.0 * (double)r->bytes_out / (double)r->bytes_in : 0.0);
    printf("time        %.2f s\n", r->seconds);
    printf("peak memory %s\n", cli_size((double)peak_resident_bytes(), peak, sizeof peak));
    if (r->saturated_rows)
        printf("saturated   %zu rows of quant_bias\n", r->saturated_rows);
}

static void print_json(const tare_quantize_options *o, const tare_quantize_result *r,
                       const coverage_text *c)
{
    printf("{\"model\": ");
    cli_print_json(o->model);
    printf(", \"out\": ");
    cli_print_json(o->out);
    printf(", \"linears\": %zu, \"linears_quantized\": %zu, \"samples\": %zu, \"tokens\": %zu, "
           "\"truncated\": %zu, "
           "\"saturated_rows\": %zu, "
           "\"bytes_in\": %llu, \"bytes_out\": %llu, \"seconds\": %.3f, \"peak_resident_bytes\": "
           "%zu, \"was_finished\": %s",
           r->linears, r->linears_quantized, r->samples, r->tokens, r->truncated, r->saturated_rows,
           (unsigned long long)r->bytes_in, (unsigned long long)r->bytes_out, r->seconds,
           peak_resident_bytes(), r->was_finished ? "true" : "false");
    if (c->experts > 0)
        printf(", \"coverage\": {%s}", c->text);
    puts("}");
}

static tare_status quantize(tare_context *ctx, const tare_quantize_options *given, bool json)
{
    tare_quantize_result result = {.size = sizeof result};
    tare_quantize_options o = *given;
    coverage_text c = {0};
    if (!(c.json = open_memstream(&c.text, &c.length))) {
        fprintf(stderr, "tare: out of memory\n");
        return TARE_E_MEMORY;
    }
    o.coverage = take_coverage;
    o.coverage_user = &c;
    tare_status status = tare_quantize(ctx, &o, &result);
    fclose(c.json);
    if (status == TARE_OK)
        (json ? print_json : print_summary)(&o, &result, &c);
    free(c.text);
    return status;
}

static tare_status plan(tare_context *ctx, const tare_quantize_options *o, bool json)
{
    tare_plan result = {.size = sizeof result};
    tare_status status = tare_quantize_plan(ctx, o, &result);
    if (status == TARE_OK)
        cli_print_plan(o, &result, json);
    return status;
}

int cli_quantize(const common *options, tare_quantize_options *o, const char *recipe_file,
                 bool dry_run)
{
    int code;
    tare_recipe *recipe = NULL;
    tare_context *ctx = cli_open(options, &code);
    if (!ctx)
        return code;
    tare_status status = tare_recipe_create(ctx, &recipe);
    if (status == TARE_OK && o->statistics)
        status = tare_recipe_load(recipe, o->statistics);
    if (status == TARE_OK)
        status = cli_recipe(options, recipe_file, recipe);
    o->recipe = recipe;
    if (status == TARE_OK)
        status = (dry_run ? plan : quantize)(ctx, o, options->json);
    tare_recipe_free(recipe);
    return cli_close(ctx, status);
}

int cli_missing(const command *c, const char *option)
{
    fprintf(stderr, "tare %s: %s is missing; see tare help %s\n", c->name, option, c->name);
    return EXIT_USAGE;
}

static int run(int argc, char **argv)
{
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    const char *recipe_file = NULL;
    bool dry_run = false;
    const flag flags[] = {
        {"--out", FLAG_TEXT, &o.out, NULL},
        {"--calib", FLAG_TEXT, &o.calib, NULL},
        {"--recipe", FLAG_TEXT, &recipe_file, NULL},
        {"--samples", FLAG_SETTING, NULL, "calibration.samples"},
        {"--max-length", FLAG_SETTING, NULL, "calibration.max_length"},
        {"--dtype", FLAG_SETTING, NULL, "run.dtype"},
        {"--w-bit", FLAG_SETTING, NULL, "quant.w_bit"},
        {"--a-bit", FLAG_SETTING, NULL, "quant.a_bit"},
        {"--pr", FLAG_SETTING, NULL, "quant.pr"},
        {"--seed", FLAG_SETTING, NULL, "quant.seed"},
        {"--no-rotate", FLAG_OFF_SETTING, NULL, "rotation"},
        {"--rotate", FLAG_SECTION, (void *)(uintptr_t) "rotation.seed", "rotation"},
        {"--anti-method", FLAG_SETTING, NULL, "anti_outlier.anti_method"},
        {"--disable-anti-names", FLAG_SETTING, NULL, "anti_outlier.disable_anti_names"},
        {"--alpha", FLAG_SETTING, NULL, "anti_outlier.alpha"},
        {"--beta", FLAG_SETTING, NULL, "anti_outlier.beta"},
        {"--compute", FLAG_SETTING, NULL, "run.compute"},
        {"--compat", FLAG_SETTING, NULL, "run.compat"},
        {"--dry-run", FLAG_SWITCH, &dry_run, NULL},
        {"--no-probe", FLAG_OFF, &o.probe, NULL},
        {"--overwrite", FLAG_SWITCH, &o.overwrite, NULL},
        {"--resume", FLAG_SWITCH, &o.resume, NULL},
        {"--no-resume", FLAG_SWITCH, &o.no_resume, NULL},
        {"--checkpoint-every", FLAG_COUNT, &o.checkpoint_every, NULL},
        {"--scratch-dir", FLAG_TEXT, &o.scratch_dir, NULL},
        {"--no-verify", FLAG_OFF, &o.verify, NULL},
        {"--copy-code", FLAG_SWITCH, &o.copy_code, NULL},
        {"--save-rotation", FLAG_TEXT, &o.save_rotation, NULL},
        {"--batch-rows", FLAG_COUNT, &o.batch_rows, NULL}, /* hidden: for tests */
        {"--skip-layouts", FLAG_COUNT, &o.skip_layouts, NULL},
        {"--checkpoint-experts", FLAG_COUNT, &o.checkpoint_experts, NULL},
        {NULL, FLAG_SWITCH, NULL, NULL}};
    common options;
    int code = cli_parse(&command_quantize, argc, argv, flags, 1, &options);
    if (code)
        return code < 0 ? 0 : code;
    if (!o.out && !dry_run)
        return cli_missing(&command_quantize, "--out DIR");
    o.model = options.positional[0];
    return cli_quantize(&options, &o, recipe_file, dry_run);
}

const command command_quantize = {"quantize", "quantize a checkpoint", usage, run,
                                  cli_output_settings};
