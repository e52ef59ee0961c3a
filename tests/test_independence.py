import numpy as np
import pytest
from builders import conv_net, make_model, normal, value
from onnx import helper

from onnxdrp.datareaders import DataReader
from onnxdrp.independence import are_independent
from onnxdrp.model import Model
from onnxdrp.observe import Tap, observe
from onnxdrp.observers import MinMax
from onnxdrp.taps import TensorRunner, close


def one(op, inputs, **attributes):
    return [helper.make_node(op, inputs, ["y"], "node", **attributes)]


def transposed_twice():
    """Layers on [time, batch, channels], as recurrent networks have them; `m` lies between."""
    return [
        helper.make_node("Transpose", ["x"], ["t"], "to", perm=[1, 0]),
        helper.make_node("Relu", ["t"], ["m"], "relu"),
        helper.make_node("Transpose", ["m"], ["y"], "back", perm=[1, 0]),
    ]


def mean_free():
    return [
        helper.make_node("ReduceMean", ["x", "first"], ["m"], "mean", keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"], "sub"),
    ]


def by_number():
    """Weighs a sample by its place in the batch."""
    return [
        helper.make_node("CumSum", ["x", "zero"], ["c"], "cumsum"),
        helper.make_node("Identity", ["c"], ["y"], "same"),
    ]


MIXING = {
    "the mean over the batch": (mean_free(), "y"),
    "softmax over the batch": (one("Softmax", ["x"], axis=0), "y"),
    "a running sum": (by_number(), "y"),
    "a tensor whose first axis is another": (transposed_twice(), "m"),
    "a tensor of no axes": (one("ReduceSum", ["x"], keepdims=0), "y"),
    "the shape": (one("Shape", ["x"]), "y"),
    "a reshape to one sample": (one("Reshape", ["x", "as_one"]), "y"),
    "a reshape to any number of other rows": (one("Reshape", ["x", "as_row"]), "y"),
    "a count of rows by value": (one("Compress", ["flat", "flags"], axis=0), "y"),
}
APART = {
    "an element-wise node": (one("Tanh", ["x"]), "y"),
    "softmax over the channels": (one("Softmax", ["x"], axis=1), "y"),
    "a transposed tensor that nobody asks for": (transposed_twice(), "y"),
    "a reshape to two rows a sample": (one("Reshape", ["x", "as_halves"]), "y"),
    "an input": (one("Tanh", ["x"]), "x"),
    "NaN where each has it": (one("Log", ["x"]), "y"),
}
WEIGHTS = {
    "first": np.array([0]),
    "zero": np.array(0),
    "as_one": np.array([1, 4]),
    "as_row": np.array([1, -1]),
    "as_halves": np.array([-1, 2]),
}


def model_of(nodes, shape=("N", 4)):
    """A model of x [N, 4]; `flat` are its values and `flags` which of them are positive."""
    if nodes[0].op_type == "Compress":
        nodes = [
            helper.make_node("Reshape", ["x", "as_row"], ["r"], "r"),
            helper.make_node("Squeeze", ["r", "first"], ["flat"], "s"),
            helper.make_node("Greater", ["flat", "limit"], ["flags"], "g"),
            *nodes,
        ]
    kind = np.int64 if nodes[0].op_type == "Shape" else np.float32
    weights = WEIGHTS | {"limit": np.float32(0)}
    return Model.from_proto(
        make_model(nodes, [value("x", shape)], [value("y", None, kind)], weights, opset=18)
    )


class Rows(DataReader):
    def __init__(self, x):
        self.x, self.samples = x, len(x)

    def batches(self):
        yield {"x": self.x}


def samples(x):
    return [{"x": x[i : i + 1]} for i in range(len(x))]


@pytest.mark.parametrize("kind", MIXING)
def test_what_mixes_samples_runs_one_by_one(kind, ran):
    nodes, tensor = MIXING[kind]
    model, x = model_of(nodes), np.abs(normal([11, 4], 3))
    if kind == "a count of rows by value":
        x = normal([11, 4], 3)
        assert len({int((row > 0).sum()) for row in x[:2]}) == 2
    assert not are_independent({"": TensorRunner(model, [tensor])}, samples(x[:4]), frozenset())
    observe(model, Rows(x), {tensor: Tap(tensor, MinMax())})
    assert ran == [1] * 11


@pytest.mark.parametrize("kind", APART)
def test_what_leaves_samples_apart_runs_in_batches(kind, ran):
    nodes, tensor = APART[kind]
    model, x = model_of(nodes), np.abs(normal([11, 4], 3)) + 1
    if kind.startswith("NaN"):
        x[0, 0] = x[1, 3] = -1
    assert are_independent({"": TensorRunner(model, [tensor])}, samples(x[:4]), frozenset())
    if not kind.startswith("NaN"):
        observe(model, Rows(x), {tensor: Tap(tensor, MinMax())})
        assert sorted(ran) == [3, 8]


def test_a_convolutional_network_runs_in_batches(ran):
    model = Model.from_proto(conv_net())
    taps = {n: Tap(n, MinMax()) for n in ("x", "h1", "p", "y")}
    observe(model, Rows(normal([11, 3, 8, 8], 0)), taps)
    assert sorted(ran) == [3, 8]


def test_samples_that_are_equal_prove_nothing():
    runners = {"": TensorRunner(model_of(one("Tanh", ["x"])), ["y"])}
    x = np.repeat(normal([1, 4], 0), 4, axis=0)
    assert not are_independent(runners, samples(x), frozenset())
    assert not are_independent(runners, samples(x[:1]), frozenset())
    x[3, 2] += 1
    assert are_independent(runners, samples(x), frozenset())


def test_samples_of_different_shapes_prove_nothing():
    runners = {"": TensorRunner(model_of(one("Tanh", ["x"]), ("N", "T")), ["y"])}
    feeds = [{"x": normal([1, t], t)} for t in (3, 4, 5)]
    assert not are_independent(runners, feeds, frozenset())
    assert are_independent(runners, [*feeds, {"x": normal([1, 4], 9)}], frozenset())


def test_one_model_of_two_that_mixes_is_enough():
    fine, mixing = model_of(one("Tanh", ["x"])), model_of(mean_free())
    x = samples(normal([2, 4], 0))
    runners = {"a": TensorRunner(fine, ["y"]), "b": TensorRunner(mixing, ["y"])}
    assert not are_independent(runners, x, frozenset())
    assert are_independent({"a": runners["a"]}, x, frozenset())


def test_rounding_is_no_difference_and_more_is():
    a = normal([3, 50], 0)
    peak = np.abs(a).max()
    assert close(a, a + np.float32(0.9e-4) * peak)
    assert not close(a, a + np.float32(1.2e-4) * peak)
    assert not close(a, a[:2])
    assert not close(a, np.where(a == peak, np.nan, a) if (a == peak).any() else a * np.nan)
    assert close(np.full(3, np.nan), np.full(3, np.nan))
    assert not close(np.arange(3), np.arange(3) + 1)
    assert close(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
