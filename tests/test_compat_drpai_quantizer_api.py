"""The Python API of DRP-AI Quantizer: its listings, parameters, defaults, users' own readers."""

import inspect
import logging
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import onnxruntime.quantization
import pytest
from builders import make_model, outputs_of, value
from dropin import IMAGES, MEAN, STD, content, direct, furnish
from onnx import helper
from PIL import Image

import onnxdrp
from onnxdrp import api
from onnxdrp.compat import drpai_quantizer
from onnxdrp.compat.drpai_quantizer import (
    CalibrationDataReader,
    CalibrationMethod,
    NCHWDataReader,
    NHWCDataReader,
    cli_interface,
    do_preprocess,
    quantize_interface,
)
from onnxdrp.datareaders import DataReader, check_reader
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model
from onnxdrp.passes import infer_shapes

FOLDER = "./calibration_data/calibrate_images"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """What is tested here are words, not what passes gain that take ten times as long."""
    monkeypatch.setattr(api, "ROUNDING", "nearest")
    monkeypatch.setattr(api, "BIAS_CORRECTION", "none")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The manual's folder: both models and their data; it is the working directory."""
    furnish(tmp_path, FOLDER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plain(images=IMAGES):
    """The model that onnxdrp gives, calibrated on the first images."""
    reader = onnxdrp.NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    reader = reader.pick(np.arange(images))
    given = {"target": "drp-ai3", "method": "minmax", "data": reader}
    return onnxdrp.quantize("modA_resnet18.onnx", reader, **given).model


def run(listing):
    """Run Python as the manual prints it, where ¥ stands for a backslash."""
    names = {name: getattr(drpai_quantizer, name) for name in drpai_quantizer.__all__}
    exec(compile(listing.replace("¥", "\\"), "listing", "exec"), names)
    return names


# ---------------------------------------------------------------------------- the manual's listings

PYTORCH = """\
nchw_datareader=NCHWDataReader('./calibration_data/calibrate_images', ¥
                                [0.4914, 0.4822, 0.4465], ¥
                                [0.2023, 0.1994, 0.2010], ¥
                                './modA_resnet18.onnx')
do_preprocess(input_model_path='./modA_resnet18.onnx', ¥
              preprocessed_model_output='preprocessed_modA_model.onnx', ¥
              preprocess_mode='default')
quantize_interface(input_model_path='preprocessed_modA_model.onnx', ¥
                  output_model_path='modA_resnet18_q.onnx', ¥
                  calibrate_method=CalibrationMethod.MinMax, ¥
                  datareader=nchw_datareader)
"""
KERAS = """\
nhwc_datareader=NHWCDataReader('./calibration_data/calibrate_images', ¥
                                [0, 0, 0], ¥
                                [1, 1, 1], ¥
                                './modB_resnet18.onnx')
do_preprocess(input_model_path='./modB_resnet18.onnx', ¥
              preprocessed_model_output='preprocessed_modB_model.onnx', ¥
              preprocess_mode='default')
quantize_interface(input_model_path='preprocessed_modB_model.onnx', ¥
                  output_model_path='modB_resnet18_q.onnx', ¥
                  calibrate_method=CalibrationMethod.MinMax, ¥
                  datareader=nhwc_datareader)
"""
ADVANCED = PYTORCH.replace(
    "datareader=nchw_datareader)",
    "datareader=nchw_datareader, ¥\n                  exclude_act_func_dir='act.csv')",
)
POSTPROCESSING = """\
postprocessing_nodes = [
"Reshape_261", "Reshape_280", "Reshape_299", "Reshape_318", "Concat_277", "Concat_296",
 "Concat_315", "Concat_334", "Reshape_278", "Reshape_297", "Reshape_316", "Reshape_335",
 "Concat_336", "Split_264", "Split_283", "Split_302", "Split_321", "Mul_266", "Mul_272",
 "Mul_285", "Mul_291", "Mul_304",
 "Mul_310", "Mul_323", "Mul_329", "Add_268", "Pow_274", "Add_287", "Pow_293", "Add_306", "Pow_312",
 "Add_325", "Pow_331", "Mul_270", "Mul_276", "Mul_289", "Mul_295", "Mul_308", "Mul_314", "Mul_327",
 "Mul_333", "Transpose_262", "Transpose_281", "Transpose_300", "Transpose_319", "Sigmoid_263",
 "Sigmoid_282", "Sigmoid_301", "Sigmoid_320", ADDS]
postprocessing_nodes_exclude = ",".join(postprocessing_nodes)

nchw_datareader = NCHWDataReader('./calibration_data/calibrate_images', ¥
                                [0.4914, 0.4822, 0.4465], ¥
                                [0.2023, 0.1994, 0.2010], ¥
                                './modA_resnet18.onnx')

do_preprocess(input_model_path = './modA_resnet18.onnx',¥
              preprocessed_model_output = 'preprocessed_modA_model.onnx',¥
              preprocess_mode = 'default')

quantize_interface(input_model_path = 'preprocessed_modA_model.onnx', ¥
                  output_model_path = 'modA_resnet18_q.onnx', ¥
                  calibrate_method = CalibrationMethod.MinMax, ¥
                  datareader = nchw_datareader,
                  node_to_exclude = postprocessing_nodes_exclude)
"""


def test_the_pytorch_listing_gives_what_onnxdrp_quantize_gives():
    run(PYTORCH)
    assert content("modA_resnet18_q.onnx") == direct()


def test_the_keras_listing_gives_what_onnxdrp_quantize_gives():
    run(KERAS)
    assert content("modB_resnet18_q.onnx") == direct("modB", mean=0, std=1)


def test_the_listing_of_section_3_5_takes_a_csv_of_activation_functions():
    Path("act.csv").write_text("Add, ^Relu\n")
    run(ADVANCED)
    reader = onnxdrp.NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    got = content("modA_resnet18_q.onnx")
    assert got == direct("modA", reader, exclude_patterns="act.csv")
    assert got != direct()


def test_the_listing_of_section_5_2_2_excludes_nodes_and_warns_of_those_it_has_not(
    caplog,
):
    adds = [n.name for n in onnxdrp.preprocess("modA_resnet18.onnx").model.nodes("Add")][:2]
    run(POSTPROCESSING.replace("ADDS", ", ".join(map(repr, adds))))
    got = content("modA_resnet18_q.onnx")
    assert got == direct(exclude=adds)
    assert got != direct()
    listed = re.findall(r'"(\w+_\d+)"', POSTPROCESSING)
    assert len(listed) == 49
    assert all(f"'{name}'" in caplog.text for name in listed)


# figures 6.1 and 3.5, with the indentation of the latter's empty list mended
STANDALONE = """
import os
import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image


class NCHWDataReader(CalibrationDataReader):
    def __init__(self, calibration_image_folder, norm_mean, norm_std, augmented_model_path):
        self.augmented_model_path = augmented_model_path
        self.preprocess_flag = True
        self.enum_data_dicts = []
        self.datasize = 0
        self.size_limit = 0
        self.norm_mean = self.check_list_data("norm_mean", norm_mean)
        self.norm_std = self.check_list_data("norm_std", norm_std)
        folder = calibration_image_folder
        self.image_names = [os.path.join(folder, n) for n in sorted(os.listdir(folder))]

    def check_list_data(self, name, values):
        if not isinstance(values, list) or len(values) != 3:
            raise ValueError(f"{name} is not a list of three")
        return values

    def get_next(self):
        if self.preprocess_flag:
            self.preprocess_flag = False
            session = onnxruntime.InferenceSession(
                self.augmented_model_path, providers=["CPUExecutionProvider"]
            )
            (_, _, height, width) = session.get_inputs()[0].shape
            nchw = self.preprocess_func(height, width, self.size_limit)
            name = session.get_inputs()[0].name
            self.datasize = len(nchw)
            self.enum_data_dicts = iter([{name: data} for data in nchw])
        return next(self.enum_data_dicts, None)
"""
PREPROCESS = """
    def preprocess_func(self, height, width, size_limit=0):
        if size_limit > 0 and len(self.image_names) >= size_limit:
            batch_filenames = [self.image_names[i] for i in range(size_limit)]
        else:
            batch_filenames = self.image_names
        unconcatenated_batch_data = []

        for image_filepath in batch_filenames:
            pillow_img = Image.new("RGB", (width, height))
            pillow_img.paste(Image.open(image_filepath).resize((width, height)))
            input_data = np.float32(pillow_img) / 255
            input_data = np.float32(input_data)
            if self.norm_mean is not None:
                input_data = input_data - self.norm_mean
            if self.norm_std is not None:
                input_data = input_data / self.norm_std
            input_data = input_data.astype(np.float32)
            nhwc_data = np.expand_dims(input_data, axis=0)
            nchw_data = nhwc_data.transpose(0, 3, 1, 2)
            unconcatenated_batch_data.append(nchw_data)
        batch_data = np.concatenate(np.expand_dims(unconcatenated_batch_data, axis=0), axis=0)
        return batch_data
"""
FIGURE_6_1 = """
    def __init__(self, calibration_image_folder, norm_mean, norm_std, augmented_model_path):
        self.augmented_model_path = augmented_model_path
        self.preprocess_flag = True
        self.enum_data_dicts = []
        self.datasize = 0
        self.size_limit = 3
        self.norm_mean = self.check_list_data("norm_mean", norm_mean)
        self.norm_std = self.check_list_data("norm_std", norm_std)
"""
DERIVED = '''
import numpy as np
from PIL import Image
from onnxdrp.compat.drpai_quantizer import NCHWDataReader as Base


class NCHWDataReader(Base):
    """The user's."""
'''


def command(script, *more):
    Path("nchw_datareader.py").write_text(script)
    return cli_interface.main([
        "--input_model_path", "modA_resnet18.onnx", "--output_model_path", "q.onnx",
        "--calibrate_dataset", FOLDER, "--datareader_path", "./nchw_datareader.py",
        "--norm_mean", str(MEAN), "--norm_std", str(STD), *more,
    ])  # fmt: skip


def nearly(got, want):
    """The same graph, and parameters but for rounding."""
    one, other = Model.load(got), want
    assert content(one)[0] == content(other)[0]
    assert list(one.weights()) == list(other.weights())
    scales = [name for name in one.weights() if name.endswith("_scale")]
    assert len(scales) > 20
    for name in scales:
        np.testing.assert_allclose(one.weight(name), other.weight(name), rtol=1e-5)


@pytest.mark.parametrize("images", [IMAGES, 3])
def test_the_reader_that_the_manual_prints_runs_as_it_is(images):
    script = STANDALONE + PREPROCESS
    assert command(script.replace("size_limit = 0", f"size_limit = {images % IMAGES}")) == 0
    nearly("q.onnx", plain(images))


def test_a_reader_derived_from_ours_may_have_the_manuals_preprocess_func():
    assert command(DERIVED + PREPROCESS) == 0
    nearly("q.onnx", plain())


def test_a_reader_derived_from_ours_may_have_the_manuals_constructor_and_size_limit():
    assert command(DERIVED + FIGURE_6_1) == 0
    assert content("q.onnx") == content(plain(3))


def test_a_preprocess_func_of_the_users_is_what_calibrates():
    func = """
    def preprocess_func(self, height, width, size_limit=0):
        assert (height, width, size_limit) == (32, 32, 0)
        ours = super().preprocess_func(height, width, size_limit)
        assert ours.shape == (4, 1, 3, 32, 32)
        return [2 * sample[0] for sample in ours]
"""
    assert command(DERIVED + func) == 0
    reader = onnxdrp.NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    doubled = np.concatenate([2 * batch["input"] for batch in reader])
    assert content("q.onnx") == direct("modA", doubled)
    assert content("q.onnx") != direct()


def test_a_get_next_of_the_users_is_read():
    get_next = """
    def get_next(self):
        if self.preprocess_flag:
            self.preprocess_flag = False
            self.enum_data_dicts = iter(list(self.batches()))
        return next(self.enum_data_dicts, None)
"""
    assert command(DERIVED + get_next) == 0
    assert content("q.onnx") == direct()


def test_of_several_readers_in_a_script_the_one_for_the_models_layout_is_taken():
    both = (
        DERIVED + "\nclass NHWCDataReader(Base):\n    layout = 'NHWC'\n\nclass Third(Base): ...\n"
    )
    assert command(both) == 0
    assert content("q.onnx") == direct()


def test_a_script_that_takes_no_folder_or_norms_gets_none_and_another_the_defaults():
    line = ["--input_model_path", "modA_resnet18.onnx", "--output_model_path", "q.onnx",
            "--datareader_path", "mine.py"]  # fmt: skip
    Path("mine.py").write_text(
        textwrap.dedent("""
        import numpy as np

        class Mine:
            def __init__(self):
                self.left = iter([{"input": np.ones((1, 3, 32, 32), np.float32)}])

            def get_next(self):
                return next(self.left, None)
    """)
    )
    assert cli_interface.main(line) == 0
    ones = np.ones((1, 3, 32, 32), np.float32)
    assert content("q.onnx") == direct("modA", ones)
    Path("mine.py").write_text(STANDALONE + PREPROCESS)
    assert cli_interface.main([*line, "--calibrate_dataset", FOLDER]) == 0
    reader = onnxdrp.NCHWDataReader(FOLDER, 0, 1, "modA_resnet18.onnx")
    given = {"target": "drp-ai3", "method": "minmax", "data": reader}
    nearly("q.onnx", onnxdrp.quantize("modA_resnet18.onnx", reader, **given).model)


def test_an_error_in_a_script_is_one_line_with_file_and_line(capsys):
    assert command(DERIVED + "\n    def preprocess_func(self, *_):\n        return 1 / 0\n") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("Error: ")
    assert "nchw_datareader.py" in error
    assert "division by zero" in error


# ------------------------------------------------------------------------------------------ readers


@pytest.fixture
def odd_images(place):
    """Images that are not of the model's size, one of them grey."""
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (20, 28, 3)), ("b/c.bmp", (50, 40, 3)), ("d.png", (45, 33))):
        path = place / "odd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return "odd"


