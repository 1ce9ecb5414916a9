"""The training job: fit the CNN on the cluster's workers, or one model for each seed or fold.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python pipelines/train.py --features s3://bucket/features --storage s3://bucket/state --gpus 2

The working directory of a job is a copy, so paths must be absolute, on storage that every node of the cluster sees.
Flags, exit codes and ``--json`` are those of ``mgc train``: a job that was killed is resumed by the same command, from
any node. The test split is not looked at. It runs as a plain script too.
"""

from __future__ import annotations

import sys

from mgc.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
