"""Pruner and its callbacks in Keras: masks hold, schedules go on, files have it all."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from keras_nets import (
    BACKENDS,
    QUIET,
    L,
    compiled,
    fit,
    functional,
    images,
    keras,
    same_weights,
    sequential,
)

from onnxdrp.errors import ModelError, OptionError
from onnxdrp.geometry import to_slabs
from onnxdrp.keras import (
    EarlyStopping,
    Pruner,
    PruningSummaries,
    UpdatePruningStep,
    finalize,
    info,
    masks,
)
from onnxdrp.keras.pruner import wrappers
from onnxdrp.keras.wrapper import array_of, geometry_of, kernel_of
from onnxdrp.patterns import parse_pattern
from onnxdrp.training.schedule import Schedule

pytestmark = QUIET
NAMES = ["conv", "dense"]
BACKEND = keras.backend.backend()


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def held(model):
    return list(wrappers(model).values())


def gradual(model=None, **options):
    """A model for gradual pruning, compiled."""
    settings = {"end_step": 9, "frequency": 2, **options}
    pruner = Pruner(model or sequential(), NAMES, **settings)
    return compiled(pruner.get_pruning_model()), pruner


class Rates(keras.callbacks.Callback):
    """The sparsity that each step is computed with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(held(self.model)[0].sparsity)


def test_one_shot_prunes_at_once_both_models_and_they_compute_the_same():
    model, (x, _) = sequential(), images()
    pruner = Pruner(model, NAMES, final_pr=0.7)
    pruned = pruner.get_pruning_model()
    assert pruner.is_finished
    assert [w.name for w in held(pruned)] == [f"prune_low_magnitude_{name}" for name in NAMES]
    for wrapper in held(pruned):
        keep, kernel = wrapper.keep, array_of(kernel_of(wrapper.layer))
        np.testing.assert_array_equal(kernel != 0, keep)
        slabs = to_slabs(keep.reshape(geometry_of(wrapper.layer).shape), geometry_of(wrapper.layer))
        assert parse_pattern("flex-nm").valid(slabs)
        assert 0.69 < wrapper.sparsity < 0.71
        assert 0 < float(array_of(wrapper.threshold)) < np.abs(kernel).max()
    np.testing.assert_array_equal(model.predict(x, verbose=0), pruned.predict(x, verbose=0))


def test_training_holds_the_mask_and_leaves_zeros_in_both_models():
    model, data = sequential(), images()
    pruned = compiled(Pruner(model, NAMES).get_pruning_model())
    before, start = masks(pruned), model.get_weights()
    fit(pruned, data, 2, [UpdatePruningStep()])
    assert masks(pruned) == before
    kernels = {layer.name: array_of(layer.kernel) for layer in model.layers if layer.name in NAMES}
    for name, kernel in kernels.items():
        assert before[name].holds(kernel)
        assert (kernel != 0).mean() > 0.25
    moved = [not np.array_equal(a, b) for a, b in zip(start, model.get_weights(), strict=True)]
    assert all(moved)


def test_pruned_places_get_no_gradient_whatever_is_in_them():
    model, data = sequential(), images()
    pruned = compiled(Pruner(model, NAMES).get_pruning_model(), keras.optimizers.SGD(0.1))
    wrapper = held(pruned)[0]
    dirty = np.where(wrapper.keep, array_of(wrapper.layer.kernel), 7).astype(np.float32)
    expected = pruned.predict(data[0], verbose=0)
    wrapper.layer.kernel.assign(dirty)
    np.testing.assert_array_equal(pruned.predict(data[0], verbose=0), expected)

    class NotWritten(UpdatePruningStep):
        def on_epoch_end(self, epoch, logs=None):
            self.kernel = array_of(held(self.model)[0].layer.kernel)

    update = NotWritten()
    fit(pruned, data, 1, [update])
    np.testing.assert_array_equal(update.kernel[~wrapper.keep], 7)
    assert not np.array_equal(update.kernel[wrapper.keep], dirty[wrapper.keep])
    assert not array_of(wrapper.layer.kernel)[~wrapper.keep].any()


