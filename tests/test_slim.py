import importlib.util
import json
from itertools import pairwise

import numpy as np
import pytest
from builders import conv_net, mlp, same_outputs
from click.testing import CliRunner
from slim_nets import images as noise
from slim_nets import residual_net

import onnxdrp
from onnxdrp import demo
from onnxdrp.channels.sensitivity import load_channel_sensitivity
from onnxdrp.cli import cli
from onnxdrp.datareaders import open_reader, split
from onnxdrp.errors import DataError, OptionError, PassError
from onnxdrp.evaluation import accuracy, compare_models
from onnxdrp.model import Model
from onnxdrp.recipe import load_recipe
from onnxdrp.trials import Trials
from onnxdrp.unit_sensitivity import few

IMAGES = {"mean": demo.MEAN, "std": demo.STD}


@pytest.fixture(scope="module")
def images():
    return lambda model: open_reader(demo.CALIBRATE_IMAGES, model, batch=20, **IMAGES)


def test_half_of_the_multiply_adds_cost_little_once_repaired(modA, images):
    model = Model.load(modA)
    test = open_reader(demo.TEST, model, batch=100, **IMAGES)
    report = onnxdrp.slim(model, ratio=0.5, calib=images(model), data=test)
    figures = report.as_dict()
    (removal,) = (r for r in report.records if r.name == "remove-channels")
    before, after = removal.stats["macs"]
    assert 0.5 <= after / before <= 0.56
    assert removal.stats["params"][1] < 0.6 * removal.stats["params"][0]
    channels = removal.stats["channels"]
    assert len(channels) >= 8
    assert all(pair[1] % 8 == 0 for pair in channels.values())
    recovery = figures["recovery"]
    assert recovery["pruned"]["sqnr_db"] < 3 < 10 < recovery["repaired"]["sqnr_db"]
    assert figures["accuracy"]["change"] > -3
    assert accuracy(report.model, test).top1.mean() > 0.9


def test_the_sparse_form_computes_what_the_slim_form_does(modA, images):
    slim = onnxdrp.slim(modA, rate=0.5, recover="none").model
    sparse = onnxdrp.slim(modA, rate=0.5, recover="none", sparse=True).model
    feeds = {name: value[:8] for name, value in next(iter(images(slim).batches())).items()}
    a, b = (m.session(optimize=False).run(None, feeds)[0] for m in (slim, sparse))
    assert a.std() > 0.1
    np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    assert slim.inventory()[1] < 0.5 * sparse.inventory()[1]
    assert sparse.inventory()[1] == onnxdrp.preprocess(modA).model.inventory()[1]


def test_the_report_says_how_wide_layers_are_and_why_others_stay_whole(modA):
    report = onnxdrp.slim(modA, ratio=0.5, exclude=["*blocks.3*first*"])
    figures = json.loads(report.to_json())
    channels = figures["channels"]
    weights = {n.name: n.inputs[1] for n in report.model.nodes("Conv", "Gemm")}
    assert len(channels) >= 6
    for layer, (before, after) in channels.items():
        assert weights[layer].shape[0] == after < before
    macs = figures["macs"]
    assert macs["after"] == figures["baseline_mac"] < 0.57 * macs["before"]
    assert figures["params"]["after"] < 0.6 * figures["params"]["before"]
    size = figures["weight_bytes"]
    assert figures["compression_rate"] == pytest.approx(
        1 - size["after"] / size["before"], abs=1e-4
    )
    assert figures["pinned"] == {"/classifier/Gemm": "'logits' is an output of the model"}
    whole = figures["kept_whole"]
    assert whole.keys().isdisjoint(channels)
    assert whole.keys().isdisjoint(figures["pinned"])
    assert "*blocks.3*first*" in whole["/blocks/blocks.3/first/conv/Conv"]
    assert "first" in whole["/stem/conv/Conv"]
    assert weights.keys() == whole.keys() | channels.keys() | figures["pinned"].keys()
    lines = report.table().splitlines()
    for layer, (before, after) in channels.items():
        assert any(line.split()[:3] == [layer, str(before), str(after)] for line in lines)
    assert "  /classifier/Gemm: 'logits' is an output of the model" in lines
    assert f"{macs['before']:,} -> {macs['after']:,} multiply-adds" in report.table()


def test_the_report_of_masked_channels_has_the_same_widths(modA):
    slim, sparse = (onnxdrp.slim(modA, rate=0.5, sparse=form).as_dict() for form in (False, True))
    assert slim["channels"] == sparse["channels"]
    assert slim["kept_whole"] == sparse["kept_whole"]
    assert slim["pinned"] == sparse["pinned"]
    assert sparse["macs"] == {"before": None, "after": None}


