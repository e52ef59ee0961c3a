"""What a model costs with some channels gone, before any is taken out: multiply-adds, parameters.

multiply-adds of a layer   what it has now * share of its outputs that stay * share of the
                           inputs that it sums over that stay
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxdrp.channels.groups import Channels
from onnxdrp.channels.lanes import Ints
from onnxdrp.errors import ModelError
from onnxdrp.layers import layers
from onnxdrp.model import Model

__all__ = ["Cost", "LayerCost", "totals"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LayerCost:
    """A layer.

    Attributes:
        macs: of it as it is.
        made: the atoms of its outputs; None where they stay.
        read: of the inputs that it sums over.
    """

    macs: int
    made: Ints | None
    read: Ints | None

    def left(self, alive: Bools) -> float:
        """Its multiply-adds with only these atoms left."""
        shares = (alive[atoms].mean() for atoms in (self.made, self.read) if atoms is not None)
        left = float(self.macs)
        for share in shares:
            left *= float(share)
        return left


class Cost:
    """The multiply-adds of a model, whatever channels are removed.

    Args:
        model: with shapes.
        channels: of it.

    Attributes:
        layers: in graph order.

    Raises:
        ModelError: the multiply-adds of a layer are not known; names it, and why.
    """

    def __init__(self, model: Model, channels: Channels) -> None:
        trace, self.layers = channels.trace, list[LayerCost]()
        for layer in layers(model):
            if layer.baseline_mac is None:
                raise ModelError(
                    f"the multiply-adds of {layer.name!r} are not known: {layer.why_no_mac}; fix "
                    "the shapes of the inputs"
                )
            made, read = trace.made.get(layer.name), trace.read.get(layer.name)
            each_its_own = layer.depthwise and made is not None
            self.layers.append(LayerCost(layer.baseline_mac, made, None if each_its_own else read))

    @property
    def whole(self) -> int:
        """Of the model as it is, for one image."""
        return sum(layer.macs for layer in self.layers)

    def macs(self, alive: Bools) -> int:
        """With only these atoms left."""
        return round(sum(layer.left(alive) for layer in self.layers))


def totals(model: Model) -> tuple[int, int | None]:
    """Parameters and multiply-adds of all layers; None where those of one are not known."""
    found = layers(model)
    macs = [layer.baseline_mac for layer in found]
    known = [mac for mac in macs if mac is not None]
    return sum(layer.params for layer in found), sum(known) if len(known) == len(macs) else None
