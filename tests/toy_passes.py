"""Passes that do little, or wrong, for the tests of what runs and watches passes."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from onnxdrp.errors import CheckError, ModelError, OptionError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.pipeline import Pass, PassContext, PassResult


@dataclass(frozen=True)
class Nothing(Pass):
    """Do nothing, and say what one likes of it."""

    name: ClassVar[str] = "nothing"
    keeps_results: ClassVar[bool] = True

    claim: bool = False

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        return PassResult(modified=self.claim)


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply one weight."""

    name: ClassVar[str] = "scale"

    weight: str
    factor: float = 2.0
    claim: bool = True

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        weight = model.weight(self.weight)
        model.set_weight(self.weight, (weight * self.factor).astype(weight.dtype))
        return PassResult(self.claim, {"factor": self.factor, "skipped": {"other": "no reason"}})


@dataclass(frozen=True)
class Wobble(Scale):
    """Multiply one weight, and promise that the results stay."""

    name: ClassVar[str] = "wobble"
    keeps_results: ClassVar[bool] = True


@dataclass(frozen=True)
class Prune(Pass):
    """Mask one weight at random, and zero what is masked but for a few values left alive."""

    name: ClassVar[str] = "prune"

    weight: str = "conv2.weight"
    alive: int = 0

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        weight = model.weight(self.weight)
        keep = np.random.default_rng(ctx.seed).random(weight.shape) < 0.5
        ctx.masks[self.weight] = Mask(keep)
        pruned = np.where(keep, weight, 0).astype(weight.dtype)
        pruned[tuple(i[: self.alive] for i in np.nonzero(~keep))] = 1
        model.set_weight(self.weight, pruned)
        return PassResult(modified=True)


@dataclass(frozen=True)
class Break(Pass):
    """Fail, at one of the three stages."""

    name: ClassVar[str] = "break"

    stage: Literal["requires", "run", "ensures", "bug"] = "run"

    def requires(self, model: Model, ctx: PassContext) -> None:
        if self.stage == "requires":
            raise ModelError("the model has no wheels; export one that has")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        if self.stage == "run":
            ctx.rates["half"] = 0.5
            model.node("relu1").op = "Tanh"
            raise ModelError("node 'relu1' is stuck; pull")
        if self.stage == "bug":
            raise ZeroDivisionError("a bug")
        return PassResult(modified=False)

    def ensures(self, model: Model, ctx: PassContext) -> None:
        if self.stage == "ensures":
            raise CheckError("the promise is broken; mend it")


@dataclass(frozen=True)
class Options(Pass):
    """One option of each kind that recipes can hold."""

    name: ClassVar[str] = "options"

    text: str = "plain"
    number: float = 1.0
    count: int = 3
    flag: bool = False
    choice: Literal["one", "two"] = "one"
    maybe: str | None = None
    either: int | str = 0
    names: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    rates: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise OptionError(f"count={self.count}: give 0 or more")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        return PassResult(modified=False)
