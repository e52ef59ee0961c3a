"""DRP-AI Quantizer's command line and Python API on top of `onnxdrp.quantize`.

    python -m onnxdrp.compat.drpai_quantizer.cli_interface --input_model_path ... (see --help)
    python -m onnxdrp.compat.drpai_quantizer.inference --nchw model_q.onnx

No quantization logic is here: options become those of `onnxdrp.preprocess` and `onnxdrp.quantize`
with the target drp-ai3. docs/migrating.md has the table of options.
"""

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod

from onnxdrp.compat.drpai_quantizer.interface import do_preprocess, quantize_interface
from onnxdrp.compat.drpai_quantizer.readers import NCHWDataReader, NHWCDataReader

__all__ = [
    "CalibrationDataReader",
    "CalibrationMethod",
    "NCHWDataReader",
    "NHWCDataReader",
    "do_preprocess",
    "quantize_interface",
]
