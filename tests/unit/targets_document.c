/* docs/targets.md from the table of what engines load (src/output/targets_table.c).
 *
 *   targets_document                  prints it
 *   targets_document docs/targets.md  fails if that file is another */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "output/targets.h"

/* ---- words ---- */

static const char *const TRAIT_TEXTS[TRAITS] = {
    "static activations with a zero point",
    "weight_offset other than 0",
    "several scales a row",
    "a second scale for each group",
    "a bias that smoothing made",
    "a fused group of different types",
    "members of a fused group missing",
    "experts of different types",
    "no weight_scale",
    "deq_scale of the other dtype",
    "serving dtype float16",
    "serving dtype bfloat16",
    "a name that begins a FLOAT sibling's",
    "quantization_config in config.json",
    "no `quantize` in config.json",
    "several types and another model_quant_type than the first",
    "latent attention",
    "heads that 32 does not divide",
    "no kv_cache_type in the description",
    "cache offsets other than 0",
    "fa_quant_type other than FAKQuant",
};

static const char *subjects_text(unsigned subjects)
{
    switch (subjects) {
    case SUBJECT_LINEAR:
        return "linears";
    case SUBJECT_EXPERT:
        return "routed experts";
    case SUBJECT_LINEARS:
        return "linears and experts";
    case SUBJECT_ATTENTION:
        return "attention";
    case 0:
        return "serving";
    default:
        return "all layers";
    }
}

/* ---- tables ---- */

static const char *const CELL[TARE_VERDICTS] = {
    [TARE_VERDICT_LOADS] = "yes",
    [TARE_VERDICT_UNKNOWN] = "not known",
    [TARE_VERDICT_UNQUANTIZED] = "floats",
    [TARE_VERDICT_REFUSED] = "no",
};

static void print_number(FILE *out, const target_fact *fact)
{
    if (fact >= target_facts && fact < target_facts + num_target_facts)
        fprintf(out, " [%zu]", (size_t)(fact - target_facts) + 1);
}

/* What the named model types of any fact get, where it differs from what all others do. */
static void print_families(FILE *out, serving_target t, target_layer layer,
                           const target_fact *usual)
{
    for (size_t i = 0; i < num_target_facts; i++) {
        const target_fact *fact = &target_facts[i];
        if (!fact->families)
            continue;
        char first[32];
        snprintf(first, sizeof first, "%.*s", (int)strcspn(fact->families, " "), fact->families);
        layer.family = first;
        if (target_judge(&t, &layer) == fact && fact != usual) {
            fprintf(out, ", %s: %s", fact->families, CELL[fact->verdict]);
            print_number(out, fact);
        }
    }
}

/* Versions with one fact side by side: "to 0.24 no [3], from 0.25 yes [4]". */
static void print_cell(FILE *out, engine which, const target_layer *layer)
{
    const engine_row *e = engine_of(which);
    char text[VERSION_TEXT], last[VERSION_TEXT];
    fprintf(out, " ");
    for (size_t i = 0; e->versions[i];) {
        serving_target t = {which, e->versions[i]};
        const target_fact *fact = target_judge(&t, layer);
        size_t end = i + 1;
        for (; e->versions[end]; end++) {
            const serving_target next = {which, e->versions[end]};
            if (target_judge(&next, layer) != fact)
                break;
        }
        bool all = i == 0 && !e->versions[end];
        if (!all)
            fprintf(out, "%s%s%s%s ", i ? "; " : "", engine_version_text(e->versions[i], text),
                    end - i > 1 ? "-" : "",
                    end - i > 1 ? engine_version_text(e->versions[end - 1], last) : "");
        fprintf(out, "%s", CELL[fact->verdict]);
        print_number(out, fact);
        print_families(out, t, *layer, fact);
        i = end;
    }
    fprintf(out, " |");
}

/* A column: a layer that is as it should be. */
typedef struct column {
    const char *title;
    unsigned type, traits;
} column;

