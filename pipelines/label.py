"""The labelling job: what a model says of every file of a library, on all CPUs and GPUs of the cluster.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python pipelines/label.py s3://bucket/music --model s3://bucket/state/checkpoints/RUN --out s3://bucket/labels

The working directory of a job is a copy, so paths must be absolute, on storage that every node of the cluster sees.
Flags, exit codes and ``--json`` are those of ``mgc label``: a job that was killed goes on by the same command, from any
node. It runs as a plain script too.
"""

from __future__ import annotations

import sys

from mgc.cli import main

if __name__ == "__main__":
    main(["label", *sys.argv[1:]])
