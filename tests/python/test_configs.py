"""QuantConfig, AntiOutlierConfig, AntiOutlier, Calibrator and LayerSelector: parameters, defaults,
ranges and error types, as the specification's tables state them (spec w8a8.md 1, anti_outlier.md
1.9, fa3.md 1.1)."""
import inspect

import numpy as np
import pytest
import tiny

import tare

IDS = [[np.array([[1, 2, 3, 4]])], [np.array([[5, 6, 7]])]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tare.load(tiny.write_checkpoint(tmp_path_factory.mktemp("model")))


def test_quant_config_defaults():
    """Names, order and defaults of the reference's constructor."""
    expected = dict(
        w_bit=8, a_bit=8, act_method=1, w_method="MinMax", disable_names=None, pr=1.0,
        mm_tensor=True, dev_type="cpu", dev_id=None, fraction=0.01, nonuniform=False,
        co_sparse=False, w_sym=True, is_lowbit=False, do_smooth=False, use_sigma=False,
        sigma_factor=3.0, disable_last_linear=True, use_kvcache_quant=False, open_outlier=True,
        is_dynamic=False, group_size=64, percdamp=0.01, pdmix=False)
    parameters = inspect.signature(tare.QuantConfig).parameters
    positional = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional.items()) == list(expected.items())
    assert tare.QuantConfig().disable_names == []


@pytest.mark.parametrize("arguments, error, word", [
    (dict(w_bit="8"), TypeError, "w_bit must be int, not str"),
    (dict(w_bit=True), TypeError, "w_bit"), (dict(w_bit=8.0), TypeError, "w_bit"),
    (dict(w_bit=5), ValueError, "w_bit 5"), (dict(a_bit=None), TypeError, "a_bit"),
    (dict(a_bit=7), ValueError, "a_bit 7"),
    (dict(act_method=0), ValueError, "act_method = 0 is smaller"),
    (dict(act_method=5), ValueError, "act_method"), (dict(act_method=1.0), TypeError, "act_method"),
    (dict(act_method=4, compat="msmodelslim"), ValueError, "act_method"),
    (dict(act_method=True), TypeError, "act_method"),
    (dict(act_method=3, is_lowbit=True, w_bit=8), ValueError, "act_method"),
    (dict(w_method="AWQ"), ValueError, "w_method"), (dict(w_method=1), TypeError, "w_method"),
    (dict(w_method="GPTQ"), ValueError, "w_method"), (dict(w_method="HQQ"), ValueError, "w_method"),
    (dict(disable_names="lm_head"), TypeError, "disable_names"),
    (dict(disable_names=("lm_head",)), TypeError, "disable_names"),
    (dict(disable_names=["a", 1]), ValueError, "disable_names"),
    (dict(pr=1.5), ValueError, "pr"), (dict(pr=-0.1), ValueError, "pr"),
    (dict(pr="1"), TypeError, "pr"), (dict(pr=float("nan")), ValueError, "pr"),
    (dict(mm_tensor=1), TypeError, "mm_tensor"), (dict(w_sym="yes"), TypeError, "w_sym"),
    (dict(w_sym=False), TypeError, "w_sym"),
    (dict(disable_last_linear=None), TypeError, "disable_last_linear"),
    (dict(is_dynamic=True, a_bit=16), ValueError, "a_bit"),
    (dict(is_dynamic=True, w_bit=16, a_bit=8), ValueError, "w_bit"),
    (dict(pdmix=True, a_bit=16), ValueError, "pdmix"), (dict(pdmix=0), TypeError, "pdmix"),
    (dict(a_sym=1), TypeError, "a_sym"), (dict(mtp="all"), ValueError, "mtp"),
    (dict(mtp=True), ValueError, "mtp"),
    (dict(is_lowbit=True, open_outlier=False, a_bit=16, group_size=48), ValueError, "group_size"),
    (dict(group_size=64.0), TypeError, "group_size"),
    (dict(percdamp=2.0), ValueError, "percdamp"), (dict(fraction=0.2), ValueError, "fraction"),
    (dict(fraction="a"), TypeError, "fraction"), (dict(sigma_factor=5.0), ValueError, "sigma"),
    (dict(use_sigma=1), TypeError, "use_sigma"), (dict(co_sparse=1), TypeError, "co_sparse"),
    (dict(dev_type="tpu"), ValueError, "evice"), (dict(dev_id="0"), TypeError, "dev_id"),
    (dict(w_bit=4), TypeError, "W4A8_DYNAMIC"), (dict(w_bit=4, a_bit=4), ValueError, "W4A4"),
    (dict(seed=-1), ValueError, "seed"), (dict(compat="v1"), ValueError, "compat"),
])
def test_quant_config_refuses(arguments, error, word):
    with pytest.raises(error, match=word):
        tare.QuantConfig(**arguments)


