import numpy as np
import pytest
from builders import conv_net, make_model, normal, value
from onnx import helper
from test_observe import Recorder

from onnxdrp import walk as walk_module
from onnxdrp.datareaders import ArrayReader, DataReader
from onnxdrp.errors import DataError, OptionError
from onnxdrp.model import Model
from onnxdrp.observe import Tap, observe
from onnxdrp.observers import Error, MinMax
from onnxdrp.segments import default_cuts
from onnxdrp.walk import walk


def reader_of(model, samples=11, batch=3, seed=0):
    x = np.random.default_rng(seed).standard_normal((samples, 3, 8, 8)).astype(np.float32)
    return ArrayReader({"x": x}, model, batch=batch)


def recorded(model, reader, names):
    found = observe(model, reader, {n: Tap(n, Recorder()) for n in names})
    return {name: found[name][0] for name in names}


@pytest.mark.parametrize("limit", [1 << 30, 3000, 0])
@pytest.mark.parametrize("static", [False, True])
def test_a_walk_sees_what_a_whole_run_gives_whatever_the_memory(limit, static):
    model = Model.from_proto(conv_net(batch=4 if static else "n"))
    reader = reader_of(model)
    cuts = default_cuts(model)
    assert len(cuts) >= 3
    names = [name for (name,) in cuts]
    want = recorded(model, reader, [*names, "y"])
    for stop, name in zip(walk(model, reader, cuts, memory_limit=limit), names, strict=True):
        found = stop.observe({"live": Tap(name, Recorder()), "end": Tap("y", Recorder())})
        assert stop.samples == len(want["y"]) == 11
        assert len(found["live"][0]) == 11
        np.testing.assert_allclose(found["live"][0], want[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["end"][0], want["y"], rtol=1e-5, atol=1e-6)
        assert want[name].std() > 0


def test_new_weights_are_taken_on_the_way():
    model, other = Model.from_proto(conv_net()), Model.from_proto(conv_net())
    reader, cuts = reader_of(model), default_cuts(model)
    changed = []
    layers = [next(n for n in other.nodes() if n.inputs[0].name == name) for (name,) in cuts]
    for stop, layer in zip(walk({"a": model, "b": other}, reader, cuts), layers, strict=True):
        output = layer.outputs[0].name
        pair = (("a", output), ("b", output))
        before = stop.observe({"e": Tap(pair, Error())})["e"]
        weight = layer.inputs[1].name
        other.set_weight(weight, other.weight(weight) * np.float32(1.5))
        after = stop.observe({"e": Tap(pair, Error())})["e"]
        assert after.sqnr_db != before.sqnr_db  # seen at once
        changed.append((output, after))
    taps = {out: Tap((("a", out), ("b", out)), Error()) for out, _ in changed}
    whole = observe({"a": model, "b": other}, reader, taps)
    for output, after in changed:
        # what a stop saw is what the finished model does: all before it was changed already
        assert whole[output].sqnr_db == pytest.approx(after.sqnr_db, rel=1e-6)
        assert whole[output].sqnr_db < 20


def test_the_result_does_not_depend_on_workers_memory_or_the_readers_batches():
    model = Model.from_proto(conv_net())
    cuts = default_cuts(model)

    def all_of(batch, **options):
        stops = walk(model, reader_of(model, batch=batch), cuts, **options)
        return [s.observe({"m": Tap(s.cut[0], MinMax())})["m"] for s in stops]

    want = all_of(1)
    assert len({r.high for r in want}) == len(want)
    assert all_of(8) == want
    assert all_of(3, workers=1) == want
    assert all_of(3, workers=4, memory_limit=0) == want


def test_a_walk_begins_at_any_cut_with_the_weights_of_now():
    model = Model.from_proto(conv_net())
    reader, cuts = reader_of(model), default_cuts(model)

    def sweep(stops, seen):
        for stop in stops:
            node = next(n for n in model.nodes() if n.inputs[0].name == stop.cut[0])
            found = stop.observe({"o": Tap(node.outputs[0].name, MinMax())})["o"]
            seen.append((stop.index, found.low, found.high))
            weight = model.weight(node.inputs[1].name)
            model.set_weight(node.inputs[1].name, weight / np.float32(1 + found.high))
            yield stop.index

    whole = []
    list(sweep(walk(model, reader, cuts), whole))
    for broken in range(1, len(cuts)):
        model = Model.from_proto(conv_net())
        seen = []
        for index in sweep(walk(model, reader, cuts), seen):
            if index == broken - 1:
                break  # interrupted after the weights of this cut
        list(sweep(walk(model, reader, cuts, start=broken), seen))
        assert [i for i, *_ in seen] == list(range(len(cuts)))
        for got, want in zip(seen, whole, strict=True):
            assert got == pytest.approx(want, rel=1e-5)


def test_live_activations_are_bounded_and_the_rest_goes_to_files(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(walk_module, "_FILE_BYTES", 1 << 12)
    model = Model.from_proto(conv_net())
    reader, cuts = reader_of(model, samples=40, batch=8), default_cuts(model)
    sizes = []
    limit = 8000
    stops = walk(model, reader, cuts, memory_limit=limit)
    for stop in stops:
        held = stop._front._shelf.held
        arrays = [v for _, feeds in stop.batches() for v in feeds[""].values()]
        kept = [
            v
            for shard in stop._front.shards
            for batch in shard.batches
            for v in batch.feeds[""].held.values()
            if isinstance(v, np.ndarray)
        ]
        assert held == sum(v.nbytes for v in kept) <= limit
        total = sum(v.nbytes for v in arrays)
        assert total > limit or sizes
        files = list(tmp_path.glob("onnxdrp-walk-*/*.bin"))
        sizes.append(sum(f.stat().st_size for f in files))
        assert sizes[-1] <= total  # files of what is no longer live are gone
    assert len(sizes) == len(cuts)
    assert sizes[0] > 0
    assert list(tmp_path.iterdir()) == []


def test_branches_and_kept_tensors():
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "two"),
        helper.make_node("Conv", ["a", "w3"], ["d"], "side"),
        helper.make_node("Add", ["c", "d"], ["y"], "add"),
    ]
    weights = {w: normal([4, 4, 1, 1], i) for i, w in enumerate(("w1", "w2", "w3"))}
    shape = ["n", 4, 5, 5]
    proto = make_model(nodes, [value("x", shape)], [value("y", shape)], weights)
    model = Model.from_proto(proto)
    x = normal([6, 4, 5, 5], 9)
    reader = ArrayReader({"x": x}, model, batch=2)
    want = recorded(model, reader, ["x", "a", "b", "c", "d", "y"])
    lives = []
    for stop in walk(model, reader, ["x", "b", ("c", "d")], keep=["b"]):
        lives.append(set(stop.live[""]))
        taps = {n: Tap(n, Recorder()) for n in (*stop.live[""], "y")}
        for name, (got,) in stop.observe(taps).items():
            np.testing.assert_allclose(got, want[name], rtol=1e-5, atol=1e-6)
        for samples, feeds in stop.batches():
            for name, got in feeds[""].items():
                np.testing.assert_allclose(got, want[name][list(samples)], rtol=1e-5, atol=1e-6)
                with pytest.raises(ValueError, match="read-only"):
                    got[...] = 0
    assert lives == [{"x"}, {"a", "b"}, {"b", "c", "d"}]


