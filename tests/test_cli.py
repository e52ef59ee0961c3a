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

from onnxdrp.cli import cli
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
    assert [p["name"] for p in report["passes"]][-3:] == ["quantize-weights", "insert-qdq", "check"]
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
