"""python -m tare.run [--compat] script.py [arguments]

Runs a script written for msModelSlim, unchanged: in this process `import msmodelslim` (and the
older name modelslim, and ascend_utils beside it) means tare, and the devices "npu" and "npu:N" mean
the CPU, which is said once; so does a number in the device_map of a model. What it writes others
cannot read (umask 027), as its own checks demand. --compat asks for the reference system's arithmetic and file names wherever the script leaves
`compat` open.
"""
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import runpy
import sys

from . import _checks, _npu

_ALIASES = {"msmodelslim": "tare.msmodelslim", "modelslim": "tare.msmodelslim",
            "ascend_utils": "tare.ascend_utils"}


class _Aliases(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds msmodelslim.x.y as tare.msmodelslim.x.y: the same module object under both names."""

    def __init__(self):
        self._specs = {}  # each module's own, which the import system is about to replace

    def find_spec(self, name, _path=None, _target=None):
        root, _, rest = name.partition(".")
        if root not in _ALIASES:
            return None
        real = f"{_ALIASES[root]}.{rest}" if rest else _ALIASES[root]
        if importlib.util.find_spec(real) is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=real)
        spec.submodule_search_locations = importlib.util.find_spec(real).submodule_search_locations
        return spec

    def create_module(self, spec):
        module = importlib.import_module(spec.origin)
        self._specs[id(module)] = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self._specs.pop(id(module))


def install():
    """Makes msmodelslim mean tare in this process, also if the real one is installed."""
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Aliases())
    for name in list(sys.modules):
        if name.partition(".")[0] in _ALIASES:
            del sys.modules[name]


def main(arguments):
    compat = False
    while arguments and arguments[0].startswith("-") and arguments[0] != "-":
        option = arguments.pop(0)
        if option in ("-h", "--help"):
            print(__doc__.strip())
            return
        if option != "--compat":
            sys.exit(f"tare.run: unknown option {option}; usage: python -m tare.run [--compat] "
                     "script.py [arguments]")
        compat = True
    if not arguments:
        sys.exit("tare.run: a script is missing; usage: python -m tare.run [--compat] script.py "
                 "[arguments]")
    script = arguments[0]
    if not os.path.isfile(script):
        sys.exit(f"tare.run: {script}: no such file")
    _checks.default_compat = "msmodelslim" if compat else None
    install()
    _npu.install()
    os.umask(os.umask(0) | 0o027)
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
