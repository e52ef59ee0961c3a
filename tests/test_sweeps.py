"""Which layers a sweep mends, in which order, and what each aims at."""

import numpy as np
import pytest
from builders import normal
from quantizing import parse

from onnxdrp.passes.sweeps import sweep

HEAD = '<ir_version: 10, opset_import: ["" : 17]>'


def conv(*names, channels=8):
    return {name: normal([channels, channels, 3, 3], seed) for seed, name in enumerate(names)}


def residual(extra=""):
    """Two layers and a shortcut, added: y = c(relu(b(a(x)))) + s(a(x)); then d."""
    text = f"""{HEAD} g (float[1,8,6,6] x) => (float[1,8,6,6] y) {{
        at = Conv<pads=[1,1,1,1]>(x, a)
        bt = Conv<pads=[1,1,1,1]>(at, b)
        rt = Relu(bt)
        ct = Conv<pads=[1,1,1,1]>(rt, c)
        st = Conv<pads=[1,1,1,1]>(at, s)
        sum = Add(ct, st)
        act = Relu(sum)
        y = Conv<pads=[1,1,1,1]>(act, d)
        {extra}
    }}"""
    return parse(text, conv("a", "b", "c", "s", "d"))


def told(model, *pruned):
    """[(cut, [[(weight, total, beside), ...] of each round])] and what is passed over."""
    stops, skipped = sweep(model, pruned)
    plain = [
        (
            stop.cut,
            [[(w.name, w.uses[0].total, w.uses[0].beside) for w in turn] for turn in stop.rounds],
        )
        for stop in stops
    ]
    return plain, skipped


def test_layers_after_the_first_pruned_one_are_mended_in_the_order_of_what_they_read():
    plain, skipped = told(residual(), "b")
    assert plain == [
        (("at",), [[("b", "bt", ())]]),
        (("rt",), [[("c", "ct", ())]]),
        (("act",), [[("d", "y", ())]]),
    ]  # the shortcut reads what it always read, and is whole
    assert not skipped


def test_the_last_to_be_mended_makes_up_for_what_stands_beside_it():
    plain, _ = told(residual(), "b", "s")
    assert plain[0] == (("at",), [[("b", "bt", ()), ("s", "st", ())]])
    assert plain[1] == (("rt",), [[("c", "sum", ("st",))]])


def test_of_two_layers_that_read_the_same_the_second_waits_for_the_first():
    text = f"""{HEAD} g (float[1,8,6,6] x) => (float[1,8,6,6] y) {{
        at = Conv<pads=[1,1,1,1]>(x, a)
        bt = Conv<pads=[1,1,1,1]>(x, b)
        y = Add(at, bt)
    }}"""
    plain, _ = told(parse(text, conv("a", "b")), "a", "b")
    assert plain == [(("x",), [[("a", "at", ())], [("b", "y", ("at",))]])]


def test_adds_that_follow_each_other_are_one_sum():
    text = f"""{HEAD} g (float[1,8,6,6] x) => (float[1,8,6,6] y) {{
        at = Conv<pads=[1,1,1,1]>(x, a)
        u = Relu(at)
        bt = Conv<pads=[1,1,1,1]>(u, b)
        v = Sigmoid(at)
        one = Add(u, bt)
        y = Add(one, v)
    }}"""
    plain, _ = told(parse(text, conv("a", "b")), "a")
    assert plain[1] == (("u",), [[("b", "y", ("u", "v"))]])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("y = Add(ct, st)\n z = Sigmoid(ct)", "another reader"),
        ("z = Sigmoid(st)\n y = Mul(ct, st)", "no Add"),
        ("z = Sigmoid(st)\n y = Add(ct, k)", "a constant beside it"),
    ],
)
def test_a_layer_aims_at_its_own_output_where_others_see_it(change, why):
    text = f"""{HEAD} g (float[1,8,6,6] x) => (float[1,8,6,6] y, float[1,8,6,6] z) {{
        st = Conv<pads=[1,1,1,1]>(x, s)
        rt = Relu(st)
        ct = Conv<pads=[1,1,1,1]>(rt, c)
        {change}
    }}"""
    weights = conv("s", "c") | {"k": normal([1, 8, 6, 6], 5)}
    plain, _ = told(parse(text, weights), "s")
    assert plain[1] == (("rt",), [[("c", "ct", ())]])


