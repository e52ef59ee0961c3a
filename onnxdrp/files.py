"""Files that appear whole or not at all, and files that are what they are taken for."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from onnxdrp.errors import ModelError, OptionError

__all__ = ["atomic_write", "check_output", "read_json"]


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


@contextmanager
def read_json(
    path: str | Path, what: str, kind: str | None = None, version: int | None = None
) -> Iterator[Any]:
    """The table of a JSON file, to be made something of inside the with.

    Args:
        path: of the file.
        what: it should be, for errors.
        kind: its `format`, which is taken out of the table with its `version`; None: any.
        version: of that.

    Raises:
        OptionError: the file cannot be read, or it is something else.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        if kind is not None and (table.pop("format"), table.pop("version")) != (kind, version):
            raise OptionError(f"{path}: no {what} of version {version}; name another file")
        yield table
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise OptionError(f"{path}: no {what} can be read ({e}); name another file") from e
