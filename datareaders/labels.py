"""Class labels of image files: a CSV file, or the sub-folder that an image is in."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from onnxdrp.errors import DataError

__all__ = ["folder_labels", "read_labels"]


def read_labels(
    labels: str | os.PathLike[str], folder: Path, names: Sequence[str]
) -> NDArray[np.int64]:
    """Return the class index of each file (relative posix names), int64 [names].

    Args:
        labels: "folders" (the class is the index of the sorted sub-folder), or a CSV file with
            the columns file,class_index; files are relative to the folder.
        folder: the folder of the files.
        names: the files, relative to the folder.

    Raises:
        DataError: if a file has no label, or a label no file.
    """
    if labels == "folders":
        return folder_labels(folder, names)
    path = Path(labels)
    table = _read_csv(path)
    without_label = [name for name in names if name not in table]
    without_file = sorted(set(table) - set(names))
    for missing, what in ((without_label, "files have no label"), (without_file, "have no file")):
        if missing:
            subject = (
                f"{len(missing)} {what}"
                if missing is without_label
                else (f"{len(missing)} labels {what}")
            )
            raise DataError(f"{path}: {subject} in {folder}: {_some(missing)}")
    return np.array([table[name] for name in names], dtype=np.int64)


def folder_labels(folder: Path, names: Sequence[str]) -> NDArray[np.int64]:
    """Return for each file the index of its sub-folder of `folder`, sorted by name."""
    loose = [name for name in names if "/" not in name]
    if loose:
        raise DataError(
            f"{folder}: {len(loose)} images are in no class sub-folder: {_some(loose)}; "
            "move them, or give the labels as a CSV file"
        )
    classes = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[PurePosixPath(name).parts[0]] for name in names], dtype=np.int64)


def _read_csv(path: Path) -> dict[str, int]:
    table: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, skipinitialspace=True)
            columns = [column.strip() for column in rows.fieldnames or ()]
            if not {"file", "class_index"} <= set(columns):
                raise DataError(
                    f"{path}: the first line must name the columns file,class_index; "
                    f"it names {','.join(columns) or 'nothing'}"
                )
            rows.fieldnames = columns
            for row in rows:
                name = PurePosixPath((row["file"] or "").strip().replace("\\", "/")).as_posix()
                if name in table:
                    raise DataError(f"{path}:{rows.line_num}: {name} has a second label")
                table[name] = _class_index(row["class_index"], f"{path}:{rows.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot read the labels: {error}") from error
    return table


def _class_index(text: str | None, where: str) -> int:
    try:
        index = int(text or "")
    except ValueError as error:
        raise DataError(f"{where}: class_index {text!r} is not a whole number") from error
    if index < 0:
        raise DataError(f"{where}: class_index {index} is below 0")
    return index


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
