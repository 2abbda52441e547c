/* What `tare calib --dry-run` prints: how often the weights of the model that judges are read. */
#include <math.h>
#include <stdlib.h>

#include "cli/cli.h"

#define MIB (1024.0 * 1024.0)

/* A set, and what asking about it takes. */
typedef struct set_cost {
    const char *name;
    tare_calib_stats stats;
    tare_calib_plan plan;
    tare_generation_plan generation; /* the plan's */
    tare_model_rates rates;
    double read;    /* bytes of weights, of the first round */
    double seconds; /* of the first round; < 0: no probe */
} set_cost;

typedef struct mix_cost {
    const char *model;
    set_cost *sets;
    size_t count;
    bool batch_given, probed, complete; /* complete: every rate is known */
    bool streamed;                      /* by a set */
    const tare_calib_plan *largest;     /* the set that takes most memory; NULL: none is asked */
    double read, scratch, traffic;      /* bytes; traffic: into and out of scratch files */
    double seconds, seconds_most;
} mix_cost;

static double part(double amount, double rate)
{
    return rate > 0 ? amount / rate : 0;
}

/* Reading goes on beside the products where the next layer is read ahead. */
static double round_seconds(const set_cost *s)
{
    const tare_generation_plan *g = &s->generation;
    double packed = (double)g->parameters * (g->weights_kept ? 1 : (double)g->passes);
    double compute = part(packed, s->rates.pack) +
                     part(2.0 * (double)g->parameters * (double)g->tokens, s->rates.products);
    double read = part(s->read, s->rates.read);
    return (g->read_ahead ? fmax(read, compute) : read + compute) +
           part((double)g->scratch_read + (double)g->scratch_written, s->rates.read);
}

static tare_status measure_set(tare_calib *calib, tare_model *model, bool probe, set_cost *s)
{
    s->stats.size = sizeof s->stats;
    s->plan = (tare_calib_plan){.size = sizeof s->plan, .generation = &s->generation};
    s->generation.size = sizeof s->generation;
    s->rates.size = sizeof s->rates;
    tare_status status = tare_calib_get_stats(calib, s->name, &s->stats);
    if (status == TARE_OK && model)
        status = tare_calib_get_plan(calib, s->name, &s->plan);
    const tare_generation_plan *g = &s->generation;
    s->read = (double)g->bytes_read_once + (double)g->bytes_read_pass * (double)g->passes;
    s->seconds = -1;
    if (status != TARE_OK || !s->plan.verified || !probe)
        return status;
    status = tare_model_probe(model, g->passes ? (size_t)(g->tokens / g->passes) : 1, &s->rates);
    s->seconds = round_seconds(s);
    return status;
}

/* Weights that are kept are loaded once for all sets. */
static void add_up(mix_cost *m)
{
    double once = 0;
    for (size_t i = 0; i < m->count; i++) {
        const set_cost *s = &m->sets[i];
        const tare_generation_plan *g = &s->generation;
        if (!s->plan.verified)
            continue;
        if (!m->largest || g->peak > m->largest->generation->peak)
            m->largest = &s->plan;
        m->streamed |= !g->weights_kept;
        once = fmax(once, (double)g->bytes_read_once);
        m->read += (double)g->bytes_read_pass * (double)g->passes;
        m->scratch = fmax(m->scratch, g->spill ? (double)g->key_values : 0);
        m->traffic += (double)g->scratch_read + (double)g->scratch_written;
        m->complete &= s->rates.read > 0;
        m->seconds += fmax(s->seconds, 0);
        m->seconds_most += fmax(s->seconds, 0) * (double)s->plan.rounds;
    }
    m->read += once;
}

/* ---- text ---- */

