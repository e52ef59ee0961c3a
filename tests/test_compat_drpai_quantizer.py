"""Each command line of DRP-AI Quantizer's manual, and the public ones, on this project's models.

Nothing of them is changed but the names of modules and files, and the manual's misprints: the yen
sign that stands for a backslash, blanks that lack before it, comments behind it.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_model, normal, value
from dropin import IMAGES, MEAN, STD, content, direct, furnish
from onnx import helper

import onnxdrp
from onnxdrp import api, demo
from onnxdrp.compat.drpai_quantizer import cli_interface, inference, interface, quantize_interface
from onnxdrp.compat.drpai_quantizer.readers import recorded_reader
from onnxdrp.compat.drpai_quantizer.values import join_lists, numbers_of
from onnxdrp.datareaders import RecordedReader, SyntheticReader
from onnxdrp.errors import DataError, OptionError, PassError
from onnxdrp.model import Model
from onnxdrp.targets import load_target

ROOT = Path(__file__).parents[1]


def words(listing):
    """The arguments of a command line as the manual prints it."""
    lines = [line.partition(" #")[0].rstrip().removesuffix("¥") for line in listing.splitlines()]
    text = " ".join(lines)
    start = text.index("--")
    return shlex.split(text[start:])


def call(*arguments):
    return cli_interface.main([str(a) for a in arguments])


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """What is tested here are words, not what passes gain that take ten times as long."""
    monkeypatch.setattr(api, "ROUNDING", "nearest")
    monkeypatch.setattr(api, "BIAS_CORRECTION", "none")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The manual's folder: models and ./calibrate_images; it is the working directory."""
    furnish(tmp_path, "calibrate_images")
    (tmp_path / "model.onnx").symlink_to(ROOT / "models" / "modA.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------------- the manual's listings

NCHW = """\
python3 -m drpai_quantizer.cli_interface ¥ # Invoke the cli_interface module
--input_model_path modA_resnet18.onnx¥ # Input: FLOAT format ONNX file
--output_model_path modA_resnet18_q.onnx ¥ # Output: INT8 ONNX file
--calibrate_dataset ./calibrate_images ¥ # Dataset for quantization calibration
--datareader_path ./nchw_datareader.py ¥ # Dynamic import the calibration datareader
--norm_mean [0.4914, 0.4822, 0.4465] ¥ # The normalize mean value
--norm_std [0.2023, 0.1994, 0.2010] # The normalize standard deviation
"""
NHWC = """\
python3 -m drpai_quantizer.cli_interface ¥ # Invoke the cli_interface module
--input_model_path modB_resnet18.onnx¥ # Input: FLOAT format ONNX file
--output_model_path modB_resnet18_q.onnx ¥ # Output: INT8 ONNX file
--calibrate_dataset ./calibrate_images ¥ # Dataset for quantization calibration
--datareader_path ./nhwc_datareader.py ¥ # Dynamic import the calibration datareader
--norm_mean [0, 0, 0] ¥ # The normalize mean value
--norm_std [1, 1, 1] # The normalize standard deviation
"""
ADVANCED = """\
python3 -m drpai_quantizer.cli_interface ¥           # Invoke the cli_interface module
--input_model_path modA_resnet18.onnx¥      # Input: FLOAT format ONNX file
--output_model_path modA_resnet18_q.onnx ¥    # Output: INT8 ONNX file
--calibrate_dataset ./calibrate_images¥     # Dataset for quantization calibration
--datareader_path ./nchw_datareader.py ¥ # Dynamic import the calibration datareader
--norm_mean [0.4914,0.4822,0.4465] ¥                          # The normalize mean value
--norm_std [0.2023,0.1994,0.2010] ¥                  # The normalize standard deviation
exclude_act_func_dir act.csv     # Use the csv file to labeling nodes that do not need to be ...
"""
YOLOV4 = """\
python3 -m drpai_quantizer.cli_interface ¥
  --input_model_path model.onnx ¥
  --output_model_path model_q.onnx ¥
  --calibrate_dataset ./calibrate_images ¥
  --exclude_operate exp,add,log,tanh
"""
MOBILENET = """\
python3 -m drpai_quantizer.cli_interface ¥
    --input_model_path model.onnx ¥
    --output_model_path model_q.onnx ¥
    --calibrate_dataset ./calibrate_images ¥
    --exclude_operate clip
"""
MISH = "Mish\nSoftplus, Tanh, ^Mul\nExp, Add, Log, Tanh, ^Mul\n"


def test_the_pytorch_listing_gives_what_onnxdrp_quantize_gives(capsys):
    assert call(*words(NCHW)) == 0
    assert content("modA_resnet18_q.onnx") == direct()
    printed = capsys.readouterr()
    assert "modA_resnet18_q.onnx" in printed.out
    assert "nchw_datareader.py: no such file; onnxdrp's reader" in printed.err


def test_the_keras_listing_gives_what_onnxdrp_quantize_gives():
    assert call(*words(NHWC)) == 0
    want = direct("modB", mean=[0, 0, 0], std=[1, 1, 1])
    assert content("modB_resnet18_q.onnx") == want


def test_the_listing_of_section_3_5_runs_and_says_what_the_model_lacks(capsys):
    Path("act.csv").write_text(MISH)
    assert call(*words(ADVANCED)) == 0
    assert content("modA_resnet18_q.onnx") == direct()
    errors = capsys.readouterr().err
    assert errors.count("act.csv, line") == 3


def test_patterns_of_a_csv_stay_float_and_a_folder_of_them_does_the_same():
    Path("act.csv").write_text("Add, ^Relu\n")
    Path("exclude_operator").mkdir()
    Path("exclude_operator/exclude_operator.csv").write_text("Add,^Relu\n")
    assert call(*words(ADVANCED)) == 0
    one = content("modA_resnet18_q.onnx")
    images = onnxdrp.NCHWDataReader("calibrate_images", MEAN, STD, "modA_resnet18.onnx")
    assert one == direct("modA", images, exclude_patterns="act.csv")
    assert one != direct()
    at = words(ADVANCED).index("exclude_act_func_dir")
    line = [*words(ADVANCED)[:at], "--opts", "exclude_act_func_dir", "./exclude_operator"]
    assert call(*line) == 0
    assert content("modA_resnet18_q.onnx") == one


@pytest.mark.parametrize("option", ["--exclude_operate", "--operate_to_exclude", "-ex"])
def test_the_listing_for_yolov4_excludes_operators_in_lower_case(capsys, option):
    line = [option if word == "--exclude_operate" else word for word in words(YOLOV4)]
    assert call(*line) == 0
    got = content("model_q.onnx")
    assert got == direct(mean=0, std=1, exclude=["Add"])
    assert got != direct(mean=0, std=1)
    errors = capsys.readouterr().err.lower()
    assert all(f"op:{name}'" in errors for name in ("exp", "log", "tanh"))
    assert "op:add" not in errors
    assert "--norm_mean is not given: 0 is taken" in errors


def test_the_other_form_of_mish_in_section_5_2_1_is_excluded_as_well(capsys):
    line = [w.replace("exp,add,log,tanh", "softplus,tanh") for w in words(YOLOV4)]
    assert "softplus,tanh" in line
    assert call(*line) == 0
    assert content("model_q.onnx") == direct(mean=0, std=1)
    errors = capsys.readouterr().err
    assert "op:softplus" in errors
    assert "op:tanh" in errors


def test_the_listing_for_mobilenet_runs_on_a_model_without_clip(capsys):
    assert call(*words(MOBILENET)) == 0
    assert content("model_q.onnx") == direct(mean=0, std=1)
    assert "op:clip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listing", "model"),
    [
        ("python3 inference_resnet.py --nchw modA_resnet18_q.onnx", "modA"),
        ("python3 inference_resnet.py --nhwc modB_resnet18_q.onnx", "modB"),
    ],
)
def test_the_listings_of_chapter_4_measure_the_model(capsys, listing, model):
    flags = ["--norm_mean", str(list(demo.MEAN)), "--norm_std", str(list(demo.STD))]
    quantized = f"{model}_resnet18_q.onnx"
    assert call("--input_model_path", f"{model}_resnet18.onnx", "--output_model_path", quantized,
                *flags) == 0  # fmt: skip
    capsys.readouterr()
    assert inference.main([*words(listing), "--limit", "200"]) == 0
    printed = capsys.readouterr().out
    assert quantized in printed
    assert "on 200 samples" in printed
    assert float(printed.partition("top-1 ")[2].split()[0]) > 85


