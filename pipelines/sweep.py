"""The search job: tune on training and validation, then look at the test split once, with the winner.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python pipelines/sweep.py --features /data/features --trials 100 --concurrent 4

The working directory of a job is a copy, so ``--features`` must be absolute, on storage that every node of the cluster
sees; MLflow's store is ``mlflow_runs/`` beside it, or ``MLFLOW_TRACKING_URI``. Flags, exit codes and ``--json`` are
those of ``mgc tune``, whose result gains ``test``: what ``mgc evaluate`` says. It runs as a plain script too.
"""

from __future__ import annotations

import sys
from typing import Any

from mgc.cli import Evaluate, Tune, main


def tune_and_evaluate(command: Tune) -> dict[str, Any]:
    """Search, then score the best trial on the test split."""
    found = command.run()
    return found | {"test": Evaluate(run_id=found["best_run_id"], features=command.features).run()}


if __name__ == "__main__":
    main(["tune", *sys.argv[1:]], tune_and_evaluate)