def printed_reader():
    names = {}
    exec(compile(DERIVED + PREPROCESS, "nchw_datareader.py", "exec"), names)
    return names["NCHWDataReader"]


def test_images_become_what_the_manuals_preprocess_func_makes_of_them(odd_images):
    ours = NCHWDataReader(odd_images, MEAN, STD, "modA_resnet18.onnx")
    theirs = printed_reader()(odd_images, MEAN, STD, "modA_resnet18.onnx")
    want = theirs.preprocess_func(32, 32)
    assert want.std() > 0.5
    got = np.stack([batch["input"] for batch in ours])
    assert got.shape == (3, 1, 3, 32, 32)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_array_equal(ours.preprocess_func(32, 32), got)
    last = NHWCDataReader(odd_images, MEAN, STD, "modB_resnet18.onnx")
    turned = np.stack([batch["input"] for batch in last]).transpose(0, 1, 4, 2, 3)
    np.testing.assert_array_equal(turned, got)


def test_size_limit_may_be_set_at_any_time_and_passes_can_be_repeated():
    reader = NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    assert (reader.size_limit, reader.samples) == (0, IMAGES)
    everything = [b["input"] for b in reader]
    reader.size_limit = 2
    assert reader.samples == 2
    for _ in range(2):
        np.testing.assert_array_equal([b["input"] for b in reader], everything[:2])
    reader.size_limit = 99
    assert len(list(reader)) == reader.samples == IMAGES
    reader.image_names = reader.image_names[1:]
    np.testing.assert_array_equal([b["input"] for b in reader], everything[1:])


