"""Checkpoints in FP8 with a scale for each 128 x 128: the same output as from the BF16 checkpoint
of the weights that numpy decodes, by the definition of the format."""
import json

import numpy as np
import pytest
import tensor_file
import tiny
from conftest import output_files, run_tare

# Nothing is a multiple of 128; every linear has blocks that are cut, most of them four.
SHAPE = {"hidden_size": 144, "intermediate_size": 200, "num_attention_heads": 6,
         "num_key_value_heads": 6, "head_dim": 24}
QUANTIZATION = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}
SCALE = "_scale_inv"


def e4m3(code):
    """1 sign, 4 exponent, 3 mantissa; bias 7, no infinity, NaN where all bits but the sign are 1."""
    sign, exponent, mantissa = -1 if code >> 7 else 1, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa * 2.0**-9 if exponent == 0
                   else (1 + mantissa / 8) * 2.0**(exponent - 7))


TABLE = np.array([e4m3(code) for code in range(256)], dtype=np.float32)


def decode(codes, scales):
    """FP32 product, rounded to BF16; a scale serves 128 rows and 128 columns."""
    grid = np.repeat(np.repeat(scales, 128, axis=0), 128, axis=1)
    product = TABLE[codes] * grid[:codes.shape[0], :codes.shape[1]]
    return tensor_file.round_to(product, "BF16")


def is_linear(name):
    return "_proj." in name


