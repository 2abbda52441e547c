/* A recipe's effective settings as JSON, for tare_run.json and the fingerprint. */
#include <math.h>
#include <string.h>

#include "file/json.h"
#include "quantize/recipe_settings.h"

static void write_list(buffer *out, const string_list *l)
{
    buffer_putc(out, '[');
    for (size_t i = 0; i < l->count; i++) {
        buffer_puts(out, i ? ", " : "");
        json_write_string(out, l->items[i], strlen(l->items[i]));
    }
    buffer_putc(out, ']');
}

static void write_mix(buffer *out, const mix_list *l)
{
    buffer_putc(out, '[');
    for (size_t i = 0; i < l->count; i++) {
        buffer_puts(out, i ? ", {" : "{");
        json_write_string(out, l->items[i].pattern, strlen(l->items[i].pattern));
        buffer_printf(out, ": \"%s\"}", scheme_of(l->items[i].scheme)->name);
    }
    buffer_putc(out, ']');
}

static void write_target(buffer *out, const serving_target *t)
{
    char text[TARGET_TEXT];
    if (t->engine == ENGINE_NONE)
        buffer_puts(out, "null");
    else
        buffer_printf(out, "\"%s\"", serving_target_text(t, text));
}

static void write_setting(const tare_recipe *r, const setting *s, buffer *out)
{
    const void *at = setting_at(r, s);
    const char *name = NULL;
    switch (s->type) {
    case SETTING_INT:
    case SETTING_AMP:
        if (*(const int64_t *)at < 0) /* nobody said */
            buffer_puts(out, "null");
        else
            buffer_printf(out, "%lld", (long long)*(const int64_t *)at);
        break;
    case SETTING_FLOAT:
        if (isnan(*(const double *)at))
            buffer_puts(out, "null");
        else
            json_write_double(out, *(const double *)at);
        break;
    case SETTING_BOOL:
    case SETTING_SECTION:
        buffer_puts(out, *(const bool *)at ? "true" : "false");
        break;
    case SETTING_SWITCH:
        if (*(const int64_t *)at < 0)
            buffer_puts(out, "null");
        else
            buffer_puts(out, *(const int64_t *)at ? "true" : "false");
        break;
    case SETTING_MEMORY:
        break;
    case SETTING_LEVEL:
        buffer_printf(out, "\"L%lld\"", (long long)*(const int64_t *)at);
        break;
    case SETTING_TARGET:
        write_target(out, at);
        break;
    case SETTING_LIST:
        write_list(out, at);
        break;
    case SETTING_MIX:
        write_mix(out, at);
        break;
    case SETTING_CHOICE:
        for (const choice *c = s->choices; c->name && !name; c++)
            name = c->number == *(const int64_t *)at ? c->name : NULL;
        buffer_printf(out, name ? "\"%s\"" : "null", name);
        break;
    }
}

static bool same_section(size_t a, size_t b)
{
    return a < NUM_SETTINGS && b < NUM_SETTINGS &&
           strcmp(recipe_settings[a].section, recipe_settings[b].section) == 0;
}

/* {"key": value, …}, or false for a section that is switched off. */
static void write_section(const tare_recipe *r, size_t first, buffer *out)
{
    size_t i = first;
    if (recipe_settings[i].type == SETTING_SECTION &&
        !*(const bool *)setting_at(r, &recipe_settings[i])) {
        buffer_puts(out, "false");
        return;
    }
    if (recipe_settings[i].type == SETTING_MIX) {
        write_setting(r, &recipe_settings[i], out);
        return;
    }
    i += recipe_settings[i].type == SETTING_SECTION;
    buffer_putc(out, '{');
    for (const char *comma = ""; same_section(first, i); i++, comma = ", ") {
        if (recipe_settings[i].type == SETTING_MEMORY)
            continue;
        buffer_printf(out, "%s\"%s\": ", comma, recipe_settings[i].key);
        write_setting(r, &recipe_settings[i], out);
    }
    buffer_putc(out, '}');
}

void recipe_write(const tare_recipe *r, buffer *out, int level)
{
    buffer_putc(out, '{');
    for (size_t i = 0; i < NUM_SETTINGS; i++) {
        if (i > 0 && same_section(i - 1, i))
            continue;
        buffer_printf(out, "%s\n%*s\"%s\": ", i ? "," : "", 2 * level + 2, "",
                      recipe_settings[i].section);
        write_section(r, i, out);
    }
    buffer_printf(out, "\n%*s}", 2 * level, "");
}
