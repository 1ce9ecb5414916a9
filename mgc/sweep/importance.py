"""How much of the difference between a sweep's trials each dimension makes: Optuna's functional ANOVA.

F. Hutter, H. Hoos, K. Leyton-Brown: «An Efficient Approach for Assessing Hyperparameter Importance» (ICML 2014). A
forest is fitted to the trials that ran to their end, and a dimension's importance is the share of its predictions'
variance over the space that the dimension alone explains; the shares are scaled to sum to one.
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
"""Trials below which nothing can be said."""


@dataclass(frozen=True)
class Importances:
    """Shares of the dimensions, and what is to be said of them."""

    shares: dict[str, float]
    """The most important first; empty where nothing can be said."""
    said: str
    """Of what they are, or why there are none."""


def importances(view: SweepView) -> Importances:
    """Judge the dimensions that all trials have which ran to their end.

    Trials that were pruned have another figure, that of fewer epochs, and a forest would take the pruner's choice for
    an effect: they are left out. So are dimensions drawn in some trials only, which functional ANOVA does not know.
    """
    kept = view.kept
    if view.search == "pbt":
        return Importances({}, "Configurations of a population change while they learn: no value is a whole trial's.")
    if len(kept) < FEWEST:
        return Importances({}, f"{len(kept)} trials ran to their end: too few to say what matters; it takes {FEWEST}.")
    if len({trial.val_accuracy for trial in kept}) == 1:
        return Importances({}, f"All {len(kept)} trials that ran to their end are equally good: none matters more.")
    shares = _judge(view)
    sometimes = [each.field for each in view.space.dimensions if each.field not in shares]
    if not shares:
        return Importances({}, "No dimension that all trials have which ran to their end explains a difference.")
    said = f"Functional ANOVA of the {len(kept)} trials that ran to their end; those that were pruned had fewer epochs."
    if len(kept) < 10 * len(shares):
        said += f" {len(kept)} trials of {len(shares)} dimensions give a rough order, no more."
    if sometimes:
        said += f" Not judged, as not drawn in all of them or always the same: {', '.join(sometimes)}."
    return Importances(shares, said)


def _judge(view: SweepView) -> dict[str, float]:
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
