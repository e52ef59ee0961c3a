"""Which stored array feeds which input, and where its labels are."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxdrp.datareaders.base import InputInfo
from onnxdrp.datareaders.columns import Column
from onnxdrp.datareaders.layouts import format_shape
from onnxdrp.errors import DataError

__all__ = ["Shard", "read_labels", "shard_of"]

log = logging.getLogger(__name__)
LABELS = "y"


@dataclass(frozen=True)
class Shard:
    """Samples that lie in one place: a file, files of one name, or memory."""

    origin: str  # for messages
    name: str  # relative posix path: `limit` is spread over its folders
    columns: Mapping[str, Column]  # by input
    labels: Column | None

    @property
    def rows(self) -> int:
        """The number of samples."""
        return next(iter(self.columns.values())).shape[0]


def shard_of(
    arrays: Mapping[str, Column],
    inputs: Sequence[InputInfo],
    origin: str,
    name: str = "",
    *,
    maybe_sample: bool = False,
) -> Shard:
    """Find the array of each input, and the labels, among named arrays.

    A sole input is fed by the array with its name, else `x`, else the only array. With
    `maybe_sample`, an array with one axis less than the model wants is one sample.
    """
    names = [info.name for info in inputs]
    data = dict(arrays)
    labels = data.pop(LABELS, None) if LABELS not in names else None
    if len(names) == 1 and names[0] not in data:
        key = next(iter(data)) if len(data) == 1 else "x"
        data = {names[0]: data[key]} if key in data else data
    missing = [name for name in names if name not in data]
    if missing:
        have = ", ".join(arrays) or "none"
        raise DataError(f"{origin}: no array for the input {', '.join(missing)}; it has {have}")
    columns = {
        info.name: _as_batch(data[info.name], info) if maybe_sample else data[info.name]
        for info in inputs
    }
    rows = {name: column.shape[0] if column.shape else 0 for name, column in columns.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        shapes = ", ".join(f"{name} {format_shape(c.shape)}" for name, c in columns.items())
        raise DataError(
            f"{origin}: the first axis counts the samples, equal for all inputs and at least 1; "
            f"it holds {shapes}"
        )
    return Shard(origin, name, columns, labels)


def read_labels(shards: Sequence[Shard]) -> NDArray[np.int64] | None:
    """Return the class indices, int64 [samples]; None unless all shards have such integers."""
    parts = []
    for shard in shards:
        column = shard.labels
        if column is None:
            return None
        if column.dtype.kind not in "iu" or len(column.shape) > 1:
            log.info(
                "%s: %r is %s %s, not class indices: not used as labels",
                shard.origin,
                LABELS,
                column.dtype,
                format_shape(column.shape),
            )
            return None
        flat = column if column.shape else column.as_row()
        if flat.shape[0] != shard.rows:
            raise DataError(f"{shard.origin}: {shard.rows} samples but {flat.shape[0]} labels")
        parts += list(flat.rows(np.arange(shard.rows, dtype=np.int64), shard.rows))
    return np.concatenate(parts).astype(np.int64)


def _as_batch(column: Column, info: InputInfo) -> Column:
    if info.shape is None or len(column.shape) != len(info.shape) - 1:
        return column
    return column.as_row()
