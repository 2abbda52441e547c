"""Progress of a C call as a tqdm bar: where stderr is a terminal, or in a notebook."""
import sys

try:
    import tqdm
except ImportError:  # it is an extra
    tqdm = None


def _in_notebook():
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def make_bars():
    """The Bars of one call, or None where nobody would see them."""
    if tqdm is None:
        return None
    if _in_notebook():
        from tqdm.notebook import tqdm as notebook_bar
        return Bars(notebook_bar)
    return Bars(tqdm.tqdm) if sys.stderr is not None and sys.stderr.isatty() else None


class Bars:
    """One bar a stage; update() may come from any thread, one call at a time."""

    def __init__(self, bar_class):
        self.bar_class, self.bar, self.stage = bar_class, None, None

    def update(self, stage, unit, done, total, sample, samples):
        if stage != self.stage:
            self.close()
            self.stage = stage
            self.bar = self.bar_class(total=total or None, desc=stage, unit=f" {unit}")
        bar = self.bar
        bar.total = total or None
        if samples:
            bar.set_postfix_str(f"sample {sample}/{samples}", refresh=False)
        bar.n = done
        bar.refresh()

    def close(self):
        if self.bar is not None:
            self.bar.close()
        self.bar = self.stage = None
