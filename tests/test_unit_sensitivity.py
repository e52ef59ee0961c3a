import json
import math

import numpy as np
import onnx
import pytest
from builders import normal, outputs_of
from onnx import helper, numpy_helper
from quantizing import Feeds, Quantized, parse, quantize_model, sqnr

from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.fidelity import Error
from onnxdrp.model import Model
from onnxdrp.pipeline import PassContext
from onnxdrp.quantization import Range
from onnxdrp.targets import load_target
from onnxdrp.unit_sensitivity import Sensitivity, load_sensitivity, quantization_sensitivity
from onnxdrp.units import Units

TEXT = """
<ir_version: 10, opset_import: ["": 17]>
net (float[N, 4, 6, 6] x) => (float[N, 5] y, float[N, 8, 6, 6] early)
<float[8, 4, 3, 3] w1, float[8] b1, float[8, 8, 3, 3] w2, float[8, 5] w3, float[5] b3,
 float[1, 8, 1, 1] k>
{
    [conv1] h1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    [relu1] r1 = Relu (h1)
    [conv2] h2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
    [add] s = Add (h2, r1)
    [sigmoid] g = Sigmoid (s)
    [swish] m = Mul (s, g)
    [scale] early = Mul (m, k)
    [max] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m)
    [pool] a = GlobalAveragePool (p)
    [flat] f = Flatten (a)
    [fc] o = MatMul (f, w3)
    [bias] y = Add (o, b3)
}
"""
SHAPES = {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (8, 5), "b3": (5,),
          "k": (1, 8, 1, 1)}  # fmt: skip


def net() -> Model:
    return parse(TEXT, {n: normal(s, seed) for seed, (n, s) in enumerate(SHAPES.items())})


def images(samples=6, seed=0):
    x = np.random.default_rng(seed).standard_normal((samples, 4, 6, 6)).astype(np.float32)
    return x * np.linspace(0.3, 1, samples, dtype=np.float32).reshape(-1, 1, 1, 1)


def measured(q: Quantized, reader, **options) -> Sensitivity:
    ctx = q.ctx
    return quantization_sensitivity(
        q.before, reader, ctx.target, ctx.ranges, kept_float=ctx.kept_float, **options
    )


class Alone:
    """Rewrites a float model so that one unit is quantized, as the whole quantized model has it."""

    def __init__(self, q: Quantized) -> None:
        self.q, self.proto = q, q.before.proto()
        self.nodes = {n.name: n for n in self.proto.graph.node}

    def pair(self, name: str, source: str, result: str) -> list[onnx.NodeProto]:
        scale, zero = self.q.params(name)
        tag = f"{name}/{result}"
        self.store(f"{tag}/s", scale)
        self.store(f"{tag}/z", zero)
        ends = [f"{tag}/s", f"{tag}/z"]
        return [
            helper.make_node("QuantizeLinear", [source, *ends], [f"{tag}/q"]),
            helper.make_node("DequantizeLinear", [f"{tag}/q", *ends], [result]),
        ]

    def store(self, name, array) -> None:
        self.proto.graph.initializer.append(numpy_helper.from_array(np.array(array), name))

    def read(self, node: str, *tensors: str) -> None:
        """The node reads these activations rounded."""
        for name in tensors:
            self.put(self.pair(name, name, f"{name}/in"))
            inputs = self.nodes[node].input
            inputs[:] = [f"{name}/in" if i == name else i for i in inputs]

    def weight(self, node: str, *names: str) -> None:
        """The node reads these stored tensors as the quantized model has them."""
        for name in names:
            codes = self.q.model.constant(name)
            scale, zero = self.q.params(name)
            axis = 0 if name != "w3" else 1
            values = (codes.astype(np.float64) - zero.astype(np.float64).reshape(-1)[:1]) * (
                scale if not scale.ndim else scale.reshape([-1 if i == axis else 1
                                                            for i in range(codes.ndim)])
            )  # fmt: skip
            self.store(f"{name}/q", values.astype(np.float32))
            inputs = self.nodes[node].input
            inputs[:] = [f"{name}/q" if i == name else i for i in inputs]

    def write(self, node: str, tensor: str) -> None:
        """Everybody reads what the node gives rounded."""
        self.nodes[node].output[0] = f"{tensor}/raw"
        self.put(self.pair(tensor, f"{tensor}/raw", tensor))

    def put(self, nodes) -> None:
        self.proto.graph.node.extend(nodes)

    def sqnr(self, x) -> dict[str, float]:
        """As onnxruntime computes it, unoptimized."""
        model = Model.from_proto(self.proto)  # brings the nodes into order
        pairs = zip(outputs_of(self.q.before, {"x": x}), outputs_of(model, {"x": x}), strict=True)
        errors = []
        for want, got in pairs:
            error = Error()
            error.update(want, got)
            errors.append(error.result().sqnr_db)
        return dict(zip(("y", "early"), errors, strict=True))


