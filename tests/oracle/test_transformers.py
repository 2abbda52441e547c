"""The C forward pass in FP32 against transformers: the golden models and small random variants."""
import functools
import json

import numpy as np
import pytest
import safetensors.torch
import tensor_file
import torch
from conftest import GOLDEN, run_tare
from transformers import (AutoModelForCausalLM, DeepseekV2Config, DeepseekV2ForCausalLM,
                          DeepseekV3Config, DeepseekV3ForCausalLM, Gemma2Config, Gemma2ForCausalLM,
                          Gemma3ForCausalLM, Gemma3TextConfig, Glm4Config, Glm4ForCausalLM, GlmConfig,
                          GlmForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, MixtralConfig, MixtralForCausalLM, Phi3Config,
                          Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

TOLERANCE = 1e-4
GEOMETRY = dict(vocab_size=300, hidden_size=48, intermediate_size=112, num_hidden_layers=2,
                num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
                initializer_range=0.3)
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def yarn(**changes):
    """Ramp ends inside the frequencies of a head of 16: some kept, some stretched, some between.

    transformers computes them in FP32, tare in double before it rounds: the last bit may differ. So
    weights are somewhat smaller than elsewhere, and attention less sharp.
    """
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
            "beta_fast": 4.0, **changes}
    return dict(head_dim=16, initializer_range=0.2, rope_scaling=rope)


PHI3 = dict(pad_token_id=0)


def longrope(half):
    """Factors of Phi's kind: near 1 up to the original length, growing beyond it. Weights as for yarn,
    since transformers rounds each step of a frequency to FP32."""
    return dict(PHI3, original_max_position_embeddings=64, initializer_range=0.15, rope_scaling={
        "type": "longrope", "short_factor": [1 + 0.05 * i for i in range(half)],
        "long_factor": [1.1 + 1.7 * i for i in range(half)]})


GEMMA2 = dict(pad_token_id=0, head_dim=16, sliding_window=24)
GLM = dict(pad_token_id=0, head_dim=16)
QWEN3_MOE = dict(head_dim=16, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=40)
MIXTRAL = dict(num_local_experts=6, num_experts_per_tok=2, sliding_window=None)
DEEPSEEK = dict(num_hidden_layers=3, num_key_value_heads=6, q_lora_rank=24, kv_lora_rank=20,
                qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, n_routed_experts=8,
                num_experts_per_tok=3, n_shared_experts=1, moe_intermediate_size=36,
                first_k_dense_replace=1, initializer_range=0.2)