def test_a_reader_is_one_of_onnxruntimes_and_of_onnxdrps():
    reader = NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    assert isinstance(reader, CalibrationDataReader)
    assert isinstance(reader, DataReader)
    assert CalibrationMethod is onnxruntime.quantization.CalibrationMethod
    assert reader.get_next()["input"].shape == (1, 3, 32, 32)
    check_reader(reader, Model.load("modA_resnet18.onnx"))


def test_the_parameters_have_the_manuals_names_and_order():
    def parameters(function):
        return list(inspect.signature(function).parameters)

    shared = ["calibration_image_folder", "norm_mean", "norm_std", "augmented_model_path"]
    assert parameters(NCHWDataReader) == parameters(NHWCDataReader) == shared
    assert parameters(do_preprocess) == [
        "input_model_path", "preprocessed_model_output", "do_symbolic_shape_inference",
        "do_onnx_shape_inference", "do_optimization", "skip_preprocess", "verbose",
        "preprocess_mode", "kwargs",
    ]  # fmt: skip
    assert parameters(quantize_interface) == [
        "input_model_path", "output_model_path", "datareader", "calibrate_method",
        "operate_to_exclude", "node_to_exclude", "kwargs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "says"),
    [("[0.1, x]", "norm_mean '[0.1, x]': give numbers"), ([0.1, 0.2], "mean has 2 values")],
)
def test_norms_that_do_not_fit_are_refused_when_the_reader_is_made(values, says):
    with pytest.raises(OptionError) as refused:
        NCHWDataReader(FOLDER, values, STD, "modA_resnet18.onnx")
    assert says in str(refused.value)


