"""The TensorFlow listings of DRP-AI Extension Pack's manual run with only their import changed.

Figures 3-15 to 3-19 (the parts of 3-14), 3-21, and the API of section 4.3. The listings are read
out of the manual where that is at hand, and left as printed, with these exceptions:

- the data set is a few images;
- line 21 of Figure 3-21 ends the width of a column with a space too many for Python ("{max_len+1}s"
  behind "{name: "), which is meant as "{name:{max_len+1}s}";
- tf2onnx.convert.from_keras does not take Sequential models of Keras 3: the same graph is handed to
  it as a functional one;
- Figures 3-19 and 3-21 name one file in two ways (one-shot_pruned_model.h5, pruned_model.h5).
"""

import re
from pathlib import Path

import numpy as np
import pytest
from keras_nets import QUIET, images, keras
from manual_listings import listing

import onnxdrp
from onnxdrp.compat.drpai_compaction_tool.tensorflow import (
    Pruner,
    get_endstep,
    get_frequency,
    make_pruning_layer_list,
)
from onnxdrp.errors import OptionError
from onnxdrp.keras.pruner import wrappers
from onnxdrp.keras.wrapper import kernel_of
from onnxdrp.model import Model

pytestmark = QUIET
needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the listings import tensorflow"
)

HERE = "onnxdrp.compat.drpai_compaction_tool"
CHANGED = (  # imports, and what is said above
    ("import tensorflow_model_optimization", f"import {HERE}.tensorflow_model_optimization"),
    ("from tensorflow_model_optimization", f"from {HERE}.tensorflow_model_optimization"),
    ("from_keras(model,", "from_keras(tf.keras.Model(model.inputs, model.outputs),"),
    ("{name: {max_len+1}s}", "{name:{max_len+1}s}"),
)


def run(listing, **names):
    """Run a listing where we are; what it has defined."""
    for printed, here in CHANGED:
        listing = listing.replace(printed, here)
    exec(compile(listing, "the manual", "exec"), names)
    return names


def network(code):
    """The definition of the network in a listing."""
    return code[code.index("def NeuralNetwork") : code.index("model = NeuralNetwork()")]


def dense2(path):
    """The matrix of dense2 in a file."""
    model = Model.load(path)
    (weight,) = (w for w in map(model.weight, model.weights()) if w.shape == (512, 512))
    return weight


