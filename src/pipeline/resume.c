/* Going on after a kill (spec/low_memory.md 1.7). After a layer, when enough time has passed, the
 * whole state of the run goes into one of two files by turns: what of the output is on the disk,
 * what later layers need, and the hidden states; then a record in the journal names that file and
 * its digest. Another process takes the newest state that is whole, in itself and in the output's
 * files, and goes on from there; if there is none it begins anew. Bytes come out the same, as they
 * depend on nothing but the fingerprint, which the first record holds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "file/json.h"
#include "pipeline/smoothing.h"
#include "pipeline/statistics.h"

enum { CHECKPOINT_SECONDS = 20, GENERATIONS = 2 };

/* ---- the state ---- */

static tare_status archive_smoothing(run *r, archive *a)
{
    tare_status status = TARE_OK;
    for (size_t i = 0; smoothing_solves(r->plan) && i < r->model->num_blocks; i++)
        TRY(smoothing_archive(r, &r->model->blocks[i], a));
done:
    return status;
}

static tare_status archive_attentions(run *r, archive *a)
{
    tare_status status = TARE_OK;
    size_t heads[FA_KINDS];
    attention_heads(r->model, heads);
    for (size_t i = 0; i < r->model->num_blocks; i++) {
        run_attention *t = &r->attentions[i];
        TRY(archive_bytes(a, t->scores, sizeof t->scores));
        TRY(kv_cache_archive(r, i, a));
        for (int kind = 0; kind < FA_KINDS; kind++) {
            float *scales = t->scales[kind];
            TRY(archive_floats(a, &scales, heads[kind]));
            if (archive_reads(a) && scales) {
                t->scales[kind] = arena_alloc_array(r->env->arena, heads[kind], sizeof *scales);
                if (t->scales[kind])
                    memcpy(t->scales[kind], scales, heads[kind] * sizeof *scales);
                mem_free(r->ctx, scales);
                TRY(t->scales[kind] ? TARE_OK : TARE_E_MEMORY);
            }
        }
    }
done:
    return status;
}

/* Samples on their way: [tokens, hidden_size] before `layer`, or what lies between its experts. */
static tare_status archive_flow(run *r, bool of_floats, size_t layer, size_t expert, archive *a)
{
    tare_status status = TARE_OK;
    flow *f = of_floats ? &r->floats : &r->calibrated;
    if (archive_reads(a))
        TRY(create_states(r, of_floats));
    TRY(stream_archive(f->states, a));
    TRY(mtp_archive(r, f, a));
    if (expert > 0)
        TRY(experts_archive(r, &r->model->blocks[layer], f, a));
done:
    return status;
}

/* All but the output's part, in both directions. */
static tare_status archive_run(run *r, size_t layer, size_t expert, archive *a)
{
    tare_status status = TARE_OK;
    bool beside = r->floats.states != NULL;
    for (size_t i = 0; i < r->model->num_linears; i++) {
        TRY(archive_bytes(a, &r->scores[i].known, sizeof(bool)));
        TRY(archive_bytes(a, &r->scores[i].value, sizeof(double)));
    }
    TRY(archive_bytes(a, &r->saturated_rows, sizeof r->saturated_rows));
    TRY(archive_attentions(r, a));
    TRY(archive_smoothing(r, a));
    TRY(archive_bytes(a, &beside, sizeof beside));
    TRY(coverage_archive(r, a));
    if (r->resume.pass == PASS_QUANTIZE && r->plan->calibrates)
        TRY(archive_flow(r, false, layer, expert, a));
    if (beside)
        TRY(archive_flow(r, true, layer, expert, a));
done:
    return status;
}

static char *state_path(run *r, unsigned generation)
{
    char name[32];
    snprintf(name, sizeof name, "state-%u", generation);
    return path_join(r->ctx, journal_folder(r->resume.journal), name);
}

static tare_status write_state(run *r, const char *path, size_t layer, size_t expert,
                               uint64_t *digest)
{
    tare_status status = TARE_OK;
    archive *a = NULL;
    TRY(path_remove(r->ctx, path));
    TRY(archive_create(r->ctx, path, &a));
    TRY(statistics_sync(r));
    TRY(output_save(r->out, a));
    TRY(archive_run(r, layer, expert, a));
    archive *finished = a;
    a = NULL;
    TRY(archive_finish(finished, digest));
done:
    archive_abandon(a);
    return status;
}

