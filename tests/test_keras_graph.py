"""onnxdrp.keras.info: layers in the order of the data flow, why not pruned; geometry as in ONNX."""

import numpy as np
import pytest
from keras_nets import QUIET, L, functional, images, keras, sequential

import onnxdrp
from onnxdrp.errors import ModelError, OptionError
from onnxdrp.keras import Pruner, finalize, info, masks
from onnxdrp.keras.graph import trace
from onnxdrp.keras.wrapper import geometry_of
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.patterns import WeightGeometry, parse_pattern
from onnxdrp.training.held import next_mask

pytestmark = QUIET
ALL = ["depthwise", "grouped", "point", "shared", "narrow", "inner/inside", "last"]


def why(model, **options):
    return {row.name: row.why_not.partition(":")[0] for row in info(model, **options).layers}


def test_rows_are_in_the_order_of_the_data_flow_and_shared_layers_are_there_once():
    rows = info(functional()).layers
    assert [row.name for row in rows] == ["stem", *ALL]
    assert [row.op for row in rows[:3]] == ["Conv2D", "DepthwiseConv2D", "Conv2D"]


def test_first_last_depthwise_and_unaligned_layers_are_not_pruned():
    found = why(functional())
    assert found == {
        "stem": "first layer",
        "depthwise": "depthwise layer",
        "grouped": "",
        "point": "",
        "shared": "",
        "narrow": "",
        "inner/inside": "",
        "last": "last layer",
    }
    assert why(functional(), prune_dwise=True)["depthwise"] == ""
    assert why(functional(), prune_last=True)["last"] == ""
    narrow = keras.Sequential(
        [keras.Input((64,)), L.Dense(20, name="a"), L.Dense(32, name="b"), L.Dense(4, name="c")]
    )
    assert why(narrow)["b"] == "input channels not a multiple of 32"
    assert why(narrow, pattern="unstructured")["b"] == ""


def test_every_head_is_a_last_layer_and_every_stem_a_first():
    a, b = keras.Input((32,)), keras.Input((32,))
    stem_b, stem_a = L.Dense(32, name="stem_b")(b), L.Dense(32, name="stem_a")(a)
    x = L.Dense(32, name="middle")(L.Concatenate()([stem_a, stem_b]))
    model = keras.Model([a, b], [L.Dense(4, name="one")(x), L.Dense(2, name="two")(x)])
    found = why(model)
    assert {n for n, reason in found.items() if reason == "first layer"} == {"stem_a", "stem_b"}
    assert {n for n, reason in found.items() if reason == "last layer"} == {"one", "two"}
    assert found["middle"] == ""


def test_multiply_adds_are_those_of_one_sample_over_all_calls():
    rows = {row.name: row for row in info(functional(side=8)).layers}
    assert rows["stem"].baseline_mac == 8 * 8 * 9 * 3 * 32
    assert rows["depthwise"].baseline_mac == 8 * 8 * 9 * 64
    assert rows["grouped"].baseline_mac == 8 * 8 * 9 * 32 * 64
    assert rows["shared"].baseline_mac == 2 * 64 * 64
    assert rows["shared"].params == 64 * 64 + 64
    assert (rows["stem"].input_shape, rows["stem"].output_shape) == ((8, 8, 3), (8, 8, 32))


def test_an_input_without_a_fixed_size_leaves_multiply_adds_open():
    image = keras.Input((None, None, 3))
    x = L.Conv2D(32, 3, name="a")(image)
    model = keras.Model(image, L.Dense(4, name="b")(L.GlobalAveragePooling2D()(x)))
    rows = info(model).layers
    assert [row.baseline_mac for row in rows] == [None, 128]
    assert "no fixed size" in rows[0].why_no_mac


def test_channels_first_counts_the_same_places():
    image = keras.Input((3, 8, 8))
    x = L.Conv2D(32, 3, data_format="channels_first")(image)
    x = L.Conv2D(64, 3, data_format="channels_first", name="second")(x)
    row = info(keras.Model(image, L.Conv2D(2, 1, data_format="channels_first")(x))).layers[1]
    assert row.prunable
    assert row.baseline_mac == 4 * 4 * 9 * 32 * 64


def test_layers_in_other_layers_are_named_and_left():
    image = keras.Input((5, 64))
    x = L.TimeDistributed(L.Dense(64, name="each"), name="times")(L.Dense(64, name="stem")(image))
    model = keras.Model(image, L.Dense(4, name="last")(x))
    found = {row.name: row.why_not for row in info(model).layers}
    assert found["times/each"].startswith("layer in a layer: of TimeDistributed 'times'")
    assert found["last"].startswith("last layer")
    with pytest.raises(ModelError, match="stands in TimeDistributed"):
        Pruner(model, ["times/each"])