def test_norms_may_be_text_or_none_and_the_layout_must_be_the_models():
    text = NCHWDataReader(FOLDER, "[0.4914, 0.4822, 0.4465]", str(STD), "modA_resnet18.onnx")
    assert (text.norm_mean, text.norm_std) == (MEAN, STD)
    plain = NCHWDataReader(FOLDER, None, None, "modA_resnet18.onnx")
    assert plain.norm_mean is None
    assert 0 <= next(iter(plain))["input"].min() < next(iter(plain))["input"].max() <= 1
    with pytest.raises(DataError, match="use NHWCDataReader"):
        NCHWDataReader(FOLDER, MEAN, STD, "modB_resnet18.onnx")


# ------------------------------------------------------------------------------------ do_preprocess


def test_preprocessing_is_that_of_onnxdrp_with_each_switch():
    def preprocessed(**switches):
        do_preprocess("modA_resnet18.onnx", "pre.onnx", **switches)
        return content("pre.onnx")

    full = content(onnxdrp.preprocess("modA_resnet18.onnx").model)
    assert preprocessed() == preprocessed(preprocess_mode=None, verbose=0) == full
    as_it_is = content("modA_resnet18.onnx")
    off = {"do_symbolic_shape_inference": False, "do_onnx_shape_inference": False}
    assert preprocessed(skip_preprocess=True) == as_it_is
    assert preprocessed(do_optimization=False, **off) == as_it_is
    assert preprocessed(do_optimization=False)[0] == as_it_is[0]
    shapes = len(Model.load("pre.onnx").proto().graph.value_info)
    assert shapes > len(Model.load("modA_resnet18.onnx").proto().graph.value_info)
    optimized = preprocessed(**off)
    assert len(optimized[0]) == len(full[0]) < len(as_it_is[0])
    x = {"input": np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)}
    (want,), (got,) = (
        outputs_of(Model.load(f).proto(), x) for f in ("modA_resnet18.onnx", "pre.onnx")
    )
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


