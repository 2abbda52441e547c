"""Greedy text of small random mixtures of experts against transformers in FP32, with all weights in
memory and with those of one layer at a time; and a choice of prompts by such a model."""
import ctypes
import json
import re

import pytest
import test_transformers
import tiny
import torch
from conftest import GOLDEN, TARE_LIBRARY, run_tare
from libtare import Library, TareError

NAMES = ["qwen3-moe-experts", "qwen3-moe-dense-layers", "mixtral-window", "deepseek-v2-groups",
         "deepseek-v2-one-query", "deepseek-v3", "deepseek-v3-yarn", "deepseek-v3-one-query"]
NO_EOS = {"eos_ids": (ctypes.c_uint32 * 1)(), "num_eos": 0}
PROMPTS = [test_transformers.random_ids(length, seed=length) for length in (1, 5, 40)]
NEW = 30
TIE = 1e-3  # logits of several units that differ by 1e-4 at most


def greedy(folder, **options):
    with Library(TARE_LIBRARY, **options).model(folder) as model:
        return model.generate(PROMPTS, max_new_tokens=NEW, **NO_EOS)


def assert_greedy(reference, texts, prompts=PROMPTS):
    """By induction: behind each prefix of the text transformers' likeliest token is the next one."""
    for prompt, text in zip(prompts, texts):
        assert len(text) == NEW
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + text])).logits[0, len(prompt) - 1:-1]
        chosen = logits[torch.arange(NEW), torch.tensor(text)]
        assert (logits.max(dim=-1).values - chosen).max() < TIE
        assert len(set(text)) > 3  # it says something


@pytest.mark.parametrize("name", NAMES)
def test_greedy(name, tmp_path):
    test_transformers.make(name, tmp_path)
    assert_greedy(test_transformers.load(tmp_path), greedy(tmp_path))


def test_greedy_from_fp8():
    """transformers has the BF16 checkpoint that the codes stand for."""
    prompts = json.loads((GOLDEN / "deepseek_v3_fp8" / "calib_ids.json").read_text())[:3]
    with Library(TARE_LIBRARY).model(GOLDEN / "deepseek_v3_fp8" / "model") as model:
        texts = model.generate(prompts, max_new_tokens=NEW, **NO_EOS)
    assert_greedy(test_transformers.load(GOLDEN / "deepseek_v3_fp8" / "model_bf16"), texts, prompts)


@pytest.mark.parametrize("name", ["qwen3-moe-experts", "deepseek-v3"])
def test_weights_that_do_not_fit(name, tmp_path, monkeypatch):
    """64 wide experts a layer: in the smallest budget they come from the disk, and change nothing."""
    cls, config, extra = test_transformers.VARIANTS[name]
    key = "num_experts" if "num_experts" in extra else "n_routed_experts"
    wide = {**extra, key: 64, "moe_intermediate_size": 512, "initializer_range": 0.1}
    monkeypatch.setitem(test_transformers.VARIANTS, name, (cls, config, wide))
    test_transformers.make(name, tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    whole = greedy(tmp_path)
    with pytest.raises(TareError) as refused:
        greedy(tmp_path, memory_limit=1 << 20)
    smallest = int(re.search(r"smallest that works here is (\d+) MiB",
                             str(refused.value)).group(1)) << 20
    assert smallest < size
    assert greedy(tmp_path, memory_limit=smallest) == whole
    assert_greedy(test_transformers.load(tmp_path), whole)


STATEMENTS = [("Dog", "A dog barks.", "is a dog an animal"), ("Stone", "It lies.", "is a stone alive"),
              ("Snow", "Snow is cold.", "is snow hot"), ("Sun", "It shines.", "is the sun a star"),
              ("Fish", "Fish swim.", "do fish live in trees"), ("Iron", "It rusts.", "is iron a metal")]


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v2-groups", "deepseek-v3",
                                  "qwen3-moe-experts"])
def test_choice_of_prompts(name, library, tmp_path):
    """`tare calib --positive`: every second record has the answer that transformers gives."""
    folder = tmp_path / "model"
    test_transformers.make(name, folder)
    (folder / "tokenizer.json").write_text(json.dumps(tiny.make_tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps(tiny.TOKENIZER_CONFIG))
    tokenizer, reference = library.tokenizer(folder), test_transformers.load(folder)
    yes, no = (tokenizer.encode(f"How can we learning machine learning: {word}")[-1]
               for word in ("yes", "no"))
    prompts = [f"{t} -- {p}\nQuestion: {q}?\nAnswer:" for t, p, q in STATEMENTS]
    answers = []
    for prompt in prompts:
        with torch.no_grad():
            last = reference(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1]
        assert (last[yes] - last[no]).abs() > TIE
        answers.append(bool(last[yes] > last[no]))
    (tmp_path / "boolq").write_text("".join(
        json.dumps({"title": t, "passage": p, "question": q, "answer": a == (i % 2 == 0)}) + "\n"
        for i, ((t, p, q), a) in enumerate(zip(STATEMENTS, answers))))
    (tmp_path / "config.json").write_text(json.dumps(
        {"configurations": [{"dataset_name": "boolq", "dataset_path": "boolq"}]}))
    done = run_tare("calib", "--config", "config.json", "--size", "boolq=9", "--out", "mix.json",
                    "--model", folder, "--positive", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    chosen = [entry["prompt"] for entry in json.loads((tmp_path / "mix.json").read_text())]
    assert sorted(chosen) == sorted(prompts[::2])
