"""The rules of drp-ai3, on the graphs that come out."""

import numpy as np
import pytest
from builders import conv_net, normal
from quantizing import numbers, parse, quantize_model

from onnxdrp.model import Model
from onnxdrp.passes import ConvertOpset
from onnxdrp.passes.edit import producer
from onnxdrp.pipeline import PassContext
from onnxdrp.targets import load_target

HEAD = '<ir_version: 7, opset_import: ["" : 12]>'
WEIGHTS = {"w": normal([4, 4, 1, 1], 0), "v": 9 * normal([4, 4, 1, 1], 1), "b": normal([4], 2)}


def quantized(body, inputs="float[1, 4, 3, 3] x", outputs="float[1, 4, 3, 3] y", **more):
    target = more.pop("target", "drp-ai3")
    text = f"{HEAD} g ({inputs}) => ({outputs}) {{ {body} }}"
    done = quantize_model(parse(text, WEIGHTS | more), target=target)
    assert done.model.opset == 12
    return done


def zero_points(done):
    """Of all activations."""
    return [done.model.constant(n.inputs[2]) for n in done.model.nodes("QuantizeLinear")]


def around(node):
    """The nodes that quantize and dequantize its inputs and outputs, by operator."""
    return [producer(t).op for t in node.inputs], [n.op for t in node.outputs for n in t.outputs]


@pytest.mark.parametrize(("opset", "becomes"), [(11, 12), (12, 12), (13, 13), (17, 13)])
def test_opsets_12_and_13(opset, becomes):
    model = Model.from_proto(conv_net(16, opset=opset, batch=1))
    ConvertOpset().run(model, PassContext(target=load_target("drp-ai3")))
    assert (model.opset, model.ir_version) == (becomes, 8)
    assert load_target("drp-ai3").unmet(model) == []


def test_zero_points_are_0_unless_they_are_asked_for():
    body = "a = Conv(x, w, b) r = Relu(a) c = Conv(r, v) y = Sigmoid(c)"
    zeros = zero_points(quantized(body))
    assert len(zeros) == 4
    assert {(z.dtype, z.item()) for z in zeros} == {(np.dtype(np.int8), 0)}
    zeros = zero_points(quantized(body, target=load_target("drp-ai3").with_zero_points()))
    assert {z.dtype for z in zeros} == {np.dtype(np.int8)}
    assert -128 in [z.item() for z in zeros]


def test_weights_have_one_scale_at_opset_12():
    done = quantized("a = Conv(x, w, b) y = Conv(a, v)")
    for name in ("w", "v", "b"):
        assert done.params(name)[0].shape == ()
    assert not any(n.attrs for n in done.model.nodes("DequantizeLinear"))  # no axis
    assert done.model.weight("b").dtype == np.int32


def test_the_inputs_of_add_have_one_scale_and_its_output_another():
    done = quantized("a = Conv(x, w) c = Conv(x, v) y = Add(a, c)")
    a, c, y = (float(done.params(name)[0]) for name in "acy")
    assert a == c != y
    ranges = done.ctx.ranges
    assert a == np.float32(max(-ranges["c"].low, ranges["c"].high) / 127)


def test_the_inputs_and_the_output_of_concat_have_one_scale():
    done = quantized(
        "a = Conv(x, w) c = Conv(x, v) p = MaxPool<kernel_shape=[1, 1]>(a) "
        "y = Concat<axis=1>(p, c)",
        outputs="float[1, 8, 3, 3] y",
    )
    assert len({float(done.params(name)[0]) for name in "apcy"}) == 1


def test_the_first_and_the_last_maxpool_and_transpose_are_quantized():
    done = quantized(
        "p = MaxPool<kernel_shape=[1, 1]>(x) t = Transpose<perm=[0, 3, 1, 2]>(p) e = Exp(t) "
        "a = Conv(e, w) l = Exp(a) q = MaxPool<kernel_shape=[1, 1]>(l) "
        "y = Transpose<perm=[0, 2, 3, 1]>(q)",
        inputs="float[1, 3, 3, 4] x",
        outputs="float[1, 3, 3, 4] y",
    )
    nodes = done.model.nodes("MaxPool", "Transpose")
    assert len(nodes) == 4
    for node in nodes:
        assert around(node) == (["DequantizeLinear"], ["QuantizeLinear"])
    assert all(around(node)[0] != around(nodes[0])[1] for node in nodes)


def test_matmul_and_a_constant_are_one_fully_connected_layer_with_an_int32_bias():
    done = quantized(
        "f = Flatten(x) m = MatMul(f, u) y = Add(m, d)",
        outputs="float[1, 6] y",
        u=normal([36, 6], 3),
        d=normal([6], 4),
    )
    assert (numbers(done.model, "MatMul"), numbers(done.model, "Gemm")) == (0, 1)
    scale, zero = done.params("d")
    assert (done.model.weight("d").dtype, zero.item()) == (np.dtype(np.int32), 0)
    data = done.params("x")[0]
    assert scale == data * done.params("u")[0]
    np.testing.assert_allclose(
        done.model.weight("d") * scale, done.before.weight("d"), atol=0.51 * float(scale)
    )


def test_a_low_sparsity_gets_the_advice_of_the_manual():
    drp = load_target("drp-ai3")
    assert drp.advice(0.69).startswith("sparsity 0.69: pruning by at least 70 % is recommended")
    assert drp.advice(0.7) == ""