@pytest.mark.parametrize("arguments, scheme", [
    (dict(), "W8A8"), (dict(a_bit=16), "W8A16"), (dict(w_bit=4, a_bit=16), "W4A16"),
    (dict(w_bit=4, a_bit=16, w_method="NF"), "NF4"), (dict(w_bit=16, a_bit=16), "FLOAT"),
    (dict(is_dynamic=True), "W8A8_DYNAMIC"), (dict(co_sparse=True), "W8A8S"),
    (dict(w_bit=4, is_lowbit=True), "W8A8S"), (dict(pdmix=True), "W8A8_MIX"),
    (dict(w_bit=4, is_dynamic=True, is_lowbit=True, open_outlier=False), "W4A8_DYNAMIC"),
    (dict(w_bit=4, a_bit=4, is_dynamic=True), "W4A4_FLATQUANT_DYNAMIC"),
])
def test_scheme_names(arguments, scheme):
    assert tare.QuantConfig(**arguments).model_quant_type == scheme


def test_sparse_replaces_widths(caplog):
    config = tare.QuantConfig(co_sparse=True, w_bit=8, a_bit=16, pr=7.0)
    assert (config.w_bit, config.a_bit, config.pr) == (4, 8, 1.0)
    assert caplog.text.count("is replaced") == 2


def test_chained_calls():
    config = tare.QuantConfig(a_bit=16).weight_quant(w_sym=False, mm_tensor=False)
    assert (config.w_sym, config.mm_tensor, config.model_quant_type) == (False, False, "W8A16")
    config = tare.QuantConfig().weight_activation_quant(act_method=3).fa_quant(fa_amp=2)
    assert (config.act_method, config.use_fa_quant, config.fa_amp) == (3, True, 2)
    settings = dict(tare.QuantConfig(act_method=4, final_scales=False).fa_quant(v_method="mse")
                    .recipe_settings())
    assert (settings["quant.act_method"], settings["quant.final_scales"]) == (4, False)
    assert settings["fa_quant.v_method"] == "mse"
    assert "quant.final_scales" not in dict(tare.QuantConfig().recipe_settings())
    with pytest.raises(ValueError, match="v_method"):
        tare.QuantConfig().fa_quant(v_method="best")
    with pytest.raises(TypeError, match="final_scales"):
        tare.QuantConfig(final_scales=1)
    assert dict(tare.QuantConfig(weight_method="gptq").recipe_settings())["quant.weight_method"] == "gptq"
    assert "quant.weight_method" not in dict(tare.QuantConfig().recipe_settings())
    for bad in ({"weight_method": "GPTQ"}, {"weight_method": "gptq", "compat": "msmodelslim"}):
        with pytest.raises(ValueError, match="weight_method .*possible: ssz, minmax"):
            tare.QuantConfig(**bad)
    assert tare.QuantConfig().kv_quant(kv_sym=False).use_kvcache_quant


@pytest.mark.parametrize("call, error, text", [
    (lambda c: c.fa_quant(fa_amp=1.0), TypeError, "fa_amp must be int, not float."),
    (lambda c: c.fa_quant(fa_amp=True), TypeError, "fa_amp must be int, not bool."),
    (lambda c: c.fa_quant(fa_amp=-1), ValueError, "fa_amp = -1 is smaller than 0."),
    (lambda c: c.kv_quant().fa_quant(), ValueError,
     "KV-cache and FA cannot be quantized at the same time!"),
    (lambda c: tare.QuantConfig(4, 16, w_method="NF").fa_quant(), ValueError,
     "NF4 and FA cannot be quantized at the same time!"),
    (lambda c: c.kv_quant(kv_sym=1), TypeError, "kv_sym must be bool, not int."),
    (lambda c: c.simulate_tp(3), ValueError, "tp_size should be in"),
    (lambda c: c.timestep_quant("2"), TypeError, "max_dynamic_step must be int, not str."),
    (lambda c: c.weight_quant(block_size=100), ValueError, "block_size must be among"),
])
def test_chained_calls_refuse(call, error, text):
    config = tare.QuantConfig()
    before = dict(config.__dict__)
    with pytest.raises(error) as caught:
        call(config)
    assert str(caught.value).startswith(text)
    if not config.use_kvcache_quant:
        assert config.__dict__ == before


