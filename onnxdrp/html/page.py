"""The page: its sections in order, in a template with the style and the script that it carries.

Nothing is fetched: the page's own policy forbids it, and lets no script run but the one whose hash
it names.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePath
from string import Template
from typing import Any

from onnxdrp.errors import OptionError
from onnxdrp.files import atomic_write
from onnxdrp.html.graph import graph
from onnxdrp.html.layers import layers, widths
from onnxdrp.html.markup import Markup, element, join
from onnxdrp.html.overview import overview
from onnxdrp.html.run import passes, versions, warnings
from onnxdrp.html.searched import channels, front, search, sensitivity
from onnxdrp.html.tensors import masks, ranges
from onnxdrp.report import plain

__all__ = ["save_html", "to_html"]

Report = Mapping[str, Any]

_SECTIONS: tuple[tuple[str, str, Callable[[Report], Markup | None]], ...] = (
    ("overview", "Overview", overview),
    ("warnings", "Warnings", warnings),
    ("searched", "Search", search),
    ("front", "Front", front),
    ("passes", "Passes", passes),
    ("layers", "Layers", layers),
    ("graph", "Graph", graph),
    ("widths", "Channels", widths),
    ("sensitivity", "Sensitivity", sensitivity),
    ("channels", "Sensitivity", channels),
    ("ranges", "Ranges", ranges),
    ("masks", "Masks", masks),
    ("again", "Repeat it", versions),
)


def to_html(report: Report) -> str:
    """The page of a report; the same JSON gives the same page.

    Args:
        report: what `Report.as_dict` gives, or any `--json` and file of figures: of info, compare,
            calibrate, sensitivity, pareto and demo.

    Raises:
        OptionError: there is nothing in it that a page could show.
    """
    report = _as_report(json.loads(json.dumps(report, default=plain)))
    found = [(name, title, shown) for name, title, make in _SECTIONS if (shown := make(report))]
    if not found:
        raise OptionError("the JSON has no figures of onnxdrp; give what --report or --json wrote")
    parts = [
        element("section", element("h2", title, id=f"{name}-head"), shown, id=name,
                aria_labelledby=f"{name}-head")
        for name, title, shown in found
    ]  # fmt: skip
    links = [element("li", element("a", title, href=f"#{name}")) for name, title, _ in found]
    came = report.get("input") or report.get("model", {}).get("before", {}).get("file")
    name = PurePath(str(came or "")).name or "Report"
    style, script = _asset("page.css"), _asset("page.js") + _asset("graph.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_asset("page.html")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'",
        title=join([f"{name}: onnxdrp report"]),
        name=join([name]),
        made=join([_made(report)]),
        style=style,
        links=join(links),
        sections=join(parts),
        script=script,
    )


def save_html(path: str | Path, report: Report) -> Path:
    """Write the page of a report, whole or not at all; where it is.

    Raises:
        OptionError: there is nothing in the report that a page could show.
        ModelError: the file cannot be written.
    """
    page = to_html(report)
    with atomic_write(Path(path)) as file:
        file.write(page.encode())
    return Path(path)


def _made(report: Report) -> str:
    version = (report.get("versions") or {}).get("onnxdrp")
    count = len(report.get("warnings") or ())
    parts = ["onnxdrp" + (f" {version}" if version else "")]
    if "warnings" in report:
        parts.append("no warnings" if not count else f"{count} warning{'s' * (count > 1)}")
    return ", ".join(parts)


@cache
def _asset(name: str) -> str:
    return files("onnxdrp.html").joinpath(name).read_text(encoding="utf-8")


def _as_report(found: Report) -> Report:
    """Figures of other commands, in the places that a report has for them."""
    if not isinstance(found, Mapping):
        raise OptionError("the JSON is no table; give what --report or --json wrote")
    kind = str(found.get("format", ""))
    if isinstance(found.get("report"), Mapping):  # of the demo
        return dict(found["report"])
    if kind.startswith("onnxdrp"):
        where = next((name for key, name in _FILES.items() if key in found), None)
        return {where: found, "input": found.get("model", "")} if where else {}
    if "passes" not in found and "outputs" in found and "cosine" in found:  # of compare
        fidelity = {k: found[k] for k in ("sqnr_db", "max_abs_error", "cosine", "top1_agreement")}
        return {"fidelity": fidelity, "layers": found["layers"],
                "layer_errors": {"verdict": found.get("verdict", "")}}  # fmt: skip
    if "passes" not in found and "total" in found:  # of info
        total = found["total"]
        rows = [
            r | {"mac_before": r["baseline_mac"], "mac_after": r["current_mac"]}
            for r in found["layers"]
        ]
        figures = {key: total[key] for key in ("sparsity", "baseline_mac", "current_mac")}
        return {**figures, "layers": rows}
    return found


_FILES = {"units": "sensitivity", "curves": "sensitivity", "points": "front", "tensors": "ranges"}
