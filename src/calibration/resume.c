/* What a verified mix finished, set by set, in a journal beside its file: the first record says
 * what the mix is made of, each further one which records of a set were chosen. */
#include <string.h>

#include "calibration/calib.h"
#include "file/json.h"

static void write_member(buffer *out, const char *key, const char *name)
{
    buffer text;
    buffer_init(&text, out->ctx);
    buffer_printf(&text, "%s%s", key, name);
    if (text.status == TARE_OK)
        json_write_string(out, text.data, text.length);
    else
        out->status = text.status;
    buffer_free(&text);
    buffer_puts(out, ": ");
}

static void write_seed(buffer *out, const char *key, const calib_seed *seed)
{
    buffer_printf(out, ", \"%s\": \"", key);
    for (size_t i = seed->count; i-- > 0;)
        buffer_printf(out, "%08x", seed->words[i]);
    buffer_puts(out, "\"");
}

/* {"mix": …} and what the verifier says of itself. */
static tare_status write_identity(const tare_calib *c, buffer *out)
{
    const calib_input *in = &c->input;
    buffer_printf(out, "{\"mix\": {\"version\": \"%s\", \"cpu\": \"%s\", \"config\": \"%016llx\"",
                  tare_version(), tare_cpu_name(c->ctx), (unsigned long long)c->config_digest);
    buffer_printf(out,
                  ", \"compat\": \"%d\", \"skip-bad\": \"%d\", \"mmlu-shots\": \"%u\", "
                  "\"gsm8k-sampling\": \"%d\", \"gsm8k-seed\": \"%08x%08x\"",
                  in->compat, in->skip_bad, in->mmlu_shots, c->gsm8k_sampling, c->gsm8k_seed[1],
                  c->gsm8k_seed[0]);
    write_seed(out, "seed", &c->shuffle_seed);
    write_seed(out, "sample-seed", &c->sample_seed);
    for (size_t i = 0; i < c->num_sets; i++) {
        const calib_set *s = &c->sets[i];
        buffer_puts(out, ", ");
        write_member(out, "size of ", s->name);
        buffer_printf(out, "\"%llu\", ", (unsigned long long)s->requested);
        write_member(out, "data of ", s->name);
        buffer_printf(out, "\"%016llx\"", (unsigned long long)s->digest);
    }
    buffer_printf(out, "}, \"verifier\": %s}", c->verifier.identity);
    return out->status;
}

/* Appends the names of strings that differ; of members that only `then` has, too. */
static void compare(const value *now, const value *then, buffer *changed)
{
    for (size_t i = 0; i < now->count; i++) {
        const value *a = &now->items[i], *b = value_get(then, now->keys[i].text);
        if (a->type == VALUE_MAP && b && b->type == VALUE_MAP)
            compare(a, b, changed);
        else if (!b || a->type != VALUE_STRING || b->type != VALUE_STRING ||
                 strcmp(a->text, b->text) != 0)
            buffer_printf(changed, "%s%s", changed->length ? ", " : "", now->keys[i].text);
    }
    for (size_t i = 0; i < then->count; i++) {
        if (!value_get(now, then->keys[i].text))
            buffer_printf(changed, "%s%s", changed->length ? ", " : "", then->keys[i].text);
    }
}

static tare_status check_identity(tare_calib *c, const char *text, size_t length)
{
    tare_status status = TARE_OK;
    const value *now, *then = journal_at(c->journal, 0);
    buffer changed;
    arena a;
    arena_init(&a, c->ctx);
    buffer_init(&changed, c->ctx);
    TRY(json_parse(c->ctx, &a, text, length, "identity", JSON_STRICT, &now));
    if (then->type == VALUE_MAP)
        compare(now, then, &changed);
    TRY(changed.status);
    if (then->type != VALUE_MAP || changed.length > 0)
        TRY(TARE_FAIL(
            c->ctx, TARE_E_FOLDER,
            "'%s' holds sets of a mix of other inputs or settings (changed: %s); give back "
            "what changed, or begin anew with --overwrite",
            c->work_folder, changed.length ? changed.data : "all"));
done:
    buffer_free(&changed);
    arena_free(&a);
    return status;
}

