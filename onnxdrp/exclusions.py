"""Which nodes stay float because the user, or the form of the graph, says so.

    exclude           a node name; an operator, whatever its case (`op:NAME` where a node is called
                      so, `op:Reduce*` for several); a glob; "re:" and a regular expression
    exclude_subgraph  "A..B": what lies on a path from A to B; each is a tensor, or a node, which is
                      then included, or several, with commas; "A.." goes on to the end, "..B" comes
                      from the start; a name that both have is the tensor's
    exclude_patterns  sequences of operators (onnxdrp.patterncsv)
    exclude_tail      auto: the tail of a detector (onnxdrp.tails)

None fails silently: what names nothing is an error with the nearest names. What can be right for
another model is a note: an operator of ONNX or a sequence that this model lacks, and a name of the
file that preprocessing has merged into another node.
"""

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any, Literal, get_args

import onnx

from onnxdrp.dataflow import ordered
from onnxdrp.errors import OptionError
from onnxdrp.model import Model, reads
from onnxdrp.patterncsv import ActivationPattern, find_pattern, read_patterns
from onnxdrp.selectors import check_selector, matching
from onnxdrp.tails import find_tail

__all__ = ["Exclusions", "Kept", "TailMode", "Unmatched"]

TailMode = Literal["auto", "none"]
Unmatched = Literal["error", "warn"]


@dataclass
class Kept:
    """What stays float, and why.

    Attributes:
        nodes: {node: why}, the tail included; for `onnxdrp.plan.make_plan`.
        tail: of these, the tail of a detector.
        notes: what was asked for and has no effect, in words.
    """

    nodes: dict[str, str] = field(default_factory=dict)
    tail: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Exclusions:
    """What is to stay float; see the head of this file.

    Attributes:
        exclude: selectors of nodes.
        exclude_subgraph: pairs of ends, "A..B".
        exclude_patterns: a CSV file of operator sequences, or a folder of such.
        exclude_tail: "auto", or "none": the tail is quantized as everything else.
        unmatched: "error", or "warn": what names nothing is a note too.

    Raises:
        OptionError: a value that fits no model at all.
    """

    exclude: tuple[str, ...] = ()
    exclude_subgraph: tuple[str, ...] = ()
    exclude_patterns: str | None = None
    exclude_tail: TailMode = "auto"
    unmatched: Unmatched = "error"

    def __post_init__(self) -> None:
        for selector in self.exclude:
            check_selector(selector)
        for text in self.exclude_subgraph:
            start, dots, end = text.partition("..")
            if not dots or not (start.strip() or end.strip()):
                raise OptionError(f"subgraph {text!r}: give its ends as A..B, A.. or ..B")
        for name, value, known in (
            ("exclude_tail", self.exclude_tail, get_args(TailMode)),
            ("unmatched", self.unmatched, get_args(Unmatched)),
        ):
            if value not in known:
                raise OptionError(f"{name} {value!r}: there are {', '.join(known)}")

    def find(self, model: Model) -> Kept:
        """The nodes of a model that stay float.

        Raises:
            OptionError: a selector names nothing, or the patterns cannot be read.
        """
        search = _Search(model)
        for selector in self.exclude:
            self._try(search, search.selected, selector)
        for subgraph in self.exclude_subgraph:
            self._try(search, search.between, subgraph)
        if self.exclude_patterns is not None:
            for pattern in read_patterns(self.exclude_patterns):
                self._try(search, search.pattern, pattern)
        if self.exclude_tail == "auto":
            kept = search.kept
            kept.tail = {n: why for n, why in find_tail(model).items() if n not in kept.nodes}
            kept.nodes |= kept.tail
        return search.kept

    def _try(self, search: "_Search", step: Callable[[Any], None], what: Any) -> None:
        try:
            step(what)
        except OptionError as e:
            if self.unmatched == "error":
                raise
            search.kept.notes.append(str(e))


# -------------------------------------------------------------------------------- finding in graphs