def test_models_without_a_known_graph_are_refused():
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError, match="Mine is a subclassed model"):
        info(Mine())
    with pytest.raises(ModelError, match="is not built"):
        info(keras.Sequential([L.Dense(4)]))
    with pytest.raises(ModelError, match="neither Conv2D nor Dense"):
        info(keras.Sequential([keras.Input((4,)), L.ReLU()]))
    with pytest.raises(OptionError, match=r"no keras\.Model"):
        info("model")
    image = keras.Input((4,))
    with pytest.raises(ModelError, match="Mine is a subclassed model"):
        Pruner(Mine(), ["x"])
    assert trace(keras.Model(image, L.Dense(2)(Mine()(image))))[0].before == set()


def test_lora_is_refused_by_name():
    model = sequential()
    model.get_layer("dense").enable_lora(2)
    assert why(model)["dense"] == "kernel is no variable"
    with pytest.raises(ModelError, match="'dense' cannot be pruned"):
        Pruner(model, ["dense"])


ONNX = {  # the weight of the ONNX Conv or MatMul, and how patterns see it there
    "depthwise": lambda w: (w.reshape(3, 3, 1, 64).transpose(3, 2, 0, 1), "depthwise"),
    "grouped": lambda w: (w.transpose(3, 2, 0, 1), "grouped"),
    "point": lambda w: (w.transpose(3, 2, 0, 1), ""),
    "shared": lambda w: (w, "gemm"),
}


@pytest.mark.parametrize("pattern", ["flex-nm", "block", "nm", "row", "unstructured"])
@pytest.mark.parametrize("name", ONNX)
def test_masks_are_those_of_the_weight_as_onnx_has_it(name, pattern):
    layer = {seen.name: seen.layer for seen in trace(functional())}[name]
    weight = np.random.default_rng(3).normal(size=layer.kernel.shape).astype(np.float32)
    layer.kernel.assign(weight)
    turned, kind = ONNX[name](weight)
    theirs = {
        "depthwise": lambda: WeightGeometry.depthwise_conv(turned.shape),
        "grouped": lambda: WeightGeometry.conv(turned.shape, 2),
        "": lambda: WeightGeometry.conv(turned.shape),
        "gemm": lambda: WeightGeometry.gemm(turned.shape, trans_b=False),
    }[kind]()
    rules = parse_pattern(pattern)
    expected = next_mask(turned, np.ones(turned.shape, bool), theirs, rules, 0.7)
    ours = geometry_of(layer)
    got = next_mask(
        weight.reshape(ours.shape), np.ones(ours.shape, bool), ours, rules, 0.7
    ).reshape(weight.shape)
    assert 0.2 < expected.mean() < 0.4
    np.testing.assert_array_equal(ONNX[name](got)[0], expected)


def turned_masks(model):
    """Masks by the bytes of what an ONNX file should show."""
    kernels = {seen.name: seen.layer.kernel.shape for seen in trace(model)}
    found = {}
    for name, mask in masks(model).items():
        keep = mask.keep
        if len(kernels[name]) == 4:
            depthwise = name == "depthwise"
            keep = keep.reshape(*keep.shape[:2], 1, -1) if depthwise else keep
            keep = keep.transpose(3, 2, 0, 1)
        found[name] = Mask(keep)
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exported by tf2onnx")
@pytest.mark.parametrize("pattern", ["flex-nm", "block"])
def test_an_exported_file_shows_the_masks_exactly(tmp_path, pattern):
    tf2onnx = pytest.importorskip("tf2onnx")
    model = functional(groups=1)  # tf2onnx takes no grouped convolution of Keras
    for layer in model.layers:  # biases of 0 are left out by the exporter, and fold otherwise
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(np.random.default_rng(1).normal(size=layer.bias.shape))
    pruned = Pruner(model, ALL[:-1], final_pr=0.7, pattern=pattern).get_pruning_model()
    expected = turned_masks(pruned)
    assert list(expected) == ALL[:-1]
    x, _ = images(4)
    path = tmp_path / "pruned.onnx"
    outputs = []
    for exported in (pruned, model, finalize(pruned)):
        proto, _ = tf2onnx.convert.from_keras(exported, opset=13)
        path.write_bytes(proto.SerializeToString())
        onnx_model = Model.load(path)
        shown = [
            Mask.from_zeros(np.asarray(onnx_model.weight(row.weight)))
            for row in {row.weight: row for row in onnxdrp.info(path).layers}.values()
            if row.zeros
        ]
        assert sorted(map(hash, shown)) == sorted(map(hash, expected.values()))
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: x})[0])
    for y in outputs:
        np.testing.assert_allclose(y, pruned.predict(x, verbose=0), rtol=1e-3, atol=1e-4)


def test_what_info_says_of_a_pruned_model_is_what_it_says_of_the_plain_one():
    model = functional()
    pruned = Pruner(model, ALL).get_pruning_model()
    table = info(pruned).as_dict()
    assert table == info(finalize(pruned)).as_dict() == info(model).as_dict()
    assert [row["name"] for row in table["layers"]] == ["stem", *ALL]
    by_name = {row["name"]: row["sparsity"] for row in table["layers"]}
    assert by_name.pop("stem") == 0
    assert all(0.65 < value < 0.75 for value in by_name.values())