FREE = (1, 3, "height", 4)  # of the input


def half_inferred():
    """A Relu, and a MaxPool of a free size: only symbolic inference has an expression for it."""
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["p"], "pool", **pool),
        helper.make_node("Neg", ["p"], ["y"], "out"),
    ]
    return make_model(nodes, [value("x", FREE)], [value("y", [1, 3, None, 2])], opset=12)


@pytest.mark.parametrize(
    ("switches", "known"),
    [
        ({}, "floor(height/2)"),
        ({"do_symbolic_shape_inference": False}, None),
        ({"do_onnx_shape_inference": False}, "floor(height/2)"),
        ({"do_onnx_shape_inference": False, "do_optimization": False}, "floor(height/2)"),
        ({"do_symbolic_shape_inference": False, "do_optimization": False}, None),
    ],
)
def test_each_inference_of_shapes_has_a_switch_that_works(monkeypatch, switches, known):
    inferences = {"symbolic", "onnx"} - {
        kind for kind in ("symbolic", "onnx") if f"do_{kind}_shape_inference" in switches
    }
    calls = set()
    for kind in ("onnx", "symbolic"):
        real = getattr(infer_shapes, f"{kind}_inference")
        monkeypatch.setattr(
            infer_shapes,
            f"{kind}_inference",
            lambda *a, kind=kind, real=real: (calls.add(kind), real(*a))[1],
        )
    Path("free.onnx").write_bytes(half_inferred().SerializeToString())
    do_preprocess("free.onnx", "pre.onnx", **switches)
    assert calls == inferences
    shapes = {v.name: v for v in Model.load("pre.onnx").proto().graph.value_info}
    dims = shapes["p"].type.tensor_type.shape.dim
    assert (dims[2].dim_param or None) == known
    assert dims[3].dim_value == 2