class _Search:
    """One model's nodes, and what of them was found to stay float."""

    def __init__(self, model: Model) -> None:
        self.model, self.nodes, self.kept = model, ordered(model.nodes()), Kept()
        self.names = {node.name: (node.name,) for node in self.nodes}
        self.operators: dict[str, list[str]] = {}  # nodes by lower-case operator
        for node in self.nodes:
            self.operators.setdefault(node.op.lower(), []).append(node.name)

    def keep(self, names: Iterable[str], why: str) -> None:
        for name in names:
            self.kept.nodes.setdefault(name, why)

    @cached_property
    def loaded(self) -> "_Search | None":
        """The file that the model was loaded from: it has names that passes have removed."""
        path = self.model.path
        return _Search(Model.load(path)) if path is not None and path.is_file() else None

    def pattern(self, pattern: ActivationPattern) -> None:
        """Keep what a sequence of operators finds."""
        found = find_pattern(pattern, self.nodes)
        self.keep(found, f"excluded by the pattern {str(pattern)!r} ({pattern.where})")
        if found:
            return
        for op in pattern.operators:
            self.check_operator(op, pattern.where)
        self.kept.notes.append(f"{pattern.where}: the model has no {str(pattern)!r}")

    def check_operator(self, op: str, where: str) -> None:
        """Raises OptionError if neither the model nor ONNX has an operator of this name."""
        known = _onnx_operators()
        if op.lower() not in self.operators.keys() | known.keys():
            own = {node.op for node in self.nodes}
            raise OptionError(
                f"{where}: no operator is called {op!r}{_near(op, own | set(known.values()))}"
            )

    # ---------------------------------------------------------------------------------- selectors

    def selected(self, selector: str) -> None:
        """Keep what a selector names: a node, else an operator, else what matches a pattern."""
        why, op = f"excluded by {selector!r}", selector.lower()
        if selector in self.names:
            self.keep([selector], why)
            if set(self.operators.get(op, ())) - {selector}:
                self.kept.notes.append(
                    f"exclude {selector!r}: is the node of this name; op:{selector} is the operator"
                )
        elif op.startswith("op:"):
            self._operators(selector, op.removeprefix("op:").strip())
        elif op in self.operators or op in _onnx_operators():
            self._operators(selector, op)
        elif found := matching(selector, self.names):
            self.keep(found, why)
        elif self.loaded is not None and matching(selector, self.loaded.names):
            self.kept.notes.append(
                f"exclude {selector!r}: preprocessing has removed that node, or merged it into "
                "another, which is not kept float by this"
            )
        else:
            known = [*self.names, *{n.op: None for n in self.nodes}, *_onnx_operators().values()]
            raise OptionError(f"no node or operator matches {selector!r}{_near(selector, known)}")

    def _operators(self, selector: str, op: str) -> None:
        """Keep the nodes of an operator, a name or a glob in lower case."""
        found = [n for own, names in self.operators.items() if fnmatchcase(own, op) for n in names]
        self.keep(found, f"excluded by {selector!r}")
        if found:
            return
        if not any(fnmatchcase(known, op) for known in _onnx_operators()):
            self.check_operator(op, f"exclude {selector!r}")
        self.kept.notes.append(f"exclude {selector!r}: the model has no such operator")

    # ---------------------------------------------------------------------------------- subgraphs

    def between(self, text: str) -> None:
        """Keep what lies between the ends that "A..B" names."""
        start, _, end = text.partition("..")
        search, unknown = self, self._unknown(start, end)
        if unknown and self.loaded is not None and not self.loaded._unknown(start, end):
            search = self.loaded
        elif unknown:
            near = _near(unknown, [*self.model.tensors(), *self.names])
            raise OptionError(f"subgraph {text!r}: no tensor or node is called {unknown!r}{near}")
        found = [name for name in search._between(start, end) if name in self.names]
        if not found:
            turned = start.strip() and end.strip() and search._between(end, start)
            hint = f"; {end}..{start} has some" if turned else ""
            raise OptionError(f"subgraph {text!r}: no node lies between its ends{hint}")
        self.keep(found, f"excluded by the subgraph {text!r}")

    def _names_in(self, end: str) -> list[str]:
        """The names in one end; one name may have commas of its own."""
        whole = end.strip() in self.names or end.strip() in self.model.tensors()
        return [end.strip()] if whole else [n.strip() for n in end.split(",") if n.strip()]

    def _unknown(self, *ends: str) -> str:
        """The first name in the ends that neither a tensor nor a node has; "" if there is none."""
        known = self.model.tensors().keys() | self.names.keys()
        return next((n for end in ends for n in self._names_in(end) if n not in known), "")

    def _between(self, start: str, end: str) -> list[str]:
        """The nodes on paths, of ends that name something or are empty: open."""
        tensors = self.model.tensors()
        first, last = self._names_in(start), self._names_in(end)
        readers = {n.name for n in self.nodes if any(t.name in first for t in reads(n))}
        makers = {n.name for n in self.nodes if any(t.name in last for t in n.outputs)}
        first_nodes = {name for name in first if name not in tensors} | readers
        last_nodes = {name for name in last if name not in tensors} | makers
        everything = set(self.names)
        forwards = self._reached(first_nodes) if first else everything
        backwards = self._reaching(last_nodes) if last else everything
        return [n.name for n in self.nodes if n.name in forwards & backwards]

    def _reached(self, first: Collection[str]) -> set[str]:
        found, made = set(first), set[str]()
        for node in self.nodes:
            if node.name in found or any(t.name in made for t in reads(node)):
                found.add(node.name)
                made.update(t.name for t in node.outputs if t.name)
        return found

    def _reaching(self, last: Collection[str]) -> set[str]:
        found, wanted = set(last), set[str]()
        for node in reversed(self.nodes):
            if node.name in found or any(t.name in wanted for t in node.outputs if t.name):
                found.add(node.name)
                wanted.update(t.name for t in reads(node))
        return found


@cache
def _onnx_operators() -> dict[str, str]:
    """{lower case: name} of every operator that ONNX ever had."""
    return {s.name.lower(): s.name for s in onnx.defs.get_all_schemas_with_history()}


def _near(name: str, known: Iterable[str]) -> str:
    """The end of an error: the nearest names, case aside."""
    lower: dict[str, str] = {}
    for other in known:
        lower.setdefault(other.lower(), other)
    near = difflib.get_close_matches(name.lower(), lower, 3, cutoff=0.5)
    if not near:
        return "; `onnxdrp quantize --explain MODEL` lists the names"
    return f"; near: {', '.join(repr(lower[n]) for n in near)}"
