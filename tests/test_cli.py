import json
import shutil
import textwrap

import numpy as np
import onnx
import pytest
from builders import conv_net, external, make_model, normal, value
from click.testing import CliRunner
from onnx import helper
from PIL import Image

from onnxdrp.cli import _Bytes, cli
from onnxdrp.model import Model
from onnxdrp.passes.apply_masks import masks_from_zeros


def call(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def net(tmp_path):
    """A small classifier with one prunable layer, conv2, and 12 calibration arrays for it."""
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "net.onnx"
    path.write_bytes(conv_net(batch="N").SerializeToString())
    x = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "calib.npz", x=x, y=np.arange(12) % 10)
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "out.onnx"


def refused(result, *words):
    """Exit code 1, one line that has these words, nothing on standard output."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]
    assert "defect of onnxdrp" not in lines[0]


def test_optimize_writes_a_model_a_recipe_and_json(net, out):
    result = call("optimize", net, "-o", out, "--calib", net.parent / "calib.npz", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    keys = {"input", "output", "passes", "sparsity", "model_bytes", "seconds", "peak_rss_mb"}
    assert keys <= report.keys()
    assert report["model_bytes"] == out.stat().st_size
    names = [record["name"] for record in report["passes"]]
    assert names[-4:] == ["round-weights", "correct-bias", "insert-qdq", "check"]
    masks = masks_from_zeros(Model.load(out))
    assert any(0.6 < mask.sparsity < 0.75 for mask in masks.values())
    again = out.with_name("again.onnx")
    recipe = out.with_name("out.onnx.recipe.toml")
    result = call(
        "optimize", net, "-o", again, "--calib", net.parent / "calib.npz", "--recipe", recipe
    )
    assert result.exit_code == 0, result.stderr
    assert again.read_bytes() == out.read_bytes()


def test_stage_by_stage_gives_a_model_that_runs(net, out):
    calib = net.parent / "calib.npz"
    first, second = out.with_name("1.onnx"), out.with_name("2.onnx")
    assert call("preprocess", net, "-o", first).exit_code == 0
    assert call("prune", first, "-o", second, "--sparsity", 0.5, "--pattern", "row").exit_code == 0
    result = call("quantize", second, "-o", out, "--calib", calib, "--method", "percentile")
    assert result.exit_code == 0, result.stderr
    result = call("compare", net, out, "--calib", calib, "--json", "--layers")
    found = json.loads(result.stdout)
    assert 0 < found["sqnr_db"] < 60
    assert found["layers"]
    result = call("evaluate", out, "--data", calib, "--json")
    assert json.loads(result.stdout)["samples"] == 12


def test_info_and_passes(net):
    layers = json.loads(call("info", net, "--json").stdout)
    keys = {"name", "op", "input_shape", "output_shape", "params", "sparsity", "baseline_mac",
            "current_mac", "prunable", "why_not"}  # fmt: skip
    assert all(keys <= layer.keys() for layer in layers["layers"])
    assert [layer["prunable"] for layer in layers["layers"]] == [False, True, False]
    assert layers["total"]["params"] == 3 * 32 * 9 + 32 + 32 * 32 * 9 + 32 * 10 + 10
    assert "conv2" in call("info", net).stdout
    assert "prune-blocks" in call("passes").stdout
    names = [entry["name"] for entry in json.loads(call("passes", "--json").stdout)]
    assert "insert-qdq" in names


def test_masks_are_kept_and_applied_to_the_same_model(net, out):
    masks, again = out.with_name("masks.npz"), out.with_name("again.onnx")
    assert call("prune", net, "-o", out, "--sparsity", 0.5, "--save-masks", masks).exit_code == 0
    result = call("prune", net, "-o", again, "--masks", masks)
    assert result.exit_code == 0, result.stderr
    assert again.read_bytes() == out.read_bytes()
    assert (Model.load(again).weight("conv2.weight") == 0).mean() == pytest.approx(0.5)


def test_dump_and_report(net, out, tmp_path):
    result = call(
        "prune", net, "-o", out, "--dump", tmp_path / "dump", "--report", out.parent / "r.json",
        "--equivalence",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    dumped = sorted(p.name for p in (tmp_path / "dump").glob("*.onnx"))
    assert dumped[-1].endswith("prune-blocks.onnx")
    assert json.loads((out.parent / "r.json").read_text())["output"] == str(out)
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []


def test_reports_are_pages_too(net, out):
    page = out.with_name("r.html")
    result = call("prune", net, "-o", out, "--json", "--report", page)
    assert result.exit_code == 0, result.stderr
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert ">net.onnx</h1>" in text
    later, again = out.with_name("r.json"), out.with_name("again.html")
    later.write_text(result.stdout)
    result = call("report", later, "-o", again)
    assert (result.exit_code, result.stdout) == (0, f"{again}\n")
    assert again.read_text() == text  # made of the very figures that --json prints
    refused(call("report", later, "-o", later), "is the input")
    refused(call("report", net, "-o", again), "cannot be read")
    later.write_text('{"what": 1}')
    refused(call("report", later, "-o", again), "no figures of onnxdrp")
    refused(call("prune", net, "-o", out, "--report", out.with_name("r.pdf")), ".html or .json")


def test_wrong_usage_is_exit_code_2(net, out):
    assert call("optimize", net).exit_code == 2
    assert call("optimize", net, "-o", out, "--method", "magic").exit_code == 2
    assert call("nothing").exit_code == 2
    assert call("evaluate", net).exit_code == 2
    calib = net.parent / "calib.npz"
    assert call("evaluate", net, "--data", calib, "--conf", 0.3).exit_code == 2


def test_debug_shows_the_error_itself(net, out):
    result = call("optimize", net, "-o", out, "--debug")
    assert type(result.exception).__name__ == "DataError"


# ---------------------------------------------------------------------------------- bad input


@pytest.fixture
def optimize(net, out):
    """Run `optimize` with changes; afterwards nothing may lie in the output's folder."""

    def run(model=net, calib=net.parent / "calib.npz", output=out, more=()):
        data = () if calib is None else ("--calib", calib)
        return call("optimize", model, "-o", output, *data, *more)

    yield run
    assert list(out.parent.iterdir()) == []


