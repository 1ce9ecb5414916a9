"""The search job: tune on training and validation, evaluate the winner on the test split once, promote it if better.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python pipelines/sweep.py --features /data/features --trials 100 --concurrent 4

The working directory of a job is a copy, so ``--features`` must be absolute, on storage that every node of the cluster
sees; MLflow's store is ``mlflow_runs/`` beside it, or ``MLFLOW_TRACKING_URI``. Flags, exit codes and ``--json`` are
those of ``mgc tune``, whose result gains ``test`` and ``champion``: what ``mgc evaluate`` and ``mgc promote`` give of
the winner (``champion`` is None of a leaky set). Killed after the test-set evaluation and resumed, it reads the kept
predictions: no second evaluation.
It runs as a plain script too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from mgc.cli import Tune, main
from mgc.core.progress import say
from mgc.core.results import Result

if TYPE_CHECKING:
    from mgc.evaluation.evaluate import Evaluation
    from mgc.evaluation.promote import Promotion
    from mgc.sweep.tune import SweepResult


@dataclass(frozen=True)
class SweepJob(Result):
    """A sweep, its winner's test-set evaluation, and whether it became champion."""

    sweep: SweepResult
    test: Evaluation
    promotion: Promotion | None
    """None of a leaky set, which is never registered."""

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep's values, and ``test`` and ``champion``."""
        promotion = self.promotion and self.promotion.to_dict()
        return {**self.sweep.to_dict(), "test": self.test.to_dict(), "champion": promotion}

    def __str__(self) -> str:
        """Return the sweep's summary; the others are in the job's log, said when they were known."""
        return str(self.sweep)


def tune_and_promote(command: Tune) -> SweepJob:
    """Search, score the winner on the test split, and make it champion if it is shown to be better."""
    from mgc.evaluation.evaluate import evaluate_once
    from mgc.evaluation.promote import promote

    sweep = cast("SweepResult", command.call())
    test = evaluate_once(sweep.winner_run_id, command.features)
    say(str(test))
    promotion = None if test.leaky else promote(sweep.winner_run_id, command.features)
    say(str(promotion) if promotion else "a leaky set's models are never registered")
    return SweepJob(sweep, test, promotion)


if __name__ == "__main__":
    main(["tune", *sys.argv[1:]], tune_and_promote)
