"""Distill: pruned and quantized models come nearer to the float model; what may not move, stays."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from builders import conv_net, feeds_for, normal, outputs_of
from quantizing import Feeds, parse, quantize_model

from onnxdrp.errors import DataError, ModelError, OptionError, PassError
from onnxdrp.masks import Mask
from onnxdrp.model import Model
from onnxdrp.passes import Distill, FuseBatchNorm, PruneBlocks, SelectLayers
from onnxdrp.pipeline import PassContext, PassManager

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: pip install onnxdrp[distill]",
)

HEAD = '<ir_version: 10, opset_import: ["" : 17]> g '


def reader(proto, batches=4, size=25):
    return Feeds(*(feeds_for(proto, seed=10 + i, batch=size) for i in range(batches)))


def pruned(proto=None, rate=0.7, pattern="unstructured"):
    """A pruned model and its context."""
    proto = proto or conv_net(channels=16)
    model, ctx = Model.from_proto(proto), PassContext(reader=reader(proto), workers=1)
    steps = [SelectLayers(rate=rate, pattern=pattern), PruneBlocks(pattern, rate)]
    PassManager(steps).run(model, ctx)
    assert ctx.masks
    return model, ctx


def distilled(model, ctx, **options):
    """A distilled copy, and the figures."""
    model = model.clone()
    # a start that nothing has repaired bears a larger rate than the default
    options = {"steps": 40, "batch": 25, "augment": False, "learning_rate": 0.01, **options}
    (record,) = PassManager([Distill(**options)]).run(model, ctx).records
    model.check()
    return model, record.stats


def distance(model, teacher, proto):
    """How far outputs are from the teacher's on samples that nobody has seen, relative."""
    feeds = feeds_for(proto, seed=99, batch=64)
    (y,), (t,) = outputs_of(model, feeds), outputs_of(teacher, feeds)
    assert t.std() > 1e-2
    return float(np.square(y - t).mean() / t.var())


def stored(model):
    return {name: np.array(model.weight(name)) for name in model.weights()}


# ------------------------------------------------------------------------------------ without torch


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"minutes": 1.0, "steps": 5}, "minutes and steps"),
        ({"minutes": 1.0, "replanned": ((20, 30),)}, "replanned belongs to steps"),
        ({"minutes": 0.0}, "minutes 0"),
        ({"minutes": float("nan")}, "minutes nan"),
        ({"steps": 0}, "steps 0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"batch": 0}, "batch 0"),
        ({"features": -1.0}, "features"),
        ({"held_out": 1.0}, "held_out"),
        ({"patience": 0}, "patience 0"),
        ({"memory_limit": 0}, "memory_limit"),
        ({"step_limit": 0}, "step_limit"),
    ],
)
def test_options_that_cannot_be_are_refused(options, why):
    with pytest.raises(OptionError, match=why):
        Distill(**options)


def test_what_it_needs_is_asked_for_before_any_work(monkeypatch):
    model, ctx = pruned()
    with pytest.raises(DataError, match="needs data"):
        Distill().requires(model, PassContext(dense=ctx.dense))
    with pytest.raises(ModelError, match="no teacher"):
        Distill().requires(model, PassContext(reader=ctx.reader))
    rounded = PassContext(reader=ctx.reader, dense=ctx.dense, quantization={"w": None})
    with pytest.raises(ModelError, match="before quantize-weights or after insert-qdq"):
        Distill().requires(model, rounded)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install onnxdrp\[distill\]"):
        Distill().requires(model, ctx)


def test_the_passes_are_imported_where_there_is_no_torch():
    code = "import sys; sys.modules['torch'] = None\n"
    code += "from onnxdrp.passes import Distill; print(Distill().options())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "learning_rate" in done.stdout


# ------------------------------------------------------------------------------------- what it does


@needs_torch
@pytest.mark.parametrize("pattern", ["unstructured", "flex-nm"])
def test_a_pruned_model_comes_nearer_to_the_float_model(pattern):
    proto = conv_net(channels=32)
    model, ctx = pruned(proto, pattern=pattern)
    better, stats = distilled(model, ctx)
    before, after = (distance(m, ctx.dense, proto) for m in (model, better))
    assert before > 0.005
    assert after < 0.5 * before
    assert stats["after"] < 0.5 * stats["before"]
    assert stats["taken"] == stats["steps"] == 40
    assert stats["best"] > 0


