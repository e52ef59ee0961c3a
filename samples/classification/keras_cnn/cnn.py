"""What the three scripts share: options, images, the network, its files."""

import argparse
from pathlib import Path

import keras
import numpy as np
from keras import layers

from onnxdrp.demo import TEST

BATCH = 64

Split = tuple[np.ndarray, np.ndarray]


def arguments(description: str | None, retrain: bool = False) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (%(default)s)")
    parser.add_argument("--max_epochs", type=int, default=20, help="epochs (%(default)s)")
    parser.add_argument(
        "--data", type=Path, default=TEST, help="x uint8 [n, h, w, 3], y in an .npz file"
    )
    if retrain:
        parser.add_argument("--pretrained_weight", type=Path, default=Path("pretrained_cnn.keras"))
        parser.add_argument("--pruning_rate", type=float, default=0.7, help="(%(default)s)")
    return parser.parse_args()


def images(path: Path) -> tuple[Split, Split]:
    """Images in [0, 1] and their classes: the first 80 % to train on, the others to test on."""
    with np.load(path) as file:
        x, y = file["x"].astype(np.float32) / 255, file["y"].astype(np.int64)
    cut = len(x) * 4 // 5
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def cnn(shape: tuple[int, ...], classes: int) -> keras.Model:
    """Three convolutions, two fully connected layers."""
    image = x = keras.Input(shape, name="image")
    x = layers.Conv2D(32, 3, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(64, 3, activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(64, 3, activation="relu", name="conv3")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation="relu", name="dense1")(x)
    return keras.Model(image, layers.Dense(classes, activation="softmax", name="dense2")(x))


def compiled(model: keras.Model, lr: float) -> keras.Model:
    """The model, ready to be trained."""
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(lr), loss, metrics=["accuracy"])
    return model


def report(model: keras.Model, test: Split) -> None:
    """Prints the accuracy."""
    _, accuracy = model.evaluate(*test, batch_size=BATCH, verbose=0)
    print(f"accuracy on {len(test[0])} test images: {accuracy:.2%}")


def export(model: keras.Model, path: str) -> None:
    """Writes ONNX (NHWC), for one image at a time or many."""
    model.predict(np.zeros((1, *model.input_shape[1:]), np.float32), verbose=0)  # Keras wants that
    model.export(path, format="onnx", verbose=False)
    print(f"wrote {path}")
