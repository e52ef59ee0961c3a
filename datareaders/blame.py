"""Say in one line where the code of a user went wrong."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from onnxdrp.errors import DataError, OnnxDrpError

__all__ = ["blamed"]


@contextmanager
def blamed(what: str, file: str | None = None) -> Iterator[None]:
    """Turn an exception of a user's code into a DataError that names file, line and exception.

    The line is the last one in `file` that was running, or of all if `file` is None. Errors that
    are ours pass unchanged.
    """
    try:
        yield
    except OnnxDrpError:
        raise
    except (Exception, SystemExit) as error:  # some scripts call exit() where they should raise
        message = " ".join(str(error).split())
        raise DataError(
            f"{_where(error, file)}{what}: {type(error).__name__}: {message}"
        ) from error


def _where(error: BaseException, file: str | None) -> str:
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the `yield` above
    frames = [frame for frame in frames if file is None or frame.filename == file] or frames
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
