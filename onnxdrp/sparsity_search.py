"""The highest sparsity at which a pruned and repaired model loses at most some points of top-1.

Rates are k * step. None is known to lose nothing at 0, so a bracket (holds, fails) stands from the
start, and each sweep halves it, or does better:

    c = lo + (hi - lo) * (g(goal) - g(lo)) / (g(hi) - g(lo))      g(lost) = log(lost + 50 / samples)

is where the goal would be if loss grew exponentially with the rate (it nearly does), half a sample
standing for none. A candidate goes there as far as bisection could still finish with the sweeps
that are left (the safeguard of Oliveira and Takahashi's ITP, 2020), so that the search never takes
more of them than bisection.

Loss is measured on few samples, so it need not grow at each step. What is accepted was measured
itself and holds; no rate above one that failed is tried. The 95 % interval of what is lost stands
beside each figure, and where that of the accepted one reaches beyond the goal, it is said.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import CheckError, OptionError
from onnxdrp.files import atomic_write
from onnxdrp.report import Text

if TYPE_CHECKING:
    from onnxdrp.model import Model
    from onnxdrp.trials import Trials

__all__ = ["Curve", "Point", "Sweeps", "find_sparsity"]

log = logging.getLogger(__name__)

_HIGHEST = Fraction(95, 100)  # beyond, layers lose most of their outputs


@dataclass(frozen=True)
class Point:
    """What one rate came to.

    Attributes:
        rate: of the layers that are pruned, as asked for.
        sparsity: zeros / weights of the whole model.
        macs: multiply-adds for one image, those with a zero weight left out.
        top1: percent: accuracy where there are labels, else agreement with the float model.
        lost: points of it that the float model has more.
        low: lower end of the 95 % interval of `lost`.
        high: upper end.
        seconds: that pruning, repair and measurement took.
    """

    rate: float
    sparsity: float
    macs: int
    top1: float
    lost: float
    low: float
    high: float
    seconds: float


@dataclass(frozen=True, repr=False)
class Curve(Tabular):
    """All rates that were measured, and which of them is the highest that holds.

    Attributes:
        points: by rate.
        max_drop: points that may be lost.
        what: what points are of: "top-1 accuracy" or "top-1 agreement".
        samples: that it was measured on.
    """

    points: tuple[Point, ...]
    max_drop: float
    what: str
    samples: int

    @property
    def best(self) -> Point | None:
        """The highest rate measured that holds; None if none does."""
        return max((p for p in self.points if self.holds(p)), key=lambda p: p.rate, default=None)

    def holds(self, point: Point) -> bool:
        """Whether no more is lost than may be."""
        return point.lost <= self.max_drop

    @property
    def warnings(self) -> list[str]:
        """What the user should know of the accepted rate: its interval, where the goal is in it."""
        best = self.best
        if best is None or best.high <= self.max_drop:
            return []
        told = f"the 95 % interval of what is lost on {self.samples} samples"
        beyond = f"{best.low:.2f} to {best.high:.2f} points, reaches beyond {self.max_drop:g}"
        return [f"{told}, {beyond}; more samples would tell finer"]

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        best = self.best
        return {
            "max_drop": self.max_drop,
            "what": self.what,
            "samples": self.samples,
            "rate": None if best is None else best.rate,
            "points": [asdict(point) for point in self.points],
        }

    def table(self) -> Text:
        """A line a rate, the accepted one marked."""
        best = self.best
        head = ("rate", "sparsity", "million MACs", self.what, "points lost", "95 % interval",
                "seconds", "")  # fmt: skip
        rows = [
            (f"{p.rate:.4g}", f"{p.sparsity:.3f}", f"{p.macs / 1e6:.1f}", f"{p.top1:.2f}",
             f"{p.lost:.2f}", f"{p.low:.2f} to {p.high:.2f}", f"{p.seconds:.1f}",
             "taken" if p is best else "holds" if self.holds(p) else "loses too much")
            for p in self.points
        ]  # fmt: skip
        return Shown(Table(head, rows))


@dataclass(frozen=True)
class Sweeps:
    """Prunes and repairs a model at a rate, and measures what came of it: `sweeps(rate)`.

    Attributes:
        sweep: gives the pruned and repaired model of a rate; must give the same each time.
        trials: the float model on samples that were held back from every sweep.
    """

    sweep: "Callable[[float], Model]"
    trials: "Trials"
    pattern: str = "block"

    def __call__(self, rate: float) -> Point:
        """The point of a rate. Raises what `sweep` does."""
        from onnxdrp.summary import summarize_layers

        started = time.perf_counter()
        model = self.sweep(rate)
        lost, low, high = self.trials.drop(model)
        layers = summarize_layers(model, self.pattern)
        return Point(
            rate=rate,
            sparsity=round(layers.sparsity, 6),
            macs=layers.current_mac,
            top1=self.trials.top1 - lost,
            lost=lost,
            low=low,
            high=high,
            seconds=round(time.perf_counter() - started, 3),
        )

    @property
    def what(self) -> str:
        """What points are of."""
        return "top-1 accuracy" if self.trials.labelled else "top-1 agreement"


def find_sparsity(
    measure: Callable[[float], Point],
    max_drop: float,
    *,
    what: str,
    samples: int,
    step: float = 0.01,
    sweeps: int = 8,
    start: float = 0.5,
    checkpoint: Path | None = None,
    key: str = "",
    progress: Callable[[int, int | None], None] | None = None,
) -> Curve:
    """Find the highest rate that holds, among the multiples of `step` up to 0.95.

    Args:
        measure: gives the point of a rate (a `Sweeps`); called once a rate.
        max_drop: points that may be lost.
        what: what points are of, for the curve.
        samples: that `measure` looks at.
        step: between rates.
        sweeps: most calls of `measure`. Eight are enough for steps of 0.01.
        start: the first rate that is tried.
        checkpoint: a JSON file that keeps the points measured so far, for a search that goes on
            after an interruption; read where its `key` is the same, deleted when all is done.
        key: what the search is of: model, options and data.
        progress: called with (points measured, the most that there may be) after each.

    Raises:
        OptionError: max_drop, step, sweeps or start is out of its range.
        CheckError: none of the rates tried holds; says what the lowest of them loses.
    """
    _check(max_drop, step, sweeps, start)
    saved = _Saved(checkpoint, key)
    search = _Search(Fraction(str(step)), max_drop, sweeps, samples, saved.read())
    while (k := search.candidate(start)) is not None:
        point = measure(float(k * search.step))
        search.found[k] = point
        saved.write(list(search.found.values()))
        log.info("rate %.4g: %.2f points lost", point.rate, point.lost)
        if progress is not None:
            progress(len(search.found), sweeps)
    saved.remove()
    points = tuple(search.found[k] for k in sorted(search.found))
    curve = Curve(points, max_drop, what, samples)
    if curve.best is None:
        raise CheckError(
            f"the goal of at most {max_drop:g} points of {what} lost is not reached: at the rate "
            f"{points[0].rate:g}, the lowest tried, it is {points[0].lost:.2f}; ask for less, or "
            "exclude the layers that cost most"
        )
    return curve


def _check(max_drop: float, step: float, sweeps: int, start: float) -> None:
    if not 0 <= max_drop <= 100:
        raise OptionError(f"max_drop {max_drop} is outside [0, 100] points; 1 is usual")
    if not 0.001 <= step <= 0.5:
        raise OptionError(f"step {step} is outside [0.001, 0.5]; 0.01 is usual")
    if sweeps < 1:
        raise OptionError(f"{sweeps} sweeps: give 1 or more")
    if not 0 < start < 1:
        raise OptionError(f"start {start} is outside (0, 1); 0.5 is usual")


@dataclass
class _Search:
    """The bracket, in steps: `lo` holds, `hi` fails or is one step beyond the highest."""

    step: Fraction
    max_drop: float
    sweeps: int
    samples: int
    known: list[Point]
    found: dict[int, Point] = field(init=False)

    def __post_init__(self) -> None:
        self.found = {}
        for point in self.known:
            k = Fraction(str(point.rate)) / self.step
            if k.denominator == 1:
                self.found[int(k)] = point

    def candidate(self, start: float) -> int | None:
        """The next rate, in steps; None when the search is done."""
        left = self.sweeps - len(self.found)
        lo = max((k for k, p in self.found.items() if p.lost <= self.max_drop), default=0)
        above = (k for k, p in self.found.items() if k > lo and p.lost > self.max_drop)
        hi = min(above, default=int(_HIGHEST / self.step) + 1)
        if left < 1 or hi - lo < 2:
            return None
        reach = 1 << (left - 1)  # what bisection can finish, once this is measured
        best = round(Fraction(str(start)) / self.step) if not self.found else self._guess(lo, hi)
        middle = (lo + hi) // 2
        low, high = min(middle, max(lo + 1, hi - reach)), max(middle, min(hi - 1, lo + reach))
        return min(max(best, low), high)

    def _guess(self, lo: int, hi: int) -> int:
        """Where the goal lies if loss grows exponentially; the middle if that is unknown."""
        if hi not in self.found:
            return (lo + hi + 1) // 2
        size = [self._log(self.found[k].lost if k else 0.0) for k in (lo, hi)]
        share = (self._log(self.max_drop) - size[0]) / (size[1] - size[0])
        return lo + math.floor(share * (hi - lo))

    def _log(self, lost: float) -> float:
        return math.log(max(lost, 0.0) + 50 / self.samples)


class _Saved:
    """The points measured so far, in a file."""

    version: ClassVar[str] = "onnxdrp-curve-1"

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key

    def read(self) -> list[Point]:
        """Those in the file; none if there is no file, or it belongs to another search."""
        if self.path is None:
            return []
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if (content["version"], content["key"]) != (self.version, self.key):
                log.info("%s: belongs to other work, which is begun anew", self.path)
                return []
            return [Point(**point) for point in content["points"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as e:
            log.warning("%s: is no whole checkpoint (%s); begun anew", self.path, e)
            return []

    def write(self, points: list[Point]) -> None:
        """Write all of them."""
        if self.path is None:
            return
        content = {"version": self.version, "key": self.key, "points": list(map(asdict, points))}
        with atomic_write(self.path) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")

    def remove(self) -> None:
        """Delete the file: the search is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
