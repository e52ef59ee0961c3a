"""SearchChannels: random sub-networks of the wanted multiply-adds, the best of them kept."""

import dataclasses
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizing import Feeds
from slim_nets import images, residual_net

from onnxdrp.channels import channels_of
from onnxdrp.channels.candidates import Known, SubnetScore
from onnxdrp.channels.choosing import at_rates, unit_scores
from onnxdrp.channels.cost import Cost
from onnxdrp.channels.search import Search, Try, search_channels
from onnxdrp.channels.subnets import Subnet, Subnets
from onnxdrp.datareaders import ArrayReader
from onnxdrp.errors import DataError, ModelError, OptionError, PassError
from onnxdrp.model import Model
from onnxdrp.moments import ChannelMoments
from onnxdrp.observe import Tap, observe
from onnxdrp.passes import RemoveChannels, ScoreChannels, SearchChannels
from onnxdrp.passes.slim_trials import SlimTrials
from onnxdrp.pipeline import PassContext, PassManager

NET = residual_net()
STEP = SearchChannels(ratio=0.5, tries=8, multiple=4, auto_excludes=False)


def subnets(multiple=4, model=NET, groups=None):
    channels = channels_of(model)
    names = [g.name for g in channels.groups] if groups is None else groups
    return Subnets(model, channels, names, multiple)


def searched(step=STEP, model=NET, **more):
    more.setdefault("reader", Feeds(images()))
    ctx = PassContext(**{"workers": 1, **more})
    (record,) = PassManager([step]).run(model.clone(), ctx).records
    return ctx, record


class Fake:
    """Scores by a table of numbers; counts its calls."""

    def __init__(self, most=None):
        self.calls, self.most = [], most

    def __call__(self, removed):
        if self.most is not None and len(self.calls) == self.most:
            raise KeyboardInterrupt
        self.calls.append({name: tuple(units) for name, units in removed.items()})
        return SubnetScore(None, float(sum(map(sum, removed.values())) % 97))


# --------------------------------------------------------------------------------- sub-networks


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([1, 4, 8]))
def test_the_share_that_goes_is_what_counting_channels_says(data, multiple):
    found, channels = subnets(multiple), channels_of(NET)
    rates = {
        name: data.draw(st.floats(0, 0.9)) for name in data.draw(st.sets(st.sampled_from(
            found.groups)))
    }  # fmt: skip
    subnet = found.at(rates)
    removed = found.removed(subnet)
    some = {name: rate for name, rate in rates.items() if rate}
    want = at_rates(channels, unit_scores(NET, channels), some, multiple)
    assert removed == {name: tuple(units) for name, units in want.items()}
    assert found.gone(subnet) == {
        g.name: len(removed.get(g.name, ())) / g.size for g in channels.groups
    }
    cost = Cost(NET, channels)
    assert found.whole == cost.whole
    left = cost.macs(channels.alive(removed)) / cost.whole
    assert subnet.share == pytest.approx(1 - left, abs=1 / cost.whole)


def test_the_units_of_the_lowest_scores_go_and_scores_of_another_model_are_refused():
    channels, names = channels_of(NET), subnets().groups
    scores = {g.name: np.random.default_rng(0).random(g.size) for g in channels.groups}
    found = Subnets(NET, channels, names, 1, scores)
    rates = dict.fromkeys(names, 0.5)
    removed = found.removed(found.at(rates))
    want = at_rates(channels, scores, rates, 1)
    assert removed == {name: tuple(units) for name, units in want.items()}
    by_weights = subnets(1)
    assert removed != by_weights.removed(by_weights.at(rates))
    assert found.sample(0.5, 5, 0) == by_weights.sample(0.5, 5, 0)  # as many of each
    scores[names[0]] = scores[names[0]][1:]
    with pytest.raises(OptionError, match="another model"):
        Subnets(NET, channels, names, 1, scores)
    assert Subnets(NET, channels, names[1:], 1, scores).groups == names[1:]


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_drawn_sub_networks_are_different_and_of_the_wanted_multiply_adds(ratio):
    found = subnets(1).sample(ratio, 30, 0)
    assert len({s.kept for s in found}) == len(found) == 30
    assert max(abs(s.share - ratio) for s in found) < 0.01
    rates = np.array([list(s.rates.values()) for s in found])
    assert rates[1:].std(0).min() > 0.05  # they explore each group
    uniform = subnets(1).uniform(ratio)
    assert np.ptp(list(uniform.rates.values())) == 0
    assert (found[0] == uniform) is (abs(uniform.share - ratio) < 0.01)


def test_of_given_ratios_one_stays_of_each_group():
    channels = channels_of(NET)
    some = Subnets(NET, channels, [g.name for g in channels.groups], 1, ratios=(0.5, 0.75, 1))
    drawn = some.sample(0.5, 40, seed=0)
    assert len({s.kept for s in drawn}) == len(drawn) > 3
    for subnet in drawn:
        assert set(subnet.rates.values()) <= {0, 0.25, 0.5}
        for group in channels.groups:
            gone = len(some.removed(subnet).get(group.name, ()))
            assert gone / group.size in (0, 0.25, 0.5)
    assert {rate for s in drawn for rate in s.rates.values()} == {0, 0.25, 0.5}
    assert some.most == max(s.share for s in some.sample(some.most, 5, seed=0))