def test_an_add_that_spreads_one_of_its_inputs_is_no_sum_to_aim_at():
    text = f"""{HEAD} g (float[1,8,6,6] x) => (float[1,8,6,6] y) {{
        at = Conv<pads=[1,1,1,1]>(x, a)
        mean = GlobalAveragePool(at)
        bt = Conv(mean, b)
        y = Add(bt, at)
    }}"""
    weights = {"a": normal([8, 8, 3, 3], 0), "b": normal([8, 8, 1, 1], 1)}
    plain, _ = told(parse(text, weights), "a")
    assert plain[1] == (("mean",), [[("b", "bt", ())]])


def test_the_bias_behind_a_matmul_belongs_to_it():
    text = f"""{HEAD} g (float[4,6] x) => (float[4,5] y) {{
        h = MatMul(x, w)
        y = Add(h, b)
    }}"""
    model = parse(text, {"w": normal([6, 5], 0), "b": normal([5], 1)})
    stops, _ = sweep(model, ["w"])
    (use,) = stops[0].rounds[0][0].uses
    assert (use.output, use.total, use.node.op) == ("y", "y", "MatMul")


def test_layers_of_one_weight_are_mended_together():
    text = f"""{HEAD} g (float[1,8,6,6] x) => (float[1,8,6,6] y, float[1,8,3,3] z) {{
        at = Conv<pads=[1,1,1,1]>(x, a)
        pool = MaxPool<kernel_shape=[2,2], strides=[2,2]>(at)
        u = Conv<pads=[1,1,1,1]>(at, shared)
        y = Conv<pads=[1,1,1,1]>(u, later)
        z0 = Conv<pads=[1,1,1,1]>(pool, shared)
        z = Conv<pads=[1,1,1,1]>(z0, later)
    }}"""
    plain, _ = told(parse(text, conv("a", "shared", "later")), "shared")
    assert [cut for cut, _ in plain] == [("at", "pool"), ("u", "z0")]


def test_what_cannot_be_mended_is_passed_over_with_a_reason():
    text = f"""{HEAD} g (float[1,8,6,6] x, float[8,8,3,3] fed) => (float[1,8,6,6] y) {{
        at = Conv<pads=[1,1,1,1]>(x, a)
        bt = ConvTranspose<pads=[1,1,1,1]>(at, b)
        y = Conv<pads=[1,1,1,1]>(bt, fed)
    }}"""
    plain, skipped = told(parse(text, conv("a", "b")), "a")
    assert [cut for cut, _ in plain] == [("x",)]
    (reason,) = skipped.values()
    assert "ConvTranspose" in reason


def test_layers_of_one_weight_that_follow_each_other_are_passed_over():
    text = f"""{HEAD} g (float[1,8,6,6] x) => (float[1,8,6,6] y) {{
        u = Conv<pads=[1,1,1,1]>(x, shared)
        v = Conv<pads=[1,1,1,1]>(u, shared)
        y = Conv<pads=[1,1,1,1]>(v, b)
    }}"""
    plain, skipped = told(parse(text, conv("shared", "b")), "shared")
    assert [cut for cut, _ in plain] == [("v",)]
    assert set(skipped.values()) == {"of the layers of its weight one comes after another"}
    assert len(skipped) == 2


def test_nothing_pruned_is_nothing_to_mend():
    assert told(residual()) == ([], {})
    assert np.ptp(residual().weight("a")) > 0
