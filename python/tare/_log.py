"""The logger `tare.logger`, which libtare's messages go to, and its level.

It prints to stderr by itself, as msModelSlim's does; a program that configures the root logger or
adds handlers of its own sees the records too.
"""
import logging
import sys

logger = logging.getLogger("tare")

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING,
           "warning": logging.WARNING, "error": logging.ERROR, "notset": logging.NOTSET}


class _Stderr(logging.StreamHandler):
    """Writes to the stderr of the moment (a notebook and pytest replace it)."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr


def _set_up():
    if not logger.handlers:
        handler = _Stderr()
        form = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
        handler.setFormatter(logging.Formatter(form))
        # Without this a program with a root handler would print every record twice.
        handler.addFilter(lambda record: not logging.getLogger().handlers)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def set_logger_level(level="info"):
    """Sets the level of `logger`: "debug", "info", "warn", "error" or "notset"."""
    if str(level).lower() not in _LEVELS:
        logger.warning("level %r is not known; possible: %s. It stays as it is.", level,
                       ", ".join(_LEVELS))
        return
    logger.setLevel(_LEVELS[str(level).lower()])


_set_up()