def test_verbose_says_nothing_warnings_or_each_pass(capfd):
    root, kept = logging.getLogger(), logging.getLogger().handlers[:]
    root.handlers[:] = []  # those of pytest
    try:
        said = []
        for verbose in (0, 1, 3):
            do_preprocess("modA_resnet18.onnx", "pre.onnx", verbose=verbose, per_channel=True)
            said.append(capfd.readouterr().err)
    finally:
        root.handlers[:] = kept
    assert said[0] == ""
    assert "per_channel belongs to quantize_interface" in said[1]
    assert "fuse-batchnorm" not in said[1]
    assert "fuse-batchnorm" in said[2]
    assert logging.getLogger("onnxdrp").level == logging.NOTSET


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preprocess_mode": "qat"}, "there is only 'default'"),
        ({"verbos": 1}, "verbos: there is no such option"),
        ({"preprocessed_model_output": "no/pre.onnx"}, "does not exist"),
        ({"preprocessed_model_output": "modA_resnet18.onnx"}, "is the input"),
    ],
)
def test_preprocessing_refuses_what_it_cannot_honour(options, says):
    given = {"preprocessed_model_output": "pre.onnx", **options}
    with pytest.raises((OptionError, ModelError)) as refused:
        do_preprocess("modA_resnet18.onnx", **given)
    assert says in str(refused.value)


# ------------------------------------------------------------------------------- quantize_interface


def test_quantizing_leaves_the_graph_as_it_is_and_takes_all_images():
    reader = NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    assert quantize_interface("modA_resnet18.onnx", "q.onnx", reader) is None
    assert content("q.onnx") == direct(skip_preprocess=True)
    assert Model.load("q.onnx").nodes("BatchNormalization")


@pytest.mark.parametrize(
    ("options", "stands_for"),
    [
        ({"calibrate_method": "MinMax"}, {}),
        ({"calibrate_method": CalibrationMethod.Entropy}, {"method": "entropy"}),
        ({"calibrate_method": "CalibrationMethod.Percentile", "percentile_value": 99.9},
         {"method": "percentile", "percentile": 99.9}),
        ({"operate_to_exclude": "add, Tanh"}, {"exclude": ["Add"]}),
        ({"operate_to_exclude": ["ADD"]}, {"exclude": ["Add"]}),
        ({"per_channel": True, "exclude_tail": "none"},
         {"per_channel": True, "exclude_tail": "none"}),
        ({"optimize_model": True}, {"skip_preprocess": False}),
    ],
)  # fmt: skip
def test_keywords_stand_for_options_of_onnxdrp_quantize(options, stands_for):
    reader = onnxdrp.NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    quantize_interface("modA_resnet18.onnx", "q.onnx", reader, **options)
    want = direct(**{"skip_preprocess": True, **stands_for})
    assert content("q.onnx") == want
    assert (want != direct(skip_preprocess=True)) == bool(stands_for)


