"""MTP layers from outside: `--mtp none|float|mix` of quantize and retype, and what verify says of them.
(Logits: tests/unit/test_mtp.c.)"""
import json
import re

import numpy as np
import pytest
import tensor_file
from conftest import GOLDEN, output_files, run_tare
from test_experts import assert_refused, by_hand, codes_of, description, kill_at, variant
from test_fp8 import QUANTIZATION, SCALE, decode
from test_schemes import quantize, run

A, S, N, C = SAVES = ("ascendv1", "safe_tensor", "numpy", "compressed-tensors")
GOLD = GOLDEN / "deepseek_v3_mtp"
MODEL = GOLD / "model"
CALIB = json.loads((GOLD / "calib_ids.json").read_text())
MTP = "model.layers.2."
AROUND = ("enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head.norm", "shared_head.head")
DYNAMIC = ("--scheme", "w8a8_dynamic")
STATIC = ("--calib", GOLD / "calib_ids.json", "--no-act-sym")
COUNT = 44  # tensors of the layer


def verify(folder, *flags):
    done = run_tare("verify", folder, "--json", *flags)
    return [(f["rule"], f["tensor"]) for f in json.loads(done.stdout)["findings"]
            if f["severity"] == "failure"]


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def of_layer(names, layer=MTP):
    return sorted(name for name in names if name.startswith(layer))


# ---- none

def test_left_out_with_a_warning(tmp_path):
    done = quantize(MODEL, tmp_path / "out", *DYNAMIC)
    assert f"the {COUNT} tensors of its MTP layers (from model.layers.2 on) are left out" in done.stderr
    assert not of_layer(tensor_file.read_folder(tmp_path / "out"))
    assert config_of(tmp_path / "out")["num_nextn_predict_layers"] == 1
    assert verify(tmp_path / "out", "--base", MODEL) == []


def test_left_out_as_asked(tmp_path):
    """The same output, whose config.json says that there are none."""
    done = quantize(MODEL, tmp_path / "a", *DYNAMIC, "--mtp", "none")
    quantize(MODEL, tmp_path / "b", *DYNAMIC)
    assert "MTP" not in done.stderr
    a, b = (output_files(tmp_path / out, record=False) for out in "ab")
    assert [name for name in a if a[name] != b[name]] == ["config.json"]
    assert config_of(tmp_path / "a") == config_of(tmp_path / "b") | {"num_nextn_predict_layers": 0}
    assert verify(tmp_path / "a", "--base", MODEL) == []


def test_nothing_is_added_to_a_config_without_the_key(tmp_path):
    quantize(GOLDEN / "qwen3_moe" / "model", tmp_path / "out", *DYNAMIC, "--mtp", "none")
    assert "num_nextn_predict_layers" not in config_of(tmp_path / "out")


def test_generation_and_inspection_say_nothing_of_them():
    done = run_tare("inspect", MODEL)
    assert done.returncode == 0 and "MTP" not in done.stderr


# ---- float

@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    out = tmp_path_factory.mktemp("mtp") / "float"
    done = quantize(MODEL, out, *DYNAMIC, "--mtp", "float", "--save", ",".join(SAVES))
    assert "MTP" not in done.stderr and "unknown" not in done.stderr
    return out


def test_copied_bit_by_bit(copied):
    source = tensor_file.read_folder(MODEL)
    assert len(of_layer(source)) == COUNT
    for save in (A, S, C):
        tensors = tensor_file.read_folder(copied / save)
        assert of_layer(tensors) == of_layer(source)
        for name in of_layer(source):
            assert tensors[name].tag == source[name].tag
            np.testing.assert_array_equal(tensors[name].data, source[name].data, name)
        assert config_of(copied / save)["num_nextn_predict_layers"] == 1
        assert "mtp_quantize" not in config_of(copied / save)
    for save in (A, S):
        types = description(copied / save)
        assert {types[name] for name in of_layer(source)} == {"FLOAT"}
    assert verify(copied, "--base", MODEL) == []


