"""The passes behind each verb of onnxdrp.api, from the verb's options.

    preprocessing   freeze-shapes, cut, infer-shapes, optimize, fold-constants, fuse-batchnorm,
                    clean, infer-shapes
    pruning         select-layers, allocate-rates, prune-blocks; or apply-masks
    slimming        score-channels, select-channels or search-channels (or apply-channels alone),
                    remove-channels (or mask-channels)
    recovery        match-moments; or refit-weights, distill
    quantization    equalize-gates, cross-layer-equalize, convert-opset, infer-shapes, calibrate,
                    keep-float, quantize-weights or round-weights, correct-bias, insert-qdq, check

An option that is None leaves the choice to the pass.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from onnxdrp import passes as p
from onnxdrp.errors import OptionError
from onnxdrp.options import check_choice
from onnxdrp.pipeline import Pass
from onnxdrp.scores import Score

__all__ = [
    "Allocation",
    "BiasCorrection",
    "ChannelScore",
    "Equalization",
    "Recovery",
    "Rounding",
    "Score",
    "calibration",
    "preprocessing",
    "pruning",
    "quantization",
    "recovery",
    "slimming",
]

Allocation: TypeAlias = Literal["uniform", "auto"]
ChannelScore: TypeAlias = Literal["l1", "activation", "second-order"]
BiasCorrection: TypeAlias = Literal["none", "fast", "sequential"]
Equalization: TypeAlias = Literal["none", "gates", "all"]
Recovery: TypeAlias = Literal["none", "moments", "refit", "distill"]
Rounding: TypeAlias = Literal["nearest", "second-order"]

_BY_CHANNEL = 13  # the first opset with a scale for each channel


def preprocessing(
    input_shape: Mapping[str, Sequence[int]] | None, outputs: Iterable[str] | None
) -> list[Pass]:
    """What must precede any mask or range."""
    steps: list[Pass] = []
    if input_shape:
        steps.append(p.FreezeShapes({name: tuple(shape) for name, shape in input_shape.items()}))
    if outputs:
        steps.append(p.Cut(tuple(outputs)))
    steps += [p.InferShapes(), p.Optimize(), p.FoldConstants(), p.FuseBatchNorm(), p.Clean()]
    return [*steps, p.InferShapes()]  # once more: folding makes shapes known


def pruning(
    masks: str | None,
    pattern: str | None,
    *,
    score: Score = "magnitude",
    steps: int = 1,
    allocation: Allocation = "uniform",
    of: Literal["weights", "macs"] | None = None,
    memory_limit: int | None = None,
    **selection: Any,
) -> list[Pass]:
    """Choose units and prune them, or apply the masks of a file.

    Args:
        masks: the file; no other argument counts then.
        pattern: of the units.
        score: of prune-blocks.
        steps: of prune-blocks; after each but the last the rest is re-fitted.
        allocation: auto: rates by allocate-rates, but of layers with a rate of their own.
        of: of allocate-rates.
        memory_limit: of the passes that read data.
        selection: of select-layers.
    """
    check_choice("allocation", allocation, Allocation)
    if masks is not None:
        return [p.ApplyMasks(path=masks)]
    memory = _given({"memory_limit": memory_limit})
    found: list[Pass] = [p.SelectLayers(pattern=pattern, **selection)]
    if allocation == "auto":
        keep = tuple(selection.get("rates", ()))
        found.append(p.AllocateRates(pattern=pattern, keep=keep, **_given({"of": of}), **memory))
    for step in range(1, steps + 1):
        found.append(p.PruneBlocks(pattern, score=score, step=step, steps=steps, **memory))
        if step < steps:
            found.append(p.RefitWeights(**memory))
    return found


def slimming(
    *,
    sparse: bool,
    score: ChannelScore | None = None,
    curves: str | None = None,
    tries: int | None = None,
    index: int | None = None,
    spec: str | None = None,
    memory_limit: int | None = None,
    **selection: Any,
) -> list[Pass]:
    """Choose channels and remove them.

    Args:
        sparse: leave them where they are, with weights of zero.
        score: of score-channels; None: the sizes of weights, without a pass, or what curves say.
        curves: of select-channels.
        tries: of search-channels, which chooses instead of select-channels.
        index: of search-channels, or the point of a front in `spec`.
        spec: of apply-channels, which chooses instead.
        memory_limit: of the passes that read data.
        selection: of select-channels, or search-channels.
    """
    memory = _given({"memory_limit": memory_limit})
    steps: list[Pass] = []
    if spec is not None:
        steps.append(p.ApplyChannels(spec, index))
    else:
        steps += [] if score is None else [p.ScoreChannels(score, **memory)]
        if tries is not None:
            steps.append(p.SearchChannels(tries=tries, index=index, **_given(selection), **memory))
        else:
            steps.append(p.SelectChannels(curves=curves, **selection))
    return [*steps, p.MaskChannels() if sparse else p.RemoveChannels()]


def recovery(
    recover: Recovery,
    *,
    minutes: float | None = None,
    memory_limit: int | None = None,
) -> list[Pass]:
    """Repair what pruning has left.

    Args:
        recover: moments: match-moments, which is quick; refit: refit-weights; distill: distill
            after that; or none.
        minutes: of distill.
        memory_limit: of all.
    """
    check_choice("recover", recover, Recovery)
    if recover == "none":
        return []
    memory = _given({"memory_limit": memory_limit})
    if recover == "moments":
        return [p.MatchMoments(**memory)]
    steps: list[Pass] = [p.RefitWeights(**memory)]
    if recover == "distill":
        steps.append(p.Distill(minutes=minutes, **memory))
    return steps


def calibration(
    *, per_channel: bool | None, opset: int | None, equalize: Equalization, **options: Any
) -> list[Pass]:
    """The passes up to calibrate; `options` are its own.

    Args:
        per_channel: of the pass that will round weights; it can raise the opset.
        opset: of the result; None: what the target takes.
        equalize: "gates": equalize-gates; "all": cross-layer-equalize, too; or "none".
        options: of calibrate.
    """
    check_choice("equalize", equalize, Equalization)
    equalizing: list[Pass] = [] if equalize == "none" else [p.EqualizeGates()]
    equalizing += [p.CrossLayerEqualize()] if equalize == "all" else []
    lowest = opset or (_BY_CHANNEL if per_channel else None)
    convert = p.ConvertOpset(minimum=lowest, maximum=opset)
    return [*equalizing, convert, p.InferShapes(), p.Calibrate(**_given(options))]


def quantization(
    *,
    per_channel: bool | None,
    reduce_range: bool | None,
    keep_float: Mapping[str, Any],
    rounding: Rounding,
    weight_bits: Literal[8, 4] | None,
    bias_correction: BiasCorrection,
    strict: bool,
    **calibrating: Any,
) -> list[Pass]:
    """The passes from a float model to a quantized one.

    Args:
        per_channel: of the pass that rounds weights.
        reduce_range: of the same.
        keep_float: the goal of keep-float; without one the pass does not run.
        rounding: nearest: quantize-weights; second-order: round-weights.
        weight_bits: of round-weights.
        bias_correction: the mode of correct-bias, or none.
        strict: of check.
        calibrating: as for `calibration`; its memory_limit holds for what comes after, too.

    Raises:
        OptionError: an option is out of its range, or would be ignored.
    """
    check_choice("rounding", rounding, Rounding)
    check_choice("bias_correction", bias_correction, BiasCorrection)
    grid = _given({"per_channel": per_channel, "reduce_range": reduce_range})
    memory = _given({"memory_limit": calibrating.get("memory_limit")})
    steps = calibration(per_channel=per_channel, **calibrating)
    if goal := _given(keep_float):
        steps.append(p.KeepFloat(**goal, per_channel=per_channel))
    if rounding == "nearest" and weight_bits not in (None, 8):
        raise OptionError(f"{weight_bits}-bit weights need second-order rounding, so data")
    if rounding == "nearest":
        steps.append(p.QuantizeWeights(**grid))
    else:
        steps.append(p.RoundWeights(**grid, **memory, **_given({"bits": weight_bits})))
    if bias_correction != "none":
        steps.append(p.CorrectBias(mode=bias_correction, **memory))
    return [*steps, p.InsertQdq(), p.Check(strict=strict)]


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
