"""Contexts, and how a C call runs.

A long call runs in a worker thread while the calling thread waits in Python, so that Ctrl-C reaches
it: it then cancels the C call, waits for it (well under a second) and raises KeyboardInterrupt.
Python code that C calls back (a user's data-set processor, a transformers model) runs in the
calling thread, with its own thread-local state; what it raises ends the C call and is raised again,
with its own traceback. cffi releases the GIL around each C call. A context has one call at a time:
other threads of Python wait for it.

Handles are cffi's: each is freed with the last object that refers to it, in whatever order the
garbage collector comes to them, which C allows (tare.h). So what frees them must be C's functions
alone, and what C calls back through a context must outlive every order: it lives in this module,
and knows its context by a number.
"""
import atexit
import collections
import contextlib
import itertools
import logging
import os
import queue
import threading
import weakref

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
        self.begun = threading.Lock()  # whose it is: the worker's, who calls, or stop_start()'s

    def start(self, function):
        def work():
            if self.begun.acquire(blocking=False):
                self.outcome = _outcome(function, ())
                self.wake.set()

        self.thread = threading.Thread(target=work, name="tare", daemon=True)
        self.thread.start()

    def stop_start(self):
        """Whether start() was struck before the call began; then it never will."""
        return self.begun.acquire(blocking=False)

    def fail(self, error):
        if self.error is None:
            self.error = error

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


NEW = object()  # among the arguments of Context.create(): where the address of the handle goes
_numbers = itertools.count(1)
_contexts = weakref.WeakValueDictionary()  # by number


class Context:
    """A tare_context."""

    def __init__(self, memory_limit=0, threads=0):
        self.alone = threading.RLock()
        self._jobs, self._bars = [], None
        options = _native.options("tare_context_options")
        options.threads, options.memory_limit = threads, memory_limit
        options.log, options.progress = _on_log, _on_progress
        number = next(_numbers)
        options.user = ffi.cast("void *", number)
        out = ffi.new("tare_context **")
        if lib.tare_context_create(out, options) != lib.TARE_OK:
            raise errors.OutOfMemoryError("no context could be made")
        self.handle = ffi.gc(out[0], lib.tare_context_free)
        _contexts[number] = self

    def show_progress(self, p):
        if self._bars is not None:
            self._bars.update(decode(p.stage), decode(p.unit), p.done, p.total, p.sample, p.samples)

    def call(self, function, *args):
        """A short call: runs at once, in this thread."""
        with self._job() as job:
            self._finish(job, function(*args))

    def run(self, function, *args):
        """A long call: cancellable, with progress. From within a callback it is as call(): one
        worker and one bar are enough."""
        if self._jobs and self._jobs[0].owner == threading.get_ident():
            return self.call(function, *args)
        with self._job() as job:
            self._bars = _progress.make_bars()
            try:
                status = self._wait(job, lambda: function(*args))
            finally:
                if self._bars is not None:
                    self._bars.close()
                self._bars = None
            self._finish(job, status)

    def create(self, kind, function, *args, long=False):
        """The handle, of the C type `kind`, that a call makes; it is freed with the object."""
        out, free = ffi.new(f"{kind} **"), getattr(lib, f"{kind}_free")
        args = [out if arg is NEW else arg for arg in args]
        try:
            (self.run if long else self.call)(function, *args)
        except BaseException:
            free(out[0])  # there already if an interrupt came late; else NULL
            raise
        return ffi.gc(out[0], free)

    def stop(self, seconds):
        """Ends what other threads let C do, and lets them begin no more."""
        lib.tare_cancel(self.handle)
        self.alone.acquire(timeout=seconds)
        lib.tare_cancel_clear(self.handle)

    def after_fork(self):
        """In the child: the threads that held the lock or waited for a call are the parent's."""
        self.alone = threading.RLock()
        self._jobs = [job for job in self._jobs if job.owner == threading.get_ident()]

    @contextlib.contextmanager
    def _job(self):
        with self.alone:
            job = _Job()
            self._jobs.append(job)
            try:
                yield job
            finally:
                self._jobs.pop()

    def _finish(self, job, status):
        """Raises what a callback raised, or the exception of a status that is not TARE_OK."""
        if job.error is not None:
            lib.tare_cancel_clear(self.handle)
            raise job.error
        if status != lib.TARE_OK:
            error = _ERRORS[status](decode(lib.tare_last_error(self.handle)))
            error.number = lib.tare_last_errno(self.handle)
            raise error

    def _wait(self, job, function):
        """Runs the call. Whatever strikes this thread meanwhile (KeyboardInterrupt, or what a
        signal handler raises) cancels it, and goes on only when C is back: the caller's clean-up
        frees what C works on."""
        struck = None
        while True:
            try:
                if struck is None:
                    job.start(function)
                status, error = job.serve()
                break
            except BaseException as stop:
                if job.stop_start():
                    raise
                struck = stop
                lib.tare_cancel(self.handle)
        job.thread.join()
        if struck is not None:
            lib.tare_cancel_clear(self.handle)
            raise struck
        if error is not None:
            raise error
        return status

    def stopped_by(self, error):
        """An exception, no Exception, struck a callback that can't hand it to C."""
        if self._jobs:
            self._jobs[-1].fail(error)
            lib.tare_cancel(self.handle)

    def callback(self, kind, function):
        """`function` as C may call it during run(), of the C type `kind`: it runs in the thread
        that waits. What it raises is kept, TARE_E_CANCELLED goes back to C, and run() raises it."""
        def call(*args):
            job = self._jobs[-1]
            if threading.get_ident() == job.owner:
                result, error = _outcome(function, args)
            else:
                result, error = job.ask(lambda: function(*args))
            if error is None:
                return lib.TARE_OK if result is None else result
            job.fail(error)
            return lib.TARE_E_CANCELLED

        def struck(_kind, value, _traceback):  # between two steps of call()
            self.stopped_by(value)
        return ffi.callback(kind, call, error=lib.TARE_E_CANCELLED, onerror=struck)


