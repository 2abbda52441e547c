/* Choosing among the facts on engines. */
#include "output/targets.h"

#include <string.h>

static const char *const TYPES[] = {"FLOAT", "W8A8",         "W8A8_DYNAMIC", "W8A8_MIX",
                                    "W8A16", "W4A8_DYNAMIC", "W4A16",        "W8A8S",
                                    "NF4",   "other",        "C8",           "FAQuant"};
enum { NUM_TYPES = sizeof TYPES / sizeof *TYPES };

target_type target_type_of(const char *type)
{
    for (int i = 0; i < NUM_TYPES; i++)
        if (strcmp(TYPES[i], type) == 0)
            return (target_type)(1 << i);
    return TYPE_OTHER;
}

const char *target_type_text(unsigned type)
{
    int i = 0;
    while (i + 1 < NUM_TYPES && !(type >> i & 1))
        i++;
    return TYPES[i];
}

const char *target_verdict_text(tare_verdict verdict)
{
    static const char *const texts[] = {[TARE_VERDICT_LOADS] = "loads",
                                        [TARE_VERDICT_UNKNOWN] = "is not known",
                                        [TARE_VERDICT_UNQUANTIZED] = "runs unquantized",
                                        [TARE_VERDICT_REFUSED] = "is refused"};
    return texts[verdict];
}

/* Is `word` one of the words of `list`? */
static bool names(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; *at;) {
        size_t n = strcspn(at, " ");
        if (n == length && memcmp(at, word, n) == 0)
            return true;
        at += n + strspn(at + n, " ");
    }
    return false;
}

bool target_fact_holds(const target_fact *fact, const serving_target *t, const target_layer *l)
{
    return fact->engine == t->engine && fact->from <= t->version &&
           (fact->to == 0 || t->version <= fact->to) &&
           (fact->layouts == 0 || fact->layouts >> l->layout & 1) &&
           (fact->subjects & l->subject) && (fact->types == 0 || fact->types & l->type) &&
           (l->traits & fact->traits) == fact->traits && !(l->traits & fact->without) &&
           (!fact->families || names(fact->families, l->family)) &&
           (!fact->others || !names(fact->others, l->family));
}

const target_fact *target_judge(const serving_target *t, const target_layer *layer)
{
    static const target_fact nothing = {.verdict = TARE_VERDICT_UNKNOWN,
                                        .rule = 30,
                                        .why = "no source was found that says so",
                                        .source = ""};
    const target_fact *worst = NULL;
    for (size_t i = 0; i < num_target_facts; i++) {
        const target_fact *fact = &target_facts[i];
        if ((!worst || fact->verdict > worst->verdict) && target_fact_holds(fact, t, layer))
            worst = fact;
    }
    return worst ? worst : &nothing;
}

unsigned target_layouts(const serving_target *t)
{
    unsigned read = 0;
    for (int i = 0; i < SAVE_TYPES; i++) {
        const target_layer plain = {
            .layout = (layout)i, .subject = SUBJECT_LINEAR, .type = TYPE_FLOAT, .family = ""};
        if (target_judge(t, &plain)->verdict == TARE_VERDICT_LOADS)
            read |= 1u << i;
    }
    return read;
}

layout target_layout(const serving_target *t, unsigned found)
{
    unsigned read = target_layouts(t) & found;
    int i = 0;
    while (i + 1 < SAVE_TYPES && !((read ? read : found) >> i & 1))
        i++;
    return (layout)i;
}
