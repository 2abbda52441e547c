/* tare inspect */
#include "cli/cli.h"

static const char usage[] = "usage: tare inspect PATH [--json]\n"
                            "\n"
                            "Describes a checkpoint folder, an output folder, a safetensors file "
                            "or an npy file. Reads headers\n"
                            "only; of a pickle it runs nothing.\n";

static void print_line(void *user, const char *text)
{
    (void)user;
    puts(text);
}

static int run(int argc, char **argv)
{
    const flag flags[] = {{NULL, FLAG_SWITCH, NULL, NULL}};
    common options;
    int code = cli_parse(&command_inspect, argc, argv, flags, 1, &options);
    if (code)
        return code < 0 ? 0 : code;
    tare_context *ctx = cli_open(&options, &code);
    if (!ctx)
        return code;
    return cli_close(ctx, tare_inspect(ctx, options.positional[0], options.json, print_line, NULL));
}

const command command_inspect = {
    "inspect", "describe a checkpoint, an output, a safetensors or an npy file", usage, run, NULL};