def test_copied_linears_are_ignored_by_compressed_tensors(copied):
    ignored = config_of(copied / C)["quantization_config"]["ignore"]
    matrices = [name.removesuffix(".weight") for name, t in tensor_file.read_folder(MODEL).items()
                if name.startswith(MTP) and t.data.ndim == 2]
    assert sorted(name for name in ignored if name.startswith(MTP)) == \
        sorted(set(matrices) - {MTP + "embed_tokens"})


def test_the_rest_is_as_without_them(copied, tmp_path):
    quantize(MODEL, tmp_path / "out", *DYNAMIC)
    rest = tensor_file.read_folder(tmp_path / "out")
    tensors = tensor_file.read_folder(copied / A)
    assert set(tensors) - set(of_layer(tensors)) == set(rest)
    for name, t in rest.items():
        np.testing.assert_array_equal(tensors[name].data, t.data, name)


# ---- mix

FLOATS = ("kv_b_proj", "mlp.gate", "eh_proj", "shared_head.head", "embed_tokens")


def split_linears(source, layer=MTP):
    names = [name.removesuffix(".weight") for name, t in source.items()
             if name.startswith(layer) and t.data.ndim == 2]
    floats = [name for name in names if name.endswith(FLOATS)]
    return [name for name in names if name not in floats], floats


@pytest.fixture(scope="module", params=["weights alone", "calibrated"])
def mixed(request, tmp_path_factory):
    """(is it calibrated, an output in all save types)"""
    calibrated = request.param == "calibrated"
    out = tmp_path_factory.mktemp("mtp") / "mix"
    quantize(MODEL, out, *(STATIC if calibrated else DYNAMIC), "--mtp", "mix", "--save",
             ",".join(SAVES))
    return calibrated, out


def test_linears_by_hand(mixed):
    """All but what engines build as float."""
    _, out = mixed
    source = tensor_file.read_folder(MODEL)
    quantized, floats = split_linears(source)
    assert len(quantized) == 4 + 3 * 8 + 3 and len(floats) == 5
    for save in (A, S, C):
        tensors = tensor_file.read_folder(out / save)
        for name in quantized:
            w = source[name + ".weight"]
            codes, scale = by_hand(w.data, w.tag)
            np.testing.assert_array_equal(codes_of(tensors, name), codes, name)
            np.testing.assert_array_equal(tensors[name + ".weight_scale"].data, scale, name)
        same = set(of_layer(source)) - {name + ".weight" for name in quantized}
        assert len(same) == COUNT - len(quantized)
        for name in same:
            assert tensors[name].tag == source[name].tag
            np.testing.assert_array_equal(tensors[name].data, source[name].data, name)
    assert verify(out, "--base", MODEL) == []


def test_types_of_the_layer(mixed):
    calibrated, out = mixed
    quantized, floats = split_linears(tensor_file.read_folder(MODEL))
    for save in (A, S):
        types = description(out / save)
        for name in quantized:
            static = calibrated and ".self_attn." in name
            assert types[name + ".weight"] == ("W8A8" if static else "W8A8_DYNAMIC"), name
            assert (name + ".input_scale" in types) == static
        assert {types[name + ".weight"] for name in floats} == {"FLOAT"}
    assert config_of(out / S)["mtp_quantize"] == "w8a8_dynamic"
    assert all("mtp_quantize" not in config_of(out / save) for save in (A, C))
    ignored = config_of(out / C)["quantization_config"]["ignore"]
    assert sorted(name for name in ignored if name.startswith(MTP)) == \
        sorted(set(floats) - {MTP + "embed_tokens"})


def test_layers_in_front_are_as_without_it(mixed, tmp_path):
    calibrated, out = mixed
    quantize(MODEL, tmp_path / "out", *(STATIC if calibrated else DYNAMIC), "--mtp", "none")
    tensors = tensor_file.read_folder(out / A)
    for name, t in tensor_file.read_folder(tmp_path / "out").items():
        np.testing.assert_array_equal(tensors[name].data, t.data, name)


