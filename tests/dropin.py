"""For the tests of DRP-AI Quantizer's stand-in: its folder, and what onnxdrp itself gives."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import onnxdrp
from onnxdrp import demo
from onnxdrp.model import Model

__all__ = ["IMAGES", "MEAN", "STD", "content", "direct", "furnish"]

ROOT = Path(__file__).parents[1]
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]  # of the manual's listings
IMAGES = 4  # that each run is calibrated on

Content = tuple[list[bytes], dict[str, bytes]]


def furnish(folder: Path, images: str) -> None:
    """Put modA_resnet18.onnx, modB_resnet18.onnx, and calibration images into a folder."""
    (folder / images).mkdir(parents=True)
    for file in sorted(demo.CALIBRATE_IMAGES.iterdir())[:IMAGES]:
        (folder / images / file.name).symlink_to(file)
    for name in ("modA", "modB"):
        (folder / f"{name}_resnet18.onnx").symlink_to(ROOT / "models" / f"{name}.onnx")


def content(model: str | Path | Model) -> Content:
    """Nodes and initializers, to the byte."""
    graph = (model if isinstance(model, Model) else Model.load(model)).proto().graph
    nodes = [node.SerializeToString(deterministic=True) for node in graph.node]
    return nodes, {i.name: i.SerializeToString(deterministic=True) for i in graph.initializer}


def direct(
    model: str = "modA", data: Any = None, mean: Any = MEAN, std: Any = STD, **options: Any
) -> Content:
    """What the call of `onnxdrp.quantize` gives that a run of the stand-in stands for.

    Args:
        model: modA or modB.
        data: default: the images that `furnish` puts down, by onnxdrp's own reader.
        mean: for that reader.
        std: for that reader.
        options: other than those that all have.
    """
    if data is None:
        return _on_images(model, json.dumps((mean, std, options), sort_keys=True))
    return _quantized(model, data, options)


@cache
def _on_images(model: str, given: str) -> Content:
    cls = onnxdrp.NHWCDataReader if model == "modB" else onnxdrp.NCHWDataReader
    path = ROOT / "models" / f"{model}.onnx"
    mean, std, options = json.loads(given)
    reader = cls(demo.CALIBRATE_IMAGES, mean, std, path).pick(np.arange(IMAGES))
    return _quantized(model, reader, options)


def _quantized(model: str, data: Any, options: dict[str, Any]) -> Content:
    given = {"target": "drp-ai3", "method": "minmax", **options}
    path = ROOT / "models" / f"{model}.onnx"
    return content(onnxdrp.quantize(path, data, data=data, **given).model)
