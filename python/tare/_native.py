"""libtare through cffi (ABI mode): `ffi`, `lib` and the text helpers.

The declarations are those of tare.h itself, the one place where the C interface is written down:
the header lies beside this file in an installed package, and in include/tare of a source tree. The
library is looked for in the same way; TARE_LIBRARY names another one (tests of a build that is not
installed).
"""
import os
import pathlib
import re

from cffi import FFI

_HERE = pathlib.Path(__file__).resolve().parent
_TREE = _HERE.parent.parent  # of a source tree


def _first(candidates, what):
    for path in candidates:
        if path.is_file():
            return path
    raise ImportError(f"tare: {what} not found; looked for {', '.join(map(str, candidates))}. "
                      "Install the package (pip install .) or build it (make)")


def _header():
    return _first([_HERE / "tare.h", _TREE / "include" / "tare" / "tare.h"], "tare.h")


def _library():
    if os.environ.get("TARE_LIBRARY"):
        return _first([pathlib.Path(os.environ["TARE_LIBRARY"])], "the library of TARE_LIBRARY")
    return _first([_HERE / "libtare.so", _TREE / "build" / "release" / "libtare.so"], "libtare.so")


def declarations(header):
    """What cffi parses of a C header: no comments, no preprocessor, no `extern "C"`."""
    text = re.sub(r"/\*.*?\*/", " ", header, flags=re.S)
    text = re.sub(r"(?ms)^#ifdef __cplusplus\n.*?^#endif$", "", text)
    text = re.sub(r"(?m)^[ \t]*#(?:[^\n]*\\\n)*[^\n]*$", "", text)
    return re.sub(r"\bTARE_API\b", "", text)


ffi = FFI()
ffi.cdef(declarations(_header().read_text(encoding="utf-8")))
lib = ffi.dlopen(str(_library()))

# cffi holds a lock of this object while it looks up a type. If that is another thread, a fork would
# leave it locked in the child for ever.
_cffi_lock = getattr(ffi, "_lock", None)
if _cffi_lock is not None:
    os.register_at_fork(before=_cffi_lock.acquire, after_in_parent=_cffi_lock.release,
                        after_in_child=_cffi_lock.release)


def sized(kind, fields=None):
    """A new struct of a kind that begins with its size (tare.h, "Versions"), zeros but for `fields`."""
    return ffi.new(f"{kind} *", {**(fields or {}), "size": ffi.sizeof(kind)})


def options(kind):
    """New options ("tare_save_options") with their defaults."""
    c = ffi.new(f"{kind} *")
    getattr(lib, f"{kind}_init_sized")(c, ffi.sizeof(kind))
    return c


def encode(text):
    """A C string of a path or text; None becomes NULL. Keep the result while C uses it."""
    if text is None:
        return ffi.NULL
    raw = os.fsencode(text)
    if b"\0" in raw:
        raise ValueError(f"embedded null character in {text!r}")
    return ffi.new("char[]", raw)


def decode(pointer):
    """Text of a C string; None of NULL. Bytes that are not UTF-8 (file names) are surrogates."""
    return None if pointer == ffi.NULL else ffi.string(pointer).decode("utf-8", "surrogateescape")
