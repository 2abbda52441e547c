"""Objects of the package that go in any order, at any time: cycles, threads, signals, forks, the
end of the interpreter. Each in a process of its own, which must end well."""
import os
import subprocess
import sys

import pytest
import tiny
from conftest import ROOT

# MALLOC_PERTURB_: freed memory does not look as it did.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "PYTHONFAULTHANDLER": "1",
               "MALLOC_PERTURB_": "85"}

HEAD = """
import gc, json, logging, os, random, signal, sys, threading, time, types
import numpy as np
import tare
tare.set_logger_level("error")
folder, work = sys.argv[1:3]
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
IDS = [[np.arange(1, 9)[None]]]

class Numbers(tare.DatasetProcessorBase):
    def __init__(self):
        super().__init__(folder)
    def get_dataset_size(self):
        return 5
    def process_data(self, indexs):
        return [{"prompt": str(i), "ans": i} for i in indexs]
    def verify_positive_prompt(self, prompts, labels):
        return [{"prompt": p, "ans": l} for p, l in zip(prompts, labels)]

def mix(model=None, tokenizer=None):
    path = os.path.join(work, "mix.json")
    if not os.path.exists(path):
        with open(path, "w") as file:
            json.dump({"configurations": []}, file)
    calib = tare.CalibrationData(path, "", tokenizer, model)
    calib.add_custormized_dataset_processor("numbers", Numbers())
    calib.set_sample_size({"numbers": 2})
    return calib

def calibrator(model, ids=IDS):
    return tare.Calibrator(model, tare.QuantConfig(act_method=2), calib_data=ids, scratch_dir=work)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture
def run(tmp_path, folder):
    """Runs HEAD and a script; its output. It must end with 0 and without a word of complaint."""
    def run_script(script, *arguments, stderr=""):
        done = subprocess.run([sys.executable, "-c", HEAD + script, str(folder), str(tmp_path),
                               *map(str, arguments)], capture_output=True, text=True, timeout=120,
                              env=ENVIRONMENT, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert stderr in done.stderr and (stderr or not done.stderr), done.stderr
        return done.stdout
    return run_script


CYCLES = """
random.seed(int(sys.argv[3]))

def things():
    model = tare.load(folder, max_memory={"cpu": "2GiB"}) if random.random() < 0.7 else tare.load(
        folder)
    tokenizer = tare.Tokenizer(folder, context=model.context)
    quantizer = tare.FAQuantizer(types.SimpleNamespace(num_attention_heads=2, hidden_size=8),
                                 tare.logger)
    quantizer.enable_calibration()
    quantizer.quant(np.ones((1, 2, 3, 4), np.float32), "q")
    anti = tare.AntiOutlier(model, IDS, tare.AntiOutlierConfig(anti_method="m1"))
    anti.process()
    run = calibrator(model)
    run.run()
    selector = tare.LayerSelector(model)
    selector.run(IDS)
    mixed = mix(model, tokenizer)
    mixed.process()
    return [model, tokenizer, quantizer, anti, run, selector, mixed, mix(), model.context,
            model._tare_smoothing]

gc.disable()  # only when the test says so
for _ in range(8):
    some = things()
    random.shuffle(some)
    for one, other in zip(some, some[1:] + some[:1]):  # one ring through all, in any order
        one.me, one.other = one, other
    if random.random() < 0.5:
        gc.collect(random.randrange(3))
    keep = some[0] if random.random() < 0.3 else None
    del some, one, other
    gc.collect()
    del keep
    gc.collect()
# At the end of the interpreter: one ring is garbage, another is still held.
last = things()
for one in last:
    one.me = one
sys.modules["kept"] = last
print("through")
"""


@pytest.mark.parametrize("seed", range(4))
def test_cycles_of_every_class(run, seed):
    assert run(CYCLES, seed) == "through\n"


FREED = """
before = tare._context.lib.tare_memory_used(tare._context.shared_context().handle)
threads = len(os.listdir("/proc/self/task"))

def settles(count):
    for _ in range(2000):  # a thread that has ended may show for a moment
        if len(os.listdir("/proc/self/task")) == count:
            return True
        time.sleep(0.001)

for _ in range(3):
    model = tare.load(folder, max_memory={"cpu": "2GiB"}, threads=4)
    model.me = model
    run = calibrator(model)
    run.run()
    run.model_again = model
    assert settles(threads + 3)
    del model, run
    gc.collect()
    assert settles(threads)
assert tare._context.lib.tare_memory_used(tare._context.shared_context().handle) == before
"""


def test_threads_and_memory_are_given_back(run):
    run(FREED)


THREADS = """
model, tokenizer, mixed = tare.load(folder), tare.Tokenizer(folder), mix()
texts = [f"words number {i} " * 5 for i in range(20)]
expected, errors = [tokenizer.encode(text) for text in texts], []
logits = model.logits(expected[0])

def encode():
    for _ in range(30):
        assert [tokenizer.encode(text) for text in texts] == expected

def forward():
    for _ in range(10):
        assert np.array_equal(model.logits(expected[0]), logits)

def fail():
    for i in range(200):
        try:
            tokenizer.decode([100000 + i])
            assert False
        except tare.TareError as error:
            assert str(100000 + i) in str(error), error  # not another thread's message