def test_gradual_pruning_follows_the_schedule_at_the_start_of_each_step():
    (pruned, pruner), rates = gradual(), Rates()
    assert not pruner.is_finished
    fit(pruned, images(96), 2, [UpdatePruningStep(), rates])
    schedule, expected = Schedule(0.01, 0.7, 0, 9, 2), []
    for step in range(12):
        if schedule.prunes(step):
            at = schedule.rate(step)
        expected.append(at)
    np.testing.assert_allclose(rates.seen, expected, atol=0.5 / (32 * 9))
    assert len(set(rates.seen)) == 6
    assert pruner.is_finished
    assert [w.step for w in held(pruned)] == [12, 12]


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has it not with torch")
def test_steps_per_execution_prunes_the_same_rates():
    pruned, _ = gradual()
    compiled(pruned, steps_per_execution=4)  # 6 batches: 4, then 2
    fit(pruned, images(96), 2, [UpdatePruningStep()])
    assert [w.step for w in held(pruned)] == [12, 12]
    assert held(pruned)[0].sparsity == pytest.approx(0.7, abs=0.01)


def test_data_of_unknown_length_is_counted_right():
    x, y = images(80)

    def batches():
        yield from zip(np.split(x, 5), np.split(y, 5), strict=True)

    pruned, _ = gradual()
    with pytest.warns(UserWarning, match="ran out of data|interrupt"):
        pruned.fit(batches(), shuffle=False, verbose=0, callbacks=[UpdatePruningStep()])
    assert [w.step for w in held(pruned)] == [5, 5]


def test_training_without_the_callback_warns():
    pruned, _ = gradual()
    with pytest.warns(UserWarning, match="without onnxdrp.keras.UpdatePruningStep"):
        fit(pruned, images(16))
    assert all(np.isfinite(w).all() for w in pruned.get_weights())
    assert [w.sparsity for w in held(pruned)] == [0, 0]


def test_the_callback_wants_a_model_for_pruning():
    with pytest.raises(OptionError, match="no layer to prune"):
        fit(compiled(sequential()), images(16), 1, [UpdatePruningStep()])


@pytest.mark.parametrize("make", [sequential, functional])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, make):
    data, names = images(96), [r.name for r in info(make()).layers if r.prunable]
    pruner = Pruner(make(), names, end_step=9, frequency=2)
    whole = compiled(pruner.get_pruning_model())
    fit(whole, data, 1, [UpdatePruningStep()])
    whole.save(tmp_path / "middle.keras")
    resumed = keras.models.load_model(tmp_path / "middle.keras")
    assert [w.step for w in held(resumed)] == [6] * len(names)
    assert 0 < held(resumed)[0].sparsity < 0.7
    start = resumed.get_weights()
    for model in (whole, resumed):
        fit(model, data, 1, [UpdatePruningStep()])
    assert same_weights(whole, resumed)
    assert not np.array_equal(start[0], resumed.get_weights()[0])
    assert [w.step for w in held(resumed)] == [12] * len(names)
    assert 0.69 < held(resumed)[0].sparsity < 0.71


def test_a_legacy_file_has_masks_schedule_and_step(tmp_path):
    pruned, _ = gradual()
    fit(pruned, images(96), 1, [UpdatePruningStep()])
    pruned.save(tmp_path / "middle.h5")
    loaded = compiled(keras.models.load_model(tmp_path / "middle.h5", compile=False))
    assert same_weights(loaded, pruned)
    assert [w.step for w in held(loaded)] == [6, 6]
    fit(loaded, images(96), 1, [UpdatePruningStep()])
    assert held(loaded)[0].sparsity == pytest.approx(0.7, abs=0.01)


