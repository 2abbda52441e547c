/* tare verify */
#include "cli/cli.h"

static const char usage[] =
    "usage: tare verify DIR [--base MODEL] [--target vllm-ascend|sglang|mindie|vllm] [--compat "
    "msmodelslim] [--json]\n"
    "\n"
    "Checks an output folder against every rule of the engines that load it (docs/verify.md lists "
    "them).\n"
    "Exit 0: no rule is broken; warnings may be printed.\n"
    "\n"
    "  --base MODEL    also compare with the source checkpoint\n"
    "  --target NAME   also say of each layer whether this engine loads it, runs it unquantized or "
    "refuses it (exit 1);\n"
    "                  with a version, as vllm-ascend@0.23, else of the newest that is known "
    "(docs/targets.md)\n"
    "  --compat NAME   the folder was written under --compat\n"
    "  --json          print the findings, and with --target the layers, as JSON\n";

typedef struct printer {
    bool json;
    size_t findings, layers;
} printer;

static void print_member(const char *name, const char *value)
{
    printf(", \"%s\": ", name);
    cli_print_json(value ? value : "");
}

static void print_finding(void *user, const tare_finding *f)
{
    printer *p = user;
    const char *severity = f->severity == TARE_FINDING_FAILURE ? "failure" : "warning";
    p->findings++;
    if (!p->json) {
        printf("%s: rule %d: %s: found %s", severity, f->rule, f->tensor, f->found);
        printf(*f->expected ? ", expected %s\n" : "\n", f->expected);
        return;
    }
    printf("%s\n  {\"rule\": %d, \"severity\": \"%s\"", p->findings > 1 ? "," : "", f->rule,
           severity);
    print_member("tensor", f->tensor);
    print_member("found", f->found);
    print_member("expected", f->expected);
    putchar('}');
}

static const char *const VERDICTS[TARE_VERDICTS] = {
    [TARE_VERDICT_LOADS] = "loads",
    [TARE_VERDICT_UNKNOWN] = "not known",
    [TARE_VERDICT_UNQUANTIZED] = "runs unquantized",
    [TARE_VERDICT_REFUSED] = "is refused",
};

/* The layers come behind all findings. */
static void print_layer(void *user, const tare_layer_verdict *l)
{
    printer *p = user;
    if (p->json)
        printf("%s\n  {\"name\": ", p->layers     ? ","
                                    : p->findings ? "\n], \"layers\": ["
                                                  : "], \"layers\": [");
    p->layers++;
    if (!p->json)
        return;
    cli_print_json(l->name);
    print_member("verdict", VERDICTS[l->verdict]);
    print_member("why", l->why);
    putchar('}');
}

static void print_json(const printer *p, const tare_verify_result *r)
{
    printf("%s]", p->layers || p->findings ? "\n" : "");
    if (r->engine && !p->layers)
        printf(", \"layers\": []");
    if (r->engine)
        printf(", \"target\": {\"engine\": \"%s\", \"version\": \"%s\"}", r->engine, r->version);
    printf(", \"layout\": \"%s\", \"tensors\": %zu, \"failures\": %zu, \"warnings\": %zu}\n",
           r->layout ? r->layout : "unknown", r->tensors, r->failures, r->warnings);
}

static void print_verdicts(const tare_verify_result *r)
{
    size_t all = 0;
    for (int i = 0; i < TARE_VERDICTS; i++)
        all += r->layers[i];
    printf("%s %s: of %zu layers %zu load, %zu run unquantized, %zu are refused", r->engine,
           r->version, all, r->layers[TARE_VERDICT_LOADS], r->layers[TARE_VERDICT_UNQUANTIZED],
           r->layers[TARE_VERDICT_REFUSED]);
    if (r->layers[TARE_VERDICT_UNKNOWN])
        printf(", of %zu it is not known", r->layers[TARE_VERDICT_UNKNOWN]);
    putchar('\n');
}

static int run(int argc, char **argv)
{
    tare_verify_options o;
    tare_verify_options_init(&o);
    const flag flags[] = {{"--base", FLAG_TEXT, &o.base, NULL},
                          {"--target", FLAG_TEXT, &o.target, NULL},
                          {"--compat", FLAG_TEXT, &o.compat, NULL},
                          {NULL, FLAG_SWITCH, NULL, NULL}};
    common options;
    int code = cli_parse(&command_verify, argc, argv, flags, 1, &options);
    if (code)
        return code < 0 ? 0 : code;
    tare_context *ctx = cli_open(&options, &code);
    if (!ctx)
        return code;
    printer p = {.json = options.json};
    o.dir = options.positional[0];
    o.finding = print_finding;
    o.layer = print_layer;
    o.user = &p;
    if (p.json)
        printf("{\"findings\": [");
    tare_verify_result result = {.size = sizeof result};
    tare_status status = tare_verify(ctx, &o, &result);
    if (p.json)
        print_json(&p, &result);
    else if (result.engine && p.layers)
        print_verdicts(&result);
    if (!p.json && status == TARE_OK)
        printf("%s: %s, %zu tensors, no rule is broken, %zu warnings\n", o.dir,
               result.layout ? result.layout : "unknown", result.tensors, result.warnings);
    return cli_close(ctx, status);
}

const command command_verify = {"verify", "check an output against the rules of its consumers",
                                usage, run, NULL};