static void print_row(FILE *out, engine which, layout where, unsigned subject,
                      const column *columns, size_t count)
{
    fprintf(out, "| %s, %s | %s |", engine_of(which)->name, save_types_text(1u << where),
            subjects_text(subject));
    for (size_t i = 0; i < count; i++) {
        const target_layer layer = {.layout = where,
                                    .subject = subject,
                                    .type = columns[i].type,
                                    .traits = columns[i].traits,
                                    .family = ""};
        print_cell(out, which, &layer);
    }
    fprintf(out, "\n");
}

static void print_table(FILE *out, const unsigned *subjects, size_t num_subjects,
                        const column *columns, size_t count)
{
    fprintf(out, "| engine, save type | layer |");
    for (size_t i = 0; i < count; i++)
        fprintf(out, " %s |", columns[i].title);
    fprintf(out, "\n|---|---|");
    for (size_t i = 0; i < count; i++)
        fprintf(out, "---|");
    fprintf(out, "\n");
    for (int e = ENGINE_NONE + 1; e < ENGINES; e++) {
        const serving_target t = {(engine)e, engine_of((engine)e)->versions[0]};
        for (int l = 0; l < SAVE_TYPES; l++)
            for (size_t s = 0; s < num_subjects && (target_layouts(&t) >> l & 1); s++)
                if (!(subjects[s] == SUBJECT_ATTENTION && l == LAYOUT_COMPRESSED_TENSORS))
                    print_row(out, (engine)e, (layout)l, subjects[s], columns, count);
    }
}

/* ---- facts ---- */

static void print_list(FILE *out, unsigned bits, int count, const char *(*text)(unsigned),
                       const char *between)
{
    const char *comma = "";
    for (int i = 0; i < count; i++) {
        if (!(bits >> i & 1))
            continue;
        fprintf(out, "%s%s", comma, text(i));
        comma = between;
    }
}

static const char *type_text(unsigned i)
{
    return target_type_text(1u << i);
}

static const char *layout_text(unsigned i)
{
    return save_types_text(1u << i);
}

static const char *trait_text(unsigned i)
{
    return TRAIT_TEXTS[i];
}

static void print_versions(FILE *out, const target_fact *f)
{
    char text[VERSION_TEXT];
    fprintf(out, "%s", engine_of(f->engine)->name);
    if (f->from == ENGINE_MAIN)
        fprintf(out, " main");
    else if (f->from)
        fprintf(out, " from %s", engine_version_text(f->from, text));
    if (f->to)
        fprintf(out, " to %s", engine_version_text(f->to, text));
}

static void print_fact(FILE *out, size_t number, const target_fact *f)
{
    fprintf(out, "%zu. ", number);
    print_versions(out, f);
    if (f->layouts) {
        fprintf(out, ", ");
        print_list(out, f->layouts, SAVE_TYPES, layout_text, " or ");
    }
    fprintf(out, ", %s", subjects_text(f->subjects));
    if (f->types) {
        fprintf(out, " of ");
        print_list(out, f->types, 12, type_text, ", ");
    }
    if (f->traits) {
        fprintf(out, " with ");
        print_list(out, f->traits, TRAITS, trait_text, " and ");
    }
    if (f->without) {
        fprintf(out, " without ");
        print_list(out, f->without, TRAITS, trait_text, " or ");
    }
    if (f->families || f->others)
        fprintf(out, ", model types %s%s", f->others ? "other than " : "",
                f->others ? f->others : f->families);
    if (f->subjects == 0)
        fprintf(out, ": %s.", f->why);
    else
        fprintf(out, ": **%s**%s%s.", target_verdict_text(f->verdict), *f->why ? "; " : "", f->why);
    if (f->works)
        fprintf(out, " Works: %s.", f->works);
    fprintf(out, " (%s)\n", f->source);
}

