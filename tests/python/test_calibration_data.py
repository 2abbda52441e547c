"""CalibrationData: the reference's own results, data sets in Python, the error table of the
specification (calibration_sets.md 5.6, 6.1, 10)."""
import argparse
import json
import random

import numpy as np
import pytest
import tiny
from conftest import ROOT

import tare
from tare import CalibrationData, DatasetProcessorBase

FIXTURES = ROOT / "tests" / "data" / "calibration"
CASES = [(n, compat) for n in range(1, 11) for compat in (None, "msmodelslim")]


@pytest.mark.parametrize("number, compat", CASES)
def test_the_references_results(tmp_path, monkeypatch, number, compat):
    monkeypatch.chdir(FIXTURES)
    settings = json.loads((FIXTURES / f"expected_{number}.settings.json").read_text())
    same = compat or settings["default_equal"]
    expected = FIXTURES / (f"expected_{number}.json" if same else f"expected_{number}.default.json")
    random.seed(5)
    state = random.getstate()
    mix = CalibrationData(settings["config"], str(tmp_path / "out.json"), compat=compat)
    mix.set_shuffle_seed(settings["shuffle_seed"])
    mix.set_batch_size(settings["batch_size"])
    mix.set_sample_size(settings["sample_size"])
    for _ in range(2):
        assert mix.process() == json.loads(expected.read_text()) == mix.mixed_dataset
        assert (tmp_path / "out.json").read_bytes() == expected.read_bytes()
    assert random.getstate() == state
    if same and not compat:
        assert {n: c["delivered"] for n, c in mix.handlers.items() if c["delivered"]} == {
            n: c for n, c in settings["delivered"].items() if c}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "boolq.jsonl").write_text("".join(json.dumps(
        {"title": f"T{i}", "passage": "p", "question": "q", "answer": bool(i % 2)}) + "\n"
        for i in range(6)))
    path = tmp_path / "mix.json"
    path.write_text(json.dumps({"configurations": [
        {"dataset_name": "boolq", "dataset_path": str(tmp_path / "boolq.jsonl")}]}))
    return str(path)


class Numbers(DatasetProcessorBase):
    """Prompts n0, n1, …; what process_data gives can be replaced."""

    def __init__(self, count=10, give=None):
        super().__init__("nowhere")
        self.ori_prompts, self.give, self.asked = [f"n{i}" for i in range(count)], give, []

    def process_data(self, indexs):
        self.asked.append(list(indexs))
        if self.give is not None:
            return self.give(indexs)
        return [{"prompt": self.ori_prompts[i], "ans": i} for i in indexs]

    def verify_positive_prompt(self, prompts, labels):
        return [{"prompt": p, "ans": a} for p, a in zip(prompts, labels) if a % 2]


def test_a_set_of_ones_own(config):
    mix, numbers = CalibrationData(config), Numbers()
    mix.set_batch_size(3)
    mix.set_shuffle_seed(42)
    mix.add_custormized_dataset_processor("numbers", numbers)
    mix.set_sample_size({"numbers": 4})
    order = [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]  # shuffle of 0..9 with seed 42, spec 6.4
    mixed = mix.process()
    assert sorted(e["ans"] for e in mixed) == sorted(order[:4])
    assert numbers.asked[0] == order[:3] and all(len(asked) <= 3 for asked in numbers.asked)
    expected = order[:4]
    random.Random(42).shuffle(expected)
    assert [e["ans"] for e in mixed] == expected
    assert list(mix.handlers) == ["boolq", "numbers"] and mix.handlers["numbers"]["available"] == 10
    mix.add_custormized_dataset_processor("boolq", Numbers(2))
    assert list(mix.handlers) == ["boolq", "numbers"] and mix.handlers["boolq"]["requested"] == 0


def test_values_and_further_keys_are_kept(config, tmp_path):
    odd = {"prompt": "\ud800 é \0", "ans": [1, {"a": None}, 2**70, 1.5], "more": {"x": [True]},
           "z": "y"}
    mix = CalibrationData(config, str(tmp_path / "out.json"))
    mix.add_custormized_dataset_processor("odd", Numbers(1, lambda _: [odd]))
    mix.set_sample_size({"odd": 1})
    assert mix.process() == [odd]
    assert (tmp_path / "out.json").read_text() == json.dumps([odd], indent=2)


