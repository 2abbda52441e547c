"""Contexts, and how a C call runs.

A long call runs in a worker thread while the calling thread waits in Python, so that Ctrl-C reaches
it: it then cancels the C call, waits for it (well under a second) and raises KeyboardInterrupt.
Python code that C calls back (a user's data-set processor, a transformers model) runs in the
calling thread, with its own thread-local state; what it raises ends the C call and is raised again,
with its own traceback. cffi releases the GIL around each C call.
"""
import collections
import contextlib
import logging
import queue
import threading

from . import _native, _progress, errors
from ._log import logger
from ._native import decode, encode, ffi, lib

_LOG_LEVELS = {lib.TARE_LOG_ERROR: logging.ERROR, lib.TARE_LOG_WARNING: logging.WARNING,
               lib.TARE_LOG_INFO: logging.INFO, lib.TARE_LOG_DEBUG: logging.DEBUG}
_ERRORS = {getattr(lib, name): cls for name, cls in errors.BY_STATUS.items()}


class _Request:
    def __init__(self, function):
        self.function, self.started = function, False
        self.answers = queue.SimpleQueue()


class _Job:
    """A C call in its worker thread, and what it asks of the thread that waits for it.

    KeyboardInterrupt may strike the waiting thread between any two steps, so nothing is taken off
    `pending` before it is answered, and serve() may be entered again at any point.
    """

    def __init__(self):
        self.owner = threading.get_ident()
        self.pending, self.wake = collections.deque(), threading.Event()
        self.outcome = None  # (status, error) of the call, once it is back
        self.error = None    # the first exception of a callback: raised when the call is back

    def start(self, function):
        def work():
            self.outcome = _outcome(function, ())
            self.wake.set()

        thread = threading.Thread(target=work, name="tare", daemon=True)
        thread.start()
        return thread

    def ask(self, function):
        """From another thread: runs `function` in the waiting one; (result, error)."""
        request = _Request(function)
        self.pending.append(request)
        self.wake.set()
        return request.answers.get()

    def serve(self):
        """Answers requests until the call is back; gives its outcome."""
        while True:
            if self.pending:
                self._answer(self.pending[0])
            elif self.outcome:
                return self.outcome
            else:
                self.wake.wait()
                self.wake.clear()

    def _answer(self, request):
        if request.started:  # interrupted before its answer was given
            answer = None, KeyboardInterrupt()
        else:
            request.started = True
            answer = _outcome(request.function, ())
        request.answers.put(answer)
        self.pending.popleft()
        if isinstance(answer[1], KeyboardInterrupt):
            raise answer[1]


class Context:
    """A tare_context. Handles made from it hold a reference to it; it is freed after the last."""

    def __init__(self, memory_limit=0, threads=0):
        self._lock = threading.RLock()
        self._jobs, self._bars = [], None
        options = _native.options("tare_context_options")
        options.threads, options.memory_limit = threads, memory_limit
        self._log = ffi.callback(options_type("log"), self._on_log, onerror=_ignore)
        self._progress = ffi.callback(options_type("progress"), self._on_progress, onerror=_ignore)
        options.log, options.progress = self._log, self._progress
        out = ffi.new("tare_context **")
        if lib.tare_context_create(out, options) != lib.TARE_OK:
            raise errors.OutOfMemoryError("no context could be made")
        self.handle = ffi.gc(out[0], lib.tare_context_free)

    def _on_log(self, _user, level, message):
        logger.log(_LOG_LEVELS[level], "%s", decode(message))

    def _on_progress(self, _user, p):
        if self._bars is not None:
            self._bars.update(decode(p.stage), decode(p.unit), p.done, p.total, p.sample, p.samples)

    def check(self, status):
        """Raises the exception of a status that is not TARE_OK."""
        if status != lib.TARE_OK:
            raise _ERRORS[status](decode(lib.tare_last_error(self.handle)))

    def call(self, function, *args):
        """A short call: runs at once, in this thread."""
        with self._job() as job:
            status = function(*args)
        self._finish(job, status)

    def run(self, function, *args):
        """A long call: cancellable, with progress. From within a callback it is as call(): one
        worker and one bar are enough."""
        if self._jobs and self._jobs[0].owner == threading.get_ident():
            return self.call(function, *args)
        with self._job() as job:
            self._bars = _progress.make_bars()
            try:
                status = self._wait(job, job.start(lambda: function(*args)))
            finally:
                if self._bars is not None:
                    self._bars.close()
                self._bars = None
        self._finish(job, status)

    @contextlib.contextmanager
    def _job(self):
        with self._lock:
            job = _Job()
            self._jobs.append(job)
            try:
                yield job
            finally:
                self._jobs.pop()

    def _finish(self, job, status):
        if job.error is not None:
            raise job.error
        self.check(status)

    def _wait(self, job, thread):
        interrupt = None
        while True:
            try:
                status, error = job.serve()
                break
            except KeyboardInterrupt as stop:
                interrupt = stop
                lib.tare_cancel(self.handle)
        thread.join()
        if interrupt is not None:
            lib.tare_cancel_clear(self.handle)
            raise interrupt
        if error is not None:
            raise error
        return status

    def callback(self, function):
        """`function` as C may call it during run(): it runs in the thread that waits. What it
        raises is kept, TARE_E_CANCELLED goes back to C, and run() raises it."""
        def call(*args):
            job = self._jobs[-1]
            if threading.get_ident() == job.owner:
                result, error = _outcome(function, args)
            else:
                result, error = job.ask(lambda: function(*args))
            if error is None:
                return lib.TARE_OK if result is None else result
            if job.error is None:
                job.error = error
            return lib.TARE_E_CANCELLED
        return call


def _outcome(function, args):
    try:
        return function(*args), None
    except BaseException as error:
        return None, error


def _ignore(kind, value, traceback):
    """Logging must not end a C call; the logging module has already told of its trouble."""


def options_type(field):
    """The C type of a field of tare_context_options."""
    return dict(ffi.typeof("tare_context_options").fields)[field].type


_shared, _shared_lock = None, threading.Lock()


def shared_context():
    """The context of everything that has no memory limit of its own."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Context()
        return _shared


@contextlib.contextmanager
def recipe(context, settings):
    """A tare_recipe with these (name, value) settings; a list value is set element by element."""
    out = ffi.new("tare_recipe **")
    context.call(lib.tare_recipe_create, context.handle, out)
    try:
        for name, value in settings:
            if isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    set_one = lib.tare_recipe_append if i else lib.tare_recipe_set
                    context.call(set_one, out[0], encode(name), encode(item))
            else:
                context.call(lib.tare_recipe_set, out[0], encode(name), encode(text_of(value)))
        yield out[0]
    finally:
        lib.tare_recipe_free(out[0])


def text_of(value):
    """A setting as the recipe's text."""
    return str(value).lower() if isinstance(value, bool) else str(value)