def written(net, proto, name="bad.onnx"):
    path = net.parent / name
    path.write_bytes(proto.SerializeToString())
    return path


def test_no_onnx_file(optimize, net):
    bad = net.parent / "bad.onnx"
    bad.write_text("this is a text about models")
    refused(optimize(bad), "bad.onnx", "not an ONNX model")
    refused(optimize(net.parent / "none.onnx"), "none.onnx", "No such file")
    refused(optimize(net.parent), "is a folder")


def test_truncated_file(optimize, net):
    bad = net.parent / "bad.onnx"
    bad.write_bytes(net.read_bytes()[: net.stat().st_size // 2])
    refused(optimize(bad), "bad.onnx", "cut short")


def test_unknown_opset(optimize, net):
    refused(optimize(written(net, conv_net(opset=999))), "opset 999")


def test_unknown_domain_and_operator(optimize, net):
    def single(op, domain):
        node = helper.make_node(op, ["x"], ["y"], "odd", domain=domain)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
        shape = ["N", 3, 8, 8]
        proto = make_model([node], [value("x", shape)], [value("y", shape)], opset_imports=opsets)
        return written(net, proto)

    refused(optimize(single("Magic", "my.own")), "'odd'", "'Magic'", "my.own")
    refused(optimize(single("Magic", "")), "'odd'", "'Magic'")


def test_external_data_missing_or_outside(optimize, net):
    proto = conv_net()
    bad = external(proto, net.parent / "bad.onnx")
    bad.with_suffix(".bin").unlink()
    refused(optimize(bad), "bad.onnx", "missing")
    secret = net.parent.parent / "secret.bin"
    secret.write_bytes(bytes(10**6))
    broken = onnx.ModelProto.FromString(bad.read_bytes())
    for tensor in broken.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret.bin"
    refused(optimize(written(net, broken)), "outside")


def test_no_prunable_layer(optimize, net):
    refused(optimize(written(net, conv_net(channels=24))), "no", "prun")


def test_no_calibration_data(optimize, net, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(optimize(calib=empty), "empty")
    refused(optimize(calib=tmp_path / "nowhere"), "nowhere")
    np.savez(tmp_path / "none.npz", x=np.zeros((0, 3, 8, 8), np.float32))
    refused(optimize(calib=tmp_path / "none.npz"))


def test_unreadable_calibration_data(optimize, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"no image")
    refused(optimize(calib=folder), "0.png")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    refused(optimize(calib=tmp_path / "bad.npz"), "bad.npz")


def test_mis_shaped_calibration_data(optimize, tmp_path):
    np.savez(tmp_path / "bad.npz", x=np.zeros((4, 3, 9, 9), np.float32))
    refused(optimize(calib=tmp_path / "bad.npz"), "3, 8, 8")
    np.savez(tmp_path / "bad.npz", x=np.zeros((4, 8, 8, 3), np.float32))
    refused(optimize(calib=tmp_path / "bad.npz"), "3, 8, 8")
    np.savez(tmp_path / "bad.npz", x=np.zeros(4, np.float32))
    refused(optimize(calib=tmp_path / "bad.npz"), "3, 8, 8")


def test_fewer_channels_than_the_model_wants(optimize, tmp_path):
    np.savez(tmp_path / "bad.npz", x=np.zeros((4, 1, 8, 8), np.float32))
    refused(optimize(calib=tmp_path / "bad.npz"), "3, 8, 8")


def test_nan_in_weights(optimize, net):
    proto = conv_net()
    for tensor in proto.graph.initializer:
        if tensor.name == "conv2.weight":
            weight = onnx.numpy_helper.to_array(tensor).copy()
            weight[3, 4, 1, 1] = np.nan
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    refused(optimize(written(net, proto)), "conv2", "NaN")


def test_nan_in_activations(optimize, net):
    # the square root of a negative number, made inside the graph
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["h"], "first", pads=[1] * 4),
        helper.make_node("Sqrt", ["h"], ["s"], "root"),
        helper.make_node("Conv", ["s", "w1"], ["y"], "second", pads=[1] * 4),
        helper.make_node("Conv", ["y", "w2"], ["z"], "third", pads=[1] * 4),
    ]
    shapes = {"w0": [32, 3, 3, 3], "w1": [32, 32, 3, 3], "w2": [32, 32, 3, 3]}
    weights = {name: normal(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    shape = ["N", 32, 8, 8]
    proto = make_model(nodes, [value("x", ["N", 3, 8, 8])], [value("z", shape)], weights)
    refused(optimize(written(net, proto)), "NaN", "'root'", "sample")


def test_output_is_the_input(net, optimize):
    before = net.read_bytes()
    refused(optimize(output=net), "is the input")
    assert net.read_bytes() == before


def test_output_in_a_missing_folder(out, optimize):
    refused(optimize(output=out.parent / "none" / "out.onnx"), "does not exist")


def test_output_that_cannot_be_written(out, optimize):
    refused(optimize(output=out.parent), "is a folder")
    refused(optimize(output="/proc/out.onnx"), "/proc/out.onnx", "cannot be written")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[pass]]\nname = 'prune-bloks'\n", ["prune-bloks", "prune-blocks"]),
        ("[[pass]]\nname = 'prune-blocks'\npatern = 'row'\n", ["patern", "pattern"]),
        ("[[pass]]\nname = 'select-layers'\nrate = 'much'\n", ["rate"]),
        ("[[pass]\n", ["recipe.toml"]),
        ("", ["recipe.toml"]),
    ],
)
def test_bad_recipe(net, optimize, text, words):
    recipe = net.parent / "recipe.toml"
    recipe.write_text(text)
    refused(optimize(more=["--recipe", recipe]), *words)


