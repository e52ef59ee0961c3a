"""Reading and writing files: what is mapped, what is refused, what a failed write leaves behind."""

import errno
import gc
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from builders import contents, conv_net, external, make_model, mlp, normal, read_proto, value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxdrp.errors import ModelError
from onnxdrp.files import atomic_write
from onnxdrp.model import Model
from onnxdrp.modelfile import read_skeleton
from onnxdrp.weights import THRESHOLD, Weights
from onnxdrp.wire import encode_varint

SAME_FOLDER = [HealthCheck.function_scoped_fixture]  # every example may write the same file

TYPES = [
    np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.uint16, np.int32,
    np.uint32, np.int64, np.uint64, np.bool_, np.complex64, np.complex128,
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu,
    ml_dtypes.float4_e2m1fn, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2,
]  # fmt: skip


def stored(array: Any, name: str = "w", **more: Any) -> onnx.ModelProto:
    """A model that gives out one stored tensor."""
    tensor = array if isinstance(array, TensorProto) else numpy_helper.from_array(array, name)
    node = helper.make_node("Identity", [tensor.name], ["y"], "identity")
    out = helper.make_tensor_value_info("y", tensor.data_type, list(tensor.dims))
    return make_model([node], [], [out], [tensor], opset=25, ir_version=13, **more)


def values_of(dtype: Any, count: int) -> np.ndarray:
    """Values that use the whole range of a type: every bit that can be set is set somewhere."""
    bits = np.random.default_rng(0).integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8)
    name = np.dtype(dtype).name
    if name in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn"):
        width = 2 if "int2" in name else 4
        low = -(1 << width - 1) if name.startswith("int") else 0
        return (bits.astype(np.int64) % (1 << width) + low).astype(dtype)
    return bits % 2 == 1 if dtype is np.bool_ else bits.view(dtype)


# -------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("count", [7, 4099], ids=["small", "large"])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda d: np.dtype(d).name)
def test_bytes_of_every_type_survive(tmp_path: Path, dtype: Any, count: int) -> None:
    proto = stored(values_of(dtype, count))
    want = contents(proto)
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    external(proto, tmp_path / "external.onnx")
    for name in ("in.onnx", "external.onnx"):
        model = Model.load(tmp_path / name)
        assert contents(read_proto(model.save(tmp_path / "out.onnx"))) == want
        array = model.weight("w")  # once looked at, it is still what it was
        assert array.dtype == np.dtype(dtype)
        raw = numpy_helper.from_array(array, "w").raw_data
        assert raw == want["graph"]["weights"]["w"][-1]
        assert contents(read_proto(model.save(tmp_path / "out.onnx"))) == want
        saved = model.save(tmp_path / "split.onnx", external_threshold=1)
        assert contents(read_proto(saved)) == want


