import json
import tomllib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from builders import conv_net, mlp
from quantizing import parse

import onnxdrp
from onnxdrp import demo
from onnxdrp.datareaders import open_reader
from onnxdrp.errors import DataError, OptionError, PassError
from onnxdrp.evaluation import accuracy, paired_difference
from onnxdrp.model import Model
from onnxdrp.passes.apply_masks import masks_from_zeros
from onnxdrp.quantization import Range
from onnxdrp.ranges import Ranges, TensorRange, save_ranges

IMAGES = {"mean": demo.MEAN, "std": demo.STD}


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    return {"x": x, "y": np.arange(20) % 10}


def calibration(model):
    return open_reader(demo.CALIBRATE_IMAGES, model, batch=20, **IMAGES)


@pytest.fixture(scope="module")
def test_images():
    return lambda model: open_reader(demo.TEST, model, batch=100, **IMAGES)


@pytest.mark.parametrize("name", ["modA", pytest.param("modB", marks=pytest.mark.slow)])
def test_the_main_job_on_the_bundled_models(name, request, test_images):
    path = request.getfixturevalue(name)
    original = Model.load(path)
    test = test_images(original)
    before = accuracy(original, test).top1
    quantized = onnxdrp.quantize(path, calibration(original)).model
    change, low, high = paired_difference(before, accuracy(quantized, test).top1)
    assert change >= -0.5, (change, low, high)
    report = onnxdrp.optimize(path, calibration(original), sparsity=0.7, data=test)
    masks = masks_from_zeros(report.model)
    assert len(masks) == 16  # 15 Conv and the classifier, each with some zeros
    sparsities = [mask.sparsity for mask in masks.values()]
    assert max(sparsities) > 0.75  # more where it costs less
    assert sum(sparsity > 0.2 for sparsity in sparsities) >= 12
    figures = report.as_dict()
    assert figures["sparsity"] == pytest.approx(0.69, abs=0.02)
    assert figures["current_mac"] < 0.5 * figures["baseline_mac"]  # the share is of weights
    assert figures["accuracy"]["top1_before"] == pytest.approx(94.6, abs=0.15)
    assert figures["accuracy"]["change"] > -4
    recovery = figures["recovery"]
    assert recovery["pruned"]["top1_agreement"] < 0.5 < 0.9 < recovery["repaired"]["top1_agreement"]
    assert figures["weight_bytes"]["after"] < 0.3 * figures["weight_bytes"]["before"]
    assert json.loads(report.to_json())["recipe"] == report.recipe
    assert "optimize" in report.table()


def test_a_model_is_edited_in_place_and_a_path_is_not(tmp_path, data):
    path = tmp_path / "net.onnx"
    path.write_bytes(conv_net().SerializeToString())
    before = path.read_bytes()
    model = Model.load(path)
    assert onnxdrp.prune(model, sparsity=0.5).model is model
    assert (model.weight("conv2.weight") == 0).mean() == pytest.approx(0.5)
    assert onnxdrp.prune(path, sparsity=0.5).model is not model
    assert path.read_bytes() == before


def test_the_same_run_gives_the_same_bytes(tmp_path, data):
    reports = [onnxdrp.optimize(Model.from_proto(conv_net()), data) for _ in range(2)]
    first, second = (r.model.save(tmp_path / f"{i}.onnx") for i, r in enumerate(reports))
    assert first.read_bytes() == second.read_bytes()


