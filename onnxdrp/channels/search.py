"""One-step search: random sub-networks of the wanted multiply-adds, the best of which is kept.

EagleEye (Li et al. 2020), as AMD's Vitis AI Optimizer has it: sub-networks are drawn
(onnxdrp.channels.subnets), repaired cheaply, and scored (onnxdrp.channels.candidates). Which they
are depends on the seed and not on how many are tried, so each is known by its number.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any

from onnxdrp.channels.candidates import By, Judge, Known, SubnetScore
from onnxdrp.channels.subnets import Subnet, Subnets
from onnxdrp.display import Shown, Table, Tabular
from onnxdrp.errors import OptionError
from onnxdrp.report import Text

__all__ = ["Search", "Try", "search_channels"]


@dataclass(frozen=True)
class Try:
    """A sub-network that was tried.

    Attributes:
        index: its number.
        subnet: its rates.
        score: with the cheap repair.
    """

    index: int
    subnet: Subnet
    score: SubnetScore


@dataclass(frozen=True, repr=False)
class Search(Tabular):
    """What was tried.

    Attributes:
        tries: in the order they were drawn.
        by: what counts.
    """

    tries: tuple[Try, ...]
    by: By

    @property
    def best(self) -> Try:
        """The one of the highest score; the first of equal ones."""
        return max(self.tries, key=lambda one: (one.score.order(self.by), -one.index))

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it: without rates, but for those of the best."""
        return {
            "by": self.by,
            "best": self.best.index,
            "rates": dict(self.best.subnet.rates),
            "tries": [
                {"index": t.index, "share": round(t.subnet.share, 6), **asdict(t.score)}
                for t in self.tries
            ],
        }

    def table(self) -> Text:
        """A line a sub-network, the best first."""
        head = ("index", "MACs gone", "agreement", "SQNR dB", "top-1")
        ranked = sorted(self.tries, key=lambda t: t.score.order(self.by), reverse=True)
        rows = [
            (str(t.index), f"{t.subnet.share:.3f}", _text(t.score.agreement, 3),
             _text(t.score.sqnr_db, 2), _text(t.score.top1, 2))
            for t in ranked
        ]  # fmt: skip
        return Shown(Table(head, rows))


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def search_channels(
    subnets: Subnets,
    judge: Judge,
    ratio: float,
    *,
    tries: int = 200,
    index: int | None = None,
    by: By = "sqnr",
    seed: int = 0,
    known: Known | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Search:
    """Try sub-networks; those of the same seed are the same.

    Args:
        subnets: of the model.
        judge: gives their scores.
        ratio: share of the multiply-adds that goes.
        tries: how many sub-networks; fewer, where there are not so many different ones.
        index: try this one alone, which a search had found.
        by: what counts.
        seed: draws them.
        known: where scores are kept, for a search that goes on after an interruption.
        executor: where sub-networks are tried: any concurrent.futures.Executor, of threads, of
            processes or of machines; None: threads of this process. The result is the same.
        workers: how many at a time; None: as many as there are cores.
        progress: called with (sub-networks done, of how many).

    Raises:
        OptionError: `ratio` is outside (0, 1) or too high, or there is no sub-network `index`.
    """
    if tries < 1:
        raise OptionError(f"{tries} tries: give 1 or more; 200 is usual")
    if index is not None and not 0 <= index < tries:
        raise OptionError(f"index {index} is outside the {tries} tries, 0 to {tries - 1}")
    drawn = dict(enumerate(subnets.sample(ratio, tries, seed)))
    if index is not None:
        if index not in drawn:
            raise OptionError(
                f"index {index}: there are no more than {len(drawn)} different sub-networks"
            )
        drawn = {index: drawn[index]}
    wanted = {subnet.key: subnets.removed(subnet) for subnet in drawn.values()}
    scores = (known or Known()).judged(judge, wanted, executor=executor, workers=workers)
    found = []
    for (number, subnet), score in zip(drawn.items(), scores, strict=True):
        found.append(Try(number, subnet, score))
        if progress is not None:
            progress(len(found), len(drawn))
    return Search(tuple(found), by)
