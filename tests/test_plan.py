"""The plan: what is quantized, what shares parameters, and why the rest stays float."""

import cProfile

import numpy as np
import pytest
from builders import conv_net, make_model, normal, value
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from quantizing import parse, planned, target_with

from onnxdrp.conformance import departures
from onnxdrp.groups import Groups
from onnxdrp.model import Model
from onnxdrp.passes import InferShapes, InsertQdq, QuantizeWeights
from onnxdrp.pipeline import PassContext
from onnxdrp.quantization import Range
from onnxdrp.targets import load_target

HEAD = '<ir_version: 10, opset_import: ["" : 17]>'
W = {"w": normal([8, 8, 1, 1], 0), "v": normal([8, 8, 1, 1], 1)}
INIT = "<float[8, 8, 1, 1] w = {}, float[8, 8, 1, 1] v = {}>".replace("{}", "{" + "0," * 63 + "0}")


def graph(body, init=INIT, inputs="float[1, 8, 4, 4] x", outputs="float[1, 8, 4, 4] y", **weights):
    return parse(f"{HEAD} g ({inputs}) => ({outputs}) {init} {{ {body} }}", W | weights)


def groups_of(plan):
    """The sets of tensors and operands with equal parameters."""
    sets = {}
    for key, root in plan.groups.items():
        sets.setdefault(root, set()).add(key)
    return sorted(map(sorted, (map(str, s) for s in sets.values())))


def test_the_usual_chain_is_quantized_whole():
    model = Model.from_proto(conv_net(32))
    InferShapes().run(model, PassContext())
    plan = planned(model)
    assert list(plan.kept) == ["bn", "relu2", "pool"]  # these two read what floats compute
    assert plan.units == {"conv1": ("relu1",)}
    assert plan.nodes["flatten"] == "same"
    assert list(plan.layers) == ["conv1", "conv2", "fc"]
    assert plan.biases == {"conv1": ("conv1", 2), "fc": ("fc", 2)}


def test_outputs_of_same_operators_share_the_parameters_of_the_input():
    model = graph(
        "a = Conv(x, w) m = MaxPool<kernel_shape=[1, 1]>(a) t = Transpose<perm=[0, 1, 3, 2]>(m) "
        "b = Conv(t, v) y = Add(b, t)"
    )
    plan = planned(model)
    assert plan.kept == {}
    assert ["a", "m", "t"] in groups_of(plan)
    assert list(plan.observed) == ["x", "a", "b", "y"]  # m and t are made of a


def test_a_transpose_before_the_first_layer_is_quantized_from_behind():
    body = "t = Transpose<perm=[0, 3, 1, 2]>(x) a = Conv(t, w) y = Relu(a)"
    plan = planned(graph(body, inputs="float[1, 4, 4, 8] x"))
    assert list(plan.nodes.values()) == ["same", "weighted", "own"]
    assert ["t", "x"] in groups_of(plan)
    assert list(plan.observed) == ["x", "y"]


def test_but_not_where_a_float_operator_reads_it_too():
    body = "t = Transpose<perm=[0, 3, 1, 2]>(x) e = Exp(t) a = Conv(t, w) y = Add(a, e)"
    plan = planned(graph(body, inputs="float[1, 4, 4, 8] x"))
    (transpose,) = [n for n, why in plan.kept.items() if why == "its input is not quantized"]
    assert transpose.startswith("Transpose")
    assert list(plan.observed) == ["t", "e", "a", "y"]


def test_no_rounding_between_a_layer_and_its_activation():
    plan = planned(graph("a = Conv(x, w) r = Relu(a) b = Conv(r, v) y = Add(b, r)"))
    assert "a" not in plan.groups
    assert list(plan.units.values()) == [("Relu_1",)]
    assert set(plan.nodes) == {"Conv_0", "Relu_1", "Conv_2", "Add_3"}


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w) r = Relu(a) y = Add(a, r)",  # the residual needs the sum before the Relu
        "y = Conv(x, w) r = Relu(y) b = Conv(r, v) z = Relu(b)",  # an output of the model
        "a = Conv(x, w) c = Clip(n, a) b = Conv(a, v) y = Add(b, c)",  # Clip's bound, not its input
    ],
)
def test_an_activation_is_no_part_of_the_layer_where_others_read_past_it(body):
    outputs = "float[1, 8, 4, 4] y" + (", float[1, 8, 4, 4] z" if " z " in body else "")
    bound = INIT[:-1] + ", float n = {0}>" if "Clip" in body else INIT
    plan = planned(graph(body, init=bound, outputs=outputs))
    assert "Conv_0" not in plan.units
    assert "a" in plan.groups or "y" in plan.groups


