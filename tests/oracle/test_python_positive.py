"""Positive verification called back to a transformers model, prompt by prompt: the same selection
as tare's own model and as the command, for every batch size and padding side; on a tiny model whose
answers differ from prompt to prompt."""
import json

import pytest
import tiny
import torch
import transformers
from conftest import run_tare

import tare


LETTERS = "ABCD"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "m", torch_dtype="float32",
                                   max_position_embeddings=1024)
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}))
    (folder / "generation_config.json").write_text(json.dumps(
        {"eos_token_id": 257, "temperature": 0.7, "top_k": 20, "top_p": 0.9}))
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def first_character(theirs, prompt):
    """What 7.2 looks at: of 20 greedy tokens the first character that is no blank."""
    model, tokenizer = theirs
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                             max_new_tokens=20, eos_token_id=257, pad_token_id=257)
    text = tokenizer.decode(out[0, ids.shape[1]:]).lstrip()
    return text[0] if text else "-1"


@pytest.fixture(scope="module")
def config(tmp_path_factory, theirs):
    """boolq, and an mmlu set half of whose answers are what the model says."""
    root = tmp_path_factory.mktemp("sets")
    (root / "boolq.jsonl").write_text("".join(json.dumps(
        {"title": f"T{i}", "passage": "some text " * (i % 4), "question": f"is it {i}",
         "answer": bool(i % 2)}) + "\n" for i in range(16)))
    (root / "mmlu" / "test").mkdir(parents=True)
    rows = []
    for i in range(10):
        question = f"Number {i * i}" + "?" * (i % 3)
        prompt = f"{question}\n" + "".join(f"{c}. {c * i}\n" for c in LETTERS) + "Answer:"
        answer = first_character(theirs, prompt) if i % 2 else "no"
        rows.append([question, *(c * i for c in LETTERS), answer])
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    (root / "mmlu" / "test" / "numbers_test.csv").write_text("\n".join(quoted) + "\n")
    (root / "mmlu" / "subject_mapping.json").write_text('{"mmlu_all_sets": ["numbers"]}')
    (root / "gsm8k.jsonl").write_text("".join(json.dumps(
        {"question": f"{i} and {i}", "answer": "#### "}) + "\n" for i in range(4)))
    path = root / "mix.json"
    path.write_text(json.dumps({"configurations": [
        {"dataset_name": "boolq", "dataset_path": str(root / "boolq.jsonl")},
        {"dataset_name": "mmlu", "dataset_path": str(root / "mmlu")},
        {"dataset_name": "gsm8k", "dataset_path": str(root / "gsm8k.jsonl")}]}))
    return path


SIZES = {"boolq": 16, "mmlu": 10, "gsm8k": 2}


def choose(config, model, tokenizer, batch, **options):
    mix = tare.CalibrationData(str(config), tokenizer=tokenizer, model=model, **options)
    mix.set_batch_size(batch)
    mix.set_shuffle_seed(7)
    mix.set_sample_size(SIZES)
    return mix.process()


@pytest.mark.parametrize("sampling", [False, True])
def test_same_selection(tmp_path, folder, theirs, config, sampling):
    model, tokenizer = theirs
    options = {"gsm8k_sampling": sampling, "gsm8k_seed": 11}
    found = []
    for batch, side in ((1, "left"), (3, "right"), (8, "left")):
        tokenizer.padding_side = side
        found.append(choose(config, model, tokenizer, batch, **options))
    own = tare.load(folder), tare.Tokenizer(folder)
    found += [choose(config, *own, batch, **options) for batch in (1, 3, 8)]
    assert all(mixed == found[0] for mixed in found)
    positive = [e for e in found[0] if e["prompt"].startswith("Number")]
    assert len(positive) == 5 and all(e["ans"] != "no" for e in positive)
    assert 0 < sum(e["prompt"].startswith("T") for e in found[0]) < 16
    flags = ["--gsm8k-sampling", "--gsm8k-seed", 11] if sampling else []
    done = run_tare("calib", "--config", config, "--size", "boolq=16,mmlu=10,gsm8k=2", "--seed", 7,
                    "--model", folder, "--positive", "--out", tmp_path / "out.json", *flags,
                    timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == found[0]


def test_the_model_is_left_as_it_was(theirs, config):
    model, tokenizer = theirs
    before = model.generation_config
    choose(config, model, tokenizer, 4)
    assert model.generation_config is before and before.temperature == 0.7
    with pytest.raises(TypeError, match="Tokenizer must be matched with model."):
        tare.CalibrationData(str(config), model=model)
    own = tare.Tokenizer(model.name_or_path)
    with pytest.raises(TypeError, match="must be PreTrainedTokenizerBase, not Tokenizer."):
        tare.CalibrationData(str(config), model=model, tokenizer=own)
