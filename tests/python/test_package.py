"""The package on a tiny checkpoint, without torch: model, tokenizer, the run against the command,
scores against numpy, progress, cancellation, callbacks."""
import importlib
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import GOLDEN, ROOT, output_files, run_tare
from tokenizers import Tokenizer as HuggingFaceTokenizer

import tare

TEXTS = tiny.PROMPTS
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
LEVEL = ["--disable-names", "model.layers.1.mlp.down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def model(folder):
    return tare.load(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tare.Tokenizer(folder, pad_token="<|end|>")


@pytest.fixture(scope="module")
def calib(tokenizer):
    return [[tokenizer(text, return_tensors="np").input_ids] for text in TEXTS]


def assert_same_outputs(tmp_path):
    py, cli = (output_files(tmp_path / name, record=False) for name in ("py", "cli"))
    assert py == cli


# ---- model and tokenizer


def test_config_has_attributes(model):
    assert model.config.num_hidden_layers == 2 and model.config["model_type"] == "llama"
    assert model.device == "cpu" and model.device.type == "cpu"
    with pytest.raises(AttributeError, match="nothing_here"):
        model.config.nothing_here


def test_a_path_that_is_no_folder():
    with pytest.raises(FileNotFoundError, match="downloads nothing"):
        tare.load("meta-llama/Llama-3.1-70B")
    with pytest.raises(TypeError, match="load_in_4bit"):
        tare.AutoModelForCausalLM.from_pretrained(".", load_in_4bit=True)


def test_tokenizer_against_tokenizers(folder, tokenizer):
    reference = HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))
    batch = [e.ids for e in reference.encode_batch(TEXTS)]
    assert tokenizer(TEXTS).input_ids == batch
    assert tokenizer(TEXTS[0]).input_ids == batch[0] == tokenizer.encode(TEXTS[0])
    assert tokenizer.batch_decode(batch) == TEXTS
    assert tokenizer.decode(batch[1] + [257], skip_special_tokens=True) == TEXTS[1]
    assert tokenizer.eos_token_id is None and tokenizer.pad_token_id == 257
    assert len(tokenizer) == reference.get_vocab_size()


def test_tokenizer_of_a_class(tmp_path):
    """The ids by hand: h is 104, i 105, <|begin|> 256, <|end|> 257, and 260 comes next."""
    model = tiny.write_checkpoint(tmp_path / "model")
    (model / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<|begin|>", "eos_token": "<|end|>",
         "unk_token": None}))

    def ids(text="hi", path=model, **given):
        return tare.AutoTokenizer.from_pretrained(path, use_fast=False, **given)(text).input_ids
    assert ids() == [256, 104, 105] == ids(add_bos_token=True)
    assert ids(add_eos_token=True) == [256, 104, 105, 257]
    assert ids(add_bos_token=False, add_eos_token=False) == [104, 105]
    assert ids("<pad>", pad_token="<pad>") == [256, 260]
    assert ids(path=model / "tokenizer.json") == [104, 105]
    tokenizer = tare.Tokenizer(model)
    assert (tokenizer.bos_token, tokenizer.bos_token_id, tokenizer.eos_token_id) == \
        ("<|begin|>", 256, 257)
    assert tokenizer.unk_token is None and tokenizer.pad_token is None
    alone = tare.Tokenizer(model / "tokenizer.json")
    assert alone.bos_token is None and alone.chat_template is None
    with pytest.raises(ValueError, match="of a folder"):
        tare.Tokenizer(model / "tokenizer.json", add_eos_token=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(folder, tokenizer, side):
    reference = HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))
    reference.enable_padding(direction=side, pad_id=257, pad_token="<|end|>")
    expected = reference.encode_batch(TEXTS)
    out = tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="np")
    assert out.input_ids.tolist() == [e.ids for e in expected]
    assert out.attention_mask.tolist() == [e.attention_mask for e in expected]
    with pytest.raises(ValueError, match="padding=True"):
        tokenizer(TEXTS, return_tensors="np")
    cut = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=5, return_tensors="np")
    assert cut.input_ids.shape == (len(TEXTS), 5)
    with pytest.raises(ValueError, match="pad_token"):
        tare.Tokenizer(folder)(TEXTS, padding=True)


