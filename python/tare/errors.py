"""Errors of the C library as Python exceptions.

Each status has a class of its own under TareError, which also derives from the built-in class that
fits, so that `except ValueError` of a script written for msModelSlim catches what it did before.
"""


class TareError(Exception):
    """Any error that libtare reports."""


class UsageError(TareError, ValueError):
    """A wrong option, recipe or setting."""


class FolderError(TareError, OSError):
    """A refused output folder: not empty, not writable, or overlapping the model."""


class BudgetError(TareError, MemoryError):
    """The memory budget is too small; the message names the smallest one that works."""


class ModelError(TareError, ValueError):
    """A checkpoint that is incomplete, inconsistent or of an unknown kind."""


class FormatError(TareError, ValueError):
    """A malformed file."""


class DataError(TareError, ValueError):
    """Calibration data that cannot be used."""


class NumericError(TareError, ArithmeticError):
    """NaN or infinity in a weight or an activation."""


class FileError(TareError, OSError):
    """The operating system refused a read, write or rename."""


class OutOfMemoryError(TareError, MemoryError):
    """Out of memory inside the budget."""


class VerifyError(TareError):
    """An output that breaks a rule of its consumers."""


class CancelledError(TareError):
    """A call was cancelled (Ctrl-C ends in KeyboardInterrupt instead)."""


BY_STATUS = {
    "TARE_E_USAGE": UsageError, "TARE_E_FOLDER": FolderError, "TARE_E_BUDGET": BudgetError,
    "TARE_E_MODEL": ModelError, "TARE_E_FORMAT": FormatError, "TARE_E_DATA": DataError,
    "TARE_E_NUMERIC": NumericError, "TARE_E_IO": FileError, "TARE_E_MEMORY": OutOfMemoryError,
    "TARE_E_VERIFY": VerifyError, "TARE_E_CANCELLED": CancelledError,
}
