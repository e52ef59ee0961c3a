"""Mask: its bits, what it does to weights, and its file."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.masks import Mask, dead_outputs, load_masks, save_masks

KEEPS = hnp.arrays(bool, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))


@given(KEEPS)
def test_bits_turn_back(keep):
    mask = Mask(keep)
    np.testing.assert_array_equal(mask.keep, keep)
    assert (mask.shape, mask.size, mask.count) == (keep.shape, keep.size, keep.sum())
    assert mask == Mask(keep.copy())
    assert hash(mask) == hash(Mask(keep.copy()))
    assert pickle.loads(pickle.dumps(mask)) == mask
    if keep.size:
        assert mask.sparsity == 1 - keep.mean() or abs(mask.sparsity - 1 + keep.mean()) < 1e-15
        assert mask != Mask(~keep)
        assert mask != Mask(keep[None])


@given(KEEPS, st.sampled_from([np.float16, np.float32, np.float64, np.int8]))
def test_apply(keep, dtype):
    weight = np.random.default_rng(0).integers(-9, -1, keep.shape).astype(dtype)
    before = weight.copy()
    pruned = Mask(keep).apply(weight)
    assert pruned.dtype == weight.dtype
    assert pruned.shape == weight.shape
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(pruned[keep], weight[keep])
    assert (pruned[~keep] == 0).all()
    assert not np.signbit(pruned[~keep]).any()  # never -0
    assert Mask.from_zeros(pruned) == Mask(keep)
    assert Mask(keep).holds(pruned)
    assert Mask(keep).holds(weight) == keep.all()


def test_apply_clears_nan_and_minus_zero():
    weight = np.array([np.nan, -0.0, np.inf, 2], np.float32)
    pruned = Mask(np.array([False, False, False, True])).apply(weight)
    assert pruned.tobytes() == np.array([0, 0, 0, 2], np.float32).tobytes()
    np.testing.assert_array_equal(Mask.from_zeros(weight).keep, [True, False, True, True])


def test_apply_to_a_read_only_weight_gives_a_writable_one():
    weight = np.ones((3, 3), np.float32)
    weight.flags.writeable = False
    pruned = Mask(np.eye(3, dtype=bool)).apply(weight)
    pruned[0, 0] = 5
    assert weight[0, 0] == 1


def test_holds_lets_kept_weights_be_zero():
    mask = Mask(np.array([True, True, False]))
    assert mask.holds(np.array([0.0, 1.0, -0.0]))
    assert not mask.holds(np.array([0.0, 1.0, 1e-30]))
    assert not mask.holds(np.array([0.0, 1.0, np.nan]))


def test_masks_do_not_change():
    keep = np.array([True, False])
    mask = Mask(keep)
    keep[1] = True
    mask.keep[1] = True
    assert mask.count == 1
    with pytest.raises(AttributeError):
        mask.shape = (3,)


def test_meeting():
    one, two = Mask(np.array([1, 1, 0, 0], bool)), Mask(np.array([0, 1, 1, 0], bool))
    assert one.intersects(two)
    assert not one.intersects(Mask(~one.keep))
    np.testing.assert_array_equal((one & two).keep, [False, True, False, False])
    with pytest.raises(OptionError, match="other mask"):
        one.intersects(Mask(np.ones((2, 2), bool)))


def test_a_mask_of_another_shape_is_refused():
    mask = Mask(np.ones((2, 3), bool))
    for use in (mask.apply, mask.holds):
        with pytest.raises(OptionError, match=r"conv1\.w has shape \[3, 2\], its mask \[2, 3\]"):
            use(np.ones((3, 2)), "conv1.w")
    with pytest.raises(OptionError, match="booleans"):
        Mask(np.ones(3))


def test_dead_outputs():
    keep = np.ones((4, 2, 3, 3), bool)
    keep[[1, 3]] = False
    keep[0, :, 1:] = False
    assert dead_outputs(keep).tolist() == [1, 3]
    assert dead_outputs(keep.swapaxes(0, 1), 1).tolist() == [1, 3]
    assert dead_outputs(keep.astype(np.float32).swapaxes(0, 3), -1).tolist() == [1, 3]
    assert dead_outputs(np.ones((4, 2), bool)).tolist() == []


# --- files -------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(st.characters(exclude_characters="\0")), KEEPS, max_size=4))
def test_files_turn_back(tmp_path_factory, keeps):
    path = tmp_path_factory.mktemp("masks") / "masks.npz"
    masks = {name: Mask(keep) for name, keep in keeps.items()}
    assert save_masks(path, masks) == path
    read = load_masks(path)
    assert read == masks
    assert list(read) == list(masks)


def test_names_that_trouble_zip_files(tmp_path):
    names = ["file", "a/b", "a\\b", "../up", "a.npy", "a", "onnx::Conv_1", "names", "ä", "format"]
    masks = {name: Mask(np.arange(20) % (2 + i) == 0) for i, name in enumerate(names)}
    assert load_masks(save_masks(tmp_path / "m.npz", masks)) == masks


def test_equal_masks_give_equal_bytes(tmp_path):
    masks = {"w": Mask(np.random.default_rng(0).random((64, 33)) < 0.3)}
    one, two = (save_masks(tmp_path / name, masks).read_bytes() for name in ("a.npz", "b.npz"))
    assert one == two
    assert len(one) < 64 * 33 / 8 + 1500


def test_saving_replaces_the_file_or_leaves_it(tmp_path, monkeypatch):
    path = save_masks(tmp_path / "m.npz", {"w": Mask(np.ones(3, bool))})
    save_masks(path, {"w": Mask(np.zeros(3, bool))})
    assert load_masks(path)["w"].count == 0

    def breaks(file, **entries):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", breaks)
    with pytest.raises(ModelError, match="No space left"):
        save_masks(path, {"w": Mask(np.ones(3, bool))})
    assert load_masks(path)["w"].count == 0
    assert [file.name for file in tmp_path.iterdir()] == ["m.npz"]


def test_saved_masks_are_readable_as_other_files_are(tmp_path):
    path, plain = save_masks(tmp_path / "m.npz", {}), tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_missing_folder(tmp_path):
    with pytest.raises(ModelError, match=r"none does not exist"):
        save_masks(tmp_path / "none" / "m.npz", {})
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        load_masks(tmp_path / "none.npz")
    with pytest.raises(OptionError, match="cannot be read: Is a directory"):
        load_masks(tmp_path)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


FORMAT = np.array("onnxdrp-masks-1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 nothing",
        b"no masks at all",
        npy(np.ones(3)),
        npy(np.array([{}], object)),
        npz(w=np.ones(3)),
        npz(format=np.array("other"), names=np.array([], str)),
        npz(format=FORMAT),
        npz(format=FORMAT, names=np.array(["w"])),
        npz(format=FORMAT, names=np.array(["w"]), shape_0=np.array([9]), bits_0=np.zeros(1, "u1")),
        npz(format=FORMAT, names=np.array(["w"]), shape_0=np.array([8]), bits_0=np.zeros(1)),
        npz(format=FORMAT, names=np.array(["w"]), shape_0=np.array([-8]), bits_0=np.zeros(1, "u1")),
        npz(format=FORMAT, names=np.array([{}], object)),
    ],
)
def test_what_is_no_file_of_masks_is_refused(tmp_path, content):
    path = tmp_path / "m.npz"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=r"m\.npz: not a file of masks"):
        load_masks(path)


def test_a_truncated_file_is_refused(tmp_path):
    mask = Mask(np.random.default_rng(0).random(4000) < 0.5)
    content = save_masks(tmp_path / "m.npz", {"w": mask}).read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / "m.npz").write_bytes(content[:length])
        with pytest.raises(OptionError, match="not a file of masks"):
            load_masks(tmp_path / "m.npz")


def test_damaged_bytes_are_refused_or_harmless(tmp_path):
    mask = Mask(np.random.default_rng(0).random(400) < 0.5)
    content = save_masks(tmp_path / "m.npz", {"w": mask}).read_bytes()
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "m.npz").write_bytes(damaged)
        try:
            assert load_masks(tmp_path / "m.npz")["w"] == mask
        except OptionError as error:
            assert "not a file of masks" in str(error)  # noqa: PT017 - either is right
