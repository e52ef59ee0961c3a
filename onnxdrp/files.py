"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from onnxdrp.errors import ModelError

__all__ = ["atomic_write", "check_output"]


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when all of it is written.

    Raises:
        ModelError: the folder is missing, or the file cannot be written.
    """
    if not path.parent.is_dir():
        raise ModelError(f"{path}: the folder {path.parent} does not exist; create it")
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; name a file")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as e:
        raise ModelError(f"{path}: cannot be written ({e.strerror or e})") from e
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)  # mkstemp makes files private
        Path(name).replace(path)
    except OSError as e:
        raise ModelError(f"{path}: cannot be written ({e.strerror or e})") from e
    finally:
        Path(name).unlink(missing_ok=True)


def check_output(output: str | Path, source: str | Path) -> None:
    """Refuse an output that cannot be written before any work is done for it.

    Args:
        output: the file to be written.
        source: the input, which it must not be.

    Raises:
        ModelError: it is the input or a folder, its folder is missing, or nothing can be written
            there.
    """
    path, read = Path(output), Path(source)
    if path.exists() and read.exists() and path.samefile(read):
        raise ModelError(f"{path}: is the input; name another output")
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise ModelError(f"{path}: the folder {path.parent} does not exist; create it")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as e:
        raise ModelError(f"{path}: cannot be written ({e.strerror}); choose another place") from e
