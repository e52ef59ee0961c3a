import dataclasses
import tracemalloc

import numpy as np
import onnxruntime as ort
import pytest
from builders import conv_net, make_model, normal, value
from onnx import helper

from onnxdrp import batches
from onnxdrp.batches import pieces
from onnxdrp.datareaders import ArrayReader, DataReader
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.observe import Tap, observe
from onnxdrp.observers import Error, Histogram, MinMax
from onnxdrp.quantization import Range

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
    reader, _ = reader_of(model, samples=19, batch=2)
    observer, calls = Histogram(), []
    taps = {"y": Tap("y", observer)}
    observe(model, reader, taps, progress=lambda done, total: calls.append((done, total)))
    assert observer.extremes.count == 0
    assert calls == [(8, 19), (16, 19), (19, 19)]


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
    assert peak(800) < peak(100) * 1.25  # a shard's observers more or less: threads


# ---------------------------------------------------------------------------- the same bits


def kinds():
    """Taps of every tensor, whose results are the same bit for bit whatever the merging."""
    return {
        (kind.__name__, n): Tap(n, kind()) for n in NAMES for kind in (MinMax, Histogram, State)
    }


@dataclasses.dataclass
class State(MinMax):
    """The extremes, with their counts."""

    def result(self):
        return dataclasses.astuple(self)


def test_the_readers_batches_and_the_workers_do_not_change_a_bit(ran):
    model = Model.from_proto(conv_net())
    found = []
    for batch in (1, 3, 8):
        for workers in (1, 2, 4):
            reader, _ = reader_of(model, samples=29, batch=batch)
            found.append(observe(model, reader, kinds(), workers=workers))
            assert sorted(ran) == [5, 8, 8, 8]
            del ran[:]
    assert all(other == found[0] for other in found)
    assert found[0]["State", "h1"][2] == 29 * 32 * 64
    assert found[0]["Histogram", "h1"].counts.sum() == 29 * 32 * 64
    assert np.count_nonzero(found[0]["Histogram", "h1"].counts) > 500


def test_sums_have_the_same_bits_for_the_same_shards():
    a, b = Model.from_proto(conv_net()), Model.from_proto(conv_net(seed=1))
    taps = {n: Tap((("a", n), ("b", n)), Error()) for n in ("h1", "y")}
    found = []
    for batch, workers in ((1, 1), (3, 2), (8, 4)):
        reader, _ = reader_of(a, samples=29, batch=batch)
        found.append(observe({"a": a, "b": b}, reader, taps, workers=workers))
    assert found[1] == found[2] == found[0]
    assert -5 < found[0]["y"].sqnr_db < 5


def test_sums_of_other_shards_differ_by_rounding_only(monkeypatch):
    a, b = Model.from_proto(conv_net()), Model.from_proto(conv_net(seed=1))
    reader, _ = reader_of(a, samples=29)
    taps = {n: Tap((("a", n), ("b", n)), Error()) for n in ("h1", "y")}
    want = observe({"a": a, "b": b}, reader, taps)
    monkeypatch.setattr(batches, "SHARD", 16)
    for name, other in observe({"a": a, "b": b}, reader, taps).items():
        assert other.sqnr_db == pytest.approx(want[name].sqnr_db, rel=1e-10)
        assert other.cosine == pytest.approx(want[name].cosine, rel=1e-10)
        assert other.max_abs_error == want[name].max_abs_error


def test_one_observer_may_be_given_to_many_taps():
    model = Model.from_proto(conv_net())
    reader, _ = reader_of(model, samples=17)
    shared = Histogram()
    want = observe(model, reader, {n: Tap(n, Histogram()) for n in NAMES})
    assert observe(model, reader, {n: Tap(n, shared) for n in NAMES}) == want
    assert shared == Histogram()


