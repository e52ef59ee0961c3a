"""Biases: where the bias of a layer is added, and what it takes to own one."""

import numpy as np
import pytest
from builders import normal
from quantizing import parse

from onnxdrp.passes.biases import Biases

HEAD = '<ir_version: 10, opset_import: ["" : 17]> g '
X = {"x": normal([5, 6], 0)}


def dense(layer, rest="y = Relu(m)", out="y", **weights):
    """A layer m on [N, 6], and what comes after it."""
    text = HEAD + f"(float[N, 6] x) => (float[N, 4] {out}) {{ {layer} {rest} }}"
    return parse(text, {"w": normal([4, 6], 1), "v": normal([6, 4], 2), **weights})


def run(model):
    model.check()
    return model.session(optimize=False).run(None, X)[0]


def test_a_matmul_has_the_bias_of_the_constant_add_that_it_alone_feeds():
    b = normal([4], 3)
    for add, place in (("y = Add(m, b)", 1), ("y = Add(b, m)", 0)):
        model = dense("m = MatMul(x, v)", add, b=b)
        found = Biases(model).place(model.nodes("MatMul")[0])
        assert (found.holder.op, found.place, found.outputs) == ("Add", place, 4)
        assert (found.result, found.axis) == ("y", -1)


@pytest.mark.parametrize(
    "rest",
    [
        "y = Relu(m)",
        "y = Add(m, m)",
        "r = Relu(m) y = Add(m, r)",
        "r = Relu(m) s = Add(m, b) y = Add(r, s)",  # somebody else reads what has no bias in it
        "y = Add(m, wide)",
        "y = Sub(m, b)",
    ],
)
def test_a_matmul_without_such_an_add_has_no_bias(rest):
    model = dense("m = MatMul(x, v)", rest, b=normal([4], 3), wide=normal([5, 4], 4))
    assert Biases(model).place(model.nodes("MatMul")[0]) == "its operator has no bias"


@pytest.mark.parametrize("attribute", ["", ", beta=2.5"])
@pytest.mark.parametrize("shape", [None, (4,), (1, 4), (1,), ()])
def test_an_own_bias_changes_no_output_and_enters_with_factor_one(shape, attribute):
    given = "" if shape is None else ", b"
    b = np.float32(0.7) if shape == () else normal(shape or (4,), 3)
    # a second reader of the bias keeps what it reads
    rest = "r = Relu(m) k = Add(r, b) y = Relu(k)"
    model = dense(f"m = Gemm<transB=1{attribute}>(x, w{given})", rest, b=np.asarray(b))
    before = run(model)
    biases = Biases(model)
    node = model.nodes("Gemm")[0]
    place = biases.place(node)
    name = biases.own(place.holder, place.place, place.outputs)
    np.testing.assert_allclose(run(model), before, rtol=1e-5, atol=1e-6)
    values = model.weight(name)
    assert name != "b"
    assert values.size == 4
    assert values.dtype == np.float32
    assert len(model.tensor(name).outputs) == 1
    model.set_weight(name, values + np.float32([1, 0, 0, 0]).reshape(values.shape))
    raw = model.session(outputs=["m"], optimize=False).run(["m"], X)[0]
    model.set_weight(name, values)
    step = raw - model.session(outputs=["m"], optimize=False).run(["m"], X)[0]
    np.testing.assert_allclose(step, np.tile(np.float32([1, 0, 0, 0]), (5, 1)), atol=1e-6)


def test_a_bias_that_is_its_own_already_is_left_as_it_is():
    model = dense("m = Gemm<transB=1>(x, w, b)", b=normal([4], 3))
    before = model.fingerprint()
    assert Biases(model).own(model.nodes("Gemm")[0], 2, 4) == "b"
    assert model.fingerprint() == before


def test_a_layer_that_computes_in_half_precision_gets_a_bias_of_it():
    text = HEAD + "(float16[N, 3, 5, 5] x) => (float16[N, 4, 3, 3] y) { y = Conv(x, w) }"
    model = parse(text, {"w": normal([4, 3, 3, 3], 1).astype(np.float16)})
    name = Biases(model).own(model.nodes("Conv")[0], 2, 4)
    assert model.weight(name).dtype == np.float16
    model.check()


def test_it_says_why_a_layer_can_have_none():
    computed = dense("c = Relu(b) m = Gemm<transB=1>(x, w, c)", b=normal([4], 3))
    assert "computed" in Biases(computed).place(computed.nodes("Gemm")[0])
    rows = dense("m = Gemm<transB=1>(x, w, b)", b=normal([5, 1], 3))
    assert "not one value for each" in Biases(rows).place(rows.nodes("Gemm")[0])
    text = HEAD + "(float[6, 3] x) => (float[4, 3] y) { y = Gemm(w, x) }"
    left = parse(text, {"w": normal([4, 6], 1)})
    assert "left factor" in Biases(left).place(left.nodes("Gemm")[0])
    both = dense("v2 = Relu(x) m = MatMul(x, t)", "t = Transpose(v2) y = Relu(m)")
    assert "not stored" in Biases(both).place(both.nodes("MatMul")[0])