@needs_torch
def test_zeros_stay_zero_and_all_other_values_are_trained():
    model, ctx = pruned()
    before = stored(model)
    better, stats = distilled(model, ctx)
    after = stored(better)
    assert before.keys() == after.keys()
    for name, mask in ctx.masks.items():
        assert not np.any(after[name][~mask.keep])
        assert not np.any(np.signbit(after[name][~mask.keep]))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {
        *("conv1.weight", "conv1.bias", "conv2.weight", "fc.weight", "fc.bias"),
        *("bn.scale", "bn.bias"),
    }
    assert stats["trained"] == len(changed)


@needs_torch
def test_the_same_seed_and_steps_give_the_same_bytes():
    model, ctx = pruned()
    first, _ = distilled(model, ctx, augment=True)
    again, _ = distilled(model, ctx, augment=True)
    assert first.fingerprint() == again.fingerprint()
    ctx.seed = 1
    other, _ = distilled(model, ctx, augment=True)
    assert other.fingerprint() != first.fingerprint()


@needs_torch
def test_a_budget_of_minutes_says_the_steps_that_give_the_same_bytes():
    model, ctx = pruned()
    first, stats = distilled(model, ctx, steps=None, minutes=0.02, patience=20)
    assert stats["steps"] >= 10
    same = {"steps": stats["steps"], "replanned": tuple(map(tuple, stats["replanned"]))}
    again, _ = distilled(model, ctx, **same, patience=20)
    assert first.fingerprint() == again.fingerprint()


@needs_torch
@pytest.mark.parametrize("later", [1.0, 0.02])
def test_a_budget_of_minutes_is_kept_where_steps_become_slow_or_quick(monkeypatch, later):
    from onnxdrp.differentiable import training

    now = [0.0]
    make_step = training._Training._step

    def slow(self, step, steps):
        now[0] += 0.1 if step < 40 else later
        make_step(self, step, steps)

    model, ctx = pruned()
    monkeypatch.setattr(training._Training, "_step", slow)
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    first, stats = distilled(model, ctx, steps=None, minutes=0.5)
    assert stats["steps"] == 300, "30 seconds, of 0.1 a step"
    assert stats["replanned"], "the schedule is planned anew"
    assert 40 < stats["taken"] < 80 if later == 1.0 else stats["taken"] > 900
    assert 27 < now[0] < 36
    again = Distill(minutes=0.5).as_run(stats)
    assert (again.minutes, again.steps) == (None, 300)
    repeated, _ = distilled(model, ctx, steps=again.steps, replanned=again.replanned)
    assert repeated.fingerprint() == first.fingerprint()


class Halt(BaseException):
    pass


@needs_torch
@pytest.mark.parametrize("budget", [{"steps": 40}, {"steps": None, "minutes": 0.02}])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, budget):
    model, ctx = pruned()
    ctx.checkpoint = tmp_path / "at"
    seen = []

    def stop(done, total):
        seen.append(done)
        if len(seen) > 2 and (tmp_path / "at.distill").exists():
            raise Halt

    ctx.progress = stop
    try:
        _, stats = distilled(model, ctx, **budget)
    except Halt:
        assert (tmp_path / "at.distill").exists()
        ctx.progress = lambda done, total: seen.append(done)
        resumed, stats = distilled(model, ctx, **budget)
        if budget["steps"]:
            assert len(seen) == 40 + 1, "one step is made twice: the last look was before it"
        ctx.checkpoint = ctx.progress = None
        replanned = tuple(map(tuple, stats["replanned"]))
        whole, _ = distilled(model, ctx, steps=stats["steps"], replanned=replanned)
        assert resumed.fingerprint() == whole.fingerprint()
    assert not (tmp_path / "at.distill").exists()


@needs_torch
@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_checkpoint_of_other_work_or_a_damaged_one_is_begun_anew(tmp_path, content):
    model, ctx = pruned()
    plain, _ = distilled(model, ctx)
    path = tmp_path / "at.distill"
    ctx.checkpoint = tmp_path / "at"
    if content is None:
        ctx.progress = interrupt_after(25)
        with pytest.raises(Halt):
            distilled(model, ctx, learning_rate=0.02)
        ctx.progress = None
        assert path.stat().st_size > 1000
    else:
        path.write_bytes(content)
    again, _ = distilled(model, ctx)
    assert again.fingerprint() == plain.fingerprint()


