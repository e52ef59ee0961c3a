"""A front of sub-networks: the best score for each share of the multiply-adds."""

import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pytest
from quantizing import Feeds
from slim_nets import images, residual_net

from onnxdrp.channels import channels_of, pareto
from onnxdrp.channels.candidates import SubnetScore
from onnxdrp.channels.cost import Cost
from onnxdrp.channels.front import Front, load_front, slim_of
from onnxdrp.channels.spec import load_spec
from onnxdrp.channels.subnets import Subnets
from onnxdrp.errors import ModelError, OptionError, PassError
from onnxdrp.layers import layers
from onnxdrp.passes import ApplyChannels, RemoveChannels
from onnxdrp.passes.slim_trials import SlimTrials
from onnxdrp.pipeline import PassContext, PassManager

NET = residual_net()
CHANNELS = channels_of(NET)
GROUPS = [g.name for g in CHANNELS.groups]
CURVES = {
    name: ([0.1 * i for i in range(1, 10)], [k * (0.1 * i) ** 2 for i in range(1, 10)])
    for name, k in zip(GROUPS, (5.0, 1.0, 0.1, 2.0), strict=True)
}
FEW = {"multiple": 2, "auto_excludes": False, "workers": 1, "points": 5}


def found(**more):
    return pareto.pareto(NET, Feeds(images()), **{**FEW, "curves": CURVES, **more})


@pytest.fixture
def quick(monkeypatch):
    """Scores by a formula, in place of trials; the list of what was scored."""
    scored = []

    def score(_self, removed):
        scored.append({name: tuple(units) for name, units in removed.items()})
        gone = {g.name: len(removed.get(g.name, ())) / g.size for g in CHANNELS.groups}
        return SubnetScore(None, -sum(CURVES[name][1][-1] * r**2 for name, r in gone.items()))

    monkeypatch.setattr(SlimTrials, "__call__", score)
    return scored


def test_each_point_is_what_it_says_and_none_is_worse_in_both():
    front = found()
    assert len(front.points) >= 3
    cost = Cost(NET, CHANNELS)
    for point in front.points:
        assert point.macs == cost.macs(CHANNELS.alive(point.setting))
        slim = slim_of(NET, point)
        assert sum(layer.params for layer in layers(slim)) == point.params
        assert sum(layer.baseline_mac for layer in layers(slim)) == point.macs
        assert 0.25 * cost.whole - 1 <= point.macs <= 0.95 * cost.whole + 1
        assert point.measured.agreement is not None
        slim.check()
    for small, large in itertools.pairwise(front.points):
        assert small.macs < large.macs
        assert small.measured.order("sqnr") < large.measured.order("sqnr")
        assert small.net_id + 1 == large.net_id
    assert front.whole == cost.whole


def test_with_curves_it_comes_near_the_best_there_is(quick):
    front = found(points=8)
    subnets = Subnets(NET, CHANNELS, GROUPS, 2)
    rates = np.linspace(0, 0.9, 7)
    every = [
        subnets.at(dict(zip(GROUPS, r, strict=True))) for r in itertools.product(rates, repeat=4)
    ]
    for point in front.points:
        fair = [s for s in every if front.whole * (1 - s.share) <= point.macs + 1]
        best = max(pareto._predicted(CURVES, subnets.gone(s)) for s in fair)
        assert point.predicted >= best - 0.1 * abs(best) - 0.005
        uniform = subnets.uniform(1 - point.macs / front.whole)
        assert point.predicted >= pareto._predicted(CURVES, subnets.gone(uniform))
    assert len(quick) <= 2 * 8  # what the buckets have, each once


