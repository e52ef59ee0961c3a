from pathlib import Path

import numpy as np
import pytest
from datareaders_fakes import Array, Fake, Info, fake, gathered, pixels, sizes

from onnxdrp.datareaders import RecordedReader
from onnxdrp.errors import DataError

TWO = Fake([Info("a", np.dtype("f4"), ("N", 2)), Info("b", np.dtype("f4"), ("N", 3, 4))])


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_one_sample_a_file(tmp_path: Path) -> None:
    x = floats(5, 3, 4, 4)
    for number, sample in enumerate(x):
        np.save(tmp_path / f"{number}.npy", sample)
    reader = RecordedReader(tmp_path, fake("N", 3, 4, 4), batch=2)
    assert sizes(reader) == [2, 2, 1]
    np.testing.assert_array_equal(gathered(reader), x)
    np.testing.assert_array_equal(gathered(reader.pick(np.array([1, 4]))), x[[1, 4]])


def test_batches_and_samples_and_kinds_may_mix(tmp_path: Path) -> None:
    x = floats(9, 3, 4, 4)
    np.save(tmp_path / "0.npy", x[:3])
    np.savez(tmp_path / "1.npz", x=x[3])
    np.savez_compressed(tmp_path / "2.npz", arr_0=x[4:8])
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "sub" / "3.npy", x[8:])
    reader = RecordedReader(tmp_path, fake(1, 3, 4, 4), batch=2)
    assert reader.samples == 9
    assert sizes(reader) == [2, 2, 2, 2, 1]
    np.testing.assert_array_equal(gathered(reader), x)


def test_pixels_are_prepared(tmp_path: Path) -> None:
    x = pixels(2, 6, 6, 3)
    for number, sample in enumerate(x):
        np.save(tmp_path / f"{number}.npy", sample)
    got = gathered(RecordedReader(tmp_path, fake("N", 3, 6, 6), mean=0.5, std=0.5))
    want = ((x / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_sizes_may_differ_from_file_to_file(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", floats(3, 4, 5))
    np.save(tmp_path / "1.npy", floats(3, 4, 5))
    np.save(tmp_path / "2.npy", floats(3, 7, 5))
    reader = RecordedReader(tmp_path, fake("N", 3, None, None), batch=4)
    assert [batch["x"].shape for batch in reader.batches()] == [(2, 3, 4, 5), (1, 3, 7, 5)]


def test_several_inputs_in_npz(tmp_path: Path) -> None:
    a, b = floats(4, 2), floats(4, 3, 4, seed=1)
    for number in range(4):
        np.savez(tmp_path / f"{number}.npz", a=a[number], b=b[number])
    reader = RecordedReader(tmp_path, TWO, batch=3)
    np.testing.assert_array_equal(gathered(reader, "a"), a)
    np.testing.assert_array_equal(gathered(reader, "b"), b)


def test_several_inputs_in_folders(tmp_path: Path) -> None:
    a, b = floats(4, 2), floats(4, 3, 4, seed=1)
    for name, arrays in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        for number in range(4):
            np.save(tmp_path / name / f"{number}.npy", arrays[number])
    reader = RecordedReader(tmp_path, TWO, batch=3)
    np.testing.assert_array_equal(gathered(reader, "a"), a)
    np.testing.assert_array_equal(gathered(reader, "b"), b)
    (tmp_path / "b" / "2.npy").unlink()
    with pytest.raises(DataError, match=r"b: lacks 1 files that other inputs have: 2"):
        RecordedReader(tmp_path, TWO)


def test_labels_of_all_files_or_none(tmp_path: Path) -> None:
    x = floats(4, 2)
    np.savez(tmp_path / "0.npz", x=x[0], y=7)
    np.savez(tmp_path / "1.npz", x=x[1:], y=[1, 2, 3])
    labels = RecordedReader(tmp_path, fake("N", 2)).labels
    assert labels is not None
    assert labels.tolist() == [7, 1, 2, 3]
    np.save(tmp_path / "2.npy", x[0])
    assert RecordedReader(tmp_path, fake("N", 2)).labels is None


def test_limit_is_even_over_folders(tmp_path: Path) -> None:
    for group, value in (("p", 0), ("q", 1)):
        (tmp_path / group).mkdir()
        for number in range(6):
            np.save(tmp_path / group / f"{number}.npy", np.full(2, value, np.float32))
    got = gathered(RecordedReader(tmp_path, fake("N", 2), limit=4))
    assert got[:, 0].tolist() == [0, 0, 1, 1]


def test_many_files_keep_no_file_open(tmp_path: Path) -> None:
    for number in range(1500):  # beyond the usual limit of open files
        np.save(tmp_path / f"{number:04}.npy", np.full(2, number, np.float32))
    reader = RecordedReader(tmp_path, fake("N", 2), batch=64)
    assert gathered(reader)[:, 0].tolist() == list(range(1500))


def test_what_is_not_finite_is_refused_with_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", floats(2))
    np.save(tmp_path / "1.npy", np.array([[1, 2], [1, np.nan]], np.float32))
    with pytest.raises(DataError, match=r"1\.npy: sample 1 of 'x' holds NaN"):
        gathered(RecordedReader(tmp_path, fake("N", 2)))


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        RecordedReader(tmp_path / "none", fake("N", 2))
    with pytest.raises(DataError, match=r"holds no tensor \(\.npy, \.npz\)"):
        RecordedReader(tmp_path, fake("N", 2))
