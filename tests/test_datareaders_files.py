import csv
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.datareaders.files import existing_folder, find_files, spread
from onnxdrp.datareaders.labels import read_labels
from onnxdrp.errors import DataError, OptionError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_finds_nested_files_sorted_by_relative_path(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.PNG", "b/10.png", "a.jpg", "b/c/x.webp", "b.txt", "b-1/0.jpeg")
    assert find_files(tmp_path, (".jpg", ".jpeg", ".png", ".webp")) == [
        "a.jpg",
        "b-1/0.jpeg",
        "b/10.png",
        "b/2.PNG",
        "b/c/x.webp",
    ]


def test_leaves_hidden_files_out(tmp_path: Path) -> None:
    touch(tmp_path, "._a.png", ".cache/b.png", "c.png")
    assert find_files(tmp_path, (".png",)) == ["c.png"]


def test_follows_links_but_no_loops(tmp_path: Path) -> None:
    touch(tmp_path, "data/a/1.png", "elsewhere/2.png")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data" / "a")
    found = find_files(tmp_path / "data", (".png",))
    assert found == ["a/1.png", "linked/2.png", "linked/back/1.png"]


def test_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        existing_folder(tmp_path / "nowhere")
    touch(tmp_path, "file")
    with pytest.raises(DataError, match="is a file where a folder is wanted"):
        existing_folder(tmp_path / "file")


groups = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@given(groups, st.integers(1, 200), st.integers(0, 5))
def test_limit_spreads_evenly_over_folders(sizes: list[int], limit: int, seed: int) -> None:
    names = [f"{g}/{n:02}.png" for g, size in enumerate(sizes) for n in range(size)]
    chosen = spread(names, limit, seed)
    assert len(chosen) == min(limit, len(names))
    assert (np.diff(chosen) > 0).all()
    counts = Counter(str(PurePosixPath(names[index]).parent) for index in chosen)
    got = np.array([counts[str(g)] for g in range(len(sizes))])
    open_ended = got[got < np.array(sizes)]  # folders that could have given more
    if len(open_ended):
        assert got.max() - open_ended.min() <= 1
    np.testing.assert_array_equal(spread(names, limit, seed), chosen)


def test_limit_draws_with_the_seed() -> None:
    names = [f"{n:03}.png" for n in range(100)]
    draws = [tuple(spread(names, 10, seed)) for seed in range(4)]
    assert len(set(draws)) == 4
    assert draws[0] != tuple(range(10))


def test_limit_draws_also_who_gives_one_more() -> None:
    names = [f"{g}/{n}.png" for g in range(4) for n in range(5)]
    extra = {names[spread(names, 1, seed)[0]][0] for seed in range(40)}
    assert extra == set("0123")


def test_no_limit_takes_all() -> None:
    np.testing.assert_array_equal(spread(["a", "b"], None, 0), [0, 1])


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(limit: int) -> None:
    with pytest.raises(OptionError, match=f"limit {limit}: at least one sample"):
        spread(["a"], limit, 0)


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_labels_of_a_csv_are_aligned_with_the_files(tmp_path: Path) -> None:
    rows = [["class_index", "file"], ["7", "b/2.png"], ["3", "./a.png"], ["0", "b\\1.png"]]
    path = write_csv(tmp_path / "l.csv", rows)
    labels = read_labels(path, tmp_path, ["a.png", "b/1.png", "b/2.png"])
    np.testing.assert_array_equal(labels, [3, 0, 7])
    assert labels.dtype == np.int64


def test_labels_of_folders_are_indices_of_sorted_folders(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "ant/x/2.png", "dog/3.png", "bee/readme.txt")
    labels = read_labels("folders", tmp_path, find_files(tmp_path, (".png",)))
    np.testing.assert_array_equal(labels, [0, 2, 3])  # bee is class 1, with no image


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "class_index"], ["a.png", "1"]], r"1 files have no label in .*: b\.png"),
        (
            [["file", "class_index"], ["a.png", "1"], ["b.png", "1"], ["c.png", "2"]],
            r"1 labels have no file in .*: c\.png",
        ),
        ([["name", "class"], ["a.png", "1"]], "must name the columns file,class_index; it names"),
        ([], "it names nothing"),
        ([["file", "class_index"], ["a.png", "cat"]], r"l\.csv:2: class_index 'cat' is not a"),
        ([["file", "class_index"], ["a.png"]], "class_index None is not a whole number"),
        ([["file", "class_index"], ["a.png", "-1"]], "class_index -1 is below 0"),
        (
            [["file", "class_index"], ["a.png", "1"], ["a.png", "2"]],
            r"l\.csv:3: a\.png has a second label",
        ),
    ],
)
def test_refuses_labels(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    path = write_csv(tmp_path / "l.csv", rows)
    with pytest.raises(DataError, match=message):
        read_labels(path, tmp_path, ["a.png", "b.png"])


def test_names_the_first_few_only(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "l.csv", [["file", "class_index"]])
    with pytest.raises(DataError, match=r"9 files have no label in .*: 0, 1, 2, \.\.\.$"):
        read_labels(path, tmp_path, [str(n) for n in range(9)])


def test_refuses_a_missing_csv_and_loose_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the labels"):
        read_labels(tmp_path / "no.csv", tmp_path, ["a.png"])
    with pytest.raises(DataError, match=r"1 images are in no class sub-folder: a\.png"):
        read_labels("folders", tmp_path, ["a.png"])
