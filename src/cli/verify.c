/* tare verify */
#include "cli/cli.h"

static const char usage[] = "usage: tare verify DIR [--base MODEL] [--target "
                            "vllm-ascend|mindie|vllm] [--compat msmodelslim] [--json]\n"
                            "\n"
                            "Checks an output folder against every rule of the engines that load "
                            "it (docs/verify.md lists them).\n"
                            "Exit 0: no rule is broken; warnings may be printed.\n"
                            "\n"
                            "  --base MODEL    also compare with the source checkpoint\n"
                            "  --target NAME   rules of one engine\n"
                            "  --compat NAME   the folder was written under --compat\n"
                            "  --json          print the findings as JSON\n";

typedef struct printer {
    bool json;
    size_t count;
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
    p->count++;
    if (!p->json) {
        printf("%s: rule %d: %s: found %s, expected %s\n", severity, f->rule, f->tensor, f->found,
               f->expected);
        return;
    }
    printf("%s\n  {\"rule\": %d, \"severity\": \"%s\"", p->count > 1 ? "," : "", f->rule, severity);
    print_member("tensor", f->tensor);
    print_member("found", f->found);
    print_member("expected", f->expected);
    putchar('}');
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
    o.user = &p;
    if (p.json)
        printf("{\"findings\": [");
    tare_verify_result result = {.size = sizeof result};
    tare_status status = tare_verify(ctx, &o, &result);
    const char *layout = result.layout ? result.layout : "unknown";
    if (p.json)
        printf("%s], \"layout\": \"%s\", \"tensors\": %zu, \"failures\": %zu, \"warnings\": %zu}\n",
               p.count ? "\n" : "", layout, result.tensors, result.failures, result.warnings);
    else if (status == TARE_OK)
        printf("%s: %s, %zu tensors, no rule is broken, %zu warnings\n", o.dir, layout,
               result.tensors, result.warnings);
    return cli_close(ctx, status);
}

const command command_verify = {"verify", "check an output against the rules of its consumers",
                                usage, run};
