"""An exported model shows its masks, and masks found on it come back."""

import numpy as np
import pytest
from torch_nets import Manual, Residual, batches, nn, seeded, torch, train_steps

import onnxdrp
from onnxdrp.datareaders import ArrayReader
from onnxdrp.errors import ModelError
from onnxdrp.layers import layers
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.torch import Pruner, finalize, masks, masks_for, reapply

LAYERS = ["wide", "depthwise"]
EXPORTERS = [
    pytest.param(
        {"dynamo": False, "opset_version": 12},
        marks=pytest.mark.filterwarnings("ignore::DeprecationWarning"),
        id="torchscript",
    ),
    pytest.param(
        {"dynamo": True, "opset_version": 18, "verbose": False},
        marks=pytest.mark.filterwarnings("ignore"),
        id="dynamo",
    ),
]
PATTERNS = ["block", "flex-nm", "row"]


def trained(pattern="flex-nm", seed=0, pruning=True):
    """Trained to the last step, without a forward pass behind it."""
    model = seeded(Residual, seed)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    rate = 0.7 if pruning else 0.0
    pruner = Pruner(model, LAYERS, final_pr=rate, pattern=pattern)
    train_steps(model, pruner, optimizer, batches(4))
    return model.eval()


def exported(model, path, options, size=(2, 3, 8, 8)):
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, (torch.rand(size),), str(path), **options)
    return path


def zeros(path):
    """{shape of a weight: its mask} of all that have zeros."""
    model = Model.load(path)
    found = {}
    for layer in layers(model):
        assert layer.stored is not None, f"{layer.name}: {layer.barred}"
        nonzero = layer.stored.nonzero(model)
        if not nonzero.all():
            found[nonzero.shape] = Mask(nonzero)
    return found


@pytest.mark.parametrize("folded", [False, True], ids=["as it is", "finalized"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("options", EXPORTERS)
def test_masks_are_read_back_exactly(tmp_path, options, pattern, folded):
    model = trained(pattern)
    held = masks(model)
    path = exported(finalize(model) if folded else model, tmp_path / "m.onnx", options)
    assert zeros(path) == {mask.shape: mask for mask in held.values()}
    x = batches(1, (2, 3, 8, 8))[0][0]
    session = onnxdrp.load(path).session()
    given = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert np.allclose(given, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", EXPORTERS)
def test_what_is_exported_is_what_was_trained_last(tmp_path, options):
    model = trained()
    model(batches(1)[0][0])
    with torch.no_grad():
        model.wide.weight_orig.mul_(2)  # as an optimizer does, behind the last forward pass
    path = exported(model, tmp_path / "m.onnx", options)
    x = batches(1, (2, 3, 8, 8))[0][0]
    session = onnxdrp.load(path).session()
    given = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert np.allclose(given, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", EXPORTERS)
def test_masks_found_on_the_onnx_model_come_back(tmp_path, options):
    model = trained(pruning=False)
    path = exported(finalize(model), tmp_path / "dense.onnx", options)
    report = onnxdrp.prune(path, sparsity=0.6, prune_depthwise=True)
    assert len(report.masks) == 2
    report.model.save(tmp_path / "pruned.onnx")
    found = reapply(model, tmp_path / "pruned.onnx")
    assert masks(model) == found
    assert {m.shape: m for m in found.values()} == {m.shape: m for m in report.masks.values()}
    back = masks_for(model, path)
    assert {m.shape: m for m in back.values()} == {m.shape: m for m in report.masks.values()}
    assert set(back) <= {layer.weight for layer in layers(Model.load(path))}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_repaired_and_fused_weights_are_recognized(tmp_path):
    """Layers of one shape, scaled by BatchNormalization and re-fitted: names and values differ."""
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        for _ in range(5)
    ]
    model = nn.Sequential(nn.Conv2d(3, 32, 3), *blocks, nn.Conv2d(32, 4, 1)).train()
    for x, _ in batches(5, (16, 3, 8, 8)):
        model(x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0, 1)
    path = exported(model.eval(), tmp_path / "m.onnx", EXPORTERS[0].values[0])
    images = np.random.default_rng(0).random((40, 3, 8, 8), np.float32)
    reader = ArrayReader({"x": images}, model=onnxdrp.load(path))
    report = onnxdrp.prune(
        path, sparsity=0.7, pattern="flex-nm", calib=reader, allocation="uniform"
    )
    found = reapply(model, report.model)
    names = [f"{i}.0" for i in range(1, 6)]
    assert list(found) == names
    in_order = [layer.weight for layer in layers(report.model) if layer.weight in report.masks]
    assert [found[name] for name in names] == [report.masks[weight] for weight in in_order]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_of_another_model_is_refused(tmp_path):
    path = exported(trained(), tmp_path / "m.onnx", EXPORTERS[0].values[0])
    with pytest.raises(ModelError, match="are like no weight of the PyTorch model"):
        reapply(seeded(Residual, 7), path)
    with pytest.raises(ModelError, match="are like no weight of the ONNX model"):
        masks_for(trained(seed=8), path)
    assert not masks(seeded(Manual))