def test_add_and_concat_share_where_the_target_says_so_through_whole_graphs():
    body = (
        "a = Conv(x, w) b = Conv(x, v) s = Add(a, b) m = MaxPool<kernel_shape=[1, 1]>(b) "
        "y = Concat<axis=1>(m, s)"
    )
    model = graph(body, outputs="float[1, 16, 4, 4] y")
    assert groups_of(planned(model, "drp-ai3")) == [["a", "b", "m", "s", "y"], ["x"]]
    assert list(planned(model, "drp-ai3").observed) == ["x", "a", "b", "s"]
    assert groups_of(planned(model)) == [["a"], ["b", "m"], ["s"], ["x"], ["y"]]


def test_a_constant_shared_by_two_operators_does_not_tie_them():
    body = "a = Conv(x, w) s = Add(a, c) b = Conv(s, v) y = Add(b, c)"
    plan = planned(graph(body, init=INIT[:-1] + ", float c = {0.5}>"), "drp-ai3")
    assert ["('Add_1', 1)", "a"] in groups_of(plan)
    assert ["('Add_3', 1)", "b"] in groups_of(plan)


def test_a_layer_norm_stays_float_inside():
    body = (
        "a = MatMul(x, w) m = ReduceMean<axes=[-1]>(a) d = Sub(a, m) q = Mul(d, d) "
        "s = ReduceMean<axes=[-1]>(q) e = Add(s, eps) r = Sqrt(e) n = Div(d, r) g = Mul(n, gamma) "
        "h = Add(g, beta) y = MatMul(h, v)"
    )
    model = graph(
        body,
        init="<float eps = {0.000001}>",
        inputs="float[2, 8] x",
        outputs="float[2, 8] y",
        w=normal([8, 8], 0),
        v=normal([8, 8], 1),
        gamma=normal([8], 2) + 1,
        beta=normal([8], 3),
    )
    plan = planned(model)
    assert set(plan.nodes) == {"MatMul_0", "MatMul_10"}
    assert plan.kept["Add_5"] == "none of its inputs is quantized"
    assert plan.kept["Div_7"] == "target generic computes Div in float"
    assert list(plan.observed) == ["x", "h"]  # what MatMul gives stays float: only floats read it


def test_arithmetic_on_shapes_is_left_alone():
    body = (
        "s = Shape(x) f = Cast<to=1>(s) d = Mul(f, two) i = Cast<to=7>(d) "
        'r = Resize<mode="nearest">(x, , , i) a = Conv(r, w) y = Relu(a)'
    )
    model = graph(
        body, init=INIT[:-1] + ", float[4] two = {1, 1, 2, 2}>", outputs="float[1,8,8,8] y"
    )
    plan = planned(model)
    assert plan.kept == {
        "Cast_1": "target generic computes Cast in float",
        "Mul_2": "it computes shapes or constants, not data",
    }
    assert list(plan.observed) == ["x", "y"]
    assert plan.nodes["Resize_4"] == "same"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("a = Conv(x, w) y = Pad(a, p, c)", "it pads with 1.5"),
        ("a = Conv(x, w) s = ReduceSum<keepdims=0>(a) y = Pad(a, p, s)", "it pads with a computed"),
        ("a = Conv(x, w) y, i = MaxPool<kernel_shape=[1, 1]>(a)", "it has a second output"),
        ("a = Conv(x, w) b = Exp(w) y = Conv(a, b)", "its weight is computed"),
        ("a = Conv(x, w) s = ReduceMax<keepdims=0>(a) y = Clip(a, , s)", "its bounds are computed"),
        ("a = Conv(x, w) y = Mul(a, inf)", "its constant 'inf' is not finite"),
        ("a = Conv(x, w) y = Softplus(a)", "target generic computes Softplus in float"),
        ("d = Cast<to=11>(x) e = Add(d, d) y = Cast<to=1>(e)", "float64 tensors; export the model"),
        ('y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, roi, k)', "it extra"),
    ],
)
def test_why_a_node_stays_float(body, why):
    more = ", float c = {1.5}, float[8] roi = {0,0,0,0,1,1,1,1}, float[4] k = {1, 1, 1, 1}"
    more += ", int64[8] p = {0, 0, 0, 0, 0, 0, 0, 0}>"
    outputs = "float[1, 8, 4, 4] y" + (", int64[1, 8, 4, 4] i" if "i =" in body else "")
    plan = planned(graph(body, init=INIT[:-1] + more, outputs=outputs, inf=np.float32([np.inf])))
    assert any(reason.startswith(why) for reason in plan.kept.values()), plan.kept


