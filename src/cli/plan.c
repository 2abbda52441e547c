/* What `tare quantize --dry-run` prints. */
#include <math.h>

#include "cli/cli.h"

#define MIB (1024.0 * 1024.0)

typedef struct named_bytes {
    const char *name, *key; /* as shown, and in JSON */
    uint64_t bytes;
} named_bytes;

enum { TERMS = 8 };

static void list_terms(const tare_plan *p, named_bytes out[TERMS])
{
    const named_bytes terms[TERMS] = {{"weights", "weights", p->weights},
                                      {"blocked copy", "packed", p->packed},
                                      {"activations", "activations", p->activations},
                                      {"workspace", "workspace", p->workspace},
                                      {"smoothing", "smoothing", p->smoothing},
                                      {"scratch", "scratch", p->scratch},
                                      {"output", "output", p->output},
                                      {"fixed", "fixed", p->fixed}};
    for (int i = 0; i < TERMS; i++)
        out[i] = terms[i];
}

const char *cli_duration(double seconds, char *text, size_t length)
{
    if (seconds < 10)
        snprintf(text, length, "%.1f s", seconds);
    else if (seconds < 90)
        snprintf(text, length, "%.0f s", ceil(seconds));
    else if (seconds < 5400)
        snprintf(text, length, "%.0f min", ceil(seconds / 60));
    else
        snprintf(text, length, "%.1f h", seconds / 3600);
    return text;
}

static void print_work(const tare_plan *p)
{
    char text[32];
    if (p->seconds < 0) {
        printf("time        not estimated (no probe)\n");
        return;
    }
    bool complete = true;
    for (size_t i = 0; i < p->num_work; i++)
        complete &= p->work[i].amount <= 0 || p->work[i].rate > 0;
    printf("time        %s %s\n", complete ? "about" : "more than",
           cli_duration(p->seconds, text, sizeof text));
    for (size_t i = 0; i < p->num_work; i++) {
        const tare_work *w = &p->work[i];
        if (w->amount <= 0)
            continue;
        if (w->rate > 0)
            printf("  %-21s %8.3g %-10s at %8.3g a second: %s\n", w->name, w->amount, w->unit,
                   w->rate, cli_duration(w->amount / w->rate, text, sizeof text));
        else
            printf("  %-21s %8.3g %-10s at an unknown rate\n", w->name, w->amount, w->unit);
    }
}

static void print_text(const tare_quantize_options *o, const tare_plan *p)
{
    named_bytes terms[TERMS];
    char a[32], b[32], c[32];
    list_terms(p, terms);
    printf("model       %s: %zu layers\n", o->model, p->layers);
    printf("calibration %zu samples, %zu tokens\n", p->samples, p->tokens);
    printf("memory      %.0f MiB", ceil((double)p->peak / MIB));
    if (p->budget != UINT64_MAX)
        printf(" of %.0f MiB", floor((double)p->budget / MIB));
    printf("; the smallest budget that works is cpu=%.0fMiB\n", ceil((double)p->smallest / MIB));
    printf("  at %s:", p->peak_unit);
    for (int i = 0; i < TERMS; i++)
        if (terms[i].bytes >= MIB / 2)
            printf(" %s %.0f%s", terms[i].name, (double)terms[i].bytes / MIB,
                   i + 1 < TERMS ? "," : " MiB");
    printf("\n  batches of %zu tokens; float copies of %s%s%s", p->batch_tokens,
           p->whole_layer ? "a layer" : "one linear", p->spill ? "; hidden states on disk" : "",
           p->overlap ? "; the next layer is read ahead" : "");
    if (p->layer_parts > 1)
        printf("; a layer in %zu parts", p->layer_parts);
    printf("\n");
    printf("passes      %zu over the weights of the layers\n", p->passes);
    printf("disk        %s read, about %s written", cli_size((double)p->bytes_read, a, sizeof a),
           cli_size((double)p->bytes_written, b, sizeof b));
    if (p->bytes_scratch)
        printf(", %s of scratch", cli_size((double)p->bytes_scratch, c, sizeof c));
    printf("\noperations  %.3g in 8 bits, %.3g in floats\n", p->int8_operations,
           p->float_operations);
    print_work(p);
}

static void print_number(const char *key, double x)
{
    printf(", \"%s\": %.0f", key, x);
}

static void print_json(const tare_quantize_options *o, const tare_plan *p)
{
    named_bytes terms[TERMS];
    list_terms(p, terms);
    printf("{\"model\": ");
    cli_print_json(o->model);
    printf(", \"layers\": %zu, \"samples\": %zu, \"tokens\": %zu, \"passes\": %zu", p->layers,
           p->samples, p->tokens, p->passes);
    printf(", \"memory\": {\"budget\": ");
    if (p->budget == UINT64_MAX)
        printf("null");
    else
        printf("%.0f", (double)p->budget);
    print_number("smallest", (double)p->smallest);
    print_number("peak", (double)p->peak);
    printf(", \"peak_unit\": ");
    cli_print_json(p->peak_unit);
    for (int i = 0; i < TERMS; i++)
        print_number(terms[i].key, (double)terms[i].bytes);
    printf(", \"batch_tokens\": %zu, \"whole_layer\": %s, \"spill\": %s, \"overlap\": %s, "
           "\"layer_parts\": %zu}",
           p->batch_tokens, p->whole_layer ? "true" : "false", p->spill ? "true" : "false",
           p->overlap ? "true" : "false", p->layer_parts);
    printf(", \"disk\": {\"read\": %.0f", (double)p->bytes_read);
    print_number("written", (double)p->bytes_written);
    print_number("scratch", (double)p->bytes_scratch);
    printf("}, \"operations\": {\"int8\": %.0f, \"float\": %.0f}", p->int8_operations,
           p->float_operations);
    printf(", \"work\": [");
    for (size_t i = 0; i < p->num_work; i++) {
        const tare_work *w = &p->work[i];
        printf("%s{\"name\": \"%s\", \"unit\": \"%s\", \"amount\": %.0f, \"rate\": ", i ? ", " : "",
               w->name, w->unit, w->amount);
        printf(w->rate > 0 ? "%.6g}" : "null}", w->rate);
    }
    printf(p->seconds < 0 ? "], \"seconds\": null}\n" : "], \"seconds\": %.4g}\n", p->seconds);
}

void cli_print_plan(const tare_quantize_options *o, const tare_plan *p, bool json)
{
    (json ? print_json : print_text)(o, p);
}