def test_generate_is_greedy_and_padding_has_no_part(model, tokenizer):
    """Each step takes the largest of model.logits; a prompt alone gives what a batch does."""
    batch = tokenizer(TEXTS[:3], padding=True, padding_side="left", return_tensors="np")
    out = model.generate(**batch, do_sample=False, max_new_tokens=4, eos_token_id=[])
    assert out.dtype == np.int64 and out.shape == (3, batch.input_ids.shape[1] + 4)
    for row, text in zip(out, TEXTS):
        ids = tokenizer.encode(text)
        for new in row[-4:]:
            assert new == np.argmax(model.logits(ids)[-1])
            ids.append(int(new))
    right = tokenizer(TEXTS[:3], padding=True, padding_side="right", return_tensors="np")
    assert np.array_equal(model.generate(**right, max_new_tokens=4, eos_token_id=[])[:, -4:],
                          out[:, -4:])
    logits = model(**batch).logits
    assert np.array_equal(logits[2, -1], model.logits(tokenizer.encode(TEXTS[2]))[-1])
    with pytest.raises(TypeError, match="length_penalty"):
        model.generate(**batch, length_penalty=1.0)


CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] | trim }}<|im_end|>\n"
          "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def test_chat_template(tokenizer):
    messages = [{"role": "user", "content": " Why? "}]
    text = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    chat = tokenizer.apply_chat_template
    assert chat(messages, chat_template=CHATML, tokenize=False, add_generation_prompt=True) == text
    assert chat(messages, chat_template=CHATML, add_generation_prompt=True) == tokenizer.encode(
        text, add_special_tokens=False)
    with pytest.raises(ValueError, match="no chat template"):
        chat(messages)


@pytest.mark.parametrize("template, word", [
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
    ("{{ 'x' * 999999999 }}", "too large"), ("{{ 10 ** 1000000 }}", "too large"),
    ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"), ("{{ raise_exception('roles') }}", "roles"),
    ("{% for %}", "xpected"),
])
def test_a_template_is_a_strangers_code(tokenizer, monkeypatch, template, word):
    monkeypatch.setattr("tare._chat.SECONDS", 0.3)
    with pytest.raises(ValueError, match=word):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template,
                                      tokenize=False)


# ---- quantizing


@pytest.mark.parametrize("anti", [None, "m3", "m4"])
def test_calibrator_writes_what_the_command_writes(tmp_path, folder, model, calib, anti):
    prompts = tiny.write_prompts(tmp_path / "prompts.jsonl")
    flags = ["--anti-method", anti] if anti else []
    done = run_tare("quantize", folder, "--out", tmp_path / "cli", "--calib", prompts, "--save",
                    "safe_tensor,numpy", "--act-method", 3, "--disable-level", "L2", "--fa-quant",
                    *LEVEL, *flags)
    assert done.returncode == 0, done.stderr
    fresh = tare.load(folder)
    if anti:
        tare.AntiOutlier(fresh, calib, tare.AntiOutlierConfig(anti_method=anti)).process()
    config = tare.QuantConfig(act_method=3, mm_tensor=False, disable_names=[LEVEL[1]]).fa_quant()
    calibrator = tare.Calibrator(fresh, config, calib_data=calib, disable_level="L2")
    calibrator.run()
    calibrator.save(str(tmp_path / "py"), save_type=["safe_tensor", "numpy"])
    assert_same_outputs(tmp_path)
    assert calibrator.result["samples"] == len(TEXTS)
    calibrator.save(str(tmp_path / "named"), "weights.safetensors", "about.json", ["safe_tensor"])
    assert (tmp_path / "named" / "weights.safetensors").is_file()
    assert (tmp_path / "named" / "about.json").is_file()