def test_type_of_static_linears_alone(tmp_path):
    quantize(MODEL, tmp_path / "out", *STATIC, "--mtp", "mix", "--save", S, "--mix",
             "model.layers.2.mlp.*=float")
    config = config_of(tmp_path / "out")
    assert (config["quantize"], config["mtp_quantize"]) == ("w8a8_dynamic", "w8a8")
    quantize(MODEL, tmp_path / "float", *STATIC, "--mtp", "mix", "--save", S, "--mix",
             "model.layers.2.*=float")
    assert "mtp_quantize" not in config_of(tmp_path / "float")


def test_four_bit_experts(tmp_path):
    """MindIE's keys stand in ascendv1 then (spec/schemes.md 6.2)."""
    out = tmp_path / "out"
    quantize(MODEL, out, *STATIC, "--mtp", "mix", "--mix",
             "*.experts.*=w4a8_dynamic,*.mlp.*=w8a8_dynamic")
    config, types = config_of(out), description(out)
    assert {key: config[key] for key in config if key.endswith("quantize")} == {
        "quantize": "w8a8_dynamic", "moe_quantize": "w4a8_dynamic", "mla_quantize": "w8a8_dynamic",
        "mtp_quantize": "w8a8_dynamic"}
    assert types[MTP + "mlp.experts.7.up_proj.weight"] == "W4A8_DYNAMIC"
    assert verify(out, "--base", MODEL) == []


# ---- what its linears read, by numpy. The layers in front add nothing, so that it is told the
# embeddings.

def silence(tensors, *layers):
    for name, t in tensors.items():
        if re.match(rf"model\.layers\.({'|'.join(map(str, layers))})\..*(o_proj|down_proj)", name):
            tensors[name] = tensor_file.Tensor(t.tag, np.zeros_like(t.data))


def rms(x, weight):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * weight


class Numpy:
    """The MTP layers of the golden model (spec/models.md 1.9), in float64."""

    def __init__(self, tensors):
        self.w = {name: t.data.astype(np.float64) for name, t in tensors.items()}

    def __getitem__(self, name):
        return self.w[f"model.{name}.weight"]

    def enter(self, layer, x, ids, head):
        """(what the block reads, the tokens that it is told)"""
        logits = rms(x[-1], self.w[head[0] + ".weight"]) @ self.w[head[1] + ".weight"].T
        told = np.append(ids[1:], logits.argmax())
        at = f"layers.{layer}."
        e = rms(self[at + "embed_tokens"][told], self[at + "enorm"])
        return np.concatenate([e, rms(x, self[at + "hnorm"])], axis=1) @ self[at + "eh_proj"].T, told

    def first(self, ids):
        return self.enter(2, self["embed_tokens"][ids], ids, ("model.norm", "lm_head"))

    def second(self, ids):
        x, told = self.first(ids)
        return self.enter(3, x, told, [f"model.layers.2.shared_head.{part}" for part in ("norm", "head")])

    def normed(self, layer, x):
        return rms(x, self[f"layers.{layer}.input_layernorm"])

    def attended(self, layer, x, turn):
        """What o_proj reads; positions begin at `turn`, and behind the last comes 0."""
        heads, nope, rope, value, rank = 4, 16, 8, 16, 32
        at, tokens = f"layers.{layer}.self_attn.", len(x)
        h = self.normed(layer, x)
        q = rms(h @ self[at + "q_a_proj"].T, self[at + "q_a_layernorm"]) @ self[at + "q_b_proj"].T
        kv = h @ self[at + "kv_a_proj_with_mqa"].T
        c = rms(kv[:, :rank], self[at + "kv_a_layernorm"]) @ self[at + "kv_b_proj"].T
        q, c = q.reshape(tokens, heads, nope + rope), c.reshape(tokens, heads, nope + value)
        angle = ((np.arange(tokens) + turn) % tokens)[:, None] * 1e4 ** (-np.arange(0, rope, 2) / rope)

        def rotate(v):  # [tokens, …, rope], neighbours
            z = (v[..., ::2] + 1j * v[..., 1::2]) * np.exp(1j * angle).reshape(
                tokens, *[1] * (v.ndim - 2), -1)
            return np.stack([z.real, z.imag], axis=-1).reshape(v.shape)
        q_rope, k_rope = rotate(q[..., nope:]), rotate(kv[:, rank:])
        scores = np.einsum("thd,shd->hts", q[..., :nope], c[..., :nope])
        scores += np.einsum("thd,sd->hts", q_rope, k_rope)
        scores = scores / np.sqrt(nope + rope) + np.triu(np.full((tokens, tokens), -np.inf), 1)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        return np.einsum("hts,shd->thd", p, c[..., nope:]).reshape(tokens, -1)


