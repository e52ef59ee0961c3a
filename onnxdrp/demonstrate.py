"""The demo: the main job on the bundled model and images, with the accuracy of each stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdrp import demo
from onnxdrp.api import optimize, quantize
from onnxdrp.api import prune as prune_model
from onnxdrp.evaluation import Accuracy, accuracy
from onnxdrp.model import Model
from onnxdrp.pipeline import watched
from onnxdrp.tables import text_table

if TYPE_CHECKING:
    from onnxdrp.datareaders import DataReader
    from onnxdrp.pipeline import Instrument
    from onnxdrp.report import Report

__all__ = ["Demonstration", "demonstrate"]

SPARSITY, PATTERN = 0.7, "flex-nm"


@dataclass
class Demonstration:
    """What the demo shows: a row for each form of the model, and the report of the whole job."""

    rows: dict[str, dict[str, Any]]
    report: "Report"
    folder: Path

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {"models": self.rows, "report": self.report.as_dict(), "folder": str(self.folder)}

    def __str__(self) -> str:
        head = ("model", "top-1 %", "95 % interval", "sparsity", "million MACs", "KB")
        rows = [
            (
                name,
                f"{row['top1']:.1f}",
                "{:.1f} to {:.1f}".format(*row["top1_interval"]),
                f"{row['sparsity']:.3f}",
                f"{row['current_mac'] / 1e6:.1f}",
                f"{row['bytes'] / 1e3:.0f}",
            )
            for name, row in self.rows.items()
        ]
        files = ", ".join(sorted(p.name for p in self.folder.iterdir()))
        return f"{self.report.table()}\n\n{text_table(head, rows)}\n\nin {self.folder}: {files}"


def demonstrate(folder: Path, instruments: "Sequence[Instrument]" = ()) -> Demonstration:
    """Optimize the bundled classifier and measure it on 1,000 test images.

    Args:
        folder: is created; takes the optimized model, its recipe and the report (JSON, HTML).
        instruments: watch all that runs.
    """
    from onnxdrp.datareaders import NCHWDataReader, open_reader
    from onnxdrp.html import save_html

    folder.mkdir(parents=True, exist_ok=True)
    original = Model.load(demo.MODEL)
    test = open_reader(demo.TEST, original, batch=100, mean=demo.MEAN, std=demo.STD)
    calib = NCHWDataReader(
        demo.CALIBRATE_IMAGES, norm_mean=demo.MEAN, norm_std=demo.STD, model=original, batch=20
    )
    models = {"float": original}
    how: dict[str, Any] = {"sparsity": SPARSITY, "pattern": PATTERN, "instruments": instruments}
    models["pruned"] = prune_model(original.clone(), **how).model
    models["pruned + repaired"] = prune_model(original.clone(), calib=calib, **how).model
    models["quantized"] = quantize(original.clone(), calib, instruments=instruments).model
    report = optimize(original.clone(), calib, data=test, **how)
    models["all of it"] = report.model
    with watched("evaluate", instruments):
        rows = {name: _row(model, test, folder) for name, model in models.items()}
    report.model.save(folder / "optimized.onnx")
    (folder / "recipe.toml").write_text(report.recipe, encoding="utf-8")
    report.to_json(folder / "report.json")
    found = Demonstration(rows, report, folder)
    save_html(folder / "report.html", found.as_dict())
    return found


def _row(model: Model, test: "DataReader", folder: Path) -> dict[str, Any]:
    from onnxdrp.summary import summarize_layers

    right: Accuracy = accuracy(model, test)
    layers = summarize_layers(model)
    figures = right.summary() | {"sparsity": layers.sparsity, "current_mac": layers.current_mac}
    return figures | {"bytes": _saved_bytes(model, folder)}


def _saved_bytes(model: Model, folder: Path) -> int:
    path = model.save(folder / ".size.onnx")
    size = path.stat().st_size
    path.unlink()
    return size
