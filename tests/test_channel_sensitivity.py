import json
import pickle
from concurrent.futures import Executor, Future

import numpy as np
import pytest
from builders import normal
from executors import workers
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizing import parse

from onnxdrp.channels import channels_of
from onnxdrp.channels.choosing import at_rates, unit_scores
from onnxdrp.channels.cost import Cost
from onnxdrp.channels.output_scores import score_of
from onnxdrp.channels.pricing import by_price
from onnxdrp.channels.sensitivity import (
    ChannelSensitivity,
    graph_print,
    load_channel_sensitivity,
)
from onnxdrp.channels.subnets import Subnets
from onnxdrp.datareaders import ArrayReader
from onnxdrp.errors import DataError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes import (
    MeasureChannels,
    RemoveChannels,
    ScoreChannels,
    SelectChannels,
)
from onnxdrp.pipeline import PassContext

TEXT = """
<ir_version: 10, opset_import: ["": 17]>
net (float[N, 3, 8, 8] x) => (float[N, 5] y)
<float[16, 3, 3, 3] w0, float[16] b0, float[24, 16, 3, 3] w1, float[24] b1, float[16, 24, 3, 3] w2,
 float[16] b2, float[32, 16, 3, 3] w3, float[32] b3, float[32, 1, 3, 3] wd, float[32] bd,
 float[16, 32, 1, 1] w4, float[16] b4, float[16, 64] w5, float[64] b5, float[64, 5] w6, float[5] b6>
{
    [conv0] h0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    [relu0] r0 = Relu (h0)
    [conv1] h1 = Conv <pads = [1, 1, 1, 1]> (r0, w1, b1)
    [relu1] r1 = Relu (h1)
    [conv2] h2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
    [add] s = Add (h2, r0)
    [conv3] h3 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (s, w3, b3)
    [relu3] r3 = Relu (h3)
    [deep] hd = Conv <group = 32, pads = [1, 1, 1, 1]> (r3, wd, bd)
    [sig] rd = Sigmoid (hd)
    [conv4] h4 = Conv (rd, w4, b4)
    [pool] a = GlobalAveragePool (h4)
    [flat] f = Flatten (a)
    [fc] g = Gemm (f, w5, b5)
    [relu5] r5 = Relu (g)
    [last] z = MatMul (r5, w6)
    [centred] y = Add (z, b6)
}
"""
SHAPES = {
    "w0": (16, 3, 3, 3), "b0": (16,), "w1": (24, 16, 3, 3), "b1": (24,), "w2": (16, 24, 3, 3),
    "b2": (16,), "w3": (32, 16, 3, 3), "b3": (32,), "wd": (32, 1, 3, 3), "bd": (32,),
    "w4": (16, 32, 1, 1), "b4": (16,), "w5": (16, 64), "b5": (64,), "w6": (64, 5),
    "b6": (5,),
}  # fmt: skip
RATES = (0.25, 0.5, 0.75)


def net(**changed) -> Model:
    weights = {n: normal(s, i) for i, (n, s) in enumerate(SHAPES.items())}
    return parse(TEXT, weights | {"b6": _CENTRE} | changed)