def test_a_report_of_no_channels_says_nothing_of_them(modA):
    assert "channels" not in onnxdrp.preprocess(modA).as_dict()


def test_without_data_nothing_is_repaired_and_options_of_that_are_refused():
    report = onnxdrp.slim(Model.from_proto(conv_net()), rate=0.5, multiple=1, auto_excludes=False)
    assert "refit-weights" not in [r.name for r in report.records]
    with pytest.raises(OptionError, match="memory_limit does not go with no calibration data"):
        onnxdrp.slim(Model.from_proto(conv_net()), rate=0.5, memory_limit=1 << 20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either rate, of the channels, or ratio"),
        ({"ratio": 0.5, "rate": 0.5}, "give either rate, of the channels, or ratio"),
        ({"ratio": 1.0}, r"ratio 1\.0 is outside"),
        ({"rate": 0.5, "multiple": 0}, "multiple 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        onnxdrp.slim(Model.from_proto(conv_net()), **options)


def test_a_selector_that_matches_nothing_is_an_error():
    with pytest.raises(PassError, match="nowhere"):
        onnxdrp.slim(Model.from_proto(conv_net()), rate=0.5, exclude=["nowhere"])


def test_the_command_writes_the_smaller_model(tmp_path, modA):
    out = tmp_path / "slim.onnx"
    arguments = ["slim", str(modA), "-o", str(out), "--rate", "0.5", "--json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["model_bytes"] == out.stat().st_size < 0.5 * modA.stat().st_size
    removal = next(r for r in told["passes"] if r["name"] == "remove-channels")
    assert removal["stats"]["macs"][1] < 0.5 * removal["stats"]["macs"][0]
    Model.load(out).session()


def stats_of(report, name):
    return next(r.stats for r in report.records if r.name == name)


def test_what_channels_cost_is_measured_once_and_used_for_several_ratios(tmp_path):
    file = tmp_path / "net.sens.json"
    found = onnxdrp.sensitivity(residual_net(), noise(), of="channels", file=file).sensitivity
    assert load_channel_sensitivity(file) == found
    assert len(found.curves) >= 2
    assert {len(curve) for curve in found.curves.values()} == {9}
    macs = []
    for ratio in (0.3, 0.5):
        report = onnxdrp.slim(residual_net(), ratio=ratio, curves=file, multiple=1, calib=noise())
        chosen = stats_of(report, "select-channels")
        assert chosen["price"] > 0
        before, after = stats_of(report, "remove-channels")["macs"]
        assert 1 - after / before == pytest.approx(ratio, abs=0.02)
        macs.append(after)
    assert macs[1] < macs[0]
    other = onnxdrp.slim(residual_net(), rate=0.3, multiple=1).model
    with pytest.raises(PassError, match="another model"):
        onnxdrp.slim(other, ratio=0.3, curves=file)


def test_each_way_to_choose_takes_the_channels_in_one_order(tmp_path):
    """Of score-channels; what was measured before keeps the order in which it was."""
    net, data, file = residual_net(), noise(), tmp_path / "net.sens.json"
    every = {"ratio": 0.5, "multiple": 1, "calib": data}
    found = onnxdrp.sensitivity(net, data, of="channels", file=file).sensitivity
    report = onnxdrp.slim(residual_net(), **every, curves=file)
    assert [r.name for r in report.records if "score" in r.name] == []
    spec = {name: np.argsort(of, kind="stable").tolist() for name, of in found.order.items()}
    fronts = (
        onnxdrp.pareto(residual_net(), data, points=2, multiple=1, curves=curves).front
        for curves in (None, file)
    )
    settings = [point.setting for front in fronts for point in front.points]
    assert len(settings) > 3
    for setting in settings:
        for name, units in setting.items():
            assert set(units) == set(spec[name][: len(units)])
    for options, names in (
        ({"search": 3}, ["score-channels", "search-channels"]),
        ({"search": 3, "score": "l1"}, ["score-channels", "search-channels"]),
        ({}, ["score-channels", "select-channels"]),
    ):
        report = onnxdrp.slim(residual_net(), **every, **options)
        names_found = [r.name for r in report.records]
        at = names_found.index("score-channels")
        assert names_found[at : at + 2] == names
        assert report.records[at].stats["score"] == options.get("score", "second-order")


def test_moments_alone_tell_what_channels_cost():
    shares = (0.25, 0.5, 0.75)
    found = onnxdrp.sensitivity(
        residual_net(), noise(), of="channels", mode="moments", shares=shares
    ).sensitivity
    assert {tuple(curve) for curve in found.curves.values()} == {shares}
    assert found.score == "moments"
    curves = [list(curve.values()) for curve in found.curves.values()]
    assert all(a >= b for curve in curves for a, b in pairwise(curve))
    assert min(curve[-1] for curve in curves) < 0.9
    with pytest.raises(OptionError, match="shares does not go with of quant"):
        onnxdrp.sensitivity(residual_net(), noise(), shares=shares)


def test_of_several_sub_networks_the_best_or_a_chosen_one_is_taken():
    options = {"ratio": 0.4, "search": 4, "multiple": 1, "calib": noise()}
    found = stats_of(onnxdrp.slim(residual_net(), **options), "search-channels")
    third = stats_of(onnxdrp.slim(residual_net(), **options, index=3), "search-channels")
    assert third["index"] == 3
    assert 0 <= found["index"] < 4
    before, after = found["macs"]
    assert 1 - after / before == pytest.approx(0.4, abs=0.03)
    some = stats_of(onnxdrp.slim(residual_net(), **options, ratios=[0.5, 1]), "search-channels")
    assert {n / m for m, n in some["groups"].values()} == {0.5}


def test_a_budget_decides_how_many_channels_go():
    report = onnxdrp.slim(residual_net(), auto=True, max_drop=10, calib=noise(200))
    rounds = report.rounds
    assert rounds.best.lost <= 10
    sure = onnxdrp.slim(residual_net(), auto=True, max_drop=15, sure=True, calib=noise(200)).rounds
    assert sure.best.high <= 15
    assert sure.macs[1] >= rounds.macs[1]
    assert rounds.macs[1] < rounds.macs[0]
    stats = stats_of(report, "auto-slim")
    assert stats["macs"] == list(rounds.macs)
    assert stats["lost"] == rounds.best.lost
    assert "search" in report.as_dict()
    assert "points lost" in str(report.table())


def test_what_the_budget_judged_is_what_is_delivered_and_measured_on_others():
    calib = noise(200)
    report = onnxdrp.slim(residual_net(), auto=True, max_drop=10, calib=calib)
    assert report.model.fingerprint() == report.rounds.model.fingerprint()
    assert [r.name for r in report.records][-1] == "auto-slim"
    whole = onnxdrp.preprocess(residual_net()).model
    rest, figures = split(open_reader(calib, whole), 0.2)
    found = compare_models(whole, report.model, figures)
    told = report.summary["fidelity"]
    assert (told["samples"], told["of"]) == (40, "samples that no decision saw")
    assert told["top1_agreement"] == pytest.approx(found.top1_agreement)
    beyond = 100 * (1 - found.top1_agreement) > 10
    assert beyond == any("that no decision saw" in text for text in report.warnings)
    lost, *_ = Trials(whole, split(rest, 0.2)[1]).drop(report.model)
    assert (report.rounds.samples, report.rounds.best.lost) == (32, lost)
    assert {"pruned", "repaired"} <= set(report.summary["recovery"])
    again = onnxdrp.run(residual_net(), load_recipe(report.recipe), calib=calib)
    assert again.model.fingerprint() == report.model.fingerprint()
    assert again.rounds is not None


def test_data_that_judges_is_said_to_flatter():
    other = noise(90, seed=1)
    report = onnxdrp.slim(residual_net(), auto=True, max_drop=10, calib=noise(200), data=other)
    assert report.rounds.samples == 90
    assert "judged the candidates" in report.summary["fidelity"]["of"]
    assert any("measure on other data" in text for text in report.warnings)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_training_is_a_part_of_the_search_and_not_done_again():
    options = {"auto": True, "max_drop": 2, "recover": "distill", "distill_minutes": 0.005}
    report = onnxdrp.slim(residual_net(), calib=noise(120), **options)
    assert "distill" not in [r.name for r in report.records]
    assert any(r.recovered == "distill" for r in report.rounds.rounds)
    assert report.model.fingerprint() == report.rounds.model.fingerprint()
    assert report.rounds.best.lost <= 2


def test_a_decision_is_kept_and_taken_again_once_the_masked_model_was_trained(tmp_path):
    spec, masked, out = (tmp_path / n for n in ("spec.json", "masked.onnx", "out.onnx"))
    net = tmp_path / "net.onnx"
    residual_net().save(net)

    def run(*arguments):
        result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output

    run("slim", net, "-o", masked, "--rate", 0.5, "--multiple", 1, "--sparse", "--save-spec", spec)
    trained = Model.load(masked)
    for name in trained.weights():
        values = trained.weight(name)
        if values.ndim > 1:
            trained.set_weight(name, (values * np.float32(1.25)).astype(np.float32))
    trained.save(masked, overwrite=True)
    run("slim", masked, "-o", out, "--spec", spec)
    small = Model.load(out)
    assert small.inventory()[1] < 0.6 * trained.inventory()[1]
    same_outputs(small, trained, noise(4), 1e-4)
    whole = trained.weight("wb")
    trained.set_weight("wb", np.where(whole == 0, np.float32(1e-3), whole))
    report = onnxdrp.slim(trained, spec=spec)
    assert any("are not zero any more" in text for text in report.warnings)


def test_a_front_is_searched_and_one_of_its_networks_made(tmp_path):
    front = onnxdrp.pareto(residual_net(), noise(), points=2, multiple=1).front
    assert len(front.points) >= 2
    file = tmp_path / "front.json"
    front.save(file)
    point = front.points[0]
    report = onnxdrp.slim(residual_net(), spec=file, index=point.net_id, calib=noise())
    assert stats_of(report, "remove-channels")["macs"][1] == point.macs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.5, "max_drop": 1.0}, "max_drop does not go with a given ratio"),
        ({"rate": 0.5, "sure": True}, "sure does not go with a given ratio"),
        ({"rate": 0.5, "index": 1}, "index does not go with no search"),
        ({"ratio": 0.5, "search": 2, "rate": 0.5, "calib": 1}, "rate does not go with search"),
        ({"ratio": 0.5, "search": 2, "curves": "f.json", "calib": 1}, "curves does not go with s"),
        ({"ratio": 0.5, "curves": "f.json", "score": "l1"}, "score does not go with curves"),
        ({"rate": 0.5, "ratios": [0.5]}, "ratios does not go with no search"),
        ({"auto": True, "ratios": [0.5], "calib": 1}, "ratios does not go with auto"),
        ({"spec": "f.json", "ratios": [0.5]}, "ratios does not go with spec"),
        ({"auto": True, "ratio": 0.5, "calib": 1}, "ratio does not go with auto"),
        ({"spec": "f.json", "ratio": 0.5}, "ratio does not go with spec"),
        ({"spec": "f.json", "auto_excludes": False}, "auto_excludes does not go with spec"),
        ({"auto": True, "recover": "none", "calib": 1}, "auto needs a repair"),
        ({"auto": True, "sparse": True, "calib": 1}, "auto judges the slim form"),
    ],
)
def test_ways_to_choose_do_not_mix(options, words):
    options = {k: noise() if k == "calib" else v for k, v in options.items()}
    with pytest.raises(OptionError, match=words):
        onnxdrp.slim(residual_net(), **options)


