"""FuseBatchNorm: what goes, what stays and why, and that the results are those of before."""

import numpy as np
import pytest
from builders import conv_net, make_model, normal, value
from hypothesis import given, settings
from hypothesis import strategies as st
from running import node, ops, run_pass

from onnxdrp.model import Model
from onnxdrp.passes.fuse_batchnorm import FuseBatchNorm
from onnxdrp.passes.infer_shapes import InferShapes
from onnxdrp.pipeline import PassContext

BN = ["s", "b", "m", "v"]


def scales(size, seed=0, low=0.5, high=1.5):
    return np.random.default_rng(seed).uniform(low, high, size).astype(np.float32)


def bn_weights(size, seed=50):
    return {
        "s": scales(size, seed),
        "b": scales(size, seed + 1, -1, 1),
        "m": scales(size, seed + 2, -1, 1),
        "v": scales(size, seed + 3),
    }


def fuse(
    nodes, weights, x=("N", 4, 6, 6), *, rank=4, opset=17, tolerance=2e-6, outputs=("y",), **more
):
    proto = make_model(
        nodes,
        [value("x", x)],
        [value(o, [None] * rank) for o in outputs],
        weights,
        opset=opset,
        **more,
    )
    model = Model.from_proto(proto)
    InferShapes().run(model, PassContext())
    return run_pass(FuseBatchNorm(), model, tolerance=tolerance)


def reason(result):
    (why,) = result.stats["skipped"].values()
    return why


