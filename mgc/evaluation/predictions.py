"""Predictions of models on the clips of a split, and the file by which a run keeps them.

``predictions_SPLIT.parquet`` has a row a clip: ``track_id``, ``path``, ``label``, ``probabilities``. The schema's
metadata hold the ``Source``: genres in order, fingerprint of the feature set, protocol, leak and members.

Shape suffixes: N clips, G genres.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgc.core.errors import InputError, first_line
from mgc.dataset.protocols import leak
from mgc.evaluation.calibration import NONE
from mgc.evaluation.metrics import Scores, score
from mgc.features.layout import read_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from mgc.evaluation.calibration import Calibrated, Calibration
    from mgc.features.feature_set import FeatureSet
    from mgc.tracking.runs import Run

_STORED_AS = {"test_evaluations": "looks"}
"""Fields of ``Source`` whose name in a file is another: that of before."""


@dataclass(frozen=True)
class Member:
    """One of several models that are evaluated together."""

    run_id: str
    seed: int
    fold: int
    """From 1; 0 without folds."""
    accuracy: float
    """Of this model alone."""


@dataclass(frozen=True)
class Source:
    """What predictions are of: the clips, and the models where there are several."""

    split: str
    genres: tuple[str, ...]
    features: str
    """Where the feature set was."""
    fingerprint: str
    """Of the feature set."""
    protocol: str
    """``official``, or ``random``, which is leaky."""
    leak: str
    """Why the figures flatter, by ``mgc.dataset.protocols.leak``; empty where nothing is known against them."""
    test_evaluations: int = 0
    """How often this test set has been evaluated on, this time included; 0 of other splits."""
    members: tuple[Member, ...] = ()
    """The models, where the predictions are those of several."""

    @property
    def title(self) -> str:
        """The split as plots name it."""
        return f"{self.split}, LEAKY" if self.leak else self.split

    def same_clips(self, other: Source) -> bool:
        """Return whether both are of one split of one feature set under one protocol."""
        return all(getattr(self, name) == getattr(other, name) for name in ("split", "fingerprint", "protocol"))

    @classmethod
    def of(cls, feature_set: FeatureSet, split: str, protocol: str) -> Source:
        """Describe a split of a feature set.

        Parameters
        ----------
        feature_set
            The feature set.
        split
            ``training``, ``validation`` or ``test``.
        protocol
            ``config.split`` of the models: ``official`` or ``random``.

        Returns
        -------
        Source
            Without models.
        """
        manifest = feature_set.manifest
        location = str(feature_set.folder)
        return cls(split, manifest.genres, location, manifest.fingerprint, protocol, leak(manifest, protocol))


@dataclass(frozen=True, eq=False)
class Predictions:
    """Genre probabilities of the clips of a split."""

    source: Source
    track_ids_N: NDArray[np.int64]
    paths: tuple[str, ...]
    labels_N: NDArray[np.int64]
    """True genres, as places in ``source.genres``."""
    probabilities_NG: NDArray[np.float32]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the most probable genre is the true one [shape=(N,)]."""
        right_N: NDArray[np.bool_] = self.probabilities_NG.argmax(1) == self.labels_N
        return right_N

    def score(self) -> Scores:
        """Score the predictions against the true genres."""
        return score(self.labels_N, self.probabilities_NG, self.source.genres)

    def calibrated(self, calibration: Calibration, fingerprint: str, precision: float) -> Calibrated | None:
        """Say what a calibration is worth on these clips; None of one that there is not.

        Parameters
        ----------
        calibration
            Of the models that predicted.
        fingerprint
            Of the feature set that they were trained on: its validation clips are those that it was fitted on.
        precision
            Share of right answers that ``unsure`` is to leave, on validation clips.
        """
        if calibration is NONE:
            return None
        fitted_here = self.source.split == "validation" and self.source.fingerprint == fingerprint
        return calibration.on(self.labels_N, self.probabilities_NG, precision, fitted_here=fitted_here)

    def are_of(self, run_ids: Iterable[str]) -> bool:
        """Return whether these are the predictions of these runs' models and no others.

        Predictions of a single model do not name it; then any one run will do.
        """
        wanted = set(run_ids)
        return {member.run_id for member in self.source.members} == (wanted if len(wanted) > 1 else set())

    def mistakes(self, most: int) -> NDArray[np.int64]:
        """Return the rows of the (at most ``most``) wrong predictions with the highest confidence, highest first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.probabilities_NG[wrong].max(1), kind="stable")][:most]

    def keep(self, run: Run) -> None:
        """Log the predictions with a run, in place of earlier ones of the split."""
        table = pa.table(
            {
                "track_id": pa.array(self.track_ids_N, pa.int64()),
                "path": pa.array(self.paths, pa.string()),
                "label": pa.array(self.labels_N, pa.int64()),
                "probabilities": pa.array(list(self.probabilities_NG), pa.list_(pa.float32())),
            }
        )
        facts = {
            _STORED_AS.get(name, name): value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(self.source).items()
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, _file(self.source.split))
            pq.write_table(table.replace_schema_metadata(facts), file)
            run.file(file)

    @classmethod
    def kept(cls, run: Run, split: str) -> Predictions | None:
        """Read the predictions that a run keeps.

        Parameters
        ----------
        run
            The run.
        split
            ``training``, ``validation`` or ``test``.

        Returns
        -------
        Predictions or None
            None if the run was not evaluated on this split.

        Raises
        ------
        InputError
            The file is damaged.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = run.fetch(_file(split), Path(folder))
            if file is None:
                return None
            try:
                return cls._read(file)
            except (OSError, pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"run {run.id}: {_file(split)} is damaged ({first_line(error)}); «mgc evaluate» writes it again"
                ) from None

    @classmethod
    def _read(cls, file: Path) -> Predictions:
        table = read_table(file)
        facts = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        source = Source(
            facts["split"],
            tuple(json.loads(facts["genres"])),
            facts["features"],
            facts["fingerprint"],
            facts["protocol"],
            facts["leak"],
            json.loads(facts[_STORED_AS["test_evaluations"]]),
            tuple(Member(**member) for member in json.loads(facts["members"])),
        )
        probabilities_NG = table["probabilities"].combine_chunks().flatten().to_numpy()
        return cls(
            source,
            table["track_id"].to_numpy(),
            tuple(table["path"].to_pylist()),
            table["label"].to_numpy(),
            probabilities_NG.reshape(len(table), len(source.genres)),
        )


def _file(split: str) -> str:
    return f"predictions_{split}.parquet"
