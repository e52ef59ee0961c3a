"""Raise the opset to the oldest one that the target takes.

By onnx's version converter, on the graph without its weights; it rewrites operators whose meaning
changed, where editing the number would leave an invalid or a different model. An opset is never
lowered: the converter has no way down.
"""

from dataclasses import dataclass
from typing import ClassVar

import onnx
from onnx import version_converter

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["ConvertOpset"]


@dataclass(frozen=True)
class ConvertOpset(Pass):
    """Raise the opset of an older model; a newer one is left as it is.

    Attributes:
        minimum: the opset that is wanted at least; None: the oldest that the target takes.
    """

    name: ClassVar[str] = "convert-opset"
    keeps_results: ClassVar[bool] = True

    minimum: int | None = None

    def __post_init__(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        if self.minimum is not None and not 1 <= self.minimum <= newest:
            raise OptionError(f"opset {self.minimum}: this onnx knows 1 to {newest}")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError where the converter cannot convert."""
        wanted = self.minimum if self.minimum is not None else ctx.target.opset_min
        before = model.opset
        if before >= wanted:
            return PassResult(modified=False, stats={"opset": before})
        try:
            converted = version_converter.convert_version(model.skeleton(), wanted)
        except RuntimeError as e:  # what its C++ throws
            why = str(e).strip().splitlines()[0].rpartition("failed: ")[2]
            raise ModelError(
                f"opset {before} cannot be raised to {wanted}: {why}; export the model again"
            ) from e
        model.rebuild(converted)
        return PassResult(modified=True, stats={"opset": wanted, "raised_from": before})

    def ensures(self, model: Model, ctx: PassContext) -> None:
        """What came out is valid ONNX."""
        model.check()