def test_npu_is_the_cpu(caplog):
    assert tare.QuantConfig(dev_type="npu", dev_id=3).device == "cpu"
    assert "'npu': tare computes on the CPU" in caplog.text


@pytest.mark.parametrize("arguments, error, word", [
    (dict(anti_method=1), TypeError, "anti_method"),
    (dict(anti_method="m7"), ValueError, "m7.*m1, m2, m3, m4, m5, m6"),
    (dict(w_bit=True), TypeError, "w_bit"), (dict(w_bit=6), ValueError, "w_bit"),
    (dict(a_bit=16), ValueError, "a_bit"), (dict(a_bit=4, anti_method="m3"), ValueError, "a_bit"),
    (dict(w_sym=False), ValueError, "w_sym"), (dict(w_sym=1), TypeError, "w_sym"),
    (dict(dev_type="tpu"), ValueError, "evice"),
    (dict(disable_anti_names="x"), TypeError, "disable_anti_names"),
    (dict(disable_anti_names=[1]), ValueError, "disable_anti_names"),
    (dict(flex_config={"gamma": 1}), ValueError, "gamma"),
    (dict(flex_config=[1]), TypeError, "flex_config"),
])
def test_anti_outlier_config_refuses(arguments, error, word):
    with pytest.raises(error, match=word):
        tare.AntiOutlierConfig(**arguments)


def test_anti_outlier_config_leaves_the_callers_dict():
    flex = {"alpha": 0.5}
    config = tare.AntiOutlierConfig(anti_method="m6", flex_config=flex)
    assert flex == {"alpha": 0.5} and config.flex_config == {"alpha": 0.5, "beta": None}
    tare.AntiOutlierConfig(anti_method="m3", a_bit=16, w_bit=4, w_sym=False)


@pytest.mark.parametrize("arguments, error, word", [
    (dict(model=1), TypeError, "model must be"), (dict(calib_data=None), TypeError, "calib_data"),
    (dict(calib_data=[]), ValueError, "calib_data"),
    (dict(calib_data=[[]]), ValueError, r"calib_data\[0\]"), (dict(cfg=None), TypeError, "cfg"),
    (dict(norm_class_name=1), TypeError, "norm_class_name"),
])
def test_anti_outlier_refuses(model, arguments, error, word):
    given = dict(model=model, calib_data=IDS, cfg=tare.AntiOutlierConfig(anti_method="m3"))
    with pytest.raises(error, match=word):
        tare.AntiOutlier(**{**given, **arguments})


def test_anti_outlier_names_must_exist(model):
    config = tare.AntiOutlierConfig(anti_method="m1", disable_anti_names=["model.layers.0.nope"])
    with pytest.raises(ValueError, match="nope"):
        tare.AntiOutlier(model, IDS, config).process()


@pytest.mark.parametrize("arguments, error, word", [
    (dict(model="folder"), TypeError, "model must be"), (dict(cfg={}), TypeError, "cfg"),
    (dict(calib_data="x"), TypeError, "calib_data"), (dict(calib_data=[]), ValueError, "W8A8"),
    (dict(calib_data=[["text"]]), TypeError, r"calib_data\[0\]"),
    (dict(calib_data=[[np.array([[1.5]])]]), TypeError, r"calib_data\[0\]"),
    (dict(calib_data=[[np.array([[-1]])]]), ValueError, "out of range"),
    (dict(calib_data=[{"ids": np.array([1])}]), ValueError, "input_ids"),
    (dict(calib_data=[[np.array([1, 2]), np.array([1])]]), ValueError, "attention_mask"),
    (dict(disable_level=5), TypeError, "disable_level"),
    (dict(disable_level="L05"), ValueError, "disable_level"),
    (dict(disable_level="5"), ValueError, "disable_level"),
    (dict(all_tensors=[1]), TypeError, "all_tensors"), (dict(compat="x"), ValueError, "compat"),
    (dict(cfg=tare.QuantConfig(is_dynamic=True)), ValueError, "mm_tensor"),
    (dict(mix_cfg={"*": "w8a8_dynamic"}), ValueError, "mm_tensor"),
    (dict(mix_cfg=[("*", "w8a8")]), TypeError, "mix_cfg"),
    (dict(mix_cfg={1: "w8a8"}), TypeError, "mix_cfg"), (dict(mix_cfg={"*": 8}), TypeError, "mix_cfg"),
    (dict(mix_cfg={"*": "w4a8_dynamic"}), ValueError, "mm_tensor"),
    (dict(mix_cfg={"*": "w4a4"}), ValueError, "possible: .*, w4a8_dynamic"),
    (dict(mix_cfg={"*": "W8A8"}), ValueError, "possible: float, w8a8, w8a8_dynamic, w8a16"),
])
def test_calibrator_refuses(model, arguments, error, word):
    given = dict(model=model, cfg=tare.QuantConfig(), calib_data=IDS)
    with pytest.raises(error, match=word):
        tare.Calibrator(**{**given, **arguments})


