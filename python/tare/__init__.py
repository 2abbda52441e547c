"""tare: post-training quantization of large language models.

The names of msModelSlim's v0 interface, on libtare:

    import tare
    model = tare.load("SmolLM2-135M-Instruct", max_memory={"cpu": "2GiB"})
    tokenizer = tare.Tokenizer("SmolLM2-135M-Instruct")
    calib = [[tokenizer(text, return_tensors="np").input_ids] for text in texts]
    tare.AntiOutlier(model, calib, tare.AntiOutlierConfig(anti_method="m3")).process()
    calibrator = tare.Calibrator(model, tare.QuantConfig(mm_tensor=False), calib_data=calib)
    calibrator.run()
    calibrator.save("SmolLM2-W8A8", save_type=["safe_tensor"])

A model may also be a transformers PreTrainedModel. docs/python.md tells the rest.
"""
from ._log import logger, set_logger_level
from ._native import decode as _decode, lib as _lib
from .anti_outlier import AntiOutlier, AntiOutlierConfig
from .calibration_data import CalibrationData, get_anti_dataset, get_calib_dataset
from .calibrator import Calibrator
from .dataset_processor import DatasetProcessorBase
from .errors import TareError
from .fa_quantizer import FAQuantizer, TensorType, fa_tensors
from .layer_selector import LayerSelector
from .model import AutoModelForCausalLM, Model, load
from .quant_config import QuantConfig
from .tokenizer import AutoTokenizer, Tokenizer

__version__ = _decode(_lib.tare_version())

__all__ = ["AntiOutlier", "AntiOutlierConfig", "AutoModelForCausalLM", "AutoTokenizer",
           "CalibrationData", "Calibrator", "DatasetProcessorBase", "FAQuantizer", "LayerSelector",
           "Model", "QuantConfig", "TareError", "TensorType", "Tokenizer", "fa_tensors",
           "get_anti_dataset", "get_calib_dataset", "load", "logger", "set_logger_level"]