def interrupt_after(steps):
    calls = []

    def progress(done, total):
        calls.append(done)
        if len(calls) == steps:
            raise Halt

    return progress


@needs_torch
def test_a_model_that_is_as_its_teacher_is_not_touched():
    proto = conv_net(channels=16)
    model = Model.from_proto(proto)
    ctx = PassContext(reader=reader(proto), workers=1, dense=model.clone())
    ctx.masks = {"conv2.weight": Mask(np.ones((16, 16, 3, 3), bool))}
    before = model.fingerprint()
    (record,) = PassManager([Distill(steps=20)]).run(model, ctx).records
    assert not record.modified
    assert model.fingerprint() == before
    assert record.stats["before"] == record.stats["after"] == 0


def nearly_its_teacher():
    proto = conv_net(channels=16)
    model = Model.from_proto(proto)
    ctx = PassContext(reader=reader(proto), workers=1, dense=model.clone())
    model.set_weight("fc.weight", model.weight("fc.weight") * np.float32(1.001))
    return model, ctx


@needs_torch
def test_the_start_is_kept_where_training_makes_nothing_better():
    model, ctx = nearly_its_teacher()
    kept, stats = distilled(model, ctx, learning_rate=1.0, steps=12)
    assert stats["best"] == 0
    assert stats["after"] == stats["before"] > 0
    assert kept.fingerprint() == model.fingerprint()


@needs_torch
def test_patience_ends_a_run_that_gets_no_better():
    model, ctx = nearly_its_teacher()
    _, stats = distilled(model, ctx, learning_rate=1.0, steps=60, patience=2)
    assert stats["taken"] < 30
    assert stats["steps"] == 60


@needs_torch
def test_progress_counts_samples_up_to_all():
    model, ctx = pruned()
    calls = []
    ctx.progress = lambda done, total: calls.append((done, total))
    distilled(model, ctx, steps=15)
    assert calls[0] == (25, 15 * 25)
    assert calls[-1] == (15 * 25, 15 * 25)


@needs_torch
def test_a_model_with_a_fixed_batch_and_samples_of_other_shapes_are_trained_on():
    fixed = conv_net(channels=16, batch=2)
    model, ctx = pruned(fixed)
    ctx.reader = Feeds(*(feeds_for(fixed, seed=i) for i in range(20)))
    _, stats = distilled(model, ctx, batch=7)
    assert stats["after"] < 0.7 * stats["before"]

    text = (
        HEAD + "(float[N, 16, H, W] x) => (float[N, 4] y)"
        "{ c = Conv(x, w, b) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v) }"
    )
    weights = {"w": normal([32, 16, 3, 3], 0), "b": normal([32], 1), "v": normal([32, 4], 2)}
    free = parse(text, weights)
    ctx = PassContext(workers=1, dense=free.clone())
    keep = np.random.default_rng(0).random((32, 16, 3, 3)) < 0.4
    ctx.masks = {"w": Mask(keep)}
    free.set_weight("w", np.where(keep, weights["w"], np.float32(0)))
    sizes = [(9, 7), (6, 8), (12, 5)] * 15
    rng = np.random.default_rng(1)
    ctx.reader = Feeds(*({"x": rng.normal(size=(2, 16, *s)).astype(np.float32)} for s in sizes))
    _, stats = distilled(free, ctx)
    assert stats["after"] < 0.7 * stats["before"]


@needs_torch
def test_samples_beyond_the_memory_limit_change_nothing():
    model, ctx = pruned()
    plain, stats = distilled(model, ctx, steps=20)
    bounded, _ = distilled(model, ctx, steps=20, memory_limit=1000)
    assert plain.fingerprint() == bounded.fingerprint()
    parts, figures = distilled(model, ctx, steps=20, step_limit=1 << 17)
    assert parts.fingerprint() != plain.fingerprint(), "sums have other last bits"
    assert figures["before"] == pytest.approx(stats["before"], rel=1e-5)
    assert figures["after"] < 0.5 * stats["before"]
    assert stats["after"] < 0.5 * stats["before"]


# ---------------------------------------------------------------------------------------- quantized


def quantized(**options):
    """A pruned and quantized model."""
    model = Model.from_proto(conv_net(channels=16))
    FuseBatchNorm().run(model, PassContext())
    model, ctx = pruned(model.proto())
    dense = ctx.dense
    made = quantize_model(model, *ctx.reader.given, ctx=ctx, method="minmax", **options)
    made.ctx.workers = 1
    assert made.ctx.dense is dense
    return made.model, made.ctx