def test_inference_takes_labelled_data_of_the_users(capsys):
    names = sorted(p.name for p in Path("calibrate_images").iterdir())
    Path("labels.csv").write_text("file,class_index\n" + "".join(f"{n},1\n" for n in names))
    line = ["--nchw", "modA_resnet18.onnx", "--data", "calibrate_images"]
    assert inference.main([*line, "--labels", "labels.csv", "--norm_mean", "[0.2, 0.2, 0.2]"]) == 0
    assert f"on {IMAGES} samples" in capsys.readouterr().out
    assert inference.main(["modA_resnet18.onnx", "--labels", "labels.csv"]) == 1
    assert "--labels belongs to --data" in capsys.readouterr().err


def test_inference_takes_the_normalization_that_section_4_2_prints(capsys):
    printed = "transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),"
    mean, std = re.findall(r"\([\d., ]+\)", printed)
    flags = ["--norm_mean", *mean.split(), "--norm_std", *std.split(), "--limit", "100"]
    assert inference.main(["--nchw", "modA_resnet18.onnx", *flags]) == 0
    given = {"mean": MEAN, "std": STD, "limit": 100}
    data = onnxdrp.open_reader(demo.TEST, Model.load("modA_resnet18.onnx"), **given)
    assert str(onnxdrp.evaluate("modA_resnet18.onnx", data)) in capsys.readouterr().out


