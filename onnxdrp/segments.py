"""A model in segments, so that it can be run piece by piece.

With cuts C[0], ..., C[n-1], sets of tensors, and A(C) the nodes that tensors C are made from:

    segment k = A(C[k]) - segments 0 to k-1            the last, n: what the outputs need besides
    live(k)   = C[k] + all that segments 0 to k make, or the user feeds, and a later one reads

Running the segments in turn, with live(k) kept between k and k+1, computes what the whole model
does. Three kinds of nodes are an exception. What is made from stored tensors alone (the
DequantizeLinear of a weight) is the same for every sample: it is never live, but computed anew
where it is read, with the weights of that time. Shape and Size are in the segment that makes what
they measure, so that their few numbers are live and not what they are taken from. What nothing
needs can be looked at where what it is made from is made, if that is one tensor.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxdrp.dataflow import ordered
from onnxdrp.errors import DataError, ModelError, OptionError
from onnxdrp.model import Model, reads
from onnxdrp.taps import run_session

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["Segment", "Segments", "default_cuts"]

Array = npt.NDArray[Any]

_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a model, ready to run.

    Attributes:
        inputs: the live tensors that `session` is fed.
        computed: the outputs that `session` gives, in its order.
        passed: the outputs that are live tensors; they do not go through onnxruntime.
        session: None where nothing is computed.
    """

    inputs: tuple[str, ...]
    computed: tuple[str, ...]
    passed: tuple[str, ...]
    session: "onnxruntime.InferenceSession | None"

    def run(self, live: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for the tensors of one batch.

        Args:
            live: at least those of `inputs` and `passed`; others are ignored.

        Returns:
            {name: array}; those of `passed` are the very arrays of `live`.

        Raises:
            DataError: a tensor is not in `live`, or onnxruntime cannot take it.
        """
        missing = [name for name in (*self.passed, *self.inputs) if name not in live]
        if missing:
            raise DataError(f"tensor {missing[0]!r} is not given; give every tensor that is live")
        values = {name: live[name] for name in self.passed}
        if self.session is not None:
            feed = {name: live[name] for name in self.inputs}
            found = run_session(self.session, self.computed, feed)
            values |= zip(self.computed, found, strict=True)
        return values


class Segments:
    """A model cut into `len(cuts) + 1` segments, numbered from 0.

    The structure of the graph is that of the time it was cut; weights are those that the model has
    when a segment is built. A node that no output, cut or kept tensor needs, and that reads
    several, is in no segment. To cut takes time linear in the number of nodes and of live tensors.

    Args:
        model: any; is not changed.
        cuts: the names of the tensors of each cut: graph inputs, or computed from them, in the top
            graph. A cut whose tensors are there already gives an empty segment.
        keep: tensors, of the same kinds, that are live from where they are made to the end.

    Raises:
        OptionError: a cut or `keep` names nothing, an unknown tensor, or one that is stored or made
            from stored tensors alone.
        ModelError: the graph has a cycle.
    """

    def __init__(
        self, model: Model, cuts: Sequence[Sequence[str]], keep: Sequence[str] = ()
    ) -> None:
        self.model = model
        self.cuts = tuple(() if isinstance(cut, str) else tuple(cut) for cut in cuts)
        self.keep = tuple(keep)
        self._proto = model.skeleton()  # brings the nodes into order
        self._graph = model.graph
        nodes = model.graph.nodes
        self._inputs = [info.name for info in model.inputs]
        self._maker = {t.name: i for i, node in enumerate(nodes) for t in node.outputs if t.name}
        self._stored = _stored(self._proto.graph, nodes)
        self._varies = _varying(nodes, self._inputs)
        known = {*self._maker, *self._inputs, *self._stored}
        self._reads = [
            tuple(dict.fromkeys(t.name for t in reads(node) if t.name in known)) for node in nodes
        ]
        self._types = _types(self._proto)
        self._inferred = False
        self._check_names()
        self._segment = self._assign()
        self._live = self._lives()

    def __len__(self) -> int:
        return len(self.cuts) + 1

    def live(self, k: int) -> tuple[str, ...]:
        """The tensors to be stored between segments k and k+1, in the order of the graph.

        -1: the graph inputs that are needed at all; `len(cuts)`: after the last, those to be kept.
        """
        self._check_number(k, first=-1)
        return self._live[k + 1]

    def segment_of(self, name: str) -> int:
        """The segment that computes a tensor; -1 for a graph input.

        What is made from stored tensors alone is computed in the first segment that reads it.

        Raises:
            OptionError: no such tensor, it is stored, or nothing needs it.
        """
        if name in self._inputs:
            return -1
        self._check_computed(name)
        segment = self._segment[self._maker[name]]
        if segment is None:
            raise OptionError(f"no output and no cut needs tensor {name!r}; name it in keep")
        return segment

    def build(
        self, k: int, outputs: Sequence[str], *, optimize: bool = True, threads: int | None = None
    ) -> Segment:
        """Segment k, alone. See `span`."""
        return self.span(k, k, outputs, optimize=optimize, threads=threads)

    def span(
        self,
        first: int,
        last: int,
        outputs: Sequence[str],
        *,
        optimize: bool = True,
        threads: int | None = None,
    ) -> Segment:
        """Segments `first` to `last` as one, with the weights that the model has now.

        Only what the outputs need is computed, so `live(last)` and the tensors to look at make good
        outputs. Weights are handed over by reference. The time is that of the nodes computed, not
        of the model.

        Args:
            first: the segment to start at, from the tensors of `live(first - 1)`.
            last: the segment to end at.
            outputs: tensors computed in these segments or live before them, or made from stored
                tensors alone.
            optimize: run onnxruntime's graph optimizations.
            threads: intra-op threads; None leaves the choice to onnxruntime.

        Raises:
            OptionError: an output is none of these, or there is no such segment.
            ModelError: the type of a live tensor is unknown, the model's graph was replaced, or
                onnxruntime cannot run the segment.
        """
        self._check_number(first)
        self._check_number(last, first)
        if self.model.graph is not self._graph:
            raise ModelError("the model's graph was replaced since it was cut; cut it again")
        given = set(self._live[first])
        names = list(dict.fromkeys(outputs))
        computed = [name for name in names if name not in given]
        for name in computed:
            self._check_reached(name, first, last)
        nodes, read = self._needed(computed, given)
        inputs = tuple(name for name in self._live[first] if name in read)
        session = None
        if computed:
            stored = [constant for name, constant in self._stored.items() if name in read]
            session = self.model.part_session(
                self._part(nodes, inputs), stored, computed, optimize=optimize, threads=threads
            )
        passed = tuple(name for name in names if name in given)
        return Segment(inputs, tuple(computed), passed, session)

    # ------------------------------------------------------------------------------------- cutting

    def _assign(self) -> list[int | None]:
        """The segment of each node; None for those that nothing needs."""
        segment: list[int | None] = [None] * len(self._reads)
        outputs = [t.name for t in self._graph.outputs]
        for k, ends in enumerate((*self.cuts, (*outputs, *self.keep))):
            waiting = list(ends)
            while waiting:
                i = self._maker.get(waiting.pop())
                if i is not None and segment[i] is None:
                    segment[i] = k
                    waiting += self._reads[i]
        for i, node in enumerate(self._graph.nodes):
            read = [name for name in self._reads[i] if name in self._varies]
            measures = node.op in ("Shape", "Size") and segment[i] is not None
            if measures or (segment[i] is None and len(read) == 1):
                source = self._maker.get(node.inputs[0].name if measures else read[0])
                segment[i] = 0 if source is None else segment[source]
        return segment

    def _lives(self) -> list[tuple[str, ...]]:
        """The live tensors before segment 0, and after each segment."""
        until: dict[str, int] = {}
        uses = [
            *((name, k) for k, cut in enumerate(self.cuts) for name in cut),
            *((name, len(self.cuts)) for name in self.keep),
            *(
                (name, k - 1)
                for names, k in zip(self._reads, self._segment, strict=True)
                if k is not None
                for name in names
            ),
        ]
        for name, k in uses:
            until[name] = max(k, until.get(name, -1))
        live: list[list[str]] = [[] for _ in range(len(self) + 1)]
        for name in (*self._inputs, *self._maker):
            if name in until and name in self._varies:
                for k in range(self.segment_of(name), until[name] + 1):
                    live[k + 1].append(name)
        return [tuple(names) for names in live]

    # ------------------------------------------------------------------------------------ building

    def _needed(self, outputs: Iterable[str], given: set[str]) -> tuple[list[int], set[str]]:
        """The nodes that make `outputs` from `given` and stored tensors, and all that they read."""
        nodes: set[int] = set()
        read: set[str] = set()
        waiting = list(outputs)
        while waiting:
            name = waiting.pop()
            if name in self._maker and name not in given:
                i = self._maker[name]
                if i not in nodes:
                    nodes.add(i)
                    read.update(self._reads[i])
                    waiting += self._reads[i]
        return sorted(nodes), read

    def _part(self, nodes: Iterable[int], inputs: Iterable[str]) -> onnx.ModelProto:
        """A skeleton of these nodes, without stored tensors."""
        whole = self._proto
        part = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import)
        part.graph.name = whole.graph.name
        part.graph.node.extend(whole.graph.node[i] for i in nodes)
        part.graph.input.extend(
            onnx.ValueInfoProto(name=name, type=self._type(name)) for name in inputs
        )
        return part

    def _type(self, name: str) -> onnx.TypeProto:
        """The type of a live tensor: stated, or inferred where the file does not say."""
        if name not in self._types and not self._inferred:
            from onnxdrp.passes.inference import onnx_inference

            self._inferred = True
            self._types = _types(onnx_inference(self.model.skeleton(), [])) | self._types
        if name not in self._types:
            raise ModelError(
                f"the type of tensor {name!r} cannot be inferred; run InferShapes first, or "
                "cut elsewhere"
            )
        return self._types[name]

    # ------------------------------------------------------------------------------------ refusing

    def _check_names(self) -> None:
        for k, cut in enumerate(self.cuts):
            if not cut:
                raise OptionError(f"cut {k} names no tensor; give a tuple of names for each cut")
        for name in (*(name for cut in self.cuts for name in cut), *self.keep):
            if name not in self._inputs:
                self._check_computed(name)
                if name not in self._varies:
                    raise OptionError(
                        f"tensor {name!r} is made from stored tensors alone, the same for every "
                        "sample; cut elsewhere"
                    )

    def _check_computed(self, name: str) -> None:
        if name in self._stored:
            raise OptionError(f"tensor {name!r} is stored, not computed; name a computed one")
        if name not in self._maker:
            try:
                self.model.tensor(name)
            except ModelError as e:
                raise OptionError(str(e)) from e
            raise OptionError(f"tensor {name!r} is computed by no node; name another")

    def _check_reached(self, name: str, first: int, last: int) -> None:
        """Raise OptionError if segments `first` to `last` do not compute a tensor."""
        made = self.segment_of(name)
        if name not in self._varies or first <= made <= last:
            return
        if made > last:
            raise OptionError(f"tensor {name!r} is computed later, in segment {made}")
        where = "a graph input" if made < 0 else f"computed in segment {made}"
        raise OptionError(
            f"tensor {name!r} is {where} and no longer live at segment {first}; name it in keep"
        )

    def _check_number(self, k: int, first: int = 0) -> None:
        if not first <= k < len(self):
            raise OptionError(f"no segment {k} here; give one of {first} to {len(self) - 1}")


def default_cuts(model: Model) -> tuple[tuple[str, ...], ...]:
    """A cut at the data input of each layer: what a sweep layer by layer wants.

    A layer is a Conv, ConvTranspose, Gemm or MatMul whose weight does not depend on what the user
    feeds, and whose other factor does. Layers that read the same tensor share a cut.
    """
    nodes = ordered(model.nodes())
    varies = _varying(nodes, [info.name for info in model.inputs])
    cuts: dict[str, None] = {}
    for node in nodes:
        if node.domain not in (None, "", "ai.onnx") or len(node.inputs) < 2:
            continue
        data, weight = (tensor.name for tensor in node.inputs[:2])
        if node.op in ("Gemm", "MatMul") and data not in varies:
            data, weight = weight, data
        is_layer = node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        if is_layer and data in varies and weight not in varies:
            cuts[data] = None
    return tuple((name,) for name in cuts)


def _varying(nodes: Sequence[gs.Node], inputs: Iterable[str]) -> set[str]:
    """The tensors that are not the same for every sample; `nodes` in order."""
    varies = set(inputs)
    for node in nodes:
        if _is_random(node) or any(t.name in varies for t in reads(node)):
            varies |= {t.name for t in node.outputs if t.name}
    return varies


def _is_random(node: gs.Node) -> bool:
    inner = (n for body in node.subgraphs(recursive=True) for n in body.nodes)
    return any(n.op in _RANDOM for n in (node, *inner))


def _stored(graph: onnx.GraphProto, nodes: Iterable[gs.Node]) -> dict[str, gs.Constant]:
    """The stored tensors of the top graph that nodes read, in the order of first use."""
    names = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    found = (t for node in nodes for t in reads(node) if isinstance(t, gs.Constant))
    return {t.name: t for t in found if t.name in names}


def _types(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """The types of a graph's tensors: of inputs with their shapes, of others without.

    What a file says of shapes inside is often out of date (a batch of 1), and onnxruntime would
    hold the data of a segment to it.
    """
    types = {}
    for value in (*proto.graph.value_info, *proto.graph.output):
        kind = onnx.TypeProto.FromString(value.type.SerializeToString())
        what = kind.WhichOneof("value")
        if what == "tensor_type":
            kind.tensor_type.ClearField("shape")
        if what is not None and (what != "tensor_type" or kind.tensor_type.elem_type):
            types[value.name] = kind
    return types | {value.name: value.type for value in proto.graph.input}