@pytest.mark.parametrize("symmetric", [True, False])
def test_kv_cache(symmetric, tmp_path, folder, calib):
    prompts = tiny.write_prompts(tmp_path / "prompts.jsonl")
    done = run_tare("quantize", folder, "--out", tmp_path / "cli", "--calib", prompts, "--save",
                    "safe_tensor,numpy", "--kv-cache", "c8",
                    "--kv-sym" if symmetric else "--no-kv-sym")
    assert done.returncode == 0, done.stderr
    config = tare.QuantConfig(mm_tensor=False).kv_quant(kv_sym=symmetric)
    calibrator = tare.Calibrator(tare.load(folder), config, calib_data=calib)
    calibrator.run()
    calibrator.save(str(tmp_path / "py"), save_type=["safe_tensor", "numpy"])
    assert_same_outputs(tmp_path)
    assert (tmp_path / "py" / "kv_cache_scale.npy").is_file()


@pytest.mark.parametrize("anti", ["m1", "m4"])
def test_kv_cache_of_the_smoothed_float_model(anti, tmp_path, folder, calib):
    """compat: smoothing that was made before counts as that of the same run does."""
    prompts = tiny.write_prompts(tmp_path / "prompts.jsonl")
    done = run_tare("quantize", folder, "--out", tmp_path / "cli", "--calib", prompts, "--save",
                    "safe_tensor", "--kv-cache", "c8", "--compat", "msmodelslim",
                    "--anti-method", anti)
    assert done.returncode == 0, done.stderr
    fresh = tare.load(folder)
    tare.AntiOutlier(fresh, calib, tare.AntiOutlierConfig(anti_method=anti),
                     compat="msmodelslim").process()
    config = tare.QuantConfig(mm_tensor=False, compat="msmodelslim").kv_quant()
    calibrator = tare.Calibrator(fresh, config, calib_data=calib)
    calibrator.run()
    calibrator.save(str(tmp_path / "py"), save_type=["safe_tensor"])
    assert_same_outputs(tmp_path)


def test_kv_cache_needs_data(folder):
    with pytest.raises(ValueError, match="kv_quant needs calibration data"):
        tare.Calibrator(tare.load(folder), tare.QuantConfig(is_dynamic=True, mm_tensor=False,
                                                            use_kvcache_quant=True))


def test_forms_of_calibration_data(tmp_path, model, tokenizer, calib):
    """Lists, dicts, and a padded batch with its mask are the same samples."""
    batch = tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="np")
    forms = [calib, [dict(tokenizer(t, return_tensors="np")) for t in TEXTS],
             [tokenizer(t, return_tensors="np") for t in TEXTS],
             [[batch.input_ids, batch.attention_mask]], [[ids[0][0]] for ids in calib]]
    outputs = []
    for i, form in enumerate(forms):
        calibrator = tare.Calibrator(model, tare.QuantConfig(), calib_data=form)
        calibrator.run()
        calibrator.save(tmp_path / str(i), save_type=["ascendv1"])
        outputs.append(output_files(tmp_path / str(i), record=False))
    assert all(output == outputs[0] for output in outputs)


def test_weights_alone_need_no_data(tmp_path, model):
    config = tare.QuantConfig(a_bit=16, mm_tensor=False)
    calibrator = tare.Calibrator(model, config)
    calibrator.run()
    calibrator.save(str(tmp_path / "out"), save_type=["safe_tensor"])
    types = json.loads((tmp_path / "out" / "quant_model_description_w8a16.json").read_text())
    assert types["model.layers.0.mlp.up_proj.weight"] == "W8A16"


def test_dynamic_linears_need_no_data(tmp_path, folder, model):
    done = run_tare("quantize", folder, "--out", tmp_path / "cli", "--save", "safe_tensor",
                    "--scheme", "w8a8_dynamic")
    assert done.returncode == 0, done.stderr
    config = tare.QuantConfig(mm_tensor=False).weight_activation_quant(is_dynamic=True)
    calibrator = tare.Calibrator(model, config)
    calibrator.run()
    calibrator.save(tmp_path / "py", save_type=["safe_tensor"])
    assert_same_outputs(tmp_path)
    assert (tmp_path / "py" / "quant_model_weight_w8a8_dynamic.safetensors").is_file()


