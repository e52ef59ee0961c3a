"""Report: what ran, with which options, how long, and what came of it; as JSON and as text."""

import json
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdrp import __version__
from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write

if TYPE_CHECKING:
    from onnxdrp.channels.front import Front
    from onnxdrp.channels.rounds import AutoChannels
    from onnxdrp.channels.sensitivity import ChannelSensitivity
    from onnxdrp.channels.slimming import Slimming
    from onnxdrp.masks import Mask
    from onnxdrp.model import Model
    from onnxdrp.pipeline import PassRecord
    from onnxdrp.ranges import Ranges
    from onnxdrp.sparsity_search import Curve
    from onnxdrp.unit_sensitivity import Sensitivity

__all__ = ["Report", "Text", "load_report", "plain", "versions"]


_NUMBERS = re.compile(r"\[\n([-+.,\deE\s]+)\]")  # a list of them over several lines; no str has one


class Text(str):
    """A str that a notebook shows as it is, line by line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from onnxdrp.display import Shown  # which needs this module

        return Shown(self)._repr_html_()


@dataclass
class Report:
    """The result of a run.

    Attributes:
        model: the model after the run.
        records: one a pass, in order.
        seconds: wall time of the run.
        summary: figures of the whole (sparsity, MACs, sizes, fidelity), each under a plain name.
        describe: finds `details`, and holds what it needs until then: the model that came in, which
            shares the weights that are still the same, the model that went out, and the data.
        warnings: what the user should know, in words.
        recipe: TOML text that repeats the run, or "".
        masks: {weight name: what stays}, of every weight that was pruned.
        ranges: of the activations, as a file has them; None if nothing was calibrated.
        sensitivity: what quantizing each unit alone costs, or removing channels of each group; None
            if that was not measured.
        front: smaller networks; None if none were searched for.
        rounds: what a search for channels under a budget tried; None if there was none.
        curve: what sparsities cost; None if none was searched for.
    """

    model: "Model"
    records: "list[PassRecord]"
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)
    describe: Callable[[], dict[str, Any]] | None = field(default=None, repr=False, compare=False)
    warnings: list[str] = field(default_factory=list)
    recipe: str = ""
    masks: "dict[str, Mask]" = field(default_factory=dict)
    ranges: "Ranges | None" = None
    sensitivity: "Sensitivity | ChannelSensitivity | None" = None
    rounds: "AutoChannels | None" = None
    front: "Front | None" = None
    curve: "Curve | None" = None

    @property
    def slimming(self) -> "Slimming | None":
        """What became of the channels; None if none were to go."""
        from onnxdrp.channels.slimming import Slimming

        return Slimming.of(self.records)

    @cached_property
    def details(self) -> dict[str, Any]:
        """Figures of layers, ranges, masks and the graph (onnxdrp.details).

        They are found when first asked for, by JSON or a page, of the models as the run left them.
        """
        found = {} if self.describe is None else self.describe()
        self.describe = None
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {
            **self.summary,
            **({} if self.slimming is None else self.slimming.as_dict()),
            **({} if self.curve is None else {"curve": self.curve.as_dict()}),
            **({} if self.rounds is None else {"search": self.rounds.as_dict()}),
            **({} if self.sensitivity is None else {"sensitivity": self.sensitivity.as_dict()}),
            **({} if self.front is None else {"front": self.front.as_dict()}),
            **self.details,
            "passes": [record.as_dict() for record in self.records],
            "warnings": self.warnings,
            "seconds": round(self.seconds, 3),
            "recipe": self.recipe,
            "versions": versions(),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as one JSON object; written to `path` too if that is given."""
        text = _NUMBERS.sub(_one_line, json.dumps(self.as_dict(), indent=2, default=plain))
        if path is not None:
            with atomic_write(Path(path)) as file:
                file.write(text.encode() + b"\n")
        return text

    def to_html(self, path: str | Path) -> Path:
        """Write the report as a page to look at, made of what `to_json` gives (onnxdrp.html).

        Raises:
            ModelError: the file cannot be written.
        """
        from onnxdrp.html import save_html

        return save_html(path, json.loads(self.to_json()))

    def table(self) -> Text:
        """A line a pass, then the summary, as text."""
        from onnxdrp.display import Shown, Table  # which needs this module

        rows = [
            (f"{r.index:03d}", r.name, f"{r.nodes[0]} -> {r.nodes[1]}", r.weights["changed"],
             f"{r.bytes[1]:,}", f"{r.seconds:.2f}")
            for r in self.records
        ]  # fmt: skip
        head = ("#", "pass", "nodes", "weights changed", "bytes", "seconds")
        lines: list[Any] = [Table(head, rows), ""]
        lines += [] if self.curve is None else [self.curve.table(), ""]
        lines += [] if self.rounds is None else [self.rounds.table(), ""]
        lines += [] if self.slimming is None else [self.slimming.table(), ""]
        lines += [f"{name}: {_figure(value)}" for name, value in self.summary.items()]
        lines += [f"warning: {w}" for w in self.warnings]
        return Shown(*lines)

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def load_report(path: str | Path) -> dict[str, Any]:
    """What `Report.to_json`, or --json of a command, wrote.

    Raises:
        OptionError: the file cannot be read, or holds no JSON object.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise OptionError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
    except (json.JSONDecodeError, RecursionError) as e:
        raise OptionError(f"{path}: is no JSON ({e}); give what --report or --json wrote") from e
    if not isinstance(found, dict):
        raise OptionError(f"{path}: holds no JSON object; give what --report or --json wrote")
    return found


def _one_line(numbers: re.Match[str]) -> str:
    return f"[{', '.join(numbers[1].replace(',', ' ').split())}]"


def _figure(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_figure(v)}" for k, v in value.items())
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_figure, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plain(value: Any) -> Any:
    """What `json` does not know: numpy scalars and arrays, paths, sets."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    return str(value)


@cache
def versions() -> dict[str, str]:
    """Versions of everything that has a say in the result."""
    found = {"python": platform.python_version(), "onnxdrp": __version__}
    for package in ("onnx", "onnxruntime", "onnx-graphsurgeon", "onnxscript", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