def test_inference_refuses_a_flag_that_the_model_contradicts(capsys):
    assert inference.main(["--nhwc", "modA_resnet18.onnx"]) == 1
    assert "(NCHW); --nhwc does not fit it" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        inference.main(["--nhwc", "--nchw", "modA_resnet18.onnx"])


# ---------------------------------------------------------------------------- public command lines

NOTA = """\
python3 -m drpai_quantizer.cli_interface
    --input_model_path modA_resnet18.onnx
    --output_model_path modA_resnet18_INT8.onnx
    --norm_mean [0.0,0.0,0.0]
    --norm_std [1.0,1.0,1.0]
    --calibrate_method MinMax
    --calibrate_dataset ./calibrate_images
    --datareader_path nchw_datareader_yolox_s.py
"""
SCRIPT = """\
from onnxdrp.compat.drpai_quantizer import NCHWDataReader as Base

class NCHWDataReader(Base):
    size_limit = 3
"""
TVM = """\
python3 -m drpai_quantizer.cli_interface --calibrate_method MinMax
        --input_model_path model_dir
        --output_model_path out.onnx --tvm
        QUANT_OPTION
        --opts exclude_act_func_dir ./exclude_operator
"""
TVM_EARLIER = TVM.replace("--opts exclude", "exclude")
SHIPPED = "Add,Div\nHardSigmoid\nSoftplus,Tanh\nSoftplus\nTanh\nSelu\n"


def test_a_wrapper_passes_a_reader_script_with_a_name_of_its_own():
    Path("nchw_datareader_yolox_s.py").write_text(SCRIPT)
    assert call(*words(NOTA)) == 0
    reader = onnxdrp.NCHWDataReader("calibrate_images", 0, 1, "modA_resnet18.onnx")
    reader = reader.pick(np.arange(3))
    assert content("modA_resnet18_INT8.onnx") == direct("modA", reader)


@pytest.fixture
def recorded(place):
    """What the compile script hands over: model.onnx, input/, output/, and its CSV folder."""
    folder = place / "model_dir"
    (folder / "input").mkdir(parents=True)
    (folder / "output").mkdir()
    (folder / "model.onnx").symlink_to(ROOT / "models" / "modA.onnx")
    (folder / "pre_optimize_model.onnx").symlink_to(ROOT / "models" / "modA.onnx")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        sample = rng.normal(size=(1, 3, 32, 32)).astype(np.float32)
        np.save(folder / "input" / f"{i:03d}.npy", sample)
        np.save(folder / "output" / f"{i:03d}.npy", np.full((1, 10), np.nan, np.float32))
    (place / "exclude_operator").mkdir()
    (place / "exclude_operator" / "exclude_operator.csv").write_text(SHIPPED)
    return folder


