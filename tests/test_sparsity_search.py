"""The search for the highest sparsity: what it accepts, how many sweeps it takes, what it keeps."""

import json
import math

import numpy as np
import pytest
from builders import mlp
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxdrp.datareaders import ArrayReader
from onnxdrp.errors import CheckError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes import PruneBlocks, SelectLayers
from onnxdrp.pipeline import PassContext, PassManager
from onnxdrp.sparsity_search import Curve, Point, Sweeps, find_sparsity
from onnxdrp.trials import Trials


def point(rate, lost, high=None):
    high = lost + 1 if high is None else high
    return Point(rate, rate * 0.9, int(1e6 * (1 - rate)), 100 - lost, lost, lost / 2, high, 0.5)


class Fake:
    """Loses what a function says, and knows what it was asked."""

    def __init__(self, lost):
        self.lost, self.asked = lost, []

    def __call__(self, rate):
        assert rate not in self.asked
        self.asked.append(rate)
        return point(rate, self.lost(rate))


def find(measure, max_drop=1.0, **options):
    options = {"what": "top-1 agreement", "samples": 200} | options
    return find_sparsity(measure, max_drop, **options)


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(1, 94),
    growth=st.floats(1, 60),
    jump=st.floats(0, 50),
    goal=st.sampled_from([0.0, 0.5, 1.0, 5.0]),
)
def test_the_highest_rate_that_holds_is_found_in_no_more_sweeps_than_bisection_takes(
    limit, growth, jump, goal
):
    def lost(rate):
        over = rate - (limit + 0.5) / 100
        return goal * math.exp(growth * over) + (jump + 1e-9 if over > 0 else 0)

    measure = Fake(lost)
    if goal == 0:
        measure = Fake(lambda rate: 0.0 if rate < (limit + 0.5) / 100 else jump + 0.5)
    curve = find(measure, goal)
    assert curve.best is not None
    assert curve.best.rate == limit / 100  # exactly: rates are not summed up
    assert len(measure.asked) <= 8


def test_where_loss_grows_as_expected_few_sweeps_are_needed():
    measure = Fake(lambda rate: 0.01 * math.exp(8 * rate))
    best = find(measure, 2.0).best
    assert best.rate == math.floor(100 * math.log(200) / 8) / 100 == 0.66
    assert len(measure.asked) <= 5


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), sweeps=st.integers(1, 9))
def test_with_noise_what_is_accepted_was_measured_and_holds_and_nothing_above_a_failure_is_tried(
    seed, sweeps
):
    random = np.random.default_rng(seed)
    measure = Fake(lambda rate: float(random.choice([0.0, 0.5, 1.0, 1.5, 9.0]) * rate))
    try:
        curve = find(measure, 1.0, sweeps=sweeps)
    except CheckError:
        assert 1 <= len(measure.asked) <= sweeps
        return
    assert len(measure.asked) <= sweeps
    assert curve.best == max((p for p in curve.points if p.lost <= 1), key=lambda p: p.rate)
    assert [p.rate for p in curve.points] == sorted(measure.asked)
    failed = [i for i, rate in enumerate(measure.asked) if curve.points[
        sorted(measure.asked).index(rate)].lost > 1]  # fmt: skip
    for i in failed:
        assert all(rate < measure.asked[i] for rate in measure.asked[i + 1 :])


def test_rates_are_exact_multiples_of_the_step_and_begin_at_the_start():
    measure = Fake(lambda rate: 100 * rate - 60)
    curve = find(measure, 1.0, step=1 / 32, start=0.75)
    assert measure.asked[0] == 0.75
    assert all(rate * 32 == round(rate * 32) for rate in measure.asked)
    assert curve.best.rate == 19 / 32
    assert find(Fake(lambda rate: 0.0), 1.0).best.rate == 0.95


def test_a_goal_that_no_rate_reaches_is_refused_with_what_the_lowest_loses():
    with pytest.raises(CheckError, match=r"0\.01, the lowest tried, it is 3\.00; ask for less"):
        find(Fake(lambda rate: 3.0), 1.0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_drop": -1}, "max_drop -1"),
        ({"max_drop": 101}, "max_drop 101"),
        ({"step": 0}, "step 0"),
        ({"sweeps": 0}, "0 sweeps"),
        ({"start": 1}, "start 1"),
    ],
)
def test_options_out_of_range_are_refused_before_any_sweep(options, why):
    measure = Fake(lambda rate: 0.0)
    with pytest.raises(OptionError, match=why):
        find(measure, **options)
    assert not measure.asked


# ----------------------------------------------------------------------------------- interruptions