static void print_set(const set_cost *s)
{
    char a[32], b[32], c[32];
    const tare_generation_plan *g = &s->generation;
    printf("%-11s %llu of %llu records", s->name, (unsigned long long)s->stats.requested,
           (unsigned long long)s->stats.available);
    if (!s->plan.verified) {
        printf(s->stats.requested ? "; not verified\n" : "\n");
        return;
    }
    printf(": %zu prompts are asked together%s\n", s->plan.together,
           s->plan.task == TARE_CALIB_CHOOSE ? ", one forward each" : "");
    if (g->weights_kept)
        printf("            the weights stay in memory: %s are read once\n",
               cli_size(s->read, a, sizeof a));
    else
        printf("            %zu pass%s over %s of weights at most: %s read\n", g->passes,
               g->passes == 1 ? "" : "es", cli_size((double)g->bytes_read_pass, a, sizeof a),
               cli_size(s->read, b, sizeof b));
    if (!g->weights_kept && g->batch < s->plan.together)
        printf("            %zu prompts at a time\n", g->batch);
    if (g->spill)
        printf("            keys and values on disk: %s, %s written, %s read\n",
               cli_size((double)g->key_values, a, sizeof a),
               cli_size((double)g->scratch_written, b, sizeof b),
               cli_size((double)g->scratch_read, c, sizeof c));
    if (s->plan.rounds > 1)
        printf("            again for each further %zu prompts while too few are answered right: "
               "%llu rounds at most\n",
               s->plan.together, (unsigned long long)s->plan.rounds);
}

static void print_time(const mix_cost *m)
{
    char a[32], b[32];
    if (!m->probed) {
        printf("time        not estimated (no probe)\n");
        return;
    }
    printf("time        %s %s", m->complete ? "about" : "more than",
           cli_duration(m->seconds, a, sizeof a));
    if (m->seconds_most > m->seconds)
        printf("; %s if all records are asked", cli_duration(m->seconds_most, b, sizeof b));
    printf("%s\n", m->complete ? "" : " (the disk's rate is unknown)");
}

/* Things that need fewer passes, or fewer bytes in each. */
static void print_cheaper(const mix_cost *m)
{
    char a[32];
    const tare_generation_plan *most = m->largest->generation;
    printf("cheaper:\n");
    printf("  --max-memory cpu=%.0fMiB: the weights stay in memory\n",
           ceil((double)(most->smallest_kept + m->largest->process) / MIB));
    if (m->batch_given)
        printf("  no --batch-size: all prompts of a set together, as many as fit\n");
    for (size_t i = 0; i < m->count; i++) {
        const set_cost *s = &m->sets[i];
        const tare_generation_plan *g = &s->generation;
        if (!s->plan.verified || g->weights_kept)
            continue;
        if (s->plan.task != TARE_CALIB_CHOOSE)
            printf("  boolq instead of %s: one forward a prompt, instead of %zu passes (%s)\n",
                   s->name, g->passes, cli_size(s->read, a, sizeof a));
        if (!m->batch_given && g->batch < s->plan.together && g->batch >= 2)
            printf("  --size %s=%zu: its prompts go together\n", s->name, g->batch / 2);
    }
}

static void print_text(const mix_cost *m)
{
    char a[32], b[32];
    if (m->model)
        printf("model       %s\n", m->model);
    for (size_t i = 0; i < m->count; i++)
        print_set(&m->sets[i]);
    if (!m->largest)
        return;
    const tare_generation_plan *g = m->largest->generation;
    printf("memory      %.0f MiB", ceil((double)(g->peak + m->largest->process) / MIB));
    if (g->budget != UINT64_MAX)
        printf(" of %.0f MiB", floor((double)(g->budget + m->largest->process) / MIB));
    printf("; the smallest budget that works is cpu=%.0fMiB\n",
           ceil((double)(g->smallest + m->largest->process) / MIB));
    printf("disk        %s of weights read", cli_size(m->read, a, sizeof a));
    if (m->scratch > 0)
        printf(", %s of scratch", cli_size(m->scratch, b, sizeof b));
    printf("\n");
    print_time(m);
    if (m->streamed)
        print_cheaper(m);
}

/* ---- JSON ---- */

static void print_number(const char *key, double x)
{
    printf(", \"%s\": %.0f", key, x);
}