@pytest.mark.parametrize("count", [5, 3000], ids=["small", "large"])
@pytest.mark.parametrize(
    ("data_type", "field"),
    [
        (TensorProto.FLOAT, "float_data"), (TensorProto.DOUBLE, "double_data"),
        (TensorProto.INT64, "int64_data"), (TensorProto.INT32, "int32_data"),
        (TensorProto.INT8, "int32_data"), (TensorProto.FLOAT16, "int32_data"),
        (TensorProto.BFLOAT16, "int32_data"), (TensorProto.INT4, "int32_data"),
        (TensorProto.UINT64, "uint64_data"), (TensorProto.BOOL, "int32_data"),
        (TensorProto.COMPLEX64, "float_data"),
    ],
)  # fmt: skip
def test_typed_fields_survive(tmp_path: Path, data_type: int, field: str, count: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    array = (np.arange(count) % 7).astype(dtype)
    tensor = helper.make_tensor("w", data_type, [count], array)
    assert len(getattr(tensor, field)) > 0
    path = tmp_path / "in.onnx"
    path.write_bytes(stored(tensor).SerializeToString())
    model = Model.load(path)
    assert (model.weight("w") == array).all()
    saved = read_proto(model.save(tmp_path / "out.onnx"))
    assert (numpy_helper.to_array(saved.graph.initializer[0]) == array).all()
    assert saved.graph.initializer[0].data_type == data_type


def test_strings_and_empty_tensors_survive(tmp_path: Path) -> None:
    strings = helper.make_tensor(
        "s", TensorProto.STRING, [2, 200], [b"x%d" % i for i in range(400)]
    )
    empty = helper.make_tensor("e", TensorProto.FLOAT, [0, 4], [])
    nodes = [
        helper.make_node("Identity", ["s"], ["y"], "a"),
        helper.make_node("Identity", ["e"], ["z"], "b"),
    ]
    outs = [helper.make_tensor_value_info("y", TensorProto.STRING, [2, 200]), value("z", [0, 4])]
    proto = make_model(nodes, [], outs, [strings, empty])
    path = tmp_path / "in.onnx"
    path.write_bytes(proto.SerializeToString())
    model = Model.load(path)
    assert model.weight("s")[1, 199] in ("x399", b"x399")
    assert model.weight("e").shape == (0, 4)
    assert contents(read_proto(model.save(tmp_path / "out.onnx"))) == contents(proto)


def test_external_data_is_laid_out_for_mapping(tmp_path: Path) -> None:
    proto = conv_net(64)
    saved = Model.from_proto(proto).save(tmp_path / "m.onnx", external_threshold=2048)
    skeleton = onnx.ModelProto.FromString(saved.read_bytes())
    outside = {t.name: t for t in skeleton.graph.initializer if t.external_data}
    assert set(outside) == {"conv1.weight", "conv2.weight", "fc.weight"}
    for tensor in outside.values():
        entries = {e.key: e.value for e in tensor.external_data}
        assert entries["location"] == "m.onnx.data"
        assert int(entries["offset"]) % 4096 == 0
    assert contents(read_proto(saved)) == contents(proto)
    assert contents(Model.load(saved).proto()) == contents(proto)


def test_a_model_may_be_saved_over_its_own_external_data(tmp_path: Path) -> None:
    source = Model.from_proto(conv_net()).save(tmp_path / "m.onnx", external_threshold=1)
    before = read_proto(source)
    model = Model.load(source)
    model.set_weight("fc.weight", model.weight("fc.weight") * 2)
    model.save(source, overwrite=True, external_threshold=1)
    after = {t.name: numpy_helper.to_array(t) for t in read_proto(source).graph.initializer}
    for tensor in before.graph.initializer:
        factor = 2 if tensor.name == "fc.weight" else 1
        assert (after[tensor.name] == factor * numpy_helper.to_array(tensor)).all()


def test_weights_are_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp(64, 512, 64).SerializeToString())
    skeleton, weights = read_skeleton(path)
    assert skeleton.ByteSize() < 2000 < path.stat().st_size
    tensor = next(t for t in skeleton.graph.initializer if t.name == "fc0.weight")
    weight = weights.of(tensor)
    assert weight is not None
    base = weight.array()
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_a_replaced_weight_is_freed() -> None:
    model = Model.from_proto(mlp(64, 64, 8))
    old = weakref.ref(model.weight("fc0.weight"))
    new = weakref.ref(array := normal([64, 64], 9))
    model.set_weight("fc0.weight", array)
    del array
    gc.collect()
    assert old() is None
    assert model.fingerprint()
    assert model.skeleton()
    assert new() is not None
    model.set_weight("fc0.weight", normal([64, 64], 10))
    gc.collect()
    assert new() is None


# ----------------------------------------------------------------------------------------- refusals


WHOLE = conv_net(16).SerializeToString()


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_truncated_file_is_refused(tmp_path: Path, sixteenth: int) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(WHOLE[: len(WHOLE) * sixteenth // 16])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        Model.load(path)


def test_every_cut_of_a_file_is_refused_or_loses_only_the_end(tmp_path: Path) -> None:
    data = mlp(20, 20, 2).SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(len(data) - 40, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"^[^\n]+$"):
            Model.load(path)


@settings(suppress_health_check=SAME_FOLDER)
@given(data=st.binary(max_size=4000))
def test_random_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"^[^\n]+$"):
        Model.load(path)


@settings(suppress_health_check=SAME_FOLDER)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), run=st.integers(1, 64))
def test_damaged_bytes_load_or_are_refused(tmp_path: Path, at: int, byte: int, run: int) -> None:
    data = bytearray(WHOLE)
    at %= len(data)
    data[at : at + run] = bytes([byte]) * len(data[at : at + run])
    path = tmp_path / "damaged.onnx"
    path.write_bytes(bytes(data))
    with suppress(ModelError):
        Model.load(path).skeleton()


