"""Whether 8-bit products saturate in onnxruntime on this machine.

x86 processors without VNNI multiply uint8 by int8 in pairs whose sum goes through an int16
(VPMADDUBSW): 2 * 255 * 127 does not fit, 2 * 255 * 64 does. So weights on -64..64 are exact there
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When and why do I
need to try U8U8"). It is the machine that asks that answers: where a model will run elsewhere, say
so with reduce_range.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from onnxdrp.model import Model

__all__ = ["products_saturate"]

_DEPTH, _WIDTH = 64, 32  # whole vectors of every kernel


@cache
def products_saturate() -> bool:
    """Multiply the largest uint8 by the largest int8 and see whether the sum is right."""
    rights = []
    for rows in (1, 8):  # kernels for vectors and for matrices
        left = np.full((rows, _DEPTH), 255, np.uint8)
        right = np.full((_DEPTH, _WIDTH), 127, np.int8)
        got = _product(rows, right).session().run(None, {"x": left})[0]
        rights.append(np.array_equal(got, left.astype(np.int32) @ right.astype(np.int32)))
    return not all(rights)


def _product(rows: int, right: npt.NDArray[np.int8]) -> Model:
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [rows, _DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, _WIDTH])],
        [numpy_helper.from_array(right, "w")],
    )
    opsets = [helper.make_opsetid("", 13)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=7))
