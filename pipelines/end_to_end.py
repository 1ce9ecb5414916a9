"""All of it in one job: audit, preprocess, sweep, retrain, evaluate on the test split once, promote if better.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python pipelines/end_to_end.py --root s3://bucket/fma --features s3://bucket/features \
            --storage s3://bucket/state --name first --trials 100

``--root``, ``--subset`` and ``--allow-outside`` are those of ``mgc preprocess``, which makes ``--features``; all other
flags, the exit codes and ``--json`` are those of ``pipelines/sweep.py``. The same command goes on where a killed one
was: with a ``--name`` in the sweep, too. It runs as a plain script too.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from sweep import tune_and_promote  # type: ignore[import-not-found]  # beside this file, whose folder is on the path

import mgc
from mgc.cli import Tune, main
from mgc.core.progress import say
from mgc.core.ray_session import output_folder

if TYPE_CHECKING:
    from mgc.core.results import Result


def run_all(command: Tune, *, root: str, subset: str, allow_outside: bool) -> Result:
    """Refuse a collection that leaks; make the feature set of another, and search, confirm and promote on it."""
    from mgc.tracking import store

    store.storage(command.storage, output_folder("features", command.features))  # refuses relative places now
    report = mgc.audit(root, subset=subset, allow_outside=allow_outside)
    say(str(report))
    if problem := report.problem():
        raise problem
    mgc.extract_features(root, command.features, subset=subset, allow_outside=allow_outside, wait=command.wait)
    result: Result = tune_and_promote(command)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage="end_to_end.py --root ROOT [FLAGS]")
    parser.add_argument("--root", required="--help" not in sys.argv, help="collection: path or URI, as of preprocess")
    parser.add_argument("--subset", default="small", help="of an FMA folder")
    parser.add_argument("--allow-outside", action="store_true", help="of a CSV file: paths that lead out of its folder")
    own, rest = parser.parse_known_args()
    if "--help" in rest:
        parser.print_help()
    main(["tune", *rest], partial(run_all, **vars(own)))
