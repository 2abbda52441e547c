"""Scripts written for msModelSlim, unchanged, on transformers' classes: `python -m tare.run` gives
what the command gives for the same settings (tests that need PyTorch).

The scripts follow the published usage; the modeling file is transformers' own with the edit that
the guide of msModelSlim describes.
"""
import inspect
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
import transformers
from conftest import ROOT, SMOLLM2, run_tare



def run_script(tmp_path, text, *args, flags=()):
    script = tmp_path / "script.py"
    script.write_text(text)
    return subprocess.run([sys.executable, "-m", "tare.run", *flags, str(script), *map(str, args)],
                          capture_output=True, text=True, timeout=1800, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "python"),
                               "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"})


def output_files(folder):
    """Bytes of every file of an output but tare_run.json, which tells where the data came from."""
    return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()
            if p.is_file() and p.name != "tare_run.json"}


MIXED = '''
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig
from msmodelslim.pytorch.llm_ptq.mix_calibration import CalibrationData, DatasetProcessorBase

model_path, config_path, out, dev_type = sys.argv[1:5]


class TeaProcessor(DatasetProcessorBase):
    def __init__(self, dataset_path, tokenizer=None, model=None):
        super().__init__(dataset_path, tokenizer, model)
        with open(dataset_path) as file:
            for line in file:
                sample = json.loads(line)
                self.ori_prompts.append(sample["question"])
                self.ori_answers.append(sample["answer"])

    def process_data(self, indexs):
        return [{"prompt": self.ori_prompts[i], "ans": self.ori_answers[i]} for i in indexs]

    def verify_positive_prompt(self, prompts, labels):
        inputs = self.tokenizer(prompts, padding=True, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            logits = self.model(**inputs).logits
        assert logits.shape[0] == len(prompts)
        return [{"prompt": p, "ans": a} for p, a in zip(prompts, labels) if a != "no"]


def get_anti_dataset(tokenizer, calib_list, device="cpu"):
    return [[tokenizer(calib["prompt"], return_tensors="pt").to(device).input_ids]
            for calib in calib_list]


def get_calib_dataset(tokenizer, calib_list, device="cpu"):
    return [[tokenizer([calib["prompt"]], return_tensors="pt").to(device).data["input_ids"]]
            for calib in calib_list]


tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(model_path, torch_dtype="auto").eval()
before = {name: p.clone() for name, p in model.named_parameters()}

calib = CalibrationData(config_path=config_path, save_path=out + "/mixed.json", tokenizer=tokenizer,
                        model=model)
calib.add_custormized_dataset_processor("tea", TeaProcessor("tea.jsonl", tokenizer, model))
calib.set_sample_size({"boolq": 2, "tea": 2})
calib.set_batch_size(2)
calib.set_shuffle_seed(3)
mixed = calib.process()

device = f"{dev_type}:0" if dev_type != "cpu" else "cpu"
anti_dataset = get_anti_dataset(tokenizer, mixed, device=device)
anti_config = AntiOutlierConfig(anti_method="m3", dev_type=dev_type)
AntiOutlier(model, calib_data=anti_dataset, cfg=anti_config).process()

calib_dataset = get_calib_dataset(tokenizer, mixed, model.device)
names = [f"model.layers.{i}.mlp.down_proj" for i in range(model.config.num_hidden_layers)]
quant_config = QuantConfig(w_bit=8, a_bit=8, disable_names=names, dev_type=dev_type, dev_id=None,
                           act_method=1, pr=1.0, w_sym=True, mm_tensor=False).fa_quant(fa_amp=0)
calibrator = Calibrator(model, quant_config, calib_data=calib_dataset, disable_level="L5")
calibrator.run()
calibrator.save(out + "/quant", save_type=["numpy", "safe_tensor"])
assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
'''

TEA = [("Green tea is not fermented. Is it?", "yes"), ("Oolong is a fish.", "no"),
       ("Pu'er is aged.", "yes"), ("Tea is brewed.", "yes")]


def write_mix(folder):
    folder.mkdir(exist_ok=True)
    boolq = [{"title": "Tea", "passage": "Tea is a drink made of leaves.", "answer": bool(i % 2),
              "question": f"is tea number {i} a drink"} for i in range(6)]
    (folder / "boolq.jsonl").write_text("".join(json.dumps(r) + "\n" for r in boolq))
    (folder / "tea.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n"
                                              for q, a in TEA))
    (folder / "mix.json").write_text(json.dumps({"configurations": [
        {"dataset_name": "boolq", "dataset_path": str(folder / "boolq.jsonl")}]}))
    return folder / "mix.json"


