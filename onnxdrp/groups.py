"""Union-find: what must be treated alike, over a whole graph in linear time."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

__all__ = ["Groups"]

Key = TypeVar("Key", bound=Hashable)


class Groups(Generic[Key]):
    """Disjoint sets of keys, joined with path halving; each has one of its keys as its name."""

    def __init__(self) -> None:
        self._parent: dict[Key, Key] = {}

    def find(self, key: Key) -> Key:
        """The name of the group of a key that was joined before."""
        parent = self._parent
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def join(self, keys: Iterable[Key]) -> None:
        """Make these keys, known or new, one group; a single key becomes one of its own."""
        root: Key | None = None
        for key in keys:
            self._parent.setdefault(key, key)
            if root is None:
                root = self.find(key)
            else:
                self._parent[self.find(key)] = root

    def roots(self) -> dict[Key, Key]:
        """{key: name of its group}, keys in the order in which they came."""
        return {key: self.find(key) for key in self._parent}
