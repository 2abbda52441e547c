"""Data sets in Python as C sees them: callbacks of a tare_calib_source and their conversions."""
import json

from . import _native
from ._native import ffi, lib


def c_text(text):
    """UTF-8 of a str; lone surrogates as their three bytes, as tare.h says."""
    return text.encode("utf-8", "surrogatepass")


def py_text(pointer, length):
    return bytes(ffi.buffer(pointer, length)).decode("utf-8", "surrogatepass") if length else ""


def sample_dict(sample):
    """{"prompt", "ans", …} of a tare_calib_sample."""
    entry = {"prompt": py_text(sample.prompt, sample.prompt_length),
             "ans": json.loads(py_text(sample.ans, sample.ans_length))}
    if sample.extra != ffi.NULL:
        entry.update(json.loads(py_text(sample.extra, sample.extra_length)))
    return entry


class ProcessorSet:
    """A DatasetProcessorBase behind a tare_calib_source. `source` lives as long as this object."""

    def __init__(self, name, processor, context):
        self.name, self.processor = name, processor
        self._fields = fields = dict(ffi.typeof("tare_calib_source").fields)
        self._keep = {what: context.callback(fields[what].type, method)
                      for what, method in (("count", self._count), ("process", self._process),
                                           ("verify", self._verify))}
        self.source = _native.sized("tare_calib_source", self._keep)

    def _count(self, _user, out):
        count = self.processor.get_dataset_size()
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise TypeError(f"Dataset {self.name}: get_dataset_size() must give an int of 0 or "
                            f"more, not {count!r}")
        out[0] = count

    def _process(self, _user, records, count, emit, sink):
        return self._emit(self.processor.process_data(list(ffi.unpack(records, count))),
                          "process_data()", emit, sink)

    def _verify(self, _user, samples, count, emit, sink):
        entries = [sample_dict(samples[i]) for i in range(count)]
        positive = self.processor.verify_positive_prompt([e["prompt"] for e in entries],
                                                         [e["ans"] for e in entries])
        return self._emit(positive, "verify_positive_prompt()", emit, sink)

    def _emit(self, entries, method, emit, sink):
        if not isinstance(entries, list):
            raise TypeError(f"Dataset {self.name}: {method} must give a list, not "
                            f"{type(entries).__name__}")
        for entry in entries:
            if not (isinstance(entry, dict) and isinstance(entry.get("prompt"), str)
                    and "ans" in entry):
                raise TypeError(f"Dataset {self.name}: {method} must give dicts with a string "
                                f"\"prompt\" and an \"ans\", not {entry!r:.80}")
            status = self._emit_one(entry, emit, sink)
            if status != lib.TARE_OK:
                return status
        return lib.TARE_OK

    def _emit_one(self, entry, emit, sink):
        extra = {key: value for key, value in entry.items() if key not in ("prompt", "ans")}
        texts = [c_text(entry["prompt"]), self._json(entry["ans"])]
        texts.append(self._json(extra) if extra else b"")
        sample = ffi.new("tare_calib_sample *")
        keep = [ffi.from_buffer(text) for text in texts]
        sample.prompt, sample.ans = keep[0], keep[1]
        sample.extra = keep[2] if extra else ffi.NULL
        sample.prompt_length, sample.ans_length, sample.extra_length = map(len, texts)
        return emit(sink, sample)

    def _json(self, value):
        try:
            return json.dumps(value).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"Dataset {self.name}: a value that JSON cannot express: "
                            f"{error}") from None