def the_commands_output(model, mix, out, *flags):
    done = run_tare("quantize", model, "--out", out, "--calib", mix, "--fa-quant", "--anti-method",
                    "m3", "--disable-names", "model.layers.*.mlp.down_proj", "--disable-level",
                    "L5", "--save", "numpy,safe_tensor", *flags, timeout=1200)
    assert done.returncode == 0, done.stderr
    return output_files(out)


@pytest.mark.parametrize("checkpoint, dev_type", [("tiny", "npu"), ("smollm2", "cpu")])
def test_the_published_script(tmp_path, checkpoint, dev_type):
    model = SMOLLM2.resolve()
    if checkpoint == "tiny":
        model = tiny.write_checkpoint(tmp_path / "model", max_position_embeddings=512)
        (model / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}))
    config = write_mix(tmp_path)
    done = run_script(tmp_path, MIXED, model, config, tmp_path, dev_type)
    assert done.returncode == 0, done.stderr
    assert ("npu" in done.stderr) == (dev_type == "npu")
    mixed = json.loads((tmp_path / "mixed.json").read_text())
    assert mixed != [] and "prompt" in mixed[0]
    assert sum(e["prompt"] in dict(TEA) for e in mixed) == 2
    assert all(e["ans"] != "no" for e in mixed)
    assert output_files(tmp_path / "quant") == the_commands_output(model, tmp_path / "mixed.json",
                                                                   tmp_path / "cli")


def edited_modeling_file():
    """transformers' modeling_qwen2.py with the guide's edit."""
    from transformers.models.qwen2 import modeling_qwen2
    text = inspect.getsource(modeling_qwen2)
    text = text.replace("from ...", "from transformers.")
    text = text.replace("from .configuration", "from transformers.models.qwen2.configuration")
    head = text.index("\nclass Qwen2MLP")
    text = (text[:head] + "\nfrom msmodelslim import logger\n"
            "from msmodelslim.pytorch.llm_ptq.llm_ptq_tools.fa_quant import FAQuantizer\n"
            + text[head:])
    init, use = ("        self.is_causal = True\n",
                 "        attention_interface: Callable = eager_attention_forward\n")
    assert text.count(init) == 1 and text.count(use) == 1
    text = text.replace(
        init, f"{init}        self.fa_quantizer = FAQuantizer(config, logger=logger)\n")
    quant = "".join(f"        {n}_states = self.fa_quantizer.quant({n}_states, qkv={n[0]!r})\n"
                    for n in ("query", "key", "value"))
    return text.replace(use, quant + use)


MODELING = '''
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig

path, out = sys.argv[1:3]
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True,
                                             torch_dtype="auto").eval()
assert type(model).__module__.startswith("transformers_modules")
assert type(model.model.layers[0].self_attn.fa_quantizer).__name__ == "FAQuantizer"
texts = ["The ferry leaves at six.", "Roll two dice.", "def f(x): return x"]
data = [[tokenizer(t, return_tensors="pt").input_ids] for t in texts]
AntiOutlier(model, calib_data=data, cfg=AntiOutlierConfig(anti_method="m3")).process()
names = [f"model.layers.{i}.mlp.down_proj" for i in range(2)]
config = QuantConfig(disable_names=names, mm_tensor=False).fa_quant(fa_amp=0)
calibrator = Calibrator(model, config, calib_data=data, disable_level="L5")
calibrator.run()
calibrator.save(out, save_type=["numpy", "safe_tensor"])
model.model.layers[1].mlp.act_fn = torch.nn.GELU()
try:
    Calibrator(model, config, calib_data=data)
except ValueError as error:
    print(error)
'''


def write_qwen2(folder):
    config = transformers.Qwen2Config(
        vocab_size=260, hidden_size=32, intermediate_size=72, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=False, torch_dtype="bfloat16")
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tiny.make_tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}))


def test_the_modeling_file_route(tmp_path):
    plain, edited = tmp_path / "plain", tmp_path / "edited"
    write_qwen2(plain)
    shutil.copytree(plain, edited)
    (edited / "modeling_qwen2_fa3.py").write_text(edited_modeling_file())
    config = json.loads((plain / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_qwen2_fa3.Qwen2ForCausalLM"}
    (edited / "config.json").write_text(json.dumps(config, indent=2))
    done = run_script(tmp_path, MODELING, edited, tmp_path / "py")
    assert done.returncode == 0, done.stderr
    assert "model.layers.1.mlp.act_fn (GELU) is not the activation" in done.stdout
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(["The ferry leaves at six.", "Roll two dice.",
                                   "def f(x): return x"]))
    expected = the_commands_output(plain, prompts, tmp_path / "cli")
    found = output_files(tmp_path / "py")
    assert json.loads(found.pop("config.json")) == json.loads(expected.pop("config.json"))
    assert found == expected
    assert any("fa_q.scale" in name for name in json.loads(
        found["quant_model_description_w8a8.json"]))
