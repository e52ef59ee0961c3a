"""Folders of recorded tensors: one sample, or one batch, a file."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from onnxdrp.datareaders.arrays import ArrayReader
from onnxdrp.datareaders.base import InputInfo
from onnxdrp.datareaders.columns import open_columns
from onnxdrp.datareaders.files import TENSORS, existing_folder, find_files
from onnxdrp.datareaders.shards import Shard, shard_of
from onnxdrp.errors import DataError

__all__ = ["RecordedReader"]


class RecordedReader(ArrayReader):
    """Reads a folder of .npy and .npz files, sorted by their relative path, nested ones too.

    A file holds one sample, if its array has one axis less than the model's input, or a batch of
    them. Which array of a .npz feeds which input is told as for `ArrayReader`, and so is all
    else. Several inputs may also lie in sub-folders named after them, with the same file names
    in each.

    Args:
        data: the folder.
        model: the model, or its file.
        options: those of `ArrayReader`; `limit` is spread evenly over sub-folders.
    """

    def _open(self, data: Any) -> Sequence[Shard]:
        top = existing_folder(data)
        files = find_files(top, TENSORS)
        if not files:
            raise DataError(f"{top}: holds no tensor ({', '.join(TENSORS)})")
        folders = {PurePosixPath(name).parts[0] for name in files if "/" in name}
        if {info.name for info in self._inputs} & folders:
            return _by_folder(top, files, self._inputs)
        return [
            shard_of(
                open_columns(top / name), self._inputs, str(top / name), name, maybe_sample=True
            )
            for name in files
        ]


def _by_folder(top: Path, files: Sequence[str], inputs: Sequence[InputInfo]) -> list[Shard]:
    """Return a shard for each file name that stands in the folder of every input."""
    names = {
        info.name: {
            Path(file).relative_to(info.name).with_suffix("").as_posix(): file
            for file in files
            if PurePosixPath(file).parts[0] == info.name
        }
        for info in inputs
    }
    everywhere = sorted(set().union(*names.values()))
    for folder, have in names.items():
        missing = [name for name in everywhere if name not in have]
        if missing:
            raise DataError(
                f"{top / folder}: lacks {len(missing)} files that other inputs have: "
                + ", ".join(missing[:3])
            )
    shards = []
    for name in everywhere:
        columns = {}
        for info in inputs:
            path = top / names[info.name][name]
            one = shard_of(open_columns(path), [info], str(path))
            columns[info.name] = one.columns[info.name]
        shards.append(
            shard_of(columns, inputs, os.fspath(top / f"*/{name}"), name, maybe_sample=True)
        )
    return shards
