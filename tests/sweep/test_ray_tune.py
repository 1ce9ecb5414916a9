"""How a machine is shared out among trials, and when a search's time is over. No Ray is started."""

import pickle
import time
from fractions import Fraction
from pathlib import Path

import pytest

from mgc.config import SweepConfig
from mgc.core.errors import InputError
from mgc.sweep.ray_tune import _Budget, _part, share
from mgc.sweep.sweep_folder import Sweep


def shared(cpus, gpus, **settings):
    """How many trials, and the CPU and the GPU of each."""
    sweep = Sweep(Path("sweep"), "", "", {}, {}, SweepConfig(**settings), "", "")
    concurrent, resources = share(sweep, cpus, float(gpus))
    assert resources.keys() == {"cpu", "gpu"}
    assert type(concurrent) is int
    return concurrent, resources["cpu"], resources["gpu"]


@pytest.mark.parametrize(
    ("cpus", "gpus", "settings", "expected"),
    [
        # CPUs: one each, or what there is shared out
        (2, 0, {}, (2, 1.0, 0.0)),
        (1, 0, {}, (1, 1.0, 0.0)),
        (16, 0, {}, (16, 1.0, 0.0)),
        (2, 0, {"concurrent": 1}, (1, 2.0, 0.0)),
        (2, 0, {"concurrent": 2}, (2, 1.0, 0.0)),
        (7, 0, {"concurrent": 3}, (3, 2.0, 0.0)),
        (2, 0, {"concurrent": 3}, (3, 0.6666, 0.0)),
        (2, 0, {"concurrent": 4}, (4, 0.5, 0.0)),
        (1, 0, {"concurrent": 7}, (7, 0.1428, 0.0)),
        # GPUs: one each
        (16, 1, {}, (1, 16.0, 1.0)),
        (16, 2, {}, (2, 8.0, 1.0)),
        (4, 8, {}, (8, 0.5, 1.0)),
        # a share of one each
        (16, 1, {"gpus_per_trial": 0.25}, (4, 4.0, 0.25)),
        (16, 2, {"gpus_per_trial": 0.25}, (8, 2.0, 0.25)),
        (16, 2, {"gpus_per_trial": 1.0}, (2, 8.0, 1.0)),
        (16, 1, {"gpus_per_trial": 0.3}, (3, 5.0, 0.3)),
        (16, 1, {"gpus_per_trial": 0.6}, (1, 16.0, 0.6)),
        (16, 1, {"gpus_per_trial": 0.1}, (10, 1.0, 0.1)),
        (2, 1, {"gpus_per_trial": 0.25, "concurrent": 2}, (2, 1.0, 0.25)),
        # so many at a time
        (16, 1, {"concurrent": 1}, (1, 16.0, 1.0)),
        (16, 1, {"concurrent": 4}, (4, 4.0, 0.25)),
        (16, 2, {"concurrent": 1}, (1, 16.0, 1.0)),
        (16, 2, {"concurrent": 4}, (4, 4.0, 0.5)),
        (16, 1, {"concurrent": 3}, (3, 5.0, 0.3333)),
        # workers of Ray Train: a CPU or a GPU each
        (2, 0, {"workers_per_trial": 2}, (1, 1.0, 0.0)),
        (16, 0, {"workers_per_trial": 4}, (4, 1.0, 0.0)),
        (7, 0, {"workers_per_trial": 2}, (3, 1.0, 0.0)),
        (16, 0, {"workers_per_trial": 4, "concurrent": 2}, (2, 1.0, 0.0)),
        (16, 4, {"workers_per_trial": 2}, (2, 1.0, 1.0)),
        (16, 2, {"workers_per_trial": 2, "concurrent": 1}, (1, 1.0, 1.0)),
    ],
)
def test_what_there_is_is_shared_out(cpus, gpus, settings, expected):
    assert shared(cpus, gpus, **settings) == expected


@pytest.mark.parametrize(("concurrent", "each"), [(3, 0.5), (5, 0.3333), (6, 0.3333), (7, 0.25)])
def test_a_trial_fits_on_one_of_several_gpus(concurrent, each):
    """Ray gives no trial parts of two."""
    assert shared(16, 2, concurrent=concurrent)[::2] == (concurrent, each)


def test_a_share_that_does_not_divide_a_gpu_leaves_the_rest_of_each():
    assert shared(16, 2, gpus_per_trial=0.4) == (4, 4.0, 0.4)
    assert shared(16, 2, gpus_per_trial=0.6) == (2, 8.0, 0.6)


@pytest.mark.parametrize("units", [1, 2, 3, 5, 16])
def test_parts_are_rays_and_fit_together(units):
    for of in range(1, 100):
        part = _part(units, of)
        assert part > 0
        assert 10_000 * part == pytest.approx(round(10_000 * part), abs=1e-9)  # Ray's precision
        assert of * Fraction(round(10_000 * part), 10_000) <= units
        assert part > units / of - 1e-4 if of > units else part == units // of


@pytest.mark.parametrize(
    ("cpus", "gpus", "settings", "said"),
    [
        (2, 0, {"gpus_per_trial": 0.25}, "--gpus-per-trial 0.25: there is no GPU; leave it out"),
        (2, 0, {"workers_per_trial": 3}, "--workers-per-trial 3: there are 2 CPUs; take fewer"),
        (16, 1, {"workers_per_trial": 2}, "--workers-per-trial 2: there are 1 GPUs; take fewer"),
    ],
)
def test_more_than_there_is_is_refused_in_one_line(cpus, gpus, settings, said):
    with pytest.raises(InputError) as caught:
        shared(cpus, gpus, **settings)
    assert str(caught.value) == said


def test_a_search_has_its_time_and_has_it_anew_when_it_is_gone_on_with():
    budget = _Budget(0.3)
    assert not budget.passed
    assert not budget("a trial", {"epoch": 1})
    deadline = time.monotonic() + 10
    while not budget.stop_all():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert budget.passed
    assert not budget("a trial", {"epoch": 1})  # it ends all or none
    resumed = pickle.loads(pickle.dumps(budget))
    assert resumed.seconds == 0.3
    assert not resumed.passed
    assert budget.passed


def test_without_a_limit_the_time_is_never_over():
    budget = _Budget(0.0)
    budget.began -= 1e9
    assert not budget.passed
    assert not budget.stop_all()