@pytest.mark.parametrize("give, error, word", [
    (lambda _: None, TypeError, "odd.*list"), (lambda _: ["x"], TypeError, "odd.*prompt"),
    (lambda _: [{"prompt": 1, "ans": 1}], TypeError, "odd"),
    (lambda _: [{"prompt": "a"}], TypeError, "odd"),
    (lambda _: [{"prompt": "a", "ans": {1, 2}}], TypeError, "odd.*JSON"),
    (lambda _: [{"prompt": "a", "ans": 1, "b": b"c"}], TypeError, "odd.*JSON"),
    (lambda _: 1 // 0, ZeroDivisionError, "zero"),
])
def test_a_failing_set_leaves_the_old_file(config, tmp_path, give, error, word):
    out = tmp_path / "out.json"
    out.write_text("old")
    mix = CalibrationData(config, str(out))
    mix.add_custormized_dataset_processor("odd", Numbers(3, give))
    mix.set_sample_size({"boolq": 1, "odd": 1})
    with pytest.raises(error, match=word) as caught:
        mix.process()
    assert out.read_text() == "old" and not list(tmp_path.glob(".*"))
    if error is ZeroDivisionError:  # with its own traceback
        assert caught.traceback[-1].name == "<lambda>"
    mix.set_sample_size({"odd": 0})
    assert len(mix.process()) == 1


def test_abstract_methods():
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (DatasetProcessorBase,), {"process_data": lambda self, i: []})("path")


@pytest.mark.parametrize("call, error, text", [
    (lambda m: m.set_sample_size([1]), TypeError, "sample_size should be dict"),
    (lambda m: m.set_sample_size({1: 1}), TypeError, "sample_size keys should be string"),
    (lambda m: m.set_sample_size({"boolq": True}), TypeError, "sample_size values should be int"),
    (lambda m: m.set_sample_size({"boolq": 1.0}), TypeError, "sample_size values should be int"),
    (lambda m: m.set_sample_size({"boolq": 1, "nope": 1}), ValueError,
     "Dataset nope has no handler"),
    (lambda m: m.set_sample_size({"nope": 1, "boolq": "x"}), ValueError,
     "Dataset nope has no handler"),
    (lambda m: m.set_sample_size({"boolq": -1, "x": 1.0}), ValueError, "boolq"),
    (lambda m: m.set_batch_size(True), argparse.ArgumentTypeError, "True is not an int."),
    (lambda m: m.set_batch_size("2"), TypeError, "'2' is not an int."),
    (lambda m: m.set_batch_size(0), ValueError, "batch_size cant be zero"),
    (lambda m: m.set_batch_size(-2), ValueError, "-2"),
    (lambda m: m.set_shuffle_seed(1.0), argparse.ArgumentTypeError, "1.0 is not an int."),
    (lambda m: m.add_custormized_dataset_processor(1, Numbers()), argparse.ArgumentTypeError,
     "1 is not an str."),
    (lambda m: m.add_custormized_dataset_processor("a", "b"), TypeError,
     "'b' is not an DatasetProcessorBase."),
])
def test_wrong_settings(config, call, error, text):
    mix = CalibrationData(config)
    with pytest.raises(error) as caught:
        call(mix)
    assert text in str(caught.value)
    assert mix.process() == []  # nothing was set


def test_seeds_of_any_size(config):
    mix = CalibrationData(config)
    mix.set_sample_size({"boolq": 6})
    for seed in (-3, 2**64 + 5, -(2**200)):
        mix.set_shuffle_seed(seed)
        # sampling seed 0 whatever the shuffle seed; one shuffle of the list (spec 6.2, 6.3)
        order = list(range(6))
        random.Random(0).shuffle(order)
        random.Random(seed).shuffle(order)
        assert [e["prompt"].split()[0] for e in mix.process()] == [f"T{i}" for i in order]


