"""Two processes that train one model together, pruning more and more."""

from pathlib import Path

import pytest
from torch_nets import Manual, batches, seeded, torch, train_steps

from onnxdrp.torch import Pruner, info, masks

LAYERS = ["linear_relu_stack.2"]
GRADUAL = {"initial_pr": 0.2, "final_pr": 0.7, "end_step": 4, "frequency": 2}


def trained(rank: int, folder: str, wrap_first: bool) -> None:
    """One of two processes: its own data, the gradients of both."""
    parallel = torch.nn.parallel.DistributedDataParallel
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    model = seeded(Manual)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if wrap_first:
        wrapped = parallel(model)
        pruner = Pruner(wrapped, LAYERS, **GRADUAL)
    else:
        pruner = Pruner(model, LAYERS, **GRADUAL)
        wrapped = parallel(model)
    train_steps(wrapped, pruner, optimizer, batches(7, (4, 1, 28, 28), seed=rank))
    torch.save(
        {"state": model.state_dict(), "finished": pruner.is_finished}, f"{folder}/{rank}.pth"
    )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("wrap_first", [False, True], ids=["pruner first", "wrapper first"])
def test_processes_that_train_together_have_the_same_masks(
    tmp_path: Path, wrap_first: bool
) -> None:
    torch.multiprocessing.spawn(trained, (str(tmp_path), wrap_first), nprocs=2)
    ends = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
    assert all(end["finished"] for end in ends)
    first, second = (end["state"] for end in ends)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = Manual()
    Pruner(model, LAYERS, final_pr=0.0)
    model.load_state_dict(first)
    assert masks(model)[LAYERS[0]].sparsity == pytest.approx(0.7, abs=2e-3)
    assert info(model, [(1, 1, 28, 28)]).current_mac == 485_376