def test_of_given_ratios_no_other_rates_come_and_the_best_are_found(quick):
    ratios = (0.25, 2 / 3, 1.0)
    subnets = Subnets(NET, CHANNELS, GROUPS, 2)
    every = [
        subnets.at(dict(zip(GROUPS, (1 - r for r in kept), strict=True)))
        for kept in itertools.product(ratios, repeat=4)
    ]
    known = {json.dumps(subnets.removed(s), sort_keys=True): s for s in every}
    assert len(known) == 81
    wide = {"ratios": ratios, "points": 20, "min_macs": 0.05, "max_macs": 1.0}
    front = found(**wide)
    assert len(front.points) > 6
    for point in front.points:
        assert json.dumps(point.setting, sort_keys=True) in known
        fair = [s for s in every if front.whole * (1 - s.share) <= point.macs + 1]
        best = max(pareto._predicted(CURVES, subnets.gone(s)) for s in fair)
        assert point.predicted == pytest.approx(best, abs=1e-6), "of 81 the search meets the best"
    quick.clear()
    measured = found(**wide, curves=None)
    assert {json.dumps(dict(sorted(removed.items()))) for removed in quick} <= known.keys()
    assert len(measured.points) > 6
    rates = {rate for s in every for rate in subnets.gone(s).values()}
    assert {rate for point in measured.points for rate in point.rates.values()} == rates
    for wrong in ((0.0, 0.5), (0.5, 1.1), (float("nan"),)):
        with pytest.raises(OptionError, match=r"outside \(0, 1\]"):
            found(ratios=wrong)
    with pytest.raises(OptionError, match="widen"):
        found(ratios=(1.0,))


def test_without_curves_what_is_measured_leads_the_search(quick):
    front = found(curves=None)
    assert len(quick) == len({repr(sorted(one.items())) for one in quick}) > 50
    assert front.points[-1].predicted is None
    start = found(curves=None, iterations=0)
    ends = (max(p.score for p in f.points if p.macs < 0.6 * f.whole) for f in (front, start))
    late, early = ends
    assert late > early


def test_the_same_seed_gives_the_same_front_and_another_does_not(quick):
    assert found(curves=None) == found(curves=None)
    assert found(curves=None, iterations=2) != found(curves=None, iterations=2, seed=1)
    assert found(curves=None, workers=3) == found(curves=None)


def test_an_interrupted_search_goes_on_where_it_was(quick, tmp_path, monkeypatch):
    whole = found(curves=None)
    needed, score = len(quick), SlimTrials.__call__

    def fails(self, removed):
        if len(quick) == needed + 30:
            raise KeyboardInterrupt
        return score(self, removed)

    with monkeypatch.context() as patch:
        patch.setattr(SlimTrials, "__call__", fails)
        with pytest.raises(KeyboardInterrupt):
            found(curves=None, checkpoint=tmp_path / "kept")
    assert (tmp_path / "kept").exists()
    assert found(curves=None, checkpoint=tmp_path / "kept") == whole
    assert len(quick) == 2 * needed
    assert list(tmp_path.iterdir()) == []


def test_bounds_hold_and_groups_without_a_curve_stay_whole(quick):
    some = {name: CURVES[name] for name in GROUPS[:2]}
    front = found(curves=some, min_macs=0.6, max_macs=0.8)
    for point in front.points:
        assert 0.6 - 1e-3 <= point.macs / front.whole <= 0.8 + 1e-3
        assert point.setting.keys() <= set(GROUPS[:2])
    with pytest.raises(OptionError, match=r"no sub-network has between 0 and 0\.01"):
        found(min_macs=0.0, max_macs=0.01)


def test_the_channels_that_go_are_those_of_the_lowest_scores(quick):
    scores = {g.name: np.random.default_rng(0).random(g.size) for g in CHANNELS.groups}
    settings = [p.setting for p in found(scores=scores).points]
    assert settings != [p.setting for p in found().points]
    for setting in settings:
        for name, units in setting.items():
            assert set(units) == set(np.argsort(scores[name])[: len(units)].tolist())
    scores[GROUPS[0]] = scores[GROUPS[0]][1:]
    with pytest.raises(OptionError, match="another model"):
        found(scores=scores)