@pytest.mark.parametrize("symmetric", [True, False])
def test_symmetry_is_a_sym(symmetric, tmp_path, folder, model, calib):
    """False without a word, whatever save() will be asked for."""
    done = run_tare("quantize", folder, "--out", tmp_path / "cli", "--save", "compressed-tensors",
                    "--calib", tiny.write_prompts(tmp_path / "prompts.jsonl"),
                    "--act-sym" if symmetric else "--no-act-sym")
    assert done.returncode == 0, done.stderr
    config = tare.QuantConfig(mm_tensor=False, **{"a_sym": True} if symmetric else {})
    calibrator = tare.Calibrator(model, config, calib)
    calibrator.run()
    calibrator.save(tmp_path / "py", save_type=["compressed-tensors"])
    assert_same_outputs(tmp_path)


@pytest.mark.parametrize("mode", ["none", "float", "mix"])
def test_mtp(mode, tmp_path):
    """The smoothing that AntiOutlier finds covers the MTP layer, too, or it does not."""
    golden = GOLDEN / "deepseek_v3_mtp"
    done = run_tare("quantize", golden / "model", "--out", tmp_path / "cli", "--calib",
                    golden / "calib_ids.json", "--anti-method", "m4", "--mtp", mode, "--mix",
                    "*.mlp.*=w8a8_dynamic", "--save", "safe_tensor")
    assert done.returncode == 0, done.stderr
    ids = [[np.array([sample])] for sample in json.loads((golden / "calib_ids.json").read_text())]
    model = tare.load(golden / "model")
    tare.AntiOutlier(model, ids, tare.AntiOutlierConfig(anti_method="m4", mtp=mode)).process()
    calibrator = tare.Calibrator(model, tare.QuantConfig(mm_tensor=False, mtp=mode), ids,
                                 mix_cfg={"*.mlp.*": "w8a8_dynamic"})
    calibrator.run()
    calibrator.save(tmp_path / "py", save_type=["safe_tensor"])
    assert_same_outputs(tmp_path)
    if mode == "mix":
        other = tare.Calibrator(model, tare.QuantConfig(mm_tensor=False, mtp="float"), ids)
        with pytest.raises(ValueError, match="computed with quant.mtp mix, this run is without it"):
            other.run()


def test_pdmix_is_w8a8_mix(tmp_path, folder, model, calib):
    done = run_tare("quantize", folder, "--out", tmp_path / "cli", "--save", "ascendv1", "--calib",
                    tiny.write_prompts(tmp_path / "prompts.jsonl"), "--scheme", "w8a8_mix",
                    "--mix", "*.o_proj=w8a8,*.down_proj=w8a8_dynamic")
    assert done.returncode == 0, done.stderr
    config = tare.QuantConfig(mm_tensor=False, pdmix=True)
    mix = {"*.o_proj": "w8a8_mix", "*.down_proj": "w8a8_dynamic"}
    calibrator = tare.Calibrator(model, config, calib, mix_cfg=mix)
    calibrator.run()
    calibrator.save(tmp_path / "py", save_type=["ascendv1"])
    assert_same_outputs(tmp_path)


