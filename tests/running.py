"""Run one pass on a small model and hold it to what every pass promises."""

from collections.abc import Mapping

import numpy as np
import onnx
from builders import Array, feeds_for, outputs_of
from onnx import helper

from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassResult

__all__ = ["close", "node", "ops", "run_pass"]

node = helper.make_node


def run_pass(
    step: Pass,
    proto: onnx.ModelProto | Model,
    *,
    feeds: Mapping[str, Array] | None = None,
    tolerance: float = 2e-6,
) -> tuple[Model, PassResult]:
    """Run `step`; assert that `modified` is true, results are kept, and nothing is left to do."""
    model = proto if isinstance(proto, Model) else Model.from_proto(proto)
    before, whole = model.fingerprint(), model.proto()
    step.requires(model, PassContext())
    result = step.run(model, PassContext())
    step.ensures(model, PassContext())
    after = model.fingerprint()
    assert result.modified == (before != after)
    model.check()
    if step.keeps_results:
        close(whole, model, feeds if feeds is not None else feeds_for(whole), tolerance)
        assert [i.name for i in model.inputs] == [i.name for i in Model.from_proto(whole).inputs]
    assert not step.run(model, PassContext()).modified, "a second run must find nothing to do"
    assert model.fingerprint() == after
    return model, result


def close(
    a: Model | onnx.ModelProto,
    b: Model | onnx.ModelProto,
    feeds: Mapping[str, Array],
    tolerance: float,
) -> None:
    """Assert that outputs agree, in float64 terms of the largest, and that they say something."""
    for want, got in zip(outputs_of(a, feeds), outputs_of(b, feeds), strict=True):
        assert want.shape == got.shape
        assert want.dtype == got.dtype
        want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
        assert np.abs(want).max() > 1e-3
        assert np.abs(want - got).max() <= tolerance * np.abs(want).max()


def ops(model: Model) -> list[str]:
    """The operators of a model, in order."""
    model.skeleton()  # brings the nodes into order
    return [n.op for n in model.nodes()]
