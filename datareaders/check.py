"""Does the data fit the model? Said before any work begins."""

import numpy as np

from onnxdrp.datareaders.base import (
    Array,
    DataReader,
    InputInfo,
    ModelLike,
    first_batch,
    inputs_of,
)
from onnxdrp.datareaders.finite import check_finite
from onnxdrp.datareaders.layouts import fits, format_shape, layout_of, spec
from onnxdrp.errors import DataError

__all__ = ["check_reader"]


def check_reader(reader: DataReader, model: ModelLike) -> None:
    """Refuse a reader whose data does not fit the model's inputs, judged by its first batch.

    Names, number of axes, channels, sizes and types must be what the model wants, and floats
    must be finite, unless `reader.finite` is False. The batch size is free: it is cut to what
    the model takes.

    Raises:
        DataError: it says what the model wants and what came.
    """
    inputs = inputs_of(model)
    who = type(reader).__name__
    batch = first_batch(reader)
    if not batch:
        raise DataError(f"{who} gives no data: not one batch")
    wanted, given = [info.name for info in inputs], list(batch)
    if set(wanted) != set(given):
        raise DataError(
            f"the model wants the inputs {', '.join(wanted)}, but {who} gives {', '.join(given)}"
        )
    for info in inputs:
        _check_array(who, reader, info, np.asarray(batch[info.name]))
    rows = {name: len(array) for name, array in batch.items()}
    if len(set(rows.values())) > 1 or 0 in rows.values():
        counts = ", ".join(f"{name} {n}" for name, n in rows.items())
        raise DataError(f"{who}: all inputs need equally many samples, at least 1; got {counts}")
    if reader.finite:
        check_finite(batch, np.arange(max(rows.values())), who)


def _check_array(who: str, reader: DataReader, info: InputInfo, array: Array) -> None:
    came = f"{spec(info)} but {who} gives {format_shape(array.shape)}"
    if array.ndim == 0:
        raise DataError(f"{came}: the first axis must count the samples")
    if not fits(array.shape, info.shape):
        raise DataError(came + _advice(reader, info, array))
    if array.dtype != info.dtype:
        raise DataError(f"{came} {array.dtype}; give it as {info.dtype}")
    want = layout_of(info.shape)
    if array.ndim == 4 and want and reader.layout not in ("any", want):
        raise DataError(f"{spec(info)} but {who} gives {reader.layout}; use a reader of {want}")


def _advice(reader: DataReader, info: InputInfo, array: Array) -> str:
    """Say how to mend a shape that does not fit, where that can be told."""
    want = layout_of(info.shape)
    if want is None or info.shape is None or array.ndim != 4:
        return ""
    source, target, have = (3, 1, "NHWC") if want == "NCHW" else (1, 3, "NCHW")
    if fits(np.moveaxis(array, source, target).shape, info.shape):
        return (
            f", which is {have}: use {want}DataReader for images, "
            f"--layout {have.lower()} for arrays, or turn the axes in the reader"
        )
    return "; --size sets the size of images" if reader.layout == want else ""