def test_zero_points_appear_with_activation_zeropoint_only():
    reader = NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    points = []
    for given in ({}, {"activation_zeropoint": True}):
        quantize_interface("modA_resnet18.onnx", "q.onnx", reader, **given)
        model = Model.load("q.onnx")
        zeros = [model.weight(n) for n in model.weights() if n.endswith("_zero_point")]
        points.append({int(z) for z in zeros if z.ndim == 0 and z.dtype == np.int8})
    assert points[0] == {0}
    assert len(points[1]) > 3


def test_without_a_datareader_the_folder_calibrate_images_is_read(caplog):
    with pytest.raises(DataError, match="calibrate_images"):
        quantize_interface("modB_resnet18.onnx", "q.onnx")
    shutil.copytree(FOLDER, "calibrate_images", symlinks=True)
    quantize_interface("modB_resnet18.onnx", "q.onnx")
    assert "no datareader is given" in caplog.text
    assert content("q.onnx") == direct("modB", mean=0, std=1, skip_preprocess=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"calibrate_method": CalibrationMethod.Distribution}, "MinMax, Entropy and Percentile"),
        ({"percentile": 99}, "percentile: there is no such option; is 'percentile_value' meant?"),
        ({"weight_type": onnxruntime.quantization.QuantType.QUInt8}, "drp-ai3 has QInt8"),
        ({"exclude_tail": "some"}, "give auto or none"),
        ({"output_model_path": "no/q.onnx"}, "does not exist"),
    ],
)
def test_quantizing_refuses_what_it_cannot_honour(options, says):
    reader = NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    given = {"output_model_path": "q.onnx", "datareader": reader, **options}
    with pytest.raises((OptionError, ModelError)) as refused:
        quantize_interface("modA_resnet18.onnx", **given)
    assert says in str(refused.value)


def test_a_detectors_tail_stays_float_unless_told_otherwise_and_that_is_said(caplog, monkeypatch):
    reader = NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    last = Model.load("modA_resnet18.onnx").nodes("Gemm")[0].name
    monkeypatch.setattr("onnxdrp.exclusions.find_tail", lambda model: {last: "a tail"})
    quantize_interface("modA_resnet18.onnx", "q.onnx", reader)
    assert f"1 nodes from {last} to {last}" in caplog.text
    assert content("q.onnx") == direct(exclude=["Gemm"], skip_preprocess=True)
    caplog.clear()
    quantize_interface("modA_resnet18.onnx", "q.onnx", reader, exclude_tail="none")
    assert "stay float" not in caplog.text


def test_the_script_in_the_docs_runs():
    text = Path(__file__).parents[1].joinpath("docs", "migrating.md").read_text(encoding="utf-8")
    script = text.partition("```python\n")[2].partition("```")[0]
    assert command(script.replace("size_limit = 200", "size_limit = 2")) == 0
    images = [Image.open(p).convert("RGB") for p in sorted(Path(FOLDER).iterdir())[:2]]
    raw = np.stack([np.asarray(i, np.float32)[..., ::-1].transpose(2, 0, 1) for i in images])
    assert content("q.onnx") == direct("modA", raw)


def test_what_quantize_static_takes_by_default_is_taken():
    reader = NCHWDataReader(FOLDER, MEAN, STD, "modA_resnet18.onnx")
    reader.size_limit = 1
    types = onnxruntime.quantization
    quantize_interface(
        "modA_resnet18.onnx",
        "q.onnx",
        reader,
        activation_type=types.QuantType.QInt8,
        quant_format=types.QuantFormat.QDQ,
        reduce_range=False,
    )
    assert Path("q.onnx").is_file()