@needs_torch
@pytest.mark.parametrize("target", ["generic", "drp-ai3"])
def test_a_pruned_and_quantized_model_is_trained_through_its_rounding(target):
    model, ctx = quantized(target=target)
    proto = conv_net(channels=16)
    better, stats = distilled(model, ctx)
    assert stats["matched"] == 3, "the output, and what the second and third layer read"
    before, after = (distance(m, ctx.dense, proto) for m in (model, better))
    assert after < 0.5 * before
    old, new = stored(model), stored(better)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert {"conv1.weight", "conv1.bias", "conv2.weight"} <= changed
    assert all(old[name].dtype == new[name].dtype for name in old)
    assert all(new[name].dtype in (np.int8, np.int32) for name in changed)
    for name, mask in ctx.masks.items():
        assert old[name].dtype == np.int8
        assert not np.any(new[name][~mask.keep])
    for name in changed:
        if old[name].dtype == np.int8:
            assert np.abs(new[name].astype(int)).max() <= np.abs(old[name].astype(int)).max()
    # what was trained is what onnxruntime runs, but for values on the edge between two integers
    (again,) = PassManager([Distill(steps=1, batch=25, augment=False)]).run(better, ctx).records
    assert again.stats["before"] == pytest.approx(stats["after"], rel=1e-5)


@needs_torch
def test_a_quantized_model_is_taught_by_the_float_model_it_was_rounded_from():
    proto = conv_net(channels=16)
    made = quantize_model(proto, *reader(proto).given, method="minmax")
    made.ctx.workers = 1
    assert made.ctx.dense is None
    _, stats = distilled(made.model, made.ctx, learning_rate=0.002)
    assert stats["after"] <= stats["before"] < 0.1


@needs_torch
def test_weights_of_few_bits_keep_to_them():
    text = (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 8] y)'
        "{ d = DequantizeLinear<axis = 0>(w, s, z) y = Gemm<transB = 1>(x, d) }"
    )
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.integers(-7, 8, (8, 8)).astype(np.int8),
        "s": rng.uniform(0.05, 0.2, 8).astype(np.float32),
        "z": np.zeros(8, np.int8),
    }
    model = parse(text, weights)
    teacher = parse(text, {**weights, "s": 3 * weights["s"]})
    reader_ = Feeds({"x": rng.normal(size=(64, 8)).astype(np.float32)})
    better, stats = distilled(model, PassContext(reader=reader_, workers=1, dense=teacher))
    assert stats["after"] < 0.95 * stats["before"]
    new = better.weight("w")
    assert not np.array_equal(new, weights["w"])
    assert np.abs(new).max() == 7


# ---------------------------------------------------------------------------------- what is trained


def found(text, weights, masks=()):
    from onnxdrp.differentiable.trainable import trainables

    trained, skipped = trainables(parse(text, weights), dict(masks))
    return {one.name: one for one in trained}, skipped


@needs_torch
def test_constants_behind_layers_are_trained_and_those_of_data_and_boxes_are_not():
    text = (
        HEAD + "(float[N, 3, 8, 8] x) => (float[N, 36, 6] y, float[N, 5] z)"
        "{ n = Mul(x, std) m = Sub(n, mean) c = Conv(m, w) r = Relu(c) s = Mul(r, scale)"
        "  b = Add(s, shift) h = Mul(b, half) q = Reshape(h, shape) t = Transpose<perm=[0,2,1]>(q)"
        "  y = Add(t, grid) g = GlobalAveragePool(h) f = Flatten(g) l = MatMul(f, v)"
        "  z = Add(l, bias) }"
    )
    weights = {
        "std": normal([3, 1, 1], 0),
        "mean": normal([3, 1, 1], 1),
        "w": normal([6, 3, 3, 3], 2),
        "scale": normal([6, 1, 1], 3),
        "shift": normal([1, 6, 1, 1], 4),
        "half": np.float32(0.5),
        "shape": np.array([0, 6, -1]),
        "grid": normal([36, 1], 5),
        "v": normal([6, 5], 6),
        "bias": normal([5], 7),
    }
    trained, skipped = found(text, weights)
    assert set(trained) == {"w", "scale", "shift", "v", "bias"}
    assert not skipped
    assert (trained["shift"].output, trained["shift"].output_axis) == ("b", -3)
    assert (trained["bias"].output, trained["bias"].output_axis) == ("z", -1)
    assert (trained["w"].output, trained["w"].output_axis, trained["w"].reads) == ("c", 1, "m")
    assert trained["scale"].role == "scale"


