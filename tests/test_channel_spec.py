"""A decision about channels as a file: for the model it was made for, whatever its weights."""

import json

import numpy as np
import pytest
from builders import normal
from quantizing import parse
from slim_nets import images, residual_net

from onnxdrp.channels import channels_of
from onnxdrp.channels.spec import ChannelSpec, load_spec
from onnxdrp.errors import OptionError, PassError
from onnxdrp.passes import ApplyChannels, MaskChannels, RemoveChannels
from onnxdrp.pipeline import PassContext, PassManager

NET = residual_net()
CHANNELS = channels_of(NET)
REMOVED = {g.name: tuple(range(0, g.size, 2)) for g in CHANNELS.groups[:3]}


def saved(tmp_path, removed=REMOVED):
    path = tmp_path / "channels.json"
    ChannelSpec.of(CHANNELS, removed).save(path)
    return path


def test_a_decision_comes_back_as_it_was(tmp_path):
    spec = ChannelSpec.of(CHANNELS, REMOVED)
    assert load_spec(saved(tmp_path)) == spec
    assert dict(spec.removed) == REMOVED
    assert set(spec.channels.values()) == {(8, 4), (16, 8), (24, 12)}
    layer = next(iter(CHANNELS.groups[1].makers))
    assert ChannelSpec.of(CHANNELS, {layer: [1, 0]}).removed == {CHANNELS.groups[1].name: (0, 1)}


def test_just_these_channels_leave_a_model_that_was_fine_tuned_with_masks(tmp_path):
    path, sparse = saved(tmp_path), NET.clone()
    PassManager([MaskChannels()]).run(sparse, PassContext(removed=dict(REMOVED)))
    for name in sparse.weights():
        values, other = sparse.weight(name), normal(sparse.weight(name).shape, 77)
        tuned = values * (1 + 0.3 * other) if values.ndim > 1 else values + 0.3 * other
        sparse.set_weight(name, tuned.astype(np.float32))
    want = sparse.session().run(None, images())[0]
    ctx = PassContext()
    chosen, cut = (
        PassManager([ApplyChannels(file=str(path)), RemoveChannels()])
        .run(slim := sparse.clone(), ctx)
        .records
    )
    assert chosen.stats["zeros"] == 1
    assert not chosen.modified
    assert cut.stats["channels"] == {
        layer: list(pair) for layer, pair in load_spec(path).channels.items()
    }
    got = slim.session().run(None, images())[0]
    assert want.std() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    assert slim.inventory()[1] < 0.5 * sparse.inventory()[1]


def test_of_a_model_that_was_not_masked_few_zeros_are_told(tmp_path):
    (record,) = PassManager([ApplyChannels(file=str(saved(tmp_path)))]).run(NET.clone()).records
    assert record.stats["zeros"] < 0.01


def refused(tmp_path, model, message, path=None):
    step = ApplyChannels(file=str(path or saved(tmp_path)))
    with pytest.raises(PassError, match=message) as found:
        PassManager([step]).run(model, PassContext())
    assert "\n" not in str(found.value)


def test_another_model_is_refused_with_what_is_other(tmp_path):
    slim = NET.clone()
    PassManager([RemoveChannels()]).run(slim, PassContext(removed=dict(REMOVED)))
    refused(tmp_path, slim, "has 8 channels; here it has 4")
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 3, 8, 8] x) => (float[N, 10] y)'
        "{ a = Conv(x, wa) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, wg) }"
    )
    weights = {"wa": normal((8, 3, 3, 3), 0), "wg": normal((8, 10), 1)}
    refused(tmp_path, parse(text, weights), "which the model does not have")


def test_the_same_layers_tied_otherwise_are_refused(tmp_path):
    def net(right):
        text = (
            '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 3, 8, 8] x) => (float[N, 4] y)'
            f"{{ a = Conv(x, wa) b = Conv(x, wb) c = Conv(x, wc) s = Add(a, {right})"
            "  k = Concat<axis=1>(b, c) d = Conv(s, wd) e = Conv(k, we) t = Add(d, e)"
            "  p = GlobalAveragePool(t) f = Flatten(p) y = Gemm(f, wg) }"
        )
        shapes = {
            "wa": (8, 3, 1, 1), "wb": (8, 3, 1, 1), "wc": (8, 3, 1, 1), "wd": (4, 8, 1, 1),
            "we": (4, 16, 1, 1), "wg": (4, 4),
        }  # fmt: skip
        return parse(text, {n: normal(s, i) for i, (n, s) in enumerate(shapes.items())})

    before = channels_of(net("b"))
    name = before.group(net("b").nodes("Conv")[0].name).name
    path = tmp_path / "c.json"
    ChannelSpec.of(before, {name: [0, 3]}).save(path)
    PassManager([ApplyChannels(file=str(path))]).run(net("b"), PassContext())
    refused(tmp_path, net("c"), "(other channels hang together|does not have)", path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can be read"),
        ("[]", "can be read"),
        ('{"format": "onnxdrp-channels", "version": 9}', "version 1"),
        ('{"format": "onnxdrp-channels", "version": 1}', "can be read"),
        (json.dumps(ChannelSpec("", {"a": "no"}, {}).as_dict()), "can be read"),
    ],
)
def test_a_broken_file_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=rf"x\.json.*{message}"):
        load_spec(path)


def test_units_that_are_not_there_and_missing_files_are_refused(tmp_path):
    with pytest.raises(OptionError, match=r"none\.json"):
        load_spec(tmp_path / "none.json")
    with pytest.raises(OptionError, match="leave net_id"):
        load_spec(saved(tmp_path), 3)
    with pytest.raises(PassError, match="no file of a decision"):
        PassManager([ApplyChannels()]).run(NET.clone(), PassContext())
    path = saved(tmp_path)
    table = json.loads(path.read_text())
    table["removed"][CHANNELS.groups[0].name] = [99]
    path.write_text(json.dumps(table))
    refused(tmp_path, NET.clone(), "units 0 to 7", path)
