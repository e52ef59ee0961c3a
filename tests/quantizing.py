"""Quantize small models the way the whole job does, and look at what came of it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from builders import Array, feeds_for

from onnxdrp.datareaders import DataReader
from onnxdrp.model import Model
from onnxdrp.passes import Calibrate, InferShapes, InsertQdq, QuantizeWeights
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.plan import Plan, make_plan
from onnxdrp.targets import Target, load_target

__all__ = [
    "Feeds",
    "Quantized",
    "numbers",
    "parse",
    "planned",
    "quantize_model",
    "sqnr",
    "target_with",
]


class Feeds(DataReader):
    """Batches given one by one."""

    def __init__(self, *batches: Mapping[str, Array]) -> None:
        self.given = batches
        self.samples = sum(len(next(iter(b.values()))) for b in batches)

    def batches(self) -> Iterator[Mapping[str, Array]]:
        return iter(self.given)


@dataclasses.dataclass
class Quantized:
    """A float model and what the passes made of it."""

    before: Model
    model: Model
    ctx: PassContext
    stats: dict[str, dict[str, Any]]

    def tensors(self) -> dict[str, gs.Tensor]:
        return self.model.tensors()

    def params(self, name: str) -> tuple[Array, Array]:
        """Scale and zero point of a tensor, as they stand in the graph."""
        tensors = self.tensors()
        scale, zero = (
            self.model.constant(tensors[f"{name}_{what}"]) for what in ("scale", "zero_point")
        )
        assert scale is not None
        assert zero is not None
        return scale, zero


def parse(text: str, weights: Mapping[str, Array] | None = None) -> Model:
    """A model in ONNX's text form; `weights` replace the initializers of their names."""
    proto = onnx.parser.parse_model(text)
    stored = {t.name: t for t in proto.graph.initializer}
    for name, array in (weights or {}).items():
        if name in stored:
            stored[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
        else:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = Model.from_proto(proto)
    InferShapes().run(model, PassContext())
    return model


def target_with(base: str = "generic", **changes: Any) -> Target:
    """A profile with other values; keys of [operators] as well."""
    target = load_target(base)
    fields = {f.name for f in dataclasses.fields(target.operators)}
    ops = {key: changes.pop(key) for key in list(changes) if key in fields}
    return dataclasses.replace(
        target, operators=dataclasses.replace(target.operators, **ops), **changes
    )


def planned(model: Model, target: str | Target = "generic", **kept: str) -> Plan:
    profile = load_target(target) if isinstance(target, str) else target
    return make_plan(model, profile, kept)


def quantize_model(
    source: Model | onnx.ModelProto,
    *feeds: Mapping[str, Array],
    target: str | Target = "generic",
    per_channel: bool | None = None,
    ctx: PassContext | None = None,
    **calibration: Any,
) -> Quantized:
    """Calibrate on `feeds` (default: normal values), quantize weights, insert Q/DQ, check.

    Small graphs that end in a Concat would pass for detectors: a tail is quantized unless told.
    """
    calibration.setdefault("exclude_tail", "none")
    model = source if isinstance(source, Model) else Model.from_proto(source)
    ctx = ctx or PassContext()
    ctx.target = load_target(target) if isinstance(target, str) else target
    ctx.reader = Feeds(*(feeds or (feeds_for(model.proto(), batch=8),)))
    InferShapes().run(model, ctx)
    before = model.clone()
    steps = [Calibrate(**calibration), QuantizeWeights(per_channel), InsertQdq()]
    report = PassManager(steps).run(model, ctx)
    model.check()
    return Quantized(before, model, ctx, {r.name: r.stats for r in report.records})


def numbers(model: Model, op: str) -> int:
    """How many nodes of an operator a model has."""
    return len(model.nodes(op))


def sqnr(want: Array, got: Array) -> float:
    want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
    assert np.ptp(want) > 0
    noise = float(((want - got) ** 2).sum())
    return float(10 * np.log10((want**2).sum() / noise)) if noise else np.inf