def test_missing_recipe(net, optimize):
    refused(optimize(more=["--recipe", net.parent / "no.toml"]), "no.toml")


def test_reader_file_that_raises(net, optimize):
    code = """
        from onnxdrp.datareaders import DataReader
        class Mine(DataReader):
            def batches(self):
                raise ValueError("the camera is off")
                yield
        """
    file = net.parent / "mine.py"
    file.write_text(textwrap.dedent(code))
    refused(optimize(calib=None, more=["--reader", file]), "mine.py", "the camera is off")
    file.write_text("import nothing_like_this\n")
    refused(optimize(calib=None, more=["--reader", file]), "mine.py", "nothing_like_this")


def test_options_that_would_be_ignored_are_refused(net, out):
    recipe, masks = net.parent / "r.toml", net.parent / "m.npz"
    recipe.write_text("[[pass]]\nname = 'infer-shapes'\n")
    calib = net.parent / "calib.npz"
    for more in (["--sparsity", 0], ["--method", "minmax"], ["--per-tensor"], ["--outputs", "y"]):
        result = call("optimize", net, "-o", out, "--calib", calib, "--recipe", recipe, *more)
        refused(result, "does not go with recipe")
    refused(call("prune", net, "-o", out, "--masks", masks, "--prune-last"), "prune_last", "masks")
    shape = ["--skip-preprocess", "--input-shape", "x:1,3,8,8"]
    refused(call("prune", net, "-o", out, *shape), "input_shape", "skip_preprocess")
    nowhere = out.parent / "none" / "r.json"
    refused(call("prune", net, "-o", out, "--report", nowhere), "does not exist")
    assert list(out.parent.iterdir()) == []