DEEPSEEK_V2 = dict(DEEPSEEK, topk_method="greedy", n_group=1, topk_group=1)
DEEPSEEK_V3 = dict(DEEPSEEK, n_group=4, topk_group=2)
DEEPSEEK_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                 "beta_fast": 4.0}
VARIANTS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-llama3-rope": (LlamaForCausalLM, LlamaConfig,
                          dict(rope_scaling=LLAMA3_ROPE, rope_theta=500000.0)),
    "llama-biases": (LlamaForCausalLM, LlamaConfig, dict(attention_bias=True, mlp_bias=True)),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, dict(tie_word_embeddings=True)),
    "llama-head-dim": (LlamaForCausalLM, LlamaConfig, dict(head_dim=20, rms_norm_eps=1e-3)),
    "llama-one-kv-head": (LlamaForCausalLM, LlamaConfig, dict(num_key_value_heads=1)),
    "llama-no-gqa": (LlamaForCausalLM, LlamaConfig, dict(num_key_value_heads=6)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, dict(rope_theta=1000000.0)),
    "qwen2-no-gqa": (Qwen2ForCausalLM, Qwen2Config, dict(num_key_value_heads=6)),
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen2-window": (Qwen2ForCausalLM, Qwen2Config,
                     dict(use_sliding_window=True, sliding_window=24, max_window_layers=1)),
    "qwen2-layer-types": (Qwen2ForCausalLM, Qwen2Config,
                          dict(use_sliding_window=True, sliding_window=24, max_window_layers=1,
                               layer_types=["sliding_attention", "full_attention"])),
    "qwen2-window-unused": (Qwen2ForCausalLM, Qwen2Config, dict(sliding_window=24)),
    "qwen3-window": (Qwen3ForCausalLM, Qwen3Config,
                     dict(head_dim=16, use_sliding_window=True, sliding_window=24,
                          max_window_layers=1)),
    "mistral": (MistralForCausalLM, MistralConfig, dict(sliding_window=None)),
    "mistral-window": (MistralForCausalLM, MistralConfig, dict(sliding_window=24)),
    "mistral-window-of-one": (MistralForCausalLM, MistralConfig, dict(sliding_window=1)),
    "mistral-head-dim": (MistralForCausalLM, MistralConfig, dict(head_dim=20, sliding_window=50)),
    "mistral-yarn": (MistralForCausalLM, MistralConfig, dict(sliding_window=100, **yarn())),
    "linear": (LlamaForCausalLM, LlamaConfig,
               dict(rope_scaling={"rope_type": "linear", "factor": 3.5})),
    "linear-old-key": (LlamaForCausalLM, LlamaConfig,
                       dict(rope_scaling={"type": "linear", "factor": 2.0})),
    "dynamic": (LlamaForCausalLM, LlamaConfig,
                dict(max_position_embeddings=64,
                     rope_scaling={"rope_type": "dynamic", "factor": 4.0})),
    "dynamic-qwen2": (Qwen2ForCausalLM, Qwen2Config,
                      dict(max_position_embeddings=50, rope_theta=500000.0,
                           rope_scaling={"type": "dynamic", "factor": 2.5})),
    "yarn": (LlamaForCausalLM, LlamaConfig, yarn()),
    "yarn-defaults": (Qwen2ForCausalLM, Qwen2Config,
                      dict(rope_scaling={"rope_type": "yarn", "factor": 4.0})),
    "yarn-attention-factor": (LlamaForCausalLM, LlamaConfig, yarn(attention_factor=0.8)),
    "yarn-mscale": (LlamaForCausalLM, LlamaConfig, yarn(mscale=1.5, mscale_all_dim=0.7)),
    "yarn-one-mscale": (LlamaForCausalLM, LlamaConfig, yarn(mscale=1.5)),
    "yarn-fractions": (LlamaForCausalLM, LlamaConfig, yarn(truncate=False, beta_slow=0.5)),
    "yarn-factor-of-1": (LlamaForCausalLM, LlamaConfig, yarn(factor=1.0)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(head_dim=16)),
    "qwen3-biases-tied": (Qwen3ForCausalLM, Qwen3Config,
                          dict(head_dim=16, attention_bias=True, tie_word_embeddings=True)),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, dict(mlp_only_layers=[0, 1])),
    "qwen3-moe-no-experts": (Qwen3MoeForCausalLM, Qwen3MoeConfig,
                             dict(num_experts=0, head_dim=20, attention_bias=True,
                                  tie_word_embeddings=True)),
    "qwen3-moe-window": (Qwen3MoeForCausalLM, Qwen3MoeConfig,
                         dict(decoder_sparse_step=3, use_sliding_window=True, sliding_window=24)),
    "qwen3-moe-window-unused": (Qwen3MoeForCausalLM, Qwen3MoeConfig,
                                dict(decoder_sparse_step=3, sliding_window=24)),
    "qwen3-moe-experts": (Qwen3MoeForCausalLM, Qwen3MoeConfig, dict(QWEN3_MOE, norm_topk_prob=True)),
    "qwen3-moe-not-normalized": (Qwen3MoeForCausalLM, Qwen3MoeConfig,
                                 dict(QWEN3_MOE, norm_topk_prob=False, attention_bias=True)),
    "qwen3-moe-step-2": (Qwen3MoeForCausalLM, Qwen3MoeConfig,
                         dict(QWEN3_MOE, num_hidden_layers=4, decoder_sparse_step=2,
                              initializer_range=0.2, tie_word_embeddings=True)),
    "qwen3-moe-dense-layers": (Qwen3MoeForCausalLM, Qwen3MoeConfig,
                               dict(QWEN3_MOE, num_hidden_layers=4, decoder_sparse_step=2,
                                    initializer_range=0.2, mlp_only_layers=[0, 3])),
    "qwen3-moe-one-expert": (Qwen3MoeForCausalLM, Qwen3MoeConfig,
                             dict(QWEN3_MOE, num_experts_per_tok=1)),
    "qwen3-moe-all-experts": (Qwen3MoeForCausalLM, Qwen3MoeConfig,
                              dict(QWEN3_MOE, num_experts_per_tok=8, use_sliding_window=True,
                                   sliding_window=24)),
    "mixtral": (MixtralForCausalLM, MixtralConfig, MIXTRAL),
    "mixtral-window": (MixtralForCausalLM, MixtralConfig, dict(MIXTRAL, sliding_window=24)),
    "mixtral-head-dim": (MixtralForCausalLM, MixtralConfig,
                         dict(MIXTRAL, head_dim=20, num_experts_per_tok=1, rope_theta=500.0,
                              initializer_range=0.2)),
    "deepseek-v2": (DeepseekV2ForCausalLM, DeepseekV2Config, DEEPSEEK_V2),
    "deepseek-v2-groups": (DeepseekV2ForCausalLM, DeepseekV2Config,
                           dict(DEEPSEEK_V2, topk_method="group_limited_greedy", n_group=4,
                                topk_group=2, routed_scaling_factor=16.0)),
    "deepseek-v2-one-query": (DeepseekV2ForCausalLM, DeepseekV2Config,
                              dict(DEEPSEEK_V2, q_lora_rank=None, n_shared_experts=2)),
    "deepseek-v2-biases": (DeepseekV2ForCausalLM, DeepseekV2Config,
                           dict(DEEPSEEK_V2, attention_bias=True, first_k_dense_replace=0,
                                rms_norm_eps=1e-3)),
    "deepseek-v2-yarn": (DeepseekV2ForCausalLM, DeepseekV2Config,
                         dict(DEEPSEEK_V2, rope_scaling=DEEPSEEK_YARN)),
    "deepseek-v3": (DeepseekV3ForCausalLM, DeepseekV3Config, DEEPSEEK_V3),
    "deepseek-v3-one-group": (DeepseekV3ForCausalLM, DeepseekV3Config,
                              dict(DEEPSEEK_V3, n_group=1, topk_group=1, routed_scaling_factor=1.0)),
    "deepseek-v3-all-groups": (DeepseekV3ForCausalLM, DeepseekV3Config,
                               dict(DEEPSEEK_V3, n_group=2, topk_group=2, num_experts_per_tok=8)),
    "deepseek-v3-one-query": (DeepseekV3ForCausalLM, DeepseekV3Config,
                              dict(DEEPSEEK_V3, q_lora_rank=None, rms_norm_eps=1e-3)),
    "deepseek-v3-no-dense-layer": (DeepseekV3ForCausalLM, DeepseekV3Config,
                                   dict(DEEPSEEK_V3, first_k_dense_replace=0, n_shared_experts=2)),
    "deepseek-v3-dense": (DeepseekV3ForCausalLM, DeepseekV3Config,
                          dict(DEEPSEEK_V3, first_k_dense_replace=3, attention_bias=True)),
    "deepseek-v3-not-normalized": (DeepseekV3ForCausalLM, DeepseekV3Config,
                                   dict(DEEPSEEK_V3, norm_topk_prob=False,
                                        tie_word_embeddings=True)),
    "deepseek-v3-yarn": (DeepseekV3ForCausalLM, DeepseekV3Config,
                         dict(DEEPSEEK_V3, rope_scaling=dict(DEEPSEEK_YARN, mscale=1.0,
                                                             mscale_all_dim=1.0))),
    "deepseek-v3-yarn-mscale": (DeepseekV3ForCausalLM, DeepseekV3Config,
                                dict(DEEPSEEK_V3, rope_scaling=dict(DEEPSEEK_YARN, mscale=1.5,
                                                                    mscale_all_dim=0.7))),
    "phi3": (Phi3ForCausalLM, Phi3Config, PHI3),
    "phi3-no-gqa": (Phi3ForCausalLM, Phi3Config, dict(PHI3, num_key_value_heads=None)),
    "phi3-partial": (Phi3ForCausalLM, Phi3Config,
                     dict(PHI3, num_attention_heads=3, num_key_value_heads=1,
                          partial_rotary_factor=0.75, tie_word_embeddings=True)),
    "phi3-longrope": (Phi3ForCausalLM, Phi3Config, longrope(4)),
    "phi3-longrope-partial": (Phi3ForCausalLM, Phi3Config,
                              dict(longrope(6), num_attention_heads=3, num_key_value_heads=1,
                                   partial_rotary_factor=0.75)),
    "llama-longrope": (LlamaForCausalLM, LlamaConfig, dict(initializer_range=0.2, rope_scaling={
        "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.5, 2.0, 3.0],
        "long_factor": [2.0] * 4})),
    "phi3-window": (Phi3ForCausalLM, Phi3Config, dict(PHI3, sliding_window=24)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, GEMMA2),
    "gemma2-full": (Gemma2ForCausalLM, Gemma2Config,
                    dict(GEMMA2, attn_logit_softcapping=None, final_logit_softcapping=None,
                         layer_types=["full_attention"] * 2, tie_word_embeddings=False)),
    "gemma2-layer-types": (Gemma2ForCausalLM, Gemma2Config,
                           dict(GEMMA2, layer_types=["full_attention", "sliding_attention"],
                                query_pre_attn_scalar=20, attention_bias=True)),
    "gemma2-low-caps": (Gemma2ForCausalLM, Gemma2Config,
                        dict(GEMMA2, attn_logit_softcapping=2.0, final_logit_softcapping=1.5,
                             num_key_value_heads=6)),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, dict(GEMMA2, sliding_window_pattern=2)),
    "gemma3-linear": (Gemma3ForCausalLM, Gemma3TextConfig,
                      dict(GEMMA2, layer_types=["full_attention", "sliding_attention"],
                           rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_theta=3000.0,
                           rope_local_base_freq=50.0, tie_word_embeddings=False)),
    "gemma3-cap": (Gemma3ForCausalLM, Gemma3TextConfig,
                   dict(GEMMA2, num_hidden_layers=7, final_logit_softcapping=2.0,
                        initializer_range=0.2, query_pre_attn_scalar=64)),
    "glm": (GlmForCausalLM, GlmConfig, GLM),
    "glm-whole-head": (GlmForCausalLM, GlmConfig, dict(GLM, partial_rotary_factor=1.0)),
    "glm4": (Glm4ForCausalLM, Glm4Config, GLM),
    "glm4-no-bias": (Glm4ForCausalLM, Glm4Config, dict(GLM, attention_bias=False)),
    "glm4-quarter": (Glm4ForCausalLM, Glm4Config,
                     dict(GLM, partial_rotary_factor=0.25, num_key_value_heads=3,
                          tie_word_embeddings=True, rope_theta=500.0)),
}


