"""A PassContext on disk: what passes have told each other so far, and a few samples of the data.

context.json    seed, target, rates, reasons, ranges, quantization parameters
ranges.json     the same ranges with extremes and counts, as `onnxdrp.ranges` writes them
masks.npz       masks, as `onnxdrp.masks` writes them
sensitivity.json  what quantizing each unit alone costs
channels.json   what removing channels of each group alone costs
reference.onnx  the float model that weights were rounded from
dense.onnx      the float model before any weight was pruned
slim.onnx       the model as channels were removed from it
samples.npz     the first samples of the reader, as the model was to be fed with them
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.choosing import ChannelScores
from onnxdrp.channels.sensitivity import load_channel_sensitivity
from onnxdrp.datareaders import DataReader, take
from onnxdrp.errors import DataError, OptionError
from onnxdrp.masks import load_masks, save_masks
from onnxdrp.model import Model
from onnxdrp.pipeline import PassContext
from onnxdrp.quantization import QuantParams, Range
from onnxdrp.ranges import load_ranges, save_ranges
from onnxdrp.targets import Operators, Target
from onnxdrp.unit_sensitivity import load_sensitivity

__all__ = ["load_context", "save_context"]

Array = npt.NDArray[Any]

_PLAIN = ("seed", "rates", "refused", "removed", "kept_float", "wide")
_MODELS = ("reference", "dense", "slim")


class _Batches(DataReader):
    """Batches that were saved, given back as they are."""

    def __init__(self, batches: list[dict[str, Array]], layout: Any) -> None:
        self.layout = layout
        self.samples = sum(len(next(iter(batch.values()))) for batch in batches)
        self._batches = batches

    def batches(self) -> Iterator[Mapping[str, Array]]:
        """Begin a new pass."""
        yield from self._batches


def save_context(ctx: PassContext, folder: Path, samples: int = 8) -> None:
    """Write the tables of a context, and the first samples of its reader, into a folder.

    Raises:
        DataError: the reader fails; everything else is written by then.
    """
    tables: dict[str, Any] = {name: getattr(ctx, name) for name in _PLAIN}
    tables["shortened"] = sorted(ctx.shortened)
    tables["channel_scores"] = None if ctx.channel_scores is None else _scores(ctx.channel_scores)
    tables["target"] = dataclasses.asdict(ctx.target)
    tables["ranges"] = {name: (r.low, r.high) for name, r in ctx.ranges.items()}
    tables["quantization"] = {name: _params(p) for name, p in ctx.quantization.items()}
    (folder / "context.json").write_text(
        json.dumps(tables, indent=2, default=_plain) + "\n", encoding="utf-8"
    )
    if ctx.calibration is not None:
        save_ranges(folder / "ranges.json", ctx.calibration)
    if ctx.masks:
        save_masks(folder / "masks.npz", ctx.masks)
    if ctx.sensitivity is not None:
        ctx.sensitivity.save(folder / "sensitivity.json")
    if ctx.channel_curves is not None:
        ctx.channel_curves.save(folder / "channels.json")
    for name in _MODELS:
        if (model := getattr(ctx, name)) is not None:
            model.save(folder / f"{name}.onnx")
    if ctx.reader is not None:
        _save_samples(ctx.reader, folder / "samples.npz", samples)


def load_context(folder: Path) -> PassContext:
    """Read what `save_context` wrote. Raises OptionError if it cannot be read."""
    try:
        tables = json.loads((folder / "context.json").read_text(encoding="utf-8"))
        ctx = PassContext(target=_target(tables["target"]), **{n: tables[n] for n in _PLAIN})
        ctx.removed = {name: tuple(units) for name, units in ctx.removed.items()}
        ctx.shortened = frozenset(tables["shortened"])
        if (scores := tables["channel_scores"]) is not None:
            units = {name: np.array(of, np.float64) for name, of in scores.pop("units").items()}
            ctx.channel_scores = ChannelScores(units=units, **scores)
        ctx.ranges = {name: Range(*ends) for name, ends in tables["ranges"].items()}
        ctx.quantization = {name: QuantParams(**p) for name, p in tables["quantization"].items()}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise OptionError(f"{folder / 'context.json'}: no saved context ({e})") from e
    if (folder / "ranges.json").exists():
        ctx.calibration = load_ranges(folder / "ranges.json")
    if (folder / "masks.npz").exists():
        ctx.masks = load_masks(folder / "masks.npz")
    if (folder / "sensitivity.json").exists():
        ctx.sensitivity = load_sensitivity(folder / "sensitivity.json")
    if (folder / "channels.json").exists():
        ctx.channel_curves = load_channel_sensitivity(folder / "channels.json")
    for name in _MODELS:
        if (folder / f"{name}.onnx").exists():
            setattr(ctx, name, Model.load(folder / f"{name}.onnx"))
    if (folder / "samples.npz").exists():
        ctx.reader = _load_samples(folder / "samples.npz")
    return ctx


def _plain(number: Any) -> Any:
    return number.tolist()  # of numpy


def _scores(scores: ChannelScores) -> dict[str, Any]:
    units = {name: of.tolist() for name, of in scores.items()}
    return {"by": scores.by, "units": units, "unscored": dict(scores.unscored)}


def _params(params: QuantParams) -> dict[str, Any]:
    return {
        "scale": params.scale.tolist(),  # float32 to a Python float and back is exact
        "zero_point": params.zero_point.tolist(),
        "dtype": params.dtype,
        "axis": params.axis,
    }


def _target(table: dict[str, Any]) -> Target:
    plain = _tuples(table)
    return Target(**{**plain, "operators": Operators(**plain["operators"])})


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(v) for name, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _save_samples(reader: DataReader, path: Path, samples: int) -> None:
    try:
        batches = list(take(reader, samples).batches())
    except Exception as e:  # a user's reader may raise anything
        raise DataError(f"the reader's samples could not be saved ({e})") from e
    names = sorted({name for batch in batches for name in batch})
    arrays: dict[str, Any] = {
        f"{i}_{names.index(name)}": np.asarray(array)
        for i, batch in enumerate(batches)
        for name, array in batch.items()
    }
    np.savez_compressed(path, names=np.array(names), layout=np.array(reader.layout), **arrays)


def _load_samples(path: Path) -> _Batches:
    batches: dict[int, dict[str, Array]] = {}
    with np.load(path, allow_pickle=False) as archive:
        names, layout = archive["names"].tolist(), str(archive["layout"])
        for key in archive.files:
            if key not in ("names", "layout"):
                batch, name = map(int, key.split("_"))
                batches.setdefault(batch, {})[names[name]] = archive[key]
    return _Batches([batches[i] for i in sorted(batches)], layout)
