"""Check the result: valid, masked, runnable, as the target wants it.

1. onnx's full checker accepts it.
2. What the masks prune is exactly zero, behind a DequantizeLinear too.
3. onnxruntime, its optimizations on, loads it, and its outputs are finite on a batch: of the
   reader's, else of random numbers.
4. What the target wants and the model has not is listed; with `strict` it is an error.
"""

from dataclasses import dataclass
from typing import ClassVar

from onnxdrp.conformance import departures
from onnxdrp.errors import CheckError, DataError, ModelError, OptionError
from onnxdrp.masked import check_masks
from onnxdrp.model import Model
from onnxdrp.observe import Tap, observe
from onnxdrp.observers import MinMax
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["Check"]


@dataclass(frozen=True)
class Check(Pass):
    """Check the model; it is not changed.

    Attributes:
        strict: a wish of the target that is not met is an error.
    """

    name: ClassVar[str] = "check"
    keeps_results: ClassVar[bool] = True

    strict: bool = False

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises CheckError with what is wrong."""
        model.check()
        check_masks(model, ctx.masks)
        ran_on = _run_once(model, ctx)
        unmet = [
            *ctx.target.unmet(model),
            *departures(model, ctx.target, masks=ctx.masks, kept=ctx.kept_float),
        ]
        if unmet and self.strict:
            raise CheckError(f"target {ctx.target.name} is not met: {'; '.join(unmet)}")
        stats = {"masks": len(ctx.masks), "ran_on": ran_on, "unmet": unmet}
        return PassResult(modified=False, stats=stats)


def _run_once(model: Model, ctx: PassContext) -> str:
    """Load the model and run one sample; what was run. It is loaded once: that takes long."""
    from onnxdrp.datareaders import SyntheticReader, take

    reader, what = ctx.reader, "the reader's first sample"
    try:
        if reader is None:
            try:
                reader, what = SyntheticReader(model, samples=1), "random numbers"
            except (DataError, OptionError) as e:
                model.session()
                return f"nothing: {e}"
        taps = {info.name: Tap(info.name, MinMax()) for info in model.outputs}
        observe(model, take(reader, 1), taps)
    except ModelError as e:
        raise CheckError(f"the result does not load: {e}") from e
    except DataError as e:
        raise CheckError(f"the result does not run: {e}") from e
    return what
