"""The search for rates of channels: budget, history, the same again, and after an interruption."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from builders import make_model, mlp, normal, value
from onnx import helper

import onnxdrp
from onnxdrp.channels import channels_of
from onnxdrp.channels.auto import auto_channels
from onnxdrp.channels.excluding import removable
from onnxdrp.channels.gradients import gradient_sensitivities, group_sizes, removed_l1
from onnxdrp.datareaders import ArrayReader
from onnxdrp.errors import CheckError, ModelError, OptionError
from onnxdrp.label_free_loss import LabelFreeLoss
from onnxdrp.model import Model
from onnxdrp.passes.removing import remove
from onnxdrp.trials import Trials

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: pip install onnxdrp[distill]",
)
FAST = {
    "max_drop": 4.0,
    "auto_excludes": False,
    "samples": 30,
    "rows": 500,
    "workers": 1,
    "max_search_times": 5,
}


def residual():
    """Conv, a residual block, pooling, Gemm; channels differ in how much they weigh."""
    sizes = {"c0": [12, 3, 3, 3], "c1": [16, 12, 3, 3], "c2": [12, 16, 3, 3], "fc": [6, 12]}
    weights, nodes, random = {}, [], np.random.default_rng(5)
    for i, (name, shape) in enumerate(sizes.items()):
        scale = random.uniform(0.02, 1.5, (shape[0], *[1] * (len(shape) - 1))).astype(np.float32)
        weights[f"{name}.w"] = normal(shape, i) * (1 if name == "fc" else scale)
        weights[f"{name}.b"] = normal([shape[0]], 10 + i) * np.float32(0.1)
    for name, read in (("c0", "x"), ("c1", "r0"), ("c2", "r1")):
        conv = [read, f"{name}.w", f"{name}.b"]
        nodes.append(helper.make_node("Conv", conv, [f"{name}.y"], name, pads=[1] * 4))
        if name != "c2":
            nodes.append(helper.make_node("Relu", [f"{name}.y"], [f"r{name[1]}"]))
    nodes += [
        helper.make_node("Add", ["r0", "c2.y"], ["s"]),
        helper.make_node("Relu", ["s"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["y"], "fc", transB=1),
    ]
    inputs, outputs = [value("x", ["N", 3, 6, 6])], [value("y", ["N", 6])]
    proto = make_model(nodes, inputs, outputs, weights)
    return onnxdrp.preprocess(Model.from_proto(proto)).model


def readers(model, labels=False):
    x = np.random.default_rng(0).standard_normal((300, 3, 6, 6)).astype(np.float32)
    x *= np.random.default_rng(1).uniform(0.2, 2, (300, 3, 1, 1)).astype(np.float32)
    held = {"x": x[150:]}
    if labels:
        held["y"] = model.session().run(None, held)[0].argmax(1)
    return ArrayReader({"x": x[:150]}, model, batch=30), ArrayReader(held, model, batch=50)


@pytest.fixture(scope="module")
def model():
    return residual()


def search(model, **options):
    calib, held = readers(model)
    return auto_channels(model, calib, **(FAST | {"held_out": held} | options))


def timeless(rounds):
    return [dataclasses.replace(r, seconds=0) for r in rounds]


@pytest.fixture(scope="module")
def found(model):
    before = model.fingerprint()
    result = search(model)
    assert model.fingerprint() == before
    return result


def test_the_budget_is_held_against_the_original_model(model, found):
    assert found.macs[1] < 0.9 * found.macs[0]
    assert found.params[1] < found.params[0]
    assert len([r for r in found.rounds if r.accepted]) > 1
    assert any(not r.accepted for r in found.rounds)
    lost = Trials(model, readers(model)[1]).drop(found.model)
    assert lost == (found.best.lost, found.best.low, found.best.high)
    for r in found.rounds:
        assert r.accepted == (r.lost <= 4)
        assert all(error <= r.thresholds[name] for name, error in r.errors.items())
    assert found.best.macs == found.macs[1]
    assert (found.what, found.samples, found.top1) == ("top-1 agreement", 150, 100)
    found.model.check()


def test_what_is_removed_is_told_in_channels_of_the_original(model, found):
    other = model.clone()
    counts = remove(other, channels_of(model), found.removed)
    assert found.channels == {layer: list(pair) for layer, pair in counts.items()}
    assert found.channels["c0"] == found.channels["c2"]  # the sum of both goes on
    for name in other.weights():
        assert found.model.weight(name).shape == other.weight(name).shape
    widths = dict.fromkeys(found.channels, 0)
    for r in found.rounds:
        if r.accepted:
            widths["c0"] += r.channels
    gone = sum(len(units) for units in found.removed.values())
    assert widths["c0"] == gone > 3


def test_bounds_follow_the_radius_of_trust(found):
    for before, after in zip(found.rounds, found.rounds[1:], strict=False):
        if before.accepted:
            grown = min(2 * before.upper_bound, before.limit)
            assert grown * (1 - 1e-9) <= after.upper_bound <= before.limit
        else:
            assert after.upper_bound < before.upper_bound
    assert found.rounds[0].upper_bound == found.rounds[0].limit
    assert found.stopped


def test_the_same_comes_of_the_same(model, found):
    again = search(model, workers=2)
    assert timeless(again.rounds) == timeless(found.rounds)
    assert again.model.fingerprint() == found.model.fingerprint()


@pytest.mark.parametrize("after", [2, 3])
def test_an_interrupted_search_goes_on_and_ends_as_if_it_had_not_been(
    model, found, tmp_path, after
):
    file = tmp_path / "state.json"
    seen = []

    def stop(r, left):
        seen.append(r)
        if len(seen) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(model, checkpoint=file, progress=stop)
    kept = [p.name for p in tmp_path.iterdir()]
    assert len(kept) == (2 if any(r.accepted for r in seen) else 1)
    rest, ahead = [], []

    def told(r, left):
        rest.append(r)
        ahead.append(left)

    result = search(model, checkpoint=file, progress=told)
    assert ahead[-1] == 0
    for here, after, r in zip(ahead, ahead[1:], rest[1:], strict=False):
        assert r.accepted or after == here - 1
    assert timeless(seen + rest) == timeless(found.rounds)
    assert timeless(result.rounds) == timeless(found.rounds)
    assert result.model.fingerprint() == found.model.fingerprint()
    assert result.removed == found.removed
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_search_or_a_broken_one_is_begun_anew(
    model, found, tmp_path, caplog
):
    file = tmp_path / "state.json"

    def stop(r, left):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(model, checkpoint=file, progress=stop, max_drop=50.0)
    with caplog.at_level("INFO"):
        other = search(model, checkpoint=file, max_search_times=1)
    assert "belongs to other work" in caplog.text
    assert len(other.rounds) == 1
    file.write_text("{")
    again = search(model, checkpoint=file, max_search_times=1)
    assert "no whole checkpoint" in caplog.text
    assert timeless(again.rounds) == timeless(other.rounds)
    with pytest.raises(OptionError, match="no folder"):
        search(model, checkpoint=tmp_path / "none" / "state.json")


def test_it_is_told_as_a_table_and_as_json(found):
    content = json.loads(json.dumps(found.as_dict()))
    assert content["macs"] == list(found.macs)
    assert len(content["rounds"]) == len(found.rounds)
    assert content["removed"] == {name: list(units) for name, units in found.removed.items()}
    text = str(found)
    assert text.count("taken") == 1
    assert "loses too much" in text
    assert found.stopped in text
    assert bool(found.warnings) == (found.best.high > 4)


def test_excluded_layers_stay_whole_and_so_do_first_and_last(model):
    result = search(model, exclude=("c1",))
    assert set(result.channels) == {"c0", "c2"}
    assert "excluded" in result.skipped["c1"]
    with pytest.raises(OptionError, match="nothing"):
        search(model, exclude=("nothing",))
    result = search(model, auto_excludes=True)
    assert set(result.channels) == {"c1"}


def test_what_stays_is_of_the_multiple(model):
    result = search(model, multiple=4, rates=(0.4,), max_drop=15.0)
    assert all(after % 4 == 0 for _, after in result.channels.values())


def test_labels_are_judged_by_where_they_are(model):
    calib, held = readers(model, labels=True)
    result = auto_channels(model, calib, **(FAST | {"held_out": held, "max_search_times": 2}))
    assert (result.what, result.top1) == ("top-1 accuracy", 100)


def test_without_data_to_judge_by_a_fifth_of_the_other_is_kept(model):
    result = search(model, held_out=None, max_search_times=2)
    assert result.samples == 30


def test_to_be_sure_the_whole_interval_is_held_to_the_budget(model, found):
    result = search(model, sure=True, max_drop=8.0, max_search_times=8)
    assert all(r.accepted == (r.high <= 8) for r in result.rounds)
    assert any(r.lost <= 8 < r.high for r in result.rounds)
    assert not result.warnings


def test_nothing_that_holds_is_an_error(model):
    with pytest.raises(CheckError, match="no channels can go at 0 points"):
        search(model, max_drop=0.0, rates=(0.5,), max_search_times=1)


def test_a_function_of_the_users_judges_models_without_classes(model):
    proto = model.proto()
    keep = proto.graph.node[
        : next(i for i, n in enumerate(proto.graph.node) if n.op_type == "Flatten")
    ]
    last = keep[-2].output[0]
    nodes = [*keep[:-1], helper.make_node("Conv", [last, "h.w"], ["y"], "h")]
    weights = {t.name: np.asarray(model.weight(t.name)) for t in proto.graph.initializer}
    weights = {n: w for n, w in weights.items() if not n.startswith("fc")}
    weights["h.w"] = normal([5, 12, 1, 1], 8)
    head = make_model(nodes, [value("x", ["N", 3, 6, 6])], [value("y", ["N", 5, 6, 6])], weights)
    maps = onnxdrp.preprocess(Model.from_proto(head)).model
    calib, held = readers(maps)
    with pytest.raises(ModelError, match="judge"):
        auto_channels(maps, calib, held_out=held, **FAST)
    trials = Trials(maps, held)
    result = auto_channels(
        maps, calib, held_out=held, judge=lambda m: 100 * 10 ** (-trials.sqnr_db(m) / 10), **FAST
    )
    assert result.what == "the judge's score"
    assert 0 < result.best.lost <= 4
    assert trials.sqnr_db(result.model) >= 13.9


def test_the_search_ends_by_itself_with_every_channel_that_can_go(model):
    result = search(model, rates=(0.5,), max_drop=100.0, max_search_times=50, loss_margin=50.0)
    assert result.stopped == "all rates are 0"
    assert all(r.accepted for r in result.rounds)
    assert set(result.channels) == {"c0", "c1", "c2"}
    assert all(after <= 2 for _, after in result.channels.values())


def test_options_out_of_range_are_refused(model):
    for options, text in [
        ({"max_drop": -1.0}, "max_drop"),
        ({"rates": (0.0,)}, "rates"),
        ({"rates": (1.0,)}, "rates"),
        ({"loss_margin": 0.0}, "loss_margin"),
        ({"scaling_factor": 1.0}, "scaling_factor"),
        ({"max_search_times": 0}, "max_search_times"),
        ({"multiple": 0}, "multiple"),
        ({"distill_steps": 5}, "does not distill"),
    ]:
        with pytest.raises(OptionError, match=text):
            search(model, **options)


def test_a_model_of_which_nothing_can_go_is_refused(model):
    with pytest.raises(ModelError, match="no channels can be removed"):
        search(model, exclude=("c0", "c1", "c2"))


def test_as_in_the_original_a_candidate_that_failed_is_not_repaired_again(model):
    result = search(model, original=True, max_search_times=12)
    again = [r for r in result.rounds if r.same_as]
    assert again
    for r in again:
        first = result.rounds[r.same_as - 1]
        assert (first.rates, first.lost, first.same_as) == (r.rates, r.lost, 0)
        assert r.seconds < 0.2 or r.seconds < first.seconds


def test_the_error_of_the_original_is_the_mean_weight_that_goes(model):
    channels = channels_of(model)
    names, _ = removable(model, channels, auto_excludes=False)
    removed = {name: {0.2: [1, 3]} for name in names}
    found, sizes = removed_l1(model, channels, removed), group_sizes(model, channels, names)
    weight = {name: np.abs(model.weight(f"{name}.w")) for name in ("c0", "c1", "c2")}
    assert sizes == {"c0": weight["c0"].size + weight["c2"].size, "c1": weight["c1"].size}
    assert found["c1"][0.2] == pytest.approx(weight["c1"][[1, 3]].sum() / sizes["c1"])
    both = weight["c0"][[1, 3]].sum() + weight["c2"][[1, 3]].sum()
    assert found["c0"][0.2] == pytest.approx(both / sizes["c0"])


@needs_torch
def test_sensitivities_are_means_of_the_inverse_gradients():
    model = onnxdrp.preprocess(Model.from_proto(mlp(5, 4, 3))).model
    x = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    w, b = model.weight("fc0.weight"), model.weight("fc0.bias")
    v, c = model.weight("fc1.weight"), model.weight("fc1.bias")

    def gradient(rows):
        h = rows @ w.T + b
        z = np.maximum(h, 0) @ v.T + c
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        p[np.arange(len(p)), z.argmax(1)] -= 1
        return ((p @ v) * (h > 0)).T @ rows / len(rows)

    first, second = gradient(x[:20]), gradient(x[20:])
    channels, loss = channels_of(model), LabelFreeLoss.of(model, hard=True)
    reader = ArrayReader({"x": x}, model, batch=20)

    def found(**options):
        return gradient_sensitivities(model, model, channels, ["fc0"], reader, loss, **options)[
            "fc0"
        ]

    def inverse(*gradients):
        return np.mean([(1 / np.abs(np.where(g == 0, 1e7, g))).sum() for g in gradients])

    assert found(calc_iter=1) == pytest.approx(inverse(first), rel=1e-3)
    assert found() == pytest.approx(inverse(first, second), rel=1e-3)
    if (first != 0).all():
        assert found(original=True) == pytest.approx(inverse(first, first + second), rel=1e-2)


@needs_torch
def test_gradients_and_distillation_lead_to_a_model_within_the_budget(model):
    few = {"gradients": True, "calc_iter": 3, "max_search_times": 8}
    result = search(model, recover="distill", distill_steps=5, **few)
    assert result.macs[1] < result.macs[0]
    assert result.best.lost <= 4
    failed = [r for r in result.rounds if not r.accepted]
    assert all(r.recovered == "distill" for r in failed)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_what_needs_it_is_refused(model):
    for options in ({"recover": "distill"}, {"gradients": True}):
        with pytest.raises(OptionError, match="onnxdrp\\[distill\\]"):
            search(model, **options)