def test_mix_cfg_is_mix(tmp_path, folder, model, calib):
    """In the order of the dictionary; the exact name wins over the patterns before it."""
    mix = {"*.mlp.*": "w8a8_dynamic", "*": "w8a8", "model.layers.0.mlp.down_proj": "float",
           "*.o_proj": "w8a16"}
    done = run_tare("quantize", folder, "--out", tmp_path / "cli", "--save", "ascendv1", "--calib",
                    tiny.write_prompts(tmp_path / "prompts.jsonl"), "--mix",
                    ",".join(f"{name}={kind}" for name, kind in mix.items()))
    assert done.returncode == 0, done.stderr
    calibrator = tare.Calibrator(model, tare.QuantConfig(mm_tensor=False), calib, mix_cfg=mix)
    calibrator.run()
    calibrator.save(tmp_path / "py", save_type=["ascendv1"])
    assert_same_outputs(tmp_path)
    types = json.loads((tmp_path / "py" / "quant_model_description.json").read_text())
    assert {n: types[f"model.layers.0.{n}.weight"] for n in (
        "mlp.up_proj", "mlp.down_proj", "self_attn.o_proj")} == {
            "mlp.up_proj": "W8A8_DYNAMIC", "mlp.down_proj": "FLOAT", "self_attn.o_proj": "W8A8"}


def test_smoothed_dynamic_linears(tmp_path, folder, calib):
    done = run_tare("quantize", folder, "--out", tmp_path / "cli", "--save", "ascendv1", "--calib",
                    tiny.write_prompts(tmp_path / "prompts.jsonl"), "--anti-method", "m3",
                    "--scheme", "w8a8_dynamic")
    assert done.returncode == 0, done.stderr
    fresh = tare.load(folder)
    tare.AntiOutlier(fresh, calib, tare.AntiOutlierConfig(anti_method="m3")).process()
    config = tare.QuantConfig(mm_tensor=False, is_dynamic=True)
    calibrator = tare.Calibrator(fresh, config, calib_data=calib)
    calibrator.run()
    calibrator.save(tmp_path / "py", save_type=["ascendv1"])
    assert_same_outputs(tmp_path)


def test_smoothing_leaves_the_model_and_has_vectors(folder, calib):
    model = tare.load(folder)
    before = (folder / "model.safetensors").read_bytes()
    tare.AntiOutlier(model, calib, tare.AntiOutlierConfig(anti_method="m1")).process()
    vectors = model._tare_smoothing.vectors()
    columns = vectors["model.layers.0.self_attn.q_proj.weight.columns"]
    name = "model.layers.0.input_layernorm.weight"
    norm = tensor_file.read(folder / "model.safetensors")[name].data
    assert np.allclose(vectors[name] * columns, norm, rtol=1e-6)
    assert (folder / "model.safetensors").read_bytes() == before


def layer_input(folder):
    """Input of layer 0's q, k and v for each text, FP32, by numpy."""
    tensors = {n: t.data for n, t in tensor_file.read(folder / "model.safetensors").items()}
    tokenizer = HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        h = tensors["model.embed_tokens.weight"][tokenizer.encode(text).ids].astype(np.float64)
        h /= np.sqrt((h * h).mean(-1, keepdims=True) + tiny.CONFIG["rms_norm_eps"])
        yield (h * tensors["model.layers.0.input_layernorm.weight"]).astype(np.float32)


def expected_score(folder, method):
    if method == "std":
        xs = list(layer_input(folder))
        most = max(np.abs(x).max() for x in xs)
        return most / max((x - (x.max(0) + x.min(0))).std(ddof=1) for x in xs)
    kept = []
    for x in layer_input(folder):
        x = np.sort(x.ravel())
        kept.append(x if x.size < 100 else x[50::100])
    x = np.sort(np.concatenate(kept))
    quarter = x.size // 4
    return 2 * np.abs(x).max() / 254 / (x[3 * quarter] - x[quarter])