@pytest.mark.parametrize("options", [{"auto": True}, {"ratio": 0.5, "search": 3}])
def test_what_needs_data_says_so(options):
    with pytest.raises(DataError, match="calib"):
        onnxdrp.slim(residual_net(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"equalize": "none"}, "equalize does not go with of channels"),
        ({"activation_zeropoint": True}, "activation_zeropoint does not go with of channels"),
        ({"mode": "moments", "executor": "a pool"}, "executor does not go with mode moments"),
    ],
)
def test_what_is_of_quantization_does_not_go_with_channels(options, words):
    with pytest.raises(OptionError, match=words):
        onnxdrp.sensitivity(residual_net(), noise(), of="channels", **options)


@pytest.mark.parametrize("command", [["sensitivity"], ["pareto", "-o", "front.json"]])
def test_labels_that_nothing_looks_at_are_refused(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    residual_net().save("net.onnx")
    arguments = [*command, "net.onnx", "--calib", "x.npz", "--labels", "l.csv"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert "--labels belongs to" in result.output


def test_what_channels_cost_counts_in_the_budget_of_the_whole():
    x = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    options = {"calib": {"x": x}, "slim": 0.6, "sparsity": 0.0, "pattern": "row"}

    def small(max_drop):
        net = Model.from_proto(mlp(16, 128, 128, 10))
        return onnxdrp.optimize(net, max_drop=max_drop, **options)

    lost = stats_of(small(100.0), "keep-float")["pruned"]
    assert lost > 3
    with pytest.raises(PassError, match="are lost by what was pruned or removed"):
        small(lost - 1)
    report = small(lost + 6)
    whole = onnxdrp.preprocess(Model.from_proto(mlp(16, 128, 128, 10))).model
    reader = few(split(open_reader(options["calib"], whole), 0.2)[0], 256, 0)
    assert stats_of(report, "keep-float")["reached"] <= lost + 6
    own, *_ = Trials(whole, reader).drop(report.model)
    assert own <= lost + 8  # weights are rounded in another way there