def mean_range(inputs):
    """Scale and offset of spec/w8a8.md 4.1, 4.3."""
    low = min(np.mean([x.min() for x in inputs]), 0)
    high = max(np.mean([x.max() for x in inputs]), 0)
    scale = (high - low) / 255
    return scale, np.clip(np.rint(-low / scale) - 128, -128, 127)


def two_layers(tensors):
    """A second MTP layer, of other weights."""
    rng = np.random.default_rng(3)
    for name in of_layer(tensors):
        t = tensors[name]
        x = t.data * rng.uniform(0.7, 1.3, t.data.shape).astype(np.float32)
        tensors[name.replace(MTP, "model.layers.3.")] = tensor_file.Tensor(
            t.tag, tensor_file.round_to(x, t.tag))


def check_ranges(tmp_path, change, mix, linears, inputs, **config):
    """The static linears in an otherwise float model have the ranges of `inputs`."""
    model = variant(tmp_path / "model", "deepseek_v3_mtp", change, **config)
    quantize(model, tmp_path / "out", "--calib", GOLD / "calib_ids.json", "--no-act-sym", "--dtype",
             "float32", "--compute", "fp32", "--mtp", "mix", "--mix", f"{mix}=w8a8,*=float")
    found = tensor_file.read_folder(tmp_path / "out")
    scale, offset = mean_range([inputs(Numpy(tensor_file.read_folder(model)), np.array(ids))
                                for ids in CALIB])
    for name in linears:
        assert found[name + ".input_scale"].data[0] == pytest.approx(scale, rel=1e-5)
        assert found[name + ".input_offset"].data[0] == offset


def test_input_of_the_block(tmp_path):
    check_ranges(tmp_path, lambda tensors: silence(tensors, 0, 1), "*.layers.2.*.[qk]*_a_*",
                 [MTP + "self_attn.q_a_proj", MTP + "self_attn.kv_a_proj_with_mqa"],
                 lambda n, ids: n.normed(2, n.first(ids)[0]))


def test_positions_are_rolled(tmp_path):
    def rolled(n, ids):
        return n.attended(2, n.first(ids)[0], 1)
    check_ranges(tmp_path, lambda tensors: silence(tensors, 0, 1), "*.layers.2.*.o_proj",
                 [MTP + "self_attn.o_proj"], rolled)
    n = Numpy(tensor_file.read_folder(tmp_path / "model"))
    ids = np.array(CALIB[0])
    assert np.abs(rolled(n, ids) - n.attended(2, n.first(ids)[0], 0)).max() > 1e-3


def test_input_of_a_second_layer(tmp_path):
    def change(tensors):
        two_layers(tensors)
        silence(tensors, 0, 1, 2)
    check_ranges(tmp_path, change, "*.layers.3.*.[qk]*_a_*", ["model.layers.3.self_attn.q_a_proj"],
                 lambda n, ids: n.normed(3, n.second(ids)[0]), num_nextn_predict_layers=2)


# ---- however it is computed

SMOOTH = ("--anti-method", "m4")
HARD = ("--act-method", "3", "--disable-level", "L2")


@pytest.mark.parametrize("flags", [(), SMOOTH + HARD, ("--fa-quant", "--anti-method", "m6"),
                                   ("--no-disable-last-linear", "--act-method", "2"),
                                   ("--compat", "msmodelslim", *SMOOTH)], ids=" ".join)