def test_a_file_saved_in_the_middle_of_an_epoch_has_the_step(tmp_path):
    pruned, _ = gradual()
    path = str(tmp_path / "{batch}.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_freq=4)
    fit(pruned, images(96), 1, [checkpoint, UpdatePruningStep()])
    loaded = keras.models.load_model(tmp_path / "4.keras")
    assert [w.step for w in held(loaded)] == [4, 4]
    assert held(loaded)[0].sparsity == pytest.approx(Schedule(0.01, 0.7, 0, 9, 2).rate(2), abs=0.01)


def test_weights_are_loaded_into_a_pruner_of_rate_0(tmp_path):
    pruned = Pruner(sequential(), NAMES).get_pruning_model()
    for name in ("a.weights.h5", "b.h5"):
        if name == "b.h5":
            pruned.save(tmp_path / name)
        else:
            pruned.save_weights(tmp_path / name)
        empty = Pruner(sequential(), NAMES, final_pr=0.0).get_pruning_model()
        assert [w.sparsity for w in held(empty)] == [0, 0]
        empty.load_weights(tmp_path / name)
        assert masks(empty) == masks(pruned)
        assert same_weights(empty, pruned)


def test_copies_are_whole_and_apart():
    x, _ = images()
    pruned, _ = gradual()
    fit(pruned, images(), 1, [UpdatePruningStep()])
    twin = copy.deepcopy(pruned)
    clone = keras.models.clone_model(pruned)
    clone.set_weights(pruned.get_weights())
    y = pruned.predict(x, verbose=0)
    for other in (twin, clone):
        np.testing.assert_array_equal(other.predict(x, verbose=0), y)
        assert [(w.schedule, w.pattern) for w in held(other)] == [
            (w.schedule, w.pattern) for w in held(pruned)
        ]
        held(other)[0].prune(0.9)
    np.testing.assert_array_equal(pruned.predict(x, verbose=0), y)


def test_finalize_gives_a_plain_model_that_computes_the_same(tmp_path):
    x, _ = images()
    pruned = Pruner(functional(), ["grouped", "inner/inside", "shared"]).get_pruning_model()
    plain = finalize(pruned)
    assert not wrappers(plain)
    plain.save(tmp_path / "plain.keras")
    np.testing.assert_array_equal(plain.predict(x, verbose=0), pruned.predict(x, verbose=0))
    script = (
        "import sys, keras; m = keras.models.load_model(sys.argv[1]); "
        "assert not any(n.startswith('onnxdrp') for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "plain.keras")], check=True)


def test_a_pruned_model_keeps_its_masks_under_a_new_pruner():
    pruned = Pruner(sequential(), NAMES, final_pr=0.5).get_pruning_model()
    first = masks(pruned)
    lower = Pruner(pruned, ["dense"], final_pr=0.2).get_pruning_model()
    assert masks(lower) == first
    higher = Pruner(lower, ["dense"], final_pr=0.8).get_pruning_model()
    assert masks(higher)["conv"] == first["conv"]
    assert 0.79 < masks(higher)["dense"].sparsity < 0.81
    assert not np.any(masks(higher)["dense"].keep & ~first["dense"].keep)
    assert len(held(higher)) == 2


def test_early_stopping_waits_for_the_end_of_pruning():
    pruned, _ = gradual(end_step=14)
    stop = EarlyStopping(monitor="loss", min_delta=100, patience=1, restore_best_weights=True)
    history = fit(pruned, images(96), 9, [stop, UpdatePruningStep()])
    assert len(history.epoch) == 4  # 6 steps an epoch: finished in the 3rd, one more without gain
    assert held(pruned)[0].sparsity == pytest.approx(0.7, abs=0.01)


def test_an_average_of_weights_respects_the_masks():
    model, data = sequential(), images(96)
    pruned = Pruner(model, NAMES, end_step=9, frequency=2).get_pruning_model()
    compiled(pruned, keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))
    fit(pruned, data, 2, [UpdatePruningStep()])
    for wrapper in held(pruned):
        np.testing.assert_array_equal(array_of(wrapper.layer.kernel) != 0, wrapper.keep)


def test_regularizers_activations_and_half_precision_stay_what_they_are():
    x, y = images()
    options = {"kernel_regularizer": "l2", "activity_regularizer": "l1"}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(32, 3),
            L.Flatten(),
            L.Dense(32, "relu", name="dense", **options),
            L.Dense(32, "relu", name="half", dtype="mixed_bfloat16"),
            L.Dense(10, "softmax", dtype="float32"),
        ]
    )
    pruned = Pruner(model, ["dense", "half"]).get_pruning_model()
    assert [w.compute_dtype for w in held(pruned)] == ["float32", "bfloat16"]
    results = [compiled(m).evaluate(x, y, verbose=0) for m in (model, pruned)]
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    cross = -np.log(model.predict(x, verbose=0)[np.arange(len(y)), y]).mean()
    assert results[0] > cross + 0.01  # the regularizers are in it
    fit(pruned, (x, y), 1, [UpdatePruningStep()])
    for name, mask in masks(pruned).items():
        assert mask.holds(array_of(model.get_layer(name).kernel))


