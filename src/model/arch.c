/* The list of families. */
#include "model/arch.h"

#include <string.h>

static const architecture *const architectures[] = {
    &arch_llama,   &arch_qwen2,       &arch_qwen3,       &arch_mistral, &arch_qwen3_moe,
    &arch_phi3,    &arch_glm,         &arch_glm4,        &arch_gemma2,  &arch_gemma3_text,
    &arch_mixtral, &arch_deepseek_v2, &arch_deepseek_v3, &arch_kimi_k2};

enum { ARCHITECTURES = sizeof architectures / sizeof *architectures };

const architecture *architecture_find(const char *model_type)
{
    for (size_t i = 0; i < ARCHITECTURES; i++) {
        if (strcmp(architectures[i]->model_type, model_type) == 0)
            return architectures[i];
    }
    return NULL;
}

const char *architecture_name(size_t index)
{
    return index < ARCHITECTURES ? architectures[index]->model_type : NULL;
}
