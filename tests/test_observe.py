import tracemalloc

import numpy as np
import onnxruntime as ort
import pytest
from builders import conv_net, make_model, normal, value
from onnx import helper

from onnxdrp.datareaders import ArrayReader, DataReader
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.observe import Tap, observe, pieces
from onnxdrp.observers import Error, Histogram, MinMax

NAMES = ["x", "h1", "r1", "h3", "p", "y"]


def reader_of(model, samples=7, batch=1, seed=0):
    x = np.random.default_rng(seed).standard_normal((samples, 3, 8, 8)).astype(np.float32)
    return ArrayReader({"x": x}, model, batch=batch), x


def true_values(proto, x, names):
    """Every named tensor for all samples, by a plain onnxruntime session."""
    wider = type(proto).FromString(proto.SerializeToString())
    known = {v.name for v in wider.graph.output}
    wider.graph.output.extend(
        helper.make_empty_tensor_value_info(n) for n in names if n not in known
    )
    session = ort.InferenceSession(wider.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


class Recorder:
    """Keeps everything: shows what an observer is given."""

    nonfinite = 0

    def __init__(self):
        self.seen = []

    def update(self, *arrays):
        self.seen.append([np.array(a) for a in arrays])

    def merge(self, other):
        self.seen += other.seen

    def result(self):
        return [np.concatenate(parts) for parts in zip(*self.seen, strict=True)]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_extremes_are_the_true_ones_whatever_the_batch(batch):
    proto = conv_net()
    model = Model.from_proto(proto)
    reader, x = reader_of(model, batch=batch)
    found = observe(model, reader, {n: Tap(n, MinMax()) for n in NAMES})
    want = {"x": x, **true_values(proto, x, NAMES[1:])}
    for name in NAMES:
        assert want[name].max() > want[name].min()
        assert found[name].low == pytest.approx(want[name].min(), rel=1e-5, abs=1e-6)
        assert found[name].high == pytest.approx(want[name].max(), rel=1e-5, abs=1e-6)


def test_a_small_limit_takes_more_passes_and_gives_the_same(monkeypatch):
    model = Model.from_proto(conv_net())
    reader, _ = reader_of(model)
    taps = {n: Tap(n, MinMax()) for n in NAMES}
    passes = []
    batches = reader.batches
    monkeypatch.setattr(reader, "batches", lambda: passes.append(1) or batches())
    whole = observe(model, reader, taps)
    assert len(passes) == 2  # one look at the first batch, one pass
    del passes[:]
    assert observe(model, reader, taps, memory_limit=1) == whole
    assert len(passes) == 1 + len(NAMES)
    assert list(whole) == NAMES


def test_a_static_batch_of_one_is_fed_one_by_one():
    model = Model.from_proto(conv_net(batch=1))
    free = Model.from_proto(conv_net())
    reader, _ = reader_of(model, samples=5, batch=4)
    got = observe(model, reader, {"y": Tap("y", Recorder())})["y"][0]
    want = observe(free, reader, {"y": Tap("y", Recorder())})["y"][0]
    assert got.shape == (5, 10)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_the_padding_of_a_static_batch_is_never_observed():
    model = Model.from_proto(conv_net(batch=4))
    free = Model.from_proto(conv_net())
    reader, x = reader_of(model, samples=6, batch=6)
    got = observe(model, reader, {n: Tap(n, Recorder()) for n in ("x", "r1", "y")})
    want = observe(free, reader, {"y": Tap("y", Recorder())})["y"][0]
    assert len(got["y"][0]) == len(got["r1"][0]) == 6
    np.testing.assert_array_equal(got["x"][0], x)
    np.testing.assert_allclose(got["y"][0], want, rtol=1e-4, atol=1e-6)


def test_two_models_see_the_same_sample():
    a, b = Model.from_proto(conv_net()), Model.from_proto(conv_net())
    b.set_weight("fc.bias", b.weight("fc.bias") + np.float32(0.5))
    reader, x = reader_of(a, batch=2)
    pair = (("a", "y"), ("b", "y"))
    found = observe({"a": a, "b": b}, reader, {"e": Tap(pair, Error()), "r": Tap(pair, Recorder())})
    first, second = found["r"]
    np.testing.assert_allclose(second - first, 0.5, atol=1e-5)
    assert found["e"].max_abs_error == pytest.approx(0.5, abs=1e-5)
    signal = 10 * np.log10((first.astype(np.float64) ** 2).mean() / 0.25)
    assert found["e"].sqnr_db == pytest.approx(signal, abs=1e-3)
    assert len(first) == len(x)


def test_stored_tensors_can_be_tapped():
    model = Model.from_proto(conv_net())
    reader, _ = reader_of(model)
    found = observe(model, reader, {"w": Tap("conv1.weight", MinMax())})["w"]
    assert (found.low, found.high) == pytest.approx(
        (model.weight("conv1.weight").min(), model.weight("conv1.weight").max())
    )


def test_observers_given_are_not_changed_and_progress_counts():
    model = Model.from_proto(conv_net())
    reader, _ = reader_of(model, samples=5, batch=2)
    observer, calls = Histogram(), []
    taps = {"y": Tap("y", observer)}
    observe(model, reader, taps, progress=lambda done, total: calls.append((done, total)))
    assert observer.extremes.count == 0
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_nan_names_tensor_node_and_sample():
    model = Model.from_proto(conv_net())
    _, x = reader_of(model)
    x[4, 0, 0, 0] = np.inf

    class Raw(DataReader):
        samples = len(x)

        def batches(self):
            yield from ({"x": row[None]} for row in x)

    for observer in (MinMax(), Histogram()):
        with pytest.raises(DataError, match=r"'h1' of node 'conv1' has (infinity|NaN) in sample 4"):
            observe(model, Raw(), {"h1": Tap("h1", observer)})


def test_unknown_tensors_models_and_empty_data_are_refused():
    model = Model.from_proto(conv_net())
    reader, _ = reader_of(model)
    with pytest.raises(ModelError, match="no tensor is called 'h11'; near: 'h1'"):
        observe(model, reader, {"h": Tap("h11", MinMax())})
    with pytest.raises(OptionError, match="no model is called 'b'"):
        observe({"a": model}, reader, {"h": Tap((("b", "h1"),), MinMax())})

    class Nothing(DataReader):
        def batches(self):
            return iter(())

    with pytest.raises(DataError, match="no samples"):
        observe(model, Nothing(), {"h": Tap("h1", MinMax())})


def test_models_of_different_static_batches_are_refused():
    a, b = Model.from_proto(conv_net(batch=1)), Model.from_proto(conv_net(batch=2))
    reader, _ = reader_of(a)
    with pytest.raises(OptionError, match="different batch sizes"):
        observe({"a": a, "b": b}, reader, {"y": Tap((("a", "y"), ("b", "y")), Error())})


def test_an_input_without_the_batch_axis_is_passed_whole():
    scale = helper.make_node("Mul", ["x", "s"], ["y"], "mul")
    proto = make_model([scale], [value("x", [1, 4]), value("s", [4])], [value("y", [1, 4])])

    class Two(DataReader):
        samples = 3

        def batches(self):
            yield {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "s": normal([4], 0)}

    got = observe(Model.from_proto(proto), Two(), {"y": Tap("y", Recorder())})["y"][0]
    np.testing.assert_allclose(got, np.arange(12).reshape(3, 4) * normal([4], 0), rtol=1e-6)
    assert [valid for _, valid in pieces(Two(), 1)] == [1, 1, 1]


def test_memory_does_not_grow_with_the_samples():
    model = Model.from_proto(conv_net())

    class Many(DataReader):
        def __init__(self, samples):
            self.samples = samples

        def batches(self):
            rng = np.random.default_rng(0)
            for _ in range(self.samples):
                yield {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}

    def peak(samples):
        tracemalloc.start()
        observe(model, Many(samples), {n: Tap(n, Histogram()) for n in NAMES})
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(4)  # imports and caches
    assert peak(400) < peak(40) * 1.1
