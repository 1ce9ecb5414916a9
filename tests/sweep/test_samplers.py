"""What a search tries next follows from the seed, the number and what is known; whatever the seed is."""

from collections import Counter

import optuna
import pytest

from mgc.config import TrainConfig
from mgc.sweep.samplers import Sampler
from mgc.sweep.space import Space

SPACE = Space.of(
    {
        "model.norm": [False, True],
        "optim.lr": {"log_uniform": [0.0002, 0.005]},
        "augment.time_masks": [0, 1, 2],
        "augment.time_mask_frames": {"uniform": [10, 60], "when": {"augment.time_masks": [1, 2]}},
    },
    TrainConfig(),
)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def drawn(search, seed, count=20):
    """What trials get, one after the other, and each is the better the lower its rate."""
    sampler, found = Sampler(SPACE, search, seed), []
    for number in range(1, count + 1):
        found.append(sampler.ask(number))
        sampler.tell(number, None if number == 3 else 1 - 100 * found[-1]["optim.lr"])
    return found


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_the_same_seed_draws_the_same_and_another_another(search):
    found = drawn(search, 0)
    assert found == drawn(search, 0)
    assert len({each["optim.lr"] for each in found}) == 20
    assert not any(each in found for each in drawn(search, 1))
    for each in found:
        assert ("augment.time_mask_frames" in each) == (each["augment.time_masks"] > 0)
    assert min(Counter(len(each) for each in found).values()) >= 3


@pytest.mark.parametrize("seed", [0, 4294, 4295, 2**31, 2**32 - 1, 2**64])
@pytest.mark.parametrize("search", ["random", "tpe"])
def test_any_seed_that_a_configuration_has_can_be_drawn_with(search, seed):
    assert TrainConfig(seed=seed).seed == seed
    assert Sampler(SPACE, search, seed).ask(1).keys() >= {"model.norm", "optim.lr"}


@pytest.mark.parametrize("search", ["random", "tpe"])
@pytest.mark.parametrize("after", [1, 3, 12])
def test_a_resumed_search_draws_what_an_undisturbed_one_draws(search, after):
    whole = drawn(search, 5)
    sampler = Sampler(SPACE, search, 5)
    for number, differences in enumerate(whole, 1):
        assert (sampler.replay(number, differences) if number <= after else sampler.ask(number)) == differences
        sampler.tell(number, None if number == 3 else 1 - 100 * differences["optim.lr"])


def test_a_search_learns_where_it_is_good():
    rates = [each["optim.lr"] for each in drawn("tpe", 0, 40)]
    assert sum(rates[20:]) < 0.8 * sum(rates[:20])


def test_a_grid_is_all_combinations_once_in_order():
    space = Space.of({"model.norm": [False, True], "model.dropout": [0.0, 0.2, 0.4]}, TrainConfig())
    sampler = Sampler(space, "grid", 0)
    found = [sampler.ask(number) for number in range(1, 7)]
    assert [(each["model.norm"], each["model.dropout"]) for each in found] == [
        (norm, dropout) for norm in (False, True) for dropout in (0.0, 0.2, 0.4)
    ]
