"""Test-set evaluations are counted: each is a run of an experiment of its own, by feature set and protocol."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from mgc.core.progress import say
from mgc.tracking.runs import EVALUATED_TAG, EVALUATIONS_EXPERIMENT, FINGERPRINT_TAG, PROTOCOL_TAG, Run
from mgc.tracking.store import search

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgc.evaluation.predictions import Source


@contextmanager
def counted_test_evaluation(run: Run, source: Source) -> Iterator[tuple[int, Run | None]]:
    """Log a test-set evaluation before predicting, so that it counts whatever comes of it.

    Parameters
    ----------
    run
        The run that is evaluated.
    source
        The clips it is evaluated on.

    Yields
    ------
    tuple of int and Run
        How often this test set has been evaluated on, this time included, and the run that logs this time. Of other
        splits nothing is logged: 0 and None.
    """
    if source.split != "test":
        yield 0, None
        return
    tags = {FINGERPRINT_TAG: source.fingerprint, PROTOCOL_TAG: source.protocol}
    logged = Run.start(
        run.uri,
        EVALUATIONS_EXPERIMENT,
        name=f"{run.record().name} on {source.split}",
        step="evaluate",
        config={"run": run.id, "features": source.features, "protocol": source.protocol},
        tags={**tags, EVALUATED_TAG: run.id},
    )
    with logged.closing():
        count = len(search(run.uri, EVALUATIONS_EXPERIMENT, tags, deleted=True))
        say(f"evaluate: test-set evaluation {count} on {source.features}")
        yield count, logged