@pytest.mark.parametrize("method", ["std", "quantile"])
def test_layer_selector(folder, model, calib, method):
    selector = tare.LayerSelector(model, range_method=method)
    selector.run(calib)
    scores = {entry["name"]: entry["score"] for entry in selector.layer_scores}
    qkv = [f"model.layers.0.self_attn.{p}_proj" for p in "qkv"]
    for name in qkv:
        assert scores[name] == pytest.approx(expected_score(folder, method), rel=1e-5)
    ranked = sorted(scores.values(), reverse=True)
    assert [e["score"] for e in selector.layer_scores] == ranked
    over = selector.select_layers_by_threshold(scores[qkv[0]])
    assert set(over) == {n for n, s in scores.items() if s > scores[qkv[0]]}
    groups = sorted(set(ranked), reverse=True)
    assert set(selector.select_layers_by_disable_level(2)) == {n for n, s in scores.items()
                                                               if s >= groups[1]}
    assert selector.select_layers_by_disable_level(0) == []
    some = tare.LayerSelector(model, qkv[:2], method)
    some.run(calib)
    assert {e["name"] for e in some.layer_scores} == set(qkv[:2])


# ---- the machinery


def test_log_goes_to_the_logger(model, calib, caplog):
    with caplog.at_level(logging.INFO, "tare"):
        tare.Calibrator(model, tare.QuantConfig(), calib_data=calib).run()
    assert any("calibration samples" in r.getMessage() for r in caplog.records)


INTERRUPTED = """
import logging, os, signal, sys, time
import numpy as np
import tare
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
struck = []
class Strike(logging.Handler):
    def emit(self, record):  # called by C while it works
        if record.getMessage().startswith("plan:") and not struck:
            struck.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
tare.logger.addHandler(Strike())
model = tare.load(sys.argv[1])
calib = [[np.arange(1, 120)[None]]] * 3000
try:
    tare.Calibrator(model, tare.QuantConfig(act_method=2), calib_data=calib).run()
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - struck[0])
print("after", model.logits([1, 2]).shape)
"""


def test_ctrl_c_stops_a_call_and_the_context_lives_on(folder):
    """The main thread is free for the signal while C works, so the GIL is released."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(folder)], capture_output=True,
                          text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[0] == "interrupted", done.stdout
    assert "after (2, 260)" in done.stdout


def test_module_paths():
    root = "tare.msmodelslim.pytorch.llm_ptq"
    for path, names in {
            "anti_outlier": ["AntiOutlier", "AntiOutlierConfig"],
            "llm_ptq_tools": ["Calibrator", "QuantConfig", "LayerSelector"],
            "llm_ptq_tools.fa_quant": ["FAQuantizer"],
            "llm_ptq_tools.layer_select": ["LayerSelector"],
            "llm_ptq_tools.quant_config": ["QuantConfig"],
            "mix_calibration": ["CalibrationData", "DatasetProcessorBase"],
            "mix_calibration.calib_select": ["CalibrationData"]}.items():
        module = importlib.import_module(f"{root}.{path}")
        assert all(getattr(module, name) is getattr(tare, name) for name in names)
    assert importlib.import_module("tare.msmodelslim").logger is tare.logger


SCRIPT = """
import sys
from msmodelslim import logger
from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import QuantConfig
import msmodelslim.pytorch.llm_ptq.anti_outlier as anti
import modelslim.pytorch.llm_ptq.anti_outlier as old
import tare
assert QuantConfig is tare.QuantConfig and anti.AntiOutlier is tare.AntiOutlier is old.AntiOutlier
assert logger is tare.logger and "torch" not in sys.modules
print(__name__, sys.argv[1:], QuantConfig().compat, QuantConfig(compat="none").compat)
import msmodelslim.nothing
"""


@pytest.mark.parametrize("flags, compat", [([], "None"), (["--compat"], "msmodelslim")])
def test_run(tmp_path, flags, compat):
    script = tmp_path / "a script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, "-m", "tare.run", *flags, str(script), "--x", "1"],
                          capture_output=True, text=True, timeout=60, cwd=tmp_path,
                          env=ENVIRONMENT)
    assert done.stdout == f"__main__ ['--x', '1'] {compat} None\n", done.stderr
    assert "No module named 'msmodelslim.nothing'" in done.stderr
    bad = subprocess.run([sys.executable, "-m", "tare.run", "--nope"], capture_output=True,
                         text=True, env=ENVIRONMENT)
    assert bad.returncode == 1 and "--nope" in bad.stderr