def test_bad_options(optimize):
    refused(optimize(more=["--sparsity", 1]), "1", "[0, 1)")
    refused(optimize(more=["--pattern", "blok"]), "blok", "block")
    refused(optimize(more=["--pattern", "nm:2:4", "--sparsity", 0.7]), "nm:2:4")
    refused(optimize(more=["--target", "drp-ai"]), "drp-ai", "drp-ai3")
    refused(optimize(more=["--rate", "conv3:0.5"]), "conv3", "conv2")
    refused(optimize(more=["--keep-float", "conv3"]), "conv3", "conv2")
    refused(optimize(more=["--outputs", "h33"]), "h33")
    refused(optimize(more=["--input-shape", "image:1,3,8,8"]), "image")


def test_images_from_a_folder(tmp_path, out, modA):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    copied = tmp_path / "modA.onnx"
    shutil.copyfile(modA, copied)
    result = call(
        "quantize", copied, "-o", out, "--calib", folder, "--mean", "0.2", "--std", "0.3,0.3,0.3",
        "--resize", "letterbox", "--pad-color", "0", "--limit", 4, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["fidelity"]["samples"] == 1


# ------------------------------------------------------------------------------------------- ranges


def test_ranges_go_through_a_file(net, out):
    calib, ranges = net.parent / "calib.npz", out.with_name("ranges.json")
    result = call("calibrate", net, "-o", ranges, "--calib", calib, "--method", "entropy")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["tensor", "low", "high", "min", "max", "values"]
    assert [row[0] for row in rows[1:]] == ["x", "r1", "r2", "p"]  # names of the input file
    assert json.loads(ranges.read_text())["samples"] == 12  # none held back
    direct, again = out.with_name("direct.onnx"), out.with_name("again.onnx")
    result = call(
        "quantize", net, "-o", direct, "--calib", calib, "--data", calib, "--method", "entropy",
        "--save-ranges", out.with_name("saved.json"),
        "--rounding", "nearest", "--bias-correction", "none",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert out.with_name("saved.json").read_bytes() == ranges.read_bytes()
    result = call("quantize", net, "-o", again, "--ranges", ranges, "--json")
    assert result.exit_code == 0, result.stderr
    assert again.read_bytes() == direct.read_bytes()
    report = json.loads(result.stdout)
    assert "fidelity" not in report  # without data nothing is compared
    assert report["warnings"] == [
        "without calibration data weights are rounded to the nearest, and biases stay"
    ]
    recipe = out.with_name("again.onnx.recipe.toml")
    result = call("optimize", net, "-o", out, "--recipe", recipe)
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes() == direct.read_bytes()


def test_calibrate_prints_one_json_object_and_writes_a_report(net, out):
    ranges, report = out.with_name("ranges.json"), out.with_name("report.json")
    calib = net.parent / "calib.npz"
    result = call(
        "calibrate", net, "-o", ranges, "--calib", calib, "--json", "--report", report,
        "--keep-float", "conv2", "--workers", 2, "--memory-limit", "1.5MB",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["input"], found["output"]) == (str(net), str(ranges))
    assert (found["tensors"], found["samples"]) == (3, 12)  # x for conv1, r1, p for fc
    step = next(p for p in found["passes"] if p["name"] == "calibrate")
    assert step["options"]["memory_limit"] == 1_500_000
    assert step["stats"]["skipped"]["conv2"] == "excluded by 'conv2'"
    assert json.loads(report.read_text())["passes"][-1]["name"] == "calibrate"
    assert sorted(p.name for p in out.parent.iterdir()) == ["ranges.json", "report.json"]


def test_ranges_of_several_files_are_merged_and_what_they_lack_is_measured(net, out):
    def written(name, **tensors):
        table = {"format": "onnxdrp ranges", "version": 1, "tensors": tensors}
        path = out.with_name(name)
        path.write_text(json.dumps(table))
        return path

    one = written("1.json", x={"low": -1, "high": 2}, r1={"low": 0, "high": 3})
    two = written("2.json", x={"low": -3, "high": 1}, pp={"low": 0, "high": 1})
    saved, calib = out.with_name("saved.json"), net.parent / "calib.npz"
    files = ["--ranges", one, "--ranges", two, "--save-ranges", saved]
    result = call("quantize", net, "-o", out, *files, "--calib", calib, "--json")
    assert result.exit_code == 0, result.stderr
    tensors = json.loads(saved.read_text())["tensors"]
    assert tensors["x"] == {"low": -3.0, "high": 2.0}
    assert tensors["r1"] == {"low": 0.0, "high": 3.0}
    assert tensors["p"]["count"] == 10 * 32  # a fifth of 12 is held back
    (warning,) = json.loads(result.stdout)["warnings"]
    assert "2.json: the model has no tensor 'pp'; is 'p' meant?" in warning
    out.unlink()
    refused(call("quantize", net, "-o", out, *files), "1.json", "no range for 'r2', 'p'; give")
    assert not out.exists()


def test_ranges_of_another_model_are_told_to_be_stale(net, out):
    ranges, calib = out.with_name("ranges.json"), net.parent / "calib.npz"
    assert call("calibrate", net, "-o", ranges, "--calib", calib).exit_code == 0
    result = call("optimize", net, "-o", out, "--ranges", ranges)  # which prunes
    assert result.exit_code == 0, result.stderr
    assert "was measured with other weights than the model has now" in result.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["line 1", "not JSON"]),
        ("{}", ["no file of ranges"]),
        ('{"format": "onnxdrp ranges", "version": 7}', ["version 7"]),
        (
            '{"format": "onnxdrp ranges", "version": 1, "tensors": {"x": {"low": 2, "high": 1}}}',
            ["tensor 'x'", "low 2.0 is above high 1.0"],
        ),
        (
            '{"format": "onnxdrp ranges", "version": 1, "tensors": {"x": {"low": NaN, "high": 1}}}',
            ["tensor 'x'", "low is nan"],
        ),
    ],
)
def test_a_bad_file_of_ranges(net, optimize, text, words):
    file = net.parent / "bad.json"
    file.write_text(text)
    refused(optimize(more=["--ranges", file]), "bad.json", *words)
    refused(optimize(calib=None, more=["--ranges", file]), "bad.json", *words)


