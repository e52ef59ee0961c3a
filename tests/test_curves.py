"""What readers make of a tensor, ranges for that, and the shift that mends it."""

import pickle

import numpy as np
import pytest
from builders import normal
from quantizing import Feeds, parse

from onnxdrp.curves import Curve, curves
from onnxdrp.errors import OptionError
from onnxdrp.observers import Histogram
from onnxdrp.passes import Calibrate, InferShapes, InsertQdq, QuantizeWeights
from onnxdrp.passes.noisy import noisy_copy
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.quantization import Range, activation_params, fake_quantize
from onnxdrp.shifts import Shift
from onnxdrp.thresholds import mse, mse_of

HEAD = '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) '
X = np.linspace(-9, 9, 400).astype(np.float32).reshape(-1, 1) * np.ones(3, np.float32)
SILU = Curve("Sigmoid", gated=True)
GRIDS = [("uint8", False), ("int8", False), ("int8", True), ("uint8", True)]

CURVES = {
    "t = Sigmoid(a) y = Neg(t)": True,
    "t = HardSigmoid<alpha=0.3, beta=0.4>(a) y = Neg(t)": True,
    "t = Tanh(a) y = Neg(t)": True,
    "t = HardSwish(a) y = Neg(t)": True,
    "t = Relu(a) y = Neg(t)": True,
    "t = LeakyRelu<alpha=0.1>(a) y = Neg(t)": True,
    "s = Sigmoid(a) t = Mul(s, a) y = Neg(t)": True,
    "s = HardSigmoid(a) t = Mul(a, s) y = Neg(t)": True,
    "s = Sigmoid(a) t = Mul(s, a) u = Neg(a) y = Add(t, u)": False,  # read by a third
    "s = Sigmoid(a) t = Mul(s, a) y = Add(t, s)": False,  # the gate is read by a second
    "s = Sigmoid(a) t = Add(s, a) y = Neg(t)": False,
    "s = Sigmoid(a) t = Mul(s, s) u = Neg(a) y = Add(t, u)": False,
    "t = Neg(a) y = Neg(t)": False,
}


@pytest.mark.parametrize(("body", "has"), CURVES.items(), ids=list(CURVES))
def test_a_curve_is_what_onnxruntime_makes_of_the_tensor(body, has):
    model = parse(HEAD + "{ a = Neg(x) " + body + " }")
    found = curves(model, [n.name for n in model.nodes()])
    assert ("a" in found) == has
    if has:
        curve = pickle.loads(pickle.dumps(found["a"]))
        (want,) = model.session(outputs=["t"]).run(["t"], {"x": -X})
        np.testing.assert_allclose(curve(X), want, atol=2e-6)
        inside = (X[1:, 0] + X[:-1, 0]) / 2
        slopes = np.diff(curve(X[:, 0])) / np.diff(X[:, 0])
        assert np.median(np.abs(curve.slopes(inside) - slopes)) < 1e-3


def test_what_a_float_node_or_the_user_makes_of_a_tensor_is_no_curve_but_a_gate_is():
    model = parse(HEAD + "{ a = Neg(x) y = Sigmoid(a) }")
    assert curves(model, []) == {}
    gate = parse(HEAD + "{ a = Neg(x) s = Sigmoid(a) y = Mul(a, s) }")
    assert curves(gate, []) == {"a": SILU}
    seen = parse(HEAD.replace("float[N, 3] y)", "float[N, 3] y, float[N, 3] a)")
                 + "{ a = Neg(x) s = Sigmoid(a) y = Mul(a, s) }")  # fmt: skip
    assert curves(seen, []) == {}


def error_of(values, curve, range_, dtype, symmetric):
    params = activation_params(range_, dtype, symmetric=symmetric)
    return float(np.square(curve(values) - curve(fake_quantize(values, params))).sum())


@pytest.mark.parametrize(("dtype", "symmetric"), GRIDS)
@pytest.mark.parametrize("curve", [SILU, Curve("Sigmoid"), Curve("Clip", low=0, high=6)])
def test_the_range_costs_hardly_more_behind_the_curve_than_any(curve, dtype, symmetric):
    rng = np.random.default_rng(1)
    values = (6 * rng.normal(size=20000) - 4).astype(np.float32)
    histogram = Histogram()
    histogram.update(values)
    found = mse_of(histogram, curve, dtype, symmetric=symmetric)
    got = error_of(values, curve, found, dtype, symmetric)
    low, high = float(values.min()), float(values.max())
    tried = [
        error_of(values, curve, Range(low * a, high * b), dtype, symmetric)
        for a in np.geomspace(0.02, 1, 24)
        for b in np.geomspace(0.1, 1, 24)
    ]
    assert got <= 1.12 * min(tried)
    plain = mse(histogram, dtype, symmetric=symmetric)
    assert got <= error_of(values, curve, plain, dtype, symmetric)
    if not symmetric:
        assert got < 0.5 * error_of(values, curve, plain, dtype, symmetric)


