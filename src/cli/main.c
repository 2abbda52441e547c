/* tare: dispatch to the commands. */
#include <string.h>

#include "cli/cli.h"

static const command *const commands[] = {&command_quantize, &command_retype,  &command_calib,
                                          &command_verify,   &command_inspect, &command_generate,
                                          &command_tokenize};

enum { NUM_COMMANDS = sizeof commands / sizeof *commands };

static const command *find_command(const char *name)
{
    for (size_t i = 0; i < NUM_COMMANDS; i++) {
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    }
    return NULL;
}

static void print_overview(FILE *to)
{
    fprintf(
        to,
        "tare %s: quantizes large language models after training\n\nusage: tare COMMAND ...\n\n",
        tare_version());
    for (size_t i = 0; i < NUM_COMMANDS; i++)
        fprintf(to, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "\ntare help COMMAND tells more; tare --version prints the version.\n");
}

static int unknown_command(const char *name)
{
    fprintf(stderr, "tare: unknown command %s; known:", name);
    for (size_t i = 0; i < NUM_COMMANDS; i++)
        fprintf(stderr, " %s", commands[i]->name);
    fputc('\n', stderr);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_overview(stderr);
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--version") == 0) {
        printf("tare %s\n", tare_version());
        return 0;
    }
    bool help = strcmp(name, "help") == 0;
    if ((help && argc == 2) || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        print_overview(stdout);
        return 0;
    }
    const command *c = find_command(help ? argv[2] : name);
    if (!c)
        return unknown_command(help ? argv[2] : name);
    if (help) {
        fputs(c->usage, stdout);
        return 0;
    }
    return c->run(argc - 1, argv + 1);
}