def test_a_limit_makes_fewer_workers_and_no_other_batches(ran, caplog):
    caplog.set_level("INFO", logger="onnxdrp")
    model = Model.from_proto(conv_net())
    reader, _ = reader_of(model, samples=16)
    want = observe(model, reader, kinds(), workers=4)
    assert "batch of 8: 1 passes, 4 workers" in caplog.text
    caplog.clear()
    # all tensors of a sample: x 768, h1, r1 and h3 8192 each, p 128, y 40 bytes
    assert observe(model, reader, kinds(), workers=4, memory_limit=16 * 25512) == want
    assert "batch of 8: 1 passes, 2 workers" in caplog.text
    assert ran == [8, 8, 8, 8]
    caplog.clear()
    observe(model, reader, kinds(), workers=4, memory_limit=3 * 25512)
    assert "batch of 3: 1 passes, 1 workers" in caplog.text
    caplog.clear()
    observe(model, reader, kinds(), workers=4, memory_limit=10_000)
    assert "batch of 1: 3 passes, 1 workers" in caplog.text


def test_an_observer_that_wants_samples_gets_one_at_a_time(ran):
    model = Model.from_proto(conv_net())
    reader, x = reader_of(model, samples=11, batch=4)
    found = observe(model, reader, {n: Tap(n, EachSample()) for n in ("x", "y")})
    assert sorted(ran) == [3, 8]
    assert [len(found[n][0]) for n in ("x", "y")] == [11, 11]
    np.testing.assert_array_equal(found["x"][0], x)


class EachSample(Recorder):
    each_sample = True

    def update(self, *arrays):
        assert all(len(a) == 1 for a in arrays)
        super().update(*arrays)


# ---------------------------------------------------------------------------- static batches


def test_a_static_model_that_mixes_samples_is_refused_where_a_batch_is_not_full():
    nodes = [
        helper.make_node("ReduceMean", ["x", "zero"], ["m"], "mean", keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"], "sub"),
    ]
    weights = {"zero": np.array([0])}
    proto = make_model(nodes, [value("x", [4, 3])], [value("y", [4, 3])], weights, opset=18)
    model = Model.from_proto(proto)
    for last in (normal([1, 3], 1), np.zeros([1, 3], np.float32)):
        x = np.concatenate([normal([5, 3], 0), last])
        six = ArrayReader({"x": x}, model)
        with pytest.raises(DataError, match="samples 4 to 5: tensor 'y' mixes the samples of a ba"):
            observe(model, six, {"y": Tap("y", MinMax())})
        assert observe(model, six, {"x": Tap("x", MinMax())})["x"].high == x.max()
    eight = ArrayReader({"x": normal([8, 3], 0)}, model)
    assert observe(model, eight, {"y": Tap("y", State())})["y"][2] == 24


def test_whole_inputs_are_passed_whole_and_never_taken_for_padding():
    """A scale of as many values as the batch has samples, and a scalar."""
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["xk"], "by_k"),
        helper.make_node("ReduceSum", ["s"], ["t"], "sum", keepdims=0),
        helper.make_node("Add", ["xk", "t"], ["y"], "add"),
    ]
    for batch in ("N", 4):
        inputs = [value("k", []), value("x", [batch, 4]), value("s", [4])]
        proto = make_model(nodes, inputs, [value("y", [batch, 4])])
        x, s, k = normal([6, 4], 0), normal([4], 1), np.float32(3)

        class Three(DataReader):
            samples = 6

            def batches(self, x=x, s=s, k=k):
                yield {"k": k, "x": x[:5], "s": s}
                yield {"k": k, "x": x[5:], "s": s}

        got = observe(Model.from_proto(proto), Three(), {"y": Tap("y", Recorder())})["y"][0]
        np.testing.assert_allclose(got, x * k + s.sum(), rtol=1e-6, atol=1e-6)