def test_a_loop_of_ones_own_drives_the_callback():
    pruned, _ = gradual()
    x, y = images(16)
    update = UpdatePruningStep()
    update.set_model(pruned)
    update.on_train_begin()
    for epoch in range(2):
        for _ in range(5):
            update.on_train_batch_begin(batch=-1)
            pruned.train_on_batch(x, y)
        update.on_epoch_end(epoch)
    update.on_train_end()
    assert [w.step for w in held(pruned)] == [10, 10]
    assert held(pruned)[0].sparsity == pytest.approx(0.7, abs=0.01)


def test_summaries_are_written_beside_those_of_keras(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callbacks = [UpdatePruningStep(), PruningSummaries(log_dir=tmp_path)]
    if BACKEND == "tensorflow":
        callbacks.append(keras.callbacks.TensorBoard(tmp_path))
    pruned, _ = gradual()
    fit(pruned, images(96), 3, callbacks)
    events = EventAccumulator(str(tmp_path / "metrics")).Reload()
    tag = "prune_low_magnitude_dense/sparsity"
    found = [
        (e.step, e.tensor_proto.float_val or e.tensor_proto.tensor_content)
        for e in events.Tensors(tag)
    ]
    assert [step for step, _ in found] == [0, 6, 12, 18]
    assert "prune_low_magnitude_conv/threshold" in events.Tags()["tensors"]


def test_summaries_without_tensorboard_say_so(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="tensorboard is not installed"):
        summaries = PruningSummaries()
    pruned, _ = gradual()
    fit(pruned, images(16), 1, [UpdatePruningStep(), summaries])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_pr": 1.0}, "initial_pr is 1.0"),
        ({"final_pr": -0.1}, "final_pr is -0.1"),
        ({"begin_step": -1}, "begin_step is -1"),
        ({"end_step": -2}, "end_step is -2"),
        ({"frequency": 0}, "frequency is 0"),
        ({"begin_step": 5, "end_step": 5}, "begin_step 5 is not before end_step 5"),
        ({"pattern": "nm:2:4", "final_pr": 0.7}, "nm:2:4 is a rate of 0.5"),
    ],
)
def test_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Pruner(sequential(), NAMES, **options)


def test_names_are_checked():
    with pytest.raises(OptionError, match="did you mean 'dense'"):
        Pruner(sequential(), ["dens"])
    with pytest.raises(OptionError, match="list of names"):
        Pruner(sequential(), "dense")
    with pytest.warns(UserWarning, match="stem is not pruned: its 3 input channels"):
        pruned = Pruner(sequential(), ["stem", "dense"]).get_pruning_model()
    assert list(masks(pruned)) == ["dense"]


def test_a_weight_that_is_not_finite_is_named():
    model = sequential()
    dense = model.get_layer("dense")
    dense.kernel.assign(np.full(dense.kernel.shape, np.nan))
    with pytest.raises(ModelError, match=r"^dense: .*NaN"):
        Pruner(model, ["dense"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", [n for n in BACKENDS if n != BACKEND])
def test_the_same_holds_on_the_other_backends(backend):
    here = Path(__file__).parent
    files = [str(here / name) for name in ("test_keras_pruner.py", "test_keras_graph.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *files]
    env = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(
        command, env=env, cwd=here.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
