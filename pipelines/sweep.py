"""The search job: tune on training and validation, look at the test split once, with the winner; crown it if better.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python pipelines/sweep.py --features /data/features --trials 100 --concurrent 4

The working directory of a job is a copy, so ``--features`` must be absolute, on storage that every node of the cluster
sees; MLflow's store is ``mlflow_runs/`` beside it, or ``MLFLOW_TRACKING_URI``. Flags, exit codes and ``--json`` are
those of ``mgc tune``, whose result gains ``test`` and ``champion``: what ``mgc evaluate`` and ``mgc crown`` say of the
winner (``champion`` is None of a leaky set). Killed after the look and resumed, it reads what was kept: no second look.
It runs as a plain script too.
"""

from __future__ import annotations

import sys
from typing import Any

from mgc.cli import Tune, main
from mgc.core.progress import say


def tune_and_crown(command: Tune) -> dict[str, Any]:
    """Search, score the winner on the test split, and make it champion if it is shown to be better."""
    from mgc.evaluation import evaluate
    from mgc.evaluation import promote as champion

    found = command.run()
    winner = found["winner_run_id"]
    test = evaluate.evaluate_once(winner, command.features)
    say(evaluate.summary(test))
    crowned = None if test["leaky"] else champion.crown(winner, command.features)
    say(champion.summary(crowned) if crowned else "what leaks is never registered")
    return found | {"test": test, "champion": crowned}


if __name__ == "__main__":
    main(["tune", *sys.argv[1:]], tune_and_crown)