tare_status resume_save(run *r, size_t next, size_t expert)
{
    tare_status status = TARE_OK;
    uint64_t digest = 0;
    char record[192], *path = state_path(r, r->resume.generation);
    TRY(path ? TARE_OK : TARE_E_MEMORY);
    TRY(write_state(r, path, next, expert, &digest));
    snprintf(record, sizeof record,
             "{\"pass\": %d, \"layer\": %zu, \"expert\": %zu, \"state\": %u, \"digest\": "
             "\"%016llx\"}",
             (int)r->resume.pass, next, expert, r->resume.generation, (unsigned long long)digest);
    TRY(journal_add(r->resume.journal, record));
    r->resume.generation = (r->resume.generation + 1) % GENERATIONS;
    r->resume.worth_keeping = true;
    r->resume.last = clock_seconds();
    r->resume.layers_since = 0;
done:
    mem_free(r->ctx, path);
    return TARE_WRAP(r->ctx, status, "checkpoint");
}

bool resume_due(run *r, bool layer_done)
{
    size_t every = r->env->options->checkpoint_every, since = r->resume.layers_since += layer_done;
    return r->resume.records &&
           (every ? since >= every : clock_seconds() - r->resume.last >= CHECKPOINT_SECONDS);
}

bool resume_due_inside(run *r, size_t experts_done)
{
    size_t every = r->env->options->checkpoint_experts;
    return every ? r->resume.records && experts_done % every == 0 : resume_due(r, false);
}

/* ---- finding it again ---- */

static tare_status read_record(run *r, const value *record, run_resume *found)
{
    const value *pass = value_get(record, "pass"), *layer = value_get(record, "layer"),
                *expert = value_get(record, "expert"), *state = value_get(record, "state"),
                *digest = value_get(record, "digest");
    if (!pass || !layer || !expert || !state || !digest || digest->type != VALUE_STRING)
        return TARE_FAIL(r->ctx, TARE_E_DATA, "a record of the journal is not a checkpoint");
    found->pass = (run_pass)pass->integer;
    found->layer = (size_t)layer->integer;
    found->expert = (size_t)expert->integer;
    found->generation = (unsigned)state->integer;
    found->digest = strtoull(digest->text, NULL, 16);
    return TARE_OK;
}

static tare_status check_state(run *r, const run_resume *candidate)
{
    tare_status status = TARE_OK;
    archive *a = NULL;
    char *path = state_path(r, candidate->generation),
         *stage = path_join(r->ctx, journal_folder(r->resume.journal), "stage");
    TRY(path && stage ? TARE_OK : TARE_E_MEMORY);
    TRY(archive_open(r->ctx, path, candidate->digest, &a));
    TRY(output_check_saved(r->ctx, a, stage));
    if (candidate->pass == PASS_QUANTIZE && (candidate->layer > 0 || candidate->expert > 0))
        TRY(statistics_check(r, stage));
done:
    archive_abandon(a);
    mem_free(r->ctx, path);
    mem_free(r->ctx, stage);
    return status;
}

static void tell_place(run *r, const run_resume *at)
{
    if (!r->plan->calibrates && at->pass == PASS_QUANTIZE)
        TARE_INFO(r->ctx, "going on behind tensor %zu of %zu", at->layer, pieces_steps(r->plan));
    else if (at->expert > 0)
        TARE_INFO(r->ctx, "going on %s layer %zu of %zu and %zu experts of the next",
                  at->pass == PASS_FLOAT ? "with the score pass behind" : "behind", at->layer,
                  r->model->num_blocks, at->expert);
    else
        TARE_INFO(r->ctx, "going on %s layer %zu of %zu",
                  at->pass == PASS_FLOAT ? "with the score pass behind" : "behind", at->layer,
                  r->model->num_blocks);
}

/* The newest of the states that are still there. */
static tare_status find_state(run *r)
{
    const journal *j = r->resume.journal;
    for (size_t n = journal_count(j), tries = 0; n > 1 && tries < GENERATIONS; n--) {
        run_resume candidate = {0};
        if (value_get(journal_at(j, n - 1), "staged"))
            continue;
        tries++;
        tare_status status = read_record(r, journal_at(j, n - 1), &candidate);
        if (status == TARE_OK)
            status = check_state(r, &candidate);
        if (status == TARE_E_CANCELLED || status == TARE_E_MEMORY)
            return status;
        if (status != TARE_OK) {
            TARE_WARN(r->ctx, "a checkpoint cannot be used: %s", tare_last_error(r->ctx));
            continue;
        }
        r->resume.pass = candidate.pass;
        r->resume.layer = candidate.layer;
        r->resume.expert = candidate.expert;
        r->resume.generation = candidate.generation;
        r->resume.digest = candidate.digest;
        r->resume.restores = r->resume.worth_keeping = true;
        tell_place(r, &candidate);
        return TARE_OK;
    }
    TARE_WARN(r->ctx, "nothing to go on from in %s: starting afresh", r->env->options->out);
    return TARE_OK;
}

