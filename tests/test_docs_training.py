"""docs/training.md: its blocks run, and its callbacks prune when trainers call them."""

import copy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from test_docs import DOCS, blocks
from torch_nets import torch

import onnxdrp
from onnxdrp.torch import load_pruned_state_dict, masks


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the page has defined at its end, run in a folder of its own."""
    torch.manual_seed(0)
    transformers = ModuleType("transformers")
    transformers.TrainerCallback = object
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        patch.syspath_prepend(".")
        if "transformers" not in sys.modules:
            patch.setitem(sys.modules, "transformers", transformers)
        found = {"__name__": "page"}
        for block in blocks(DOCS / "training.md"):
            assert block.language == "python"
            if block.mark == "keras":
                continue  # tests/test_keras_manual.py runs it
            if block.mark.startswith("file: "):
                Path(block.mark.removeprefix("file: ")).write_text(block.text, "utf-8")
            else:
                exec(compile(block.text, "training.md", "exec"), found)
        found["info"] = onnxdrp.info("pruned.onnx")
        yield found


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_the_page_prunes_exports_and_carries_masks(names):
    assert names["info"].layers[1].sparsity == pytest.approx(0.8, abs=0.005)
    assert masks(names["model"]) == names["found"]
    assert not masks(names["model"])["body"].keep.all()


def test_ultralytics_callbacks_prune_and_average(names):
    model = names["Network"]()
    average = SimpleNamespace(ema=copy.deepcopy(model))
    trainer = SimpleNamespace(model=model, ema=average)
    names["on_train_start"](trainer)
    for _ in range(3):
        names["on_train_batch_start"](trainer)
        for value in average.ema.state_dict().values():
            value.mul_(0.9)
    assert trainer.pruner.step == 3
    assert average.ema.state_dict().keys() == model.state_dict().keys()
    names["on_train_epoch_end"](trainer)
    assert masks(average.ema) == masks(model)
    assert torch.equal(average.ema.body.weight_mask, model.body.weight_mask)
    assert masks(model)["body"].sparsity == pytest.approx(0.7, abs=0.005)


def test_hooks_of_a_trainer_prune_by_named_inputs(names):
    class Network(names["Network"]):
        def forward(self, x, targets):
            return torch.nn.functional.cross_entropy(super().forward(x), targets)

    class Trainer:
        def before_train(self):
            self.model = Network()
            self.sample_images = torch.rand(2, 3, 32, 32)
            self.sample_targets = torch.tensor([1, 2])

        def before_iter(self):
            pass

    class Pruning(names["PruningTrainer"], Trainer):
        pass

    trainer = Pruning()
    trainer.before_train()
    trainer.before_iter()
    assert trainer.pruner.step == 1
    trainer.ema_model.update(trainer.model)
    assert masks(trainer.ema_model.ema) == masks(trainer.model)
    load_pruned_state_dict(Network(), trainer.model.state_dict())


def test_a_callback_counts_steps_of_the_optimizer(names):
    model = names["Network"]()
    data = {"x": torch.rand(2, 3, 32, 32)}
    callback = names["Pruning"](data, final_pr=0.5, end_step=2, frequency=1)
    callback.on_train_begin(None, None, None, model=model, optimizer=None)
    for _ in range(3):
        assert not callback.pruner.is_finished
        callback.on_step_begin(None, None, None)
    assert callback.pruner.is_finished
    assert masks(model)["body"].sparsity == pytest.approx(0.5, abs=0.005)
