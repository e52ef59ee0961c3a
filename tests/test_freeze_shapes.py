"""FreezeShapes: what is given holds everywhere, what contradicts is refused."""

import pytest
from builders import conv_net, make_model, normal, same_outputs, value
from running import node, run_pass

from onnxdrp.errors import OptionError
from onnxdrp.model import Model
from onnxdrp.passes.freeze_shapes import FreezeShapes
from onnxdrp.passes.infer_shapes import InferShapes
from onnxdrp.pipeline import PassContext


def refused(model, **shapes):
    with pytest.raises(OptionError) as error:
        FreezeShapes(shapes).requires(model, PassContext())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_input_and_what_follows_from_it_become_static():
    proto = conv_net(batch="N")
    model = Model.from_proto(proto)
    InferShapes().run(model, PassContext())
    assert model.info("r1").shape == ("N", 32, 8, 8)
    _, result = run_pass(FreezeShapes({"x": (5, 3, 8, 8)}), model)
    assert result.stats == {"frozen": {"x": [5, 3, 8, 8]}}
    assert model.inputs[0].shape == (5, 3, 8, 8)
    assert model.outputs[0].shape == (5, 10)
    assert model.info("r1").shape is None, "what was true of any size is stale"
    InferShapes().run(model, PassContext())
    assert model.info("r1").shape == (5, 32, 8, 8)
    same_outputs(proto, model, {"x": normal([5, 3, 8, 8], 1)})


def two_inputs():
    return Model.from_proto(
        make_model(
            [node("Add", ["a", "b"], ["y"], "add")],
            [value("a", ["N", 4]), value("b", ["N", "width"])],
            [value("y", ["N", 4])],
        )
    )


def test_a_symbol_has_one_value_in_all_inputs_and_outputs():
    model, _ = run_pass(FreezeShapes({"a": (2, 4)}), two_inputs())
    assert model.info("b").shape == (2, "width")
    assert model.outputs[0].shape == (2, 4)


def test_a_symbol_cannot_be_two_things():
    assert "'N' cannot be both 2 and 3" in refused(two_inputs(), a=(2, 4), b=(3, 4))


def test_an_unknown_input_is_refused_with_the_nearest_name():
    model = Model.from_proto(conv_net())
    assert refused(model, X=(1, 3, 8, 8)) == "no input is called 'X'; did you mean 'x'?"
    assert "did you mean 'x'?" in refused(model, entirely_other=(1,))


def test_another_rank_is_refused():
    assert "has 4 dimensions, (3, 8, 8) has 3" in refused(Model.from_proto(conv_net()), x=(3, 8, 8))


def test_a_static_dimension_is_not_contradicted():
    why = refused(Model.from_proto(conv_net()), x=(1, 3, 9, 8))
    assert "its dimension of 8 cannot become 9" in why


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (-1, 3, 8, 8), ("N", 3, 8, 8), (1.5, 3, 8, 8)])
def test_dimensions_are_whole_numbers_from_1(shape):
    assert "numbers from 1" in refused(Model.from_proto(conv_net()), x=shape)


def test_the_same_shape_again_changes_nothing():
    model = Model.from_proto(conv_net(batch=1))
    InferShapes().run(model, PassContext())
    result = FreezeShapes({"x": (1, 3, 8, 8)}).run(model, PassContext())
    assert not result.modified
    assert model.info("r1").shape == (1, 32, 8, 8)