def reference_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def choose_experts(gate, scores):
    """DeepSeek's own choice: what is in no kept group is never chosen. transformers 4.57 lets it be as
    good as a kept expert of score 0, better than one that the correction bias makes negative."""
    groups = (scores + gate.e_score_correction_bias).unflatten(-1, (gate.n_group, -1))
    kept = groups.topk(2, dim=-1).values.sum(-1).topk(gate.topk_group, dim=-1, sorted=False).indices
    mask = torch.ones(groups.shape[:-1], dtype=torch.bool).scatter(-1, kept, False)
    choice = groups.masked_fill(mask.unsqueeze(-1), float("-inf")).flatten(-2)
    return choice.topk(gate.top_k, dim=-1, sorted=False).indices


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    for module in model.modules():
        if isinstance(module, DeepseekV3TopkRouter):
            module.get_topk_indices = functools.partial(choose_experts, module)
    return model


def make(name, folder, dtype=torch.float32, **save):
    """A random model with biases and norms away from their trivial values."""
    cls, config, extra = VARIANTS[name]
    torch.manual_seed(sorted(VARIANTS).index(name))
    model = cls(config(**{**GEOMETRY, **extra}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".bias") or "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith("correction_bias"):  # of both signs; scores lie in 0..1
                buffer.copy_(0.3 * torch.randn_like(buffer))
                assert buffer.min() < 0 < buffer.max()
    model.to(dtype).save_pretrained(folder, **save)


def random_ids(count, seed=0):
    return np.random.default_rng(seed).integers(0, GEOMETRY["vocab_size"], count).tolist()


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config))