# --------------------------------------------------------------------- into the node before


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_batchnorm_goes_into_conv(group, bias):
    weights = {"w": normal([8, 4 // group, 3, 3], 1), "c": normal([8], 2), **bn_weights(8)}
    inputs = ["x", "w", "c"] if bias else ["x", "w"]
    model, result = fuse(
        [
            node("Conv", inputs, ["h"], "conv", group=group, pads=[1] * 4, strides=[2, 2]),
            node("BatchNormalization", ["h", *BN], ["y"], "bn", epsilon=1e-2),
        ],
        weights,
    )
    assert ops(model) == ["Conv"]
    assert result.stats == {"fused": 1, "skipped": {}}
    assert model.node("conv").inputs[1].name == "w"
    assert model.weight("w").dtype == np.float32


@pytest.mark.parametrize("group", [1, 2, 4])
def test_batchnorm_goes_into_conv_transpose_whose_outputs_lie_on_axis_1(group):
    weights = {"w": normal([4, 12 // group, 3, 3], 1), **bn_weights(12)}
    attributes = {"group": group, "strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
    model, _ = fuse(
        [
            node("ConvTranspose", ["x", "w"], ["h"], "up", **attributes),
            node("BatchNormalization", ["h", *BN], ["y"], "bn"),
        ],
        weights,
    )
    assert ops(model) == ["ConvTranspose"]


@pytest.mark.parametrize("space", [1, 3])
def test_convs_of_other_ranks(space):
    weights = {"w": normal([8, 4, *[3] * space], 1), **bn_weights(8)}
    model, _ = fuse(
        [
            node("Conv", ["x", "w"], ["h"], "conv"),
            node("BatchNormalization", ["h", *BN], ["y"], "bn"),
        ],
        weights,
        x=("N", 4, *[5] * space),
        rank=2 + space,
    )
    assert ops(model) == ["Conv"]


@pytest.mark.parametrize("c_shape", [None, [], [1], [5], [1, 5], [3, 1], [3, 5]])
@pytest.mark.parametrize("turned", [0, 1])
def test_mul_and_add_go_into_gemm_with_all_its_options(turned, c_shape):
    weights = {"w": normal([5, 4] if turned else [4, 5], 1), "k": scales(5), "t": scales([1, 5], 2)}
    inputs = ["x", "w"]
    if c_shape is not None:
        weights["c"] = np.asarray(scales(c_shape, 3))
        inputs.append("c")
    model, _ = fuse(
        [
            node("Gemm", inputs, ["h"], "fc", transB=turned, transA=1, alpha=0.7, beta=1.3),
            node("Mul", ["k", "h"], ["i"], "mul"),
            node("Sub", ["i", "t"], ["y"], "sub"),
        ],
        weights,
        x=(4, 3),
        rank=2,
    )
    assert ops(model) == ["Gemm"]


def test_what_follows_a_matmul_leaves_one_add():
    weights = {"w": normal([4, 5], 1), "c": scales(5, 2), "k": scales(5, 3), "t": scales(5, 4)}
    model, result = fuse(
        [
            node("MatMul", ["x", "w"], ["h"], "fc"),
            node("Add", ["h", "c"], ["i"], "bias"),
            node("Mul", ["i", "k"], ["j"], "mul"),
            node("Add", ["j", "t"], ["y"], "add"),
        ],
        weights,
        x=("N", 7, 4),
        rank=3,
    )
    assert ops(model) == ["MatMul", "Add"]
    assert result.stats == {"fused": 2, "skipped": {}}


def test_a_matmul_with_the_weight_on_the_left_has_its_outputs_on_the_last_but_one_axis():
    weights = {"w": normal([5, 4], 1), "k": scales([5, 1], 3), "t": scales([5, 1], 4)}
    model, _ = fuse(
        [
            node("MatMul", ["w", "x"], ["h"], "fc"),
            node("Div", ["h", "k"], ["j"], "div"),
            node("Add", ["j", "t"], ["y"], "add"),
        ],
        weights,
        x=("N", 4, 3),
        rank=3,
    )
    assert ops(model) == ["MatMul", "Add"]
    assert tuple(model.nodes("Add")[0].inputs[1].shape) == (5, 1)


def test_the_channels_of_an_nhwc_export_are_followed_through_the_transpose():
    weights = {"w": normal([8, 4, 3, 3], 1), "k": scales(8, 2), "t": scales(8, 3)}
    model, _ = fuse(
        [
            node("Conv", ["x", "w"], ["h"], "conv"),
            node("Transpose", ["h"], ["i"], "nhwc", perm=[0, 2, 3, 1]),
            node("Mul", ["i", "k"], ["j"], "mul"),
            node("Add", ["j", "t"], ["y"], "add"),
        ],
        weights,
        x=("N", 4, 10, 6),
    )
    assert ops(model) == ["Conv", "Transpose"]
    assert "h" not in model.tensors(), "its values are others now"


def test_constants_on_another_axis_than_the_channels_stay():
    # 8 channels and 8 columns: only the axis tells them apart
    weights = {"w": normal([8, 4, 3, 3], 1), "k": scales(8, 2)}
    model, result = fuse(
        [node("Conv", ["x", "w"], ["h"], "conv"), node("Mul", ["h", "k"], ["y"], "mul")],
        weights,
        x=("N", 4, 10, 10),
    )
    assert ops(model) == ["Conv", "Mul"]
    assert "varies along axis 3" in reason(result)


def test_a_dense_layer_over_pictures_is_followed_through_its_reshape():
    weights = {
        "w": normal([4, 5], 1),
        "to": np.array([-1, 6, 6, 5]),
        "k": scales(5, 2),
        "t": scales(5, 3),
    }
    model, _ = fuse(
        [
            node("MatMul", ["x", "w"], ["h"], "fc"),
            node("Reshape", ["h", "to"], ["i"], "back"),
            node("Mul", ["i", "k"], ["j"], "mul"),
            node("Add", ["j", "t"], ["y"], "add"),
        ],
        weights,
        x=("N", 36, 4),
    )
    assert ops(model) == ["MatMul", "Add", "Reshape"]


# ---------------------------------------------------------------------- into the node after


def forward(after, weights, *, k=None, t=None, x=("N", 4, 6, 6), rank=4, **more):
    weights = {"k": k if k is not None else scales([4, 1, 1], 2, -1.5, 1.5), **weights}
    weights["t"] = t if t is not None else scales([4, 1, 1], 3, -1, 1)
    nodes = [
        node("Relu", ["x"], ["r"], "relu"),
        node("Mul", ["r", "k"], ["i"], "mul"),
        node("Add", ["i", "t"], ["a"], "add"),
    ]
    return fuse([*nodes, *after], weights, x, rank=rank, **more)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_after_a_relu_the_pair_goes_into_the_next_conv(group):
    weights = {"w": normal([8, 4 // group, 3, 3], 1), "c": scales(8)}
    conv = node("Conv", ["a", "w", "c"], ["y"], "conv", group=group, strides=[2, 2])
    model, result = forward([conv], weights)
    assert ops(model) == ["Relu", "Conv"]
    assert result.stats["skipped"] == {}


def test_not_into_a_conv_that_pads():
    weights = {"w": normal([8, 4, 3, 3], 1)}
    conv = node("Conv", ["a", "w"], ["y"], "conv", pads=[0, 1, 0, 0])
    model, result = forward([conv], weights)
    assert ops(model) == ["Relu", "Mul", "Add", "Conv"]
    assert "pads with zeros" in reason(result)
    same = node("Conv", ["a", "w"], ["y"], "conv", auto_pad="SAME_UPPER")
    assert len(forward([same], weights)[0].nodes()) == 4


def test_but_into_one_that_pads_if_the_shift_is_0_or_the_kernel_is_1():
    weights = {"w": normal([8, 4, 3, 3], 1)}
    conv = node("Conv", ["a", "w"], ["y"], "conv", pads=[1] * 4)
    assert ops(forward([conv], weights, t=np.zeros([4, 1, 1], np.float32))[0]) == ["Relu", "Conv"]
    weights = {"w": normal([8, 4, 1, 1], 1)}
    same = node("Conv", ["a", "w"], ["y"], "conv", auto_pad="SAME_UPPER", strides=[2, 2])
    assert ops(forward([same], weights)[0]) == ["Relu", "Conv"]


@pytest.mark.parametrize("positive", [True, False])
def test_through_max_pool_only_with_a_scale_from_0(positive):
    weights = {"w": normal([8, 4, 3, 3], 1)}
    k = np.array([0.5, 0.0, 2.0, 1.0] if positive else [0.5, 0.1, -0.5, 1], np.float32)
    model, result = forward(
        [
            node("MaxPool", ["a"], ["p"], "pool", kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
            node("Conv", ["p", "w"], ["y"], "conv"),
        ],
        weights,
        k=k.reshape(4, 1, 1),
    )
    assert ops(model)[1:3] == (["MaxPool", "Conv"] if positive else ["Mul", "Add"])
    if not positive:
        assert "a scale is negative" in reason(result)


@pytest.mark.parametrize("counted", [0, 1])
def test_through_average_pool_unless_it_counts_the_border(counted):
    attributes = {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": counted}
    pool = node("AveragePool", ["a"], ["p"], "pool", **attributes)
    conv = node("Conv", ["p", "w"], ["y"], "conv")
    model, _ = forward([pool, conv], {"w": normal([8, 4, 3, 3], 1)})
    assert len(model.nodes()) == (5 if counted else 3)


def test_through_global_average_pool_and_flatten_into_gemm():
    model, _ = forward(
        [
            node("GlobalAveragePool", ["a"], ["p"], "pool"),
            node("Flatten", ["p"], ["f"], "flatten"),
            node("Gemm", ["f", "w"], ["y"], "fc", transB=1, alpha=2.0),
        ],
        {"w": normal([5, 4], 1)},
        rank=2,
    )
    assert ops(model) == ["Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert model.node("fc").inputs[2].name == "fc_bias"


@pytest.mark.parametrize("nhwc", [True, False])
def test_through_a_flatten_that_merges_the_channels_with_the_picture(nhwc):
    turn = [node("Transpose", ["a"], ["n"], "nhwc", perm=[0, 2, 3, 1])] if nhwc else []
    model, _ = forward(
        [
            *turn,
            node("Reshape", ["n" if nhwc else "a", "to"], ["f"], "flatten"),
            node("MatMul", ["f", "w"], ["y"], "fc"),
        ],
        {"w": normal([4 * 5 * 6, 7], 1), "to": np.array([-1, 120])},
        x=("N", 4, 5, 6),
        rank=2,
    )
    assert ops(model) == ["Relu", *["Transpose"] * nhwc, "Reshape", "MatMul", "Add"]


def test_no_reshape_that_tears_the_channels_apart():
    # [2, 4, 6, 6] -> [8, 36]: the batch joins the channels, and nothing tells whose is whose
    model, result = forward(
        [
            node("Reshape", ["a", "to"], ["f"], "mix"),
            node("MatMul", ["f", "w"], ["y"], "fc"),
        ],
        {"w": normal([36, 7], 1), "to": np.array([-1, 36])},
        x=(2, 4, 6, 6),
        rank=2,
    )
    assert "Mul" in ops(model)
    assert "Reshape" in reason(result)


def test_into_gemm_that_turns_its_input():
    model, _ = forward(
        [node("Gemm", ["a", "w", "c"], ["y"], "fc", transA=1, beta=0.5)],
        {"w": normal([4, 5], 1), "c": scales(5)},
        k=scales([4, 1], 2),
        t=scales([4, 1], 3),
        x=(4, 3),
        rank=2,
    )
    assert ops(model) == ["Relu", "Gemm"]


def test_into_a_matmul_on_either_side():
    k, t = scales(4, 2), scales(4, 3)
    left, _ = forward(
        [node("MatMul", ["a", "w"], ["y"], "fc")], {"w": normal([4, 5], 1)},
        k=k, t=t, x=("N", 3, 4), rank=3,
    )  # fmt: skip
    assert ops(left) == ["Relu", "MatMul", "Add"]
    right, _ = forward(
        [node("MatMul", ["w", "a"], ["y"], "fc")], {"w": normal([5, 4], 1)},
        k=k.reshape(4, 1), t=t.reshape(4, 1), x=("N", 4, 3), rank=3,
    )  # fmt: skip
    assert ops(right) == ["Relu", "MatMul", "Add"]


def test_the_add_that_a_matmul_gets_joins_the_bias_it_has():
    model, _ = forward(
        [node("MatMul", ["a", "w"], ["h"], "fc"), node("Add", ["h", "c"], ["y"], "bias")],
        {"w": normal([4, 5], 1), "c": scales(5)},
        k=scales(4, 2), t=scales(4, 3), x=("N", 4), rank=2,
    )  # fmt: skip
    assert ops(model) == ["Relu", "MatMul", "Add"]


def test_a_batchnorm_before_its_relu_and_conv_stays_and_takes_the_pair_behind_it():
    weights = {**bn_weights(4), "k": scales([4, 1, 1]), "t": scales([4, 1, 1], 1)}
    model, result = fuse(
        [
            node("Relu", ["x"], ["h"], "relu"),
            node("BatchNormalization", ["h", *BN], ["i"], "bn"),
            node("Mul", ["i", "k"], ["j"], "mul"),
            node("Add", ["j", "t"], ["a"], "add"),
            node("Sigmoid", ["a"], ["y"], "out"),
        ],
        weights,
    )
    assert ops(model) == ["Relu", "BatchNormalization", "Sigmoid"]
    assert result.stats["fused"] == 2
    assert "Relu before it has no weight" in reason(result)


# ------------------------------------------------------------------------------ what it refuses


def conv_bn(**changed):
    """Conv and BatchNormalization, with something changed about them."""
    conv = {"inputs": ["x", "w"], "outputs": ["h"], "name": "conv"}
    norm = {"inputs": ["h", *BN], "outputs": ["y"], "name": "bn", **changed.pop("bn", {})}
    nodes = [
        node("Conv", **conv),
        node("BatchNormalization", **norm),
        *changed.pop("more", []),
    ]
    weights = {"w": normal([8, 4, 3, 3], 1), **bn_weights(8), **changed.pop("weights", {})}
    return fuse(nodes, weights, **changed)


def test_the_plain_case_of_the_refusals_below_fuses():
    assert ops(conv_bn()[0]) == ["Conv"]


def test_refuses_an_output_that_others_read():
    model, result = conv_bn(more=[node("Relu", ["h"], ["z"], "relu")], outputs=("y", "z"))
    assert "BatchNormalization" in ops(model)
    assert "read by 2 nodes" in reason(result)


def test_refuses_an_output_of_the_model():
    model, result = conv_bn(outputs=("y", "h"))
    assert "BatchNormalization" in ops(model)
    assert "output of the model" in reason(result)


def test_refuses_a_weight_that_another_node_reads():
    more = [node("Conv", ["x", "w"], ["z"], "second")]
    model, result = conv_bn(more=more, outputs=("y", "z"))
    assert "BatchNormalization" in ops(model)
    assert "'w' is read elsewhere too" in reason(result)


def test_refuses_training_mode():
    proto = make_model(
        [
            node("Conv", ["x", "w"], ["h"], "conv"),
            node("BatchNormalization", ["h", *BN], ["y", "m2", "v2"], "bn", training_mode=1),
        ],
        [value("x", ["N", 4, 6, 6])],
        [value("y", None), value("m2", [8])],
        {"w": normal([8, 4, 3, 3], 1), **bn_weights(8)},
    )
    proto.graph.output[0].CopyFrom(value("y", ["N", 8, 4, 4]))
    _, result = run_pass(FuseBatchNorm(), proto)
    assert result.stats["fused"] == 0
    assert "training mode" in reason(result)


def test_refuses_statistics_that_are_computed():
    more = [node("Identity", ["v0"], ["v1"], "computed")]
    weights = {"v0": scales(8)}
    model, result = conv_bn(bn={"inputs": ["h", "s", "b", "m", "v1"]}, more=more, weights=weights)
    assert "BatchNormalization" in ops(model)
    assert "computed" in reason(result)


def test_refuses_what_is_not_finite():
    model, result = conv_bn(weights={"v": np.full(8, 0.0, np.float32)}, bn={"epsilon": 1e-5})
    assert ops(model) == ["Conv"]
    nodes = [node("Conv", ["x", "w"], ["h"], "conv"), node("Div", ["h", "k"], ["y"], "div")]
    zero = np.array([1, 2, 0, 4], np.float32).reshape(4, 1, 1)
    proto = make_model(
        nodes, [value("x", ["N", 4, 6, 6])], [value("y", [None] * 4)],
        {"w": normal([4, 4, 3, 3], 1), "k": zero},
    )  # fmt: skip
    model = Model.from_proto(proto)
    InferShapes().run(model, PassContext())
    result = FuseBatchNorm().run(model, PassContext())
    assert not result.modified
    assert "not finite" in reason(result)


def test_refuses_a_constant_that_widens_its_input():
    weights = {"w": normal([1, 4, 3, 3], 1), "k": scales([8, 1, 1])}
    model, result = fuse(
        [node("Conv", ["x", "w"], ["h"], "conv"), node("Mul", ["h", "k"], ["y"], "mul")], weights
    )
    assert ops(model) == ["Conv", "Mul"]
    assert "widens" in reason(result)


def test_keeps_the_end_of_a_layer_normalization():
    weights = {
        "two": np.array(2, np.float32), "eps": np.array(1e-5, np.float32),
        "k": scales(4), "t": scales(4, 1), "w": normal([4, 5], 1), "axes": np.array([-1]),
    }  # fmt: skip
    model, result = fuse(
        [
            node("ReduceMean", ["x"], ["mean"], "mean", axes=[-1]),
            node("Sub", ["x", "mean"], ["d"], "center"),
            node("Pow", ["d", "two"], ["q"], "square"),
            node("ReduceMean", ["q"], ["var"], "var", axes=[-1]),
            node("Add", ["var", "eps"], ["e"], "epsilon"),
            node("Sqrt", ["e"], ["sd"], "root"),
            node("Div", ["d", "sd"], ["n"], "norm"),
            node("Mul", ["n", "k"], ["i"], "gain"),
            node("Add", ["i", "t"], ["a"], "shift"),
            node("MatMul", ["a", "w"], ["y"], "fc"),
        ],
        {k: v for k, v in weights.items() if k != "axes"},
        x=("N", 3, 4),
        rank=3,
    )
    assert len(model.nodes()) == 10
    assert "layer normalization" in result.stats["skipped"]["gain"]


def test_half_precision_stays_half_and_must_not_overflow():
    half = {k: v.astype(np.float16) for k, v in bn_weights(8).items()}
    weights = {"w": normal([8, 4, 3, 3], 1, np.float16), **half}
    nodes = [
        node("Conv", ["x", "w"], ["h"], "conv"),
        node("BatchNormalization", ["h", *BN], ["y"], "bn"),
    ]
    ends = [value("x", [2, 4, 6, 6], np.float16)], [value("y", [2, 8, 4, 4], np.float16)]
    model, _ = run_pass(FuseBatchNorm(), make_model(nodes, *ends, weights), tolerance=4e-3)
    assert ops(model) == ["Conv"]
    assert model.weight("w").dtype == np.float16
    weights["s"] = np.full(8, 60000, np.float16)
    weights["v"] = np.full(8, 1e-4, np.float16)
    model = Model.from_proto(make_model(nodes, *ends, weights))
    result = FuseBatchNorm().run(model, PassContext())
    assert not result.modified
    assert "too large for float16" in reason(result)


def test_a_shared_bias_is_copied_and_the_other_reader_keeps_its_own():
    weights = {"w": normal([8, 4, 3, 3], 1), "c": scales(8), "w2": normal([8, 8, 1, 1], 3)}
    model, _ = fuse(
        [
            node("Conv", ["x", "w", "c"], ["h"], "conv"),
            node("BatchNormalization", ["h", *BN], ["i"], "bn"),
            node("Relu", ["i"], ["r"], "relu"),
            node("Conv", ["r", "w2", "c"], ["y"], "second"),
        ],
        {**weights, **bn_weights(8)},
    )
    assert ops(model) == ["Conv", "Relu", "Conv"]
    assert model.node("conv").inputs[2].name != "c"
    assert np.array_equal(model.weight("c"), weights["c"])


def test_constants_of_rank_0_and_all_four_operators():
    weights = {f"k{i}": np.array(v, np.float32) for i, v in enumerate((2.0, 0.3, 1.7, 5.0))}
    model, result = fuse(
        [
            node("Conv", ["x", "w"], ["h"], "conv"),
            node("Div", ["h", "k0"], ["i"], "div"),
            node("Sub", ["k1", "i"], ["j"], "sub"),
            node("Mul", ["k2", "j"], ["l"], "mul"),
            node("Add", ["k3", "l"], ["y"], "add"),
        ],
        {"w": normal([8, 4, 3, 3], 1), **weights},
    )
    assert ops(model) == ["Conv"]
    assert result.stats["fused"] == 4


def test_unknown_shapes_are_a_reason_not_a_guess():
    proto = make_model(
        [node("Relu", ["x"], ["r"], "relu"), node("Mul", ["r", "k"], ["y"], "mul")],
        [value("x", ["N", 4, 6, 6])], [value("y", [None] * 4)], {"k": scales([4, 1, 1])},
    )  # fmt: skip
    _, result = run_pass(FuseBatchNorm(), proto)
    assert "run infer-shapes first" in reason(result)


def test_the_small_net_of_other_tests_keeps_its_names():
    model, result = run_pass(FuseBatchNorm(), conv_net())
    assert result.stats["fused"] == 1
    assert {n.name for n in model.nodes("Conv")} == {"conv1", "conv2"}
    assert model.node("conv2").outputs[0].name == "h3", "its values are what h3 was"
    assert model.node("conv2").inputs[2].name == "conv2.bias"


@settings(max_examples=25)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(),
    st.integers(0, 2**16),
)  # fmt: skip
def test_any_conv_with_any_neighbours(group, ins, outs, before, after, seed):
    """Maps before and after a grouped Conv without padding always vanish, and change nothing."""
    ins, outs = ins * group, outs * group
    weights = {
        "w": normal([outs, ins // group, 2, 2], seed),
        "k": scales([ins, 1, 1], seed, -1, 1),
        "t": scales([ins, 1, 1], seed + 1, -1, 1),
        **bn_weights(outs, seed),
    }
    nodes = [node("Relu", ["x"], ["r0"], "relu")]
    if before:
        nodes.append(node("Mul", ["r0", "k"], ["i"], "mul"))
        nodes.append(node("Add", ["i", "t"], ["a"], "add"))
    nodes.append(node("Conv", ["a" if before else "r0", "w"], ["h"], "conv", group=group))
    if after:
        nodes.append(node("BatchNormalization", ["h", *BN], ["n"], "bn"))
    nodes.append(node("Tanh", ["n" if after else "h"], ["y"], "out"))
    model, _ = fuse(nodes, weights, x=(2, ins, 5, 4))
    assert ops(model) == ["Relu", "Conv", "Tanh"]


# ---------------------------------------------------------------- scales back through the Relu


def conv_relu_bn_conv(gamma, *, relu="Relu", pads=0, beta=True, seed=0):
    """Conv, Relu, BatchNormalization, Conv: the order of Keras models that normalize last."""
    bn = bn_weights(8, seed + 10) | {"s": gamma.astype(np.float32)}
    if not beta:
        bn |= {"b": np.zeros(8, np.float32), "m": np.zeros(8, np.float32)}
    weights = {"w": normal([8, 4, 3, 3], seed + 1), "c": normal([8], seed + 2), **bn}
    nodes = [
        node("Conv", ["x", "w", "c"], "h", name="first"),
        node(relu, ["h"], "r"),
        node("BatchNormalization", ["r", *BN], "n"),
        node("Conv", ["n", "u"], "y", name="second", pads=[pads] * 4),
    ]
    weights["u"] = normal([6, 8, 3, 3], seed + 3)
    return nodes, weights


@pytest.mark.parametrize("relu", ["Relu", "LeakyRelu"])
def test_weights_on_both_sides_of_the_relu_come_out_equally_large(relu):
    gamma = np.array([100, 10, 1, 0.1, -100, -10, -1, 0.01])
    nodes, weights = conv_relu_bn_conv(gamma, relu=relu)
    model, result = fuse(nodes, weights, tolerance=1e-5)
    assert ops(model) == ["Conv", relu, "Conv"]
    assert result.stats["fused"] == 1
    made = np.abs(model.weight("w")).max(axis=(1, 2, 3))
    read = np.abs(model.weight("u")).max(axis=(0, 2, 3))
    np.testing.assert_allclose(made, read, rtol=1e-5)
    scale = gamma / np.sqrt(weights["v"] + 1e-5)
    before = np.abs(weights["w"]).max(axis=(1, 2, 3)) * np.abs(weights["u"]).max(axis=(0, 2, 3))
    np.testing.assert_allclose(made * read, before * np.abs(scale), rtol=1e-5)
    turned = np.sign(model.weight("u")) * np.sign(weights["u"])
    np.testing.assert_array_equal(
        turned, np.broadcast_to(np.sign(gamma)[:, None, None], turned.shape)
    )


def test_through_flatten_each_channel_is_balanced_with_all_its_inputs():
    bn = bn_weights(8, 10) | {"s": (10.0 ** np.arange(-4, 4)).astype(np.float32)}
    weights = {"w": normal([8, 4, 3, 3], 1), "u": normal([5, 8 * 16], 3), **bn}
    nodes = [
        node("Conv", ["x", "w"], "h", name="first"),
        node("Relu", ["h"], "r"),
        node("BatchNormalization", ["r", *BN], "n"),
        node("Flatten", ["n"], "f"),
        node("Gemm", ["f", "u"], "y", name="last", transB=1),
    ]
    model, _ = fuse(nodes, weights, tolerance=1e-5, rank=2)
    assert ops(model) == ["Conv", "Relu", "Flatten", "Gemm"]
    made = np.abs(model.weight("w")).max(axis=(1, 2, 3))
    read = np.abs(model.weight("u")).reshape(5, 8, 16).max(axis=(0, 2))
    np.testing.assert_allclose(made, read, rtol=1e-5)


def test_a_channel_of_scale_0_stays_what_it_is():
    gamma = np.array([0.0, 1, 2, 3, 4, 5, 6, -7])
    nodes, weights = conv_relu_bn_conv(gamma)
    model, _ = fuse(nodes, weights, tolerance=1e-5)
    assert not model.weight("u")[:, 0].any()
    assert model.weight("w")[0].any()


def test_nothing_is_scaled_where_the_pair_has_to_stay():
    nodes, weights = conv_relu_bn_conv(np.arange(1.0, 9), pads=1)
    model, result = fuse(nodes, weights)
    assert "pads with zeros" in reason(result)
    assert not result.modified
    for name in ("w", "c", "u"):
        np.testing.assert_array_equal(model.weight(name), weights[name])


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.sampled_from([0, 1]), st.booleans())
def test_any_scales_keep_the_results(seed, pads, beta):
    rng = np.random.default_rng(seed)
    gamma = rng.choice([-1, 1], 8) * 10.0 ** rng.uniform(-2, 2, 8)
    nodes, weights = conv_relu_bn_conv(gamma, pads=pads, beta=beta, seed=seed % 100)
    fuse(nodes, weights, tolerance=1e-5)


# ----------------------------------------------------------------------------- what cannot be fused


def constants(*ops_):
    """Operators with one constant each, between two Sigmoid that take nothing in."""
    nodes, name = [node("Sigmoid", ["x"], ["h0"], "first")], "h0"
    weights = {}
    for i, (op, value_) in enumerate(ops_, 1):
        weights[f"c{i}"] = np.asarray(value_, np.float32)
        nodes.append(node(op, [name, f"c{i}"], [f"h{i}"], f"n{i}"))
        name = f"h{i}"
    return [*nodes, node("Sigmoid", [name], ["y"], "last")], weights


@pytest.mark.parametrize(
    ("chain", "left"),
    [
        ([("Div", 6.0)], ["Mul"]),
        ([("Div", 6.0), ("Mul", 1.5), ("Add", 0.25)], ["Mul", "Add"]),
        ([("Add", 3.0), ("Div", 6.0)], ["Mul", "Add"]),
        ([("Mul", 2.0), ("Mul", [[[0.5]], [[3.0]], [[1.5]]])], ["Mul"]),
        ([("Add", 1.0), ("Sub", 3.0)], ["Add"]),
        ([("Mul", 2.0), ("Add", 1.0)], ["Mul", "Add"]),
        ([("Mul", 2.0)], ["Mul"]),
    ],
)
def test_what_stays_is_one_mul_and_one_add_at_most(chain, left):
    nodes, weights = constants(*chain)
    model, result = fuse(nodes, weights, x=("N", 3, 5, 5))
    assert ops(model) == ["Sigmoid", *left, "Sigmoid"]
    assert result.modified == (left != [op for op, _ in chain])
    again = FuseBatchNorm().run(model, PassContext())
    assert not again.modified


def test_a_constant_that_is_divided_stays():
    weights = {"c": np.asarray(3.0, np.float32)}
    nodes = [
        node("Sigmoid", ["x"], ["h"], "first"),
        node("Div", ["c", "h"], ["g"], "turned"),
        node("Sigmoid", ["g"], ["y"], "last"),
    ]
    model, result = fuse(nodes, weights)
    assert ops(model) == ["Sigmoid", "Div", "Sigmoid"]
    assert not result.modified
