"""The PyTorch listings of the manual's chapters 3 and 4 run with only their import changed.

FashionMNIST is replaced by the images that come with onnxdrp, 28x28 of each. Mistakes of the
manual that are corrected stand beside the listing in which they are.
"""

import sys
from types import ModuleType

import numpy as np
import pytest
from manual_listings import listing, mended
from torch_nets import Manual, nn, torch

import onnxdrp
from onnxdrp import demo
from onnxdrp.compat.drpai_compaction_tool.pytorch import (
    Pruner,
    deepcopy_model,
    get_model_info,
    load_pruned_state_dict,
    make_pruning_layer_list,
)
from onnxdrp.errors import OptionError

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's exporters

MIDDLE = "linear_relu_stack.2"
SAVES_SETTINGS = ("torch.save(pruner.state_dict(), ", "torch.save(model.state_dict(), ")
NO_COLON = ("if pruner.is_finished\n", "if pruner.is_finished:\n")
NO_COMMA = ("Pruner \\\n", "Pruner, \\\n")


class FashionMNIST(torch.utils.data.Dataset):
    """torchvision's class as the listings use it, over 256 bundled images."""

    def __init__(self, root, train, download, transform):
        with np.load(demo.TEST) as data:
            x, y = data["x"][:256, 2:-2, 2:-2, 0], data["y"][:256]
        self.samples = [
            (torch.from_numpy(a)[None] / 255, int(b)) for a, b in zip(x, y, strict=True)
        ]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


@pytest.fixture
def run(shared, tmp_path, monkeypatch):
    """Runs code in a folder of its own, with a torchvision that has the bundled images."""
    modules = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms")}
    modules["torchvision"].datasets = ModuleType("datasets")
    modules["torchvision"].datasets.FashionMNIST = FashionMNIST
    modules["torchvision.transforms"].ToTensor = lambda: None
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)

    def run(code):
        torch.manual_seed(0)
        names = {"__name__": "listing"}
        exec(compile(code, "listing", "exec"), names)
        return names

    return run


@pytest.fixture
def initial(shared, run):
    """The left listing of Figure 3-2: trains, and saves pretrained_model.pth."""
    code = listing(shared, "3-2")
    run(code[: code.index("# Importing the library", 10)])


def sparsity(path):
    found = onnxdrp.info(path)
    return [round(row.sparsity, 3) for row in found.layers], found.current_mac


def test_figure_3_2_prunes_retrains_and_exports(shared, run, initial, tmp_path, capsys):
    code = listing(shared, "3-2")
    run(code[code.index("# Importing the library", 10) :])
    assert "485,376.0" in capsys.readouterr().out
    assert sparsity(tmp_path / "oneshot_pruned_model.onnx") == ([0.0, 0.699, 0.0], 485_376)
    state = torch.load("oneshot_pruned_model.pth")
    assert {f"{MIDDLE}.weight_orig", f"{MIDDLE}.weight_mask"} <= state.keys()


def test_figures_3_3_to_3_8_and_what_loads_the_result(shared, run, initial, tmp_path):
    whole = mended(listing(shared, "3-3"), NO_COLON, SAVES_SETTINGS)
    trained = run(whole)["model"]
    assert sparsity(tmp_path / "pruned_model.onnx")[1] == 485_376
    x = torch.rand(4, 1, 28, 28)
    for figure in ("3-12", "3-13"):
        loaded = run(listing(shared, figure))["model"]
        assert torch.equal(loaded(x), trained(x))
        assert get_model_info(loaded, [(1, 1, 28, 28)]).iloc[-1]["Current MAC"] == "485,376.0"


@pytest.mark.parametrize("figure", ["3-4", "3-5", "3-6", "3-7", "3-8"])
def test_the_excerpts_are_parts_of_the_whole(shared, figure):
    whole = mended(listing(shared, "3-3"), NO_COLON).replace('"', "'")
    excerpt = listing(shared, figure)
    if figure == "3-4":
        excerpt = mended(excerpt, NO_COMMA)
    squeezed = ["".join(text.replace('"', "'").split()) for text in (excerpt, whole)]
    assert len(squeezed[0]) > 50
    assert squeezed[0] in squeezed[1]