def compare(folder, library, lengths=(1, 2, 33, 65, 200), reference=None):
    """Lengths ascend: transformers remembers the longest sequence that dynamic rope has seen."""
    reference = reference or load(folder)
    with library.model(folder) as model:
        for length in lengths:
            ids = random_ids(length)
            difference = np.abs(model.logits(ids) - reference_logits(reference, ids)).max()
            assert difference <= TOLERANCE, (length, difference)


@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3"])
def test_golden_models(model, library):
    folder = GOLDEN / model / "model"
    reference = load(folder)
    with library.model(folder) as m:
        for ids in json.loads((GOLDEN / "calib_ids.json").read_text()):
            assert np.abs(m.logits(ids) - reference_logits(reference, ids)).max() <= TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, library, tmp_path):
    make(name, tmp_path)
    compare(tmp_path, library)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_stored_dtypes(dtype, library, tmp_path):
    make("qwen2", tmp_path, dtype)
    compare(tmp_path, library)


def test_sharded_checkpoint(library, tmp_path):
    make("llama", tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    compare(tmp_path, library)


@pytest.mark.parametrize("name", ["llama", "llama-llama3-rope", "linear", "dynamic", "yarn-mscale"])
def test_rope_parameters_of_transformers_5(name, library, tmp_path):
    """The newer spelling of the same rope settings gives the same numbers."""
    make(name, tmp_path)
    reference = load(tmp_path)
    config = read_config(tmp_path)
    rope = {**(config.pop("rope_scaling") or {"rope_type": "default"}),
            "rope_theta": config.pop("rope_theta")}
    write_config(tmp_path, {**config, "rope_parameters": rope})
    compare(tmp_path, library, reference=reference)


def test_rope_of_the_wrong_length_shows(library, tmp_path):
    """The comparisons see rope scaling: without it the numbers are others."""
    for name in ("linear", "dynamic", "yarn", "yarn-mscale", "mistral-window", "phi3-longrope"):
        make(name, tmp_path / name)
        reference = load(tmp_path / name)
        config = read_config(tmp_path / name)
        write_config(tmp_path / name, {**config, "rope_scaling": None, "sliding_window": None})
        with library.model(tmp_path / name) as model:
            ids = random_ids(200)
            assert np.abs(model.logits(ids) - reference_logits(reference, ids)).max() > 0.01


@pytest.mark.parametrize("name,changes", [
    ("llama", {"head_dim": None}), ("mistral-window", {"head_dim": None}),
    ("llama-no-gqa", {"num_key_value_heads": None}), ("qwen2-no-gqa", {"num_key_value_heads": None}),
    ("llama", {"dtype": None, "torch_dtype": "bfloat16"}),
    ("llama", {"torch_dtype": None, "dtype": "float16"}),
    ("llama", {"pretraining_tp": 2, "use_cache": False, "attention_dropout": 0.5,
               "initializer_range": 7, "rope_interleaved": False}),
], ids=str)
def test_config_spellings(name, changes, library, tmp_path):
    """Other ways to say the same in config.json; transformers reads them too."""
    make(name, tmp_path)
    write_config(tmp_path, {**read_config(tmp_path), **changes})
    compare(tmp_path, library)


# ---- forms of a checkpoint that from_pretrained takes

def read_tensors(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def write_tensors(folder, tensors):
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def name_as_bare_decoder(folder):
    """AutoModel.save_pretrained."""
    LlamaForCausalLM.from_pretrained(folder).model.save_pretrained(folder)
    assert "norm.weight" in read_tensors(folder)


def add_another_head(folder):
    tensors = read_tensors(folder)
    head = torch.randn_like(tensors["model.embed_tokens.weight"])
    write_tensors(folder, {**tensors, "lm_head.weight": head})


def exclude_a_layer(folder):
    write_config(folder, {**read_config(folder), "num_hidden_layers": 1})


def add_denied_tensors(folder):
    """attention_bias and mlp_bias are false."""
    more = {"model.layers.0.self_attn.q_proj.bias": 48, "model.layers.1.mlp.down_proj.bias": 48,
            "model.layers.1.self_attn.k_norm.weight": 8, "lm_head.bias": 300,
            "model.layers.0.self_attn.rotary_emb.inv_freq": 4}
    write_tensors(folder, {**read_tensors(folder),
                           **{name: torch.randn(size) for name, size in more.items()}})


def write_metadata_null(folder):
    head, data = tensor_file.header(folder / "model.safetensors")
    tensor_file.write_raw(folder / "model.safetensors",
                          json.dumps({**head, "__metadata__": None}).encode(), data)


def shard(folder, first, second, weight_map):
    """Two files in this order of names, and an index that says `weight_map`."""
    (folder / "model.safetensors").unlink()
    for name, tensors in (("a.safetensors", first), ("b.safetensors", second)):
        safetensors.torch.save_file(tensors, folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}))


