"""Whether products saturate: what onnxruntime answers, and who asks."""

import dataclasses

import numpy as np
import pytest
from builders import make_model
from onnx import TensorProto, helper

from onnxdrp import saturation
from onnxdrp.model import Model
from onnxdrp.saturation import products_saturate
from onnxdrp.targets import load_target


def sums(top):
    """Sums of pairs of 255 * top as onnxruntime computes them on this machine, and as they are."""
    left, right = np.full((8, 64), 255, np.uint8), np.full((64, 32), top, np.int8)
    proto = make_model(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"], "m")],
        [helper.make_tensor_value_info("x", TensorProto.UINT8, left.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (8, 32))],
        {"w": right},
        opset=13,
    )
    (got,) = Model.from_proto(proto).session().run(None, {"x": left})
    return got, left.astype(np.int32) @ right.astype(np.int32)


def test_the_answer_is_what_a_product_of_the_largest_shows():
    got, exact = sums(127)
    assert products_saturate() == bool((got != exact).any())
    assert exact.min() == 64 * 255 * 127


def test_weights_up_to_64_never_saturate():
    got, exact = sums(64)
    np.testing.assert_array_equal(got, exact)


def test_a_kernel_that_saturates_is_noticed(monkeypatch):
    class Saturating:
        def session(self):
            return self

        def run(self, _, feeds):
            rows = len(feeds["x"])
            return [np.full((rows, 32), 32 * (2**15 - 1), np.int32)]  # what VPMADDUBSW makes of it

    monkeypatch.setattr(saturation, "_product", lambda *_: Saturating())
    products_saturate.cache_clear()
    try:
        assert products_saturate()
    finally:
        products_saturate.cache_clear()


@pytest.mark.parametrize("answer", [True, False])
def test_only_auto_asks(monkeypatch, answer):
    asked = []
    monkeypatch.setattr(saturation, "products_saturate", lambda: asked.append(1) or answer)
    target = load_target("generic")
    for choice, reduces in (("on", True), ("off", False)):
        assert dataclasses.replace(target, reduce_range=choice).reduces_range is reduces
    assert not asked
    assert dataclasses.replace(target, reduce_range="auto").reduces_range is answer
    assert asked
