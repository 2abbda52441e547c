/* tare retype */
#include "cli/cli.h"

static const char usage[] =
    "usage: tare retype DIR --base MODEL --out DIR2 [options]\n"
    "\n"
    "Writes the output in DIR once more with other schemes, from the checkpoint that it was made "
    "of "
    "and from what its\n"
    "calibration left in DIR/tare/tare_stats.safetensors: no prompts, no forward, the disk's "
    "speed. "
    "Every setting is that of\n"
    "DIR's run but for those given here.\n"
    "\n"
    "  --base MODEL               the checkpoint that DIR was made of\n"
    "  --out DIR2                 output folder\n"
    "  --recipe FILE.yaml|NAME    settings from a file, or a recipe that ships with tare; the "
    "options below win over it\n"
    "\n"
    "What becomes other:\n"
    "  --scheme w8a8|w8a8_dynamic|w8a16|w8a8_mix\n"
    "                             of linears that nothing else is said of\n"
    "  --mix PATTERN=TYPE         linears of another type: a scheme, float, or w4a8_dynamic for "
    "routed experts;\n"
    "                             comma-separated; repeatable\n"
    "  --disable-names NAMES      linears that stay float: names or * ? [] patterns, "
    "comma-separated; repeatable\n"
    "  --disable-level Ln         the n hardest linears stay float, by the scores of DIR's run\n"
    "  --disable-last-linear, --no-disable-last-linear\n"
    "                             lm_head stays float, or not\n"
    "  --act-method 1|2|3|4       range of activations: mean of extremes, histogram, chosen per "
    "layer by the scores,\n"
    "                             squared error of norm outputs\n"
    "  --act-sym, --no-act-sym    static activations with offset 0, or with one\n"
    "  --w-sym, --no-w-sym        symmetric weights, or (w8a16 alone) not\n"
    "  --mm-tensor                one weight scale per matrix instead of one per output channel\n"
    "  --weight-method ssz|minmax scales of w4a8_dynamic: a least-squares search, or the largest "
    "weight\n"
    "  --kv-cache c8|none         INT8 scales for the key/value cache, or none\n"
    "  --mtp none|float|mix       MTP layers: left out, copied, or quantized (of static schemes if "
    "DIR's "
    "run was with mix)\n"
    "  --kv-sym, --no-kv-sym      those of the cache with offset 0, or with one\n"
    "  --fa-quant, --no-fa-quant  INT8 scales for attention's q, k and v, if DIR's run had them, "
    "or "
    "none\n"
    "  --anti-method none         without the smoothing of DIR's run: of weights alone\n"
    "  --fa-amp N                 the N attentions that are hardest to quantize go without them\n"
    "\n"
    "What is written:\n"
    "  --save TYPES               ascendv1, safe_tensor, numpy, compressed-tensors; "
    "comma-separated\n"
    "  --npy-values numpy|torch   what the files of save type numpy hold\n"
    "  --part-file-size GIB       size of a shard; 0: one file\n"
    "  --save-rotation FILE       the rotation of a rotated model's residual stream, as tare "
    "quantize has it\n"
    "  --target vllm-ascend|sglang|mindie|vllm\n"
    "                             the engine that it is for (vllm-ascend@0.23): what that would "
    "refuse is refused at once\n"
    "  --overwrite                replace an earlier output in DIR2\n"
    "  --resume                   go on with a run that was interrupted or killed\n"
    "  --no-resume                make no checkpoints\n"
    "  --no-verify                leave out the check of the result\n"
    "  --copy-code                also copy the checkpoint's *.py files (they are never run)\n"
    "\n"
    "  --max-memory cpu=SIZE      most memory that the process may hold, for example cpu=500MiB\n"
    "  --dry-run [--no-probe]     only say what the run will take\n"
    "  --threads N                threads (default: one a core that affinity and CPU quota leave)\n"
    "  --json                     print the summary as JSON\n"
    "  --quiet, --verbose         less, more on stderr\n"
    "\n"
    "A linear's range depends on the layers in front of it. Where those have other schemes than in "
    "DIR's run, tare quantize\n"
    "would find another range; a warning counts such linears and DIR2/tare_run.json lists them. "
    "w8a8_dynamic, w8a16 and\n"
    "float linears have no range: they get the bytes that tare quantize would write.\n";

static int run(int argc, char **argv)
{
    tare_quantize_options o;
    tare_quantize_options_init(&o);
    const char *recipe_file = NULL;
    bool dry_run = false;
    const flag flags[] = {{"--base", FLAG_TEXT, &o.model, NULL},
                          {"--out", FLAG_TEXT, &o.out, NULL},
                          {"--recipe", FLAG_TEXT, &recipe_file, NULL},
                          {"--anti-method", FLAG_SETTING, NULL, "anti_outlier.anti_method"},
                          {"--dry-run", FLAG_SWITCH, &dry_run, NULL},
                          {"--no-probe", FLAG_OFF, &o.probe, NULL},
                          {"--overwrite", FLAG_SWITCH, &o.overwrite, NULL},
                          {"--resume", FLAG_SWITCH, &o.resume, NULL},
                          {"--no-resume", FLAG_SWITCH, &o.no_resume, NULL},
                          {"--no-verify", FLAG_OFF, &o.verify, NULL},
                          {"--copy-code", FLAG_SWITCH, &o.copy_code, NULL},
                          {"--save-rotation", FLAG_TEXT, &o.save_rotation, NULL},
                          {NULL, FLAG_SWITCH, NULL, NULL}};
    common options;
    int code = cli_parse(&command_retype, argc, argv, flags, 1, &options);
    if (code)
        return code < 0 ? 0 : code;
    if (!o.model)
        return cli_missing(&command_retype, "--base MODEL");
    if (!o.out && !dry_run)
        return cli_missing(&command_retype, "--out DIR2");
    o.statistics = options.positional[0];
    return cli_quantize(&options, &o, recipe_file, dry_run);
}

const command command_retype = {"retype", "give an output other schemes, without prompts", usage,
                                run, cli_output_settings};