tare_status resume_restore(run *r)
{
    tare_status status = TARE_OK;
    archive *a = NULL;
    if (!r->resume.restores)
        return TARE_OK;
    char *path = state_path(r, r->resume.generation);
    TRY(path ? TARE_OK : TARE_E_MEMORY);
    TRY(archive_open(r->ctx, path, r->resume.digest, &a));
    TRY(output_restore(r->out, a));
    TRY(archive_run(r, r->resume.layer, r->resume.expert, a));
    archive *finished = a;
    a = NULL;
    TRY(archive_finish(finished, NULL));
    r->resume.generation = (r->resume.generation + 1) % GENERATIONS;
done:
    archive_abandon(a);
    mem_free(r->ctx, path);
    return TARE_WRAP(r->ctx, status, "checkpoint");
}

/* ---- beginning and end ---- */

/* A finished output, and --resume: is it the one that is asked for? */
static tare_status check_finished(run *r)
{
    tare_status status = TARE_OK;
    const value *root;
    char *path;
    TRY(save_types_record(r->ctx, r->env->options->out, &path));
    if (!path)
        goto done;
    TRY(json_parse_file(r->ctx, r->env->arena, path, 64 << 20, &root));
    TRY(fingerprint_check(r, value_get(root, "fingerprint"), NULL, false, "a finished output"));
    r->resume.finished = true;
    TARE_INFO(r->ctx, "%s is finished already", r->env->options->out);
done:
    mem_free(r->ctx, path);
    return status;
}

static tare_status publish_rest(run *r)
{
    tare_status status = TARE_OK;
    char *stage = path_join(r->ctx, journal_folder(r->resume.journal), "stage");
    TRY(stage ? TARE_OK : TARE_E_MEMORY);
    if (path_exists(stage)) /* else only the journal is left */
        TRY(output_publish_rest(r->ctx, stage, r->env->options->out));
    r->resume.finished = true;
    TARE_INFO(r->ctx, "%s was all but finished: it is now", r->env->options->out);
done:
    mem_free(r->ctx, stage);
    return status;
}

/* Is what an earlier run staged to its end, and did not publish, still as it was? */
static tare_status check_stage(run *r, const value *record)
{
    tare_status status = TARE_OK;
    uint64_t digest;
    char *stage = path_join(r->ctx, journal_folder(r->resume.journal), "stage");
    TRY(stage ? TARE_OK : TARE_E_MEMORY);
    TRY(output_digest_stage(r->ctx, stage, &digest));
    r->resume.staged = record->type == VALUE_STRING && strtoull(record->text, NULL, 16) == digest;
    if (!r->resume.staged)
        TARE_WARN(r->ctx, "%s is not what was written: stepping back", stage);
done:
    mem_free(r->ctx, stage);
    return status;
}

/* What an earlier run left in the folder. */
static tare_status take_over(run *r)
{
    tare_status status = TARE_OK;
    const tare_quantize_options *o = r->env->options;
    journal *j = r->resume.journal;
    size_t records = journal_count(j);
    const value *first = records > 0 ? journal_at(j, 0) : NULL;
    if (first && !o->resume && !o->overwrite)
        TRY(TARE_FAIL(r->ctx, TARE_E_FOLDER,
                      "output folder %s holds an unfinished run: --resume goes on with it, "
                      "--overwrite starts anew",
                      o->out));
    if (!first || !o->resume)
        return journal_restart(j);
    const value *last = journal_at(j, records - 1);
    bool published = value_get(last, "publish");
    if (value_get(last, "staged"))
        TRY(check_stage(r, value_get(last, "staged")));
    TRY(fingerprint_check(r, value_get(first, "fingerprint"), value_get(first, "modified"),
                          published || r->resume.staged, "an unfinished run"));
    const value *overwrite = value_get(first, "overwrite");
    r->overwrite |= overwrite && overwrite->boolean;
    if (published)
        return publish_rest(r);
    if (r->resume.staged)
        return TARE_OK;
    TRY(find_state(r));
    if (!r->resume.restores)
        TRY(journal_restart(j));
done:
    return status;
}

static tare_status first_record(run *r)
{
    tare_status status = TARE_OK;
    buffer record;
    buffer_init(&record, r->ctx);
    buffer_printf(&record, "{\"tare_journal\": 1, \"overwrite\": %s, \"fingerprint\": ",
                  r->overwrite ? "true" : "false");
    TRY(fingerprint_write(r, &record, NULL));
    buffer_puts(&record, ", \"modified\": ");
    TRY(fingerprint_times(r->model, &record));
    buffer_putc(&record, '}');
    TRY(record.status);
    TRY(journal_add(r->resume.journal, record.data));
done:
    buffer_free(&record);
    return status;
}