@needs_tensorflow
@pytest.mark.filterwarnings(
    "ignore:Do not pass an `input_shape`:UserWarning",
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
)
def test_the_listings_of_chapter_3_run(shared, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tf2onnx")
    import tensorflow as tf

    monkeypatch.chdir(tmp_path)
    loads = listing(shared, "3-21")
    x, y = images(160, side=32)
    pictures = np.clip(128 + 40 * x, 0, 255) / 255.0
    data = {"train_images": pictures, "train_labels": y[:, None]}
    settings = {"optimizer": "adam", "loss": "sparse_categorical_crossentropy"}

    trained = run(network(loads), tf=tf)["NeuralNetwork"]()
    trained.compile(**settings)
    trained.fit(pictures, y, batch_size=64, verbose=0)
    trained.save("pretrained_model.h5", include_optimizer=False)

    parts = [listing(shared, figure) for figure in ("3-15", "3-16", "3-17", "3-18", "3-19")]
    options = {"compile_args": settings, "fit_args": {"epochs": 10, "batch_size": 64}}
    names = run("\n".join(parts), **data, **options)
    assert names["pruning_layer_list"] == ["dense2"]
    (wrapper,) = wrappers(names["model_for_pruning"]).values()
    np.testing.assert_array_equal(dense2("one-shot_pruned_model.onnx") != 0, wrapper.keep)
    by_size = {row.params: row for row in onnxdrp.info("one-shot_pruned_model.onnx").layers}
    assert by_size[512 * 512 + 512].sparsity == pytest.approx(0.7, abs=1e-3)
    assert list((tmp_path / "log_dir" / "metrics").iterdir())

    (tmp_path / "one-shot_pruned_model.h5").rename("pruned_model.h5")
    capsys.readouterr()
    loaded = run(loads)["model_for_pruning"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert lines == ["prune_low_magnitude_dense2  | 0.00", "prune_low_magnitude_dense2  | 0.70"]
    expected = names["model_for_pruning"].predict(pictures[:8], verbose=0)
    np.testing.assert_array_equal(loaded.predict(pictures[:8], verbose=0), expected)


PAGE = Path(__file__).parents[1] / "docs" / "training.md"


@QUIET
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_page_on_retraining_prunes_and_exports(tmp_path, monkeypatch):
    if keras.backend.backend() == "tensorflow":
        pytest.importorskip("tf2onnx")
    elif keras.backend.backend() == "jax":
        pytest.importorskip("jax2onnx")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"<!-- keras -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    model = run(code)["model_for_pruning"]
    (wrapper,) = wrappers(model).values()
    assert wrapper.sparsity == pytest.approx(0.7, abs=2e-3)
    row = onnxdrp.info("pruned.onnx").layers[1]
    assert row.zeros == np.count_nonzero(~wrapper.keep)
    assert (tmp_path / "pruned.keras").stat().st_size > 0


def test_section_4_3_has_these_names_and_defaults():
    import inspect

    def defaults(function):
        found = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in found if p.default is not p.empty}

    assert defaults(make_pruning_layer_list) == {"prune_last": False, "prune_dwise": False}
    assert defaults(Pruner) == {
        "initial_pr": 0.01,
        "final_pr": 0.7,
        "begin_step": 0,
        "end_step": -1,
        "frequency": 100,
        "pattern": "flex-nm",
    }
    assert defaults(get_endstep) == {"max_iter": None, "max_epoch": None, "ratio": 0.7}
    assert defaults(get_frequency) == {"ratio": 1.0}


def test_end_and_frequency_are_those_of_sections_4_3_3_and_4_3_4():
    assert get_endstep(1000, 10, max_iter=100) == 70
    assert get_endstep(1000, 10, max_epoch=2, ratio=0.5) == 100
    assert get_endstep(1001, 10, max_epoch=1, ratio=1.0) == 101  # Keras has a last, smaller batch
    assert get_frequency(1000, 10) == 100
    assert get_frequency(1000, 10, ratio=0.5) == 50
    assert get_frequency(1, 10, ratio=0.1) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_endstep(100, 10), "either max_iter or max_epoch"),
        (lambda: get_endstep(100, 10, 5, 5), "either max_iter or max_epoch"),
        (lambda: get_endstep(100, 10, max_iter=0), "max_iter is 0"),
        (lambda: get_endstep(100, 10, max_epoch=0), "max_epoch is 0"),
        (lambda: get_endstep(100, 10, max_iter=5, ratio=0), "ratio is 0"),
        (lambda: get_endstep(0, 10, max_iter=5), "num_data is 0"),
        (lambda: get_frequency(100, 0), "batch_size is 0"),
        (lambda: get_frequency(100, 10, ratio=-1), "ratio is -1"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(OptionError, match=message):
        call()


def test_weights_stand_in_the_order_of_tensorflow_model_optimization():
    """Kernel and bias, then mask, threshold and pruning_step: the order of .h5 files."""
    model = keras.Sequential([keras.Input((64,)), *(keras.layers.Dense(64) for _ in range(3))])
    pruned = Pruner(model, make_pruning_layer_list(model)).get_pruning_model()
    (wrapper,) = wrappers(pruned).values()
    order = [*wrapper.trainable_weights, *wrapper.non_trainable_weights]
    assert [v.name for v in order] == ["kernel", "bias", "mask", "threshold", "pruning_step"]
    assert order[0] is kernel_of(wrapper.layer)