def test_layouts_and_threads_change_nothing(flags, tmp_path):
    flags = [*STATIC, "--mtp", "mix", *flags]
    quantize(MODEL, tmp_path / "a", *flags)
    a = output_files(tmp_path / "a")
    assert any(MTP in name for name in tensor_file.read_folder(tmp_path / "a"))
    for number, how in enumerate((["--threads", 2], ["--batch-rows", 7], ["--skip-layouts", 4],
                                  ["--skip-layouts", 99], ["--no-resume"])):
        quantize(MODEL, tmp_path / f"b{number}", *flags, *how)
        assert output_files(tmp_path / f"b{number}") == a, how


@pytest.mark.parametrize("flags", [(), ("--no-disable-last-linear", *SMOOTH, *HARD)], ids=" ".join)
@pytest.mark.parametrize("line", range(4, 30, 2))
def test_resume(flags, line, tmp_path):
    """Stopped at any line of its report, it goes on to the same bytes; with two MTP layers, the
    second of which needs what was said before the first."""
    model = variant(tmp_path / "model", "deepseek_v3_mtp", two_layers, num_nextn_predict_layers=2)
    flags = [*STATIC, "--mtp", "mix", *flags]
    quantize(model, tmp_path / "whole", *flags)
    flags += ["--checkpoint-every", 1, "--resume"]
    kill_at(model, tmp_path / "out", line, *flags)
    quantize(model, tmp_path / "out", *flags)
    assert output_files(tmp_path / "out") == output_files(tmp_path / "whole")


def test_the_smallest_budget_suffices(tmp_path):
    flags = [*STATIC, "--mtp", "mix", "--threads", 1, *SMOOTH]
    refused = run(MODEL, tmp_path / "no", *flags, "--max-memory", "cpu=1MiB")
    smallest, = re.findall(r"smallest budget that works here is cpu=(\d+)MiB", refused.stderr)
    quantize(MODEL, tmp_path / "a", *flags, "--max-memory", f"cpu={smallest}MiB")
    quantize(MODEL, tmp_path / "b", *flags)
    assert output_files(tmp_path / "a") == output_files(tmp_path / "b")