/* What an earlier run left is gone on with, thrown away or refused. */
static tare_status take_journal(tare_calib *c, const char *text, size_t length)
{
    size_t sets = journal_count(c->journal) > 0 ? journal_count(c->journal) - 1 : 0;
    if (sets == 0)
        return journal_restart(c->journal);
    if (c->resume) {
        tare_status status = check_identity(c, text, length);
        if (status == TARE_OK)
            TARE_INFO(c->ctx, "going on: %zu sets were finished before", sets);
        return status;
    }
    if (c->overwrite)
        return journal_restart(c->journal);
    return TARE_FAIL(c->ctx, TARE_E_FOLDER,
                     "'%s' holds %zu finished sets of an earlier run: --resume goes on with them, "
                     "--overwrite begins anew",
                     c->work_folder, sets);
}

tare_status resume_begin(tare_calib *c)
{
    tare_status status = TARE_OK;
    buffer text;
    if (!c->keep || !c->work_folder || !c->has_verifier || !c->verifier.identity)
        return TARE_OK;
    buffer_init(&text, c->ctx);
    TRY(journal_open(c->ctx, c->work_folder, &c->journal));
    c->finished = journal_count(c->journal);
    TRY(write_identity(c, &text));
    TRY(take_journal(c, text.data, text.length));
    c->finished = journal_count(c->journal);
    if (c->finished == 0) {
        TRY(journal_add(c->journal, text.data));
        c->finished = 1;
    }
done:
    buffer_free(&text);
    return status;
}

/* Every member is looked at: the text is whole, but another program may have written it. */
static const value *records_of(const value *record, const calib_set *set)
{
    const value *name = value_get(record, "set"), *records = value_get(record, "records");
    if (!name || name->type != VALUE_STRING || strcmp(name->text, set->name) != 0 || !records ||
        records->type != VALUE_LIST)
        return NULL;
    for (size_t i = 0; i < records->count; i++) {
        const value *v = &records->items[i];
        if (v->type != VALUE_NUMBER || !v->is_integer || v->integer < 0 ||
            (uint64_t)v->integer >= set->count)
            return NULL;
    }
    return records;
}

void resume_find(const tare_calib *c, const calib_set *set, const value **records, size_t *too_long)
{
    *records = NULL;
    for (size_t i = 1; c->journal && i < journal_count(c->journal) && !*records; i++) {
        const value *record = journal_at(c->journal, i), *v = value_get(record, "too_long");
        *records = records_of(record, set);
        if (*records && v && v->type == VALUE_NUMBER && v->is_integer && v->integer > 0)
            *too_long = (size_t)v->integer;
    }
}

tare_status resume_add(tare_calib *c, const calib_set *set, const tare_calib_entry *entries,
                       size_t count, size_t too_long)
{
    buffer text;
    if (!c->journal)
        return TARE_OK;
    buffer_init(&text, c->ctx);
    buffer_puts(&text, "{\"set\": ");
    json_write_string(&text, set->name, strlen(set->name));
    buffer_printf(&text, ", \"too_long\": %zu, \"records\": [", too_long);
    for (size_t i = 0; i < count; i++)
        buffer_printf(&text, "%s%llu", i ? ", " : "", (unsigned long long)entries[i].sample.record);
    buffer_puts(&text, "]}");
    tare_status status = text.status;
    if (status == TARE_OK)
        status = journal_add(c->journal, text.data);
    c->finished += status == TARE_OK;
    buffer_free(&text);
    return status;
}

void resume_end(tare_calib *c, tare_status status)
{
    if (!c->journal)
        return;
    if (status == TARE_OK) {
        if (journal_remove(c->journal) != TARE_OK) /* the mix is saved: too late to fail */
            TARE_WARN(c->ctx, "'%s' could not be removed: %s", c->work_folder,
                      tare_last_error(c->ctx));
    } else if (c->finished <= 1) {
        (void)journal_remove(c->journal); /* nothing is lost; the first error counts */
    } else if (status != TARE_E_FOLDER) {
        TARE_INFO(c->ctx, "%zu sets are finished: --resume goes on with them", c->finished - 1);
    }
    journal_close(c->journal);
    c->journal = NULL;
    c->finished = 0;
}
