"""Proposes configurations: Optuna's samplers, or all combinations of a grid. No Ray."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

import optuna

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgc.sweep.space import Space

SEARCHES = ("tpe", "random", "grid")


class Sampler:
    """Proposes configurations one after the other, and is told the accuracy that each reached.

    The proposal for trial n follows from the seed, n and the accuracies told before: a resumed search proposes what an
    undisturbed one would have proposed.

    Parameters
    ----------
    space
        The search space.
    search
        ``"tpe"``, ``"random"`` or ``"grid"``, as in ``config.SweepConfig``.
    seed
        Any integer from 0.
    """

    def __init__(self, space: Space, search: str, seed: int) -> None:
        self.space, self.search, self.seed = space, search, seed
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler(0))
        self._trials: dict[int, optuna.Trial] = {}
        self._grid: list[dict[str, Any]] = []
        if search == "grid":
            choices = space.grid()
            self._grid = [dict(zip(choices, each, strict=True)) for each in itertools.product(*choices.values())]

    def ask(self, number: int) -> dict[str, Any]:
        """Propose a configuration.

        Parameters
        ----------
        number
            Of the trial, from 1.

        Returns
        -------
        dict
            Values by dotted field name: the differences from the base configuration.
        """
        if self._grid:
            return self.replay(number, self._grid[number - 1])
        self._study.sampler = self._sampler(number)
        return self._ask(number)

    def replay(self, number: int, differences: Mapping[str, Any]) -> dict[str, Any]:
        """Take note of a configuration that was proposed by an earlier process.

        Parameters
        ----------
        number
            Of the trial, from 1.
        differences
            What ``ask`` returned then.
        """
        self._study.enqueue_trial(dict(differences))
        return self._ask(number)

    def tell(self, number: int, accuracy: float | None) -> None:
        """Take note of how good a trial was.

        Parameters
        ----------
        number
            Of the trial, from 1.
        accuracy
            Its best validation accuracy; None if it failed before its first epoch ended.
        """
        state = optuna.trial.TrialState.FAIL if accuracy is None else None
        self._study.tell(self._trials[number], accuracy, state=state)

    def _ask(self, number: int) -> dict[str, Any]:
        trial = self._trials[number] = self._study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of choices that are lists
            self.space.suggest(trial)
        return dict(trial.params)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = (self.seed * 1_000_003 + number) % 2**32  # NumPy takes no more
        return optuna.samplers.TPESampler(seed=seed) if self.search == "tpe" else optuna.samplers.RandomSampler(seed)
