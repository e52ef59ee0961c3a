"""Write the quantization into the graph as QuantizeLinear and DequantizeLinear.

    1. A Relu or Clip that ends a unit goes if all that the output's parameters can represent lies
       inside its interval: quantizing saturates there anyway. Else it stays, with nothing rounded
       before it. (So no Relu goes at zero point 0 of int8.)
    2. MatMul + Add of a fully connected layer becomes one Gemm where the tensor has rank 2.
    3. Weights become int8, biases int32 of scale s_in * s_w (unless the target takes them in
       float), constant operands integers of the activations' type; each is read through a
       DequantizeLinear.
    4. Activations go through a pair. What is computed by quantized nodes is read behind the pair by
       everybody; what floats compute, by quantized nodes only.

Inputs and outputs keep names and types.
"""

from dataclasses import dataclass
from typing import ClassVar

from onnxdrp.errors import ModelError
from onnxdrp.model import Model
from onnxdrp.operators import changes_nothing, clip_bounds
from onnxdrp.parameters import activation_parameters, uses_by_weight
from onnxdrp.passes.edit import producer
from onnxdrp.passes.qdq import Writer, rounded_for
from onnxdrp.pipeline import Pass, PassContext, PassResult
from onnxdrp.plan import Operand, Plan, make_plan
from onnxdrp.quantization import QuantParams, bias_params

__all__ = ["InsertQdq"]


@dataclass(frozen=True)
class InsertQdq(Pass):
    """Insert what ctx.quantization says."""

    name: ClassVar[str] = "insert-qdq"

    def requires(self, model: Model, ctx: PassContext) -> None:
        """Parameters are there, the model has none yet, and its opset has QuantizeLinear."""
        if not ctx.quantization:
            raise ModelError("no parameters are known; run calibrate and quantize-weights first")
        if node := next(iter(model.nodes("QuantizeLinear")), None):
            raise ModelError(f"node {node.name!r}: the model is quantized already")
        if model.opset < 10:
            raise ModelError(
                f"opset {model.opset} has no QuantizeLinear; run the pass convert-opset first"
            )

        nodes = {node.name: node for node in model.nodes()}
        weights = uses_by_weight(nodes, make_plan(model, ctx.target, ctx.kept_float))
        if missing := weights.keys() - ctx.quantization.keys():
            raise ModelError(
                f"weight {min(missing)!r} is not quantized; run quantize-weights first"
            )

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Fold activations, then write stored tensors, then computed ones."""
        plan = make_plan(model, ctx.target, ctx.kept_float)
        known = activation_parameters(
            model, plan, ctx.ranges, ctx.target, ctx.wide, ctx.calibration
        )
        known.update(ctx.quantization)
        insert = _Insert(model, plan, known, biases=ctx.target.bias_dtype == "int32")
        stats = {
            "folded_activations": insert.fold_activations(),
            "matmul_to_gemm": insert.fully_connected(),
            "weights": insert.weights(),
            "biases": insert.biases(),
            "constant_operands": insert.operands(),
            "pairs": insert.activations(),
            "skipped": dict(plan.kept),
        }
        insert.writer.finish()
        return PassResult(modified=True, stats=stats)


class _Insert:
    """One insertion; each method does one part and returns how many it did."""

    def __init__(
        self, model: Model, plan: Plan, params: dict[str | Operand, QuantParams], *, biases: bool
    ) -> None:
        self.model, self.plan, self.params = model, plan, params
        self.nodes = {node.name: node for node in model.nodes()}
        self.biases_at = dict(plan.biases) if biases else {}
        self.weight_of: dict[str, QuantParams] = {}  # by layer
        self.writer = Writer(model)

    def fold_activations(self) -> int:
        folded = 0
        for followers in self.plan.units.values():
            node = self.nodes[followers[-1]]
            params = self.params.get(node.outputs[0].name)
            if node.op not in ("Relu", "Clip") or params is None:
                continue
            bounds = clip_bounds(self.model, node)
            if bounds is not None and changes_nothing(bounds, params.interval):
                self.writer.merge(node, producer(node.inputs[0]))
                folded += 1
        return folded

    def fully_connected(self) -> int:
        done = 0
        for head, (holder, place) in list(self.biases_at.items()):
            node, add = self.nodes[head], self.nodes[holder]
            shape = node.outputs[0].shape
            if head == holder or shape is None or len(shape) != 2:
                continue
            node.inputs.append(add.inputs[place])
            node.op, node.attrs = "Gemm", {}
            self.writer.merge(add, node)
            self.biases_at[head] = (head, 2)
            done += 1
        return done

    def weights(self) -> int:
        uses = uses_by_weight(self.nodes, self.plan)
        for name, users in uses.items():
            readers = [(self.nodes[use.node], use.weight) for use in users]
            self.writer.stored(readers, self.params[name])
            self.weight_of |= dict.fromkeys((use.node for use in users), self.params[name])
        return len(uses)

    def biases(self) -> int:
        for head, (holder, place) in self.biases_at.items():
            use, node = self.plan.layers[head], self.nodes[holder]
            data = self.params[self.nodes[head].inputs[use.data].name]
            params = bias_params(data.scale, self.weight_of[head])
            self.writer.separate((node, place), (use.outputs,))
            self.writer.stored([(node, place)], params)
        return len(self.biases_at)

    def operands(self) -> int:
        operands = [key for key in self.plan.groups if isinstance(key, tuple)]
        for name, place in operands:
            self.writer.separate((self.nodes[name], place))
            self.writer.stored([(self.nodes[name], place)], self.params[name, place])
        return len(operands)

    def activations(self) -> int:
        tensors = self.model.tensors()
        names = [key for key in self.plan.groups if isinstance(key, str)]
        for name in names:
            readers, whole = rounded_for(self.plan, tensors[name])
            self.writer.activation(tensors[name], readers, self.params[name], rename=whole)
        return len(names)