@needs_torch
def test_a_step_of_one_rate_moves_outputs_of_any_scale_by_the_same_share():
    rng = np.random.default_rng(0)
    sizes = np.geomspace(0.1, 10, 6).reshape(-1, 1, 1, 1).astype(np.float32)
    weights = {
        "w": normal([6, 4, 3, 3], 0) * sizes,
        "b": np.zeros(6, np.float32),
        "v": normal([6, 5], 1),
        "c": np.zeros(5, np.float32),
    }
    weights["w"][:, :2] = 0
    text = (
        HEAD + "(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] m, float[N, 5] y)"
        "{ m = Conv(x, w, b) g = GlobalAveragePool(m) f = Flatten(g) y = Gemm(f, v, c) }"
    )
    model, feeds = parse(text, weights), {"x": rng.uniform(4, 6, (30, 4, 8, 8)).astype(np.float32)}
    maps, ends = outputs_of(model, feeds)
    trained, _ = found(text, weights)
    means = {"w": np.abs(feeds["x"]).mean(), "v": np.abs(maps.mean((2, 3))).mean()}
    for output, axes, weight, bias in ((maps, (0, 2, 3), "w", "b"), (ends, (0,), "v", "c")):
        deviation = output.std(axis=axes)
        unit = trained[weight].unit(deviation, means[weight])
        assert np.array_equal(np.exp2(np.rint(np.log2(unit))), unit)
        assert np.array_equal(weights[weight] / unit * unit, weights[weight])
        step = trained[bias].unit(deviation, 0.0)
        assert np.all(np.abs(np.log2(step / deviation)) <= 0.51)
        moved = parse(text, {**weights, weight: np.where(weights[weight] != 0, unit, 0)})
        change = np.abs(outputs_of(moved, feeds)[0 if weight == "w" else 1]).mean(axis=axes)
        if weight == "w":
            assert np.all(np.abs(np.log2(change / deviation)) <= 0.6)
        else:
            assert np.all(change > 0)


@needs_torch
def test_why_a_tensor_is_not_trained_is_said():
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 4] x) => (float[N, 4] y)'
        "<float s = {0.1}, float s2 = {0.2}, int8 z = {0}>"
        "{ a = DequantizeLinear(q, s, z) b = DequantizeLinear(q, s2, z) c = Gemm(x, a)"
        "  e = Gemm(c, b) u = Transpose(w) y = Gemm(e, u) }"
    )
    weights = {"q": np.ones((4, 4), np.int8), "w": normal([4, 4], 0)}
    trained, skipped = found(text, weights)
    assert not trained
    assert skipped["q"] == "it is dequantized in several ways"
    assert "computed weight" in skipped["u"]


@needs_torch
def test_shared_weights_are_trained_once_by_all_their_uses():
    text = (
        HEAD + "(float[N, 8] x) => (float[N, 8] y)"
        "{ a = Gemm(x, w) r = Relu(a) b = Gemm(r, w) s = Relu(b) y = Gemm(s, v) }"
    )
    weights = {"w": normal([8, 8], 0), "v": normal([8, 8], 1)}
    model = parse(text, weights)
    keep = np.random.default_rng(0).random((8, 8)) < 0.5
    ctx = PassContext(workers=1, dense=model.clone(), masks={"w": Mask(keep)})
    model.set_weight("w", np.where(keep, weights["w"], np.float32(0)))
    ctx.reader = Feeds({"x": normal([200, 1, 8], 3)[:, 0] * 2})
    better, stats = distilled(model, ctx)
    assert stats["trained"] == 2
    assert stats["after"] < 0.9 * stats["before"]
    assert not np.any(better.weight("w")[~keep])


# ------------------------------------------------------------------------------- what it says no to


