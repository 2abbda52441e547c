/* tare tokenize */
#include "cli/cli.h"

static const char usage[] = "usage: tare tokenize MODEL --text FILE\n"
                            "\n"
                            "Prints the token ids of each sample of FILE, a JSON list a line. FILE "
                            "is a calibration file (see tare help quantize):\n"
                            "a .txt holds a sample a line; JSONL and JSON lists hold prompts.\n";

static tare_status print_row(void *user, const uint32_t *ids, size_t count)
{
    (void)user;
    putchar('[');
    for (size_t i = 0; i < count; i++)
        printf("%s%u", i ? ", " : "", ids[i]);
    puts("]");
    return TARE_OK;
}

static int run(int argc, char **argv)
{
    const char *text = NULL;
    const flag flags[] = {{"--text", FLAG_TEXT, &text, NULL}, {NULL, FLAG_SWITCH, NULL, NULL}};
    common options;
    int code = cli_parse(&command_tokenize, argc, argv, flags, 1, &options);
    if (code)
        return code < 0 ? 0 : code;
    if (!text) {
        fprintf(stderr, "tare tokenize: --text FILE is missing; see tare help tokenize\n");
        return EXIT_USAGE;
    }
    tare_context *ctx = cli_open(&options, &code);
    if (!ctx)
        return code;
    return cli_close(ctx, tare_tokenize_file(ctx, options.positional[0], text, print_row, NULL));
}

const command command_tokenize = {"tokenize", "print token ids", usage, run, NULL};