static void print_rate(const char *key, double x)
{
    printf(x > 0 ? ", \"%s\": %.6g" : ", \"%s\": null", key, x);
}

static void print_seconds(const char *key, double x, bool known)
{
    printf(known ? ", \"%s\": %.3f" : ", \"%s\": null", key, x);
}

static void print_set_json(const set_cost *s)
{
    static const char *const tasks[] = {[TARE_CALIB_CHOOSE] = "choose",
                                        [TARE_CALIB_CONTINUE] = "continue",
                                        [TARE_CALIB_SOLVE] = "solve"};
    const tare_generation_plan *g = &s->generation;
    printf("{\"name\": ");
    cli_print_json(s->name);
    print_number("requested", (double)s->stats.requested);
    print_number("available", (double)s->stats.available);
    printf(", \"task\": ");
    if (s->plan.verified)
        cli_print_json(tasks[s->plan.task]);
    else
        printf("null");
    print_number("together", (double)s->plan.together);
    print_number("rounds_most", (double)s->plan.rounds);
    print_number("batch", (double)g->batch);
    print_number("passes", (double)g->passes);
    print_number("tokens", (double)g->tokens);
    print_number("read_pass", (double)g->bytes_read_pass);
    print_number("read", s->read);
    print_number("key_values", (double)g->key_values);
    print_number("scratch_written", (double)g->scratch_written);
    print_number("scratch_read", (double)g->scratch_read);
    printf(", \"weights_kept\": %s, \"read_ahead\": %s, \"spill\": %s",
           g->weights_kept ? "true" : "false", g->read_ahead ? "true" : "false",
           g->spill ? "true" : "false");
    print_rate("read_rate", s->rates.read);
    print_rate("pack_rate", s->rates.pack);
    print_rate("product_rate", s->rates.products);
    print_seconds("seconds", s->seconds, s->seconds >= 0);
    printf("}");
}

static void print_json(const mix_cost *m)
{
    printf("{\"model\": ");
    if (m->model)
        cli_print_json(m->model);
    else
        printf("null");
    printf(", \"sets\": [");
    for (size_t i = 0; i < m->count; i++) {
        printf(i ? ", " : "");
        print_set_json(&m->sets[i]);
    }
    printf("]");
    if (m->largest) {
        const tare_generation_plan *g = m->largest->generation;
        double process = (double)m->largest->process;
        printf(", \"memory\": {\"peak\": %.0f", (double)g->peak + process);
        print_number("smallest", (double)g->smallest + process);
        print_number("smallest_kept", (double)g->smallest_kept + process);
        if (g->budget == UINT64_MAX)
            printf(", \"budget\": null}");
        else
            printf(", \"budget\": %.0f}", (double)g->budget + process);
    }
    printf(", \"disk\": {\"read\": %.0f", m->read);
    print_number("scratch", m->scratch);
    print_number("scratch_traffic", m->traffic);
    printf("}");
    print_seconds("seconds", m->seconds, m->probed);
    print_seconds("seconds_most", m->seconds_most, m->probed);
    printf(", \"complete\": %s}\n", m->complete ? "true" : "false");
}

tare_status cli_print_calib_plan(tare_calib *calib, tare_model *model, const char *model_name,
                                 bool batch_given, bool probe, bool json)
{
    tare_status status = TARE_OK;
    mix_cost m = {.model = model ? model_name : NULL,
                  .count = tare_calib_num_sets(calib),
                  .batch_given = batch_given,
                  .probed = probe,
                  .complete = probe};
    m.sets = calloc(m.count ? m.count : 1, sizeof *m.sets);
    if (!m.sets)
        return TARE_E_MEMORY;
    for (size_t i = 0; i < m.count && status == TARE_OK; i++) {
        m.sets[i].name = tare_calib_set_name(calib, i);
        status = measure_set(calib, model, probe, &m.sets[i]);
    }
    if (status == TARE_OK) {
        add_up(&m);
        (json ? print_json : print_text)(&m);
    }
    free(m.sets);
    return status;
}