def test_ranges_of_odd_histograms_behind_a_curve():
    empty = Histogram()
    empty.update(np.zeros(10, np.float32))
    assert mse_of(empty, SILU) == Range(0, 0)
    for sign in (1, -1):
        one = Histogram()
        one.update(sign * np.linspace(1, 2, 100, dtype=np.float32))
        found = mse_of(one, SILU, "uint8")
        assert 1 <= found.low <= found.high <= 2 if sign > 0 else -2 <= found.low <= found.high <= 0
    with pytest.raises(OptionError, match="int8 and uint8"):
        mse_of(one, SILU, "int16")


def newton(curve, wanted, there, n=200):
    """The best shift, by trying."""
    tried = np.linspace(-1, 1, 2001)
    costs = [np.square(curve(there + b) - curve(wanted)).sum() for b in tried]
    return tried[int(np.argmin(costs))]


@pytest.mark.parametrize("curve", [SILU, Curve("Clip", low=0), Curve("LeakyRelu", 0.1)])
def test_the_shift_is_near_the_best_there_is(curve):
    rng = np.random.default_rng(2)
    wanted = rng.normal(size=(4, 3, 200))
    offset = np.array([0.05, -0.04, 0.02])
    # errors that differ between what passes and what does not
    there = wanted - np.where(wanted > 0, offset[:, None], 3 * offset[::-1, None])
    observer = Shift(1, curve)
    observer.update(wanted[:2], there[:2])
    other = Shift(1, curve)
    other.update(wanted[2:], there[2:])
    observer.merge(pickle.loads(pickle.dumps(other)))
    for c, got in enumerate(observer.result()):
        assert got == pytest.approx(newton(curve, wanted[:, c], there[:, c]), abs=0.01)
        mean = (wanted[:, c] - there[:, c]).mean()
        costs = [np.square(curve(there[:, c] + b) - curve(wanted[:, c])).sum() for b in (got, mean)]
        assert costs[0] < costs[1]


def test_without_a_curve_the_shift_is_the_mean_error_along_any_axis():
    wanted, there = normal([5, 7, 4], 0), normal([5, 7, 4], 1)
    for axis in (0, 1, -1):
        observer = Shift(axis)
        observer.update(wanted, there)
        others = tuple(i for i in range(3) if i != axis % 3)
        np.testing.assert_allclose(observer.result(), (wanted - there).mean(others), rtol=1e-6)
    there[0, 0, 0] = np.nan
    observer.update(wanted, there)
    assert observer.nonfinite == 1


def test_channels_that_are_never_active_stay():
    observer = Shift(1, Curve("Clip", low=0))
    observer.update(-np.ones((4, 2, 8)), -2 * np.ones((4, 2, 8)))
    np.testing.assert_array_equal(observer.result(), 0)


def test_the_noisy_copy_computes_what_the_quantized_model_will():
    """Weights on their grid: nothing differs then but the rounding of biases."""
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 3, 8, 8] x) => (float[N, 4] y)'
        "{ c = Conv<pads=[1,1,1,1]>(x, w1, b1) s = Sigmoid(c) m = Mul(c, s) d = Conv(m, w2, b2)"
        "  r = Relu(d) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, w3) }"
    )
    shapes = {"w1": [8, 3, 3, 3], "b1": [8], "w2": [8, 8, 1, 1], "b2": [8], "w3": [4, 8]}
    model = parse(text, {name: normal(shape, i) for i, (name, shape) in enumerate(shapes.items())})
    x = {"x": normal([32, 3, 8, 8], 9)}
    ctx = PassContext(reader=Feeds(x), workers=1)
    PassManager([InferShapes(), Calibrate(), QuantizeWeights()]).run(model, ctx)
    before = model.fingerprint()
    noisy = noisy_copy(model, ctx)
    assert model.fingerprint() == before
    (a,), (b,) = (m.session().run(None, x) for m in (noisy, model))
    PassManager([InsertQdq()]).run(model, ctx)
    (c,) = model.session(optimize=False).run(None, x)
    assert np.abs(a - b).max() > 1e-3
    assert np.abs(a - c).max() < 0.1 * np.abs(b - c).max()
    noisy.set_weight("w3", np.zeros([4, 8], np.float32))
    np.testing.assert_array_equal(noisy.session().run(None, x)[0], 0)


def test_our_sessions_leave_float_weights_between_quantized_tensors_as_they_are():
    """onnxruntime would round them to int8 with one scale, of which this weight loses all."""
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y)'
        "<float s = {0.05}, uint8 z = {128}>"
        "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) c = Conv(d, w, b)"
        "  e = QuantizeLinear(c, s, z) y = DequantizeLinear(e, s, z) }"
    )
    w = np.float32([[1000.0, 0], [1, 1]]).reshape(2, 2, 1, 1)
    model = parse(text, {"w": w, "b": np.zeros(2, np.float32)})
    x = {"x": normal([2, 2, 4, 4], 0)}
    want, got = (model.session(optimize=o).run(None, x)[0] for o in (False, True))
    assert want[:, 1].std() > 0.2
    np.testing.assert_allclose(got, want, atol=1e-5)
