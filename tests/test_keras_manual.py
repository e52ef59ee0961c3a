"""The TensorFlow listings of DRP-AI Extension Pack's manual run with only their import changed.

Figures 3-14 (whose parts are 3-15 to 3-19), 3-21, and the API of section 4.3. Left as printed, with
these exceptions:

- tf.keras.datasets.cifar10 gives a few images here;
- line 21 of Figure 3-21 ends the width of a column with a space too many for Python ("{max_len+1}s"
  behind "{name: "), which is meant as "{name:{max_len+1}s}";
- tf2onnx.convert.from_keras does not take Sequential models of Keras 3: the same graph is handed to
  it as a functional one;
- Figures 3-14 and 3-21 name one file in several ways (onshot_pruned_model.h5, pruned_model.h5).
"""

import numpy as np
import pytest
from keras_nets import QUIET, images, keras

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

NETWORK = """
def NeuralNetwork(input_shape=(32, 32, 3)):
    num_classes = 10
    return tf.keras.Sequential([
        tf.keras.layers.Flatten(input_shape=input_shape),
        tf.keras.layers.Dense(512, activation='relu', name="dense1"),
        tf.keras.layers.Dense(512, activation='relu', name="dense2"),
        tf.keras.layers.Dropout(0.4),
        tf.keras.layers.Dense(num_classes, activation='softmax', name="dense3")
    ])
"""

DATA = """
# Defining the training data and loss function
(train_images, train_labels), (_, _) = tf.keras.datasets.cifar10.load_data()
train_images = train_images / 255.0
compile_args = {
    'optimizer': 'adam',
    'loss': 'sparse_categorical_crossentropy',
    'metrics': ['accuracy'],
}
fit_args = {'epochs': 10,
            'batch_size': 64,
            'validation_split': 0.1}
"""

INITIAL = f"""
# Importing the library
import tensorflow as tf
import tf2onnx
import onnx

# Defining the neural network
{NETWORK}
model = NeuralNetwork()
{DATA}
# Compiling the model.
model.compile(**compile_args)

# Training
model.fit(train_images, train_labels, **fit_args)

# Saving
model.save("pretrained_model.h5", include_optimizer=False)
onnx_model, _ = tf2onnx.convert.from_keras(model, opset=12)
onnx.save(onnx_model, 'pretrained_model.onnx')
"""

PRUNING = f"""
# Importing the library
import tensorflow as tf
import tf2onnx
import onnx
import tensorflow_model_optimization as tfmot
# 1. Importing the DRP-AI Extension Pack module
from drpai_compaction_tool.tensorflow import make_pruning_layer_list, \\
    Pruner

# Defining the neural network
{NETWORK}
# 2. Loading the trained model
model = tf.keras.models.load_model("pretrained_model.h5")
{DATA}
# 3. Preparing for pruning the model
pruning_layer_list = make_pruning_layer_list(model)
pruner = Pruner(model, pruning_layer_list, final_pr=0.7)
model_for_pruning = pruner.get_pruning_model()
# Compiling the model.
model_for_pruning.compile(**compile_args)

# Training
# 4. Registering the callback function for pruning
callbacks = [
    # Update pruning parameters
    tfmot.sparsity.keras.UpdatePruningStep(),
    # Save pruning informations
    tfmot.sparsity.keras.PruningSummaries(log_dir="./log_dir"),
]
model_for_pruning.fit(train_images, train_labels, **fit_args, callbacks=callbacks)

# 5. Saving the pruned model
model_for_pruning.save("onshot_pruned_model.h5", include_optimizer=True)
onnx_model, _ = tf2onnx.convert.from_keras(model, opset=12)
onnx.save(onnx_model, 'onshot_pruned_model.onnx')
"""

