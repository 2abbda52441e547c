"""The C forward pass in FP32 against transformers: the golden models and small random variants."""
import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

TOLERANCE = 1e-4
GEOMETRY = dict(vocab_size=300, hidden_size=48, intermediate_size=112, num_hidden_layers=2,
                num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
                initializer_range=0.3)
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
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
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(head_dim=16)),
    "qwen3-biases-tied": (Qwen3ForCausalLM, Qwen3Config,
                          dict(head_dim=16, attention_bias=True, tie_word_embeddings=True)),
}


def reference_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                attn_implementation="eager").eval()


def make(name, folder, dtype=torch.float32, **save):
    """A random model with biases and norms away from their trivial values."""
    cls, config, extra = VARIANTS[name]
    torch.manual_seed(sorted(VARIANTS).index(name))
    model = cls(config(**{**GEOMETRY, **extra}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(".bias") or "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, **save)


def random_ids(count, seed=0):
    return np.random.default_rng(seed).integers(0, GEOMETRY["vocab_size"], count).tolist()


def compare(folder, library, lengths=(1, 2, 33, 200)):
    reference = load(folder)
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


def test_rope_parameters_of_transformers_5(library, tmp_path):
    """The newer spelling of the same rope settings gives the same numbers."""
    make("llama-llama3-rope", tmp_path / "old")
    make("llama-llama3-rope", tmp_path / "new")
    path = tmp_path / "new" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_scaling"], config["rope_theta"]
    config["rope_parameters"] = {**LLAMA3_ROPE, "rope_theta": 500000.0}
    path.write_text(json.dumps(config))
    ids = random_ids(200)
    want = reference_logits(load(tmp_path / "old"), ids)
    with library.model(tmp_path / "new") as model:
        assert np.abs(model.logits(ids) - want).max() <= TOLERANCE
