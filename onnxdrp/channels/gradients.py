"""CAC's own thresholds, from gradients by torch: what the weights of a group may lose.

    S_g      mean over batches of  sum 1 / |dL/dw|
    error    sum of |w| of the channels that go / numel_g

over the numel_g weights w of the layers that make the group's channels, with L the cross entropy
with the float model's classes for labels (onnxdrp.label_free_loss, hard): that with its shares has
no gradient at the float model. A gradient of 0 counts as 1e7. The original never clears gradients
between batches, so that they add up; here it does, unless `original` is set.

Needs torch: pip install onnxdrp[distill].
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np

from onnxdrp.batches import pieces, static_batch
from onnxdrp.channels.groups import Channels
from onnxdrp.datareaders import DataReader
from onnxdrp.label_free_loss import LabelFreeLoss
from onnxdrp.model import Model

__all__ = ["gradient_sensitivities", "group_sizes", "removed_l1"]

_NO_GRADIENT = 1e7


def gradient_sensitivities(
    model: Model,
    float_model: Model,
    channels: Channels,
    groups: Iterable[str],
    reader: DataReader,
    loss: LabelFreeLoss,
    calc_iter: int = 100,
    original: bool = False,
) -> dict[str, float]:
    """{group: S_g}.

    Args:
        model: as it is now.
        float_model: whose classes are the labels.
        channels: of the model.
        groups: their names.
        reader: the data; batches are the reader's.
        loss: of scores of classes.
        calc_iter: batches to look at.
        original: gradients add up from batch to batch.

    Raises:
        ModelError: an operator cannot be differentiated; names its node.
    """
    import torch

    from onnxdrp.differentiable import Network, to_torch

    network, teacher = Network(model), Network(float_model)
    made = {name: _made(model, channels, name) for name in groups}
    given = {
        weight: to_torch(model.weight(weight), weight, network.device).requires_grad_()
        for weights in made.values()
        for weight in weights
    }
    totals, seen = dict.fromkeys(made, 0.0), 0
    names = {info.name for info in model.inputs}
    for feed, valid in islice(pieces(reader, static_batch([model])), calc_iter):
        feeds = {n: to_torch(v, n, network.device) for n, v in feed.items() if n in names}
        with torch.no_grad():
            (answer,) = teacher.run(feeds, loss.outputs)
        (scores,) = network.run(feeds, loss.outputs, given)
        scores = scores[:valid].flatten(1)
        logs = torch.log(scores.clamp_min(1e-30)) if loss.probabilities else scores
        wanted = answer[:valid].flatten(1).argmax(1)
        torch.nn.functional.cross_entropy(logs, wanted).backward()
        seen += 1
        for name, weights in made.items():
            for weight in weights:
                gradient = given[weight].grad
                gradient[gradient == 0] = _NO_GRADIENT
                totals[name] += float((1 / gradient.abs().double()).sum())
        if not original:
            for tensor in given.values():
                tensor.grad = None
    return {name: total / max(seen, 1) for name, total in totals.items()}


def group_sizes(model: Model, channels: Channels, groups: Iterable[str]) -> dict[str, int]:
    """{group: numel_g, weights in the layers that make its channels}."""
    return {
        name: sum(model.weight(weight).size for weight in _made(model, channels, name))
        for name in groups
    }


def removed_l1(
    model: Model, channels: Channels, removed: Mapping[str, Mapping[float, Sequence[int]]]
) -> dict[str, dict[float, float]]:
    """{group: {rate: sum of |w| of the units that go / numel_g}}."""
    sizes, found = group_sizes(model, channels, removed), dict[str, dict[float, float]]()
    for name, by_rate in removed.items():
        makers, lost = channels.group(name).makers, dict[float, float]()
        for rate, units in by_rate.items():
            alive, total = channels.alive({name: units}), 0.0
            for site in channels.trace.sites:
                if site.node in makers and site.role == "made":
                    weight = np.moveaxis(model.weight(site.tensor), site.axis, 0)
                    total += float(np.abs(weight[~alive[site.atoms]], dtype=np.float64).sum())
            lost[rate] = total / max(sizes[name], 1)
        found[name] = lost
    return found


def _made(model: Model, channels: Channels, group: str) -> list[str]:
    """The weights that make the channels of a group."""
    makers = channels.group(group).makers
    names = (
        site.tensor
        for site in channels.trace.sites
        if site.node in makers and site.role == "made" and len(model.tensor(site.tensor).shape) > 1
    )
    return list(dict.fromkeys(names))