def _outcome(function, args):
    try:
        return function(*args), None
    except BaseException as error:
        return None, error


def _tell(field):
    """Decorates what tells of a call (log, progress): C calls it with the context's number. It must
    not end a call; the logging module has already told of its trouble."""
    def decorate(function):
        def call(user, *args):
            context = _contexts.get(int(ffi.cast("uintptr_t", user)))
            try:
                function(context, *args)
            except Exception:
                pass
            except BaseException as error:
                if context is not None:
                    context.stopped_by(error)
        return ffi.callback(dict(ffi.typeof("tare_context_options").fields)[field].type, call)
    return decorate


@_tell("log")
def _on_log(_context, level, message):
    logger.log(_LOG_LEVELS[level], "%s", decode(message))


@_tell("progress")
def _on_progress(context, p):
    if context is not None:
        context.show_progress(p)


_shared, _shared_lock = None, threading.Lock()


@atexit.register
def _stop_all():
    """A call of a daemon thread must not work on while the interpreter is taken apart."""
    for context in list(_contexts.values()):
        context.stop(seconds=10)


def _after_fork():
    global _shared_lock
    _shared_lock = threading.Lock()
    for context in list(_contexts.values()):
        context.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def shared_context():
    """The context of everything that has no memory limit of its own."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Context()
        return _shared


def recipe(context, settings):
    """A tare_recipe with these (name, value) settings; a list value is set element by element."""
    handle = context.create("tare_recipe", lib.tare_recipe_create, context.handle, NEW)
    for name, value in settings:
        if isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                set_one = lib.tare_recipe_append if i else lib.tare_recipe_set
                context.call(set_one, handle, encode(name), encode(item))
        else:
            context.call(lib.tare_recipe_set, handle, encode(name), encode(text_of(value)))
    return handle


def text_of(value):
    """A setting as the recipe's text."""
    return str(value).lower() if isinstance(value, bool) else str(value)
