"""How much each dimension explains of the differences between a sweep's trials: Optuna's functional ANOVA.

F. Hutter, H. Hoos, K. Leyton-Brown: «An Efficient Approach for Assessing Hyperparameter Importance» (ICML 2014). A
forest is fitted to the trials that were trained to their end, and a dimension's importance is the share of the variance
of its predictions over the space that the dimension alone explains; the shares are scaled to sum to one.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mgc.sweep.results import SweepView

FEWEST = 4
"""Trials that it takes."""


@dataclass(frozen=True)
class Importances:
    """Importances of the dimensions, and a note for the reader."""

    shares: dict[str, float]
    """By dotted field name, the most important first; empty where nothing can be said."""
    note: str
    """What they rest on, or why there are none."""


def importances(view: SweepView) -> Importances:
    """Estimate the importance of each dimension.

    Pruned trials are left out: their accuracy is one of fewer epochs, and a forest would take the pruner's choice for
    an effect. So are conditional dimensions, which functional ANOVA does not know.
    """
    kept = view.kept
    if view.search == "pbt":  # population based training, which sweeps of before could be
        return Importances({}, "Configurations of a population change while they learn: no value is a whole trial's.")
    if len(kept) < FEWEST:
        return Importances(
            {}, f"{len(kept)} trials were trained to their end: too few for importances, which take {FEWEST}."
        )
    if len({trial.val_accuracy for trial in kept}) == 1:
        return Importances(
            {}, f"All {len(kept)} trials that were trained to their end are equally good: no dimension matters more."
        )
    shares = _shares(view)
    sometimes = [each.field for each in view.space.dimensions if each.field not in shares]
    if not shares:
        return Importances({}, "No dimension that all fully trained trials have explains a difference.")
    note = f"Functional ANOVA of the {len(kept)} trials that were trained to their end; pruned ones had fewer epochs."
    if len(kept) < 10 * len(shares):
        note += f" {len(kept)} trials of {len(shares)} dimensions give a rough order, no more."
    if sometimes:
        note += f" Left out, as not drawn in all of them or always the same: {', '.join(sometimes)}."
    return Importances(shares, note)


def _shares(view: SweepView) -> dict[str, float]:
    import optuna

    logging.getLogger("optuna").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # choices that are lists, and what is experimental
        study = optuna.create_study(direction="maximize")
        for trial in view.kept:
            fixed = optuna.trial.FixedTrial(trial.values)
            with suppress(ValueError):  # a value is missing or outside of the space
                view.space.suggest(fixed)
                study.add_trial(
                    optuna.trial.create_trial(
                        params=fixed.params, distributions=fixed.distributions, value=trial.val_accuracy
                    )
                )
        if len(study.trials) < FEWEST:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    whole = sum(shares.values())  # 0 where the forest has no split
    return {name: float(share / whole) for name, share in shares.items() if whole}
