"""A trained model with its calibration and test images, for the demo command and the tests."""

from pathlib import Path
from typing import Final

__all__ = ["CALIBRATE_IMAGES", "MEAN", "MODEL", "STD", "TEST"]

_HERE: Final = Path(__file__).parent

MODEL: Final = _HERE / "modA.onnx"
CALIBRATE_IMAGES: Final = _HERE / "calibrate_images"
TEST: Final = _HERE / "test.npz"

# Of the training images padded to 32x32, a channel; the model takes (pixel / 255 - MEAN) / STD.
MEAN: Final = (0.2190, 0.2190, 0.2190)
STD: Final = (0.3318, 0.3318, 0.3318)