def test_pads_of_zeros_and_of_copies_keep_the_parameters():
    for pad in ("Pad(a, p)", 'Pad<mode="edge">(a, p, c)', "Pad(a, p, z)"):
        init = ", float c = {1.5}, float z = {0}, int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}>"
        model = graph(f"a = Conv(x, w) y = {pad}", INIT[:-1] + init, outputs="float[1, 8, 6, 6] y")
        assert ["a", "y"] in groups_of(planned(model))


def test_pooled_and_transposed_between_floats_only_where_the_target_wants_it():
    body = "e = Exp(x) m = MaxPool<kernel_shape=[1, 1]>(e) y = Exp(m)"
    assert planned(graph(body)).nodes == {}
    plan = planned(graph(body), "drp-ai3")
    assert plan.nodes == {"MaxPool_1": "same"}
    assert groups_of(plan) == [["e", "m"]]


def test_the_add_of_a_residual_is_computed_with_the_layer_before_it():
    body = "a = Conv(x, w) b = Conv(a, v) s = Add(a, b) y = Relu(s)"
    plan = planned(graph(body), "tensorrt")
    assert plan.units == {"Conv_1": ("Add_2", "Relu_3")}
    assert plan.outputs == {"Conv_0": "a", "Conv_1": "y"}
    assert plan.biases == {}
    assert list(plan.observed) == ["x", "a"]  # b is not rounded; only the user reads y
    assert planned(graph(body)).units == {"Add_2": ("Relu_3",)}


def test_of_two_layers_that_are_added_one_is_rounded():
    body = "a = Conv(x, w) b = Conv(x, v) s = Add(a, b) r = Relu(s) y = Conv(r, w)"
    plan = planned(graph(body), "tensorrt")
    assert plan.units == {"Conv_0": ("Add_2", "Relu_3")}
    assert list(plan.observed) == ["x", "b", "r"]
    assert plan.kept == {}


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w) s = Add(a, a) y = Conv(s, v)",  # reads it twice
        "a = Conv(x, w) s = Add(a, c) y = Conv(s, v)",  # adds a constant
        "a = Conv(x, w) s = Add(a, x) y = Conv(a, v) z = Relu(s)",  # not alone
    ],
)
def test_what_is_no_residual_has_its_own_parameters(body):
    outputs = "float[1, 8, 4, 4] y" + (", float[1, 8, 4, 4] z" if " z " in body else "")
    model = graph(body, init=INIT[:-1] + ", float c = {0.5}>", outputs=outputs)
    plan = planned(model, target_with("tensorrt", float_output=()))
    assert "Conv_0" not in plan.units
    assert "a" in plan.groups


def test_what_a_profile_takes_out_stays_float():
    body = "a = Conv(x, w) s = Sigmoid(a) y = Conv(s, v)"
    plan = planned(graph(body), target_with(keep_float=("Sigmoid",)))
    assert plan.kept == {"Sigmoid_1": "target generic computes Sigmoid in float"}
    assert list(plan.observed) == ["x", "a", "s", "y"]  # a: its layer is quantized all the same


def test_what_ties_tensors_is_noted():
    body = "a = Conv(x, w) b = Conv(x, v) s = Add(a, b) y = Concat<axis=1>(s, b)"
    plan = planned(graph(body, outputs="float[1, 16, 4, 4] y"), "drp-ai3")
    assert plan.tied == {"Add_2": ("a", "b"), "Concat_3": ("s", "b", "y")}
    assert planned(graph(body, outputs="float[1, 16, 4, 4] y")).tied == {}


def test_a_fixed_range_is_not_measured():
    model = graph("a = Conv(x, w) y = Softmax(a)")
    plan = planned(model, "drp-ai3")
    assert plan.fixed == {"y": (0.0, 1.0)}
    assert list(plan.observed) == ["x", "a"]