@needs_torch
def test_an_operator_that_cannot_be_differentiated_is_named_with_its_node():
    text = HEAD + "(float[N, 8] x) => (float[N, 8] y){ a = Gemm(x, w) [odd] y = Hardmax(a) }"
    model = parse(text, {"w": normal([8, 8], 0)})
    ctx = PassContext(reader=Feeds({"x": normal([9, 8], 1)}), dense=model.clone(), workers=1)
    with pytest.raises(PassError, match="distill: node 'odd': the operator Hardmax cannot"):
        distilled(model, ctx)


@needs_torch
def test_a_tensor_that_is_not_in_both_models_is_named():
    model, ctx = pruned()
    with pytest.raises(PassError, match="tensor 'nowhere' is not in both"):
        distilled(model, ctx, tensors=("nowhere",))


@needs_torch
def test_chosen_tensors_are_matched_beside_heads_and_outputs():
    model, ctx = pruned()
    relu = model.nodes("Relu")[-1].outputs[0].name
    _, stats = distilled(model, ctx, tensors=(relu,), steps=11)
    assert stats["matched"] == 2


@needs_torch
def test_data_on_which_the_teacher_is_not_finite_is_refused():
    model, ctx = pruned()
    feeds = feeds_for(conv_net(channels=16), batch=20)
    ctx.reader = Feeds({name: array * np.float32(5e37) for name, array in feeds.items()})
    with pytest.raises(PassError, match="is not finite on the data"):
        distilled(model, ctx)


@needs_torch
def test_a_device_that_is_not_there_is_refused():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    model, ctx = pruned()
    with pytest.raises(PassError, match="device 'cuda'"):
        distilled(model, ctx, device="cuda")
    with pytest.raises(PassError, match="device 'abacus'"):
        distilled(model, ctx, device="abacus")


# ---------------------------------------------------------------------------------- images, samples


@needs_torch
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_images_are_mirrored_and_moved_and_edges_repeat(layout):
    from onnxdrp.differentiable.augment import augmented

    plain = np.arange(40 * 16 * 24 * 3, dtype=np.float32).reshape(40, 16, 24, 3)
    images = plain if layout == "NHWC" else plain.transpose(0, 3, 1, 2)
    changed = augmented(images, layout, np.random.default_rng(0))
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    changed = changed if layout == "NHWC" else changed.transpose(0, 2, 3, 1)
    seen = set()
    for before, after in zip(plain, changed, strict=True):
        wide = np.pad(before, ((2, 2), (3, 3), (0, 0)), mode="edge")
        ways = {
            (y, x, mirrored)
            for y in range(5)
            for x in range(7)
            for mirrored in (False, True)
            if np.array_equal(after[:, ::-1] if mirrored else after, wide[y : y + 16, x : x + 24])
        }
        assert len(ways) == 1
        seen |= ways
    assert len({mirrored for *_, mirrored in seen}) == 2
    assert len({y for y, *_ in seen}) == 5
    assert len({x for _, x, _ in seen}) == 7


@needs_torch
def test_only_images_are_augmented():
    from onnxdrp.passes.distill import _images

    model = Model.from_proto(conv_net())
    assert _images(model, reader(conv_net())) == {"x": "NCHW"}
    flat = parse(HEAD + "(float[N, 8] x) => (float[N, 8] y) { y = Relu(x) }")
    assert _images(flat, Feeds({"x": normal([4, 8], 0)})) == {}


@needs_torch
def test_the_first_steps_do_not_depend_on_how_many_there_are():
    from onnxdrp.differentiable.training import _share

    shares = [[_share(step, steps) for step in range(10)] for steps in (None, 5, 40, 4000)]
    assert shares[0] == shares[1] == shares[2] == shares[3]
    assert shares[0][-1] == 1
    rest = [_share(step, 60) for step in range(10, 60)]
    assert rest == sorted(rest, reverse=True)
    assert rest[0] == 1
    assert 0 < rest[-1] < 2e-3


@needs_torch
@pytest.mark.parametrize("images", [{}, {"x": "NCHW"}], ids=["plain", "augmented"])
def test_every_sample_is_trained_on_before_any_is_again(images):
    from onnxdrp.differentiable import Network
    from onnxdrp.differentiable.matching import matched
    from onnxdrp.differentiable.samples import Samples
    from onnxdrp.differentiable.trainable import trainables
    from onnxdrp.differentiable.training import Settings, _Training

    model, ctx = pruned()
    samples = Samples(ctx.reader, model, 1 << 30)
    settings = Settings(10, {}, 0, 0.01, 20, 1.0, 8, images, 3, 1 << 30, 1 << 30)
    networks = Network(model), Network(ctx.dense)
    match = matched(model, ctx.dense, None)
    weights, _ = trainables(model, ctx.masks)
    training = _Training(*networks, weights, match, (samples, samples), settings)
    numbers = [training._numbers(step) for step in range(10)]
    for epoch in (numbers[:5], numbers[5:]):
        assert sorted(n for step in epoch for n in step) == list(range(100))
    assert numbers[:5] != numbers[5:]
    again = {tuple(n) for n in numbers[:5]} == {tuple(n) for n in numbers[5:]}
    assert again == (not images)


