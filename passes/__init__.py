"""The passes: one transform of a model a file."""

from onnxdrp.passes.allocate_rates import AllocateRates
from onnxdrp.passes.apply_channels import ApplyChannels
from onnxdrp.passes.apply_masks import ApplyMasks
from onnxdrp.passes.auto_slim import AutoSlim
from onnxdrp.passes.calibrate import Calibrate
from onnxdrp.passes.check import Check
from onnxdrp.passes.clean import Clean
from onnxdrp.passes.convert_opset import ConvertOpset
from onnxdrp.passes.correct_bias import CorrectBias
from onnxdrp.passes.cross_layer_equalize import CrossLayerEqualize
from onnxdrp.passes.cut import Cut
from onnxdrp.passes.distill import Distill
from onnxdrp.passes.equalize_gates import EqualizeGates
from onnxdrp.passes.fold_constants import FoldConstants
from onnxdrp.passes.freeze_shapes import FreezeShapes
from onnxdrp.passes.fuse_batchnorm import FuseBatchNorm
from onnxdrp.passes.infer_shapes import InferShapes
from onnxdrp.passes.insert_qdq import InsertQdq
from onnxdrp.passes.keep_float import KeepFloat
from onnxdrp.passes.mask_channels import MaskChannels
from onnxdrp.passes.match_moments import MatchMoments
from onnxdrp.passes.measure_channels import MeasureChannels
from onnxdrp.passes.measure_sensitivity import MeasureSensitivity
from onnxdrp.passes.optimize import Optimize
from onnxdrp.passes.prune_blocks import PruneBlocks
from onnxdrp.passes.quantize_weights import QuantizeWeights
from onnxdrp.passes.refit_weights import RefitWeights
from onnxdrp.passes.remove_channels import RemoveChannels
from onnxdrp.passes.round_weights import RoundWeights
from onnxdrp.passes.score_channels import ScoreChannels
from onnxdrp.passes.search_channels import SearchChannels
from onnxdrp.passes.select_channels import SelectChannels
from onnxdrp.passes.select_layers import SelectLayers

__all__ = [
    "AllocateRates",
    "ApplyChannels",
    "ApplyMasks",
    "AutoSlim",
    "Calibrate",
    "Check",
    "Clean",
    "ConvertOpset",
    "CorrectBias",
    "CrossLayerEqualize",
    "Cut",
    "Distill",
    "EqualizeGates",
    "FoldConstants",
    "FreezeShapes",
    "FuseBatchNorm",
    "InferShapes",
    "InsertQdq",
    "KeepFloat",
    "MaskChannels",
    "MatchMoments",
    "MeasureChannels",
    "MeasureSensitivity",
    "Optimize",
    "PruneBlocks",
    "QuantizeWeights",
    "RefitWeights",
    "RemoveChannels",
    "RoundWeights",
    "ScoreChannels",
    "SearchChannels",
    "SelectChannels",
    "SelectLayers",
]