def nested(depth: int) -> bytes:
    """Graphs in attributes of nodes of graphs ..., deeper than protobuf takes."""
    message = bytes(1024)
    for _ in range(depth):
        for tag in (
            b"\x32",
            b"\x2a",
            b"\x0a",
        ):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            message = tag + encode_varint(len(message)) + message
    return b"\x3a" + encode_varint(len(message)) + message


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "cannot be read"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_text("hello, world\n"), "not an ONNX model"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(3000)), "not an ONNX model"),
        (lambda p: p.write_bytes(b"\xff" * 5_000_000), "not an ONNX model"),
        (lambda p: p.write_bytes(nested(3000)), "not an ONNX model"),
        (lambda p: p.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()), "no graph"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, make: Any, words: str) -> None:
    make(path := tmp_path / "in.onnx")
    with pytest.raises(ModelError, match=words) as caught:
        Model.load(path)
    assert str(path) in str(caught.value)


def _external_entry(path: Path, key: str, entry: str) -> None:
    proto = onnx.ModelProto.FromString(path.read_bytes())
    for pair in proto.graph.initializer[0].external_data:
        if pair.key == key:
            pair.value = entry
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("key", "entry", "words"),
    [
        ("location", "missing.bin", "is missing"),
        ("location", "../outside.bin", "outside the folder"),
        ("location", "/etc/passwd", "outside the folder"),
        ("location", "sub/../../outside.bin", "outside the folder"),
        ("location", "link.bin", "outside the folder"),
        ("location", "", "outside the folder"),
        ("location", ".", "is missing"),
        ("offset", "100000", "ends before"),
        ("length", "100000", "ends before"),
        ("length", "8", "needs"),
        ("offset", "-4", "ends before"),
        ("offset", "many", "offset"),
        ("length", "1e3", "length"),
    ],
)
def test_bad_external_data_is_refused(tmp_path: Path, key: str, entry: str, words: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(100_000))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    path = external(mlp(20, 20, 2), folder / "m.onnx")
    assert Model.load(path).weight("fc0.weight").shape == (20, 20)
    _external_entry(path, key, entry)
    with pytest.raises(ModelError, match=words) as caught:
        Model.load(path)
    assert "fc0.weight" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_sizes_inside_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for count, kept in ((4, 3), (1000, 999)):
        proto = stored(np.ones(count, np.float32))
        proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[: 4 * kept]
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="'w'"):
            Model.load(path).weight("w")


# ------------------------------------------------------------------------------------------ writing


def test_the_input_is_not_written_over_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(conv_net().SerializeToString())
    (tmp_path / "link.onnx").symlink_to(path)
    before = path.read_bytes()
    model = Model.load(path)
    for same in (path, tmp_path / "." / "m.onnx", tmp_path / "link.onnx"):
        with pytest.raises(ModelError, match="is the input"):
            model.save(same)
    assert path.read_bytes() == before
    model.save(path, overwrite=True)
    assert contents(read_proto(path)) == contents(onnx.ModelProto.FromString(before))


def test_the_external_data_of_the_input_is_not_written_over(tmp_path: Path) -> None:
    # other.onnx would keep its data in other.onnx.data, which is where in.onnx has its own
    source = external(conv_net(), tmp_path / "in.onnx")
    data = tmp_path / "other.onnx.data"
    (tmp_path / "in.bin").rename(data)
    proto = onnx.ModelProto.FromString(source.read_bytes())
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = data.name
    source.write_bytes(proto.SerializeToString())
    before = data.read_bytes()
    model = Model.load(source)
    with pytest.raises(ModelError, match=r"other\.onnx\.data"):
        model.save(tmp_path / "other.onnx", external_threshold=1)
    assert data.read_bytes() == before
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("missing/m.onnx", "does not exist"), (".", "is a folder")]
)
def test_an_unusable_output_path_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Model.from_proto(conv_net()).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> Any:  # root may write anywhere, so the system call is replaced
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("onnxdrp.files.tempfile.mkstemp", refuse)
    with pytest.raises(ModelError, match=r"m\.onnx: cannot be written \(Permission denied\)"):
        Model.from_proto(conv_net()).save(tmp_path / "m.onnx")


