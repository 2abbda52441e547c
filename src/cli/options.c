/* Parsing of the command line by tables. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static int refuse(const command *c, const char *format, const char *what)
{
    fprintf(stderr, "tare %s: ", c->name);
    fprintf(stderr, format, what);
    fprintf(stderr, "; see tare help %s\n", c->name);
    return EXIT_USAGE;
}

const flag cli_output_settings[] = {
    {"--scheme", FLAG_SETTING, NULL, "quant.scheme"},
    {"--mix", FLAG_SETTING, NULL, "mix"},
    {"--act-method", FLAG_SETTING, NULL, "quant.act_method"},
    {"--act-sym", FLAG_ON_SETTING, NULL, "quant.a_sym"},
    {"--no-act-sym", FLAG_OFF_SETTING, NULL, "quant.a_sym"},
    {"--final-scales", FLAG_ON_SETTING, NULL, "quant.final_scales"},
    {"--no-final-scales", FLAG_OFF_SETTING, NULL, "quant.final_scales"},
    {"--w-sym", FLAG_ON_SETTING, NULL, "quant.w_sym"},
    {"--no-w-sym", FLAG_OFF_SETTING, NULL, "quant.w_sym"},
    {"--mm-tensor", FLAG_ON_SETTING, NULL, "quant.mm_tensor"},
    {"--weight-method", FLAG_SETTING, NULL, "quant.weight_method"},
    {"--kv-cache", FLAG_SETTING, NULL, "quant.kv_cache"},
    {"--kv-pairs", FLAG_ON_SETTING, NULL, "quant.kv_pairs"},
    {"--kv-sym", FLAG_ON_SETTING, NULL, "quant.kv_sym"},
    {"--no-kv-sym", FLAG_OFF_SETTING, NULL, "quant.kv_sym"},
    {"--mtp", FLAG_SETTING, NULL, "quant.mtp"},
    {"--fa-quant", FLAG_ON_SETTING, NULL, "fa_quant"},
    {"--no-fa-quant", FLAG_OFF_SETTING, NULL, "fa_quant"},
    {"--fa-amp", FLAG_SETTING, NULL, "fa_quant.fa_amp"},
    {"--fa-balance", FLAG_ON_SETTING, NULL, "fa_quant.balance"},
    {"--fa-v-method", FLAG_SETTING, NULL, "fa_quant.v_method"},
    {"--disable-names", FLAG_SETTING, NULL, "fallback.disable_names"},
    {"--disable-level", FLAG_SETTING, NULL, "fallback.disable_level"},
    {"--disable-last-linear", FLAG_ON_SETTING, NULL, "fallback.disable_last_linear"},
    {"--no-disable-last-linear", FLAG_OFF_SETTING, NULL, "fallback.disable_last_linear"},
    {"--save", FLAG_SETTING, NULL, "save.types"},
    {"--part-file-size", FLAG_SETTING, NULL, "save.part_file_size"},
    {"--npy-values", FLAG_SETTING, NULL, "save.npy_values"},
    {"--target", FLAG_SETTING, NULL, "run.target"},
    {"--max-memory", FLAG_SETTING, NULL, "run.max_memory"},
    {NULL, FLAG_SWITCH, NULL, NULL}};

/* `text` up to a '=', compared with the flag's name. */
static const flag *find_flag(const flag *flags, const char *text, size_t length)
{
    for (; flags->name; flags++) {
        if (strlen(flags->name) == length && memcmp(flags->name, text, length) == 0)
            return flags;
    }
    return NULL;
}

static int apply_count(const command *c, const flag *f, const char *value)
{
    char *end;
    errno = 0;
    unsigned long long count = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end || errno || count == 0 || count > SIZE_MAX)
        return refuse(c, "%s needs a number above 0", f->name);
    *(size_t *)f->target = (size_t)count;
    return 0;
}

static int add_setting(const command *c, const flag *f, const char *setting, const char *value,
                       common *out)
{
    if (out->num_settings == MAX_SETTINGS)
        return refuse(c, "too many settings (at %s)", f->name);
    out->settings[out->num_settings++] = (given_setting){setting, value};
    return 0;
}

static int apply_flag(const command *c, const flag *f, const char *value, common *out)
{
    switch (f->kind) {
    case FLAG_SWITCH:
        *(bool *)f->target = true;
        return 0;
    case FLAG_OFF:
        *(bool *)f->target = false;
        return 0;
    case FLAG_TEXT:
        *(const char **)f->target = value;
        return 0;
    case FLAG_COUNT:
        return apply_count(c, f, value);
    case FLAG_SETTING:
        break;
    case FLAG_ON_SETTING:
        value = "true";
        break;
    case FLAG_OFF_SETTING:
        value = "false";
        break;
    case FLAG_SECTION:
        if (value && add_setting(c, f, f->target, value, out) != 0)
            return EXIT_USAGE;
        value = "true";
        break;
    }
    return add_setting(c, f, f->setting, value, out);
}