UNITS = {
    "conv1": (("conv1", "x"), ("conv1", "w1", "b1"), ("relu1", "r1")),
    "conv2": (("conv2", "r1"), ("conv2", "w2"), ("conv2", "h2")),
    "add": (("add", "h2", "r1"), (), ("add", "s")),
    "sigmoid": (("sigmoid", "s"), (), ("sigmoid", "g")),
    "swish": (("swish", "s", "g"), (), ("swish", "m")),
    "scale": (("scale", "m"), ("scale", "k"), ("scale", "early")),
}


@pytest.mark.parametrize("target", ["generic", "drp-ai3"])
def test_the_sqnr_is_that_of_a_model_in_which_one_unit_alone_is_quantized(target):
    x = images()
    q = quantize_model(net(), {"x": images(40, 1)}, target=target)
    found = {u.name: u for u in measured(q, Feeds({"x": x})).units}
    assert set(UNITS) | {"pool", "fc", "max"} >= found.keys() >= set(UNITS)
    for name, (reads, stored, output) in UNITS.items():
        parts = []
        for part in ("whole", "weights", "output"):
            alone = Alone(q)
            if part == "whole":
                alone.read(*reads)
            if part != "output" and stored:
                alone.weight(*stored)
            if part != "weights":
                alone.write(*output)
            parts.append(alone.sqnr(x))
        whole, weights, written = parts
        unit = found[name]
        assert unit.outputs == pytest.approx(whole, abs=0.01)
        assert 5 < unit.sqnr_db == min(unit.outputs.values()) < 90
        assert unit.output_db == pytest.approx(min(written.values()), abs=0.01)
        if stored:
            assert unit.weights_db == pytest.approx(min(weights.values()), abs=0.01)
        else:
            assert unit.weights_db is None


def test_an_output_that_a_unit_does_not_reach_has_no_noise():
    q = quantize_model(net(), {"x": images(40, 1)})
    found = {u.name: u for u in measured(q, Feeds({"x": images()})).units}
    assert found["scale"].outputs["y"] == math.inf
    assert found["fc"].outputs["early"] == math.inf
    assert found["conv1"].outputs["early"] < 60


def test_rows_are_sorted_by_damage_and_know_their_multiply_adds():
    q = quantize_model(net(), {"x": images(40, 1)})
    found = measured(q, Feeds({"x": images()}))
    assert [u.sqnr_db for u in found.units] == sorted(u.sqnr_db for u in found.units)
    macs = {u.name: u.macs for u in found.units}
    assert (macs["conv1"], macs["conv2"], macs["fc"]) == (8 * 36 * 36, 8 * 36 * 72, 40)
    assert macs["add"] == 0
    assert sum(u.share for u in found.units) == pytest.approx(1)
    assert found.units[0].damage == pytest.approx(10 ** (-found.units[0].sqnr_db / 10))
    assert "conv1" in found.table()
    assert f"{found.units[0].sqnr_db:.1f}" in str(found)


def test_batches_and_memory_change_no_figure():
    q = quantize_model(net(), {"x": images(40, 1)})
    x = images(7)
    want = {u.name: u.sqnr_db for u in measured(q, Feeds({"x": x})).units}
    got = {
        u.name: u.sqnr_db
        for u in measured(q, Feeds({"x": x[:3]}, {"x": x[3:]}), memory_limit=1).units
    }
    assert got == pytest.approx(want, abs=1e-3)


def test_a_fixed_batch_is_padded_and_padding_does_not_count():
    fixed = TEXT.replace("[N,", "[4,")
    weights = {n: normal(s, seed) for seed, (n, s) in enumerate(SHAPES.items())}
    q = quantize_model(net(), {"x": images(40, 1)})
    model, x = parse(fixed, weights), images(6)
    ctx = q.ctx
    found = quantization_sensitivity(
        model, Feeds({"x": x}), ctx.target, ctx.ranges, kept_float=ctx.kept_float
    )
    want = {u.name: u.sqnr_db for u in measured(q, Feeds({"x": x})).units}
    assert {u.name: u.sqnr_db for u in found.units} == pytest.approx(want, abs=1e-3)


