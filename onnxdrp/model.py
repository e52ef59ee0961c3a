"""Model: the only door to graphsurgeon and protobuf.

A Model is a graphsurgeon graph that passes edit, over weights that stay mapped in their files. What
graphsurgeon would lose between import and export (metadata, doc strings, attributes of kinds that
it skips, which initializers are also inputs, which constants were Constant nodes) is carried here
and put back.
"""

import copy
import hashlib
import heapq
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import inliner
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnxdrp.carried import Carried
from onnxdrp.errors import CheckError, ModelError
from onnxdrp.modelfile import filled, read_skeleton, write_model
from onnxdrp.weights import Weight, Weights, refer, take_in, tensors

if TYPE_CHECKING:
    import onnxruntime

    from onnxdrp.report import Text

__all__ = ["Model", "TensorInfo", "load", "reads"]

Array = npt.NDArray[Any]
log = logging.getLogger(__name__)
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR  # its warnings speak of things carried here


@dataclass(frozen=True)
class TensorInfo:
    """What a graph says of a tensor; in `shape` a str is a symbolic dimension, None unknown."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    @property
    def dims(self) -> str:
        """The shape as text; "?" stands for what is unknown."""
        if self.shape is None:
            return "[?]"
        return f"[{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    def __str__(self) -> str:
        return f"{self.name!r} {self.dims} {self.dtype}"


class _Stored(LazyValues):  # type: ignore[misc]
    """The values of a gs.Constant, kept in a Weight until somebody looks at them."""

    def __init__(self, tensor: onnx.TensorProto, weight: Weight) -> None:
        self.tensor = tensor
        self.weight = weight
        self.shape = tuple(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.nbytes = weight.nbytes

    def load(self) -> Array:
        return self.weight.array()


class _Constant(gs.Constant):  # type: ignore[misc]
    """A gs.Constant that looking at does not change.

    graphsurgeon's own keeps the array that it has loaded in place of what it was loaded from.
    """

    @property
    def values(self) -> Array:
        """The values, read-only."""
        values: Array = self._values
        if isinstance(values, LazyValues):
            values = values.load()
            values.setflags(write=False)
        return values

    @values.setter
    def values(self, values: Array | LazyValues) -> None:
        self._values = values


class Model:
    """An ONNX model: a graph that is edited, weights that are replaced but never written into.

    Attributes:
        path: the file it was loaded from, or None.
        graph: the live graph; passes edit it, and may construct gs.Node, gs.Variable and
            gs.Constant.
    """

    graph: gs.Graph

    def __init__(
        self, skeleton: onnx.ModelProto, weights: Weights, path: Path | None = None
    ) -> None:
        self.path = path
        self._weights = weights
        self._carried = Carried()
        self._import(skeleton)

    # ----------------------------------------------------------------------------------- in and out

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Map a model file: the graph is parsed, weights stay on disk until used.

        Raises:
            ModelError: no ONNX model, truncated, external data missing or outside the folder, an
                operator or opset that this version of onnx does not know.
        """
        path = Path(path)
        model = cls(*read_skeleton(path), path)
        model._refuse_unknown_operators()
        return model

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto) -> Self:
        """A model from a ModelProto that holds its weights; these are copied."""
        skeleton = onnx.ModelProto()
        skeleton.CopyFrom(proto)
        weights = Weights()
        _take_out(skeleton.graph, weights)
        return cls(skeleton, weights)

    def save(
        self, path: str | Path, *, overwrite: bool = False, external_threshold: int | None = None
    ) -> Path:
        """Write the model, streamed, to a temporary file that is renamed when complete.

        Args:
            path: the .onnx file.
            overwrite: allow `path` to be the file that this model was loaded from.
            external_threshold: initializers of this many bytes and more go to `<path>.data`; by
                default all in one file if it stays under protobuf's 2 GB.

        Raises:
            ModelError: `path` is the input, its folder is missing, or it cannot be written.
        """
        path = Path(path)
        if not overwrite and self.path is not None and path.exists() and path.samefile(self.path):
            raise ModelError(
                f"{path}: is the input; name another output, or save with overwrite=True"
            )
        skeleton = self._export(as_loaded=True, nodes_up_to=external_threshold)
        write_model(skeleton, self._weights, path, external_threshold, overwrite)
        return path

    def clone(self) -> Self:
        """A copy with a graph of its own; weights are shared, since they never change."""
        other = type(self)(self.skeleton(), self._weights.copy(), self.path)
        other.graph.ir_version = self.ir_version  # skeletons have at least 4
        other._carried = copy.deepcopy(self._carried)
        return other

    def become(self, other: Self) -> None:
        """Take over graph, weights and all of `other`, but not its path; `other` stays as it is."""
        copied = other.clone()
        self.graph, self._weights, self._carried = copied.graph, copied._weights, copied._carried

    def rebuild(self, skeleton: onnx.ModelProto) -> None:
        """Replace the graph by `skeleton`, whose references stand for this model's weights.

        Large tensors that hold their own bytes are taken in. What this model carries (metadata,
        which initializers are inputs, which are Constant nodes) stays.
        """
        taken = onnx.ModelProto()
        taken.CopyFrom(skeleton)
        _take_out(taken.graph, self._weights)
        if taken.ir_version == max(self.ir_version, 4):
            taken.ir_version = self.ir_version  # a skeleton has at least 4; keep what the file has
        # weights live as long as a tensor has them: the old graph outlives the new one's import
        carried, previous = self._carried, self.graph
        self._import(taken)
        del previous
        self._carried = carried.merged(self._carried)

    # ------------------------------------------------------------------------------------ the graph

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return int(self.graph.opset)

    @property
    def opsets(self) -> dict[str, int]:
        """{domain: version} of every operator set that the model imports."""
        return {o.domain: o.version for o in self.graph.import_domains}

    @property
    def ir_version(self) -> int:
        """The version of ONNX's intermediate representation."""
        return int(self.graph.ir_version)

    @property
    def inputs(self) -> list[TensorInfo]:
        """What a user must feed: graph inputs that have no initializer."""
        return [_info(t) for t in self.graph.inputs]

    @property
    def outputs(self) -> list[TensorInfo]:
        """The graph's outputs."""
        return [_info(t) for t in self.graph.outputs]

    def nodes(self, *op_types: str) -> list[gs.Node]:
        """The nodes of the top graph in order: all, or those of the given operator types."""
        return [n for n in self.graph.nodes if not op_types or n.op in op_types]

    def node(self, name: str) -> gs.Node:
        """The node of this name. Raises ModelError with the nearest names if there is none."""
        for node in self.graph.nodes:
            if node.name == name:
                return node
        raise ModelError(_unknown("node", name, [n.name for n in self.graph.nodes]))

    def tensors(self) -> dict[str, gs.Tensor]:
        """Every tensor of the top graph by its name; a new dict each time, so hold it in loops."""
        tensors: dict[str, gs.Tensor] = self.graph.tensors()
        return tensors

    def tensor(self, name: str) -> gs.Tensor:
        """The tensor of this name. Raises ModelError with the nearest names if there is none."""
        tensors = self.tensors()
        if name not in tensors:
            raise ModelError(_unknown("tensor", name, list(tensors)))
        return tensors[name]

    def info(self, name: str) -> TensorInfo:
        """Name, dtype and shape of the tensor of this name, as far as the graph states them."""
        return _info(self.tensor(name))

    def is_protected(self, name: str) -> bool:
        """Whether a tensor must keep its name: input, output, or captured by an If/Loop body."""
        return name in self.protected()

    def protected(self) -> set[str]:
        """The names for which `is_protected` holds; a new set each time, so hold it in loops."""
        used, inner = set(), {"", *self._carried.inner}
        for body in self.graph.subgraphs(recursive=True):
            inner |= {t.name for n in body.nodes for t in n.outputs} | {t.name for t in body.inputs}
            used |= {t.name for n in body.nodes for t in n.inputs} | {t.name for t in body.outputs}
        return {t.name for t in (*self.graph.inputs, *self.graph.outputs)} | used - inner

    def unique_name(self, stem: str) -> str:
        """The first of `stem`, `stem_1`, ... that no node or tensor has, bodies included."""
        if stem not in self._names():
            return stem
        taken, n = self._names(), 1
        while f"{stem}_{n}" in taken:
            n += 1
        return f"{stem}_{n}"

    def _names(self) -> set[str]:
        graphs = [self.graph, *self.graph.subgraphs(recursive=True)]
        return {t for g in graphs for t in g.tensors()} | {n.name for g in graphs for n in g.nodes}

    def __repr__(self) -> str:
        name = "Model" if self.path is None else f"Model {self.path.name!r}"
        stored = [math.prod(t.shape) for t in self._stored().values()]
        return (
            f"<{name}, opset {self.opset}: {len(self.graph.nodes):,} nodes, "
            f"{sum(stored):,} stored values in {len(stored):,} tensors>"
        )

    def table(self) -> "Text":
        """What it is in a line, its inputs and outputs, how many nodes of each operator."""
        from onnxdrp.display import Shown, Table

        ends = [("input", t) for t in self.inputs] + [("output", t) for t in self.outputs]
        rows = [(kind, t.name, str(t.dtype), t.dims) for kind, t in ends]
        operators = Counter(node.op for node in self.graph.nodes).most_common()
        return Shown(
            repr(self), "", Table(("", "name", "dtype", "shape"), rows),
            "", Table(("operator", "nodes"), operators),
        )  # fmt: skip

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    # ---------------------------------------------------------------------------------- the weights

    def weights(self) -> list[str]:
        """The names of all tensors whose values are stored in the model."""
        return [name for name, t in self.tensors().items() if isinstance(t, gs.Constant)]

    def weight(self, tensor: gs.Tensor | str) -> Array:
        """The values of a stored tensor, read-only; raises ModelError if they are computed.

        To look a name up goes through the graph: in loops, give the tensor itself.
        """
        if isinstance(tensor, str):
            tensor = self.tensor(tensor)
        values = self.constant(tensor)
        if values is None:
            raise ModelError(
                f"tensor {tensor.name!r} is computed, not stored; run FoldConstants first"
            )
        return values

    def set_weight(self, tensor: gs.Tensor | str, array: Array) -> None:
        """Replace the values of a stored tensor; `array` becomes the model's and read-only."""
        if isinstance(tensor, str):
            tensor = self.tensor(tensor)
        if not isinstance(tensor, gs.Constant):
            raise ModelError(
                f"tensor {tensor.name!r} is computed, not stored; run FoldConstants first"
            )
        tensor.values = array
        tensor._export_dtype = None  # the dtype of the new values holds
        self._adopt(tensor)

    def exchange(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Replace the values of stored tensors; returns those they had, to give them back by."""
        tensors = self.tensors()
        before = {name: self.weight(tensors[name]) for name in values}
        for name, array in values.items():
            self.set_weight(tensors[name], array)
        return before

    def constant(self, tensor: gs.Tensor | str) -> Array | None:
        """The values of a tensor if they are stored in the model (read-only), else None."""
        if isinstance(tensor, str):
            tensor = self.tensor(tensor)
        if not isinstance(tensor, gs.Constant) or isinstance(tensor._values, SparseValues):
            return None
        values: Array = tensor.values
        values.setflags(write=False)
        return values

    # ---------------------------------------------------------------------- as protobuf, as session

    def skeleton(self) -> onnx.ModelProto:
        """The graph with weights of 1 KiB and more as references: small whatever the model."""
        return self._export(as_loaded=False)

    def proto(self) -> onnx.ModelProto:
        """The whole model in memory, for tools that need it. Raises ModelError above 2 GB."""
        return filled(self._export(as_loaded=True), self._weights)

    def fingerprint(self) -> str:
        """A hash of graph and weights; only arrays that were replaced since the load are read."""
        skeleton = self.skeleton()
        _replace_references(skeleton.graph, self._weights)
        return hashlib.blake2b(
            skeleton.SerializeToString(deterministic=True), digest_size=16
        ).hexdigest()

    def inventory(self) -> tuple[dict[str, str], int]:
        """{name: digest} of every stored tensor of the top graph, and the bytes of all."""
        digests, total = {}, 0
        for name, constant in self._stored().items():
            self._adopt(constant)
            values = constant._values
            if isinstance(values, _Stored):
                digests[name], size = values.weight.digest(), values.weight.nbytes
            else:
                values.tensor.name = name  # as the export does
                digests[name] = values.tensor.SerializeToString(deterministic=True).hex()
                size = len(values.tensor.raw_data) or values.tensor.ByteSize()
            total += size
        return digests, total

    def _stored(self) -> dict[str, gs.Constant]:
        """The dense stored tensors of the top graph by name, those that only bodies read too."""
        found: dict[str, gs.Constant] = {}
        for graph in (self.graph, *self.graph.subgraphs(recursive=True)):
            inner = () if graph is self.graph else self._carried.inner
            for name, tensor in graph.tensors().items():
                stored = isinstance(tensor, gs.Constant) and name not in inner
                if stored and not isinstance(tensor._values, SparseValues):
                    found.setdefault(name, tensor)
        return found

    def check(self) -> None:
        """Run onnx's full checker, shape inference included, on the skeleton. Raises CheckError."""
        skeleton = self.skeleton()
        kept = []
        for tensor in skeleton.graph.initializer:
            if self._weights.of(tensor) is None:
                kept.append(tensor)
                continue
            # the checker opens external files; an input of the same type says all it needs of a
            # large weight
            skeleton.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        skeleton.graph.ClearField("initializer")
        skeleton.graph.initializer.extend(kept)
        skeleton = filled(skeleton, self._weights)
        try:
            onnx.checker.check_model(skeleton, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
            raise CheckError(f"the model is not valid ONNX: {_first_line(e)}") from e

    def session(
        self,
        *,
        outputs: Sequence[str] = (),
        optimize: bool = True,
        threads: int | None = None,
        tapped: int = 0,
    ) -> "onnxruntime.InferenceSession":
        """An onnxruntime session on the CPU, over this model's own (mapped) weights.

        Args:
            outputs: tensors to fetch besides the graph's outputs.
            optimize: run onnxruntime's graph optimizations; tensors asked for are computed either
                way.
            threads: intra-op threads; None leaves the choice to onnxruntime.
            tapped: how many tensors are to be fetched in all by several threads, if the session is
                for that (onnxdrp.session).

        Raises:
            ModelError: onnxruntime cannot run the model; the message names what it does not know.
        """
        from onnxdrp.session import open_session

        skeleton = self.skeleton()
        return open_session(skeleton, self._weights, outputs, optimize, threads, tapped)

    def part_session(
        self,
        part: onnx.ModelProto,
        stored: Iterable[gs.Constant],
        outputs: Sequence[str],
        *,
        optimize: bool = True,
        threads: int | None = None,
    ) -> "onnxruntime.InferenceSession":
        """As `session`, of a part of this model.

        Args:
            part: nodes of this model's skeleton, with the inputs they need; is changed.
            stored: the stored tensors that they read, with the values of now.
            outputs: tensors to fetch.
            optimize: as for `session`.
            threads: as for `session`.

        Raises:
            ModelError: as for `session`.
        """
        from onnxdrp.session import open_session

        for constant in stored:
            self._adopt(constant)  # a reference, where it is large
            tensor = constant._values.tensor
            if isinstance(tensor, onnx.SparseTensorProto):
                part.graph.sparse_initializer.append(tensor)
            else:
                part.graph.initializer.append(tensor)
                part.graph.initializer[-1].name = constant.name
        return open_session(part, self._weights, outputs, optimize, threads)

    # ---------------------------------------------------------------------------- across the border

    def _import(self, skeleton: onnx.ModelProto) -> None:
        if skeleton.functions:
            skeleton = inliner.inline_local_functions(skeleton)
        self._carried = Carried.take(skeleton)
        try:
            self.graph = gs.import_onnx(skeleton)  # noqa: TID251 - this is the border
        except Exception as e:  # graphsurgeon raises its own and others
            raise ModelError(
                f"{self.path or 'model'}: cannot be read as a graph ({_first_line(e)})"
            ) from e
        for constant in _constants(self.graph):
            constant.__class__ = _Constant
            values = constant._values
            if isinstance(values, LazyValues) and isinstance(values.tensor, onnx.TensorProto):
                weight = self._weights.of(values.tensor)
                if weight is not None:
                    constant._values = _Stored(values.tensor, weight)
        self._weights.release()

    def _adopt(self, constant: gs.Constant) -> None:
        """Make a constant hold a reference (a small one: a TensorProto), exported as it is."""
        values = constant._values
        constant.__class__ = _Constant
        if isinstance(values, LazyValues):
            return
        if values.dtype == object or not self._weights.keeps(values):
            tensor = onnx.numpy_helper.from_array(np.asarray(values), constant.name)
            constant._values = LazyValues(tensor)
            return
        weight = self._weights.adopt(values)
        tensor = onnx.TensorProto(name=constant.name, data_type=weight.data_type, dims=weight.shape)
        refer(tensor, location=weight.reference)
        constant._values = _Stored(tensor, weight)
        self._weights.release()  # the constant keeps it alive now

    def _export(self, *, as_loaded: bool, nodes_up_to: int | None = None) -> onnx.ModelProto:
        for constant in _constants(self.graph):
            self._adopt(constant)
        _sort(self.graph)
        proto: onnx.ModelProto = gs.export_onnx(self.graph, do_type_check=False)  # noqa: TID251
        self._carried.put_back(proto, as_loaded=as_loaded, nodes_up_to=nodes_up_to)
        return proto

    def _refuse_unknown_operators(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        if not 1 <= self.opset <= newest:
            raise ModelError(
                f"{self.path}: opset {self.opset} is unknown (this onnx knows 1 to {newest}); "
                "export with another opset, or upgrade onnx and onnxruntime"
            )
        for graph in (self.graph, *self.graph.subgraphs(recursive=True)):
            for node in graph.nodes:
                why = _unknown_operator(node, self.opsets)
                if why:
                    raise ModelError(f"{self.path}: node {node.name!r}: {why}")


# Domains whose operators onnxruntime's CPU build brings along.
_CONTRIBUTED = {"com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.pytorch.aten"}


def _unknown_operator(node: gs.Node, opsets: dict[str, int]) -> str:
    domain = "" if node.domain in (None, "ai.onnx") else node.domain
    if domain in _CONTRIBUTED:
        return ""
    version = opsets.get(domain, opsets.get("ai.onnx") if domain == "" else None)
    if version is not None and onnx.defs.has(node.op, version, domain):
        return ""
    where = f"domain {domain!r}" if domain else f"opset {version}"
    return f"the operator {node.op!r} is unknown in {where}; export with standard ONNX operators"


def load(path: "str | Path | Model") -> Model:
    """The model in a file; a Model is given back as it is."""
    return path if isinstance(path, Model) else Model.load(path)


def _info(tensor: gs.Tensor) -> TensorInfo:
    dtype = tensor.dtype
    if isinstance(dtype, int):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    # some exporters write -1 or "?" for an unknown dimension
    unknown = (-1, "", "?")
    shape = (
        None if tensor.shape is None else tuple(None if d in unknown else d for d in tensor.shape)
    )
    return TensorInfo(
        tensor.name, np.dtype(dtype) if dtype is not None else np.dtype(object), shape
    )


def _unknown(kind: str, name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 3)
    hint = f"; near: {', '.join(map(repr, near))}" if near else ""
    return f"no {kind} is called {name!r}{hint}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Every gs.Constant of a graph and its bodies: input of a node, attribute, or output."""
    seen: set[int] = set()
    for body in (graph, *graph.subgraphs(recursive=True)):
        found = [t for n in body.nodes for t in (*n.inputs, *n.attrs.values())] + list(body.outputs)
        for tensor in found:
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def _take_out(graph: onnx.GraphProto, weights: Weights) -> None:
    """Move the large tensors of a graph, which hold their own bytes, into `weights`."""
    for tensor in tensors(graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            take_in(tensor, weights)


def _replace_references(graph: onnx.GraphProto, weights: Weights) -> None:
    """Put the digests of weights in place of their running numbers."""
    for tensor in tensors(graph):
        weight = weights.of(tensor)
        if weight is not None:
            refer(tensor, location=weight.digest())


def _sort(graph: gs.Graph) -> None:
    """Bring nodes into topological order (Kahn 1962), keeping the present one where it is."""
    producer = {id(t): i for i, n in enumerate(graph.nodes) for t in n.outputs if t.name}
    needs = [sorted({producer[id(t)] for t in reads(n) if id(t) in producer}) for n in graph.nodes]
    if all(not need or need[-1] < i for i, need in enumerate(needs)):
        return
    users: list[list[int]] = [[] for _ in graph.nodes]
    for i, need in enumerate(needs):
        for j in need:
            users[j].append(i)
    waiting = [len(need) for need in needs]
    ready = [i for i, n in enumerate(waiting) if n == 0]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in users[i]:
            waiting[j] -= 1
            if waiting[j] == 0:
                heapq.heappush(ready, j)
    if len(order) != len(graph.nodes):
        stuck = next(n.name for i, n in enumerate(graph.nodes) if waiting[i])
        raise ModelError(f"the graph has a cycle through node {stuck!r}; export the model again")
    graph.nodes[:] = [graph.nodes[i] for i in order]


def reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """What a node reads: its inputs, and all that its bodies read."""
    yield from node.inputs
    for body in node.subgraphs(recursive=True):
        yield from body.outputs
        for inner in body.nodes:
            yield from inner.inputs
