"""The same as training.py with the CNN of samples/classification/keras_cnn, in Keras.

The float network is trained here first, for --float-epochs; it takes NHWC pixels / 255. Retraining
is Adam, too, with a learning rate of --lr (that of the float training is 0.001). Needs torch as
well, for training.py.

Run: python benchmarks/training_keras.py --data FASHION_MNIST_FOLDER [--float-epochs 6]
         [--epochs 3] [--lr 0.0001] [--rate 0.7] [--patterns flex-nm,block] [--ways refit,one-shot]
         [--images 1000] [--distill-minutes 2] [--out FILE.json]
The folder has the four `*-ubyte.gz` files (Debian's package dataset-fashion-mnist).
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import keras
import numpy as np
from training import WAYS, Data, Row, by_repair, compare, measured, recipe

import onnxdrp
from onnxdrp.datareaders import ArrayReader
from onnxdrp.keras import Pruner, UpdatePruningStep, finalize, info, masks
from onnxdrp.model import Model
from onnxdrp.training import schedule

sys.path.insert(0, str(Path(__file__).parents[1] / "samples" / "classification" / "keras_cnn"))
from cnn import cnn, compiled

BATCH = 128
LEARNING_RATE = 1e-3


class Clocked(UpdatePruningStep):
    """UpdatePruningStep, and the seconds that it took."""

    seconds = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        start = time.perf_counter()
        super().on_train_batch_begin(batch, logs)
        self.seconds += time.perf_counter() - start


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 [n, 32, 32] as the network takes it: float32 [n, 32, 32, 3] in [0, 1]."""
    return np.repeat(images[..., None].astype(np.float32) / 255, 3, axis=-1)


def opened(folder: Path, count: int, model: Model) -> Data:
    images, labels = recipe.load(folder, "train")
    test, truth = recipe.load(folder, "t10k")
    few = np.random.default_rng(0).permutation(len(images))[:count]
    return Data(
        images,
        labels,
        ArrayReader({"x": pixels(images[few])}, model=model, batch=50),
        ArrayReader({"x": pixels(test), "y": truth}, model=model, batch=100),
    )


def exported(model: Any, path: Path) -> Path:
    model.predict(np.zeros((1, 32, 32, 3), np.float32), verbose=0)
    model.export(str(path), format="onnx", verbose=False)
    return path


def fitted(model: Any, data: Any, epochs: int, rate: float, callbacks: list[Any]) -> float:
    """Train; the seconds that it took."""
    images, labels = data
    start = time.perf_counter()
    compiled(model, rate).fit(
        images, labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks
    )
    return time.perf_counter() - start


def by_training(
    weights: list[np.ndarray],
    way: str,
    pattern: str,
    rate: float,
    data: Any,
    epochs: int,
    lr: float,
) -> tuple[Model, float | None]:
    """Retrain, and export; the share of the callback in the time of the training."""
    model = cnn((32, 32, 3), 10)
    model.set_weights(weights)
    if way == "dense":
        fitted(model, data, epochs, lr, [])
        return saved(model), None
    per_epoch = -(-len(data[1]) // BATCH)
    gradual = {
        "end_step": schedule.end_step(per_epoch, max_epoch=epochs),
        "frequency": max(1, per_epoch // 10),
    }
    options: dict[str, Any] = gradual if way == "gradual" else {}
    names = info(model, pattern=pattern).prunable
    pruner = Pruner(model, names, final_pr=rate, pattern=pattern, **options)
    pruned, callback = pruner.get_pruning_model(), Clocked()
    held = masks(pruned)
    seconds = fitted(pruned, data, epochs, lr, [callback])
    if way == "one-shot" and masks(pruned) != held:
        raise SystemExit("a mask has changed by training")
    if not pruner.is_finished:
        raise SystemExit("pruning has not come to its end")
    return saved(finalize(pruned)), callback.seconds / seconds


def saved(model: Any) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        return onnxdrp.load(exported(model, Path(folder) / "model.onnx")).clone()


@click.command(help=__doc__)
@click.option("--data", "folder", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--float-epochs", default=6)
@click.option("--epochs", default=3)
@click.option("--lr", default=LEARNING_RATE / 10)
@click.option("--rate", default=0.7)
@click.option("--patterns", default="flex-nm,block")
@click.option("--ways", default=",".join(WAYS))
@click.option("--images", default=1000)
@click.option("--distill-minutes", default=2.0)
@click.option("--seed", default=0)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    folder: Path,
    float_epochs: int,
    epochs: int,
    lr: float,
    rate: float,
    patterns: str,
    ways: str,
    images: int,
    distill_minutes: float,
    seed: int,
    out: Path | None,
) -> None:
    keras.utils.set_random_seed(seed)
    grey, labels = recipe.load(folder, "train")
    labelled = pixels(grey), labels
    network = cnn((32, 32, 3), 10)
    seconds = fitted(network, labelled, float_epochs, LEARNING_RATE, [])
    weights = network.get_weights()
    with tempfile.TemporaryDirectory() as place:
        path = exported(network, Path(place) / "float.onnx")
        data = opened(folder, images, onnxdrp.load(path))
        rows = [Row("-", "float", *measured(onnxdrp.load(path), data), seconds / 60)]

        def train(way: str, pattern: str) -> tuple[Model, float | None]:
            return by_training(weights, way, pattern, rate, labelled, epochs, lr)

        def repair(way: str, pattern: str) -> Model:
            return by_repair(path, way, pattern, rate, data, distill_minutes, seed)

        compare(rows, patterns.split(","), ways.split(","), train, repair, data, out)


if __name__ == "__main__":
    main()
