"""Mean average precision of object detectors: labels, decoders, suppression and score."""

from onnxdrp.detection.custom import get_decoder
from onnxdrp.detection.decode import DECODERS, Candidates, Decoder, yolov8, yolox
from onnxdrp.detection.evaluate import detect, evaluate_detection
from onnxdrp.detection.formats import read_labels
from onnxdrp.detection.labels import GroundTruth, Objects, read_names
from onnxdrp.detection.nms import Detections, suppress, to_image
from onnxdrp.detection.score import DetectionScore, Estimate, average_precision, difference

__all__ = [
    "DECODERS",
    "Candidates",
    "Decoder",
    "DetectionScore",
    "Detections",
    "Estimate",
    "GroundTruth",
    "Objects",
    "average_precision",
    "detect",
    "difference",
    "evaluate_detection",
    "get_decoder",
    "read_labels",
    "read_names",
    "suppress",
    "to_image",
    "yolov8",
    "yolox",
]
