"""How a machine is shared out among trials. No Ray is started."""

from fractions import Fraction

import pytest

from mgc.config import SweepConfig
from mgc.core.errors import InputError
from mgc.sweep.resources import part, share


def shared(cpus, gpus, **settings):
    """How many trials, and the CPU and the GPU of each."""
    concurrent, resources = share(SweepConfig(**settings), cpus, float(gpus))
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


@pytest.mark.parametrize(
    ("gpus", "settings", "expected"),
    [
        (0, {}, (None, 1.0, 0.0)),
        (0, {"concurrent": 5}, (5, 1.0, 0.0)),
        (0, {"cpus_per_trial": 4}, (None, 4.0, 0.0)),
        (0, {"gpus_per_trial": 1}, (None, 1.0, 1.0)),  # there is none yet: it is waited for
        (2, {}, (None, 1.0, 1.0)),
        (2, {"gpus_per_trial": 0.25, "concurrent": 16}, (16, 1.0, 0.25)),
        (0, {"workers_per_trial": 2}, (1, 1.0, 0.0)),
        (0, {"workers_per_trial": 2, "gpus_per_trial": 2}, (1, 1.0, 1.0)),
    ],
)
def test_of_a_cluster_each_trial_asks_for_what_the_flags_say(gpus, settings, expected):
    concurrent, resources = share(SweepConfig(**settings), 2, float(gpus), cluster=True)
    assert (concurrent, resources["cpu"], resources["gpu"]) == expected


def test_cpus_of_a_trial_on_one_machine():
    assert shared(16, 0, cpus_per_trial=4) == (4, 4.0, 0.0)
    assert shared(16, 1, cpus_per_trial=4) == (1, 4.0, 1.0)
    with pytest.raises(InputError, match="there are 2 CPUs"):
        shared(2, 0, cpus_per_trial=4)


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
        each = part(units, of)
        assert each > 0
        assert 10_000 * each == pytest.approx(round(10_000 * each), abs=1e-9)  # Ray's precision
        assert of * Fraction(round(10_000 * each), 10_000) <= units
        assert each > units / of - 1e-4 if of > units else each == units // of


@pytest.mark.parametrize(
    ("cpus", "gpus", "settings", "said"),
    [
        (2, 0, {"gpus_per_trial": 0.25}, "`gpus_per_trial=0.25`: there is no GPU; leave it out"),
        (2, 0, {"workers_per_trial": 3}, "`workers_per_trial=3`: there are 2 CPUs; take fewer"),
        (16, 1, {"workers_per_trial": 2}, "`workers_per_trial=2`: there are 1 GPUs; take fewer"),
    ],
)
def test_more_than_there_is_is_refused_in_one_line(cpus, gpus, settings, said):
    with pytest.raises(InputError) as caught:
        shared(cpus, gpus, **settings)
    assert str(caught.value) == said