def test_a_missing_file_of_ranges_and_places_that_cannot_be_written(net, optimize, out):
    refused(optimize(more=["--ranges", net.parent / "no.json"]), "no.json", "cannot be read")
    nowhere = out.parent / "none" / "r.json"
    refused(optimize(more=["--save-ranges", nowhere]), "does not exist")
    calib = ("--calib", net.parent / "calib.npz")
    refused(call("calibrate", net, "-o", nowhere, *calib), "does not exist")
    refused(call("calibrate", net, "-o", net, *calib), "is the input")
    refused(call("calibrate", net, "-o", out), "no calibration data")


def test_calibration_options_that_would_be_ignored_are_refused(net, optimize, out):
    ranges, recipe = net.parent / "r.json", net.parent / "r.toml"
    ranges.write_text('{"format": "onnxdrp ranges", "version": 1, "tensors": {}}')
    recipe.write_text("[[pass]]\nname = 'infer-shapes'\n")
    for more in (["--method", "mse"], ["--workers", 2], ["--memory-limit", "1GB"],
                 ["--skip-bad-samples"], ["--tails", "abs"]):  # fmt: skip
        asked = ["--ranges", ranges, *more]
        refused(optimize(calib=None, more=asked), "does not go with ranges without calib")
        refused(call("quantize", net, "-o", out, *asked), "does not go with ranges without calib")
    for more in (["--method", "mse"], ["--ranges", ranges], ["--sigmas", 3],
                 ["--skip-bad-samples"], ["--memory-limit", 10**9]):  # fmt: skip
        refused(optimize(more=["--recipe", recipe, *more]), "does not go with recipe")
    refused(optimize(more=["--recipe", recipe, "--save-ranges", out]), "no pass", "calibrates")
    refused(optimize(more=["--method", "minmax", "--percentile", 99]), "percentile belongs to")
    refused(optimize(more=["--sigmas", 3, "--tails", "abs"]), "sigmas belongs to the method sigma")
    refused(optimize(more=["--percentile", 101]), "outside [50, 100]")


def test_amounts_of_memory_have_units(net, out):
    for text, count in (("500MB", 5 * 10**8), ("1.5gb", 15 * 10**8), ("2 GiB", 2 << 30),
                        ("64K", 64_000), ("123456", 123456), ("7B", 7)):  # fmt: skip
        assert _Bytes().convert(text, None, None) == count
    calib = ("--calib", net.parent / "calib.npz")
    for text in ("", "much", "-5", "0", "1XB", "0.1B", "1e9"):
        result = call("quantize", net, "-o", out, *calib, "--memory-limit", text)
        assert result.exit_code == 2, text
        assert "give" in result.stderr
    assert call("quantize", net, "-o", out, *calib, "--workers", 0).exit_code == 2