def test_it_is_saved_and_loaded_whole(tmp_path):
    q = quantize_model(net(), {"x": images(40, 1)})
    path = tmp_path / "sens.json"
    found = measured(q, Feeds({"x": images()}), path=path)
    assert load_sensitivity(path) == found
    assert found.complete
    assert json.loads(path.read_text())["units"][0]["outputs"].keys() == {"y", "early"}
    assert math.inf in (v for u in load_sensitivity(path).units for v in u.outputs.values())


def test_an_interrupted_run_goes_on(tmp_path):
    q = quantize_model(net(), {"x": images(40, 1)})
    path, reader = tmp_path / "sens.json", Feeds({"x": images()})

    def stop(done, total):
        assert total == 6 * 8
        if done == 6 * 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(q, reader, path=path, progress=stop)
    part = load_sensitivity(path)
    assert not part.complete
    assert len(part.units) == 3
    assert "interrupted" in str(part)
    told = []
    found = measured(q, reader, path=path, progress=lambda *done: told.append(done))
    assert told == [(6 * i, 6 * 5) for i in range(1, 6)]
    want = measured(q, reader)
    assert [u.name for u in found.units] == [u.name for u in want.units]
    for have, fresh in zip(found.units, want.units, strict=True):
        assert have.outputs == pytest.approx(fresh.outputs, abs=1e-3)
    told.clear()
    assert measured(q, reader, path=path, progress=lambda *done: told.append(done)) == found
    assert not told


def test_what_was_measured_otherwise_is_measured_again(tmp_path):
    q = quantize_model(net(), {"x": images(40, 1)})
    path = tmp_path / "sens.json"
    first = measured(q, Feeds({"x": images()}), path=path)
    other = measured(q, Feeds({"x": images(seed=9)}), path=path)
    assert other.identity != first.identity
    assert other.units[0].sqnr_db != first.units[0].sqnr_db
    assert load_sensitivity(path) == other


def test_samples_are_spread_and_drawn_by_seed():
    q = quantize_model(net(), {"x": images(40, 1)})
    reader = Feeds({"x": images(40)})
    some = measured(q, reader, samples=5, seed=1)
    assert some.samples == 5
    assert some == measured(q, reader, samples=5, seed=1)
    assert some.identity != measured(q, reader, samples=5, seed=2).identity


def test_what_cannot_be_measured_is_refused_in_words(tmp_path):
    q = quantize_model(net(), {"x": images(40, 1)})
    reader, target, ranges = Feeds({"x": images()}), load_target("generic"), q.ctx.ranges
    with pytest.raises(ModelError, match="no range"):
        quantization_sensitivity(q.before, reader, target, {"x": Range(-1, 1)})
    everything = {node.name: "told so" for node in q.before.nodes()}
    with pytest.raises(ModelError, match="nothing of the model is quantized"):
        quantization_sensitivity(q.before, reader, target, ranges, kept_float=everything)
    with pytest.raises(OptionError, match="samples 0"):
        measured(q, reader, samples=0)
    with pytest.raises(DataError, match="no samples"):
        measured(q, Feeds())
    (tmp_path / "other.json").write_text('{"format": "something"}')
    with pytest.raises(OptionError, match="no sensitivity"):
        measured(q, reader, path=tmp_path / "other.json")
    with pytest.raises(OptionError, match="no sensitivity"):
        load_sensitivity(tmp_path / "none.json")


def test_alpha_and_beta_of_a_gemm_are_in_its_weights():
    text = """
    <ir_version: 10, opset_import: ["": 17]>
    net (float[N, 8] x) => (float[N, 4] y) <float[4, 8] w, float[4] b>
    { [fc] y = Gemm <alpha = 0.5, beta = 3.0, transB = 1> (x, w, b) }
    """
    model = parse(text, {"w": normal((4, 8), 0), "b": normal((4,), 1)})
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    q = quantize_model(model, {"x": x})
    unit = measured(q, Feeds({"x": x})).units[0]
    want, got = outputs_of(q.before, {"x": x})[0], outputs_of(q.model, {"x": x})[0]
    assert unit.sqnr_db == pytest.approx(sqnr(want, got), abs=0.3)  # the model has but this layer
    assert unit.sqnr_db > 30


def test_the_units_of_a_model_leave_it_as_it_is():
    model = net()
    before = model.fingerprint()
    q = quantize_model(model.clone(), {"x": images(40, 1)})
    ctx = PassContext(ranges=q.ctx.ranges, kept_float=q.ctx.kept_float)
    kept = dict(ctx.kept_float)
    units = Units(model, ctx)
    assert model.fingerprint() == before
    assert ctx.kept_float == kept
    assert not ctx.quantization
    assert [u.name for u in units.units][:2] == ["conv1", "conv2"]
    assert units.units[0].nodes == ("conv1", "relu1")