def images(samples=40, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    colours = 2 * rng.standard_normal((samples, 3, 1, 1))
    return (rng.standard_normal((samples, 3, 8, 8)) + colours).astype(np.float32)


_CENTRE = np.zeros(5, np.float32)
_CENTRE = (
    -net().session().run(None, {"x": images()})[0].mean(0)
)  # all classes are somewhere largest
_MODEL = net()
_THREE = st.lists(st.floats(1e-3, 1), min_size=3, max_size=3)


def reader(samples=40, batch=7, labels=None) -> ArrayReader:
    arrays = {"x": images(samples)} | ({} if labels is None else {"y": labels})
    return ArrayReader(arrays, _MODEL, batch=batch)


def measured(model: Model, data: ArrayReader | None = None, **options) -> ChannelSensitivity:
    ctx = PassContext(
        reader=data or reader(),
        checkpoint=options.pop("checkpoint", None),
        workers=options.pop("workers", None),
        progress=options.pop("progress", None),
        executor=options.pop("executor", None),
        seed=options.pop("seed", 0),
    )
    options.setdefault("rates", RATES)
    if score := options.pop("first", None):
        ScoreChannels(score).run(model, ctx)
    step = MeasureChannels(auto_excludes=False, **options)
    step.requires(model, ctx)
    assert not step.run(model, ctx).modified
    assert ctx.channel_curves is not None
    return ctx.channel_curves


def outputs(model: Model) -> np.ndarray:
    return model.session().run(None, {"x": images()})[0]


def without(model: Model, group: str, rate: float) -> Model:
    """The model with the channels really taken out."""
    channels, ctx, small = channels_of(model), PassContext(), model.clone()
    ctx.removed = at_rates(channels, unit_scores(model, channels), {group: rate}, 1)
    RemoveChannels().run(small, ctx)
    return small


def test_a_score_is_that_of_the_model_with_the_channels_taken_out():
    model = net()
    wanted = outputs(model)
    assert np.bincount(wanted.argmax(1), minlength=5).min() > 2
    signal = measured(model, score="signal")
    agreement = measured(model)
    assert list(signal.curves) == ["conv0", "conv1", "conv3", "conv4", "fc"]
    assert (agreement.score, agreement.baseline, agreement.samples) == ("agreement", 1.0, 40)
    for group in signal.curves:
        for rate in RATES:
            got = outputs(without(model, group, rate))
            noise = np.sum((got - wanted) ** 2) / np.sum(wanted.astype(np.float64) ** 2)
            assert signal.curves[group][rate] == pytest.approx(1 / (1 + noise), rel=1e-5)
            same = np.mean(got.argmax(1) == wanted.argmax(1))
            assert agreement.curves[group][rate] == pytest.approx(same, abs=1e-12)
    found = [s for curve in agreement.curves.values() for s in curve.values()]
    assert len(set(found)) > 5, "the scores tell groups and rates apart"


def test_scores_do_not_depend_on_workers_or_batches_and_the_model_keeps_its_weights():
    model = net()
    before = model.fingerprint()
    first = measured(model, score="signal", workers=1)
    other = measured(model, reader(batch=40), score="signal", workers=3, memory_limit=1)
    assert first.curves == other.curves
    by_data = measured(model, mode="moments", workers=1)
    same = measured(model, mode="moments", workers=3, memory_limit=1)
    assert (same.curves, same.order) == (by_data.curves, by_data.order)
    assert by_data.order != first.order
    assert model.fingerprint() == before
    assert measured(model, samples=11, seed=3).curves == measured(model, samples=11, seed=3).curves
    assert measured(model, samples=11).samples == 11


class Pickling(Executor):
    """Does the work at once, as another process would: on what came out of pickle."""

    def __init__(self) -> None:
        self.pieces = []

    def submit(self, fn, /, *args, **kwargs):
        work, (piece,) = pickle.loads(pickle.dumps((fn, args)))
        self.pieces.append(piece)
        future = Future()
        try:
            future.set_result(pickle.loads(pickle.dumps(work(piece, **kwargs))))
        except Exception as e:
            future.set_exception(e)
        return future


@pytest.fixture(scope="module", params=["spawn", "threads", "dask"])
def executor(request):
    with workers(request.param) as pool:
        yield pool


def test_an_executor_changes_no_bit(executor):
    model, told = net(), []
    alone = measured(model, score="signal")
    shared = measured(
        model, score="signal", workers=2, executor=executor, memory_limit=1 << 10,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert shared == alone
    assert told == [(40 * i, 40 * 15) for i in range(1, 16)]


def test_pieces_follow_the_walk_and_what_they_gave_is_kept(tmp_path):
    model, file, pool = net(), tmp_path / "model.sens.json", Pickling()
    labels = np.random.default_rng(0).integers(0, 5, 40)
    mine = tmp_path / "mine.py"
    mine.write_text("def near(got, wanted):\n    return -abs(got['y'] - wanted['y']).mean()\n")
    for score in ("top-1", f"{mine}:near"):
        pool.pieces.clear()
        data = reader(labels=labels)
        whole = measured(model, data, score=score, executor=pool, workers=3)
        assert whole == measured(model, data, score=score)
        order = [name for piece in pool.pieces for name, _ in piece]
        assert order == [name for name in ("conv0", "conv1", "conv3", "conv4", "fc") for _ in RATES]
        assert len(pool.pieces) == 3
    options = {"score": "signal", "file": str(file), "executor": pool, "workers": 3}
    with pytest.raises(StoppedError):
        measured(model, progress=After(7), **options)
    done = sum(map(len, load_channel_sensitivity(file).curves.values()))
    assert 6 <= done <= 7
    pool.pieces.clear()
    assert measured(model, **options).curves == measured(model, score="signal").curves
    assert sum(map(len, pool.pieces)) == 15 - done
    mine.write_text("def near(got, wanted):\n    return got['z']\n")
    with pytest.raises(DataError, match=r"mine\.py:2"):
        measured(model, score=f"{mine}:near", executor=pool)


def test_labels_make_it_top_1_and_a_file_may_hold_the_score(tmp_path):
    model, labels = net(), np.random.default_rng(0).integers(0, 5, 40)
    wanted = outputs(model).argmax(1)
    labels[:30] = wanted[:30]
    top = measured(model, reader(labels=labels))
    assert top.score == "top-1"
    assert top.baseline == np.mean(wanted == labels)
    got = outputs(without(model, "conv3", 0.5)).argmax(1)
    assert top.curves["conv3"][0.5] == np.mean(got == labels)

    file = tmp_path / "mine.py"
    file.write_text(
        "def half(got, wanted):\n"
        "    return (got['y'].argmax(1) == wanted['y'].argmax(1)).mean() / 2\n"
    )
    own = measured(model, score=f"{file}:half")
    agreement = measured(model)
    assert own.baseline == 0.5
    assert own.score.startswith("mine.py:half ")
    assert own.curves["conv1"][0.75] == agreement.curves["conv1"][0.75] / 2


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("def f(a, b):\n    return a['z']\n", DataError, "mine.py:2: score .*mine.py:f: KeyError"),
        ("def f(a, b):\n    return float('nan')\n", DataError, "gives nan"),
        ("def g(a, b):\n    return 1\n", OptionError, "no function 'f'"),
        ("import nothing_of_this_name\n", DataError, "mine.py:1: .*ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_with_a_users_score_is_said(tmp_path, text, error, said):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(error, match=said):
        measured(net(), score=f"{file}:f")


def test_scores_that_cannot_be_are_refused():
    model = net()
    with pytest.raises(OptionError, match="there are agreement, top-1, signal"):
        measured(model, score="top1")
    with pytest.raises(OptionError, match="no such file"):
        measured(model, score="nowhere.py:f")
    with pytest.raises(DataError, match="needs labels"):
        measured(model, score="top-1")
    flat = parse(
        TEXT.replace("float[N, 5] y", "float[N, 16, 1, 1] a, float[N, 3, 8, 8] q").replace(
            "[pool]", "[neg] q = Neg (x)\n    [pool]"
        )
    )
    assert score_of(flat, None, None)[0] == "agreement"
    maps = parse(
        TEXT.replace("float[N, 5] y", "float[N, 3, 8, 8] q").replace(
            "[pool]", "[neg] q = Neg (x)\n    [pool]"
        )
    )
    assert score_of(maps, None, None)[0] == "signal"
    with pytest.raises(OptionError, match="no output is"):
        score_of(maps, "agreement", None)
    for wrong in (
        {"mode": "fast"},
        {"rates": ()},
        {"rates": (0.5, 0.5)},
        {"rates": (0.0, 0.5)},
        {"rates": (0.5, 1.0)},
        {"samples": 0},
        {"mode": "moments", "score": "signal"},
        {"mode": "moments", "samples": 100},
        {"memory_limit": 0},
    ):
        with pytest.raises(OptionError):
            MeasureChannels(**wrong)
    with pytest.raises(DataError, match="--calib"):
        MeasureChannels().requires(model, PassContext())


class StoppedError(Exception):
    pass


class After:
    """Ends the work after so many candidates."""

    def __init__(self, most: int) -> None:
        self.most, self.calls = most, 0

    def __call__(self, _done: int, _total: int | None) -> None:
        self.calls += 1
        if self.calls == self.most:
            raise StoppedError


def test_what_was_measured_before_an_interruption_is_not_measured_again(tmp_path):
    model, file = net(), tmp_path / "model.sens.json"
    whole = measured(model, score="signal")
    with pytest.raises(StoppedError):
        measured(model, score="signal", file=str(file), progress=After(7))
    part = load_channel_sensitivity(file)
    assert not part.complete
    done = sum(map(len, part.curves.values()))
    assert 6 <= done <= 7
    with pytest.raises(OptionError, match="not complete"):
        part.check(model, channels_of(model))
    rest = After(1000)
    found = measured(model, score="signal", file=str(file), progress=rest)
    assert rest.calls == 15 - done
    assert (found.curves, found.baseline) == (whole.curves, whole.baseline)
    assert load_channel_sensitivity(file) == found
    again = After(1)
    assert measured(model, score="signal", file=str(file), progress=again).curves == whole.curves
    assert again.calls == 0
    other = measured(model, reader(samples=30), score="signal", file=str(file))
    assert other.curves != whole.curves, "of other data nothing is taken over"


def test_a_checkpoint_is_gone_on_from_and_deleted(tmp_path):
    model, state, calls = net(), tmp_path / "state", After(10**6)
    whole = measured(model, progress=calls)
    with pytest.raises(StoppedError):
        measured(model, checkpoint=state, progress=After(calls.calls - 1))
    assert [p.name for p in tmp_path.iterdir()] == ["state.channels"]
    rest = After(10**6)
    found = measured(model, checkpoint=state, progress=rest)
    assert 0 < rest.calls < calls.calls
    assert found.curves == whole.curves
    assert not list(tmp_path.iterdir())


def test_a_file_of_something_else_is_not_written_over(tmp_path):
    file = tmp_path / "notes.json"
    file.write_text('{"format": "mine"}')
    with pytest.raises(OptionError, match=r"notes\.json"):
        measured(net(), file=str(file))
    assert file.read_text() == '{"format": "mine"}'
    with pytest.raises(OptionError, match="no folder"):
        measured(net(), file=str(tmp_path / "not_there" / "a.json"))


def test_a_file_comes_back_as_it_was(tmp_path):
    model = net()
    found = measured(model, file=str(tmp_path / "a.json"))
    back = load_channel_sensitivity(tmp_path / "a.json")
    assert back == found
    assert back.complete
    back.check(model, channels_of(model))
    table = json.loads((tmp_path / "a.json").read_text())
    assert table["format"] == "onnxdrp-channel-sensitivity"
    assert table["curves"]["conv1"].keys() == {"0.25", "0.5", "0.75"}
    assert table["order"]["conv1"] == unit_scores(model, channels_of(model))["conv1"].tolist()
    assert "conv1" in str(found)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 1},
        {"curves": {"conv1": {"0.5": None}}},
        {"curves": {"conv1": {"1.5": 1.0}}},
        {"curves": {"conv1": {"0.5": "nan"}}},
        {"curves": None},
        {"order": {}},
        {"order": {"conv1": [1.0, "nan"]}},
        {"order": {"conv1": None}},
        {"baseline": "high"},
        {"baseline": -1.0},
        {"more": 1},
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change):
    file = tmp_path / "a.json"
    ChannelSensitivity({"conv1": {0.5: 0.9}}, {"conv1": [1.0, 2.0]}).save(file)
    load_channel_sensitivity(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(OptionError, match=r"a\.json.*name another file"):
        load_channel_sensitivity(file)


def test_a_file_is_tied_to_the_graph_and_not_to_the_values_of_weights():
    model = net()
    found = measured(model)
    trained = net(w1=normal(SHAPES["w1"], 99))
    found.check(trained, channels_of(trained))
    weights = {n: normal(s, 7) for n, s in SHAPES.items()}
    other = parse(TEXT.replace("[relu1] r1 = Relu (h1)", "[relu1] r1 = Add (h1, h1)"), weights)
    assert graph_print(other, channels_of(other)) == found.graph, "the layers are the same"
    narrow = {"w1": (20, 16, 3, 3), "b1": (20,), "w2": (16, 20, 3, 3)}
    text = TEXT.replace("float[24", "float[20").replace("[16, 24, 3", "[16, 20, 3")
    narrower = parse(text, weights | {n: normal(s, 7) for n, s in narrow.items()})
    with pytest.raises(OptionError, match="another model"):
        found.check(narrower, channels_of(narrower))
    with pytest.raises(OptionError, match="another model"):
        SelectChannels(ratio=0.5).run(narrower, PassContext(channel_curves=found))


# ------------------------------------------------------------------------------------------ moments


READERS = {  # of each group: what it reads, its weight, and its stride if it is a Conv
    "conv0": [("r0", "w1", 1), ("s", "w3", 2)],
    "conv1": [("r1", "w2", 1)],
    "conv3": [("rd", "w4", 1)],
    "conv4": [("f", "w5", 0)],
    "fc": [("r5", "w6", 0)],
}


def rows(values: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """What a Conv multiplies at each place, [places, channels * kernel * kernel]."""
    if not stride:
        return values.astype(np.float64)
    edge = kernel // 2
    wide = np.pad(values.astype(np.float64), ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    seen = np.lib.stride_tricks.sliding_window_view(wide, (kernel, kernel), axis=(2, 3))
    seen = seen[:, :, ::stride, ::stride].transpose(0, 2, 3, 1, 4, 5)
    return seen.reshape(-1, values.shape[1] * kernel * kernel)


def lost(model: Model, group: str, gone: list[int]) -> float:
    """What the readers lose of their variance, by least squares over all that they read."""
    total, small = 0.0, 0.1  # what damping adds, of the mean variance
    for tensor, weight, stride in READERS[group]:
        tapped = Model.from_proto(model.proto())
        tapped.graph.outputs = [tapped.tensor(tensor)]
        (values,) = tapped.session().run(None, {"x": images()})
        w = model.weight(weight).astype(np.float64)
        kernel = w.shape[-1] if stride else 1
        matrix = w.reshape(len(w), -1) if stride else w.T
        x = rows(values, kernel, stride)
        x = x - x.mean(0)
        pull = np.sqrt(small * x.var(0).mean() * len(x)) * np.eye(x.shape[1])
        damped = np.vstack([x, pull])
        keep = ~np.isin(np.arange(x.shape[1]) // kernel**2, gone)
        wanted = damped @ matrix.T
        fitted = np.linalg.lstsq(damped[:, keep], wanted, rcond=None)[0]
        rest = np.square(wanted - damped[:, keep] @ fitted).sum()
        total += rest / np.square(x @ matrix.T).sum()
    return total


def test_by_moments_a_group_loses_what_least_squares_leaves_to_all_its_readers():
    """Whether score-channels has run or not; conv0 is read by two, and fc goes in rounds."""
    model = net()
    found = measured(model, mode="moments")
    assert measured(model, mode="moments", first="second-order") == found
    assert (found.score, found.samples, found.baseline) == ("moments", 40, 1.0)
    assert found.skipped.keys() == {"last"}
    channels = channels_of(model)
    for group, curve in found.curves.items():
        for rate in RATES:
            gone = at_rates(channels, found.scores(), {group: rate}, 1)[group]
            want = lost(model, group, gone)
            between = (group, rate) == ("fc", 0.5)  # no end of a round
            assert 1 - curve[rate] == pytest.approx(want, rel=0.02 if between else 1e-4)
    every = [1 - score for curve in found.curves.values() for score in curve.values()]
    assert min(every) < 0.05 < 0.3 < max(every)


def test_by_moments_channels_that_others_make_up_for_go_first():
    """Half of conv1 repeats the other half at a smaller scale."""
    weight, bias = normal(SHAPES["w1"], 2), normal(SHAPES["b1"], 3)
    weight[12:], bias[12:] = weight[:12] / 2, bias[:12] / 2
    model = net(w1=weight, b1=bias)
    by_moments = measured(model, mode="moments")
    curve = by_moments.curves["conv1"]
    assert 1 - curve[0.5] < 0.75 * (1 - measured(net(), mode="moments").curves["conv1"][0.5])
    assert curve[0.5] - curve[0.75] > 1 - curve[0.5]
    gone = at_rates(channels_of(model), by_moments.scores(), {"conv1": 0.5}, 1)["conv1"]
    assert len({unit % 12 for unit in gone}) >= 10, "one of nearly each pair"


def test_of_a_layer_that_is_scored_by_activation_more_is_lost():
    model, ctx = net(), PassContext(reader=reader())
    stats = ScoreChannels(moments_limit=6 * 8 * 150**2).run(model, ctx).stats
    assert list(stats["by_activation"]) == ["conv2"]  # 24 * 9 columns
    MeasureChannels(mode="moments", auto_excludes=False, rates=RATES).run(model, ctx)
    found, alone = ctx.channel_curves, measured(model, mode="moments")
    assert list(found.curves) == list(READERS)
    assert found.curves["conv1"][0.5] < alone.curves["conv1"][0.5] - 0.02, "nothing is re-fitted"
    assert found.curves["fc"] == alone.curves["fc"]


def test_scores_that_do_not_say_what_readers_lose_are_no_moments():
    for first in ("l1", "activation"):
        with pytest.raises(OptionError, match=f"scored by {first}.*needs second-order"):
            measured(net(), mode="moments", first=first)


def test_a_file_by_moments_is_not_written_over_what_is_none(tmp_path):
    file = tmp_path / "a.json"
    found = measured(net(), mode="moments", file=str(file))
    assert load_channel_sensitivity(file) == found
    file.write_text('{"format": "mine"}')
    with pytest.raises(OptionError, match=r"a\.json"):
        measured(net(), mode="moments", file=str(file))
    assert file.read_text() == '{"format": "mine"}'


# ---------------------------------------------------------------------------------------- choosing


def selected(model: Model, curves: ChannelSensitivity, ratio: float, multiple: int = 1):
    ctx = PassContext(channel_curves=curves)
    step = SelectChannels(ratio=ratio, multiple=multiple, auto_excludes=False)
    stats = step.run(model, ctx).stats
    return stats, {name: len(units) for name, units in ctx.removed.items()}


GROUPS = {"conv0": 16, "conv1": 24, "conv3": 32, "conv4": 16, "fc": 64}


def curves_of(model: Model, costs: dict[str, list[float]]) -> ChannelSensitivity:
    rates = np.linspace(0, 0.9, len(next(iter(costs.values()))) + 1)[1:]
    return ChannelSensitivity(
        {
            name: dict(zip(rates.tolist(), 1 - np.array(c), strict=True))
            for name, c in costs.items()
        },
        {name: of.tolist() for name, of in unit_scores(model, channels_of(model)).items()},
        graph=graph_print(model, channels_of(model)),
    )


def test_a_group_that_costs_nothing_goes_before_one_that_costs_much():
    model = net()
    costs = {name: [0.3, 0.6, 0.9] for name in GROUPS} | {"conv3": [1e-6, 2e-6, 3e-6]}
    stats, gone = selected(model, curves_of(model, costs), 0.1)
    assert gone["conv3"] > 0.4 * 32
    assert gone.keys() == {"conv3"}
    before, after = stats["macs"]
    assert abs(after - 0.9 * before) <= 0.01 * 0.9 * before
    assert stats["warnings"] == []


def test_what_costs_alike_goes_where_multiply_adds_are():
    """fc has the most units, and the fewest multiply-adds."""
    model = net()
    even = curves_of(model, {name: [0.3, 0.6, 0.9] for name in GROUPS})
    stats, gone = selected(model, even, 0.4)
    channels = channels_of(model)
    cost = Cost(model, channels)
    alone = {
        name: cost.whole - cost.macs(channels.alive({name: range(size // 2)}))
        for name, size in GROUPS.items()
    }
    assert min(alone, key=alone.get) == "fc"
    assert max(alone.values()) > 10 * alone["fc"]
    assert "fc" not in gone
    assert gone[max(alone, key=alone.get)] > 0
    assert 0.1 < stats["price"] < 10


def test_what_is_spoilt_already_is_no_bargain():
    """conv1 costs much at its lowest rate, and no more at the others; conv2 ever a little."""
    model = net()
    costs = {name: [0.1, 0.2, 0.3] for name in GROUPS} | {"conv1": [0.8, 0.8, 0.8]}
    stats, gone = selected(model, curves_of(model, costs), 0.3)
    assert stats["warnings"] == []
    assert gone.get("conv1", 0) <= 1
    free = costs | {"conv1": [1e-4, 2e-4, 3e-4]}
    assert selected(model, curves_of(model, free), 0.3)[1]["conv1"] >= 8


def test_between_measured_rates_the_curve_is_a_line_that_never_falls():
    model = net()
    costs = {name: [0.2, 0.4, 0.8] for name in GROUPS} | {"conv1": [0.8, 0.1, 0.1]}
    curves = curves_of(model, costs)
    assert curves.drops("conv1")[1].tolist() == pytest.approx([0, 0.8, 0.8, 0.8], rel=1e-4)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([1, 2, 8]))
def test_of_all_next_multiples_the_one_with_the_least_price_goes(data, multiple):
    """Against multiply-adds counted anew for each, and lines drawn by hand."""
    channels = channels_of(_MODEL)
    cost, scores = Cost(_MODEL, channels), unit_scores(_MODEL, channels)
    slopes = {name: sorted(data.draw(_THREE)) for name in GROUPS}  # convex: they rise
    costs = {name: np.cumsum(np.multiply(0.3, of)).tolist() for name, of in slopes.items()}
    curves = curves_of(_MODEL, costs)
    subnets = Subnets(_MODEL, channels, list(GROUPS), multiple, scores)
    ratio = data.draw(st.floats(0.05, 0.6))
    chosen = by_price(subnets, curves, ratio)

    def drop(name: str, gone: int) -> float:
        rate = gone / GROUPS[name]
        return sum(
            (s + 1e-5) * min(max(rate - 0.3 * i, 0), 0.3) for i, s in enumerate(slopes[name])
        )

    def macs(gone: dict[str, int]) -> int:
        units = {n: np.argsort(scores[n], kind="stable")[:k].tolist() for n, k in gone.items()}
        return cost.macs(channels.alive(units))

    gone, wanted, last = dict.fromkeys(GROUPS, 0), (1 - ratio) * cost.whole, 0.0
    while macs(gone) - wanted > 0.01 * wanted:
        prices = {}
        for name, size in GROUPS.items():
            left = (size - gone[name] - 1) // multiple * multiple
            after = gone | {name: size - left}
            if left and size - left <= 0.9 * size and macs(after) >= 0.99 * wanted:
                saved = (macs(gone) - macs(after)) / cost.whole
                prices[name] = (drop(name, size - left) ** 2 - drop(name, gone[name]) ** 2) / saved
        if not prices:
            break
        best = min(prices, key=prices.get)
        last = prices[best]
        gone[best] = GROUPS[best] - (GROUPS[best] - gone[best] - 1) // multiple * multiple
    found = {name: len(units) for name, units in subnets.removed(chosen.subnet).items()}
    assert chosen.price == pytest.approx(last, rel=1e-3, abs=1e-9)
    if len(set(map(tuple, slopes.values()))) == len(GROUPS):  # else which goes first is open
        assert found == {name: k for name, k in gone.items() if k}


def test_several_ratios_come_from_one_analysis_and_a_higher_one_takes_no_less():
    model = net()
    curves = measured(model, score="signal", rates=(0.1, 0.3, 0.5, 0.7, 0.9))
    last = 0
    for ratio in (0.0, 0.1, 0.25, 0.5, 0.75):
        stats, gone = selected(model, curves, ratio)
        before, after = stats["macs"]
        assert abs(after - (1 - ratio) * before) <= 0.01 * (1 - ratio) * before
        assert stats["warnings"] == []
        assert sum(gone.values()) >= last
        last = sum(gone.values())
    assert not selected(model, curves, 0.0)[1]


def test_a_ratio_that_cannot_be_met_is_nearest_below_and_said():
    model = net()
    curves = measured(model, score="signal")
    stats, gone = selected(model, curves, 0.99)
    assert 1 - stats["macs"][1] / stats["macs"][0] < 0.99
    assert "0.99 of the multiply-adds is not met" in stats["warnings"][0]
    assert all(n == round(0.75 * GROUPS[name]) for name, n in gone.items())
    assert gone.keys() == GROUPS.keys()


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=5, max_size=5),
    st.floats(0, 0.9),
    st.sampled_from([1, 2, 8, 16]),
)
def test_no_more_goes_than_wanted_and_no_fitting_multiple_is_left(costs, ratio, multiple):
    channels = channels_of(_MODEL)
    cost, scores = Cost(_MODEL, channels), unit_scores(_MODEL, channels)
    curves = curves_of(_MODEL, dict(zip(GROUPS, costs, strict=True)))
    subnets = Subnets(_MODEL, channels, list(GROUPS), multiple, scores)
    chosen = by_price(subnets, curves, ratio)
    removed = subnets.removed(chosen.subnet)
    macs, wanted = cost.macs(channels.alive(removed)), (1 - ratio) * cost.whole
    assert 1 - macs / cost.whole == pytest.approx(chosen.subnet.share, abs=1e-6)
    assert macs >= 0.99 * wanted - 1
    assert chosen.met == (macs <= 1.01 * wanted + 1)
    for name, size in GROUPS.items():
        gone = removed.get(name, ())
        left = size - len(gone)
        assert left == size or left % multiple == 0
        order = np.argsort(scores[name], kind="stable")
        assert list(gone) == sorted(order[: size - left].tolist())
        if not chosen.met and left > multiple:
            fewer = (left - 1) // multiple * multiple
            more = {**removed, name: sorted(order[: size - fewer].tolist())}
            there = cost.macs(channels.alive(more))
            assert there < 0.99 * wanted or 1 - fewer / size > 0.9


def test_curves_belong_to_a_ratio_and_without_them_all_groups_lose_one_share(tmp_path):
    model, file = net(), tmp_path / "a.json"
    with pytest.raises(OptionError, match="belong to a ratio"):
        SelectChannels(rate=0.5, curves="a.json")
    curves = measured(model, file=str(file))
    ctx = PassContext()
    stats = (
        SelectChannels(ratio=0.5, multiple=1, curves=str(file), auto_excludes=False)
        .run(model, ctx)
        .stats
    )
    assert stats["price"] > 0
    given_curves = PassContext(channel_curves=curves)
    SelectChannels(ratio=0.5, multiple=1, auto_excludes=False).run(model, given_curves)
    assert given_curves.removed == ctx.removed
    stats = SelectChannels(rate=0.5, multiple=1, auto_excludes=False).run(model, given_curves).stats
    assert stats["rate"] == 0.5
    assert {n: after / before for n, (before, after) in stats["groups"].items()} == dict.fromkeys(
        GROUPS, 0.5
    )
    with pytest.raises(OptionError, match="can be read"):
        SelectChannels(ratio=0.5, curves=str(tmp_path / "none.json")).run(model, PassContext())


@pytest.mark.parametrize("mode", ["outputs", "moments"])
def test_the_channels_that_go_are_those_that_were_measured(tmp_path, mode):
    """Whatever the scores are by then; and a rate of its own goes by these."""
    model, file = net(), tmp_path / "a.json"
    found = measured(model, mode=mode, first="second-order", file=str(file))
    channels = channels_of(model)
    by_weights = unit_scores(model, channels)
    step = SelectChannels(ratio=0.5, multiple=1, curves=str(file), auto_excludes=False)
    ctx, other = PassContext(), PassContext(reader=reader())
    step.run(model, ctx)
    ScoreChannels("l1").run(model, other)
    step.run(model, other)
    assert ctx.removed == other.removed
    for name, units in ctx.removed.items():
        first = np.argsort(found.order[name], kind="stable")[: len(units)]
        assert set(units) == set(first.tolist())
    different = [
        name
        for name, units in ctx.removed.items()
        if set(units) != set(np.argsort(by_weights[name])[: len(units)].tolist())
    ]
    assert different
    SelectChannels(rate=0.5, multiple=1, auto_excludes=False).run(model, other)
    assert other.removed["conv1"] == tuple(
        at_rates(channels, by_weights, {"conv1": 0.5}, 1)["conv1"]
    )


def test_an_order_of_other_groups_is_refused(tmp_path):
    model = net()
    found = measured(model)
    found.order["conv1"] = found.order["conv1"][:-1]
    with pytest.raises(OptionError, match="24 units of 'conv1' have none"):
        SelectChannels(ratio=0.5, auto_excludes=False).run(model, PassContext(channel_curves=found))