@needs_torch
def test_heads_are_what_the_last_layers_give():
    from onnxdrp.differentiable.matching import matched

    text = (
        HEAD + "(float[N, 8, 8, 8] x) => (float[N, 10, 64] y)"
        "{ [one] c = Conv(x, w) r = Relu(c) [two] a = Conv(r, v) [three] b = Conv(r, u)"
        "  s = Sigmoid(b) t = Concat<axis = 1>(a, s) y = Reshape(t, shape) }"
    )
    weights = {
        "w": normal([8, 8, 1, 1], 0),
        "v": normal([4, 8, 1, 1], 1),
        "u": normal([6, 8, 1, 1], 2),
        "shape": np.array([0, 10, -1]),
    }
    model = parse(text, weights)
    match = matched(model, model, None)
    assert match.heads == ("y", "a", "b")
    assert match.features == ("r",)


@needs_torch
def test_scores_of_classes_are_found_by_the_shape_of_the_output():
    from onnxdrp.differentiable.matching import matched

    scores = Model.from_proto(conv_net())
    assert matched(scores, scores, None).classes
    assert not matched(scores, scores, None).probabilities
    assert not matched(scores, scores, None, classes=False).classes
    text = HEAD + "(float[N, 8] x) => (float[N, 5] y) { m = Gemm(x, w) y = Softmax(m) }"
    shares = parse(text, {"w": normal([8, 5], 0)})
    match = matched(shares, shares, None)
    assert match.classes
    assert match.probabilities
    one = parse(
        HEAD + "(float[N, 8] x) => (float[N, 1] y) { y = Gemm(x, w) }", {"w": normal([8, 1], 0)}
    )
    assert not matched(one, one, None).classes
    with pytest.raises(OptionError, match="classes"):
        matched(one, one, None, classes=True)


@needs_torch
def test_the_divergence_of_scores_is_that_of_their_shares_at_temperature_2():
    import torch

    from onnxdrp.differentiable.training import _divergence

    rng = np.random.default_rng(0)
    y, t = (3 * rng.normal(size=(6, 5)) for _ in range(2))

    def softmax(x):
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(t / 2), softmax(y / 2)
    want = 4 * (p * np.log(p / q)).sum(1).mean()
    scores = [torch.from_numpy(x) for x in (y, t)]
    assert float(_divergence(*scores, False)) == pytest.approx(want, rel=1e-9)
    shares = [torch.from_numpy(softmax(x)) for x in (y, t)]
    assert float(_divergence(*shares, True)) == pytest.approx(want, rel=1e-9)
    assert float(_divergence(scores[0], scores[0], False)) == 0


@needs_torch
@pytest.mark.parametrize("classes", [True, False])
def test_scores_come_nearer_by_either_distance(classes):
    proto = conv_net(channels=16)
    model, ctx = pruned(proto)
    better, stats = distilled(model, ctx, classes=classes)
    assert stats["after"] < 0.6 * stats["before"]
    assert distance(better, ctx.dense, proto) < 0.7 * distance(model, ctx.dense, proto)


@needs_torch
def test_a_checkpoint_in_a_folder_that_is_not_there_is_refused_before_training(tmp_path):
    model, ctx = pruned()
    ctx.checkpoint = tmp_path / "no" / "at"
    with pytest.raises(PassError, match="there is no folder"):
        distilled(model, ctx)


@needs_torch
def test_the_checkpoint_holds_numbers_alone(tmp_path):
    model, ctx = pruned()
    ctx.checkpoint, ctx.progress = tmp_path / "at", interrupt_after(30)
    with pytest.raises(Halt):
        distilled(model, ctx)
    with np.load(tmp_path / "at.distill", allow_pickle=False) as file:
        assert not any(file[name].dtype.hasobject for name in file.files)
