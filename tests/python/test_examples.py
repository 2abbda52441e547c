"""The examples run: the recipes' scripts on a tiny checkpoint write what the recipes do; the mixed
calibration example."""
import json
import os
import subprocess
import sys

import pytest
import tensor_file
import tiny
from conftest import EXAMPLES, ROOT, output_files, run_tare

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "python")}


def run_example(name, *args):
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *map(str, args)],
                          capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script, recipe", [("llama31_70b.py", "llama3.1-70b"),
                                            ("qwen25_72b.py", "qwen2.5-72b")])
def test_recipes_as_scripts(tmp_path, script, recipe):
    model = tiny.write_checkpoint(tmp_path / "model")
    prompts = tiny.write_prompts(tmp_path / "prompts.jsonl")
    run_example(script, model, prompts, tmp_path / "py")
    done = run_tare("quantize", model, "--out", tmp_path / "cli", "--calib", prompts, "--recipe",
                    recipe)
    assert done.returncode == 0, done.stderr
    files = sorted(output_files(tmp_path / "cli").keys() - {"tare_run.json"})
    assert "quant_model_description.json" in files
    for name in files:
        assert (tmp_path / "py" / name).read_bytes() == (tmp_path / "cli" / name).read_bytes(), name


def test_mixed_calibration(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model", max_position_embeddings=512)
    (tmp_path / "boolq.jsonl").write_text("".join(json.dumps(
        {"title": "T", "passage": "p", "question": f"q{i}", "answer": bool(i % 2)}) + "\n"
        for i in range(20)))
    (tmp_path / "mix.json").write_text(json.dumps({"configurations": [
        {"dataset_name": "boolq", "dataset_path": str(tmp_path / "boolq.jsonl")}]}))
    out = run_example("mixed_calibration.py", model, tmp_path / "mix.json", tmp_path / "out")
    assert "'boolq': 4" in out
    assert (tmp_path / "out" / "quant_model_weight_w8a8.safetensors").is_file()


SMALL = dict(hidden_size=160, intermediate_size=136, moe_intermediate_size=72, num_attention_heads=2,
             num_key_value_heads=2)
LATENT = dict(q_lora_rank=48, kv_lora_rank=40, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
              first_k_dense_replace=1)


@pytest.mark.parametrize("shape,changes,experts", [
    ("qwen3-235b-a22b", SMALL | {"head_dim": 16}, 128), ("deepseek-v3", SMALL | LATENT, 256),
    ("kimi-k2", SMALL | LATENT, 384)], ids=lambda x: x if isinstance(x, str) else "")
def test_random_checkpoint_with_experts(shape, changes, experts, tmp_path):
    """It is one of its model type; its weights, decoded from FP8, deviate by 0.02."""
    model, out = tmp_path / "model", tmp_path / "out"
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    run_example("make_random_checkpoint.py", model, "--shape", shape, "--layers", 2, *sets)
    done = run_tare("quantize", model, "--out", out, "--scheme", "w8a8_dynamic", "--mix",
                    "*.self_attn.*=float")
    assert done.returncode == 0, done.stderr
    assert "warning: not copied" in done.stderr and done.stderr.count("warning") == 1
    tensors = tensor_file.read_folder(out)
    experts_of = {name.split(".experts.")[1].split(".")[0] for name in tensors if ".experts." in name}
    assert len(experts_of) == experts
    name = "model.layers.1.self_attn.o_proj.weight"
    assert tensors[name].tag == "BF16" and abs(tensors[name].data.std() / 0.02 - 1) < 0.2
    down = "model.layers.1.mlp.experts.7.down_proj.weight"
    w = tensors[down].data * tensors[down + "_scale"].data
    assert abs(w.std() / 0.02 - 1) < 0.4  # one block of FP8, whose scale deviates by itself
    done = run_tare("verify", out, "--base", model)
    assert done.returncode == 0, done.stdout
