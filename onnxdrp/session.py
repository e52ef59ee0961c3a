"""An onnxruntime session over a skeleton and mapped weights."""

from collections import Counter
from collections.abc import Sequence

import onnx
import onnxruntime as ort

from onnxdrp.errors import ModelError
from onnxdrp.modelfile import filled
from onnxdrp.weights import Weights, tensors

__all__ = ["open_session"]

_DISABLED = ["WeightBiasQuantization"]
"""It rounds float weights between DequantizeLinear and QuantizeLinear to int8: another model."""


def open_session(
    skeleton: onnx.ModelProto,
    weights: Weights,
    outputs: Sequence[str] = (),
    optimize: bool = True,
    threads: int | None = None,
    tapped: int = 0,
) -> ort.InferenceSession:
    """Open a CPU session; weights are handed over by reference, not serialized.

    Args:
        skeleton: a graph whose large initializers are references; is changed.
        weights: what the references stand for.
        outputs: names of tensors to fetch besides the graph's outputs.
        optimize: onnxruntime's graph optimizations (all, or none).
        threads: intra-op threads; None: onnxruntime's choice.
        tapped: how many tensors are to be fetched in all, by several threads. Memory is then not
            planned for a run as a whole; and where more than two for each Conv are fetched and most
            Conv go through a Sigmoid (SiLU), all keep the layout NCHW: three blocked tensors a Conv
            would have to be turned back. Measured, in NCHW to blocked: 10.2 to 14.2 ms for a YOLOX;
            but 18.5 to 14.7 for PP-OCR's detector, 7.6 to 4.7 for EfficientNet-Lite0.

    Raises:
        ModelError: onnxruntime cannot run the model.
    """
    present = {value.name for value in skeleton.graph.output}
    skeleton.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs) if name not in present
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    count = Counter(node.op_type for node in skeleton.graph.node)
    if optimize and tapped > 2 * count["Conv"] and 2 * count["Sigmoid"] > count["Conv"] > 0:
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
    options.enable_mem_pattern = not tapped
    if threads is not None:
        options.intra_op_num_threads = threads
    values, given = {}, set()
    for tensor in skeleton.graph.initializer:
        weight = weights.of(tensor)
        if weight is not None and _is_native(tensor.data_type):
            values[tensor.name] = ort.OrtValue.ortvalue_from_numpy(weight.array())
            given.add(weight.reference)
    options.add_external_initializers(list(values), list(values.values()))
    # the others go inside: weights of bodies and attributes, and types that numpy does not have
    inside = [weights.of(tensor) for tensor in tensors(skeleton.graph)]
    rest = weights.part(w for w in inside if w is not None and w.reference not in given)
    whole = filled(skeleton, rest)
    try:
        session = ort.InferenceSession(
            whole.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_DISABLED,
        )
    except Exception as e:  # onnxruntime raises a dozen unrelated types
        first = str(e).strip().splitlines()[0]
        raise ModelError(f"onnxruntime cannot run the model: {first}") from e
    session.onnxdrp_weights = values  # the memory that the session reads
    return session


def _is_native(data_type: int) -> bool:
    return onnx.helper.tensor_dtype_to_np_dtype(data_type).isbuiltin == 1