def test_bad_samples_are_refused_or_left_out(net, out):
    code = """
        import numpy as np
        from onnxdrp.datareaders import DataReader
        class Mine(DataReader):
            samples = 12
            def batches(self):
                x = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
                x[4, 0, 0, 0] = np.nan
                for sample in x:
                    yield {"x": sample[None]}
        """
    file, ranges = net.parent / "mine.py", out.with_name("ranges.json")
    file.write_text(textwrap.dedent(code))
    arguments = ("calibrate", net, "-o", ranges, "--reader", file)
    refused(call(*arguments), "'x' of the input has NaN in sample 4")
    assert list(out.parent.iterdir()) == []
    result = call(*arguments, "--skip-bad-samples")
    assert result.exit_code == 0, result.stderr
    told = "1 of 12 samples were left out: tensor 'x' of the input has NaN in sample 4"
    assert result.stdout.splitlines()[-1] == f"warning: calibrate: {told}"
    assert json.loads(ranges.read_text())["samples"] == 11


def test_bad_samples_of_arrays_are_left_out_of_ranges_and_figures(net, out):
    x = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
    for rows in ([0, 7], range(12)):  # of 20, 4 are held back: at least one of 12 is among them
        x[rows, 0, 0, 0] = np.nan
        np.savez(net.parent / "nan.npz", x=x)
        arguments = ("quantize", net, "-o", out, "--calib", net.parent / "nan.npz", "--json")
        refused(call(*arguments), "sample", "NaN")
        result = call(*arguments, "--skip-bad-samples")
        assert result.exit_code == 0, result.stderr
        report = json.loads(result.stdout)
        assert "samples were left out" in report["warnings"][0]
        assert report["fidelity"]["sqnr_db"] > 10
    assert report["fidelity"]["samples"] < 4


def test_an_interrupted_calibration_goes_on_with_the_same_command(net, out):
    code = """
        from pathlib import Path
        import numpy as np
        from onnxdrp.datareaders import DataReader
        class Mine(DataReader):
            samples = 640
            def batches(self):
                rng = np.random.default_rng(0)
                for i in range(40):
                    if i == 30 and Path(__file__).with_name("interrupt").exists():
                        raise KeyboardInterrupt
                    yield {"x": rng.standard_normal((16, 3, 8, 8)).astype(np.float32)}
        """
    file, flag = net.parent / "mine.py", net.parent / "interrupt"
    file.write_text(textwrap.dedent(code))
    for verb, name in (("calibrate", "ranges.json"), ("quantize", "out.onnx")):
        whole, output = out.with_name(f"whole-{name}"), out.with_name(name)
        assert call(verb, net, "-o", whole, "--reader", file).exit_code == 0
        flag.touch()
        result = call(verb, net, "-o", output, "--reader", file)
        assert result.exit_code == 130
        assert result.stdout == ""
        assert result.stderr == "interrupted; run the same command again to go on\n"
        kept = out.with_name(f"{name}.calibration")
        assert kept.exists()
        assert not output.exists()
        refused(call(verb, net, "-o", output, "--reader", file, "--keep-float", "nix"), "nix")
        assert kept.exists()  # a slip does not cost what was done
        flag.unlink()
        assert call("-v", verb, net, "-o", output, "--reader", file).exit_code == 0
        assert output.read_bytes() == whole.read_bytes()
        assert not kept.exists()


def test_an_interrupt_before_any_work_says_only_that(net, out):
    file = net.parent / "mine.py"
    file.write_text("raise KeyboardInterrupt\n")
    result = call("quantize", net, "-o", out, "--reader", file)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert list(out.parent.iterdir()) == []


# --------------------------------------------------------------------------------- what stays float


