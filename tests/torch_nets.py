"""Small PyTorch networks, and a training that is the same each time."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxdrp[torch]")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

__all__ = [
    "Branches",
    "Manual",
    "Residual",
    "batches",
    "nn",
    "prune",
    "seeded",
    "torch",
    "train_steps",
]


class Manual(nn.Module):
    """The network of the listings of DRP-AI Extension Pack's manual."""

    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
            nn.ReLU(),
        )

    def forward(self, x):
        return self.linear_relu_stack(self.flatten(x))


class Residual(nn.Module):
    """[n, 3, 8, 8] to [n, 5]; registered in another order than that in which it runs."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 5)
        self.narrow = nn.Conv2d(64, 64, 3, padding=1, groups=4, bias=False)  # 16 inputs a group
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.wide = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.unused = nn.Linear(64, 64)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.wide(x)))
        x = x + self.narrow(x)
        x = x + self.depthwise(x)
        return self.head(self.drop(x.mean((2, 3))))


class Branches(nn.Module):
    """Two stems, a layer that runs twice, and two heads, through views and writes in place."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(32, 32)
        self.right = nn.Linear(32, 32)
        self.shared = nn.Linear(64, 64)
        self.boxes = nn.Linear(64, 4)
        self.scores = nn.Linear(64, 2)

    def forward(self, a, b):
        x = torch.zeros(a.shape[0], 64)
        x[:, :32] = self.left(a)
        x[:, 32:].copy_(self.right(b))
        x = self.shared(torch.relu_(self.shared(x)))
        return self.boxes(x), self.scores(x.detach())


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def batches(count, shape=(8, 3, 8, 8), classes=5, seed=1):
    """Pairs of inputs and classes, the same each time."""
    made = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(shape, generator=made), torch.randint(classes, shape[:1], generator=made))
        for _ in range(count)
    ]


def train_steps(model, pruner, optimizer, data):
    """One epoch as the manual's listings have it."""
    loss = nn.CrossEntropyLoss()
    model.train()
    for x, y in data:
        pruner.update()
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