def test_figures_3_9_and_3_10_print_the_table_before_and_while_training(shared, run, capsys):
    names = "import torch\nfrom onnxdrp.compat.drpai_compaction_tool.pytorch import *\n"
    before = names + (
        "from torch_nets import Manual, batches\nmodel, max_epochs = Manual(), 3\n"
        "data_loader = batches(150, (2, 1, 28, 28))\n"
    )
    once = listing(shared, "3-9").replace(". . . .(Omitted)", "", 1).lstrip()
    run(before + once.replace(". . . .(Omitted)", "    pass"))
    assert capsys.readouterr().out.count("485,376.0") == 1
    gradual = listing(shared, "3-10").replace(". . . .(Omitted)", "")
    assert run(before + gradual.lstrip())["pruner"].is_finished
    printed = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "total" in line]
    shrinking = [float(mac.replace(",", "")) for mac in printed]
    assert len(shrinking) == 6
    assert shrinking == sorted(shrinking, reverse=True)
    assert shrinking[0] > 660_000
    assert shrinking[-1] == 485_376


# --------------------------------------------------------------------- usage examples of chapter 4


def test_resnet18_has_the_layers_of_section_4_2_1():
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    model = torchvision.models.resnet18(num_classes=1000)
    names = make_pruning_layer_list(model, input_size=[(2, 3, 224, 224)])
    every = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert set(every) - set(names) == {"conv1", "fc"}
    with pytest.raises(onnxdrp.errors.DataError, match="does not run"):
        make_pruning_layer_list(model, input_size=[(2, 1, 224, 224)])


def test_a_detector_takes_lists_and_dicts_as_in_section_4_2_1():
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    model = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
    targets = [{"boxes": torch.tensor([[0, 0, 100, 100]]), "labels": torch.tensor([0])}]
    images = [torch.rand(3, 300, 300)]
    listed = make_pruning_layer_list(model, input_data=[images, targets])
    named = make_pruning_layer_list(model, input_data={"images": images, "targets": targets})
    assert listed == named
    assert len(listed) > 15
    heads = [name for name in listed if name.startswith("head.")]
    assert heads == []  # all of them are last layers


def test_section_4_2_2_stores_and_loads_the_settings(tmp_path):
    model = Manual()
    names = make_pruning_layer_list(model, [(1, 1, 28, 28)])
    torch.save(Pruner(model, names).state_dict(), tmp_path / "pruner.pth")
    pruner = Pruner(Manual(), names)
    pruner.load_state_dict(torch.load(tmp_path / "pruner.pth"))
    assert pruner.is_finished


def test_the_network_of_section_4_2_5_has_its_table():
    class NeuralNetwork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 32, kernel_size=3, padding="same")
            self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding="same")
            self.fc1 = nn.Linear(64 * 32 * 32, 50)
            self.fc2 = nn.Linear(50, 10)

        def forward(self, x):
            x = torch.relu(torch.max_pool2d(self.conv1(x), 2))
            x = torch.relu(torch.max_pool2d(self.conv2(x), 2))
            return self.fc2(torch.relu(self.fc1(x.view(-1, 64 * 32 * 32))))

    found = get_model_info(NeuralNetwork(), [(1, 3, 128, 128)])
    assert list(found["input shape"]) == ["3 128 128", "32 64 64", "65536", "50", ""]
    assert list(found["Baseline MAC"])[1] == "209,715,200.0"
    assert found["params"].iloc[-1] == 896 + 51_264 + 3_276_850 + 510


def test_section_4_2_6_copies_a_pruned_model():
    """The manual forgets the comma between the names; its fc1 has 3 inputs and stays dense."""
    layers = {"fc1": nn.Linear(3, 1024), "fc2": nn.Linear(1024, 10)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    with pytest.raises(OptionError, match="called 'fc1fc2'"):
        Pruner(model, ["fc1fc2"])
    with pytest.warns(UserWarning, match="fc1 is not pruned: its 3 input channels"):
        Pruner(model, ["fc1", "fc2"])
    copied = deepcopy_model(model)
    x = torch.rand(2, 3)
    assert torch.equal(copied(x), model(x))
    assert copied.fc2.weight_mask is not model.fc2.weight_mask


def test_section_4_2_7_loads_into_a_dense_model(tmp_path):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    pruned = torchvision.models.resnet18(num_classes=1000)
    Pruner(pruned, ["layer1.0.conv1"])
    torch.save(pruned.state_dict(), tmp_path / "pruned_state_dict.pth")
    dense = torchvision.models.resnet18(num_classes=1000)
    load_pruned_state_dict(dense, torch.load(tmp_path / "pruned_state_dict.pth"))
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(dense.eval()(x), pruned.eval()(x))