def run_tvm(listing, option):
    return call(*words(listing.replace("QUANT_OPTION", option)))


@pytest.mark.parametrize("listing", [TVM, TVM_EARLIER], ids=["--opts", "pairs"])
@pytest.mark.parametrize(
    ("option", "stands_for"),
    [
        ("", {}),
        ("--calibrate_method Percentile --opts percentile_value 99.99",
         {"method": "percentile", "percentile": 99.99}),
        ("-az", {"target": "zero-point"}),
    ],
)  # fmt: skip
def test_the_compile_scripts_of_tvm_run(recorded, listing, option, stands_for):
    if stands_for:
        target = replace(load_target("drp-ai3"), activation_symmetric=option != "-az")
        stands_for = {**stands_for, "target": target}
    assert run_tvm(listing, option) == 0
    data = RecordedReader(recorded / "input", recorded / "model.onnx")
    assert content("out.onnx") == direct("modA", data, **stands_for)


def test_npz_and_raw_float32_give_what_npy_gives(recorded):
    assert run_tvm(TVM, "") == 0
    want = content("out.onnx")
    files = sorted((recorded / "input").iterdir())
    samples = [np.load(file) for file in files]
    for file, sample in zip(files, samples, strict=True):
        file.unlink()
        np.savez(file.with_suffix(".npz"), sample)
    assert run_tvm(TVM, "") == 0
    assert content("out.onnx") == want
    for file in files:
        file.with_suffix(".npz").unlink()
    samples[0].tofile(recorded / "input" / "0.bin")
    np.concatenate(samples[1:]).tofile(recorded / "input" / "1.bin")
    assert run_tvm(TVM, "") == 0
    assert content("out.onnx") == want


def test_recorded_tensors_may_lie_elsewhere_than_the_model(recorded, capsys):
    assert run_tvm(TVM, "") == 0
    want = content("out.onnx")
    line = ["--input_model_path", "model.onnx", "--output_model_path", "other.onnx", "--tvm"]
    for data in ("model_dir", "model_dir/input"):
        assert call(*line, "--calibrate_dataset", data, "--norm_mean", "[0,0,0]") == 0
        assert content("other.onnx") == want
    assert "--norm_mean is not used" in capsys.readouterr().err