def make_tensors(scale_tag="F32", floats=()):
    """The FP8 tensors and the decoded ones; linears with one of `floats` in their name stay BF16."""
    rng = np.random.default_rng(7)
    config = {**tiny.CONFIG, **SHAPE}
    fp8, decoded = {}, {}
    for name, tensor in tiny.make_tensors(config).items():
        if not is_linear(name) or any(part in name for part in floats):
            fp8[name] = decoded[name] = tensor
            continue
        n, k = tensor[1].shape
        codes = rng.integers(0, 127, (n, k)) + 128 * rng.integers(0, 2, (n, k))
        scales = rng.uniform(0.5, 2, (-(-n // 128), -(-k // 128))) * 0.3 / 448
        scales = tensor_file.round_to(scales, scale_tag)
        fp8[name] = ("F8_E4M3", codes)
        fp8[name + SCALE] = (scale_tag, scales)
        decoded[name] = ("BF16", decode(codes, scales))
    return fp8, decoded


def write(folder, tensors, **changes):
    return tiny.write_checkpoint(folder, tensors, **SHAPE, **changes)


def write_fp8(folder, tensors, **changes):
    return write(folder, tensors, quantization_config={**QUANTIZATION, **changes})


@pytest.fixture(scope="module", params=["F32", "BF16"])
def pair(request, tmp_path_factory):
    """The same model twice."""
    folder = tmp_path_factory.mktemp("pair")
    fp8, decoded = make_tensors(request.param, floats=["1.mlp.up_proj"])
    return write_fp8(folder / "fp8", fp8), write(folder / "bf16", decoded)


def output(model, out, *flags):
    """The files of an output but for its record, which has digests of the inputs; and warnings."""
    done = run_tare("quantize", model, "--out", out, *flags)
    assert done.returncode == 0, done.stderr
    files = output_files(out, record=False)
    return files | {"warnings": [line.replace(str(model), "") for line in done.stderr.splitlines()
                                 if line.startswith("warning")]}


CASES = {
    "w8a8": [],
    "one scale": ["--mm-tensor"],
    "floats": ["--disable-names", "*.down_proj,*.q_proj"],
    "levels": ["--disable-level", "L2", "--act-method", "3"],
    "smoothed": ["--anti-method", "m4", "--disable-names", "*.down_proj"],
    "searched": ["--anti-method", "m2"],
    "compat": ["--compat", "msmodelslim", "--anti-method", "m1", "--disable-names", "*.o_proj"],
    "compat in FP16": ["--compat", "msmodelslim", "--dtype", "float16", "--disable-names",
                       "*.o_proj"],
    "dynamic": ["--scheme", "w8a8_dynamic"],
    "w8a16": ["--a-bit", "16"],
    "w8a16 with offsets": ["--a-bit", "16", "--no-w-sym", "--mm-tensor"],
    "w8a16, floats": ["--a-bit", "16", "--disable-names", "*.down_proj"],
    "w8a16, compat": ["--a-bit", "16", "--compat", "msmodelslim", "--dtype", "float16",
                      "--disable-names", "*.down_proj"],
}


@pytest.mark.parametrize("flags", CASES.values(), ids=CASES.keys())
def test_output_is_that_of_the_decoded_weights(flags, pair, calib, tmp_path):
    if "16" not in flags and "w8a8_dynamic" not in flags:
        flags = [*flags, "--calib", calib]
    found = [output(model, tmp_path / model.name, *flags) for model in pair]
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        assert found[0][name] == found[1][name], name
    assert "quantization_config" not in json.loads(found[0]["config.json"])


def test_floats_are_written_in_bf16(pair, calib, tmp_path):
    name = "model.layers.1.self_attn.v_proj.weight"
    output(pair[0], tmp_path / "out", "--calib", calib, "--disable-names", name[:-7])
    tensors = tensor_file.read_folder(tmp_path / "out")
    assert tensors[name].tag == "BF16"
    assert np.array_equal(tensors[name].data, tensor_file.read_folder(pair[1])[name].data)
    assert not [name for name in tensors if name.endswith(SCALE)]


def test_verify_against_the_fp8_base(pair, calib, tmp_path):
    output(pair[0], tmp_path / "out", "--calib", calib, "--disable-names", "*.down_proj")
    for base in pair:
        done = run_tare("verify", tmp_path / "out", "--base", base)
        assert done.returncode == 0 and "no rule is broken, 0 warnings" in done.stdout, done.stdout
        assert "max 0.5" in done.stderr


@pytest.mark.parametrize("flags", [[], ["--a-bit", "16"]], ids=" ".join)
def test_a_module_that_the_model_type_lacks(flags, calib, tmp_path):
    """It is copied, as the numbers that it stands for."""
    fp8, decoded = make_tensors()
    name, codes, scales = "vision.proj.weight", np.arange(150 * 130).reshape(150, 130) % 127, \
        np.array([[0.5, 2], [1, 0.25]], dtype=np.float32)
    fp8 |= {name: ("F8_E4M3", codes), name + SCALE: ("F32", scales)}
    decoded[name] = ("BF16", decode(codes, scales))
    found = [output(model, tmp_path / f"{model.name} out", "--calib", calib, *flags)
             for model in (write_fp8(tmp_path / "fp8", fp8), write(tmp_path / "bf16", decoded))]
    assert found[0] == found[1]
    done = run_tare("verify", tmp_path / "fp8 out", "--base", tmp_path / "fp8")
    assert done.returncode == 0 and "no rule is broken" in done.stdout, done.stdout


def generate(model):
    """Sampled tokens, which differ sooner than the likeliest."""
    done = run_tare("generate", model, "The ferry", "--max-new-tokens", 24, "--temperature", 1,
                    "--seed", 5)
    assert done.returncode == 0 and len(done.stdout) > 12, done.stderr
    return done.stdout


def test_generate(pair):
    assert generate(pair[0]) == generate(pair[1])


def test_a_quantized_head(calib, tmp_path):
    """An untied head in FP8, too."""
    fp8, decoded = make_tensors()
    rng = np.random.default_rng(3)
    codes, scales = rng.integers(0, 127, (260, 144)), np.full((3, 2), 0.3 / 448, np.float32)
    fp8 |= {"lm_head.weight": ("F8_E4M3", codes), "lm_head.weight" + SCALE: ("F32", scales)}
    decoded["lm_head.weight"] = ("BF16", decode(codes, scales))
    untied = {"tie_word_embeddings": False}
    models = (write(tmp_path / "fp8", fp8, quantization_config=QUANTIZATION, **untied),
              write(tmp_path / "bf16", decoded, **untied))
    for number, flags in enumerate([(), ("--no-disable-last-linear",)]):
        found = [output(m, tmp_path / f"{m.name}-{number}", "--calib", calib, *flags)
                 for m in models]
        assert found[0] == found[1]
    assert generate(models[0]) == generate(models[1])


# ---- what is not that form

NAME = "model.layers.1.mlp.gate_proj.weight"


def refused(model, out, *words, code=1):
    done = run_tare("quantize", model, "--out", out, "--a-bit", 16)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_missing_scale(tmp_path):
    fp8, _ = make_tensors()
    del fp8[NAME + SCALE]
    refused(write_fp8(tmp_path / "model", fp8), tmp_path / "out",
            f"tensor {NAME}{SCALE} is missing from the checkpoint")


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (4,), (3, 2)])
def test_a_scale_of_another_shape(shape, tmp_path):
    fp8, _ = make_tensors()
    fp8[NAME + SCALE] = ("F32", np.ones(shape))
    refused(write_fp8(tmp_path / "model", fp8), tmp_path / "out",
            f"{NAME}{SCALE} has shape [{','.join(map(str, shape))}], config.json makes it [2,2]")


def test_a_scale_that_is_no_float(tmp_path):
    fp8, _ = make_tensors()
    fp8[NAME + SCALE] = ("U8", np.ones((2, 2)))
    refused(write_fp8(tmp_path / "model", fp8), tmp_path / "out", NAME + SCALE, "U8")


def test_a_weight_of_another_shape(tmp_path):
    fp8, _ = make_tensors()
    fp8[NAME] = ("F8_E4M3", np.zeros((200, 128)))
    refused(write_fp8(tmp_path / "model", fp8), tmp_path / "out",
            f"{NAME} has shape [200,128], config.json makes it [200,144]")


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan(code, calib, tmp_path):
    fp8, _ = make_tensors()
    fp8[NAME][1][170, 140] = code
    model = write_fp8(tmp_path / "model", fp8)
    refused(model, tmp_path / "out", "model.layers.1.mlp.gate_proj",
            "row 170, column 140 is NaN")
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--calib", calib)
    assert done.returncode == 1 and f"{NAME}: element {170 * 144 + 140} is NaN" in done.stderr


@pytest.mark.parametrize("scale, word", [(np.nan, "is NaN or infinite"),
                                         (np.inf, "is NaN or infinite"),
                                         (2.0**120, "infinite")])
def test_a_scale_that_is_not_finite(scale, word, tmp_path):
    fp8, _ = make_tensors()
    fp8[NAME + SCALE][1][1, 1] = scale
    refused(write_fp8(tmp_path / "model", fp8), tmp_path / "out", NAME + SCALE, word)


@pytest.mark.parametrize("change", [
    {"weight_block_size": [64, 128]}, {"weight_block_size": None}, {"weight_block_size": [128]},
    {"weight_block_size": [128.0, 128]}, {"fmt": "e5m2"}, {"activation_scheme": "static"},
    {"quant_method": "compressed-tensors"}], ids=str)
def test_other_forms_are_refused(change, tmp_path):
    fp8, _ = make_tensors()
    method = change.get("quant_method", "fp8")
    refused(write_fp8(tmp_path / "model", fp8, **change), tmp_path / "out",
            f"already quantized by {method} (quantization_config)", "give the float original")


def test_fp8_without_a_word_in_the_config(tmp_path):
    fp8, _ = make_tensors()
    refused(write(tmp_path / "model", fp8), tmp_path / "out", "already quantized by fp8",
            "dtype F8_E4M3 is not supported")


def test_a_scale_beside_floats(tmp_path):
    """What it scales is not known."""
    fp8, decoded = make_tensors()
    fp8[NAME] = decoded[NAME]
    refused(write_fp8(tmp_path / "model", fp8), tmp_path / "out", "already quantized by fp8",
            NAME + SCALE)


def test_a_left_over_config_beside_floats(tmp_path):
    _, decoded = make_tensors()
    model = write_fp8(tmp_path / "model", decoded)
    done = run_tare("quantize", model, "--out", tmp_path / "out", "--a-bit", 16)
    assert done.returncode == 0
    assert "quantization_config (fp8) is left out: the weights are float" in done.stderr
