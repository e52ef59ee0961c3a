"""How good a sub-network is, and a file that keeps what is known of those that were tried."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from onnxdrp.channels.groups import Removed
from onnxdrp.errors import OptionError
from onnxdrp.executing import available_cores, in_order, own_or_threads
from onnxdrp.files import atomic_write

__all__ = ["By", "Judge", "Known", "SubnetScore"]

By = Literal["agreement", "sqnr", "top-1"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SubnetScore:
    """How close a sub-network, repaired cheaply, comes to the float model, on samples held back.

    Attributes:
        agreement: share of samples of the same top-1; None where no output is a row of class
            scores.
        sqnr_db: signal to noise of the worst output; None where nothing differs.
        top1: accuracy in percent, where labels were asked.
    """

    agreement: float | None
    sqnr_db: float | None
    top1: float | None = None

    def order(self, by: By) -> tuple[float, float]:
        """Larger is better; decibels decide between equal ones.

        Raises:
            OptionError: that figure is not known.
        """
        decibels = math.inf if self.sqnr_db is None else self.sqnr_db
        value = {"agreement": self.agreement, "sqnr": decibels, "top-1": self.top1}[by]
        if value is None:
            raise OptionError(f'{by} is not known: no output is [N, classes]; choose by "sqnr"')
        return value, decibels


Judge = Callable[[Removed], SubnetScore]
"""Gives the score of a model without some channels: the same for the same, wherever it is called.

Called from several threads at once, and pickled where the executor is not one of threads.
"""


class Known:
    """Scores by what they are of, in memory and, as they come, in a file.

    Args:
        path: the file; None: none. What is there counts if it has the same key.
        key: what all scores depend on.
    """

    version: ClassVar[str] = "onnxdrp-channels-tried-1"

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        if path is not None and not path.parent.is_dir():
            raise OptionError(f"{path}: there is no folder {path.parent}; create it")
        self._path, self._key = path, key
        self.scores = {} if path is None else self._read(path)

    def judged(
        self,
        judge: Judge,
        wanted: Mapping[str, Removed],
        *,
        executor: Executor | None = None,
        workers: int | None = None,
    ) -> Iterator[SubnetScore]:
        """Yield the score of each, in order; only what is not known is judged.

        Args:
            judge: says it.
            wanted: {what tells it from others: the channels that go}.
            executor: where it is called; None: threads of this process.
            workers: calls under way at a time; None: as many as there are cores.
        """
        count = workers or available_cores()
        todo = [removed for name, removed in wanted.items() if name not in self.scores]
        with own_or_threads(executor, count) as pool:
            ahead = count if isinstance(pool, ThreadPoolExecutor) else 2 * count
            fresh: Iterable[SubnetScore] = in_order(pool, judge, todo, ahead)
            results = iter(fresh)
            for name in wanted:
                if name not in self.scores:
                    self.scores[name] = next(results)
                    self._write()
                yield self.scores[name]

    def remove(self) -> None:
        """Delete the file: the work is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, SubnetScore]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (content["version"], content["key"]) != (self.version, self._key):
                log.info("%s: belongs to other work, which is begun anew", path)
                return {}
            return {name: SubnetScore(**score) for name, score in content["scores"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            log.warning("%s: is no whole checkpoint (%s); begun anew", path, e)
            return {}

    def _write(self) -> None:
        if self._path is None:
            return
        scores = {name: asdict(score) for name, score in self.scores.items()}
        content = {"version": self.version, "key": self._key, "scores": scores}
        with atomic_write(self._path) as file:
            file.write(json.dumps(content).encode() + b"\n")
