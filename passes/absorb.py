"""Take an affine map y = s * x + t into the weights of the node before or after it.

After Conv, ConvTranspose, Gemm, MatMul, whose outputs o lie along one axis of the weight W:

    s_o * (W_o . x + b_o) + t_o  =  (s_o * W_o) . x  +  (s_o * b_o + t_o)

Before Conv, Gemm, MatMul, whose inputs i lie along another:

    W . (s * x + t) + b  =  sum_i (W_i * s_i) . x_i  +  (b + sum_i W_i * t_i)

the latter only where every output sees all inputs: in a Conv that pads, the zeros of the border
would have to become -t / s, so there t must be 0. All is computed in float64 and rounded once, to
the type that the weight has. Weights that other nodes read are refused: a copy would make the file
larger, and two masks of what was one weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxdrp.model import Model
from onnxdrp.passes.affine import Affine, Array, CannotFuseError
from onnxdrp.passes.edit import Names

__all__ = ["Absorber"]


@dataclass
class Absorber:
    """Changes weights so that an affine map beside their node can go.

    Attributes:
        model: whose weights change.
        names: for new biases.
        protected: tensors that must stay as they are.
    """

    model: Model
    names: Names
    protected: set[str]

    def after(self, node: gs.Node, affine: Affine) -> Array | None:
        """Let `node` compute what `affine` makes of its output.

        Returns:
            What must still be added to its output, or None; only MatMul has no bias of its own.

        Raises:
            CannotFuseError: nothing was changed, and why.
        """
        ways: dict[str, Callable[[gs.Node, Affine], Array | None]] = {
            "Conv": self._after_conv,
            "ConvTranspose": self._after_conv,
            "Gemm": self._after_gemm,
            "MatMul": self._after_matmul,
            "BatchNormalization": self._after_batchnorm,
        }
        if node.op not in ways:
            raise CannotFuseError(f"{node.op} before it has no weight")
        return ways[node.op](node, affine)

    def widths_after(self, node: gs.Node, ramp: Affine) -> tuple[Array, Array]:
        """Of each output of a node: its number in a ramp, and its largest weight."""
        if node.op == "Conv":
            weight = np.abs(self._weight(node, 1)).reshape(self._weight(node, 1).shape[0], -1)
            return ramp.along(1, weight.shape[0], "channels of Conv")[0], weight.max(axis=1)
        if node.op == "Gemm":
            weight = np.abs(self._weight(node, 1))
            widths = weight.max(axis=1 if node.attrs.get("transB", 0) else 0)
            return ramp.along(1, widths.size, "outputs of Gemm")[0], widths
        if node.op == "MatMul" and self.model.constant(node.inputs[1]) is not None:
            widths = np.abs(self._weight(node, 1)).max(axis=0)
            return ramp.along(ramp.scale.ndim - 1, widths.size, "outputs of MatMul")[0], widths
        raise CannotFuseError(f"{node.op} before it has no weight of known channels")

    def widths_before(self, node: gs.Node, place: int, ramp: Affine) -> tuple[Array, Array]:
        """Of each input of a node: its number in a ramp, and its largest weight."""
        if node.op == "Conv" and place == 0:
            weight, groups = np.abs(self._weight(node, 1)), int(node.attrs.get("group", 1))
            split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            widths = split.max(axis=(1, 3)).reshape(-1)
            return ramp.along(1, widths.size, "input channels of Conv")[0], widths
        if node.op == "Gemm" and place == 0 and not node.attrs.get("transA", 0):
            weight = np.abs(self._weight(node, 1))
            widths = weight.max(axis=0 if node.attrs.get("transB", 0) else 1)
            return ramp.along(1, widths.size, "inputs of Gemm")[0], widths
        if node.op == "MatMul" and place == 0:
            weight = np.abs(self._weight(node, 1))
            widths = weight.max(axis=tuple(i for i in range(weight.ndim) if i != weight.ndim - 2))
            return ramp.along(ramp.scale.ndim - 1, widths.size, "inputs of MatMul")[0], widths
        raise CannotFuseError(f"{node.op} after it has no weight of known channels")

    def before(self, node: gs.Node, place: int, affine: Affine) -> Array | None:
        """Let `node` take at input `place` what `affine` would have been given; else as `after`."""
        if node.op == "MatMul":
            return self._before_matmul(node, place, affine)
        if node.op not in ("Conv", "Gemm") or place != 0:
            raise CannotFuseError(f"{node.op} after it has no weight to take it")
        (self._before_conv if node.op == "Conv" else self._before_gemm)(node, affine)
        return None

    def _after_conv(self, node: gs.Node, affine: Affine) -> None:
        weight = self._weight(node, 1)
        axis, groups = 0, 1
        if node.op == "ConvTranspose":  # its weight is [inputs, outputs / groups, ...]
            axis, groups = 1, int(node.attrs.get("group", 1))
        size = weight.shape[axis] * groups
        s, t = affine.along(1, size, f"channels of {node.op}")
        split = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
        each = s.reshape(groups, -1)  # (groups, outputs of one)
        wide = [1] * split.ndim
        wide[0], wide[axis + 1] = each.shape
        scaled = (split * each.reshape(wide)).reshape(weight.shape)
        self._set(node, scaled, s * self._bias(node, size) + t)

    def _after_gemm(self, node: gs.Node, affine: Affine) -> None:
        weight = self._weight(node, 1)
        turned = bool(node.attrs.get("transB", 0))
        s, t = affine.along(1, weight.shape[0 if turned else 1], "outputs of Gemm")
        scaled = weight.astype(np.float64) * (s[:, None] if turned else s)
        beta = float(node.attrs.get("beta", 1.0))
        self._set_gemm(node, scaled, s * (beta * self._bias(node, s.size)) + t)

    def _after_matmul(self, node: gs.Node, affine: Affine) -> Array | None:
        place, weight = self._matrix(node, affine)
        rank = affine.scale.ndim
        if place == 1:
            s, t = affine.along(rank - 1, weight.shape[-1], "outputs of MatMul")
            scaled = weight * s
        else:
            s, t = affine.along(rank - 2, weight.shape[-2], "outputs of MatMul")
            scaled, t = weight * s[:, None], t[:, None]
        return self._set_matrix(node, place, scaled, t)

    def _after_batchnorm(self, node: gs.Node, affine: Affine) -> None:
        gamma, beta = (self.model.constant(t) for t in node.inputs[1:3])
        if gamma is None or beta is None:
            raise CannotFuseError("the scale or bias of BatchNormalization is computed")
        s, t = affine.along(1, gamma.size, "channels of BatchNormalization")
        new = [_cast(s * gamma, gamma.dtype), _cast(s * beta + t, beta.dtype)]
        for place, value in enumerate(new, 1):
            self._put(node, place, value)

    def _before_conv(self, node: gs.Node, affine: Affine) -> None:
        weight = self._weight(node, 1)
        groups = int(node.attrs.get("group", 1))
        s, t = affine.along(1, weight.shape[1] * groups, "input channels of Conv")
        if np.any(t) and _pads(node, weight.shape[2:]):
            raise CannotFuseError("Conv after it pads with zeros, and its shift is not 0")
        spread = (groups, weight.shape[0] // groups, weight.shape[1])
        wide = (*weight.shape[:2], *(1,) * (weight.ndim - 2))
        each = [
            np.broadcast_to(v.reshape(groups, 1, -1), spread).reshape(wide) for v in (s, t)
        ]  # (outputs, inputs / groups, 1...)
        exact = weight.astype(np.float64)
        moved = (exact * each[1]).sum(axis=tuple(range(1, weight.ndim)))
        self._set(node, exact * each[0], self._bias(node, weight.shape[0]) + moved)

    def _before_gemm(self, node: gs.Node, affine: Affine) -> None:
        weight = self._weight(node, 1)
        exact = weight.astype(np.float64)
        if node.attrs.get("transB", 0):
            exact = exact.T  # (inputs, outputs)
        axis = 0 if node.attrs.get("transA", 0) else 1
        s, t = affine.along(axis, exact.shape[0], "inputs of Gemm")
        alpha, beta = (float(node.attrs.get(k, 1.0)) for k in ("alpha", "beta"))
        bias = beta * self._bias(node, exact.shape[1]) + alpha * (t @ exact)
        scaled = exact * s[:, None]
        self._set_gemm(node, scaled.T if node.attrs.get("transB", 0) else scaled, bias)

    def _before_matmul(self, node: gs.Node, place: int, affine: Affine) -> Array | None:
        stored, weight = self._matrix(node, affine)
        if stored == place:
            raise CannotFuseError("MatMul after it has no weight")
        rank = affine.scale.ndim
        if place == 0:
            s, t = affine.along(rank - 1, weight.shape[-2], "inputs of MatMul")
            scaled, moved = weight * s[:, None], t @ weight
        else:
            s, t = affine.along(rank - 2, weight.shape[-1], "inputs of MatMul")
            scaled, moved = weight * s, (weight @ t)[:, None]
        return self._set_matrix(node, stored, scaled, moved)

    def _matrix(self, node: gs.Node, affine: Affine) -> tuple[int, Array]:
        """The place of the stored matrix of a MatMul, and the matrix in float64."""
        places = [i for i, t in enumerate(node.inputs) if isinstance(t, gs.Constant)]
        if len(places) != 1:
            raise CannotFuseError("MatMul beside it has no weight")
        weight = self._weight(node, places[0])
        if weight.ndim != 2 or affine.scale.ndim < 2:
            raise CannotFuseError(f"{node.name!r} is no product with one stored matrix")
        return places[0], weight.astype(np.float64)

    def _weight(self, node: gs.Node, place: int) -> Array:
        tensor = node.inputs[place]
        values = self.model.constant(tensor)
        if values is None:
            raise CannotFuseError(f"the weight of {node.name!r} is computed")
        if len(tensor.outputs) > 1 or tensor.name in self.protected:
            raise CannotFuseError(f"the weight {tensor.name!r} is read elsewhere too")
        if values.dtype.kind != "f":
            raise CannotFuseError(f"the weight {tensor.name!r} has type {values.dtype}")
        return values

    def _bias(self, node: gs.Node, size: int) -> Array:
        if len(node.inputs) < 3 or not node.inputs[2].name:
            return np.zeros(size)
        values = self.model.constant(node.inputs[2])
        if values is None:
            raise CannotFuseError(f"the bias of {node.name!r} is computed")
        return values.astype(np.float64)

    def _set_gemm(self, node: gs.Node, weight: Array, bias: Array) -> None:
        if self.model.opset < 7:
            raise CannotFuseError("the bias of Gemm is that of an opset below 7")
        self._set(node, weight, bias)
        if node.attrs.get("beta", 1.0) != 1.0:
            node.attrs["beta"] = 1.0

    def _set_matrix(self, node: gs.Node, place: int, weight: Array, added: Array) -> Array | None:
        dtype = node.inputs[place].dtype
        new, rest = _cast(weight, dtype), _cast(added, dtype)
        self._put(node, place, new)
        return rest if np.any(rest) else None

    def _set(self, node: gs.Node, weight: Array, bias: Array) -> None:
        """Put new values in place; a bias of zeros that was not there is not added."""
        dtype = node.inputs[1].dtype
        new = _cast(weight, dtype)
        had = len(node.inputs) > 2 and bool(node.inputs[2].name)
        added = _cast(bias, dtype)
        self._put(node, 1, new)
        if had or np.any(added):
            self._put(node, 2, added)

    def _put(self, node: gs.Node, place: int, values: Array) -> None:
        old = node.inputs[place] if place < len(node.inputs) else None
        alone = old is not None and len(old.outputs) == 1 and old.name not in self.protected
        if old is None or not old.name:
            stem = node.inputs[1].name
            stem = stem[:-6] + "bias" if stem.endswith("weight") else f"{node.name}_bias"
            name = self.names.fresh(stem)
        else:
            name = old.name if alone else self.names.fresh(old.name)
        constant = gs.Constant(name, values)
        if place < len(node.inputs):
            node.inputs[place] = constant
        else:
            node.inputs.append(constant)


def _cast(values: Array, dtype: Any) -> Array:
    with np.errstate(over="ignore"):
        new: Array = np.ascontiguousarray(values.astype(dtype))
    if not np.all(np.isfinite(new)):
        raise CannotFuseError(f"a weight would be too large for {np.dtype(dtype).name}")
    return new


def _pads(node: gs.Node, kernel: tuple[int, ...]) -> bool:
    """Whether a Conv may read beyond the border of its input."""
    if str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME"):
        return any(k > 1 for k in kernel)
    return any(node.attrs.get("pads", ()))
