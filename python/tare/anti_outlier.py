"""AntiOutlierConfig and AntiOutlier: outlier suppression, with msModelSlim's parameters."""
from . import _memory, _samples, _sources
from ._checks import check_compat, check_elements, check_mtp, check_type
from ._context import NEW, recipe
from ._devices import host_device
from ._log import logger
from ._native import lib

_METHODS = ("m1", "m2", "m3", "m4", "m5", "m6")
_FLEX_KEYS = ("alpha", "beta")


class AntiOutlierConfig:
    """Which method, and what its search assumes. `w_bit`, `a_bit` and `w_sym` are seen by m3 alone,
    `flex_config` ({"alpha": …, "beta": …}; None: searched) by m6. `disable_anti_names`: linears
    whose group is left as it is. `mtp`: as the QuantConfig that follows has it."""

    def __init__(self, w_bit=8, a_bit=8, anti_method="m2", dev_type="cpu", dev_id=None, w_sym=True,
                 disable_anti_names=None, flex_config=None, *, mtp=None):
        self.w_bit, self.a_bit, self.anti_method, self.w_sym = w_bit, a_bit, anti_method, w_sym
        self.dev_type = dev_type
        self.disable_anti_names = [] if disable_anti_names is None else disable_anti_names
        self.device, self.dev_id = host_device(dev_type, dev_id)
        check_type(w_bit, int, "w_bit")
        check_type(a_bit, int, "a_bit")
        check_type(anti_method, str, "anti_method")
        check_type(w_sym, bool, "w_sym")
        check_elements(self.disable_anti_names, str, list, "disable_anti_names")
        if anti_method not in _METHODS:
            raise ValueError(f"anti_method {anti_method!r} is not known; possible: "
                             f"{', '.join(_METHODS)}")
        if w_bit not in (4, 8):
            raise ValueError(f"w_bit must be 8 or 4, but got {w_bit}, please check it")
        if a_bit != 8 and (a_bit != 16 or anti_method != "m3"):
            raise ValueError(f"a_bit must be 8 or 16 (anti_method='m3'), but got {a_bit}, please "
                             "check it.")
        if not w_sym and anti_method != "m3":
            raise ValueError("w_sym can be False with anti_method='m3' only, please check it.")
        if not w_sym:
            logger.warning("w_sym is False: use the same in QuantConfig.")
        self.flex_config = self._flex(flex_config)
        check_mtp(mtp)
        self.mtp = mtp

    @staticmethod
    def _flex(flex_config):
        flex = dict.fromkeys(_FLEX_KEYS)
        if flex_config is None:
            return flex
        check_type(flex_config, dict, "flex_config")
        for key, value in flex_config.items():
            if key not in _FLEX_KEYS:
                raise ValueError(f"flex_config has the key {key!r}; possible: alpha, beta")
            if value is not None:
                check_type(value, (int, float), f"flex_config[{key!r}]")
            flex[key] = value
        return flex

    def recipe_settings(self):
        """(name, value) pairs of a recipe."""
        settings = [("anti_outlier.anti_method", self.anti_method),
                    ("anti_outlier.w_bit", self.w_bit), ("anti_outlier.a_bit", self.a_bit),
                    ("anti_outlier.w_sym", self.w_sym)]
        if self.mtp is not None:
            settings.append(("quant.mtp", self.mtp))
        if self.disable_anti_names:
            settings.append(("anti_outlier.disable_anti_names", self.disable_anti_names))
        return settings + [(f"anti_outlier.{key}", float(value))
                           for key, value in self.flex_config.items() if value is not None]


class AntiOutlier:
    """Finds the vectors that smooth a model's outliers. process() attaches them to the model, whose
    own weights stay as they are; a Calibrator of that model applies them.

    calib_data: tokenized samples (see tare.Calibrator). norm_class_name is accepted and unused: the
    norms of each architecture are known. compat="msmodelslim": the reference's arithmetic."""

    def __init__(self, model, calib_data=None, cfg=None, norm_class_name=None, *, compat=None):
        if norm_class_name is not None:
            check_type(norm_class_name, str, "norm_class_name")
        self.model = model
        self.source = _sources.source_of(model)
        self.compat = check_compat(compat)
        self.calib_data = _samples.samples_of(calib_data, self.compat)
        if not self.calib_data:
            raise ValueError("calib_data must not be empty.")
        check_type(cfg, AntiOutlierConfig, "cfg")
        self.cfg, self.logger = cfg, logger

    def process(self):
        """Runs the search; afterwards the model carries its result."""
        source = self.source
        settings = (self.cfg.recipe_settings() + _memory.settings(source.max_memory)
                    + _sources.run_settings(source, self.compat))
        with source.open() as model:
            options = _samples.QuantizeOptions(model, self.calib_data,
                                               recipe(source.context, settings))
            found = source.context.create("tare_smoothing", lib.tare_smooth, source.context.handle,
                                          options.c, NEW, long=True)
        _sources.attach_smoothing(self.model, _sources.Smoothing(found))