static bool is_number(const char *text)
{
    return *text && strspn(text, "0123456789") == strlen(text);
}

static int parse_flag(const command *c, const flag *flags, const flag *common_flags, char **argv,
                      int argc, int *i, common *out)
{
    const char *text = argv[*i], *equals = strchr(text, '=');
    size_t length = equals ? (size_t)(equals - text) : strlen(text);
    const flag *f = find_flag(flags, text, length);
    if (!f && c->settings)
        f = find_flag(c->settings, text, length);
    if (!f)
        f = find_flag(common_flags, text, length);
    if (!f)
        return refuse(c, "unknown option %s", text);
    bool wants_value = f->kind == FLAG_TEXT || f->kind == FLAG_COUNT || f->kind == FLAG_SETTING;
    if (!wants_value && equals && f->kind != FLAG_SECTION)
        return refuse(c, "%s takes no value", f->name);
    const char *value = equals ? equals + 1 : NULL;
    if (wants_value && !value) {
        if (*i + 1 >= argc)
            return refuse(c, "%s needs a value", f->name);
        value = argv[++*i];
    }
    if (f->kind == FLAG_SECTION && !value && *i + 1 < argc && is_number(argv[*i + 1]))
        value = argv[++*i];
    return apply_flag(c, f, value, out);
}

int cli_parse(const command *c, int argc, char **argv, const flag *flags, size_t positional,
              common *out)
{
    *out = (common){0};
    const flag common_flags[] = {
        {"--threads", FLAG_TEXT, &out->threads, NULL},   {"--cpu", FLAG_TEXT, &out->cpu, NULL},
        {"--quiet", FLAG_SWITCH, &out->quiet, NULL},     {"-q", FLAG_SWITCH, &out->quiet, NULL},
        {"--verbose", FLAG_SWITCH, &out->verbose, NULL}, {"-v", FLAG_SWITCH, &out->verbose, NULL},
        {"--json", FLAG_SWITCH, &out->json, NULL},       {"--help", FLAG_SWITCH, &out->help, NULL},
        {"-h", FLAG_SWITCH, &out->help, NULL},           {NULL, FLAG_SWITCH, NULL, NULL}};
    bool only_positional = false;
    for (int i = 1; i < argc; i++) {
        int code = 0;
        if (!only_positional && strcmp(argv[i], "--") == 0)
            only_positional = true;
        else if (!only_positional && argv[i][0] == '-' && argv[i][1])
            code = parse_flag(c, flags, common_flags, argv, argc, &i, out);
        else if (out->num_positional == positional)
            code = refuse(c, "unexpected argument %s", argv[i]);
        else
            out->positional[out->num_positional++] = argv[i];
        if (code)
            return code;
    }
    if (out->help) {
        fputs(c->usage, stdout);
        return -1;
    }
    if (out->num_positional < positional)
        return refuse(c, "%s", "an argument is missing");
    return 0;
}

tare_status cli_recipe(const common *options, const char *file, tare_recipe *recipe)
{
    tare_status status = file ? tare_recipe_load(recipe, file) : TARE_OK;
    for (size_t i = 0; status == TARE_OK && i < options->num_settings; i++) {
        const given_setting *s = &options->settings[i];
        /* The first mention of a list replaces the recipe file's, further ones add to it. */
        bool again = false;
        for (size_t j = 0; j < i; j++)
            again |= strcmp(options->settings[j].setting, s->setting) == 0;
        status = again ? tare_recipe_append(recipe, s->setting, s->value)
                       : tare_recipe_set(recipe, s->setting, s->value);
    }
    return status;
}

void cli_print_json(const char *text)
{
    cli_print_json_string(text, strlen(text));
}

void cli_print_json_string(const char *text, size_t length)
{
    const unsigned char *p = (const unsigned char *)text;
    putchar('"');
    for (const unsigned char *end = p + length; p < end; p++) {
        if (*p == '"' || *p == '\\')
            printf("\\%c", *p);
        else if (*p < 0x20 || *p == 0x7f)
            printf("\\u%04x", *p);
        else
            putchar(*p);
    }
    putchar('"');
}

const char *cli_size(double bytes, char *text, size_t length)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++)
        bytes /= 1024;
    snprintf(text, length, unit ? "%.2f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}