def sets():
    for i in range(30):
        mixed.add_custormized_dataset_processor(f"set {i}", Numbers())
        assert f"set {i}" in mixed.handlers

def objects():
    for _ in range(20):
        one = tare.load(folder, threads=2)
        one.me = one
        one.logits([1, 2])
        del one
        gc.collect()

def guarded(work):
    def call():
        try:
            work()
        except BaseException as error:
            errors.append(f"{work.__name__}: {error!r}")
    return call

threads = [threading.Thread(target=guarded(w))
           for w in (encode, forward, fail, fail, sets, objects)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(errors)
"""


def test_two_threads_on_one_context(run):
    """tare.h: one context serves one thread at a time. The package sees to it."""
    assert run(THREADS) == "[]\n"


EXIT = """
started = threading.Event()
class Started(logging.Handler):
    def emit(self, record):
        started.set()
tare.logger.setLevel("INFO")
tare.logger.addHandler(Started())
tare.logger.handlers[0].setLevel("ERROR")
threading.excepthook = lambda args: None
model = tare.load(folder)
ids = [[np.arange(1, 120)[None]]] * 20000
run = calibrator(model, ids)
threading.Thread(target=run.run, daemon=True).start()
assert started.wait(60)
time.sleep(float(sys.argv[3]))
print("leaving", flush=True)
"""


@pytest.mark.parametrize("after", [0, 0.05, 0.3])
def test_the_interpreter_ends_while_a_daemon_thread_quantizes(run, after):
    assert run(EXIT, after) == "leaving\n"


FORK = """
model, tokenizer, run = tare.load(folder, threads=4), tare.Tokenizer(folder), None
logits = model.logits([1, 2, 3])
busy = threading.Event()
def talk():
    busy.set()
    for _ in range(300):
        tokenizer.encode("words " * 200)
other = threading.Thread(target=talk)
other.start()
busy.wait()
child = os.fork()  # while another thread has a call, or is between two
if child == 0:
    signal.alarm(30)
    assert np.array_equal(model.logits([1, 2, 3]), logits)
    run = calibrator(model)
    run.run()
    model.me = model
    del model, run
    gc.collect()
    sys.exit(7)  # takes the interpreter down in the child too
_, status = os.waitpid(child, 0)
other.join()
assert np.array_equal(model.logits([1, 2, 3]), logits)
print(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_can_work_and_end(run):
    """Its parent's threads are not there: waiting for them would be for ever."""
    assert run(FORK) == "7\n"


STRUCK = """
class Enough(BaseException):
    pass

def strike(*_):
    raise Enough()
signal.signal(signal.SIGALRM, strike)
model = tare.load(folder)
ids = [[np.arange(1, 120)[None]]] * 3000
run = calibrator(model, ids)
for wait in (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1):
    try:
        signal.setitimer(signal.ITIMER_REAL, wait)
        run.run()
        time.sleep(5)
        print("not struck")
    except Enough:
        pass
print(model.logits([1, 2]).shape, len([f for f in os.listdir("/proc/self/fd")
                                       if "deleted" in os.path.realpath(f"/proc/self/fd/{f}")]))
"""


def test_any_signal_handler_can_end_a_call(run):
    """Not Ctrl-C alone: C must be back before the caller's clean-up frees what it works on. And the
    nameless file of a run that nobody has is gone."""
    assert run(STRUCK).strip() == "(2, 260) 0"


CTRL_C = """
struck = []
class Strike(logging.Handler):
    def emit(self, record):
        struck.append(1)
        signal.raise_signal(signal.SIGINT)  # in the thread of the call: it is a short one
tare.logger.setLevel("INFO")
tare.logger.addHandler(Strike())
tare.logger.handlers[0].setLevel("ERROR")
path = os.path.join(work, "tokenizer.json")
with open(os.path.join(folder, "tokenizer.json")) as file:
    text = json.load(file)
text["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst",
                      "stride": 0}
with open(path, "w") as file:
    json.dump(text, file)
try:
    tare.Tokenizer(path)
    print("went on")
except KeyboardInterrupt:
    print("interrupted", len(struck))
tare.logger.handlers.pop()
print(len(tare.Tokenizer(path).encode("a")))
"""


def test_ctrl_c_inside_a_log_message_is_not_lost(run):
    assert run(CTRL_C) == "interrupted 1\n1\n"


RAISES = """
class Raises(Numbers):
    def __init__(self, error):
        super().__init__()
        self.error = error
    def process_data(self, indexs):
        raise self.error

for error in (ValueError("a"), KeyboardInterrupt("b"), SystemExit(3), MemoryError("c"),
              GeneratorExit("d")):
    mixed = mix()
    mixed.me = mixed
    mixed.add_custormized_dataset_processor("numbers", Raises(error))
    mixed.set_sample_size({"numbers": 2})
    try:
        mixed.process()
        print("went on")
    except BaseException as caught:
        assert caught is error, (caught, error)
    mixed.add_custormized_dataset_processor("numbers", Numbers())
    mixed.set_sample_size({"numbers": 2})
    assert len(mixed.process()) == 2  # the context goes on
    del mixed
    gc.collect()
print("through")
"""


def test_whatever_a_callback_raises_comes_out(run):
    assert run(RAISES) == "through\n"