@pytest.mark.parametrize("arguments, error, text", [
    (dict(config_path=""), ValueError, "The value of the path cannot be empty."),
    (dict(config_path=3), TypeError, "config_path must be str, not int."),
    (dict(config_path="/nowhere/mix.json"), FileNotFoundError, "/nowhere/mix.json"),
    (dict(config_path="/nowhere/mix.json"), ValueError, "/nowhere/mix.json"),
    (dict(config_path="/tmp"), ValueError, "/tmp"), (dict(config_path="/tmp"), OSError, "/tmp"),
    (dict(save_path=5), TypeError, "save_path must be str, not int."),
    (dict(save_path="out.txt"), ValueError, "out.txt"),
    (dict(save_path="/nowhere/out.json"), ValueError, "/nowhere"),
    (dict(model=3), TypeError, "Invalid model"),
    (dict(tokenizer=3), TypeError, "tokenizer must be PreTrainedTokenizerBase, not int."),
    (dict(mmlu_shots=6), ValueError, "mmlu_shots"), (dict(skip_bad=1), TypeError, "skip_bad"),
    (dict(sample_seed="1"), TypeError, "sample_seed"), (dict(compat="v0"), ValueError, "compat"),
])
def test_wrong_arguments(config, arguments, error, text):
    with pytest.raises(error) as caught:
        CalibrationData(**{"config_path": config, **arguments})
    assert text in str(caught.value)


def test_bad_records_and_configs(config, tmp_path):
    data = tmp_path / "boolq.jsonl"
    good = data.read_text()
    data.write_text(good + "{}\n")
    with pytest.raises(ValueError, match=r"boolq.jsonl:7: "):
        CalibrationData(config)
    assert CalibrationData(config, skip_bad=True).skipped == {"boolq": 1}
    data.unlink()
    with pytest.raises(FileNotFoundError, match="boolq.jsonl"):
        CalibrationData(config)
    with open(config, "w") as file:
        file.write("{}")
    with pytest.raises(ValueError, match="config should have attribute configurations"):
        CalibrationData(config)


def test_positive_verification_with_tares_model(config, tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "model")
    model, tokenizer = tare.load(folder), tare.Tokenizer(folder)
    with pytest.raises(TypeError, match="Tokenizer must be matched with model."):
        CalibrationData(config, model=model)
    chosen = []
    for batch in (1, 3, 8):
        mix = CalibrationData(config, tokenizer=tokenizer, model=model)
        mix.set_batch_size(batch)
        mix.add_custormized_dataset_processor("numbers", Numbers())
        mix.set_sample_size({"boolq": 6, "numbers": 4})
        mixed = mix.process()
        assert sum(e["prompt"].startswith("n") and e["ans"] % 2 for e in mixed) == 4
        chosen.append(mixed)
    assert chosen[0] == chosen[1] == chosen[2]
    # spec 7.1: the last tokens of the two texts, compared behind the prompt
    yes, no = tokenizer.encode("yes", False)[-1], tokenizer.encode("no", False)[-1]
    positive = set()
    for i in range(6):
        prompt = f"T{i} -- p\nQuestion: q?\nAnswer:"
        last = model.logits(tokenizer.encode(prompt))[-1]
        if (last[yes] > last[no]) == bool(i % 2):
            positive.add(prompt)
    assert {e["prompt"] for e in chosen[0] if e["prompt"].startswith("T")} == positive


def test_token_ids(tmp_path):
    tokenizer = tare.Tokenizer(tiny.write_checkpoint(tmp_path / "model"))
    mixed = [{"prompt": "ab", "ans": 1}, {"prompt": "cde", "ans": 2}]
    for get in (tare.get_calib_dataset, tare.get_anti_dataset):
        data = get(tokenizer, mixed)
        assert [np.asarray(x[0]).tolist() for x in data] == [[[97, 98]], [[99, 100, 101]]]
        assert all(len(x) == 1 and np.asarray(x[0]).dtype == np.int64 for x in data)
        assert get(tokenizer, []) == []