tare_status resume_open(run *r)
{
    tare_status status = TARE_OK;
    const tare_quantize_options *o = r->env->options;
    char *folder = path_join(r->ctx, o->out, ".tare");
    TRY(folder ? TARE_OK : TARE_E_MEMORY);
    bool left = path_exists(folder);
    r->overwrite = o->overwrite;
    r->made_out = !path_exists(o->out);
    if (left) {
        TRY(journal_open(r->ctx, folder, &r->resume.journal));
        TRY(take_over(r));
    }
    /* A run that ends removes the journal first, then the folder. */
    if (o->resume && !(left && journal_count(r->resume.journal)))
        TRY(check_finished(r));
    if (r->resume.finished)
        goto done;
    TRY(open_output(r, false));
    if (r->resume.staged) {
        r->resume.records = true;
        TRY(output_publish_stage(r->out));
        r->resume.finished = true;
        TARE_INFO(r->ctx, "%s was all but finished: it is now", o->out);
        goto done;
    }
    if (!left) /* after the checks of the output folder, which it lies in */
        TRY(journal_open(r->ctx, folder, &r->resume.journal));
    r->resume.records = !o->no_resume;
    r->resume.last = clock_seconds();
    if (r->resume.records && !r->resume.restores)
        TRY(first_record(r));
done:
    mem_free(r->ctx, folder);
    return status;
}

tare_status resume_before_publish(void *user)
{
    run *r = user;
    return r->resume.records ? journal_add(r->resume.journal, "{\"publish\": true}") : TARE_OK;
}

/* What a repeated call could mend: then the checkpoints stay. */
static bool may_go_on(tare_status status)
{
    return status == TARE_E_CANCELLED || status == TARE_E_IO || status == TARE_E_MEMORY ||
           status == TARE_E_BUDGET || status == TARE_E_FOLDER || status == TARE_E_USAGE;
}

/* Does a run that failed leave its stage? An output that broke a rule stays to be looked at, even
 * where nothing can go on from it. */
static bool leaves_stage(const run_resume *s, tare_status status)
{
    if (status == TARE_E_VERIFY && s->staged)
        return true;
    return status != TARE_OK && s->records && (s->staged || s->worth_keeping) && may_go_on(status);
}

/* Adds to the message what is left, and what can be done with it. */
static void tell_what_is_left(run *r, tare_status status, const error_note *first)
{
    const run_resume *s = &r->resume;
    const char *out = r->env->options->out, *message = first->text;
    int error = first->number;
    if (status == TARE_E_VERIFY)
        context_fail_errno(r->ctx, status, error, "%s; it stays in %s/.tare/stage%s", message, out,
                           s->records ? ": --resume verifies it again (after an upgrade of tare; "
                                        "with --no-verify not at all), --overwrite starts anew"
                                      : " until the next run");
    else if (s->staged)
        context_fail_errno(r->ctx, status, error, "%s; --resume finishes %s", message, out);
    else
        context_fail_errno(r->ctx, status, error,
                           "%s; --resume goes on behind the last finished checkpoint", message);
}

/* The output is whole but for its verification: so that --resume can have it verified again. */
static void note_staged(run *r)
{
    run_resume *s = &r->resume;
    uint64_t digest;
    char record[64];
    char *stage = path_join(r->ctx, journal_folder(s->journal), "stage");
    tare_status status = stage ? TARE_OK : TARE_E_MEMORY;
    s->staged = true;
    if (status == TARE_OK && s->records)
        status = output_digest_stage(r->ctx, stage, &digest);
    if (status == TARE_OK && s->records) {
        snprintf(record, sizeof record, "{\"staged\": \"%016llx\"}", (unsigned long long)digest);
        status = journal_add(s->journal, record);
    }
    if (status != TARE_OK)
        TARE_WARN(r->ctx, "the journal does not know what is staged: %s", tare_last_error(r->ctx));
    mem_free(r->ctx, stage);
}

void resume_close(run *r, tare_status status)
{
    run_resume *s = &r->resume;
    error_note first = context_error(r->ctx); /* that is what stands, whatever follows */
    if (status == TARE_E_VERIFY && s->journal && r->out && !s->staged)
        note_staged(r);
    bool leaves = leaves_stage(s, status);
    statistics_close(r, leaves);
    if (leaves && r->out)
        output_keep(r->out);
    output_free(r->out);
    r->out = NULL;
    if (leaves) {
        tell_what_is_left(r, status, &first);
    } else if (s->journal && (status == TARE_OK || s->records || !journal_count(s->journal))) {
        if (journal_remove(s->journal) != TARE_OK)
            TARE_WARN(r->ctx, "a temporary folder stays behind: %s", tare_last_error(r->ctx));
        context_set_error(r->ctx, &first);
    }
    journal_close(s->journal);
    s->journal = NULL;
    if (status != TARE_OK && r->made_out)
        rmdir(r->env->options->out); /* if it is empty */
}