def test_a_front_comes_back_from_its_file_and_its_points_are_decisions(quick, tmp_path):
    front, path = found(), tmp_path / "front.json"
    front.save(path)
    assert load_front(path) == front
    rows = json.loads(path.read_text())["points"]
    assert {"net_id", "score", "macs", "params", "setting"} <= rows[0].keys()
    for point in front.points:
        assert load_spec(path, point.net_id) == point.spec()
    last = front.points[-1]
    model, step = NET.clone(), ApplyChannels(file=str(path), net_id=last.net_id)
    PassManager([step, RemoveChannels()]).run(model, PassContext())
    same = slim_of(NET, last)
    feed = images()
    want, got = (m.session().run(None, feed)[0] for m in (same, model))
    np.testing.assert_array_equal(got, want)
    with pytest.raises(OptionError, match="is a front; say one of 0, 1"):
        load_spec(path)
    with pytest.raises(PassError, match=re.escape("has no net_id 99")):
        PassManager([ApplyChannels(file=str(path), net_id=99)]).run(model, PassContext())
    path.write_text("{}")
    with pytest.raises(OptionError, match="no front can be read"):
        load_front(path)


def test_what_loses_nothing_has_no_score_in_the_file_for_json_has_no_infinity(quick, tmp_path):
    front = found(points=2)
    best = dataclasses.replace(front.points[-1], score=math.inf)
    front = dataclasses.replace(front, points=(*front.points[:-1], best))
    front.save(path := tmp_path / "front.json")

    def refuse(text):
        raise AssertionError(text)

    table = json.loads(path.read_text(), parse_constant=refuse)
    assert table["points"][-1]["score"] is None
    assert load_front(path) == front


def test_a_ratio_takes_the_best_of_those_that_are_small_enough(quick):
    front = found()
    point = front.at(0.4)
    assert point.macs <= 0.6 * front.whole
    assert all(p.score <= point.score for p in front.points if p.macs <= 0.6 * front.whole)
    assert front.at(1 - front.points[0].macs / front.whole) == front.points[0]
    with pytest.raises(OptionError, match="the smallest network of the front lacks"):
        front.at(0.9)
    assert front.point(1) == front.points[1]
    with pytest.raises(OptionError, match="no net_id 50"):
        front.point(50)


def test_latencies_are_medians_of_sessions_that_take_turns(monkeypatch):
    """Each model takes its own time, and the machine gets slower all the while."""
    now, opened = [0.0], []

    class Session:
        def __init__(self, seconds):
            self.seconds = seconds
            opened.append(seconds)

        def run(self, _outputs, feed):
            assert feed["x"].shape[0] == 1
            now[0] += self.seconds * (1 + now[0])

    times = [0.001, 0.0004, 0.0007]
    models = [NET.clone() for _ in times]
    for model, seconds in zip(models, times, strict=True):
        monkeypatch.setattr(model, "session", lambda s=seconds: Session(s), raising=False)
    monkeypatch.setattr(pareto.time, "perf_counter", lambda: now[0])
    whole, *rest = pareto._latencies(models, Feeds(images()))
    assert opened == [*times, *times[::-1]]
    assert whole == pytest.approx(1.0, rel=0.1)
    assert [one / whole for one in rest] == pytest.approx([0.4, 0.7], rel=0.002)


def test_latencies_are_measured_against_the_whole_model(quick):
    front = found(cost="latency")
    assert front.whole_ms > 0
    assert found().whole_ms is None
    assert all(a.score < b.score for a, b in itertools.pairwise(front.points))
    assert all(p.latency is not None and p.latency > 0 for p in front.points)
    assert [p.latency for p in front.points] == sorted(p.latency for p in front.points)
    assert isinstance(front, Front)
    assert str(front).count("\n") == len(front.points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_macs": 0.9, "max_macs": 0.5}, "the first below"),
        ({"points": 0}, "1 or more"),
        ({"iterations": -1}, "0 or more"),
        ({"cost": "euros"}, "macs or latency"),
        ({"multiple": 0}, "1 or more"),
        ({"curves": {"nobody": ([0.5], [1.0])}}, "no curve"),
        ({"curves": {GROUPS[0]: ([0.5, 0.4], [1.0, 1.0])}}, "ascending"),
        ({"curves": {GROUPS[0]: ([0.5], [float("nan")])}}, "not finite"),
        ({"exclude": ("*",)}, "no group"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises((OptionError, ModelError), match=message):
        found(**{"curves": None, **options})
