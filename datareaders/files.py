"""Which files of a folder are read: nested, sorted, and limited evenly over the sub-folders."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from onnxdrp.errors import DataError, OptionError

__all__ = ["IMAGES", "TENSORS", "check_limit", "existing_folder", "find_files", "spread"]

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TENSORS = (".npy", ".npz")


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that is there."""
    folder = Path(path)
    if not folder.exists():
        raise DataError(f"{folder}: no such folder of calibration or evaluation data")
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file where a folder is wanted")
    return folder


def find_files(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Return the files with these suffixes, nested ones too, as sorted relative posix paths.

    Hidden files and folders (.name) are left out; links to folders are followed, loops are not.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        folders[:] = [
            name for name in folders if name[0] != "." and not _is_loop(here / name, folder)
        ]
        found += [
            (here / name).relative_to(folder).as_posix()
            for name in names
            if name[0] != "." and Path(name).suffix.lower() in suffixes
        ]
    return sorted(found)


def spread(names: Sequence[str], limit: int | None, seed: int) -> NDArray[np.int64]:
    """Choose `limit` names, as evenly as can be over their folders; return ascending positions.

    Which names of a folder, and which folders give one more where the limit does not divide
    evenly, is drawn with `seed` and does not depend on where the folder lies.
    """
    check_limit(limit)
    if limit is None or limit >= len(names):
        return np.arange(len(names), dtype=np.int64)
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        groups.setdefault(str(PurePosixPath(name).parent), []).append(position)
    rng = np.random.default_rng(seed)
    members = list(groups.values())
    order = rng.permutation(len(members))
    order = order[np.argsort([len(members[index]) for index in order], kind="stable")]
    chosen: list[int] = []
    for done, index in enumerate(order):  # the smallest first: what they lack, the others give
        share = (limit - len(chosen)) // (len(order) - done)
        group = members[index]
        chosen += rng.choice(group, min(share, len(group)), replace=False).tolist()
    return np.sort(np.array(chosen, dtype=np.int64))


def check_limit(limit: int | None) -> None:
    """Refuse a limit below 1."""
    if limit is not None and limit < 1:
        raise OptionError(f"limit {limit}: at least one sample is needed")


def _is_loop(path: Path, top: Path) -> bool:
    if not path.is_symlink():
        return False
    above = [path.parent, *(parent for parent in path.parents if parent.is_relative_to(top))]
    return path.resolve() in {parent.resolve() for parent in above}