def test_dry_run_counts_the_layer():
    def plan(*flags):
        done = run(MODEL, "/nowhere", *STATIC, *flags, "--dry-run", "--no-probe", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    plans = plan("--mtp", "none"), plan("--mtp", "mix")
    assert [p["layers"] for p in plans] == [2, 3]
    amounts = [{work["name"]: work["amount"] for work in p["work"]} for p in plans]
    more = {name: amounts[1][name] - amounts[0][name] for name in amounts[0]}
    tokens, samples = sum(map(len, CALIB)), len(CALIB)
    attention = 48 * 64 + 40 * 64 + 96 * 48 + 64 * 64  # q_a, kv_a, q_b, o
    experts = (3 + 1) * 3 * 32 * 64  # that a token passes
    assert more["INT8 products"] == 2 * tokens * (attention + experts)
    assert more["float products"] == (2 * tokens * (128 * 32 + 8 * 64)  # kv_b, router
                                      + 2 * tokens * 64 * 128 + 2 * samples * 128 * 64)
    assert more["quantizing weights"] == attention + (8 + 1) * 3 * 32 * 64


def test_fp8_is_as_its_bf16_twin(tmp_path):
    """Of what surrounds the block only eh_proj may be in FP8, too."""
    rng = np.random.default_rng(11)
    twin = {}

    def encode(tensors):
        for name in list(tensors):
            if "_proj." not in name:
                continue
            n, k = tensors[name].data.shape
            codes = (rng.integers(0, 119, (n, k)) + 128 * rng.integers(0, 2, (n, k))).astype(np.uint8)
            scales = (rng.uniform(0.5, 2, (-(-n // 128), -(-k // 128))) * 0.2 / 448).astype(np.float32)
            tensors[name] = tensor_file.Tensor("F8_E4M3", codes)
            tensors[name + SCALE] = tensor_file.Tensor("F32", scales)
            twin[name] = tensor_file.Tensor("BF16", decode(codes, scales))

    variant(tmp_path / "fp8", "deepseek_v3_mtp", encode, quantization_config=QUANTIZATION)
    assert MTP + "eh_proj.weight" in twin and MTP + "mlp.experts.7.down_proj.weight" in twin
    variant(tmp_path / "bf16", "deepseek_v3_mtp", lambda tensors: tensors.update(twin))
    for mode in ("float", "mix"):
        for form in ("fp8", "bf16"):
            quantize(tmp_path / form, tmp_path / f"{form}-{mode}", *STATIC, "--mtp", mode, "--save",
                     f"{A},{C}")
        a, b = (output_files(tmp_path / f"{form}-{mode}", record=False) for form in ("fp8", "bf16"))
        assert a == {name: b[name] for name in a} and len(a) == len(b)
        assert verify(tmp_path / f"fp8-{mode}", "--base", tmp_path / "fp8") == []
        tensors = tensor_file.read_folder(tmp_path / f"fp8-{mode}" / A)
        np.testing.assert_array_equal(tensors[MTP + "eh_proj.weight"].data,
                                      twin[MTP + "eh_proj.weight"].data)


@pytest.mark.parametrize("flags", [(), SMOOTH + HARD, ("--save", f"{S},{N}")], ids=" ".join)
def test_retype_makes_the_same(flags, tmp_path):
    quantize(MODEL, tmp_path / "a", *STATIC, "--mtp", "mix", *flags)
    done = run_tare("retype", tmp_path / "a", "--base", MODEL, "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    a, b = (output_files(tmp_path / out, record=False) for out in "ab")
    assert a == b


@pytest.mark.parametrize("to", ["none", "float"])
def test_retype_to_less(to, tmp_path):
    quantize(MODEL, tmp_path / "a", *STATIC, "--mtp", "mix")
    done = run_tare("retype", tmp_path / "a", "--base", MODEL, "--out", tmp_path / "b", "--mtp", to)
    assert done.returncode == 0, done.stderr
    quantize(MODEL, tmp_path / "c", *STATIC, "--mtp", to)
    b, c = (tensor_file.read_folder(tmp_path / out) for out in "bc")
    assert b.keys() == c.keys()
    assert all(np.array_equal(b[name].data, c[name].data) for name in b)


def test_retype_cannot_know_what_no_sample_told(tmp_path):
    quantize(MODEL, tmp_path / "a", *STATIC, "--mtp", "none")
    done = run_tare("retype", tmp_path / "a", "--base", MODEL, "--out", tmp_path / "b", "--mtp", "mix")
    assert_refused(done, tmp_path / "b", 1, f"there is no {MTP}self_attn.q_a_proj.input_range: the run "
                   "that it comes from did not observe it")


# ---- bad input

@pytest.mark.parametrize("mode", ["float", "mix"])
@pytest.mark.parametrize("model,config,words", [
    ("qwen3_moe", {}, ["qwen3_moe models have no MTP layers"]),
    ("deepseek_v2", {}, ["deepseek_v2 models have no MTP layers"]),
    ("deepseek_v3", {}, ["num_nextn_predict_layers in its config.json is 0 or missing"]),
    ("deepseek_v3", {"num_nextn_predict_layers": 1}, ["no tensors of its MTP layers",
                                                      "from model.layers.3 on"]),
    ("deepseek_v3_mtp", {"num_nextn_predict_layers": 0}, ["is 0 or missing"]),
], ids=str)
def test_layers_that_are_not_there(model, config, words, mode, tmp_path):
    folder = variant(tmp_path / "model", model, **config)
    done = run(folder, tmp_path / "out", *DYNAMIC, "--mtp", mode)
    assert_refused(done, tmp_path / "out", 2, "quant.mtp", *words)


@pytest.mark.parametrize("mode", ["float", "mix"])
@pytest.mark.parametrize("name", [*(f"{part}.weight" for part in AROUND), "input_layernorm.weight",
                                  "self_attn.o_proj.weight", "mlp.experts.5.up_proj.weight",
                                  "mlp.shared_experts.down_proj.weight", "mlp.gate.weight",
                                  "mlp.gate.e_score_correction_bias"])
def test_missing_tensors_are_named(name, mode, tmp_path):
    folder = variant(tmp_path / "model", "deepseek_v3_mtp", lambda tensors: tensors.pop(MTP + name))
    done = run(folder, tmp_path / "out", *DYNAMIC, "--mtp", mode)
    assert_refused(done, tmp_path / "out", 1, f"tensor {MTP}{name} is missing from the checkpoint")
    quantize(folder, tmp_path / "out", *DYNAMIC, "--mtp", "none")


@pytest.mark.parametrize("mode", ["float", "mix"])
def test_tensors_of_other_shapes(mode, tmp_path):
    def change(tensors):
        tensors[MTP + "eh_proj.weight"] = tensor_file.Tensor("F32", np.ones((64, 64), np.float32))
    folder = variant(tmp_path / "model", "deepseek_v3_mtp", change)
    done = run(folder, tmp_path / "out", *DYNAMIC, "--mtp", mode)
    assert_refused(done, tmp_path / "out", 1,
                   f"{MTP}eh_proj.weight has shape [64,64], config.json makes it [64,128]")


def test_the_second_of_two_is_missing(tmp_path):
    folder = variant(tmp_path / "model", "deepseek_v3_mtp", num_nextn_predict_layers=2)
    done = run(folder, tmp_path / "out", *DYNAMIC, "--mtp", "mix")
    assert_refused(done, tmp_path / "out", 1, "tensor model.layers.3.enorm.weight is missing")


@pytest.mark.parametrize("value", [-1, 1.5, "1", 10**12])
def test_counts_that_are_none(value, tmp_path):
    folder = variant(tmp_path / "model", "deepseek_v3_mtp", num_nextn_predict_layers=value)
    done = run(folder, tmp_path / "out", *DYNAMIC, "--mtp", "mix")
    assert_refused(done, tmp_path / "out", 1, "num_nextn_predict_layers")


def test_unknown_mode(tmp_path):
    done = run(MODEL, tmp_path / "out", *DYNAMIC, "--mtp", "all")
    assert_refused(done, tmp_path / "out", 2, "quant.mtp", "none, float, mix")


# ---- verify

@pytest.mark.parametrize("form", ["copied", "mixed"])
@pytest.mark.parametrize("name", ["eh_proj", "shared_head.head", "embed_tokens", "hnorm",
                                  "self_attn.q_a_layernorm", "mlp.experts.3.up_proj", "mlp.gate"])
def test_verify_names_what_is_missing(form, name, tmp_path):
    """Without the base; of a quantized linear all tensors go."""
    out = tmp_path / "out"
    quantize(MODEL, out, *DYNAMIC, "--mtp", "float" if form == "copied" else "mix")
    path, = out.glob("*.safetensors")
    tensors = {n: t for n, t in tensor_file.read(path).items() if not n.startswith(f"{MTP}{name}.")}
    write_output(out, path, tensors)
    found = verify(out)
    expert = ".experts." in name  # and engines take all to be alike
    assert {rule for rule, _ in found} == ({31, 24} if expert else {31})
    assert (31, f"{MTP}{name}.weight") in found
    assert (14, f"{MTP}{name}.weight") in verify(out, "--base", MODEL)


def write_output(out, path, tensors):
    tensor_file.write(path, tensors)
    types = out / "quant_model_description.json"
    kept = {k: v for k, v in json.loads(types.read_text()).items()
            if k in tensors or "model.layers" not in k}
    types.write_text(json.dumps(kept))
    for index in out.glob("*.index.json"):
        total = sum(t.data.size * (2 if t.tag == "BF16" else t.data.itemsize) for t in tensors.values())
        index.write_text(json.dumps({"metadata": {"total_size": total},
                                     "weight_map": dict.fromkeys(tensors, path.name)}))


def test_verify_of_layers_that_config_does_not_count(copied, tmp_path):
    out = tmp_path / "out"
    quantize(MODEL, out, *DYNAMIC, "--mtp", "float")
    for count, found in ((0, (31, MTP)), (2, (31, "model.layers.3"))):
        (out / "config.json").write_text(json.dumps(
            config_of(out) | {"num_nextn_predict_layers": count}))
        (rule, tensor), = verify(out)
        assert rule == found[0] and tensor.startswith(found[1])