def test_inputs_that_disagree_on_the_number_of_samples_are_refused():
    proto = make_model(
        [helper.make_node("Add", ["a", "b"], ["y"], "add")],
        [value("a", ["N", 4]), value("b", ["N", 4])],
        [value("y", ["N", 4])],
    )

    class Odd(DataReader):
        def batches(self):
            yield {"a": normal([2, 4], 0), "b": normal([2, 4], 1)}
            yield {"a": normal([2, 4], 2), "b": normal([3, 4], 3)}

    with pytest.raises(DataError, match="lengths together: 2 of 'a', 3 of 'b'"):
        observe(Model.from_proto(proto), Odd(), {"y": Tap("y", MinMax())})


# ---------------------------------------------------------------------------- ragged data


def test_sizes_and_lengths_that_differ_give_what_each_sample_gives_alone():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("ReduceMean", ["c"], ["p"], "pool", axes=[2, 3], keepdims=0),
        helper.make_node("ReduceSum", ["t", "one"], ["q"], "count", keepdims=1),
        helper.make_node("Mul", ["p", "q"], ["y"], "mul"),
    ]
    inputs = [value("x", ["N", 3, "H", "W"]), value("t", ["N", "T"])]
    weights = {"w": normal([4, 3, 3, 3], 0), "one": np.array([1])}
    model = Model.from_proto(make_model(nodes, inputs, [value("y", ["N", 4])], weights))
    sizes = [(5, 6, 2)] * 3 + [(7, 4, 2)] * 2 + [(5, 6, 3)] * 9 + [(40, 30, 9)] * 3
    feeds = [
        {"x": normal([1, 3, h, w], i), "t": normal([1, t], 99 + i)}
        for i, (h, w, t) in enumerate(sizes)
    ]

    class Ragged(DataReader):
        """Samples of a size come together, in batches of at most so many; `samples` is unknown."""

        def __init__(self, most):
            self.most = most

        def batches(self):
            start = 0
            while start < len(feeds):
                stop = start + 1
                while (
                    stop < len(feeds) and sizes[stop] == sizes[start] and stop < start + self.most
                ):
                    stop += 1
                yield {n: np.concatenate([f[n] for f in feeds[start:stop]]) for n in feeds[0]}
                start = stop

    taps = {"c": Tap("c", Histogram()), "y": Tap("y", Recorder())}
    found = [observe(model, Ragged(most), taps) for most in (1, 2, 8)]
    session = model.session()
    want = np.concatenate([session.run(["y"], feed)[0] for feed in feeds])
    for got in found:
        np.testing.assert_allclose(got["y"][0], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got["y"][0], found[0]["y"][0])
        assert got["c"] == found[0]["c"]
    assert found[0]["c"].extremes.count == sum(4 * h * w for h, w, _ in sizes)


# ---------------------------------------------------------------------------- bad samples


def bad_rows(samples=21, bad=((13, np.nan), (4, np.inf), (18, np.nan))):
    """Samples of which some have one value that is not finite."""
    x = np.random.default_rng(5).standard_normal((samples, 3, 8, 8)).astype(np.float32)
    for number, odd in bad:
        x[number, 1, 2, 3] = odd
    return x


class Rows(DataReader):
    """Any arrays, without a look into them."""

    def __init__(self, x, batch=1):
        self.x, self.batch, self.samples = x, batch, len(x)

    def batches(self):
        for i in range(0, len(self.x), self.batch):
            yield {"x": self.x[i : i + self.batch]}


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_bad_sample_is_named_whatever_the_batches(batch, workers):
    model = Model.from_proto(conv_net())
    reader = Rows(bad_rows(), batch)
    for name, node in (("x", "of the input"), ("h1", "of node 'conv1'")):
        with pytest.raises(DataError, match=f"'{name}' {node} has (infinity|NaN) in sample 4;"):
            observe(model, reader, {name: Tap(name, MinMax())}, workers=workers)


