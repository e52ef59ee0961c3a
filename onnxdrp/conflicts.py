"""Where sharing parameters costs accuracy: what a plan's groups do to the ranges of their members.

A group has the union of its members' ranges, so nobody saturates; what is lost is resolution:

    1. a range that the target fixes, in a group that needs a wider one: the union wins;
    2. a member that is left less than 1/8 of the levels of 8 bits, and has them by itself;
    3. an operator that reads two types, where only some of what it reads was asked to be wide.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

from onnxdrp.model import Model
from onnxdrp.parameters import group_types, member_ranges
from onnxdrp.plan import Operand, Plan
from onnxdrp.quantization import DType, Range, activation_params, qlimits
from onnxdrp.targets import Target

__all__ = ["conflict_warnings", "conflicts"]

Key = str | Operand

_FEW = 256 / 8  # levels
_TOLD = 3  # lines in a report


def conflicts(
    model: Model,
    plan: Plan,
    ranges: Mapping[str, Range],
    target: Target,
    wide: Iterable[str] = (),
) -> list[str]:
    """A line for each conflict, those that lose most first.

    Args:
        model: as it was planned.
        plan: of the model.
        ranges: {tensor: measured range}.
        target: the profile of the plan.
        wide: names of the nodes whose outputs get the wide type.

    Raises:
        ModelError: a tensor has no range.
    """
    groups: dict[Key, dict[Key, Range]] = {}
    for key, found in member_ranges(model, plan, ranges).items():
        groups.setdefault(plan.groups[key], {})[key] = found
    at = {key: node for node, keys in plan.tied.items() for key in keys}
    at |= {plan.groups[key]: node for key, node in at.items() if plan.groups[key] not in at}
    ops = {node.name: node.op for node in model.nodes()}
    where = {key: f"{ops[node]} {node!r}" for key, node in at.items()}
    types = group_types(plan, target, wide)
    lines = list(_mixed(model, plan, types))
    for name, members in groups.items():
        if len(members) > 1:
            group = _Group(members, where, where.get(name, "their group"), target, types[name])
            lines += [*group.fixed(plan), *group.starved()]
    return [text for _, text in sorted(lines, key=lambda line: line[0])]


def conflict_warnings(found: Sequence[str]) -> list[str]:
    """The first of them, and how many more there are."""
    more = [f"{len(found) - _TOLD} more conflicts of shared scales"] if found[_TOLD:] else []
    return [*found[:_TOLD], *more]


@dataclass(frozen=True)
class _Group:
    """Tensors and constant operands with equal parameters, and the ranges that they bring."""

    members: Mapping[Key, Range]
    where: Mapping[Key, str]
    anywhere: str
    target: Target
    dtype: DType

    @cached_property
    def range(self) -> Range:
        return reduce(Range.union, self.members.values())

    def fixed(self, plan: Plan) -> Iterator[tuple[float, str]]:
        """Each fixed range that the others do not fit into."""
        for key in self.members:
            if key in plan.fixed and self.range != (own := Range(*plan.fixed[key])):
                others = f"what it shares parameters with needs {_words(self.range)}"
                text = (
                    f"{_name(key)} has the fixed range {_words(own)}, but {others}; that is taken"
                )
                yield self._left(key), f"{self._at(key)}: {text}"

    def starved(self) -> Iterator[tuple[float, str]]:
        """The member that sharing leaves the least, and how many more are left too little."""
        left = {key: self._left(key) for key, r in self.members.items() if r.low < r.high}
        low, high = qlimits(self.dtype)
        levels = high - low + 1
        few = [key for key, share in left.items() if share * levels < _FEW]
        if not few:
            return
        worst, widest = min(few, key=left.__getitem__), max(left, key=left.__getitem__)
        pair = " and ".join(f"{_name(k)} {_words(self.members[k])}" for k in (widest, worst))
        keeps = f"{_name(worst)} keeps {max(1, round(left[worst] * levels))} of {levels} levels"
        more = f", and {len(few) - 1} more of the group are short of levels" if few[1:] else ""
        yield left[worst], f"{self._at(worst)}: {pair} share a scale: {keeps}{more}"

    def _left(self, key: Key) -> float:
        """The share of its own levels that a member keeps: its own scale by the group's."""
        return self._scale(self.members[key]) / self._scale(self.range)

    def _scale(self, range_: Range) -> float:
        symmetric = self.target.activation_symmetric
        return float(activation_params(range_, self.dtype, symmetric=symmetric).scale)

    def _at(self, key: Key) -> str:
        return self.where.get(key, self.anywhere)


def _mixed(model: Model, plan: Plan, types: Mapping[Key, DType]) -> Iterator[tuple[float, str]]:
    """Each operator whose inputs have more than one type."""
    if len(set(types.values())) < 2:
        return
    for node in model.nodes():
        if plan.nodes.get(node.name) != "own":
            continue
        read = {t.name: types[plan.groups[t.name]] for t in node.inputs if t.name in plan.groups}
        if len(set(read.values())) > 1:
            what = " and ".join(f"{name!r} as {dtype}" for name, dtype in read.items())
            yield 1.0, f"{node.op} {node.name!r} reads {what}; name the makers of both, or of none"


def _name(key: Key) -> str:
    return repr(key) if isinstance(key, str) else f"input {key[1]} of {key[0]!r}"


def _words(range_: Range) -> str:
    return f"[{range_.low:.4g}, {range_.high:.4g}]"
