"""Calibrator: runs the calibration and writes the quantized checkpoint."""
import os
import re
import tempfile

from . import _memory, _native, _samples, _sources
from ._checks import check_compat, check_elements, check_number, check_type
from ._context import NEW, recipe
from ._log import logger
from ._native import encode, ffi, lib
from .quant_config import QuantConfig

_RESULT = ("linears", "linears_quantized", "samples", "tokens", "saturated_rows", "seconds")
_MIX_TYPES = ("float", "w8a8", "w8a8_dynamic", "w8a16", "w8a8_mix", "w4a8_dynamic")
# Where mix_cfg is left out: msModelSlim's default for W8A8 of these model types.
_DEEPSEEK = ("deepseek_v2", "deepseek_v3")
_DEEPSEEK_MIX = {"*.mlp.*": "w8a8_dynamic", "*": "w8a8"}
_SAVE_TYPES = ("numpy", "safe_tensor", "ascendV1", "ascendv1", "compressed-tensors")


class Calibrator:
    """Quantizes a model: a tare model, or a transformers PreTrainedModel, whose parameters are used
    in place and left as they are (after run() it is not fake-quantized).

    calib_data: a list, each element [input_ids], [input_ids, attention_mask] or a dict with these
    names; torch or numpy, [rows, n] or [n]. disable_level "Ln": about n more linears stay float.
    mix_cfg: {name or pattern: type}, the types of linears that have another than the cfg's: "w8a8",
    "w8a8_dynamic", "w8a16", "w8a8_mix", "float", of routed experts "w4a8_dynamic" (which save_type
    ascendv1 alone can hold); a name wins over patterns, of which the first counts.
    None: {}, but for W8A8 of DeepSeek-V2 and V3 {"*.mlp.*": "w8a8_dynamic", "*": "w8a8"}.
    all_tensors is accepted where it asks for nothing. scratch_dir: where run() puts what save() will
    write, about as large as the output, and hidden states that do not fit in
    memory (None: the system's folder for temporary files). `result`: counts, after run().
    """

    def __init__(self, model, cfg, calib_data=None, disable_level="L0", all_tensors=None,
                 mix_cfg=None, *, compat=None, scratch_dir=None):
        self.model, self.source = model, _sources.source_of(model)
        check_type(cfg, QuantConfig, "cfg")
        check_type(disable_level, str, "disable_level")
        if not re.fullmatch("L(0|[1-9][0-9]*)", disable_level):
            raise ValueError(f"disable_level {disable_level!r} is not a level; possible: L0, L1, "
                             "L2, …")
        if all_tensors is not None:
            check_type(all_tensors, dict, "all_tensors")
        if all_tensors:
            raise NotImplementedError("all_tensors is not available in this version of tare")
        self.mix_cfg = self._mix(self._default_mix(cfg) if mix_cfg is None else mix_cfg, cfg)
        self.compat = cfg.compat if compat is None else check_compat(compat)
        self.calib_data = _samples.samples_of([] if calib_data is None else calib_data, self.compat)
        if not self.calib_data:
            cfg.check_data_free()
        self.cfg, self.disable_level, self.logger = cfg, disable_level, logger
        self.scratch_dir = tempfile.gettempdir() if scratch_dir is None else scratch_dir
        self.settings = self._settings()
        self.result, self._recording = None, None

    def _settings(self):
        settings = self.cfg.recipe_settings() + _memory.settings(self.source.max_memory)
        settings.append(("fallback.disable_level", self.disable_level))
        if self.mix_cfg:
            settings.append(("mix", [f"{name}={kind}" for name, kind in self.mix_cfg.items()]))
        return settings + _sources.run_settings(self.source, self.compat)

    def run(self, int_infer=False):
        """Calibrates and quantizes; what save() will write lies in a file without a name in
        scratch_dir until this object is gone. int_infer has no effect: the result is the same."""
        check_type(int_infer, bool, "int_infer")
        context, result = self.source.context, _native.sized("tare_quantize_result")
        smoothing, scratch = _sources.smoothing_of(self.model), encode(self.scratch_dir)
        with self.source.open() as model:
            options = _samples.QuantizeOptions(model, self.calib_data,
                                               recipe(context, self.settings))
            options.c.scratch_dir = scratch
            options.c.smoothing = smoothing.handle if smoothing else ffi.NULL
            self._recording = context.create("tare_recording", lib.tare_record, context.handle,
                                             options.c, NEW, result, long=True)
        self.result = {name: getattr(result, name) for name in _RESULT}

    def save(self, output_path, safetensors_name=None, json_name=None, save_type=None,
             part_file_size=None):
        """Writes the quantized model into the folder output_path, replacing an earlier output
        there; as often as one likes.

        save_type: a list of "numpy" (also if it is None), "safe_tensor", "ascendv1",
        "compressed-tensors". safetensors_name and json_name are file names for "safe_tensor", which
        has some of its own. part_file_size: GiB of a shard; None: one file (ascendv1 and
        compressed-tensors: 4)."""
        check_type(output_path, (str, os.PathLike), "output_path")
        types = self._save_types(save_type)
        if part_file_size is not None:
            check_number(part_file_size, int, 1, 2**20, "part_file_size")
        for name, value, end in (("safetensors_name", safetensors_name, ".safetensors"),
                                 ("json_name", json_name, ".json")):
            if value is not None:
                check_type(value, str, name)
                if not value.endswith(end) or "/" in value or len(value) == len(end):
                    raise ValueError(f"{name} {value!r} must be a file name that ends in {end}")
        if self._recording is None:
            raise RuntimeError("run() must come before save()")
        options = _native.options("tare_save_options")
        texts = [encode(one) for one in types]
        array = ffi.new("const char *[]", texts)
        names = encode(output_path), encode(safetensors_name), encode(json_name)
        options.out, options.safetensors_name, options.json_name = names
        options.types, options.num_types, options.overwrite = array, len(types), True
        options.part_file_size = -1 if part_file_size is None else part_file_size
        self.source.context.run(lib.tare_save, self._recording, options, ffi.NULL)

    def _default_mix(self, cfg):
        static = cfg.model_quant_type == "W8A8" and not cfg.mm_tensor
        return _DEEPSEEK_MIX if static and self.source.model_type in _DEEPSEEK else {}

    @staticmethod
    def _mix(mix_cfg, cfg):
        check_type(mix_cfg, dict, "mix_cfg")
        for name, kind in mix_cfg.items():
            check_type(name, str, "mix_cfg's name")
            check_type(kind, str, f"mix_cfg[{name!r}]")
            if kind not in _MIX_TYPES:
                raise ValueError(f"mix_cfg[{name!r}] {kind!r} is not known; possible: "
                                 f"{', '.join(_MIX_TYPES)}")
        types = {cfg.model_quant_type.lower(), *mix_cfg.values()}
        if cfg.mm_tensor and types & {"w8a8_dynamic", "w4a8_dynamic"}:
            raise ValueError("mm_tensor=True is one weight scale for a matrix; W8A8_DYNAMIC and "
                             "W4A8_DYNAMIC need one for each row: QuantConfig(mm_tensor=False)")
        return mix_cfg

    @staticmethod
    def _save_types(save_type):
        if not save_type:
            return ["numpy"]
        check_elements(save_type, str, list, "save_type")
        for one in save_type:
            if one not in _SAVE_TYPES:
                raise ValueError(f"save_type {one!r} is not known; possible: "
                                 f"{', '.join(_SAVE_TYPES)}")
        return save_type
