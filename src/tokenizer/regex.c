/* Regular expressions through Oniguruma, with limits: expressions come from foreign files. */
#include <oniguruma.h>
#include <pthread.h>

#include "tokenizer/pattern.h"
#include "tokenizer/unicode.h"

enum {
    MAX_EXPRESSION = 16 * 1024, /* bytes; published ones have a few hundred */
    MAX_PARSE_DEPTH = 200,
    MAX_STACK = 4 * 1024 * 1024 /* entries of the matcher's own stack, 40 bytes each */
};

/* Steps back ("retries"). Oniguruma counts them within one search but does not tell how many there
 * were. So a search begins with a low limit; one that meets it is charged to the budget of the
 * whole text and tried again with a higher one. An honest expression takes a few steps a character.
 */
enum { FIRST_LIMIT = 1024, LIMIT_GROWTH = 4, BUDGET = 4000000, BUDGET_PER_BYTE = 16 };
enum { CANCEL_EVERY = 256 }; /* searches */

struct regex {
    tare_context *ctx;
    regex_t *compiled;
    OnigMatchParam *limits;
};

/* Oniguruma keeps its tables of encodings and its parse depth in globals of its own: the one
 * process-wide state of this library that cannot be avoided. It is set once and never changed. */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int initialized;

static void initialize(void)
{
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    initialized = onig_initialize(encodings, 1);
    onig_set_parse_depth_limit(MAX_PARSE_DEPTH);
}

static tare_status fail(tare_context *ctx, int code, OnigErrorInfo *info, const char *what)
{
    OnigUChar text[ONIG_MAX_ERROR_MESSAGE_LEN];
    if (code == ONIGERR_MEMORY)
        return TARE_FAIL(ctx, TARE_E_MEMORY, "out of memory in a regular expression");
    onig_error_code_to_str(text, code, info);
    return TARE_FAIL(ctx, TARE_E_MODEL, "%s: %s", what, (const char *)text);
}

tare_status regex_create(tare_context *ctx, const char *expression, size_t length, regex **out)
{
    const OnigUChar *begin = (const OnigUChar *)expression;
    OnigErrorInfo info = {0};
    *out = NULL;
    if (length > MAX_EXPRESSION)
        return TARE_FAIL(ctx, TARE_E_MODEL, "a regular expression of %zu bytes; at most %d", length,
                         MAX_EXPRESSION);
    pthread_once(&once, initialize);
    if (initialized != ONIG_NORMAL)
        return fail(ctx, initialized, NULL, "Oniguruma does not start");
    regex *r = mem_calloc(ctx, 1, sizeof *r);
    if (!r)
        return TARE_E_MEMORY;
    r->ctx = ctx;
    int code = onig_new(&r->compiled, begin, begin + length, ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                        ONIG_SYNTAX_DEFAULT, &info);
    if (code == ONIG_NORMAL && !(r->limits = onig_new_match_param()))
        code = ONIGERR_MEMORY;
    if (code != ONIG_NORMAL) {
        regex_free(r);
        return fail(ctx, code, &info, "regular expression");
    }
    onig_initialize_match_param(r->limits);
    onig_set_match_stack_limit_size_of_match_param(r->limits, MAX_STACK);
    *out = r;
    return TARE_OK;
}

void regex_free(regex *r)
{
    if (!r)
        return;
    if (r->limits)
        onig_free_match_param(r->limits);
    if (r->compiled)
        onig_free(r->compiled);
    mem_free(r->ctx, r);
}

/* Searches [from,end) of a text; what it takes too much of is taken from *budget. */
static int search(const regex *r, const OnigUChar *begin, const OnigUChar *from,
                  const OnigUChar *end, OnigRegion *region, unsigned long *budget)
{
    unsigned long limit = FIRST_LIMIT;
    for (;;) {
        onig_set_retry_limit_in_match_of_match_param(r->limits, limit);
        onig_set_retry_limit_in_search_of_match_param(r->limits, limit);
        int found = onig_search_with_param(r->compiled, begin, end, from, end, region,
                                           ONIG_OPTION_NONE, r->limits);
        if (found != ONIGERR_RETRY_LIMIT_IN_MATCH_OVER &&
            found != ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER)
            return found;
        if (*budget < limit)
            return found;
        *budget -= limit;
        limit *= LIMIT_GROWTH;
        if (limit > *budget + 1)
            limit = *budget + 1; /* 0 would mean no limit */
    }
}

tare_status regex_find(const regex *r, const char *text, size_t length, match_list *out)
{
    const OnigUChar *begin = (const OnigUChar *)text, *end = begin + length;
    tare_status status = TARE_OK;
    size_t from = 0, previous = 0;
    bool matched = false;
    unsigned long budget = BUDGET + BUDGET_PER_BYTE * (unsigned long)length;
    OnigRegion *region = onig_region_new();
    if (!region)
        return fail(r->ctx, ONIGERR_MEMORY, NULL, "");
    for (unsigned n = 0; from <= length; n++) {
        if (n % CANCEL_EVERY == 0)
            TRY(context_check_cancelled(r->ctx));
        int found = search(r, begin, begin + from, end, region, &budget);
        if (found == ONIG_MISMATCH)
            break;
        if (found < 0) {
            status = fail(r->ctx, found, NULL, "regular expression on this text");
            goto done;
        }
        size_t match_start = (size_t)region->beg[0], match_end = (size_t)region->end[0];
        /* \K in a look-around moves the start anywhere. */
        if (match_start > match_end)
            match_start = match_end;
        if (match_start < previous)
            match_start = previous;
        /* As the onig crate: an empty match right behind the last match is none; try further on. */
        if (match_start == match_end && matched && previous == match_end) {
            from += from < length ? utf8_length(begin[from]) : 1;
            continue;
        }
        if (previous < match_start)
            TRY(match_list_add(out, previous, match_start, false));
        TRY(match_list_add(out, match_start, match_end, true));
        from = previous = match_end;
        matched = true;
    }
    if (previous < length)
        TRY(match_list_add(out, previous, length, false));
done:
    onig_region_free(region, 1);
    return status;
}
