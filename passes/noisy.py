"""The model with its activations rounded, and everything else in float: what the weights will meet.

Each tensor that the plan quantizes goes through a pair of QuantizeLinear and DequantizeLinear, as
InsertQdq will put it; weights and biases keep their names and values, so that they can still be
replaced while the model runs (onnxdrp.walk).
"""

from onnxdrp.errors import ModelError
from onnxdrp.model import Model
from onnxdrp.passes.qdq import Writer, rounded_for
from onnxdrp.pipeline import PassContext
from onnxdrp.plan import make_plan

__all__ = ["noisy_copy"]


def noisy_copy(model: Model, ctx: PassContext) -> Model:
    """A copy that rounds activations.

    Args:
        model: not quantized yet.
        ctx: its `quantization` has the parameters of all activations.

    Raises:
        ModelError: the opset has no QuantizeLinear.
    """
    if model.opset < 10:
        raise ModelError(f"opset {model.opset} has no QuantizeLinear; run convert-opset first")
    plan = make_plan(model, ctx.target, ctx.kept_float)
    copy = model.clone()
    tensors, writer = copy.tensors(), Writer(copy)
    for name in [key for key in plan.groups if isinstance(key, str)]:
        readers, _ = rounded_for(plan, tensors[name])
        writer.activation(tensors[name], readers, ctx.quantization[name], rename=False)
    writer.finish()
    return copy