def test_more_tries_begin_like_few_and_another_seed_draws_others():
    few, many, other = (subnets(1).sample(0.5, n, s) for n, s in ((5, 0), (12, 0), (5, 1)))
    assert many[:5] == few
    assert few[1:] != other[1:]


def test_where_the_multiple_is_coarse_the_nearest_are_taken_each_once():
    coarse = subnets(8)
    found = coarse.sample(0.4, 500, 0)
    assert len({s.kept for s in found}) == len(found) < 50
    rates = itertools.product([0.0, 0.3, 0.5, 0.7, 0.9], repeat=len(coarse.groups))
    every = {
        s.kept: s for s in (coarse.at(dict(zip(coarse.groups, r, strict=True))) for r in rates)
    }
    nearest = min(abs(s.share - 0.4) for s in every.values())
    assert nearest > 0.01
    off = [abs(s.share - 0.4) for s in found]
    assert min(off) == pytest.approx(nearest)
    assert max(off) < nearest + 0.01


def test_more_than_can_go_is_refused_with_what_can():
    some = subnets(1, groups=subnets(1).groups[:2])
    with pytest.raises(OptionError, match=rf"no more than {some.most:.3f}"):
        some.sample(some.most + 0.02, 3, 0)
    with pytest.raises(OptionError, match="outside"):
        some.sample(0.0, 3, 0)
    with pytest.raises(ModelError, match="no group"):
        subnets(groups=[])
    with pytest.raises(OptionError, match="may be removed"):
        subnets(groups=some.groups[:1]).at({some.groups[1]: 0.5})


# --------------------------------------------------------------------------------- the search


def test_the_best_is_kept_and_any_other_by_its_number():
    some, judge = subnets(1), Fake()
    found = search_channels(some, judge, 0.5, tries=12, workers=1)
    values = [one.score.sqnr_db for one in found.tries]
    assert len(set(values)) > 3
    assert found.best.score.sqnr_db == max(values)
    other = search_channels(some, again := Fake(), 0.5, tries=12, index=7)
    assert other.best == found.tries[7]
    assert len(again.calls) == 1
    with pytest.raises(OptionError, match="12 tries"):
        search_channels(some, judge, 0.5, tries=12, index=12)


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    some, path = subnets(1), tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        search_channels(some, Fake(most=4), 0.5, tries=9, known=Known(path, "k"), workers=1)
    rest = Fake()
    found = search_channels(some, rest, 0.5, tries=9, known=Known(path, "k"), workers=1)
    assert len(rest.calls) == 5
    assert found == search_channels(some, Fake(), 0.5, tries=9)
    afresh = Fake()
    search_channels(some, afresh, 0.5, tries=9, known=Known(path, "other"))
    assert len(afresh.calls) == 9
    path.write_text("{")
    assert Known(path, "k").scores == {}
    with pytest.raises(OptionError, match="no folder"):
        Known(tmp_path / "none" / "kept")


def test_of_equal_scores_the_first_is_kept_and_decibels_decide():
    def one(i, agreement, db):
        return Try(i, Subnet({}, (i,), 0.5), SubnetScore(agreement, db))

    tries = (one(0, 0.5, 1.0), one(1, 0.5, 3.0), one(2, 0.5, 3.0), one(3, 0.4, 9.0))
    assert Search(tries, "agreement").best.index == 1
    assert Search(tries, "sqnr").best.index == 3
    with pytest.raises(OptionError, match="top-1 is not known"):
        _ = Search(tries, "top-1").best
    assert SubnetScore(1.0, None).order("sqnr") > SubnetScore(1.0, 100.0).order("sqnr")


# --------------------------------------------------------------------------------- trials


