"""What became of the channels of a model: how wide each layer is, and why others stay whole."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.report import Text

if TYPE_CHECKING:
    from onnxdrp.pipeline import PassRecord

__all__ = ["Slimming"]


@dataclass(frozen=True, repr=False)
class Slimming(Tabular):
    """The widths of layers before and after.

    Attributes:
        channels: {layer: [output channels before, after]}, of those that lose some.
        pinned: {layer: why none of its channels can be removed}, as the graph has it.
        skipped: {layer: why its channels stay although they could go}.
        macs: multiply-adds before and after; None where a shape is not known.
        params: before and after. Where channels are masked, nothing is less.
    """

    channels: Mapping[str, Sequence[int]]
    pinned: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    macs: Sequence[int | None] = (None, None)
    params: Sequence[int] = (0, 0)

    @classmethod
    def of(cls, records: "Iterable[PassRecord]") -> "Slimming | None":
        """What passes did that chose channels and removed, or masked, them; None if none did."""
        skipped: dict[str, str] = {}
        for record in records:
            stats = record.stats
            if "groups" in stats:
                skipped = stats.get("skipped", {})
            elif "decision" in stats:
                names = ("pinned", "macs", "params")
                given = {name: stats[name] for name in names if name in stats}
                skipped = stats.get("skipped", skipped)
                return cls(stats["decision"]["channels"], skipped=skipped, **given)
        return None

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "channels": {name: list(pair) for name, pair in self.channels.items()},
            "pinned": dict(self.pinned),
            "kept_whole": {n: why for n, why in self.skipped.items() if n not in self.pinned},
            "macs": dict(zip(("before", "after"), self.macs, strict=True)),
            "params": dict(zip(("before", "after"), self.params, strict=True)),
        }

    def table(self) -> Text:
        """A line a layer that lost channels, then the layers that stay whole, by reason."""
        rows = [(name, a, b, f"{b / a:.3f}") for name, (a, b) in self.channels.items()]
        lines: list[Any] = [Table(("layer", "channels", "left", "share"), rows)] if rows else []
        whys: dict[str, list[str]] = {}
        for name, why in {**self.skipped, **self.pinned}.items():
            whys.setdefault(why, []).append(name)
        if whys:
            lines += ["", "all channels stay:"] if lines else ["all channels stay:"]
            lines += [f"  {', '.join(names)}: {why}" for why, names in whys.items()]
        sizes = {"multiply-adds": self.macs, "parameters": self.params}
        told = [f"{a:,} -> {b:,} {name}" for name, (a, b) in sizes.items() if a and b is not None]
        lines += ["", ", ".join(told)] if told else []
        return Shown(*lines)
