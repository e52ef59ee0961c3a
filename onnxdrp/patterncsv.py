"""Activation functions as sequences of operators, in the CSV form of DRP-AI Quantizer.

    Mish
    Softplus, Tanh, ^Mul
    Exp, Add, Log, Tanh, ^Mul

A line is a pattern: operators from the input side, each of which reads what the one before it
computes. All nodes of a match stay float but those of operators with ^, which are only part of the
sequence. UTF-8; blanks around operators, empty lines and the kind of line ends mean nothing, nor
does the case of operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from onnxdrp.errors import OptionError

__all__ = ["ActivationPattern", "find_pattern", "read_patterns"]


@dataclass(frozen=True)
class ActivationPattern:
    """A sequence of operators.

    Attributes:
        operators: from the input side, as written but for the ^.
        quantized: for each, whether it has a ^.
        where: file and line, for messages.
    """

    operators: tuple[str, ...]
    quantized: tuple[bool, ...]
    where: str

    def __str__(self) -> str:
        marked = zip(self.operators, self.quantized, strict=True)
        return ", ".join("^" * kept + op for op, kept in marked)


def read_patterns(path: str | Path) -> list[ActivationPattern]:
    """The patterns of a file, or of all .csv files of a folder, in the order of their names.

    Raises:
        OptionError: it cannot be read, is not UTF-8, holds no pattern, or a line is none.
    """
    path = Path(path)
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise OptionError(f"{path}: the folder has no .csv file of activation functions")
    found = [pattern for file in files for pattern in _read(file)]
    if not found:
        raise OptionError(f"{path}: holds no pattern; give one a line, as Softplus, Tanh, ^Mul")
    return found


def _read(path: Path) -> list[ActivationPattern]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise OptionError(f"{path}: is not UTF-8 text (byte {e.start}); save it as UTF-8") from e
    except (OSError, ValueError) as e:
        raise OptionError(f"{path}: the patterns cannot be read ({e})") from e
    lines = enumerate(text.splitlines(), 1)
    return [_parse(line, f"{path}, line {n}") for n, line in lines if line.strip()]


def _parse(line: str, where: str) -> ActivationPattern:
    items = [item.strip() for item in line.split(",")]
    operators = tuple(item.removeprefix("^").strip() for item in items)
    quantized = tuple(item.startswith("^") for item in items)
    if not all(operators):
        raise OptionError(f"{where}: an operator is missing in {line.strip()!r}; see the commas")
    if all(quantized):
        raise OptionError(f"{where}: every operator has a ^, so nothing stays float; drop one ^")
    return ActivationPattern(operators, quantized, where)


def find_pattern(pattern: ActivationPattern, nodes: Sequence[gs.Node]) -> list[str]:
    """The nodes that stay float by a pattern: those of all its matches without ^.

    A step of a match is an edge of the graph; that others read the same tensor is no matter. The
    nodes at each place are narrowed forwards, then backwards: linear in edges whatever the graph.

    Args:
        pattern: the sequence.
        nodes: of the whole graph.

    Returns:
        Their names, in the order of the graph.
    """
    by_op: dict[str, list[gs.Node]] = {}
    for node in nodes:
        by_op.setdefault(node.op.lower(), []).append(node)
    places = [by_op.get(op.lower(), []) for op in pattern.operators]
    for i in range(1, len(places)):
        made = {t.name for n in places[i - 1] for t in n.outputs if t.name}
        places[i] = [n for n in places[i] if any(t.name in made for t in n.inputs)]
    for i in reversed(range(len(places) - 1)):
        wanted = {t.name for n in places[i + 1] for t in n.inputs}
        places[i] = [n for n in places[i] if any(t.name in wanted for t in n.outputs if t.name)]
    marked = zip(places, pattern.quantized, strict=True)
    found = {n.name for place, quantized in marked if not quantized for n in place}
    return [n.name for n in nodes if n.name in found]