def test_quantize_explain_lists_every_node_without_data(net):
    result = call("quantize", "--explain", net, "--exclude", "conv2", "--exclude", "tanh", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    nodes = {node["name"]: node for node in found["nodes"]}
    assert list(nodes) == ["conv1", "relu1", "conv2", "relu2", "pool", "flatten", "fc"]
    assert nodes["conv1"] == {
        "name": "conv1", "op": "Conv", "quantized": True, "kind": "weighted", "unit": "",
        "group": "", "why": "",
    }  # fmt: skip
    assert (nodes["relu1"]["kind"], nodes["relu1"]["unit"]) == ("own", "conv1")
    assert nodes["conv2"]["why"] == "excluded by 'conv2'"
    assert nodes["relu2"]["why"] == "none of its inputs is quantized"
    assert (nodes["flatten"]["kind"], nodes["flatten"]["group"]) == ("same", "p")
    assert (found["quantized_nodes"], found["float_nodes"], found["tail"]) == (4, 3, [])
    assert found["notes"] == ["exclude 'tanh': the model has no such operator"]
    assert {p.name for p in net.parent.iterdir()} == {"net.onnx", "calib.npz"}
    text = call("quantize", "--explain", net, "--exclude", "conv2", "--exclude", "tanh")
    lines = text.stdout.splitlines()
    assert lines[0].split()[:3] == ["node", "operator", "quantized"]
    assert "quantized: 4 of 7 nodes" in lines
    assert lines[-1] == "note: exclude 'tanh': the model has no such operator"


def test_what_explain_says_is_what_quantize_does(net, out):
    options = ["--exclude-subgraph", "r1..h2", "--target", "drp-ai3"]
    plan = json.loads(call("quantize", "--explain", net, *options, "--json").stdout)
    result = call(
        "quantize", net, "-o", out, "--calib", net.parent / "calib.npz", *options, "--json"
    )
    assert result.exit_code == 0, result.stderr
    steps = json.loads(result.stdout)["passes"]
    (stats,) = (step["stats"] for step in steps if step["name"] == "calibrate")
    assert stats["skipped"] == {n["name"]: n["why"] for n in plan["nodes"] if not n["quantized"]}
    assert stats["skipped"]["conv2"] == "excluded by the subgraph 'r1..h2'"


def test_explain_refuses_what_it_would_ignore(net, out):
    calib = net.parent / "calib.npz"
    refused(call("quantize", "--explain", net, "-o", out), "--output", "only plans")
    refused(call("quantize", "--explain", net, "--calib", calib), "--calib")
    refused(call("quantize", "--explain", net, "--method", "minmax"), "--method")
    refused(call("quantize", "--explain", net, "--exclude", "conv3"), "conv3", "conv2")
    missing = call("quantize", net, "--calib", calib)
    assert missing.exit_code == 2
    assert "Missing option '-o'" in missing.stderr
    assert call("quantize", "--explain", net, "--exclude-tail", "maybe").exit_code == 2


def test_optimize_and_calibrate_take_the_same_exclusions(net, out, tmp_path):
    calib, patterns = net.parent / "calib.npz", tmp_path / "act"
    patterns.mkdir()
    (patterns / "a.csv").write_text("Relu, ^GlobalAveragePool\n")
    options = [
        "--exclude-patterns",
        patterns,
        "--exclude-subgraph",
        "f..",
        "--exclude-tail",
        "none",
    ]
    ways = (("calibrate", "--exclude"), ("quantize", "--exclude"), ("optimize", "--keep-float"))
    for verb, option in ways:
        nothing = call(verb, net, "-o", out, "--calib", calib, *options, option, "CONV", "--json")
        refused(nothing, "no node of the model can be quantized: excluded by 'CONV'")
        result = call(verb, net, "-o", out, "--calib", calib, *options, option, "conv1", "--json")
        assert result.exit_code == 0, result.stderr
        steps = json.loads(result.stdout)["passes"]
        (stats,) = (step["stats"] for step in steps if step["name"] == "calibrate")
        kept = stats["skipped"]
        assert kept["conv1"] == "excluded by 'conv1'"
        assert kept["fc"] == "excluded by the subgraph 'f..'"
        assert kept["relu2"].startswith("excluded by the pattern")
    bad = call("quantize", net, "-o", out, "--calib", calib, "--exclude-patterns", tmp_path / "no")
    refused(bad, "no", "cannot be read")


def names_of_passes(result):
    assert result.exit_code == 0, result.stderr
    return [record["name"] for record in json.loads(result.stdout)["passes"]]


@pytest.mark.parametrize("verb", ["quantize", "optimize"])
def test_options_of_rounding_choose_the_passes(verb, net, out):
    base = (verb, net, "-o", out, "--calib", net.parent / "calib.npz", "--json")
    assert names_of_passes(call(*base))[-4:] == [
        "round-weights", "correct-bias", "insert-qdq", "check",
    ]  # fmt: skip
    plain = call(*base, "--rounding", "nearest", "--bias-correction", "none")
    assert names_of_passes(plain)[-4:] == [
        "calibrate", "quantize-weights", "insert-qdq", "check",
    ]  # fmt: skip
    whole = call(
        *base, "--equalize", "all", "--keep-float", "auto", "--min-sqnr", 10, "--weight-bits", 4,
        "--bias-correction", "fast", "--reduce-range", "--opset", 15,
    )  # fmt: skip
    names = names_of_passes(whole)
    assert "cross-layer-equalize" in names
    assert names[-5:] == ["keep-float", "round-weights", "correct-bias", "insert-qdq", "check"]
    assert Model.load(out).opset == 15
    assert 'mode = "fast"' in out.with_name("out.onnx.recipe.toml").read_text()


@pytest.mark.parametrize("verb", ["quantize", "optimize"])
def test_a_goal_and_auto_go_together(verb, net, out):
    base = (verb, net, "-o", out, "--calib", net.parent / "calib.npz")
    refused(call(*base, "--keep-float", "auto"), "--keep-float auto", "--min-sqnr", "--max-drop")
    refused(call(*base, "--min-sqnr", 30), "--min-sqnr", "--keep-float auto")
    both = call(*base, "--keep-float", "auto", "--min-sqnr", 30, "--max-drop", 1)
    refused(both, "min_sqnr", "max_drop")
    assert not out.exists()


def test_a_strict_target_refuses_first_what_it_lacks_and_can_be_met(net, out):
    calib = net.parent / "calib.npz"
    base = ("quantize", net, "-o", out, "--calib", calib, "--target", "drp-ai3")
    refused(call(*base, "--strict"), "drp-ai3", "static shapes", "--input-shape")
    result = call(*base, "--strict", "--input-shape", "x:1,3,8,8", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["warnings"] == []
    loose = call(*base, "--json")
    assert any("static shapes" in w for w in json.loads(loose.stdout)["warnings"])


def test_an_opset_that_the_target_does_not_take_is_said(net, out):
    base = ("quantize", net, "-o", out, "--calib", net.parent / "calib.npz", "--opset", 17)
    more = ("--target", "drp-ai3", "--input-shape", "x:1,3,8,8")
    result = call(*base, *more, "--json")
    assert result.exit_code == 0, result.stderr
    assert any("opset 17" in w for w in json.loads(result.stdout)["warnings"])
    refused(call(*base, *more, "--strict"), "opset 17", "drp-ai3")


def test_targets_are_listed_and_shown(tmp_path):
    result = call("targets")
    assert result.exit_code == 0, result.stderr
    names = [line.partition(":")[0] for line in result.stdout.splitlines()]
    assert names == ["drp-ai3", "generic", "ort-cpu", "qnn-htp", "tensorrt"]
    assert "zero point 0" in call("targets", "drp-ai3").stdout
    own = tmp_path / "mine.toml"
    own.write_text('base = "drp-ai3"\ndescription = "ours"\nper_channel = true\n')
    (found,) = json.loads(call("targets", own, "--json").stdout)
    assert (found["name"], found["description"]) == ("mine", "ours")
    assert "each output channel" in found["weights"]
    refused(call("targets", "drp-ai"), "drp-ai3")


def test_sensitivity_is_shown_kept_and_gone_on_from(net, out):
    sens, calib = out.with_name("s.json"), net.parent / "calib.npz"
    base = ("sensitivity", net, "--calib", calib, "--target", "drp-ai3", "--samples", 6)
    result = call(*base, "-o", sens)
    assert result.exit_code == 0, result.stderr
    assert {"conv1", "conv2", "fc"} <= {line.split()[0] for line in result.stdout.splitlines()[1:5]}
    kept = json.loads(sens.read_text())
    assert (kept["target"], kept["samples"], kept["complete"]) == ("drp-ai3", 6, True)
    found = json.loads(call(*base, "--json").stdout)
    assert found == kept
    dearest = kept["units"].pop(0)
    sens.write_text(json.dumps(kept))
    assert call(*base, "-o", sens).exit_code == 0
    again = json.loads(sens.read_text())["units"][0]
    assert again["name"] == dearest["name"]
    assert again["sqnr_db"] == pytest.approx(dearest["sqnr_db"], abs=1e-3)  # other segments run
    sens.write_text("[]")
    refused(call(*base, "-o", sens), "s.json")


def test_zero_points_stand_in_the_recipe(net, out):
    calib = net.parent / "calib.npz"
    base = ("quantize", net, "-o", out, "--calib", calib, "--target", "drp-ai3")

    def points():
        model = Model.load(out)
        zeros = [model.weight(n) for n in model.weights() if n.endswith("_zero_point")]
        return {int(z) for z in zeros if z.ndim == 0 and z.dtype == np.int8}

    assert call(*base).exit_code == 0
    assert points() == {0}
    assert call(*base, "--activation-zeropoint").exit_code == 0
    assert len(points()) > 1
    recipe, first = out.with_name("out.onnx.recipe.toml"), out.read_bytes()
    assert "activation_zeropoint = true" in recipe.read_text()
    kept = out.with_name("kept.toml")
    kept.write_text(recipe.read_text())
    result = call("optimize", net, "-o", out, "--calib", calib, "--recipe", kept)
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes() == first
