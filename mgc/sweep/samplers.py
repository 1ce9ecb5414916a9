"""What a search tries next: Optuna's samplers, or all combinations. No Ray."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import optuna

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgc.sweep.space import Space


class Drawing:
    """Draws configurations one after the other, and learns what they came to.

    What trial n gets follows from the seed, n and what is known then: a search that is gone on with draws what an
    undisturbed one would have drawn.

    Parameters
    ----------
    search
        ``tpe``, ``random`` or ``grid``, as ``config.SweepConfig`` has it.
    """

    def __init__(self, space: Space, search: str, seed: int) -> None:
        self.space, self.search, self.seed = space, search, seed
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler(0))
        self._trials: dict[int, optuna.Trial] = {}
        self._grid: list[dict[str, Any]] = []
        if search == "grid":
            choices = space.grid()
            self._grid = [dict(zip(choices, each, strict=True)) for each in itertools.product(*choices.values())]

    def draw(self, number: int) -> dict[str, Any]:
        """What trial ``number`` (from 1) is to differ in."""
        if self._grid:
            return self.again(number, self._grid[number - 1])
        self._study.sampler = self._sampler(number)
        return self._ask(number)

    def again(self, number: int, differences: Mapping[str, Any]) -> dict[str, Any]:
        """Take note of what a trial was given."""
        self._study.enqueue_trial(dict(differences))
        return self._ask(number)

    def learn(self, number: int, accuracy: float | None) -> None:
        """Take note of what a trial came to; None of one that failed before it came to anything."""
        state = optuna.trial.TrialState.FAIL if accuracy is None else None
        self._study.tell(self._trials[number], accuracy, state=state)

    def _ask(self, number: int) -> dict[str, Any]:
        trial = self._trials[number] = self._study.ask()
        self.space.suggest(trial)
        return dict(trial.params)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = (self.seed * 1_000_003 + number) % 2**32  # NumPy takes no more
        return optuna.samplers.TPESampler(seed=seed) if self.search == "tpe" else optuna.samplers.RandomSampler(seed)
