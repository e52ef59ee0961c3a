"""What came in, what went out, and the bargain: the head of the page; the stages of the demo."""

from collections.abc import Iterator, Mapping
from typing import Any

from onnxdrp.html.markup import Markup, Node, element, join
from onnxdrp.html.tables import Cell, Column, Row, bar, table
from onnxdrp.html.words import amount, change, number, of_bytes, shape

__all__ = ["models", "overview"]

Report = Mapping[str, Any]


def overview(report: Report) -> Markup | None:
    """Cards with the figures of the whole, then the two models side by side."""
    cards = list(_cards(report))
    parts = [
        element("div", *cards, class_="cards") if cards else None,
        _recovery(report),
        _models(report),
    ]
    return join(parts) if any(parts) else None


def _cards(report: Report) -> Iterator[Markup]:
    macs = report.get("macs") or {
        "before": report.get("baseline_mac"),
        "after": report.get("current_mac"),
    }
    if macs.get("before") and macs.get("after") is not None:
        yield _bargain("Multiply-adds", macs["before"], macs["after"], amount)
    if (stored := report.get("weight_bytes")) and stored["before"]:
        yield _bargain("Stored tensors", stored["before"], stored["after"], of_bytes)
    params = report.get("params")
    if isinstance(params, int):
        yield _card("Parameters", amount(params), "weights and biases")
    elif params and params.get("before"):
        yield _bargain("Parameters", params["before"], params["after"], amount)
    for reading in "BC":
        if (cycles := report.get(f"cycles_{reading.lower()}")) and macs.get("before"):
            name = f"Modelled cycles, reading {reading}"
            yield _bargain(name, macs["before"], cycles, amount)
    if (sparsity := report.get("sparsity")) is not None:
        yield _card("Sparsity", f"{100 * sparsity:.1f} %", "of the stored weights are zero")
    yield from _evaluated(report.get("evaluated") or {})
    if accuracy := report.get("accuracy"):
        low, high = accuracy["change_interval"]
        yield _card(
            "Top-1 accuracy",
            f"{accuracy['top1_after']:.2f} %",
            f"from {accuracy['top1_before']:.2f} %: {_signed(accuracy['change'])} points, 95 % "
            f"interval {_signed(low)} to {_signed(high)}, {accuracy['samples']:,} samples",
        )
    if fidelity := report.get("fidelity"):
        on = f"{number(fidelity.get('samples'))} samples, " if fidelity.get("samples") else ""
        of = fidelity.get("of") or "data that was not calibrated on"
        if fidelity.get("top1_agreement") is not None:
            yield _card("Top-1 agreement", f"{100 * fidelity['top1_agreement']:.2f} %",
                        f"with the model that came in; {on}{of}")  # fmt: skip
        decibels = fidelity.get("sqnr_db")
        yield _card("SQNR of the outputs", "∞" if decibels is None else f"{decibels:.1f} dB",
                    f"signal over error, worst output; cosine {number(fidelity['cosine'], 5)}, "
                    f"largest error {number(fidelity['max_abs_error'], 3)}")  # fmt: skip
    if (seconds := report.get("seconds")) is not None:
        peak = report.get("peak_rss_mb")
        yield _card("Time", _time(seconds), f"peak memory {number(peak)} MB" if peak else "")
    if (size := report.get("model_bytes")) is not None:
        yield _card("File", of_bytes(size), str(report.get("output", "")))


def _evaluated(found: Report) -> Iterator[Markup]:
    """Of evaluate: accuracies, in percent, or mean average precision."""
    samples = f"{number(found.get('samples'))} samples"
    for key, name in (("top1", "Top-1 accuracy"), ("top5", "Top-5 accuracy")):
        if (value := found.get(key)) is not None:
            low, high = found[f"{key}_interval"]
            note = f"95 % interval {low:.2f} to {high:.2f}, {samples}"
            yield _card(name, f"{value:.2f} %", note)
    for key, name in (("map_5095", "mAP50-95"), ("map_50", "mAP50")):
        if key in found:
            low, high = found.get(f"{key}_interval", (None, None))
            told = "" if low is None else f"95 % interval {low:.4f} to {high:.4f}, "
            yield _card(name, f"{found[key]:.4f}", f"{told}{samples}")
    if "objects" in found:
        note = f"to be found; {number(found['detections'])} detections were scored"
        yield _card("Objects", number(found["objects"]), note)


