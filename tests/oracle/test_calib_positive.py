"""Positive verification of mixed calibration sets against transformers on a real model: the judge
asks it about each prompt alone, in FP32, and every second record gets the answer that it gave; these
and no others must be chosen."""
import json
import re

import pytest
import torch
from conftest import run_tare
from test_smollm2 import MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

CHOICES = ["Which animal barks?,cat,dog,fish,bird", "Two plus two is,3,4,5,6",
           "The sky on a clear day is,green,red,blue,black", "Water freezes at,0 C,50 C,100 C,200 C",
           "Paris is the capital of,Spain,Italy,France,Peru"]
PROBLEMS = ["Ana has 3 jars with 4 plums each. How many plums are there?",
            "A shelf holds 9 books. How many books do three shelves hold?",
            "Tom had 10 apples and ate 4. How many are left?",
            "A week has 7 days. How many days have 6 weeks?"]
STATEMENTS = [("Dog", "A dog is an animal that barks.", "is a dog an animal"),
              ("Stone", "A stone is not alive.", "is a stone alive"),
              ("Snow", "Snow is white and cold.", "is snow hot"),
              ("Sun", "The sun is a star.", "is the sun a star"),
              ("Fish", "Fish live in water.", "do fish live in trees"),
              ("Iron", "Iron is a metal.", "is iron a metal")]


class Judge:
    def __init__(self):
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()

    def ids(self, text, **kwargs):
        return torch.tensor([self.tokenizer(text, **kwargs).input_ids])

    @torch.no_grad()
    def says_yes(self, prompt):
        yes, no = (self.tokenizer(f"How can we learning machine learning: {word}",
                                  add_special_tokens=False).input_ids[-1] for word in ("yes", "no"))
        logprobs = torch.log_softmax(self.model(self.ids(prompt)).logits[0, -1], -1)
        return bool(logprobs[yes] > logprobs[no])

    @torch.no_grad()
    def generate(self, prompt, count, eos=None):
        ids = self.ids(prompt)
        kwargs = {"eos_token_id": eos} if eos is not None else {}
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count,
                                  do_sample=False, pad_token_id=0, **kwargs)[0]
        return ids.shape[1], out

    def first_letter(self, prompt):
        start, out = self.generate(prompt, 20)
        text = self.tokenizer.decode(out[start:], skip_special_tokens=False).lstrip()
        return text[0] if text else "-1"

    def number(self, prompt):
        _, out = self.generate(prompt, 256, self.tokenizer.eos_token_id)
        text = self.tokenizer.decode(out, skip_special_tokens=True).strip()
        runs = re.findall(r"\d+", text[len(prompt):].split("\n\n")[0])
        return runs[-1] if runs else ""


def labelled(answers, wrong):
    """The right answer for the records of even index, for the others `wrong` of it."""
    return [a if i % 2 == 0 else wrong(a) for i, a in enumerate(answers)]


def write_sets(folder, judge):
    """{set name: the prompts that must be chosen}"""
    chosen = {}
    prompts = [f"{t} -- {p}\nQuestion: {q}?\nAnswer:" for t, p, q in STATEMENTS]
    labels = labelled([judge.says_yes(p) for p in prompts], lambda a: not a)
    (folder / "boolq").write_text("".join(
        json.dumps({"title": t, "passage": p, "question": q, "answer": a}) + "\n"
        for (t, p, q), a in zip(STATEMENTS, labels)))
    chosen["boolq"] = prompts[::2]

    prompts = ["{}\nA. {}\nB. {}\nC. {}\nD. {}\nAnswer:".format(*row.split(",")) for row in CHOICES]
    letters = [judge.first_letter(p) for p in prompts]
    assert not set(letters) & set(',"\n')
    (folder / "mmlu" / "test").mkdir(parents=True)
    (folder / "mmlu" / "test" / "s_test.csv").write_text("".join(
        f"{row},{a}\n" for row, a in zip(CHOICES, labelled(letters, lambda a: a + a))))
    chosen["mmlu"] = prompts[::2]

    prompts = [f"Question: {q}\n" for q in PROBLEMS]
    labels = labelled([judge.number(p) for p in prompts], lambda a: a + "1")
    (folder / "gsm8k").write_text("".join(
        json.dumps({"question": q, "answer": f"#### {a}"}) + "\n" for q, a in zip(PROBLEMS, labels)))
    chosen["gsm8k"] = prompts[::2]
    (folder / "config.json").write_text(json.dumps({"configurations": [
        {"dataset_name": name, "dataset_path": name} for name in chosen]}))
    return chosen


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Folder of the sets, and what must be chosen."""
    folder = tmp_path_factory.mktemp("sets")
    return folder, write_sets(folder, Judge())


def positive(folder, out, *flags):
    done = run_tare("calib", "--config", "config.json", "--size", "boolq=9,mmlu=9,gsm8k=9", "--out",
                    out, "--model", MODEL, "--positive", *flags, cwd=folder, timeout=1800)
    assert done.returncode == 0, done.stderr
    return (folder / out).read_bytes()


def test_same_choice_as_transformers(sets):
    folder, chosen = sets
    written = positive(folder, "mix.json")
    prompts = [e["prompt"] for e in json.loads(written)]
    assert sorted(prompts) == sorted(p for of_set in chosen.values() for p in of_set)
    for size in (1, 8):  # and 4 above; a tiny model gets others in test_python_positive.py
        assert positive(folder, f"mix{size}.json", "--batch-size", size) == written


def test_sampling_is_reproducible(sets):
    """Other batches, the same draws."""
    folder, _ = sets
    flags = ["--gsm8k-sampling", "--gsm8k-seed", "5"]
    assert positive(folder, "a.json", *flags, "--batch-size", "1") == \
        positive(folder, "b.json", *flags, "--batch-size", "4")


def test_model_alone_is_not_loaded(tmp_path):
    (tmp_path / "config.json").write_text('{"configurations": []}')
    done = run_tare("calib", "--config", tmp_path / "config.json", "--size", "", "--out",
                    tmp_path / "mix.json", "--model", tmp_path / "gone")
    assert done.returncode == 0 and "--model does nothing without --positive" in done.stderr
