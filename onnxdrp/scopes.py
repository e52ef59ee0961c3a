"""Names as a tree of scopes: `/a/b/c` lies in `/a/b`, which lies in `/a`.

To show many names in few boxes, the largest scope is opened first, and the next, as long as there
are boxes left for what lies in it. A scope that holds one thing alone is shown as that thing.
"""

import heapq
from collections import defaultdict
from collections.abc import Collection, Sequence

from onnxdrp.errors import OptionError
from onnxdrp.options import near

__all__ = ["grouped"]

Path = tuple[str | int, ...]  # ends in the index of the name, where it is a name's own


def grouped(
    names: Sequence[str], most: int, expand: Collection[str] = (), collapse: Collection[str] = ()
) -> list[str]:
    """For each name the scope whose box it is in; the name itself where it has its own.

    Args:
        names: with "/" between scopes; where no name has one, with ".".
        most: boxes, as far as scopes allow.
        expand: scopes that are open whatever `most` is.
        collapse: scopes that stay closed.

    Raises:
        OptionError: there is no such scope.
    """
    mark = "/" if any("/" in name for name in names) else "."
    tree = _Tree([tuple(name.strip(mark).split(mark)) for name in names])
    opened = [tree.find(scope, mark) for scope in expand]
    closed = [tree.find(scope, mark) for scope in collapse]
    boxes = tree.boxes(most, opened, closed)
    return [_scope(name, box, mark) for name, box in zip(names, boxes, strict=True)]


def _scope(name: str, box: Path, mark: str) -> str:
    if isinstance(box[-1], int):
        return name
    return (mark if name.startswith(mark) else "") + mark.join(map(str, box))


class _Tree:
    def __init__(self, names: Sequence[Path]) -> None:
        self.leaves: list[Path] = [(*name, i) for i, name in enumerate(names)]
        self.children: dict[Path, set[Path]] = defaultdict(set)
        self.size: dict[Path, int] = defaultdict(int)
        for leaf in self.leaves:
            for depth in range(len(leaf)):
                self.children[leaf[:depth]].add(leaf[: depth + 1])
                self.size[leaf[:depth]] += 1

    def find(self, scope: str, mark: str) -> Path:
        path: Path = tuple(scope.strip(mark).split(mark))
        if path not in self.children:
            known = [mark.join(map(str, p)) for p in self.children]
            raise OptionError(f"no scope {scope!r}{near(scope.strip(mark), known)}")
        return path

    def boxes(self, most: int, opened: Collection[Path], closed: Collection[Path]) -> list[Path]:
        """The box of each leaf."""
        shown = self._inside(())
        waiting = [(-self.size[path], path) for path in shown if path in self.children]
        heapq.heapify(waiting)
        while waiting:
            _, path = heapq.heappop(waiting)
            if any(path[: len(scope)] == scope for scope in closed):
                continue
            inside = self._inside(path)
            wanted = any(scope[: len(path)] == path for scope in opened)
            if wanted or len(shown) - 1 + len(inside) <= most:
                shown = (shown - {path}) | inside
                for inner in inside & self.children.keys():
                    heapq.heappush(waiting, (-self.size[inner], inner))
        prefixes = ([leaf[: n + 1] for n in range(len(leaf))] for leaf in self.leaves)
        return [next(p for p in some if p in shown) for some in prefixes]

    def _inside(self, path: Path) -> set[Path]:
        """What is to be seen when a scope is opened."""
        return {self._through(child) for child in self.children[path]}

    def _through(self, path: Path) -> Path:
        while path in self.children and len(self.children[path]) == 1:
            (path,) = self.children[path]
        return path
