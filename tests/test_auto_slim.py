"""The pass around the search for channels: what it leaves in the model and the context."""

import pytest
from slim_nets import images, residual_net

import onnxdrp
from onnxdrp.channels import channels_of
from onnxdrp.channels.auto import auto_channels
from onnxdrp.datareaders import ArrayReader, split
from onnxdrp.errors import DataError, OptionError, PassError
from onnxdrp.passes import AutoSlim
from onnxdrp.pipeline import PassContext, PassManager


@pytest.fixture(scope="module")
def net():
    return onnxdrp.preprocess(residual_net()).model


def test_the_model_becomes_the_last_candidate_that_held(net):
    reader, model = ArrayReader(images(200), net, batch=50), net.clone()
    seen, held = split(reader, 0.4)
    ctx = PassContext(reader=seen, held_out=held)
    (record,) = PassManager([AutoSlim(max_drop=10, multiple=2)]).run(model, ctx).records
    found = auto_channels(net, seen, held_out=held, max_drop=10, multiple=2)
    assert model.fingerprint() == found.model.fingerprint()
    assert ctx.rounds is not None
    assert ctx.rounds.removed == found.removed
    assert all(left % 2 == 0 for _, left in record.stats["channels"].values())
    assert record.stats["decision"]
    assert record.stats["lost"] == found.best.lost <= 10
    assert record.modified
    left = {name: len(atoms) for name, atoms in channels_of(model).trace.made.items()}
    assert {
        name: pair[1] for name, pair in record.stats["channels"].items()
    }.items() <= left.items()
    assert ctx.slim is not None
    assert [ctx.slim.weight(n).shape for n in ctx.slim.weights()] == [
        model.weight(n).shape for n in ctx.slim.weights()
    ]
    assert ctx.dense is not None
    feeds = next(iter(reader.batches()))
    (same,), (own,) = (m.session().run(None, dict(feeds)) for m in (ctx.dense, net))
    assert same == pytest.approx(own, rel=1e-4, abs=1e-4)


def test_what_it_cannot_do_is_refused(net):
    for options, words in [
        ({"max_drop": -1.0}, "max_drop"),
        ({"recover": "none"}, "auto needs a repair"),
        ({"distill_minutes": 1.0}, "does not distill"),
        ({"multiple": 0}, "multiple"),
        ({"memory_limit": 0}, "memory_limit"),
    ]:
        with pytest.raises(OptionError, match=words):
            AutoSlim(**options)
    with pytest.raises(PassError, match="a search needs data") as caught:
        PassManager([AutoSlim()]).run(net.clone(), PassContext())
    assert isinstance(caught.value.__cause__, DataError)
    ctx = PassContext(reader=ArrayReader(images(20), net), rates={"wb": 0.5})
    with pytest.raises(PassError, match="chosen already"):
        PassManager([AutoSlim()]).run(net.clone(), ctx)