def test_a_trial_matches_the_moments_of_what_stays_and_compares_on_other_samples():
    judge = SlimTrials(NET, Feeds(images()), Feeds(images(seed=5)))
    channels = channels_of(NET)
    removed = {g.name: range(g.size // 2) for g in channels.groups}
    small = judge.repaired(removed)
    kept, taps = channels.kept(removed), ("b", "c", "e")
    wanted, got = (
        observe(m, Feeds(images()), {t: Tap(t, ChannelMoments(1)) for t in taps}, workers=1)
        for m in (NET, small)
    )
    made = {n.outputs[0].name: n.name for n in NET.nodes("Conv")}
    for tensor in taps:
        left = kept[made[tensor]]
        assert 0 < len(left) < len(wanted[tensor].mean)
        np.testing.assert_allclose(got[tensor].mean, wanted[tensor].mean[left], atol=1e-4)
        np.testing.assert_allclose(got[tensor].variance, wanted[tensor].variance[left], rtol=1e-3)
    x = images(seed=5)["x"]
    a, b = (m.session().run(None, {"x": x})[0] for m in (NET, small))
    score = judge(removed)
    assert score.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())
    want = 10 * np.log10((a.astype(float) ** 2).sum() / ((a - b).astype(float) ** 2).sum())
    assert score.sqnr_db == pytest.approx(want, abs=1e-3)
    assert 0.1 < score.agreement < 1
    assert judge({}).sqnr_db is None  # nothing differs


def test_top1_is_asked_of_labels_alone():
    x = images(seed=5)
    y = NET.session().run(None, x)[0].argmax(1)
    y[:20] = (y[:20] + 1) % 10
    labelled = ArrayReader({**x, "y": y}, NET)
    judge = SlimTrials(NET, Feeds(images()), labelled, by="top-1")
    assert judge({}).top1 == pytest.approx(100 * 40 / 60)
    assert SlimTrials(NET, Feeds(images()), labelled)({}).top1 is None
    with pytest.raises(DataError, match="no labels"):
        SlimTrials(NET, Feeds(images()), Feeds(images()), by="top-1")


def test_processes_and_threads_give_what_one_thread_gives():
    alone, first = searched()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        apart, second = searched(executor=pool, workers=2)
    with ThreadPoolExecutor(3) as pool:
        beside, third = searched(executor=pool, workers=3)
    assert alone.removed == apart.removed == beside.removed
    assert first.stats == second.stats == third.stats
    scores = [t["sqnr_db"] for t in first.stats["search"]["tries"]]
    assert len(set(scores)) == len(scores) == 8


def test_dask_gives_what_one_thread_gives():
    distributed = pytest.importorskip("distributed")
    _, want = searched()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as pool,
    ):
        _, record = searched(executor=pool, workers=2)
    assert record.stats == want.stats


# --------------------------------------------------------------------------------- the pass


def test_the_pass_leaves_the_model_and_its_choice_can_be_removed():
    ctx, record = searched()
    assert not record.modified
    json.dumps(record.stats)
    whole, left = record.stats["macs"]
    assert left / whole == pytest.approx(0.5, abs=0.05)
    model = NET.clone()
    chosen = dict(ctx.removed)
    (removal,) = PassManager([RemoveChannels()]).run(model, ctx).records
    assert removal.stats["macs"] == [whole, left]
    same, _ = searched(STEP.as_run(record.stats))
    assert same.removed == chosen
    other, again = searched(dataclasses.replace(STEP, index=5))
    assert again.stats["index"] == 5
    assert [t["index"] for t in again.stats["search"]["tries"]] == [5]
    assert other.removed != chosen


def test_channels_go_in_the_order_of_score_channels():
    by_weights, _ = searched()
    ctx = PassContext(workers=1, reader=Feeds(images()))
    PassManager([ScoreChannels(), STEP]).run(NET.clone(), ctx)
    assert ctx.removed.keys() == by_weights.removed.keys()
    for name, units in ctx.removed.items():
        assert set(units) == set(np.argsort(ctx.channel_scores[name])[: len(units)].tolist())
    assert ctx.removed != by_weights.removed


def test_scores_of_another_order_are_not_gone_on_from(tmp_path, monkeypatch):
    path, calls = tmp_path / "kept", []
    monkeypatch.setattr(Known, "remove", lambda _: None)
    _, first = searched(checkpoint=path)
    score = SlimTrials.__call__

    def counted(self, removed):
        calls.append(removed)
        return score(self, removed)

    monkeypatch.setattr(SlimTrials, "__call__", counted)
    _, again = searched(checkpoint=path)
    assert again.stats == first.stats
    assert not calls
    ctx = PassContext(workers=1, reader=Feeds(images()), checkpoint=path)
    PassManager([ScoreChannels(), STEP]).run(NET.clone(), ctx)
    assert len(calls) == 8


def test_a_checkpoint_is_used_and_deleted(tmp_path, monkeypatch):
    calls = []
    score = SlimTrials.__call__

    def counted(self, removed):
        calls.append(removed)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(self, removed)

    monkeypatch.setattr(SlimTrials, "__call__", counted)
    path = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        searched(checkpoint=path)
    assert (tmp_path / "kept.channels").exists()
    _, record = searched(checkpoint=path)
    assert len(calls) == 4 + 5
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert searched()[1].stats == record.stats


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.0}, "outside"),
        ({"tries": 0}, "1 or more"),
        ({"index": 8}, "outside 0 to 7"),
        ({"by": "luck"}, "sqnr or top-1"),
        ({"held_out": 0.0}, "outside"),
        ({"multiple": 0}, "1 or more"),
        ({"ratios": (0.5, 0.0)}, r"ratios: 0\.0 is outside"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        dataclasses.replace(STEP, **changes)


def test_no_data_is_refused():
    with pytest.raises(PassError, match="needs data"):
        searched(reader=None)


def test_a_static_batch_is_searched_too():
    fixed = residual_net(batch="4")
    assert isinstance(fixed, Model)
    ctx, record = searched(dataclasses.replace(STEP, tries=3), model=fixed)
    assert ctx.removed
    assert all(t["agreement"] > 0.1 for t in record.stats["search"]["tries"])
