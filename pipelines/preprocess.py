"""The preprocessing job: audit a collection, then turn it into a feature set.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python pipelines/preprocess.py --root /data/fma --out /data/features

The working directory of a job is a copy, so ``--out`` must be absolute, and both paths must be on storage that every
node of the cluster sees. Flags, exit codes and ``--json`` are those of ``mgc preprocess``; unlike it, the job ends
before anything is written when an artist is in two splits. It runs as a plain script too.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import mgc
from mgc.cli import Preprocess, main
from mgc.core.progress import say

if TYPE_CHECKING:
    from mgc.core.results import Result


def audit_and_preprocess(command: Preprocess) -> Result:
    """Refuse a collection that leaks; preprocess the others."""
    report = mgc.audit(command.root, subset=command.subset, allow_outside=command.allow_outside)
    say(str(report))
    if problem := report.problem():
        raise problem
    return command.call()


if __name__ == "__main__":
    main(["preprocess", *sys.argv[1:]], audit_and_preprocess)
