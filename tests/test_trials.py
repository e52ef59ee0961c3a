import numpy as np
import pytest
from builders import conv_net
from quantizing import Feeds

import onnxdrp
from onnxdrp.datareaders import ArrayReader
from onnxdrp.errors import DataError
from onnxdrp.evaluation import accuracy, compare_models
from onnxdrp.model import Model
from onnxdrp.trials import Closeness, Trials


def data(samples=30, seed=0):
    return np.random.default_rng(seed).standard_normal((samples, 3, 8, 8)).astype(np.float32)


def pair(batch="N"):
    a = Model.from_proto(conv_net(batch=batch))
    return a, onnxdrp.quantize(a.clone(), {"x": data(40, 1)}, method="minmax").model


@pytest.mark.parametrize("batch", ["N", 4])
def test_a_trial_says_what_compare_says_of_full_batches_and_of_others(batch):
    a, b = pair(batch)
    for samples in (28, 30):
        reader = ArrayReader({"x": data(samples)}, a, batch=7)
        found, trials = compare_models(a, b, reader), Trials(a, reader)
        assert trials.samples == samples
        assert 10 < trials.sqnr_db(b) == pytest.approx(found.sqnr_db, abs=0.02)
        points, low, high = trials.drop(b)
        assert points == pytest.approx(100 * (1 - found.top1_agreement))
        assert 0 <= low <= points < high < points + 30
        assert trials.sqnr_db(a) == np.inf
        assert trials.drop(a)[0] == 0


def test_with_labels_the_drop_is_of_accuracy():
    a, b = pair()
    y = np.random.default_rng(2).integers(0, 10, 30)
    x = data()
    y[:20] = a.session().run(None, {"x": x})[0][:20].argmax(1)
    reader = ArrayReader({"x": x, "y": y}, a)
    want = accuracy(a, reader).top1.mean() - accuracy(b, reader).top1.mean()
    assert Trials(a, reader).drop(b)[0] == pytest.approx(100 * want)
    worse = a.clone()
    worse.set_weight("fc.weight", -a.weight("fc.weight"))
    points, low, high = Trials(a, reader).drop(worse)
    assert low > 30
    assert 50 < points < high <= 100


def test_no_samples_are_refused():
    a, _ = pair()
    with pytest.raises(DataError, match="no samples"):
        Trials(a, Feeds())


def closeness(agreeing, of, sqnr, first=0):
    same = np.zeros(of, np.bool_)
    same[first : first + agreeing] = True
    return Closeness(same, sqnr)


def test_what_agrees_on_clearly_more_samples_is_closer_else_what_has_less_noise():
    assert closeness(52, 100, 1.0).is_closer(closeness(50, 100, 9.0))  # 2 more: above sqrt(2)
    assert not closeness(50, 100, 9.0).is_closer(closeness(52, 100, 1.0))
    assert not closeness(51, 100, 1.0).is_closer(closeness(50, 100, 9.0))
    assert closeness(51, 100, 9.0).is_closer(closeness(50, 100, 1.0))
    # 52 and 50, of which 30 are the same ones: 2 more are less than sqrt(42)
    assert not closeness(52, 100, 1.0).is_closer(closeness(50, 100, 9.0, first=22))
    assert Closeness(None, 2.0).is_closer(Closeness(None, 1.4))
    assert not Closeness(None, 2.0).is_closer(Closeness(None, 1.6))  # by chance
    assert not closeness(50, 100, 2.0).is_closer(closeness(50, 100, 2.0))


def test_closeness_is_of_the_float_model_whatever_the_labels():
    a, b = pair()
    x, y = data(), np.zeros(30, np.int64)
    want = Trials(a, ArrayReader({"x": x}, a)).closeness(b)
    found = Trials(a, ArrayReader({"x": x, "y": y}, a)).closeness(b)
    assert want.same is not None
    assert np.array_equal(found.same, want.same)
    assert found.sqnr_db == want.sqnr_db
    points = Trials(a, ArrayReader({"x": x}, a)).drop(b)[0]
    assert 100 * (1 - want.same.mean()) == pytest.approx(points)
    whole = Trials(a, ArrayReader({"x": x}, a)).closeness(a)
    assert whole.as_dict() == {"agreement": 1.0, "sqnr_db": None}
