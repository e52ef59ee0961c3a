"""What quantization would do with each node, as `quantize --explain` tells."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from onnxdrp.html.markup import Markup, breakable, element, join
from onnxdrp.html.tables import Cell, Column, Row, table
from onnxdrp.html.words import number

__all__ = ["plan"]

Report = Mapping[str, Any]


def plan(report: Report) -> Markup | None:
    """How many nodes are quantized, why the others are not, and a row a node."""
    found = report.get("plan")
    if not found:
        return None
    nodes = found["nodes"]
    text = f"{found['quantized_nodes']:,} of {len(nodes):,} nodes are quantized."
    if tail := found["tail"]:
        text += f" The tail of a detector, {len(tail)} nodes from {tail[0]} to {tail[-1]}, is not."
    notes = [element("p", f"Note: {note}", class_="lead") for note in found["notes"]]
    whys = Counter(node["why"] for node in nodes if node["why"])
    counts: list[Row] = [("", (why, Cell(number(n), n))) for why, n in whys.most_common()]
    heads = (Column("#", figures=True), Column("Node"), Column("Operator"),
             Column("Quantized", title="By weights of its own, or with the tensor it reads"),
             Column("With", title="The node that it is computed with, nothing rounded between"),
             Column("Shares parameters of"), Column("Float because"))  # fmt: skip
    rows: list[Row] = [
        (
            "",
            (
                Cell(str(i), i),
                breakable(n["name"]),
                n["op"],
                n["kind"] or "no",
                breakable(n["unit"]),
                breakable(n["group"]),
                n["why"],
            ),
        )
        for i, n in enumerate(nodes, 1)
    ]
    reasons = (Column("Why nodes stay float"), Column("Nodes", figures=True))
    return join(
        [
            element("p", text, class_="lead"),
            *notes,
            table(reasons, counts, "Reasons, the most frequent first") if counts else None,
            table(heads, rows, "Nodes, in the order in which they run", search="Find nodes"),
        ]
    )
