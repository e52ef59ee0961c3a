"""Bring the opset between the oldest and the newest that the target takes.

Raised by onnx's version converter, on the graph without its weights; it rewrites operators whose
meaning changed, where editing the number would leave an invalid or a different model.

Lowered by our own table (onnxdrp/opsets.py), since the converter has hardly a way down. A lowered
model is accepted only if every node is valid in the older schemas, onnx's full checker passes, and
the results are those of before, by the rule of onnxdrp.equivalence on one sample (the reader's
first, else random numbers). Else the model keeps what it has, and the report says which nodes stood
in the way.

The version of the file format (IR) is lowered to the newest that the target reads, unless the opset
came with a newer one: older tools refuse files of a newer version, whatever is in them.

It must run where axes, paddings and shapes are stored, after FoldConstants, and before Calibrate:
tensors keep their names, but new ones come in between; InferShapes tells what these are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
from onnx import version_converter

from onnxdrp.errors import CheckError, ModelError, OptionError
from onnxdrp.instruments import Equivalence
from onnxdrp.model import Model
from onnxdrp.opsets import OLDEST, lower_opset
from onnxdrp.passes.inference import onnx_inference
from onnxdrp.pipeline import Pass, PassContext, PassRecord, PassResult
from onnxdrp.targets import Target, least_ir

__all__ = ["ConvertOpset"]


@dataclass(frozen=True)
class ConvertOpset(Pass):
    """Raise the opset of an older model, lower that of a newer one; leave one that fits.

    Stats: `opset`, and `raised_from`, or `lowered_from` and `rewritten`, {node: its operators now};
    `ir_lowered_from`, the version of the file format, if it was lowered.
    Where it could not be lowered, `wanted` is the opset that was, and `skipped` says why: {node:
    reason}, or {"model": reason}.

    Attributes:
        minimum: the opset that is wanted at least; None: the oldest that the target takes.
        maximum: the opset that is wanted at most; None: the newest that the target takes, or
            `minimum` where that is newer.
    """

    name: ClassVar[str] = "convert-opset"
    keeps_results: ClassVar[bool] = True

    minimum: int | None = None
    maximum: int | None = None

    def __post_init__(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        for opset in (self.minimum, self.maximum):
            if opset is not None and not 1 <= opset <= newest:
                raise OptionError(f"opset {opset}: this onnx knows 1 to {newest}")
        if self.maximum is not None and self.maximum < max(OLDEST, self.minimum or 0):
            raise OptionError(
                f"opset {self.maximum} at most: {_too_low(self.maximum, self.minimum)}"
            )

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError where the converter cannot raise it."""
        lowest, highest = self._span(ctx.target)
        result = PassResult(modified=False, stats={"opset": model.opset})
        if model.opset < lowest:
            result = _raise(model, lowest)
        elif highest is not None and model.opset > highest:
            result = self._lower(model, highest, ctx)
        newest, before = ctx.target.ir_version_max, model.ir_version
        if newest is None or not least_ir(model.opset) <= newest < before:
            return result
        if "skipped" in result.stats:
            return result  # it keeps what it has
        model.graph.ir_version = newest
        return PassResult(modified=True, stats=result.stats | {"ir_lowered_from": before})

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """What came out is valid ONNX."""
        model.check()

    def _span(self, target: Target) -> tuple[int, int | None]:
        lowest = self.minimum if self.minimum is not None else target.opset_min
        if self.maximum is not None:
            return min(lowest, self.maximum), self.maximum
        return lowest, None if target.opset_max is None else max(target.opset_max, lowest)

    def _lower(self, model: Model, wanted: int, ctx: PassContext) -> PassResult:
        before, skeleton = model.opset, model.skeleton()
        lowering = lower_opset(skeleton, onnx_inference(model.skeleton(), []), wanted)
        skipped = lowering.refused or self._differs(model, lowering.model, ctx)
        if skipped:
            stats = {"opset": before, "wanted": wanted, "skipped": skipped}
            return PassResult(modified=False, stats=stats)
        model.rebuild(lowering.model)
        done: dict[str, Any] = {"opset": wanted, "lowered_from": before}
        return PassResult(modified=True, stats={**done, "rewritten": lowering.rewritten})

    def _differs(self, model: Model, lowered: onnx.ModelProto, ctx: PassContext) -> dict[str, str]:
        """{"model": why the lowered model is not accepted}; empty if it is."""
        candidate, proof = model.clone(), Equivalence(samples=1)
        candidate.rebuild(lowered)
        try:
            candidate.check()
            proof.before(0, self, model, ctx)
            proof.after(
                0, self, candidate, ctx, PassRecord(0, self.name, self.options(), modified=True)
            )
        except (CheckError, ModelError) as e:
            return {"model": str(e)}
        return {}


def _raise(model: Model, wanted: int) -> PassResult:
    before = model.opset
    try:
        converted = version_converter.convert_version(model.skeleton(), wanted)
    except RuntimeError as e:  # what its C++ throws
        why = str(e).strip().splitlines()[0].rpartition("failed: ")[2]
        raise ModelError(
            f"opset {before} cannot be raised to {wanted}: {why}; export the model again"
        ) from e
    model.rebuild(converted)
    return PassResult(modified=True, stats={"opset": wanted, "raised_from": before})


def _too_low(maximum: int, minimum: int | None) -> str:
    if minimum is not None and maximum < minimum:
        return f"is below the {minimum} wanted at least; swap them"
    return f"opsets are lowered to {OLDEST} and later, which have QuantizeLinear"
