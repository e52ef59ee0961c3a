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
from onnxdrp.html.classes import classes
from onnxdrp.html.compared import compared
from onnxdrp.html.graph import graph
from onnxdrp.html.layers import layers, widths
from onnxdrp.html.markup import Markup, element, join
from onnxdrp.html.overview import models, overview
from onnxdrp.html.planned import plan
from onnxdrp.html.reading import as_report
from onnxdrp.html.run import passes, versions, warnings
from onnxdrp.html.searched import channels, front, search, sensitivity
from onnxdrp.html.tensors import masks, ranges
from onnxdrp.report import plain

__all__ = ["save_html", "to_html"]

Report = Mapping[str, Any]

_SECTIONS: tuple[tuple[str, str, Callable[[Report], Markup | None]], ...] = (
    ("overview", "Overview", overview),
    ("warnings", "Warnings", warnings),
    ("models", "Stages", models),
    ("compared", "Comparison", compared),
    ("classes", "Classes", classes),
    ("plan", "Plan", plan),
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
        report: what `Report.as_dict` gives, or any `--json` and file of figures (see
            onnxdrp.html.reading).

    Raises:
        OptionError: there is nothing in it that a page could show.
    """
    report = as_report(json.loads(json.dumps(report, default=plain)))
    found = [(name, title, shown) for name, title, make in _SECTIONS if (shown := make(report))]
    if not found:
        raise OptionError("the JSON has no figures of onnxdrp; give what --report or --json wrote")
    parts = [
        element("section", element("h2", title, id=f"{name}-head"), shown, id=name,
                aria_labelledby=f"{name}-head")
        for name, title, shown in found
    ]  # fmt: skip
    links = [element("li", element("a", title, href=f"#{name}")) for name, title, _ in found]
    name = _name(report)
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


def _name(report: Report) -> str:
    came = report.get("input") or report.get("model", {}).get("before", {}).get("file")
    name = PurePath(str(came or "")).name or "Report"
    if "compared" in report and report.get("output"):
        return f"{PurePath(str(report['output'])).name} against {name}"
    return name


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