def test_of_a_batch_the_first_bad_sample_counts_not_the_first_tap():
    """Sample 1 has its NaN in the tensor that is observed last, sample 6 in the first."""
    nodes = [
        helper.make_node("Log", ["a"], ["la"], "log_a"),
        helper.make_node("Log", ["b"], ["lb"], "log_b"),
    ]
    inputs = [value("a", ["N", 4]), value("b", ["N", 4])]
    outputs = [value("la", ["N", 4]), value("lb", ["N", 4])]
    model = Model.from_proto(make_model(nodes, inputs, outputs))
    a, b = np.abs(normal([8, 4], 0)) + 1, np.abs(normal([8, 4], 1)) + 1
    a[6, 1], b[1, 2] = -1, 0

    class Two(DataReader):
        samples = 8

        def batches(self):
            yield {"a": a, "b": b}

    taps = {n: Tap(n, MinMax()) for n in ("la", "lb")}
    with pytest.raises(DataError, match="'lb' of node 'log_b' has infinity in sample 1;"):
        observe(model, Two(), taps)
    told = []
    found = observe(model, Two(), taps, on_bad=told.append)
    assert [(bad.sample, bad.tensor, bad.what) for bad in told] == [
        (1, "lb", "infinity"),
        (6, "la", "NaN"),
    ]
    good = [0, 2, 3, 4, 5, 7]
    assert found["la"].high == pytest.approx(np.log(a[good]).max(), rel=1e-6)
    assert found["lb"].low == pytest.approx(np.log(b[good]).min(), rel=1e-6)


@pytest.mark.parametrize("memory_limit", [1, 60_000, 1 << 30])
@pytest.mark.parametrize("workers", [1, 4])
def test_bad_samples_are_left_out_of_everything(memory_limit, workers, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", 1)  # batches of one: no other rounding
    model = Model.from_proto(conv_net())
    x = bad_rows()
    told = []
    got = observe(
        model,
        Rows(x, 3),
        kinds(),
        memory_limit=memory_limit,
        workers=workers,
        on_bad=told.append,
    )
    good = np.isfinite(x).all(axis=(1, 2, 3))
    assert got == observe(model, Rows(x[good]), kinds())
    assert [bad.sample for bad in told] == [4, 13, 18]
    assert {bad.tensor for bad in told} == {"x"}


def test_bad_samples_are_left_out_of_batches_too(ran):
    model = Model.from_proto(conv_net())
    x = bad_rows()
    told = []
    got = observe(model, Rows(x), kinds(), on_bad=told.append)
    assert max(ran) == 8
    good = np.isfinite(x).all(axis=(1, 2, 3))
    want = observe(model, Rows(x[good]), kinds())
    assert [bad.sample for bad in told] == [4, 13, 18]
    for key, stats in want.items():
        if key[0] == "State":
            assert got[key][2] == stats[2]
            np.testing.assert_allclose(got[key], stats, rtol=1e-5)


def test_a_sample_that_turns_out_bad_in_a_later_pass_is_left_out_of_the_first_too():
    """log(x) is NaN or infinite where x is fine: found in the second pass."""
    log = helper.make_node("Log", ["x"], ["y"], "log")
    proto = make_model([log], [value("x", ["N", 64])], [value("y", ["N", 64])])
    x = np.abs(normal([19, 64], 0)) + np.float32(0.01)
    x[3, 1], x[11, 0] = -50, 0
    taps = {n: Tap(n, State()) for n in ("x", "y")}
    told, good = [], np.delete(x, [3, 11], axis=0)
    model = Model.from_proto(proto)
    got = observe(model, Rows(x, 2), taps, memory_limit=1, on_bad=told.append)
    assert got == observe(model, Rows(good), taps, memory_limit=1)
    assert got["x"][:3] == (good.min(), good.max(), good.size)
    assert [str(bad) for bad in told] == [
        "tensor 'y' of node 'log' has NaN in sample 3",
        "tensor 'y' of node 'log' has infinity in sample 11",
    ]


@pytest.mark.parametrize("memory_limit", [1, 1 << 30])
def test_where_all_samples_are_bad_there_is_no_result(memory_limit):
    model = Model.from_proto(conv_net())
    x = np.full((9, 3, 8, 8), np.nan, np.float32)
    told = []
    with pytest.raises(DataError, match="none of the 9 samples can be used: tensor 'h1' of node"):
        observe(
            model,
            Rows(x),
            {n: Tap(n, MinMax()) for n in ("h1", "y")},
            on_bad=told.append,
            memory_limit=memory_limit,
        )
    assert [bad.sample for bad in told] == list(range(9))


def test_what_onnxruntime_says_against_the_data_names_the_samples():
    gather = helper.make_node("Gather", ["w", "x"], ["y"], "gather")
    proto = make_model(
        [gather], [value("x", ["N", 2], np.int64)], [value("y", ["N", 2])], {"w": normal([5], 0)}
    )
    x = np.arange(22).reshape(11, 2) % 5
    x[9, 1] = 7
    with pytest.raises(
        DataError, match=r"^samples 8 to 10: onnxruntime fails on the data: .*Gather"
    ):
        observe(Model.from_proto(proto), Rows(x), {"y": Tap("y", MinMax())})


# ---------------------------------------------------------------------------- odd tensors


def test_constant_zero_and_empty_tensors_are_fine():
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["z"], "times_zero"),
        helper.make_node("Add", ["z", "two"], ["c"], "two"),
        helper.make_node("Slice", ["x", "from", "to", "axis"], ["e"], "nothing"),
        helper.make_node("Shape", ["x"], ["s"], "shape"),
    ]
    weights = {
        "zero": np.float32([0]),
        "two": np.float32([2]),
        "from": np.array([2]),
        "to": np.array([2]),
        "axis": np.array([1]),
    }
    outputs = [value("c", ["N", 4]), value("e", ["N", 0]), value("s", [2], np.int64)]
    proto = make_model(nodes, [value("x", ["N", 4])], outputs, weights)
    model = Model.from_proto(proto)
    for names in (("z", "c", "e"), ("z", "c", "e", "s")):  # s has no batch axis: one by one
        taps = {(n, k.__name__): Tap(n, k()) for n in names for k in (MinMax, Histogram)}
        found = observe(model, Rows(normal([10, 4], 0)), taps)
        assert found["z", "MinMax"] == Range(0.0, 0.0)
        assert found["c", "MinMax"] == Range(2.0, 2.0)
        assert found["e", "MinMax"] == Range(0.0, 0.0)
        assert found["c", "Histogram"].percentile(99) == Range(2.0, 2.0)
        assert found["z", "Histogram"].zeros == 40
        assert found["e", "Histogram"].extremes.count == 0
    assert found["s", "MinMax"] == Range(1.0, 4.0)