def test_raw_tensors_of_several_inputs_lie_in_folders_of_their_names(tmp_path):
    add = helper.make_node("Add", ["a", "b"], ["y"])
    shape = ["N", 2, 3]
    path = tmp_path / "two.onnx"
    proto = make_model([add], [value("a", shape), value("b", shape)], [value("y", shape)], [])
    path.write_bytes(proto.SerializeToString())
    kept = {name: normal([4, 2, 3], i) for i, name in enumerate("ab")}
    for name, array in kept.items():
        (tmp_path / "rec" / name).mkdir(parents=True)
        for half in (0, 2):
            array[half : half + 2].tofile(tmp_path / "rec" / name / f"{half}.bin")
    reader = recorded_reader(tmp_path / "rec", path)
    assert reader.samples == 4
    for name, array in kept.items():
        np.testing.assert_array_equal(np.concatenate([b[name] for b in reader]), array)
    (tmp_path / "rec" / "b" / "2.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match=r"2\.bin: has 3 bytes.*24 bytes a sample"):
        recorded_reader(tmp_path / "rec", path)
    (tmp_path / "rec" / "b" / "2.bin").unlink()
    with pytest.raises(DataError, match="other numbers of samples"):
        recorded_reader(tmp_path / "rec", path)


# ------------------------------------------------------------------------------- every other option


def small(*more, calibrate=True):
    data = ["--calibrate_dataset", "calibrate_images"] if calibrate else []
    line = ["--input_model_path", "modA_resnet18.onnx", "--output_model_path", "q.onnx", *data]
    return call(*line, "--norm_mean", str(MEAN), "--norm_std", str(STD), *more)


@pytest.mark.parametrize(
    ("more", "stands_for"),
    [
        (["-cm", "Entropy"], {"method": "entropy"}),
        (["--calibrate_method", "minmax"], {}),
        (["--calib", "MinMax"], None),
        (["--calibrate_m", "MinMax"], {}),
        (["-exn", "/layer1/conv, node"], {}),
        (["-ppm", "default"], {}),
        (["per_channel", "True"], {"per_channel": True}),
        (["optimize_model", "True"], {}),
        (["optimize_model", "False", "exclude_tail", "none"], {"exclude_tail": "none"}),
        (["activation_type", "QInt8", "reduce_range", "False"], {}),
        (["--skip_preprocess"], {"skip_preprocess": True}),
        (["-skip_preprocess"], {"skip_preprocess": True}),
        (["--skip_preprocess", "optimize_model", "True"], {}),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_an_option_stands_for_the_same_of_onnxdrp_quantize(more, stands_for):
    if stands_for is None:  # an abbreviation that two options have
        with pytest.raises(SystemExit, match="2"):
            small(*more)
        return
    assert small(*more) == 0
    assert content("q.onnx") == direct(**stands_for)


@pytest.mark.parametrize(
    "example",
    [
        "--operate_to_exclude Softplus,Tanh",
        "--node_to_exclude Concat_264,Concat_285",
        "--preprocess_mode default",
        "--preprocessed_model_output",
        "--calibrate_method Entropy",
    ],
)
def test_each_example_in_table_3_2_2_1_runs_as_it_is_printed(example, capsys):
    """Those of the norms, --skip_preprocess, --tvm and optimize_model are in other tests here."""
    assert small(*example.split()) == 0
    assert content("q.onnx") == direct(**{"method": "entropy"} if "Entropy" in example else {})
    assert Path("q_preprocessed.onnx").exists() == ("model_output" in example)
    lacking = [word for word in ("Softplus", "Tanh", "Concat_264", "Concat_285") if word in example]
    errors = capsys.readouterr().err
    assert all(word in errors for word in lacking)


@pytest.mark.parametrize(
    "given",
    [
        "[0.4914,0.4822,0.4465]", "[0.4914, 0.4822, 0.4465]", "[ 0.4914 , 0.4822 , 0.4465 ]",
        "0.4914,0.4822,0.4465", "0.4914, 0.4822, 0.4465", "0.4914 ,0.4822 ,0.4465",
        "(0.4914, 0.4822, 0.4465)",
    ],
)  # fmt: skip
def test_a_list_may_be_written_with_blanks_or_without_and_in_brackets_or_not(given):
    line = ["--norm_mean", *given.split(), "--norm_std", "[1,", "1,", "1]", "per_channel", "True"]
    mean, std, *rest = join_lists(line)[1::2]
    assert numbers_of("--norm_mean", mean) == MEAN
    assert (std, rest) == ("[1, 1, 1]", ["True"])


def test_operators_and_nodes_may_be_a_list_in_brackets_with_quotes():
    node = onnxdrp.preprocess("modA_resnet18.onnx").model.nodes("Conv")[1].name
    assert small("-ex", "['Add',", "'Tanh']", "-exn", f"[{node},", "Concat_1]") == 0
    assert content("q.onnx") == direct(exclude=["Add", node])


def test_nodes_are_excluded_by_name_and_what_is_missing_is_only_warned_about(capsys):
    model = onnxdrp.preprocess("modA_resnet18.onnx").model
    first, second = [n.name for n in model.nodes("Add")][:2]
    for names in (f"{first},{second},Concat_264", f"[{first}, {second}, Add]"):
        assert small("--node_to_exclude", *names.split()) == 0
        assert content("q.onnx") == direct(exclude=[first, second])
    errors = capsys.readouterr().err
    assert "no node or operator matches 'Concat_264'" in errors
    assert "node_to_exclude Add: is an operator" in errors


def test_the_preprocessed_model_is_kept_beside_the_output_or_where_it_is_named(capsys):
    want = content(onnxdrp.preprocess("modA_resnet18.onnx", target="drp-ai3").model)
    for more, kept in (
        (["-pmo"], "q_preprocessed.onnx"),
        (["--preprocessed_model_output", "pre.onnx"], "pre.onnx"),
        (["-pmo", "per_channel", "False"], "q_preprocessed.onnx"),
        (["per_channel", "False", "-pmo", "optimize_model", "True"], "q_preprocessed.onnx"),
    ):
        assert small(*more) == 0
        assert content(kept) == want
        Path(kept).unlink()
    assert small("-pmo", "--skip_preprocess") == 0
    assert not Path("q_preprocessed.onnx").exists()
    assert "--skip_preprocess leaves nothing to keep" in capsys.readouterr().err


def test_the_default_data_lie_in_calibrate_images():
    assert small(calibrate=False) == 0
    assert content("q.onnx") == direct()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["-cm", "Distribution"], "calibrate_method 'Distribution': there are MinMax, Entropy"),
        (["percentil_value", "99"], "is 'percentile_value' meant?"),
        (["percentile_value", "99"], "percentile belongs to the method percentile"),
        (["activation_zeropoint", "perhaps"], "give True or False"),
        (["activation_type", "QUInt8"], "the target drp-ai3 has QInt8"),
        (["exclude_act_func_dir"], "'exclude_act_func_dir' stands alone"),
        (["exclude_act_func_dir", "none.csv"], "none.csv"),
        (["--datareader_path", "mine.py"], "mine.py: no such reader file"),
        (["--datareader_path", "mine.py", "--tvm"], "--datareader_path does not go with --tvm"),
        (["--norm_mean", "a,b,c"], "--norm_mean 'a,b,c': give numbers as"),
        (["--norm_mean", "[0.5,0.5]"], "mean has 2 values but input 'input' has 3 channels"),
        (["--output_model_path", "modA_resnet18.onnx"], "is the input"),
        (["--output_model_path", "no/q.onnx"], "does not exist"),
        (["--calibrate_dataset", "no"], "no such folder"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_cannot_be_honoured_is_an_error_of_one_line(capsys, more, says):
    assert small(*more) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if not line.startswith("warning: ")]
    assert len(errors) == 1, lines
    assert errors[0].startswith("Error: ")
    assert says in errors[0]
    assert "defect" not in errors[0]
    assert not Path("q.onnx").exists()


@pytest.mark.parametrize("more", [["--nonsense"], ["-ppm", "other"], ["--norm_mean", "[0.1,", "2"]])
def test_wrong_usage_ends_with_2(more):
    with pytest.raises(SystemExit, match="2"):
        small(*more)


def test_a_key_that_is_given_twice_is_warned_about_and_the_last_counts(capsys):
    assert small("--opts", "per_channel", "True", "-az", "per_channel", "False") == 0
    assert "per_channel is given twice: False counts" in capsys.readouterr().err


def test_lists_are_joined_with_blanks_or_without():
    line = "--norm_mean [0.1, 0.2, 0.3] -ex a, b --tvm --norm_std=[1, 2] key value"
    want = ["--norm_mean", "[0.1, 0.2, 0.3]", "-ex", "a, b", "--tvm", "--norm_std=[1, 2]"]
    assert join_lists(line.split()) == [*want, "key", "value"]
    with pytest.raises(OptionError, match="the list is not closed"):
        join_lists(["--norm_mean", "[0.1,", "0.2"])


def test_a_failure_of_preprocessing_points_at_skip_preprocess(capsys, monkeypatch):
    def fail(*_, **__):
        raise PassError("the pass 'clean' failed")

    monkeypatch.setattr(interface.api, "preprocess", fail)
    assert small() == 1
    error = capsys.readouterr().err
    assert "Error: Pre-processing before quantization was Failed" in error
    assert "try --skip_preprocess" in error


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("x\ny"), 1, "Error: x (ZeroDivisionError, a defect of onnxdrp; --debug"),
    ],
    ids=["interrupt", "defect"],
)
def test_no_traceback_is_shown_unless_debug_asks_for_it(capsys, monkeypatch, raised, code, says):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(interface, "quantize", fail)
    assert small() == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(says)
    if code == 1:
        with pytest.raises(ZeroDivisionError):
            small("--debug")


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "onnxdrp.compat.drpai_quantizer.cli_interface", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    for option in ("--calibrate_dataset", "-cm", "-exn", "--tvm"):
        assert option in run.stdout
    assert "--opts" not in run.stdout


def test_random_data_are_data_of_any_reader():
    model = Model.load("modA_resnet18.onnx")
    reader = SyntheticReader(model, samples=3)
    quantize_interface("modA_resnet18.onnx", "q.onnx", reader)
    want = direct("modA", reader, skip_preprocess=True)
    assert content("q.onnx") == want
