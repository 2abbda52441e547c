/* The classes of transformers 4.57 that a model's tokenizer can have, and what each does with a
 * tokenizer.json (its __init__ in models/NAME/tokenization_NAME_fast.py). Others are not known. */
#include <string.h>

#include "tokenizer/tokenizer_config.h"

#define END "<|endoftext|>"

const tokenizer_class tokenizer_class_plain = {.name = "PreTrainedTokenizer"};

static const char *const code_llama[] = {"\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", "\u2581<EOT>",
                                         NULL};

static const tokenizer_class classes[] = {
    {.name = "LlamaTokenizer",
     .bos = "<s>",
     .eos = "</s>",
     .unk = "<unk>",
     .has_template = true,
     .add_bos = true,
     .keeps_prefix_space = true,
     .prefix_space_is_slow = true},
    {.name = "CodeLlamaTokenizer",
     .bos = "<s>",
     .eos = "</s>",
     .unk = "<unk>",
     .more = code_llama,
     .has_template = true,
     .add_bos = true},
    {.name = "GemmaTokenizer",
     .bos = "<bos>",
     .eos = "<eos>",
     .unk = "<unk>",
     .pad = "<pad>",
     .has_template = true,
     .add_bos = true,
     .pad_is_set = true},
    {.name = "CohereTokenizer",
     .bos = "<BOS_TOKEN>",
     .eos = "<|END_OF_TURN_TOKEN|>",
     .unk = "<UNK>",
     .has_template = true,
     .add_bos = true,
     .deep_prefix_space = true},
    {.name = "GPTNeoXTokenizer",
     .bos = END,
     .eos = END,
     .unk = END,
     .has_template = true,
     .pad_is_set = true},
    {.name = "Qwen2Tokenizer",
     .eos = END,
     .unk = END,
     .pad = END,
     .pad_is_set = true,
     .token_objects = true},
    {.name = "GPT2Tokenizer", .bos = END, .eos = END, .unk = END},
    {.name = "CodeGenTokenizer", .bos = END, .eos = END, .unk = END},
    {.name = "BloomTokenizer",
     .bos = "<s>",
     .eos = "</s>",
     .unk = "<unk>",
     .pad = "<pad>",
     .pad_is_set = true,
     .deep_prefix_space = true},
};

/* TOKENIZER_MAPPING_NAMES of models/auto/tokenization_auto.py. */
static const struct {
    const char *class, *models; /* names between spaces */
} model_types[] = {
    {"LlamaTokenizer",
     " arcee aria chameleon colpali deepseek_v2 deepseek_v3 deepseek_vl deepseek_vl_hybrid"
     " diffllama ernie4_5 ernie4_5_moe idefics idefics2 idefics3 jamba janus jetmoe llama llama4"
     " llama4_text llava llava_next llava_next_video llava_onevision ministral mistral mistral3"
     " mixtral mllama paligemma persimmon phi3 phimoe video_llava vipllava zamba zamba2 "},
    {"CodeLlamaTokenizer", " code_llama "},
    {"GemmaTokenizer", " gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma"
                       " shieldgemma2 siglip2 t5gemma "},
    {"CohereTokenizer", " aya_vision cohere cohere2 "},
    {"GPTNeoXTokenizer", " falcon_mamba gpt_neox mamba mamba2 mpt olmo olmo2 olmoe rwkv stablelm"
                         " xlstm "},
    {"Qwen2Tokenizer", " colqwen2 internvl qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe"
                       " qwen2_vl qwen3 qwen3_moe qwen3_next qwen3_omni_moe qwen3_vl"
                       " qwen3_vl_moe "},
    {"GPT2Tokenizer", " blip-2 dbrx emu3 exaone4 flex_olmo gpt2 gpt_bigcode gpt_neo gptj"
                      " instructblip instructblipvideo minimax olmo3 opt starcoder2 "},
    {"CodeGenTokenizer", " codegen phi "},
    {"BloomTokenizer", " bloom "},
};

const tokenizer_class *tokenizer_class_named(const char *name)
{
    size_t length = strlen(name);
    if (length > 4 && strcmp(name + length - 4, "Fast") == 0)
        length -= 4;
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        if (strlen(classes[i].name) == length && memcmp(classes[i].name, name, length) == 0)
            return &classes[i];
    }
    /* TokenizersBackend: transformers 5, for a tokenizer.json that says all itself. */
    bool plain = length == strlen(tokenizer_class_plain.name) &&
                 memcmp(name, tokenizer_class_plain.name, length) == 0;
    return plain || strcmp(name, "TokenizersBackend") == 0 ? &tokenizer_class_plain : NULL;
}

const tokenizer_class *tokenizer_class_of_model(const char *model_type)
{
    char key[64];
    size_t length = strlen(model_type);
    if (length == 0 || length + 3 > sizeof key || strchr(model_type, ' '))
        return &tokenizer_class_plain;
    key[0] = key[length + 1] = ' ';
    memcpy(key + 1, model_type, length);
    key[length + 2] = 0;
    for (size_t i = 0; i < sizeof model_types / sizeof *model_types; i++) {
        if (strstr(model_types[i].models, key))
            return tokenizer_class_named(model_types[i].class);
    }
    return &tokenizer_class_plain;
}
