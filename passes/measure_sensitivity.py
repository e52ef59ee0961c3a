"""Measure what quantizing each unit alone costs at the outputs (onnxdrp.unit_sensitivity).

Runs where ranges are known and weights are not yet rounded. Fills ctx.sensitivity; the model is not
touched.
"""

from dataclasses import dataclass
from typing import ClassVar

from onnxdrp.errors import DataError, ModelError
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.unit_sensitivity import quantization_sensitivity

__all__ = ["MeasureSensitivity", "require_ranges"]

_SHOWN = 5


def require_ranges(step: Pass, ctx: PassContext) -> None:
    """There is data, ranges are known, and nothing is quantized yet.

    Raises:
        DataError: there is no data.
        ModelError: calibrate has not run, or the weights are rounded already.
    """
    if ctx.reader is None:
        raise DataError(f"{step.name} needs data; give some dozen images or arrays (--calib)")
    if not ctx.ranges:
        raise ModelError("no ranges are known; run calibrate first")
    if ctx.quantization:
        raise ModelError(f"the weights are quantized already; run {step.name} before that")


@dataclass(frozen=True)
class MeasureSensitivity(Pass):
    """Quantize each layer and operator alone, and compare the outputs with the float model's.

    Stats: how many `units` there are, and the `worst` of them: {node: SQNR in dB}.

    Attributes:
        samples: of the calibration data, spread over it.
        per_channel: weight scales by output channel; None: as the target has it.
        file: a JSON file that is written as the work goes on, and gone on from if it is there; "":
            none.
    """

    name: ClassVar[str] = "measure-sensitivity"
    keeps_results: ClassVar[bool] = True

    samples: int = 16
    per_channel: bool | None = None
    file: str = ""

    def requires(self, model: Model, ctx: PassContext) -> None:
        """There is data, ranges are known, and nothing is quantized yet."""
        require_ranges(self, ctx)

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises ModelError if nothing is quantized, DataError where onnxruntime fails."""
        assert ctx.reader is not None  # see requires
        found = quantization_sensitivity(
            model,
            ctx.reader,
            ctx.target,
            ctx.ranges,
            kept_float=ctx.kept_float,
            per_channel=self.per_channel,
            samples=self.samples,
            seed=ctx.seed,
            path=self.file or None,
            progress=ctx.progress,
        )
        ctx.sensitivity = found
        worst = {unit.name: round(unit.sqnr_db, 2) for unit in found.units[:_SHOWN]}
        stats = {"units": len(found.units), "samples": found.samples, "worst": worst}
        return PassResult(modified=False, stats=stats)