def lost(rate):
    return 0.02 * math.exp(7 * rate)


def interrupted(path, after, key="k"):
    """What a search that is stopped in its middle was asked."""
    measure = Fake(lost)

    def stop(rate):
        if len(measure.asked) == after:
            raise KeyboardInterrupt
        return measure(rate)

    with pytest.raises(KeyboardInterrupt):
        find(stop, checkpoint=path, key=key)
    return measure.asked


def test_a_search_goes_on_where_it_was_interrupted(tmp_path):
    path, whole = tmp_path / "out.curve", Fake(lost)
    want = find(whole)
    for after in range(1, len(whole.asked)):
        done, rest = interrupted(path, after), Fake(lost)
        assert path.exists()
        assert find(rest, checkpoint=path, key="k") == want
        assert done + rest.asked == whole.asked
        assert not path.exists()


def test_a_checkpoint_of_other_work_or_a_damaged_one_is_not_used(tmp_path):
    path, whole = tmp_path / "out.curve", Fake(lost)
    find(whole)
    interrupted(path, 2)
    other = Fake(lost)
    find(other, checkpoint=path, key="other")
    assert other.asked == whole.asked
    for text in ("", "{}", '{"version": "onnxdrp-curve-1", "key": "k", "points": [{"rate": 1}]}'):
        path.write_text(text)
        again = Fake(lost)
        find(again, checkpoint=path, key="k")
        assert again.asked == whole.asked


# --------------------------------------------------------------------------------- what is shown


def test_the_curve_is_a_table_and_json():
    points = tuple(point(r, v) for r, v in ((0.5, 0.0), (0.6, 0.5), (0.61, 1.25)))
    curve = Curve(points, 1.0, "top-1 agreement", 200)
    lines = str(curve).splitlines()
    assert lines[0].split()[:4] == ["rate", "sparsity", "million", "MACs"]
    assert "top-1 agreement" in lines[0]
    assert [line.rsplit("  ", 1)[1] for line in lines[1:]] == ["holds", "taken", "loses too much"]
    assert "0.540" in lines[2]
    assert "99.50" in lines[2]
    found = json.loads(json.dumps(curve.as_dict()))
    assert found["rate"] == 0.6
    assert found["points"][2] == {
        "rate": 0.61, "sparsity": 0.61 * 0.9, "macs": 390000, "top1": 98.75, "lost": 1.25,
        "low": 0.625, "high": 2.25, "seconds": 0.5,
    }  # fmt: skip


def test_an_interval_that_reaches_beyond_the_goal_is_said():
    (said,) = Curve((point(0.6, 0.5, 1.7),), 1.0, "top-1 agreement", 200).warnings
    assert "on 200 samples, 0.25 to 1.70 points, reaches beyond 1; more samples" in said
    assert Curve((point(0.6, 0.5, 0.9),), 1.0, "top-1 agreement", 200).warnings == []


# ------------------------------------------------------------------------------------- a real one


def test_a_real_network_is_swept_and_measured():
    model = Model.from_proto(mlp(16, 64, 64, 10))
    x = np.random.default_rng(3).standard_normal((300, 16)).astype(np.float32)
    y = model.session().run(None, {"x": x})[0].argmax(1)
    assert len(set(y.tolist())) > 5
    y[:60] = (y[:60] + 1) % 10

    def sweep(rate):
        pruned = model.clone()
        steps = [SelectLayers(rate=rate, pattern="unstructured"), PruneBlocks("unstructured")]
        PassManager(steps).run(pruned, PassContext())
        return pruned

    for labels, what, top in ({}, "top-1 agreement", 100), ({"y": y}, "top-1 accuracy", 80):
        trials = Trials(model, ArrayReader({"x": x, **labels}, model))
        sweeps = Sweeps(sweep, trials)
        assert sweeps.what == what
        assert trials.top1 == pytest.approx(top)
        curve = find(sweeps, 5.0, what=what, samples=trials.samples, step=0.05)
        best = curve.best
        assert 0.05 <= best.rate < 0.9
        again = sweeps(best.rate)
        assert again.lost == best.lost <= 5.0
        assert again.low <= again.lost <= again.high
        assert best.top1 == pytest.approx(top - best.lost)
        zeros = round(best.rate * 64 * 64)
        whole = 16 * 64 + 64 * 64 + 64 * 10
        assert best.macs == whole - zeros
        assert best.sparsity == pytest.approx(zeros / whole, abs=1e-6)
        above = [p for p in curve.points if p.rate > best.rate]
        assert above
        assert all(p.lost > 5.0 for p in above)