def test_percentiles_are_those_of_onnxruntime_within_a_bin(tmp_path):
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    proto = conv_net()
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    model = Model.from_proto(proto)
    reader, _ = reader_of(model, samples=24, batch=24)
    calibrator = create_calibrator(
        str(tmp_path / "net.onnx"),
        augmented_model_path=str(tmp_path / "augmented.onnx"),
        calibrate_method=CalibrationMethod.Percentile,
        extra_options={"num_bins": 4096, "percentile": 98.77},
    )
    calibrator.collect_data(reader)
    theirs = calibrator.compute_data().data
    names = [name for name in NAMES if name in theirs]
    assert len(names) >= 4
    found = observe(model, reader, {n: Tap(n, Histogram()) for n in names})
    for name, histogram in found.items():
        low, high = theirs[name].range_value  # of |x|, cut to the extremes
        got = histogram.percentile(98.77, tails="abs")
        extremes = histogram.extremes
        bins = histogram.width + max(-extremes.low, extremes.high) / 4096
        # they take the inner edge of a bin, we the outer one
        assert max(got.low, extremes.low) == pytest.approx(float(low), abs=bins)
        assert min(got.high, extremes.high) == pytest.approx(float(high), abs=bins)
        assert got.high < max(-extremes.low, extremes.high) - 4 * histogram.width  # not all of it
