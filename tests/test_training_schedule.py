"""When a training run prunes: the manual's ranges, its equations, and a rate that only rises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxdrp.errors import OptionError
from onnxdrp.training.schedule import Schedule, end_step, frequency, iterations


@st.composite
def gradual(draw):
    initial, final = sorted(draw(st.tuples(*[st.floats(0, 0.99)] * 2)))
    begin = draw(st.integers(0, 50))
    end = begin + draw(st.integers(1, 200))
    return Schedule(initial, final, begin, end, draw(st.integers(1, 250)))


@given(gradual())
def test_a_gradual_run_starts_rises_and_ends_where_it_is_told(schedule):
    steps = [s for s in range(schedule.end_step + 50) if schedule.prunes(s)]
    rates = [schedule.rate(s) for s in steps]
    assert steps[0] == schedule.begin_step
    assert rates[0] == pytest.approx(schedule.initial_pr, abs=1e-12)
    assert steps[-1] == schedule.end_step
    assert rates[-1] == schedule.final_pr
    assert rates == sorted(rates)
    assert all(0 <= rate < 1 for rate in rates)


@given(gradual())
def test_it_is_finished_after_as_many_calls_as_the_manual_says(schedule):
    needed = schedule.end_step + 1  # end - begin + 1 of them prune or could
    assert not schedule.finished(needed - 1)
    assert schedule.finished(needed)


def test_the_curve_is_cubic():
    schedule = Schedule(0.1, 0.9, begin_step=10, end_step=110, frequency=25)
    assert [s for s in range(200) if schedule.prunes(s)] == [10, 35, 60, 85, 110]
    assert schedule.rate(60) == pytest.approx(0.9 - 0.8 * 0.5**3)
    assert schedule.rate(85) == pytest.approx(0.9 - 0.8 * 0.25**3)


def test_the_last_step_prunes_where_the_frequency_passes_it_by():
    schedule = Schedule(0.0, 0.7, begin_step=0, end_step=10, frequency=4)
    assert [s for s in range(20) if schedule.prunes(s)] == [0, 4, 8, 10]


def test_one_shot_ignores_the_other_parameters_and_is_finished_at_once():
    schedule = Schedule(0.9, 0.5, begin_step=7, end_step=-1, frequency=3)
    assert schedule.finished(0)
    assert schedule.rate(0) == 0.5
    assert not any(schedule.prunes(s) for s in range(20))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"initial_pr": -0.1}, "initial_pr"),
        ({"initial_pr": 1.0}, "initial_pr"),
        ({"final_pr": 1.0}, "final_pr"),
        ({"final_pr": -0.01}, "final_pr"),
        ({"final_pr": float("nan")}, "final_pr"),
        ({"final_pr": True}, "final_pr"),
        ({"begin_step": -1}, "begin_step"),
        ({"begin_step": 0.5}, "begin_step"),
        ({"end_step": -2}, "end_step"),
        ({"frequency": 0}, "frequency"),
        ({"begin_step": 5, "end_step": 5}, "begin_step 5"),
        ({"begin_step": 6, "end_step": 5}, "begin_step 6"),
        ({"initial_pr": 0.8, "final_pr": 0.7, "end_step": 5}, "initial_pr 0.8"),
    ],
)
def test_each_parameter_out_of_its_range_is_named(wrong, named):
    with pytest.raises(OptionError, match=named):
        Schedule(**wrong)


def test_the_end_is_the_manuals_equation():
    assert end_step(1, max_iter=100) == 70
    assert end_step(938, max_epoch=10) == 6566
    assert end_step(1, max_iter=100, ratio=0.29) == 29  # 28.999999999999996 in floats
    assert end_step(1, max_iter=10, ratio=0.55) == 5


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_hundredths_of_iterations_are_exact(total, hundredths):
    assert end_step(1, max_iter=total, ratio=hundredths / 100) == total * hundredths // 100


def test_the_frequency_is_that_of_epochs_and_never_0():
    assert frequency(100) == 100
    assert frequency(100, 0.5) == 50
    assert frequency(3, 0.1) == 1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: end_step(10), "either max_iter or max_epoch"),
        (lambda: end_step(10, 5, 5), "either max_iter or max_epoch"),
        (lambda: end_step(10, max_iter=0), "max_iter is 0"),
        (lambda: end_step(10, max_epoch=-1), "max_epoch is -1"),
        (lambda: end_step(10, max_epoch=1.5), "max_epoch is 1.5"),
        (lambda: end_step(10, max_epoch=1, ratio=0), "ratio is 0"),
        (lambda: frequency(10, -1.0), "ratio is -1.0"),
        (lambda: iterations(iter(())), "has no length"),  # type: ignore[arg-type]
        (lambda: iterations([]), "is empty"),
    ],
)
def test_what_cannot_be_counted_is_said(call, named):
    with pytest.raises(OptionError, match=named):
        call()