def _card(name: str, figure: str, note: str, gauge: Markup | None = None) -> Markup:
    return element(
        "div",
        element("h3", name),
        element("p", figure, class_="figure"),
        gauge,
        element("p", note, class_="note") if note else None,
        class_="card",
    )


def _bargain(name: str, before: float, after: float, words: Any) -> Markup:
    share = f"--share:{round(100 * min(after / before, 1), 1):g}%"
    gauge = element("div", class_="gauge", style=share, aria_hidden="true")
    note = f"from {words(before)}: {change(before, after)}"
    return _card(name, words(after), note, gauge)


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _recovery(report: Report) -> Markup | None:
    """What pruning cost, and what repair won back."""
    found = report.get("recovery")
    if not found:
        return None

    def told(figures: Mapping[str, Any]) -> str:
        agreement, decibels = figures.get("top1_agreement"), figures.get("sqnr_db")
        parts = [] if agreement is None else [f"{100 * agreement:.2f} % agreement"]
        return ", ".join([*parts, "∞ dB" if decibels is None else f"{decibels:.1f} dB"])

    text = f"Pruned and not repaired: {told(found['pruned'])}. Repaired: {told(found['repaired'])}."
    worst = found.get("worst_layers") or {}
    listed = ", ".join(f"{name} ({number(100 * share, 3)} %)" for name, share in worst.items())
    more = (
        f" Farthest from what they should give, by share of its power: {listed}." if worst else ""
    )
    return element("p", text, more, class_="lead")


def _models(report: Report) -> Markup | None:
    """A row a property, a column for each side."""
    before, after = (report.get("model", {}).get(side, {}) for side in ("before", "after"))
    rows: list[tuple[str, Node, Node]] = []
    if report.get("output") or (report.get("input") and before):
        rows.append(("File", report["input"], report.get("output")))
    elif before.get("file"):
        rows.append(("File", before["file"], ""))
    for key, name in (("nodes", "Nodes"), ("opset", "Opset")):
        if key in before:
            rows.append((name, number(before[key]), number(after[key])))
    for key, name in (("inputs", "Inputs"), ("outputs", "Outputs")):
        if key in before:
            rows.append((name, _tensors(before[key]), _tensors(after[key])))
    if not rows:
        return None
    sides = ("Reference", "Compared") if "compared" in report else ("In", "Out")
    head = element("tr", element("td"), *(element("th", t, scope="col") for t in sides))
    body = [
        element("tr", element("th", name, scope="row"), element("td", a), element("td", b))
        for name, a, b in rows
    ]
    told = "What was compared" if "compared" in report else "What came in, what went out"
    caption = element("caption", told)
    whole = element("table", caption, element("thead", head), element("tbody", *body))
    return element("div", whole, class_="scroll fitted", tabindex=0, role="region",
                   aria_label=told)  # fmt: skip


def _tensors(tensors: Mapping[str, Any]) -> Markup:
    items = [
        element("div", element("code", name), f" {shape(t['shape']) or '?'} {t['dtype']}")
        for name, t in tensors.items()
    ]
    return join(items)


def models(report: Report) -> Markup | None:
    """What each stage of the demo costs and saves."""
    found: Mapping[str, Report] = report.get("models") or {}
    if not found:
        return None
    names = ("Top-1", "95 % interval", "Sparsity", "Multiply-adds", "File")
    heads = (Column("Model"), *(Column(name, figures=True) for name in names))
    rows: list[Row] = []
    for name, row in found.items():
        low, high = row["top1_interval"]
        cells = (
            Cell(bar(f"{row['top1']:.1f} %", row["top1"] / 100), row["top1"]),
            Cell(f"{low:.1f} to {high:.1f}", low),
            Cell(f"{100 * row['sparsity']:.1f} %", row["sparsity"]),
            Cell(amount(row["current_mac"]), row["current_mac"]),
            Cell(of_bytes(row["bytes"]), row["bytes"]),
        )
        rows.append(("", (name, *cells)))
    return table(heads, rows, "The model at each stage, on the same test images")
