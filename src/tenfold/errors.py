"""What a caller got wrong, in one sentence that names the remedy."""

from __future__ import annotations


class TenfoldError(Exception):
    """Something outside Tenfold is wrong: input, data, disk. The message is one sentence with its remedy.

    The command line prints it and exits with 2; it never comes with a traceback.
    """


class WorkloadError(TenfoldError):
    """The task, its model or its data cannot be worked with as given."""


class DivergedError(WorkloadError):
    """The loss of a training is NaN or infinite."""


class ExportError(TenfoldError):
    """The model cannot be written as ONNX."""


class BudgetEndedError(TenfoldError):
    """The budget ended in the middle of long work: what was there before it stands."""


def first_line(error: BaseException, most: int = 200) -> str:
    """What somebody else's error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