@pytest.mark.parametrize("threshold", [None, 1])
@pytest.mark.parametrize("fails_at", ["write", "rename"])
def test_a_failed_write_keeps_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str, threshold: int | None
) -> None:
    path = Model.from_proto(conv_net(seed=1)).save(
        tmp_path / "m.onnx", external_threshold=threshold
    )
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    model = Model.from_proto(conv_net(seed=2))

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    if fails_at == "write":
        weight = model._weights.of(model.skeleton().graph.initializer[0])
        assert weight is not None
        weight.raw = full
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ModelError, match="No space left on device"):
        model.save(path, external_threshold=threshold)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_atomic_write_of_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_write(tmp_path / "out") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_saved_file_has_the_usual_permissions(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    saved = Model.from_proto(conv_net()).save(tmp_path / "m.onnx")
    assert saved.stat().st_mode == ordinary.stat().st_mode


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = (Model.from_proto(conv_net()) for _ in range(2))
    assert one.save(tmp_path / "1.onnx").read_bytes() == two.save(tmp_path / "2.onnx").read_bytes()


def test_adopted_arrays_are_not_copied() -> None:
    weights = Weights()
    array = np.ones(THRESHOLD, np.float32)
    weight = weights.adopt(array)
    assert np.shares_memory(weight.raw(), array)
    assert weights.adopt(array) is weight
    assert not array.flags.writeable


def test_an_array_is_the_same_weight_however_often_it_is_adopted() -> None:
    weights, other = Weights(), Weights()
    arrays = [np.full(THRESHOLD, i, np.uint8) for i in range(3)]
    found = [weights.adopt(a) for a in arrays]
    assert len({w.reference for w in found}) == 3
    assert [weights.adopt(a) for a in arrays] == found
    elsewhere = other.adopt(arrays[0])  # the other table's weight, over the same memory
    assert elsewhere is not found[0]
    assert other.adopt(arrays[0]) is elsewhere
    assert np.array_equal(weights.adopt(arrays[0]).array(), arrays[0])
    equal = arrays[1].copy()
    assert weights.adopt(equal) not in found  # alike is not the same


def test_what_a_weight_gave_is_that_weight_while_it_lives() -> None:
    model = Model.from_proto(conv_net())
    for name in model.weights():
        small = model.weight(name)
        kept = model._weights.keeps(small)
        assert kept == (small.nbytes >= THRESHOLD)
        if kept:
            weight = model._weights.adopt(small)
            assert weight.holds(small)
            del small
            gc.collect()
            assert not weight.holds(np.empty(weight.shape, np.float32))


def test_the_inventory_is_that_of_the_exported_graph() -> None:
    model = Model.from_proto(conv_net())
    model.set_weight("fc.bias", model.weight("fc.bias") + 1)
    digests, size = model.inventory()
    initializers = model.skeleton().graph.initializer
    assert digests.keys() == {t.name for t in initializers}
    weights = [model._weights.of(t) for t in initializers]
    assert any(weights)
    assert not all(weights)
    expected = {
        t.name: w.digest() if w else t.SerializeToString(deterministic=True).hex()
        for t, w in zip(initializers, weights, strict=True)
    }
    assert digests == expected
    assert size == sum(np.asarray(model.weight(name)).nbytes for name in digests)


def test_the_inventory_has_what_only_a_body_reads() -> None:
    w = numpy_helper.from_array(normal((16, 32), 1), "w")
    inner = numpy_helper.from_array(normal((16, 32), 2), "inner")
    bodies = [
        helper.make_graph(
            [helper.make_node("Add", [a, "w"], [f"{a}_out"], f"add_{a}")],
            a, [], [value(f"{a}_out", (16, 32))], stored,
        )
        for a, stored in (("inner", [inner]), ("w", []))
    ]  # fmt: skip
    then, other = bodies
    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=then, else_branch=other)
    model = Model.from_proto(
        make_model([node], [value("c", (), np.bool_)], [value("y", (16, 32))], [w])
    )
    assert model.inventory()[0].keys() == {"w"}
    assert model.inventory()[1] == 16 * 32 * 4
