"""What goes wrong, typed: each message is one line that says what, where, and how to mend it."""

from typing import ClassVar

__all__ = [
    "CheckError",
    "DataError",
    "ModelError",
    "OnnxDrpError",
    "OptionError",
    "PassError",
]


class OnnxDrpError(Exception):
    """The root of every error that a user can act on."""

    exit_code: ClassVar[int] = 1


class ModelError(OnnxDrpError):
    """The model file or its graph cannot be used."""


class DataError(OnnxDrpError):
    """Calibration or evaluation data is missing, unreadable, or does not fit the model."""


class OptionError(OnnxDrpError):
    """An option, a recipe or a rate has a value that cannot be honoured."""


class PassError(OnnxDrpError):
    """A pass failed; the message names the pass and those that ran before it."""


class CheckError(OnnxDrpError):
    """A check found that a result is not what it must be."""
