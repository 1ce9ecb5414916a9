"""The preprocessing job: audit a collection, then turn it into a feature set.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python pipelines/preprocess.py --root /data/fma --out /data/features

The working directory of a job is a copy, so ``--out`` must be absolute, and both paths must be on storage that every
node of the cluster sees. Flags, exit codes and ``--json`` are those of ``mgc preprocess``; unlike it, the job ends
before anything is written when an artist is in two splits. It runs as a plain script too.
"""

from __future__ import annotations

import sys
from typing import Any

from mgc.cli import Audit, Preprocess, main
from mgc.core.progress import say


def audit_and_preprocess(command: Preprocess) -> dict[str, Any]:
    """Refuse a collection that leaks; preprocess the others."""
    audit = Audit(root=command.root, subset=command.subset)
    found = audit.run()
    say(audit.show(found))
    if problem := audit.problem(found):
        raise problem
    return command.run()


if __name__ == "__main__":
    main(["preprocess", *sys.argv[1:]], audit_and_preprocess)
