/* Log, progress and signals of a command. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

typedef struct terminal {
    bool bar; /* stderr is a terminal: one line is drawn over */
    bool drawn;
    bool quiet, verbose;
    double last; /* when progress was last shown */
    char stage[32];
} terminal;

static terminal the_terminal;
static tare_context *volatile running; /* for the signal handler */
static volatile sig_atomic_t caught_signal;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void clear_bar(terminal *t)
{
    if (t->drawn)
        fputs("\r\033[K", stderr);
    t->drawn = false;
}

static void show_log(void *user, tare_log_level level, const char *message)
{
    terminal *t = user;
    if (level > (t->quiet ? TARE_LOG_ERROR : t->verbose ? TARE_LOG_DEBUG : TARE_LOG_INFO))
        return;
    clear_bar(t);
    fprintf(stderr, "%s%s\n",
            level == TARE_LOG_WARNING ? "warning: "
            : level == TARE_LOG_ERROR ? "tare: "
                                      : "",
            message);
}

static void format_eta(double seconds, char *text, size_t length)
{
    long s = (long)(seconds + 0.5);
    if (seconds < 0)
        snprintf(text, length, "--:--");
    else if (s >= 3600)
        snprintf(text, length, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, length, "%ld:%02ld", s / 60, s % 60);
}

static void draw_bar(terminal *t, const tare_progress *p)
{
    enum { WIDTH = 24 };
    char bar[WIDTH + 1], eta[32];
    double done = (double)p->done + (p->samples ? (double)p->sample / (double)p->samples : 0);
    size_t filled = p->total ? (size_t)(done / (double)p->total * WIDTH) : 0;
    for (size_t i = 0; i < WIDTH; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[WIDTH] = 0;
    format_eta(p->eta_seconds, eta, sizeof eta);
    size_t current = p->done < p->total ? p->done + 1 : p->total;
    fprintf(stderr, "\r\033[K%-10s [%s] %s %zu of %zu", p->stage, bar, p->unit, current, p->total);
    if (p->samples)
        fprintf(stderr, "  sample %zu of %zu", p->sample, p->samples);
    fprintf(stderr, "  ETA %s", eta);
    fflush(stderr);
    t->drawn = true;
    if (p->done == p->total)
        clear_bar(t);
}

/* Without a terminal: a line when a stage begins and ends, and every few seconds between. */
static void print_line(terminal *t, const tare_progress *p)
{
    char eta[32];
    bool fresh = strcmp(t->stage, p->stage) != 0;
    if (p->samples)
        return;
    if (!fresh && p->done < p->total && !t->verbose && now() - t->last < 5)
        return;
    t->last = now();
    snprintf(t->stage, sizeof t->stage, "%s", p->stage);
    format_eta(p->eta_seconds, eta, sizeof eta);
    fprintf(stderr, "%s: %s %zu of %zu done, ETA %s\n", p->stage, p->unit, p->done, p->total, eta);
}

static void show_progress(void *user, const tare_progress *p)
{
    terminal *t = user;
    if (!t->bar) {
        print_line(t, p);
        return;
    }
    if (p->done < p->total && t->drawn && now() - t->last < 0.1)
        return;
    t->last = now();
    draw_bar(t, p);
}

static void on_signal(int number)
{
    caught_signal = number;
    tare_context *ctx = running;
    if (ctx)
        tare_cancel(ctx);
}

static bool parse_cpu(const char *name, tare_cpu *out)
{
    static const char *const names[] = {"auto", "scalar", "avx2", "avx512", "amx"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], name) == 0) {
            *out = (tare_cpu)i;
            return true;
        }
    }
    return false;
}

/* A file beyond the limit of sizes (ulimit -f) shall be an error that is told, not a death; and a
 * model may have more shards than the soft limit of open files allows. Both are the process's own
 * business, so the library leaves them alone. */
static void prepare_process(void)
{
    struct rlimit files;
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGXFSZ, &ignore, NULL);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files); /* if not, the soft limit holds */
    }
}

tare_context *cli_open(const common *options, int *exit_code)
{
    tare_context_options o;
    tare_context_options_init(&o);
    *exit_code = EXIT_USAGE;
    the_terminal = (terminal){.bar = isatty(STDERR_FILENO) && !options->quiet,
                              .quiet = options->quiet,
                              .verbose = options->verbose};
    if (options->threads) {
        char *end;
        long threads = strtol(options->threads, &end, 10);
        if (end == options->threads || *end || threads < 1 || threads > 1024) {
            fprintf(stderr, "tare: --threads: \"%s\" is not a number from 1 to 1024\n",
                    options->threads);
            return NULL;
        }
        o.threads = (int)threads;
    }
    if (options->cpu && !parse_cpu(options->cpu, &o.cpu)) {
        fprintf(stderr, "tare: --cpu: \"%s\" is none of auto, scalar, avx2, avx512, amx\n",
                options->cpu);
        return NULL;
    }
    o.log = show_log;
    o.progress = options->quiet ? NULL : show_progress;
    o.user = &the_terminal;
    tare_context *ctx;
    tare_status status = tare_context_create(&ctx, &o);
    if (status == TARE_E_USAGE)
        return NULL; /* the log has said why */
    if (status != TARE_OK) {
        fprintf(stderr, "tare: out of memory\n");
        *exit_code = 1;
        return NULL;
    }
    prepare_process();
    running = ctx;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return ctx;
}

int cli_close(tare_context *ctx, tare_status status)
{
    int code = 0;
    clear_bar(&the_terminal);
    if (status == TARE_E_CANCELLED && caught_signal)
        code = 128 + (int)caught_signal;
    else if (status != TARE_OK)
        code = status == TARE_E_USAGE || status == TARE_E_FOLDER || status == TARE_E_BUDGET
                   ? EXIT_USAGE
                   : 1;
    if (status != TARE_OK)
        fprintf(stderr, "tare: %s\n", tare_last_error(ctx));
    running = NULL;
    tare_context_free(ctx);
    if (fflush(stdout) != 0 && code == 0) {
        perror("tare: stdout");
        code = 1;
    }
    return code;
}