LOADING = f"""
# Importing the library
import tensorflow as tf
import tensorflow_model_optimization as tfmot
# 1. Importing the DRP-AI Extension Pack module
from drpai_compaction_tool.tensorflow import make_pruning_layer_list, \\
    Pruner

def print_sparsity(model):
    import numpy as np
    from tensorflow_model_optimization.python.core.sparsity.keras \\
        import pruning_wrapper

    layer_info = {{}}
    for layer in model.layers:
        if not isinstance(layer, pruning_wrapper.PruneLowMagnitude):
            continue
        for weight, mask, threshold in layer.pruning_vars:
            np_mask = tf.keras.backend.get_value(mask)
            sparsity = 1.0 - np.count_nonzero(np_mask) / float(np_mask.size)
            layer_info[layer.name] = sparsity

    max_len = len(max(layer_info.keys(), key=lambda name: len(name)))
    for name, sparsity in layer_info.items():
        print(f'{{name: {{max_len+1}}s}} | {{sparsity:0.2f}}')

# Defining the neural network
{NETWORK}
model = NeuralNetwork()
# 2. Preparing for pruning the model with a pruning rate of 0.0
pruning_layer_list = make_pruning_layer_list(model)
pruner = Pruner(model, pruning_layer_list, final_pr=0.0)
model_for_pruning = pruner.get_pruning_model()
print_sparsity(model_for_pruning)

# 3. Loading the pruned model
model_for_pruning.load_weights("pruned_model.h5")
print_sparsity(model_for_pruning)
"""

HERE = "onnxdrp.compat.drpai_compaction_tool"
CHANGED = {  # imports, and what is said above
    "import tensorflow_model_optimization": f"import {HERE}.tensorflow_model_optimization",
    "from tensorflow_model_optimization": f"from {HERE}.tensorflow_model_optimization",
    "from drpai_compaction_tool": f"from {HERE}",
    "from_keras(model,": "from_keras(tf.keras.Model(model.inputs, model.outputs),",
    "{name: {max_len+1}s}": "{name:{max_len+1}s}",
}


def run(listing):
    """Run a listing where we are."""
    for printed, here in CHANGED.items():
        listing = listing.replace(printed, here)
    names = {}
    exec(compile(listing, "the manual", "exec"), names)
    return names


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
def test_the_listings_of_chapter_3_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tf2onnx")
    monkeypatch.chdir(tmp_path)
    x, y = images(160, side=32)
    pictures = np.clip(128 + 40 * x, 0, 255).astype(np.uint8)
    monkeypatch.setattr(
        keras.datasets.cifar10, "load_data", lambda: ((pictures, y[:, None]), (None, None))
    )
    import tensorflow as tf

    monkeypatch.setattr(
        tf.keras.datasets.cifar10, "load_data", lambda: ((pictures, y[:, None]), (None, None))
    )
    run(INITIAL)
    assert np.count_nonzero(dense2("pretrained_model.onnx")) == 512 * 512
    names = run(PRUNING)
    assert names["pruning_layer_list"] == ["dense2"]
    (wrapper,) = wrappers(names["model_for_pruning"]).values()
    np.testing.assert_array_equal(dense2("onshot_pruned_model.onnx") != 0, wrapper.keep)
    by_size = {row.params: row for row in onnxdrp.info("onshot_pruned_model.onnx").layers}
    assert by_size[512 * 512 + 512].sparsity == pytest.approx(0.7, abs=1e-3)
    assert list((tmp_path / "log_dir" / "metrics").iterdir())

    (tmp_path / "onshot_pruned_model.h5").rename("pruned_model.h5")
    capsys.readouterr()
    loaded = run(LOADING)["model_for_pruning"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert lines == ["prune_low_magnitude_dense2  | 0.00", "prune_low_magnitude_dense2  | 0.70"]
    expected = names["model_for_pruning"].predict(pictures[:8] / 255.0, verbose=0)
    np.testing.assert_array_equal(loaded.predict(pictures[:8] / 255.0, verbose=0), expected)


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
