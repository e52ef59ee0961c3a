"""One door to all readers: what the command line calls DATA."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxdrp.datareaders.arrays import ArrayReader
from onnxdrp.datareaders.base import Array, DataReader, ModelLike, inputs_of
from onnxdrp.datareaders.batching import take
from onnxdrp.datareaders.files import IMAGES, TENSORS, find_files
from onnxdrp.datareaders.geometry import PadColor, PadPlace, Resize
from onnxdrp.datareaders.images import NCHWDataReader, NHWCDataReader
from onnxdrp.datareaders.layouts import infer_layout, parse_layout
from onnxdrp.datareaders.pixels import ChannelValues, Color
from onnxdrp.datareaders.recorded import RecordedReader
from onnxdrp.datareaders.spool import HasGetNext, wrap
from onnxdrp.datareaders.user import load_reader
from onnxdrp.errors import DataError, OptionError

__all__ = ["Data", "open_reader"]

Data: TypeAlias = (
    str | os.PathLike[str] | Array | Mapping[str, Array] | DataReader | HasGetNext | None
)
ACCEPTED = f"a folder of images ({', '.join(IMAGES)}), a .npz or .npy file, or a folder of such"


def open_reader(
    data: Data,
    model: ModelLike,
    *,
    layout: str | None = None,
    size: tuple[int, int] | None = None,
    resize: Resize | None = None,
    scale: float | None = None,
    mean: ChannelValues | None = None,
    std: ChannelValues | None = None,
    color: Color | None = None,
    pad_color: PadColor | None = None,
    pad_place: PadPlace | None = None,
    limit: int | None = None,
    batch: int | None = None,
    seed: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    reader: str | os.PathLike[str] | None = None,
) -> DataReader:
    """Return a reader of any data that onnxdrp understands, made for a model.

    Every option is None until it is given; one that the data cannot honour is refused.

    Args:
        data: a folder of images, a .npz or .npy file, a folder of such, an array, arrays by name,
            or a reader (this package's or onnxruntime's). None if `reader` needs none.
        model: the model, or its file.
        layout: "nchw" or "nhwc": the axis order that images are to have, or that arrays have.
        size: see `NCHWDataReader`; so are the options that are not explained here.
        resize: "stretch" unless given.
        scale: 1/255 unless given.
        mean: 0 unless given.
        std: 1 unless given.
        color: "rgb" unless given.
        pad_color: 114 unless given.
        pad_place: "centre" unless given.
        limit: read only so many samples; of a reader, the first.
        batch: 1 unless given.
        seed: 0 unless given.
        labels: of a folder of images: a CSV file, or "folders".
        reader: FILE.py or FILE.py:Class, a reader of the user's own; it is given the options
            that its constructor takes (see `load_reader`).
    """
    options = {
        "layout": layout, "size": size, "resize": resize, "scale": scale, "mean": mean, "std": std,
        "color": color, "pad_color": pad_color, "pad_place": pad_place, "limit": limit,
        "batch": batch, "seed": seed, "labels": labels,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    if reader is not None:
        if not isinstance(data, (str, os.PathLike, type(None))):
            raise OptionError("a reader of your own takes its data from a path, or knows it itself")
        return load_reader(reader, model, data, **given)
    if isinstance(data, (str, os.PathLike)):
        return _path(Path(data), model, given)
    if isinstance(data, DataReader) or hasattr(data, "get_next"):
        return _ready(data, given)
    if isinstance(data, (np.ndarray, Mapping)):
        return _arrays(data, model, given)
    raise DataError(
        f"cannot read data from a {type(data).__name__}; give {ACCEPTED}, "
        "an array, arrays by name, or a reader"
    )


def _path(path: Path, model: ModelLike, given: dict[str, Any]) -> DataReader:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give {ACCEPTED}")
    if path.is_file():
        if path.suffix.lower() not in TENSORS:
            raise DataError(f"{path}: cannot read this as data; give {ACCEPTED}")
        return _arrays(path, model, given)
    images, tensors = bool(find_files(path, IMAGES)), bool(find_files(path, TENSORS))
    if images and tensors:
        raise DataError(f"{path}: holds images and arrays; give the folder of one or the other")
    if images:
        return _images(path, model, given)
    if tensors:
        _refuse_labels(given)
        return RecordedReader(path, model, **given)
    raise DataError(f"{path}: holds nothing that can be read; give {ACCEPTED}")


def _images(path: Path, model: ModelLike, given: dict[str, Any]) -> DataReader:
    options = dict(given)
    layout = parse_layout(options.pop("layout", None))
    inputs = inputs_of(model)
    if layout is None and len(inputs) == 1 and inputs[0].shape and len(inputs[0].shape) == 4:
        layout = infer_layout(inputs[0].shape, f"input {inputs[0].name!r}")
    # where no layout can be told, the reader says what is wrong with the inputs
    cls = NHWCDataReader if layout == "NHWC" else NCHWDataReader
    for name in ("mean", "std"):
        if name in options:
            options[f"norm_{name}"] = options.pop(name)
    return cls(path, model=model, **options)


def _arrays(data: Any, model: ModelLike, given: dict[str, Any]) -> DataReader:
    _refuse_labels(given)
    return ArrayReader(data, model, **given)


def _ready(data: Any, given: dict[str, Any]) -> DataReader:
    """Return a reader that exists already: only its layout can be declared and its data cut."""
    unused = sorted(set(given) - {"layout", "limit", "seed"})
    if unused:
        raise OptionError(
            f"{type(data).__name__} is a reader already; it cannot take {', '.join(unused)}"
        )
    opened = wrap(data, parse_layout(given.get("layout")))
    return take(opened, given["limit"]) if "limit" in given else opened


def _refuse_labels(given: dict[str, Any]) -> None:
    if "labels" in given:
        raise OptionError("labels belong to a folder of images; arrays hold theirs as `y`")