def test_the_recipe_repeats_the_run(tmp_path, data):
    report = onnxdrp.optimize(
        Model.from_proto(conv_net()), data, pattern="row", sparsity=0.4, method="percentile"
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(report.recipe)
    again = onnxdrp.optimize(Model.from_proto(conv_net()), data, recipe=recipe)
    assert again.model.fingerprint() == report.model.fingerprint()
    assert again.recipe == report.recipe


def test_figures_come_from_samples_that_were_held_back(data):
    report = onnxdrp.quantize(Model.from_proto(conv_net()), data)
    assert report.summary["fidelity"]["samples"] == 4  # a fifth of 20
    assert report.summary["fidelity"]["sqnr_db"] > 15
    one = {name: values[:1] for name, values in data.items()}
    report = onnxdrp.quantize(Model.from_proto(conv_net()), one)
    assert any("held back" in warning for warning in report.warnings)


def test_stages_compose_to_the_whole(data):
    whole = onnxdrp.optimize(Model.from_proto(conv_net()), data, sparsity=0.5).model
    model = Model.from_proto(conv_net())
    onnxdrp.preprocess(model)
    onnxdrp.prune(model, sparsity=0.5, skip_preprocess=True, calib=data)
    onnxdrp.quantize(model, data, skip_preprocess=True)
    x = data["x"]
    want, got = (m.session().run(None, {"x": x})[0] for m in (whole, model))
    np.testing.assert_array_equal(got, want)


def test_masks_go_from_one_run_to_the_next(tmp_path, data):
    from onnxdrp.masks import save_masks

    model = Model.from_proto(conv_net())
    onnxdrp.prune(model, sparsity=0.5)
    save_masks(tmp_path / "masks.npz", masks_from_zeros(model))
    other = Model.from_proto(conv_net())
    onnxdrp.prune(other, masks=tmp_path / "masks.npz")
    np.testing.assert_array_equal(other.weight("conv2.weight"), model.weight("conv2.weight"))
    with pytest.raises(OptionError, match="sparsity does not go with masks"):
        onnxdrp.prune(other, masks=tmp_path / "masks.npz", sparsity=0.5)


def test_ranges_are_measured_edited_and_used(tmp_path, data):
    model = Model.from_proto(conv_net())
    before = model.fingerprint()
    report = onnxdrp.calibrate(model, data, method="mse")
    assert model.fingerprint() == before  # it measures, and changes nothing
    assert report.ranges.samples == 20
    assert report.ranges.method == {"name": "mse"}
    assert "recipe" in report.as_dict()
    kept = save_ranges(tmp_path / "all.json", report.ranges)
    same = onnxdrp.quantize(Model.from_proto(conv_net()), ranges=kept)
    plain = {"rounding": "nearest", "bias_correction": "none"}  # what needs no data
    direct = onnxdrp.quantize(Model.from_proto(conv_net()), data, data=data, method="mse", **plain)
    assert same.model.fingerprint() == direct.model.fingerprint()
    assert same.ranges == direct.ranges == report.ranges
    assert "fidelity" not in same.summary
    report.ranges.edit("x", low=-1.0, high=1.0)
    edited = save_ranges(tmp_path / "edited.json", report.ranges)
    other = onnxdrp.quantize(Model.from_proto(conv_net()), data, ranges=[str(edited)])
    assert other.ranges.tensors["x"].range == Range(-1.0, 1.0)
    assert other.model.weight("x_scale") == pytest.approx(2 / 255)
    assert other.summary["fidelity"]["sqnr_db"] < direct.summary["fidelity"]["sqnr_db"]


def test_ranges_of_the_pruned_model_fit_the_whole_job(tmp_path, data):
    model = Model.from_proto(conv_net())
    onnxdrp.prune(model, sparsity=0.5)
    path = save_ranges(tmp_path / "r.json", onnxdrp.calibrate(model, data).ranges)
    report = onnxdrp.optimize(Model.from_proto(conv_net()), sparsity=0.5, ranges=path)
    assert not any("calibrate" in warning for warning in report.warnings)
    assert onnxdrp.prune(Model.from_proto(conv_net())).ranges is None


def test_workers_an_executor_and_a_checkpoint_change_no_byte(tmp_path, data):
    reports = [onnxdrp.quantize(Model.from_proto(conv_net()), data)]
    with ThreadPoolExecutor(2) as pool:
        reports += [
            onnxdrp.quantize(Model.from_proto(conv_net()), data, **running)
            for running in (
                {"workers": 3},
                {"executor": pool},
                {"checkpoint": tmp_path / "kept"},
                {"memory_limit": 10_000},
            )
        ]
    assert len({r.model.fingerprint() for r in reports}) == 1
    assert list(tmp_path.iterdir()) == []
    recipe = tmp_path / "r.toml"
    recipe.write_text(reports[0].recipe)
    again = onnxdrp.run(
        Model.from_proto(conv_net()), recipe, calib=data, workers=2, checkpoint=tmp_path / "kept"
    )
    assert again.model.fingerprint() == reports[0].model.fingerprint()
    with pytest.raises(OptionError, match="workers 0: give 1 or more"):
        onnxdrp.calibrate(Model.from_proto(conv_net()), data, workers=0)


def test_a_recipe_that_makes_shapes_static_is_not_told_to(tmp_path, data, caplog):
    static = {"input_shape": {"x": [1, 3, 8, 8]}, "target": "drp-ai3"}
    report = onnxdrp.quantize(Model.from_proto(conv_net()), data, **static)
    again = onnxdrp.run(Model.from_proto(conv_net()), report.recipe, data)
    assert again.warnings == report.warnings
    assert not [line for line in caplog.messages if "takes static shapes" in line]


def test_options_of_calibration_stand_in_the_recipe(tmp_path, data):
    ranges = save_ranges(tmp_path / "r.json", Ranges({"x": TensorRange(-2.0, 2.0)}))
    report = onnxdrp.quantize(
        Model.from_proto(conv_net()), data, method="sigma", sigmas=3.0, ranges=ranges,
        skip_bad_samples=True,
    )  # fmt: skip
    entry = next(p for p in tomllib.loads(report.recipe)["pass"] if p["name"] == "calibrate")
    assert entry == {
        "name": "calibrate",
        "method": "sigma",
        "sigmas": 3.0,
        "ranges": [str(ranges)],
        "skip_bad_samples": True,
    }
    recipe = tmp_path / "r.toml"
    recipe.write_text(report.recipe)
    again = onnxdrp.optimize(Model.from_proto(conv_net()), data, recipe=recipe)
    assert again.model.fingerprint() == report.model.fingerprint()
    with pytest.raises(OptionError, match="ranges, method does not go with recipe"):
        onnxdrp.optimize(
            Model.from_proto(conv_net()), data, recipe=recipe, ranges=ranges, method="mse"
        )
    with pytest.raises(OptionError, match="method does not go with ranges without calib"):
        onnxdrp.quantize(Model.from_proto(conv_net()), ranges=ranges, method="mse")


def test_names_are_those_of_the_input_file(data):
    report = onnxdrp.optimize(
        Model.from_proto(conv_net()), data, rates={"conv2": 0.25}, keep_float=["fc"]
    )
    pruned = next(r for r in report.records if r.name == "prune-blocks")
    assert "conv2" in str(pruned.stats)
    assert "fc" in str(next(r for r in report.records if r.name == "calibrate").stats["skipped"])


def test_the_tail_of_a_detector_stands_in_the_report_and_the_recipe(tmp_path):
    rng = np.random.default_rng(0)
    weights = {f: rng.standard_normal((4, n)).astype(np.float32) for f, n in (("w", 4), ("v", 2))}
    model = parse(
        """<ir_version: 10, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 6] y) {
            [a] p = MatMul(x, w) [b] q = MatMul(x, v) [s] r = Sigmoid(q)
            [cat] y = Concat<axis = 1>(p, r) }""",
        weights,
    )
    feeds = {"x": rng.standard_normal((20, 4)).astype(np.float32)}
    report = onnxdrp.quantize(model.clone(), feeds, target="drp-ai3")
    assert report.summary["float_tail"] == {"nodes": 2, "from": "s", "to": "cat"}
    assert "float_tail: nodes 2, from s, to cat" in report.table().splitlines()
    assert "exclude_tail" not in report.recipe
    recipe = tmp_path / "r.toml"
    other = onnxdrp.quantize(model.clone(), feeds, target="drp-ai3", exclude_tail="none")
    assert "float_tail" not in other.summary
    assert 'exclude_tail = "none"' in other.recipe
    recipe.write_text(other.recipe)
    again = onnxdrp.optimize(model.clone(), feeds, recipe=recipe)
    assert again.model.fingerprint() == other.model.fingerprint() != report.model.fingerprint()
    with pytest.raises(OptionError, match="exclude_tail does not go with recipe"):
        onnxdrp.optimize(model.clone(), feeds, recipe=recipe, exclude_tail="none")


def test_explain_changes_nothing_and_takes_a_model_or_a_path(modA):
    model = Model.load(modA)
    before = model.fingerprint()
    found = onnxdrp.explain(model, target="drp-ai3", exclude=["gemm"])
    assert model.fingerprint() == before
    assert found == onnxdrp.explain(modA, target="drp-ai3", exclude=["gemm"])
    assert found == onnxdrp.explain(modA, target="drp-ai3", exclude="gemm")  # not g, e, m, m
    floats = [node.op for node in found.nodes if node.kind is None]
    assert floats == ["Gemm"]
    assert str(found) == repr(found) == found.table()
    assert "quantized: 36 of 37 nodes" in str(found)
    with pytest.raises(OptionError, match="input_shape does not go with skip_preprocess"):
        onnxdrp.explain(modA, input_shape={"x": (1, 3, 32, 32)}, skip_preprocess=True)


def test_what_a_target_lacks_is_said_first(data, caplog):
    report = onnxdrp.optimize(Model.from_proto(conv_net(opset=13)), data, target="drp-ai3")
    assert any("static" in warning for warning in report.warnings)
    assert any("static" in message for message in caplog.messages)


def test_errors_name_the_pass_and_what_ran_before(data):
    with pytest.raises(PassError, match=r"select-layers: .*\(after infer-shapes, optimize"):
        onnxdrp.optimize(Model.from_proto(conv_net(channels=24)), data)
    with pytest.raises(DataError, match="calibration data"):
        onnxdrp.optimize(Model.from_proto(conv_net()), None)


def test_the_functions_of_the_package_stay_functions():
    verbs = ("info", "compare", "evaluate", "optimize", "prune", "quantize", "preprocess")
    for name in (*verbs, "calibrate", "explain"):
        assert callable(getattr(onnxdrp, name)), name
    assert set(dir(onnxdrp)) >= {"NCHWDataReader", "PassManager", "load"}


def test_the_demo_shows_every_stage(tmp_path, monkeypatch):
    from onnxdrp.demonstrate import demonstrate

    monkeypatch.setattr("onnxdrp.api.ALLOCATION", "uniform")  # quick choices, the same stages
    monkeypatch.setattr("onnxdrp.api.SCORE", "magnitude")
    monkeypatch.setattr("onnxdrp.api.RECOVER", "moments")
    shown = demonstrate(tmp_path / "out")
    rows = shown.rows
    assert list(rows) == ["float", "pruned", "pruned + repaired", "quantized", "all of it"]
    assert rows["float"]["top1"] == pytest.approx(94.6, abs=0.15)
    assert rows["quantized"]["top1"] >= rows["float"]["top1"] - 0.5
    assert rows["pruned + repaired"]["top1"] > rows["pruned"]["top1"] + 30
    assert rows["quantized"]["bytes"] < 0.35 * rows["float"]["bytes"]
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["optimized.onnx", "recipe.toml", "report.html", "report.json"]
    assert "all of it" in str(shown)


# ----------------------------------------------------------------------------- pruning and repair


def names(report):
    return [record.name for record in report.records]


def test_pruning_with_data_shares_rates_out_ranks_by_costs_and_repairs(data):
    report = onnxdrp.prune(Model.from_proto(conv_net()), sparsity=0.5, calib=data)
    assert names(report)[-4:] == [
        "select-layers",
        "allocate-rates",
        "prune-blocks",
        "refit-weights",
    ]
    assert report.records[-2].stats["score"] == "second-order"
    recovery = report.as_dict()["recovery"]
    assert recovery["repaired"]["sqnr_db"] > recovery["pruned"]["sqnr_db"] + 1
    worst = recovery["worst_layers"]
    figures = report.records[-1].stats["layers"]
    assert max(worst.values()) == round(max(f["after"] for f in figures.values()), 4) > 0
    plain = onnxdrp.prune(Model.from_proto(conv_net()), sparsity=0.5)
    assert names(plain)[-2:] == ["select-layers", "prune-blocks"]
    assert "recovery" not in plain.as_dict()


def test_every_choice_of_pruning_can_be_made(data):
    report = onnxdrp.prune(
        Model.from_proto(conv_net()), sparsity=0.5, calib=data, allocation="uniform",
        score="activation", prune_steps=2, recover="moments",
    )  # fmt: skip
    assert names(report)[-5:] == [
        "select-layers", "prune-blocks", "refit-weights", "prune-blocks", "match-moments",
    ]  # fmt: skip
    assert report.records[-2].stats["score"] == "activation"
    fixed = onnxdrp.prune(Model.from_proto(conv_net()), pattern="nm:2:4", calib=data)
    assert "allocate-rates" not in names(fixed)
    bare = onnxdrp.prune(Model.from_proto(conv_net()), calib=data, recover="none")
    assert names(bare)[-1] == "prune-blocks"


def test_the_whole_job_repairs_before_it_quantizes(data):
    report = onnxdrp.optimize(Model.from_proto(conv_net()), data, sparsity=0.5)
    at = names(report)
    assert at.index("refit-weights") < at.index("calibrate")
    recovery = report.as_dict()["recovery"]
    assert recovery["repaired"]["sqnr_db"] > recovery["pruned"]["sqnr_db"]
    for name, mask in report.masks.items():
        assert not report.model.weight(name)[~mask.keep].any()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"distill_minutes": 1.0}, "recover refit"),
        ({"recover": "none", "prune_steps": 2}, "recover none"),
        ({"allocation": "uniform", "sparsity_of": "macs"}, "allocation uniform"),
        ({"masks": "m.npz", "score": "magnitude"}, "masks"),
        ({"max_drop": 1.0, "sparsity": 0.5}, "max_drop"),
        ({"max_drop": 1.0, "pattern": "nm:2:4"}, "one sparsity"),
    ],
)
def test_options_that_would_be_ignored_are_refused(data, options, what):
    with pytest.raises(OptionError, match=what):
        onnxdrp.prune(Model.from_proto(conv_net()), calib=data, **options)