def test_unknown_names_and_ids_are_told_before_anything_runs(model):
    with pytest.raises(ValueError, match="nope"):
        tare.Calibrator(model, tare.QuantConfig(disable_names=["nope"]), calib_data=IDS).run()
    with pytest.raises(ValueError, match="nope"):
        tare.Calibrator(model, tare.QuantConfig(), IDS, mix_cfg={"*nope": "float"}).run()
    with pytest.raises(ValueError, match="vocabulary"):
        tare.Calibrator(model, tare.QuantConfig(), calib_data=[[np.array([[99999]])]]).run()


@pytest.mark.parametrize("arguments, error, word", [
    (dict(save_type="numpy"), TypeError, "save_type"),
    (dict(save_type=["gguf"]), ValueError, "gguf"), (dict(save_type=[1]), ValueError, "save_type"),
    (dict(safetensors_name="x.bin"), ValueError, "safetensors_name"),
    (dict(json_name="a/b.json"), ValueError, "json_name"),
    (dict(json_name=3), TypeError, "json_name"),
    (dict(part_file_size=0), ValueError, "part_file_size"),
    (dict(part_file_size=1.0), TypeError, "part_file_size"),
    (dict(output_path=5), TypeError, "output"),
    (dict(), RuntimeError, r"run\(\)"),
])
def test_save_refuses(model, tmp_path, arguments, error, word):
    calibrator = tare.Calibrator(model, tare.QuantConfig(), calib_data=IDS)
    with pytest.raises(error, match=word):
        calibrator.save(**{"output_path": str(tmp_path / "out"), **arguments})
    assert not (tmp_path / "out").exists()


def test_layer_selector_refuses(model):
    with pytest.raises(TypeError, match="model must be"):
        tare.LayerSelector(None)
    with pytest.raises(TypeError, match="layer_names"):
        tare.LayerSelector(model, layer_names="lm_head")
    with pytest.raises(ValueError, match="range_method"):
        tare.LayerSelector(model, range_method="max")
    with pytest.raises(ValueError, match="nope"):
        tare.LayerSelector(model, ["nope"]).run(IDS)
    with pytest.raises(RuntimeError, match=r"run\(\)"):
        tare.LayerSelector(model).select_layers_by_threshold(1.0)
    selector = tare.LayerSelector(model, range_method="std")
    selector.run(IDS)
    with pytest.raises(ValueError, match="disable_level"):
        selector.select_layers_by_disable_level(-1)
    with pytest.raises(TypeError, match="threshold"):
        selector.select_layers_by_threshold("1")


@pytest.mark.parametrize("size, error", [
    ({"cpu": "25gb"}, ValueError), ({"cpu": "25"}, ValueError), ({"cpu": True}, TypeError),
    ({"cpu": 0}, ValueError), ({"cpu": 1.5}, TypeError), ({"0": "1GiB"}, ValueError),
    ({-1: "1GiB"}, ValueError), ({"gpu": "1GiB"}, ValueError), ("8GiB", TypeError),
])
def test_max_memory_refuses(tmp_path, size, error):
    with pytest.raises(error):
        tare.load(tiny.write_checkpoint(tmp_path / "m"), max_memory=size)


def test_max_memory_is_the_limit(tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "m")
    assert tare.load(folder, max_memory={0: "1GiB", "cpu": "1.5 MiB"}).memory_limit == 3 * 2**19
    assert tare.load(folder, max_memory={"cpu": 12345678901}).memory_limit == 12345678901
    calibrator = tare.Calibrator(tare.load(folder, max_memory={"cpu": "20MiB"}), tare.QuantConfig(),
                                 calib_data=IDS)
    with pytest.raises(tare.TareError, match="smallest budget that works"):
        calibrator.run()
