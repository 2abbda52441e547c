"""QuantConfig: what is quantized and how, with msModelSlim's parameters, defaults and checks."""
from ._checks import check_compat, check_elements, check_mtp, check_number, check_type
from ._devices import host_device
from ._log import logger

_W_METHODS = ("MinMax", "GPTQ", "HQQ", "NF")
_GROUP_SIZES = (32, 64, 128, 256)
_WEIGHT_METHODS = (None, "ssz", "minmax", "gptq")
_BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
_TP_SIZES = (2, 4, 8, 16)
_PAIRS = ("8 with 8 (W8A8), 8 with 16 (W8A16), 4 with 16 (W4A16, NF4), 16 with 16 (FLOAT), "
          "4 with 8 (W8A8S, W4A8_DYNAMIC), 4 with 4 (W4A4_FLATQUANT_DYNAMIC)")
DATA_FREE = ("W8A16", "W4A16", "W8A8_DYNAMIC", "W4A8_DYNAMIC", "NF4")
_AVAILABLE = ("W8A8", "W8A8_DYNAMIC", "W8A16", "W8A8_MIX")
_DATA_FREE_METHODS = ("MinMax", "HQQ", "NF")


class QuantType(str):
    """A scheme's name; `.value` as msModelSlim's enumeration has it."""

    @property
    def value(self):
        return str(self)