def test_repair_without_data_is_refused():
    with pytest.raises(PassError, match="--calib"):
        onnxdrp.prune(Model.from_proto(conv_net()), recover="refit")
    with pytest.raises(DataError, match="no calibration data"):
        onnxdrp.prune(Model.from_proto(conv_net()), max_drop=1.0)


def test_the_highest_sparsity_that_holds_is_found(tmp_path):
    x = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    kept = tmp_path / "search.json"
    report = onnxdrp.prune(
        Model.from_proto(mlp(64, 64, 64, 10)), calib={"x": x}, max_drop=10.0, pattern="row",
        allocation="uniform", score="magnitude", checkpoint=kept,
    )  # fmt: skip
    curve = report.curve
    assert curve is not None
    assert curve.what == "top-1 agreement"
    best = curve.best
    assert best.lost <= 10
    assert 0.05 < best.rate < 0.95
    assert any(point.lost > 10 and point.rate > best.rate for point in curve.points)
    assert report.records[-3].stats["rates"] == {"fc1.weight": best.rate}
    assert report.as_dict()["curve"]["rate"] == best.rate
    assert "points lost" in report.table()
    assert f"rate = {best.rate}" in report.recipe
    assert not kept.exists()
    # what was measured is what came of it
    held_out = report.summary["fidelity"]
    assert held_out["samples"] == curve.samples
    assert 100 * (1 - held_out["top1_agreement"]) == pytest.approx(best.lost)
