"""LayerSelector: scores of the linears, and which of them to leave float."""
from itertools import groupby

from . import _samples, _sources
from ._checks import check_elements, check_number, check_type
from ._context import recipe
from ._log import logger
from ._memory import settings as memory_settings
from ._native import decode, ffi, lib

_METHODS = {"quantile": lib.TARE_RANGE_QUANTILE, "std": lib.TARE_RANGE_STD}


class LayerSelector:
    """Ranks linears by how hard their inputs are to quantize; run() comes first.

    layer_names: only these (None: all). range_method: "quantile" or "std" (docs/python.md)."""

    def __init__(self, model, layer_names=None, range_method="quantile"):
        self.model, self.source, self.logger = model, _sources.source_of(model), logger
        if layer_names is not None:
            check_elements(layer_names, str, list, "layer_names")
        check_type(range_method, str, "range_method")
        if range_method not in _METHODS:
            raise ValueError(f"range_method {range_method!r} is not known; possible: quantile, std")
        self.layer_names, self.range_method = layer_names, range_method
        self.layer_scores = self.layer_groups = None

    def run(self, calib_data):
        """Runs the float model over tokenized samples, as a Calibrator takes them."""
        samples = _samples.token_ids(calib_data)
        if not samples:
            raise ValueError("calib_data must not be empty.")
        scores, context = {}, self.source.context

        def score(_user, name, value):
            scores[decode(name)] = value
        take = context.callback("tare_status (*)(void *, const char *, double)", score)
        with self.source.open() as model:
            options = _samples.QuantizeOptions(
                model, samples, recipe(context, memory_settings(self.source.max_memory)))
            context.run(lib.tare_score_layers, context.handle, options.c,
                        _METHODS[self.range_method], take, ffi.NULL)
        self._rank(scores)

    def _rank(self, scores):
        names = list(scores) if self.layer_names is None else self.layer_names
        for name in names:
            if name not in scores:
                raise ValueError(f"`layer_names` has invalid key `{name}`, please check your model "
                                 "configurations.")
        wanted = set(names)
        ranked = [{"name": n, "score": s} for n, s in scores.items() if n in wanted]
        for entry in ranked:
            logger.info("%s's quantization difficulty score: %.4f", entry["name"], entry["score"])
        ranked.sort(key=lambda entry: entry["score"], reverse=True)
        self.layer_scores = ranked
        self.layer_groups = [list(group) for _, group in groupby(ranked, lambda e: e["score"])]

    def _require_run(self):
        if self.layer_scores is None:
            raise RuntimeError("run() must come before layers are selected")

    def select_layers_by_threshold(self, threshold):
        """Names of the linears whose score is above the threshold, hardest first."""
        check_number(threshold, (int, float), 0, None, "threshold")
        self._require_run()
        return [entry["name"] for entry in self.layer_scores if entry["score"] > threshold]

    def select_layers_by_disable_level(self, disable_level):
        """Names in the disable_level hardest groups; linears of equal score (those that read the
        same input) are one group."""
        check_number(disable_level, int, 0, None, "disable_level")
        self._require_run()
        groups = self.layer_groups[:disable_level]
        for group in groups:
            if len(group) > 1:
                logger.info("%s have the same input, will be selected together!",
                            ", ".join(entry["name"] for entry in group))
        return [entry["name"] for group in groups for entry in group]