class QuantConfig:
    """Settings of a Calibrator. The chained calls set what belongs to one scheme and check all
    again: QuantConfig(a_bit=16).weight_quant(w_sym=False), QuantConfig().fa_quant(fa_amp=2), …

    `act_method` 4 (ranges of the smallest squared error), `final_scales` (inputs are observed over all
    samples before these go on; None: with act_method 4 and gptq), `weight_method` ("gptq": weights are
    rounded by what their linears read; "ssz", "minmax": scales of 4-bit ones), `v_method` of fa_quant
    ("max", "mse") and its `balance` (queries and keys get equal magnitudes),
    `seed` (the generator for pr below 1), `a_sym` (static activations with offset 0), `mtp` (what becomes of MTP layers: "none", "float", "mix") and `compat` ("msmodelslim": the reference's
    arithmetic and file names) are tare's own. All parameters are attributes; `model_quant_type` is the scheme.
    """

    def __init__(self, w_bit=8, a_bit=8, act_method=1, w_method="MinMax", disable_names=None,
                 pr=1.0, mm_tensor=True, dev_type="cpu", dev_id=None, fraction=0.01,
                 nonuniform=False, co_sparse=False, w_sym=True, is_lowbit=False, do_smooth=False,
                 use_sigma=False, sigma_factor=3.0, disable_last_linear=True, use_kvcache_quant=False,
                 open_outlier=True, is_dynamic=False, group_size=64, percdamp=0.01, pdmix=False, *,
                 seed=0, a_sym=False, mtp=None, final_scales=None, weight_method=None,
                 compat=None):
        self.w_bit, self.a_bit, self.act_method, self.w_method = w_bit, a_bit, act_method, w_method
        self.disable_names = [] if disable_names is None else disable_names
        self.pr, self.mm_tensor, self.dev_type, self.dev_id = pr, mm_tensor, dev_type, dev_id
        self.fraction, self.nonuniform, self.co_sparse = fraction, nonuniform, co_sparse
        self.w_sym, self.is_lowbit, self.do_smooth = w_sym, is_lowbit, do_smooth
        self.use_sigma, self.sigma_factor = use_sigma, sigma_factor
        self.disable_last_linear, self.use_kvcache_quant = disable_last_linear, use_kvcache_quant
        self.open_outlier, self.is_dynamic, self.group_size = open_outlier, is_dynamic, group_size
        self.percdamp, self.pdmix, self.seed, self.compat = percdamp, pdmix, seed, compat
        self.a_sym, self.mtp, self.final_scales = a_sym, mtp, final_scales
        self.weight_method = weight_method
        self.kv_sym, self.use_fa_quant, self.fa_amp, self.v_method = True, False, 0, "max"
        self.fa_balance = False
        self.block_size = self.tp_size = self.max_dynamic_step = None
        self.device, self.dev_id = host_device(dev_type, dev_id)
        self._check()

    # ---- chained calls

    def weight_quant(self, w_method="MinMax", mm_tensor=True, w_sym=True, group_size=64,
                     block_size=64):
        check_type(block_size, int, "block_size")
        if block_size not in _BLOCK_SIZES:
            raise ValueError(f"block_size must be among choice {list(_BLOCK_SIZES)}, not "
                             f"{block_size}.")
        return self._change(w_method=w_method, mm_tensor=mm_tensor, w_sym=w_sym,
                            group_size=group_size, block_size=block_size)

    def weight_activation_quant(self, act_method=1, pr=1.0, is_dynamic=False):
        return self._change(act_method=act_method, pr=pr, is_dynamic=is_dynamic)

    def sparse_quant(self, act_method=1, fraction=0.01, nonuniform=False, is_lowbit=False,
                     do_smooth=False, use_sigma=False, sigma_factor=3.0):
        return self._change(act_method=act_method, fraction=fraction, nonuniform=nonuniform,
                            is_lowbit=is_lowbit, do_smooth=do_smooth, use_sigma=use_sigma,
                            sigma_factor=sigma_factor, co_sparse=True)

    def kv_quant(self, kv_sym=True):
        check_type(kv_sym, bool, "kv_sym")
        return self._change(use_kvcache_quant=True, kv_sym=kv_sym)

    def fa_quant(self, fa_amp=0, *, v_method="max", balance=False):
        check_number(fa_amp, int, 0, None, "fa_amp")
        if v_method not in ("max", "mse"):
            raise ValueError(f"v_method {v_method!r} is not known; possible: max, mse")
        check_type(balance, bool, "balance")
        return self._change(use_fa_quant=True, fa_amp=fa_amp, v_method=v_method, fa_balance=balance)

    def simulate_tp(self, tp_size, enable_communication_quant=True, enable_per_device_quant=True):
        check_type(tp_size, int, "tp_size")
        if tp_size not in _TP_SIZES:
            raise ValueError(f"tp_size should be in {list(_TP_SIZES)}, but got {tp_size}.")
        check_type(enable_communication_quant, bool, "enable_communication_quant")
        check_type(enable_per_device_quant, bool, "enable_per_device_quant")
        return self._change(tp_size=tp_size, enable_communication_quant=enable_communication_quant,
                            enable_per_device_quant=enable_per_device_quant)

    def timestep_quant(self, max_dynamic_step=None):
        check_number(max_dynamic_step, int, 0, None, "max_dynamic_step")
        return self._change(max_dynamic_step=max_dynamic_step)

    def _change(self, **values):
        before = dict(self.__dict__)
        self.__dict__.update(values)
        try:
            self._check()
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self

    # ---- checks, in the order of the reference, so that the same fault of several is told

    def _check(self):
        check_type(self.w_bit, int, "w_bit")
        check_type(self.a_bit, int, "a_bit")
        check_number(self.act_method, int, 1, 4, "act_method")
        check_type(self.w_method, str, "w_method")
        if self.w_method not in _W_METHODS:
            raise ValueError(f"w_method {self.w_method!r} is not known; possible: "
                             f"{', '.join(_W_METHODS)}")
        check_elements(self.disable_names, str, list, "disable_names")
        for name in ("mm_tensor", "w_sym", "disable_last_linear", "co_sparse", "is_lowbit",
                     "open_outlier", "use_kvcache_quant", "nonuniform", "do_smooth", "use_sigma",
                     "is_dynamic", "pdmix", "a_sym"):
            check_type(getattr(self, name), bool, name)
        if self.a_bit == 8 and not self.w_sym:
            raise TypeError("w_sym should be True when a_bit = 8, please check it")
        check_type(self.group_size, int, "group_size")
        check_number(self.percdamp, (int, float), 0, 1, "percdamp")
        check_number(self.fraction, (int, float), 0.01, 0.1, "fraction")
        check_number(self.sigma_factor, (int, float), 3.0, 4.0, "sigma_factor")
        check_number(self.seed, int, 0, 2**64 - 1, "seed")
        self.compat = check_compat(self.compat)
        if self.compat and self.act_method == 4:
            raise ValueError("act_method can not be 4 with compat; possible: 1, 2, 3")
        if self.final_scales is not None:
            check_type(self.final_scales, bool, "final_scales")
        if self.weight_method not in _WEIGHT_METHODS:
            raise ValueError(f"weight_method {self.weight_method!r} is not known; possible: "
                             f"{', '.join(_WEIGHT_METHODS[1:])}")
        if self.compat and self.weight_method == "gptq":
            raise ValueError("weight_method can not be gptq with compat; possible: ssz, minmax")
        check_mtp(self.mtp)
        if self.use_kvcache_quant and self.use_fa_quant:
            raise ValueError("KV-cache and FA cannot be quantized at the same time!")
        self._check_sparse()
        self._check_dynamic()
        self._set_group_size()
        self._check_nf()
        self._check_narrow()
        self.model_quant_type = QuantType(self._scheme())
        if self.w_method != "MinMax" and self.model_quant_type in ("W8A8", "W8A8S"):
            raise ValueError(f"w_method {self.w_method} is not possible with "
                             f"{self.model_quant_type}; possible: MinMax")
        if self.pdmix and self.model_quant_type not in ("W8A8", "W8A8_MIX"):
            raise ValueError(f"pdmix needs W8A8, not {self.model_quant_type}")
        if self.pdmix:
            self.model_quant_type = QuantType("W8A8_MIX")

    def _check_sparse(self):
        if self.is_lowbit and self.act_method == 3:
            raise ValueError("act_method can not be 3 when running lowbit.")
        if self.is_lowbit:
            self.co_sparse = False
        if not self.co_sparse:
            check_number(self.pr, (int, float), 0, 1, "pr")
            return
        self.pr = 1.0
        for name, bits in (("w_bit", 4), ("a_bit", 8)):
            if getattr(self, name) != bits:
                logger.warning("Sparse quantization works with %s %d: your %s is replaced.", name,
                               bits, name)
                setattr(self, name, bits)

    def _check_dynamic(self):
        if self.is_dynamic and self.w_bit not in (4, 8):
            raise ValueError("w_bit must be 4 or 8 when running dynamic quantization.")
        if self.is_dynamic and self.a_bit == 16:
            raise ValueError("a_bit must be 4 or 8 when running dynamic quantization.")

    def _per_group(self):
        return (self.is_lowbit and not self.open_outlier
                and (self.a_bit == 16 or (self.w_bit, self.a_bit) == (4, 8)))

    def _set_group_size(self):
        if not self._per_group():
            self.group_size = -1
            if self.is_lowbit and self.w_method in ("HQQ", "GPTQ"):
                raise ValueError(f"w_method {self.w_method} with is_lowbit needs per-group "
                                 "quantization (open_outlier=False)")
            return
        if self.group_size not in _GROUP_SIZES:
            raise ValueError(f"group_size must be among choice {list(_GROUP_SIZES)}, not "
                             f"{self.group_size}.")
        self.mm_tensor = self.do_smooth = False

    def _check_nf(self):
        if self.w_method != "NF":
            return
        if (self.w_bit, self.a_bit) != (4, 16) or self.is_lowbit:
            raise ValueError("w_method NF needs w_bit 4, a_bit 16 and is_lowbit False")
        for on, what in ((self.use_fa_quant, "FA"), (self.use_kvcache_quant, "kvcache"),
                         (self.tp_size is not None, "SimulateTP")):
            if on:
                raise ValueError(f"NF4 and {what} cannot be quantized at the same time!")

    def _check_narrow(self):
        widths = self.w_bit, self.a_bit
        sparse = self.co_sparse or (self.is_lowbit and not self.is_dynamic)
        if widths == (4, 8) and not sparse:
            if not (self.is_dynamic and self._per_group()):
                raise TypeError("W4A8_DYNAMIC should be used with per-group quantization and "
                                "dynamic quantization")
            if not self.w_sym:
                raise TypeError("W4A8_DYNAMIC should be used with w_sym=True")
        if widths == (4, 4):
            wrong = ("is_dynamic=True" if not self.is_dynamic else
                     "w_method='MinMax'" if self.w_method != "MinMax" else
                     "w_sym=True" if not self.w_sym else
                     "disable_last_linear=True" if not self.disable_last_linear else None)
            if wrong:
                raise ValueError(f"W4A4 should be used with {wrong}")

    def _scheme(self):
        """The scheme's name; the first match wins."""
        widths = self.w_bit, self.a_bit
        if self.is_dynamic and widths in ((8, 8), (4, 8), (4, 4)):
            return {(8, 8): "W8A8_DYNAMIC", (4, 8): "W4A8_DYNAMIC",
                    (4, 4): "W4A4_FLATQUANT_DYNAMIC"}[widths]
        if self.co_sparse:
            return "W8A8S"
        if widths == (4, 16):
            return "NF4" if self.w_method == "NF" else "W4A16"
        if widths == (4, 8) and self.is_lowbit:
            return "W8A8S"
        simple = {(8, 8): "W8A8", (8, 16): "W8A16", (16, 16): "FLOAT"}
        if widths not in simple:
            raise ValueError(f"w_bit {self.w_bit} with a_bit {self.a_bit} is not known; possible: "
                             f"{_PAIRS}")
        return simple[widths]

    # ---- for Calibrator

    def check_data_free(self):
        """ValueError unless the scheme can do without calibration data."""
        if self.model_quant_type not in DATA_FREE or self.w_method not in _DATA_FREE_METHODS:
            raise ValueError(f"calib_data is empty, but {self.model_quant_type} with w_method "
                             f"{self.w_method} needs calibration data; without it: "
                             f"{', '.join(DATA_FREE)} with {', '.join(_DATA_FREE_METHODS)}")
        for on, what in ((self.use_fa_quant, "fa_quant"), (self.use_kvcache_quant, "kv_quant")):
            if on:
                raise ValueError(f"calib_data is empty, but {what} needs calibration data")

    def recipe_settings(self):
        """(name, value) pairs of a recipe. NotImplementedError for what tare cannot do yet."""
        later = (self.model_quant_type if self.model_quant_type not in _AVAILABLE else
                 f"w_method {self.w_method}" if self.w_method != "MinMax" else
                 "is_lowbit" if self.is_lowbit else
                 "simulate_tp" if self.tp_size is not None else
                 "timestep_quant" if self.max_dynamic_step is not None else None)
        if later:
            raise NotImplementedError(f"{later} is not available in this version of tare; "
                                      f"{', '.join(_AVAILABLE)} with w_method MinMax are, those "
                                      "with 8-bit activations also with fa_quant or kv_quant")
        settings = [("quant.w_bit", self.w_bit), ("quant.a_bit", self.a_bit),
                    ("quant.act_method", self.act_method), ("quant.mm_tensor", self.mm_tensor),
                    ("quant.w_sym", self.w_sym), ("quant.pr", float(self.pr)),
                    ("quant.seed", self.seed), ("quant.a_sym", self.a_sym),
                    ("fallback.disable_last_linear", self.disable_last_linear)]
        if self.is_dynamic or self.pdmix:  # the others are what the bits say
            settings.append(("quant.scheme", self.model_quant_type.lower()))
        if self.disable_names:
            settings.append(("fallback.disable_names", self.disable_names))
        if self.final_scales is not None:
            settings.append(("quant.final_scales", self.final_scales))
        if self.weight_method is not None:
            settings.append(("quant.weight_method", self.weight_method))
        if self.mtp is not None:
            settings.append(("quant.mtp", self.mtp))
        if self.use_kvcache_quant:
            settings += [("quant.kv_cache", "c8"), ("quant.kv_sym", self.kv_sym)]
        if self.use_fa_quant:
            settings += [("fa_quant", True), ("fa_quant.fa_amp", self.fa_amp),
                         ("fa_quant.v_method", self.v_method),
                         ("fa_quant.balance", self.fa_balance)]
        return settings
