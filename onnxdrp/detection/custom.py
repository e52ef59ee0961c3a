"""Decoders by name: the built-in ones, a user's function, or `FILE.py[:function]`.

A user's decoder is called for each batch, with the outputs by name and the (height, width) of the
model's input:

    def decode(outputs, size):
        return boxes, scores           # [N][A, 4] left, top, right, bottom in pixels; [N][A, C]
        return boxes, scores, classes  # or the scores [N][A] of the classes [N][A]
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.detection.decode import DECODERS, Candidates, Decoder
from onnxdrp.errors import OptionError

__all__ = ["get_decoder"]

Array = npt.NDArray[Any]
UserDecoder = Callable[[Mapping[str, Array], tuple[int, int]], Any]


def get_decoder(decoder: str | UserDecoder) -> Decoder:
    """The decoder that a name, a `FILE.py[:function]` or a function stands for.

    Args:
        decoder: `yolox`, `yolov8`, a Python file (its function `decode` unless another is named),
            or a function.

    Raises:
        OptionError: The name is unknown, the file cannot be loaded, or it has no such function.
    """
    if callable(decoder):
        return _checked(decoder, getattr(decoder, "__name__", "decoder"))
    if decoder in DECODERS:
        return DECODERS[decoder]
    file, _, function = decoder.rpartition(":")
    if not file.endswith(".py"):
        file, function = decoder, "decode"
    if not file.endswith(".py"):
        known = ", ".join(DECODERS)
        raise OptionError(f"decoder {decoder!r} is unknown; choose {known} or FILE.py[:function]")
    return _checked(_load(Path(file), function), decoder)


def _load(path: Path, function: str) -> UserDecoder:
    if not path.is_file():
        raise OptionError(f"decoder {path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"decoder {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise OptionError(f"decoder {path} failed to load: {_told(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise OptionError(
            f"decoder {path} has no function {function!r}; name one: FILE.py:function"
        )
    return found  # type: ignore[no-any-return]


def _checked(function: UserDecoder, label: str) -> Decoder:
    """A user's function as a Decoder: what it raises and returns is reported under its name."""

    def decode(outputs: Mapping[str, Array], size: tuple[int, int]) -> Sequence[Candidates]:
        try:
            result = function(outputs, size)
        except Exception as error:
            raise OptionError(f"decoder {label} failed: {_told(error)}") from error
        if not isinstance(result, (tuple, list)) or len(result) not in (2, 3):
            raise OptionError(
                f"decoder {label} must return (boxes, scores) or (boxes, scores, classes), "
                f"not {type(result).__name__}"
            )
        try:
            return [_candidates(*parts) for parts in zip(*result, strict=True)]
        except (TypeError, ValueError) as error:
            raise OptionError(f"decoder {label} returned no usable boxes: {error}") from error

    return decode


def _candidates(boxes: Any, scores: Any, classes: Any = None) -> Candidates:
    """Those of one image.

    Raises:
        ValueError: Shapes or values are none that candidates have.
    """
    boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
    classes = None if classes is None else np.asarray(classes)
    if boxes.size == 0:
        return Candidates(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    anchors = boxes.shape[:1]
    good = boxes.shape == (*anchors, 4) and scores.shape[:1] == anchors
    if classes is None:
        good = good and scores.ndim == 2
    else:
        good = good and scores.shape == classes.shape == anchors
    if not good:
        came = ", ".join(
            str(list(np.shape(part))) for part in (boxes, scores, classes) if part is not None
        )
        raise ValueError(
            f"an image has {came}; wanted are boxes [A, 4] and scores [A, C], "
            "or boxes [A, 4], scores [A] and classes [A]"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("boxes or scores are NaN or infinite")
    return Candidates(boxes, scores, classes)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