def give_a_wrong_index(folder):
    """Two tensors change places, and one is in no file."""
    tensors = read_tensors(folder)
    names = sorted(tensors)
    first, second = ({n: tensors[n] for n in names[i::2]} for i in range(2))
    weight_map = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    weight_map |= {names[0]: "b.safetensors", names[1]: "a.safetensors",
                   "model.layers.0.self_attn.rotary_emb.inv_freq": "a.safetensors"}
    shard(folder, first, second, weight_map)


def store_twice(folder, says):
    tensors = read_tensors(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    other = {name: torch.randn_like(tensors[name])}
    shard(folder, tensors, other, {**dict.fromkeys(tensors, "a.safetensors"), name: says,
                                   "absent": "b.safetensors"})


FORMS = {
    "bare-names": ("llama-tied", name_as_bare_decoder),
    "tied-with-another-head": ("llama-tied", add_another_head),
    "fewer-layers": ("llama", exclude_a_layer),
    "denied-tensors": ("llama", add_denied_tensors),
    "metadata-null": ("llama", write_metadata_null),
    "wrong-index": ("qwen2", give_a_wrong_index),
    "stored-twice": ("llama", lambda folder: store_twice(folder, "a.safetensors")),
    "stored-twice-as-indexed": ("llama", lambda folder: store_twice(folder, "b.safetensors")),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_checkpoint(form, library, tmp_path):
    name, change = FORMS[form]
    make(name, tmp_path)
    change(tmp_path)
    compare(tmp_path, library, lengths=(1, 33))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("norms", [False, True], ids=["alike", "mixed"])
@pytest.mark.parametrize("shards", [1, 2])
def test_dtype_of_the_weights(dtype, norms, shards, tmp_path):
    """The dtype that the output names is what dtype="auto" makes of a config.json without one."""
    folder, out = tmp_path / "model", tmp_path / "out"
    make("llama", folder, dtype)
    config = {k: v for k, v in read_config(folder).items() if k not in ("dtype", "torch_dtype")}
    write_config(folder, config)
    tensors = read_tensors(folder)
    if norms:
        tensors = {n: t.to(torch.float16) if "norm" in n else t for n, t in tensors.items()}
        write_tensors(folder, tensors)
    if shards == 2:  # norms are in the first file alone
        halves = [{n: t for n, t in tensors.items() if ("norm" in n) == first}
                  for first in (True, False)]
        shard(folder, *halves, {n: "ba"[n in halves[0]] + ".safetensors" for n in tensors})
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype
    (tmp_path / "ids.json").write_text(json.dumps([random_ids(9)]))
    done = run_tare("quantize", folder, "--out", out, "--calib", tmp_path / "ids.json",
                    "--no-verify")
    assert done.returncode == 0, done.stderr
    assert f"torch.{read_config(out)['torch_dtype']}" == str(expected)
