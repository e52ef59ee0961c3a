"""Keras on whichever backend there is; small models; data to train them on."""

import importlib.util
import os

import numpy as np
import pytest

NAMES = ("tensorflow", "jax", "torch")
BACKENDS = [name for name in NAMES if importlib.util.find_spec(name)]
if BACKENDS and "KERAS_BACKEND" not in os.environ:
    os.environ["KERAS_BACKEND"] = BACKENDS[0]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if importlib.util.find_spec("keras") is None or not BACKENDS:
    pytest.skip("keras is not installed: pip install onnxdrp[keras]", allow_module_level=True)

import keras  # noqa: E402

L = keras.layers

# of Keras' own, under NumPy 2
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def images(count=96, side=8, channels=3, classes=10, seed=0):
    """Images whose class is to be seen in them, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    kinds = np.random.default_rng(99).normal(size=(classes, side, side, channels))
    noise = rng.normal(size=(count, side, side, channels))
    return (kinds[labels] + noise).astype(np.float32), labels


def sequential(side=8):
    return keras.Sequential(
        [
            keras.Input((side, side, 3)),
            L.Conv2D(32, 3, padding="same", name="stem"),
            L.BatchNormalization(name="norm"),
            L.ReLU(name="relu"),
            L.Conv2D(64, 3, strides=2, activation="relu", name="conv"),
            L.Flatten(name="flat"),
            L.Dense(64, activation="relu", name="dense"),
            L.Dense(10, activation="softmax", name="last"),
        ]
    )


def functional(side=8, groups=2):
    """Two branches, a depthwise layer, a shared one, a model in the model; made back to front."""
    last, shared = L.Dense(10, name="last"), L.Dense(64, activation="relu", name="shared")
    inner_image = keras.Input((32,))
    inner = keras.Model(inner_image, L.Dense(64, name="inside")(inner_image), name="inner")
    image = keras.Input((side, side, 3))
    x = L.Conv2D(32, 3, padding="same", name="stem")(image)
    x = L.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = L.ReLU()(x)
    left = L.Conv2D(64, 3, groups=groups, padding="same", name="grouped")(x)
    right = L.Conv2D(64, 1, name="point")(x)
    x = L.GlobalAveragePooling2D()(left + right)
    x = shared(shared(x))
    x = inner(L.Dense(32, name="narrow")(x))
    return keras.Model(image, last(x))


def compiled(model, optimizer="adam", **options):
    logits = model.layers[-1].get_config().get("activation") == "linear"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(optimizer, loss, **options)
    return model


def fit(model, data, epochs=1, callbacks=(), batch_size=16, **options):
    """Without shuffling, so that runs can be compared."""
    return model.fit(
        *data,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=list(callbacks),
        shuffle=False,
        verbose=0,
        **options,
    )


def same_weights(a, b):
    pairs = zip(a.get_weights(), b.get_weights(), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)