def test_progress_counts_samples_and_segments():
    model = Model.from_proto(conv_net())
    calls = []
    reader, cuts = reader_of(model), default_cuts(model)
    for _ in walk(model, reader, cuts, progress=lambda done, total: calls.append((done, total))):
        pass
    total = 11 * len(cuts)
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_nan_is_refused_by_name():
    model = Model.from_proto(conv_net())
    x = np.ones((5, 3, 8, 8), np.float32)
    x[3, 0, 0, 0] = np.nan

    class Raw(DataReader):
        samples = 5

        def batches(self):
            yield {"x": x}

    stops = walk(model, Raw(), default_cuts(model))
    stop = next(stops)
    with pytest.raises(DataError, match=r"'h1' of node 'conv1' has NaN in sample 3"):
        stop.observe({"h": Tap("h1", MinMax())})


def test_what_cannot_be_walked_is_refused():
    model = Model.from_proto(conv_net())
    reader, cuts = reader_of(model), default_cuts(model)
    with pytest.raises(OptionError, match="no cut 9 to start at"):
        next(walk(model, reader, cuts, start=9))
    with pytest.raises(OptionError, match="near: 'h1'"):
        next(walk(model, reader, ["h11"]))
    stops = walk(model, reader, cuts)
    first = next(stops)
    dropped = next(walk(model, reader, cuts))  # nobody holds the walk
    with pytest.raises(OptionError, match="has left cut 0"):
        dropped.observe({"e": Tap("h1", MinMax())})
    with pytest.raises(OptionError, match="no model is called 'b'"):
        first.observe({"e": Tap((("b", "h1"),), MinMax())})
    next(stops)
    with pytest.raises(OptionError, match="has left cut 0"):
        first.observe({"e": Tap("h1", MinMax())})

    class Nothing(DataReader):
        def batches(self):
            return iter(())

    with pytest.raises(DataError, match="no samples"):
        next(walk(model, Nothing(), cuts))