def test_matmul_and_add_are_one_layer_where_the_target_says_so():
    weights = {"w": normal([8, 4], 0), "b": normal([4], 1)}
    text = "a = MatMul(x, w) s = Add({}) y = Relu(s)"
    for order, place in (("a, b", 1), ("b, a", 0)):
        model = graph(text.format(order), "", "float[2, 8] x", "float[2, 4] y", **weights)
        plan = planned(model)
        assert plan.units == {"MatMul_0": ("Add_1", "Relu_2")}
        assert plan.biases == {"MatMul_0": ("Add_1", place)}
        assert plan.outputs == {"MatMul_0": "y"}
    plan = planned(model, target_with(matmul_add_is_fc=False, float_output=()))
    assert plan.units == {"Add_1": ("Relu_2",)}
    assert plan.biases == {}


def test_the_order_of_the_list_of_nodes_does_not_matter():
    weights = {"w": normal([8, 4], 0), "b": normal([4], 1)}
    body = "a = MatMul(x, w) s = Add(a, b) y = Relu(s)"
    model = graph(body, "", "float[2, 8] x", "float[2, 4] y", **weights)
    plan = planned(model)
    model.graph.nodes.reverse()
    assert planned(model) == plan


def test_what_was_kept_float_before_stays_and_the_plan_repeats():
    model = Model.from_proto(conv_net(32))
    InferShapes().run(model, PassContext())
    plan = planned(model, conv2="excluded by 'conv2'")
    assert plan.kept["conv2"] == "excluded by 'conv2'"
    assert "conv2" not in plan.layers
    assert planned(model, **plan.kept) == plan


def test_every_node_that_computes_floats_is_quantized_or_says_why(modB):
    model = Model.load(modB)
    InferShapes().run(model, PassContext())
    for target in ("generic", "drp-ai3"):
        plan = planned(model, target)
        floats = {n.name for n in model.nodes() if n.outputs[0].dtype == np.float32}
        assert floats == plan.nodes.keys() | plan.kept.keys()
        assert not plan.nodes.keys() & plan.kept.keys()
        assert len(plan.layers) == 16


def test_a_body_that_captures_a_tensor_keeps_it_in_view():
    text = f"""{HEAD} g (float[1, 8, 4, 4] x, bool c) => (float[1, 8, 4, 4] y) {INIT} {{
        a = Conv(x, w)
        r = Relu(a)
        y = If (c) <
            then_branch = yes () => (float[1, 8, 4, 4] p) {{ p = Add(a, r) }},
            else_branch = no () => (float[1, 8, 4, 4] q) {{ q = Identity(r) }}
        >
    }}"""
    plan = planned(parse(text, W))
    assert plan.units == {}  # the If reads what Conv gives
    assert plan.kept == {"If_2": "target generic computes If in float"}
    assert list(plan.observed) == ["x", "a", "r"]


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), max_size=20))
def test_groups_are_the_connected_parts(joins):
    groups = Groups()
    for keys in joins:
        groups.join(keys)
    roots = groups.roots()
    assert roots.keys() == {k for keys in joins for k in keys}
    parts = {k: {k} for k in roots}  # by brute force
    for keys in joins:
        merged = set().union(*(parts[k] for k in keys))
        parts |= dict.fromkeys(merged, merged)
    for a in roots:
        assert {b for b in roots if roots[b] == roots[a]} == parts[a]


def test_planning_takes_linear_time():
    def calls(n):
        """How many Python and C functions all steps call: no clock, so no noise."""
        nodes, at, weights = [], "x", {}
        for i in range(n):
            weights[f"w{i}"] = normal([4, 4, 1, 1], i)
            nodes += [
                helper.make_node("Conv", [at, f"w{i}"], [f"c{i}"], f"conv{i}"),
                helper.make_node("Concat", [at, f"c{i}"], [f"k{i}"], f"cat{i}", axis=1),
                helper.make_node("Identity", [f"c{i}"], [f"a{i}"], f"id{i}"),
            ]
            at = f"a{i}"
        outs = [value(at, [1, 4, 2, 2])]
        model = Model.from_proto(make_model(nodes, [value("x", [1, 4, 2, 2])], outs, weights))
        InferShapes().run(model, PassContext())
        ctx = PassContext(target=load_target("drp-ai3"))
        profile = cProfile.Profile()
        plan = profile.runcall(planned, model, ctx.target)
        assert len(plan.nodes) == 3 * n
        ctx.ranges = {tensor: Range(-1, 1) for tensor in plan.observed}
        profile.runcall(QuantizeWeights().run, model, ctx)
        profile.runcall(InsertQdq().run, model, ctx)
        assert profile.runcall(departures, model, ctx.target) == []
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(800) < 4.5 * calls(200)  # quadratic: 16
