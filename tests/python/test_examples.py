"""The examples run: the recipes' scripts on a tiny checkpoint write what the recipes do; the mixed
calibration example."""
import json
import os
import subprocess
import sys

import pytest
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