static const char INTRO[] =
    "<!-- Made from src/output/targets_table.c: make targets-document -->\n"
    "# What engines load\n"
    "\n"
    "What each engine does with the linears, experts and attentions of an output. `tare verify "
    "DIR\n"
    "--target ENGINE[@VERSION]` says it layer by layer, and `tare quantize --target` (recipe:\n"
    "`run.target`) refuses before any work what the engine would refuse after it. Both go by the\n"
    "facts below, each with its source; nothing was loaded on an NPU.\n"
    "\n"
    "- **yes**: it loads.\n"
    "- **no**: it is refused: the engine stops with an error, or computes other numbers than the\n"
    "  files mean. `tare verify` fails (exit 1), `tare quantize` stops (exit 2).\n"
    "- **floats**: it runs unquantized, without an error: a warning.\n"
    "- **not known**: no source says so: a warning.\n"
    "\n"
    "Numbers in brackets are those of the facts. Without a version the last one counts; of a\n"
    "release only the first two numbers do (0.23.0.post1 is 0.23).\n"
    "\n"
    "| engine | versions |\n"
    "|---|---|\n";

static void print_document(FILE *out)
{
    static const unsigned linears[] = {SUBJECT_LINEAR, SUBJECT_EXPERT};
    static const unsigned attention[] = {SUBJECT_ATTENTION};
    static const column types[] = {
        {"FLOAT", TYPE_FLOAT, 0},
        {"W8A8", TYPE_W8A8, 0},
        {"W8A8_DYNAMIC", TYPE_W8A8_DYNAMIC, 0},
        {"W8A8_MIX", TYPE_W8A8_MIX, 0},
        {"W8A16", TYPE_W8A16, 0},
        {"W4A8_DYNAMIC, one scale a row", TYPE_W4A8_DYNAMIC, 0},
        {"W4A8_DYNAMIC, groups", TYPE_W4A8_DYNAMIC, TRAIT_STAGED | TRAIT_GROUPS},
        {"W4A16", TYPE_W4A16, 0},
        {"W8A8S, NF4", TYPE_NF4, 0}};
    static const column scales[] = {{"C8", TYPE_C8, 0},
                                    {"C8, latent", TYPE_C8, TRAIT_LATENT},
                                    {"FA3", TYPE_FAQUANT, 0},
                                    {"FA3, latent", TYPE_FAQUANT, TRAIT_LATENT | TRAIT_FLOAT16}};
    char text[VERSION_TEXT];
    fprintf(out, "%s", INTRO);
    for (int i = ENGINE_NONE + 1; i < ENGINES; i++) {
        const engine_row *e = engine_of((engine)i);
        fprintf(out, "| %s |", e->name);
        for (size_t v = 0; e->versions[v]; v++)
            fprintf(out, "%s %s", v ? "," : "", engine_version_text(e->versions[v], text));
        fprintf(out, " |\n");
    }
    fprintf(out, "\n## Linears and routed experts\n\n");
    print_table(out, linears, 2, types, sizeof types / sizeof *types);
    fprintf(out, "\nW8A8 in compressed-tensors is that with symmetric activations.\n"
                 "\n## Attention and key/value cache\n\n");
    print_table(out, attention, 1, scales, sizeof scales / sizeof *scales);
    fprintf(out, "\n## Facts\n\nOf all that hold for a layer the worst counts.\n\n");
    for (size_t i = 0; i < num_target_facts; i++)
        print_fact(out, i + 1, &target_facts[i]);
}

/* ---- */

static int compare(const char *path)
{
    char *text = NULL, *have = NULL;
    size_t size = 0, have_size = 0;
    FILE *out = open_memstream(&text, &size), *file = fopen(path, "rb");
    print_document(out);
    fclose(out);
    bool same = false;
    if (file && (have = malloc(size + 1)) != NULL) {
        have_size = fread(have, 1, size + 1, file);
        same = have_size == size && memcmp(have, text, size) == 0;
    }
    if (file)
        fclose(file);
    free(have);
    free(text);
    if (!same)
        fprintf(stderr, "%s is not what the table says; make targets-document\n", path);
    return same ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return compare(argv[1]);
    print_document(stdout);
    return 0;
}
