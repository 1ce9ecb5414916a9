"""What the models of a run say of the clips of a split, how a run keeps it, and how looks at a test split are counted.

It is kept as ``predictions_SPLIT.parquet``. A row is a clip: ``track_id``, ``path``, ``label``, ``probabilities``. The
schema's metadata have the order of the genres, the feature set's fingerprint, the protocol, and what else a figure
needs to be believed. A look at a test split is a run of an experiment of its own, known by fingerprint and protocol.

Shape suffixes: N clips, G genres.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.dataset.protocols import leak, learning_set
from mgc.evaluation.metrics import Scores, score
from mgc.model import checkpoint
from mgc.model.cnn import predict_probabilities
from mgc.tracking.runs import EVALUATIONS_EXPERIMENT, FINGERPRINT_TAG, STEP_TAG, Run
from mgc.tracking.store import search

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mgc.dataset.clips import Clips
    from mgc.features.feature_set import FeatureSet
    from mgc.model.checkpoint import Card
    from mgc.model.cnn import GenreCNN

PROTOCOL_TAG = "mgc.protocol"
EVALUATED_TAG = "mgc.evaluated_run"
PARENTS = ("seeds", "folds")
"""Steps of runs whose models are those of the runs under them."""


@dataclass(frozen=True)
class Trained:
    """A model and the run that trained it."""

    run: Run
    model: GenreCNN
    card: Card


@dataclass(frozen=True)
class Member:
    """One of several models that are judged together."""

    run_id: str
    seed: int
    fold: int
    """From 1; 0 without folds."""
    accuracy: float


@dataclass(frozen=True)
class Source:
    """What predictions are of."""

    split: str
    genres: tuple[str, ...]
    features: str
    """Where the feature set was."""
    fingerprint: str
    """Of the feature set."""
    protocol: str
    """``official``, or ``random``, which is leaky."""
    leak: str
    """Why the figures flatter; empty where nothing is known against them."""
    looks: int = 0
    """How often this test split had been looked at, this look included; 0 of other splits."""
    members: tuple[Member, ...] = ()
    """The models, where the predictions are those of several."""

    @property
    def title(self) -> str:
        """The split as pictures name it."""
        return f"{self.split}, LEAKY" if self.leak else self.split

    def same_clips(self, other: Source) -> bool:
        """Whether both are of one split of one feature set, dealt alike."""
        return all(getattr(self, name) == getattr(other, name) for name in ("split", "fingerprint", "protocol"))

    @classmethod
    def of(cls, feature_set: FeatureSet, split: str, protocol: str) -> Source:
        """What there is to say of a split before anybody predicts."""
        manifest = feature_set.manifest
        place, known = str(feature_set.folder), leak(manifest, protocol)
        return cls(split, manifest.genres, place, manifest.fingerprint, protocol, known)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Genre probabilities of the clips of a split."""

    source: Source
    track_ids_N: NDArray[np.int64]
    paths: tuple[str, ...]
    labels_N: NDArray[np.int64]
    probabilities_NG: NDArray[np.float32]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the most probable genre is the true one [shape=(N,)]."""
        right_N: NDArray[np.bool_] = self.probabilities_NG.argmax(1) == self.labels_N
        return right_N

    def score(self) -> Scores:
        """The figures."""
        return score(self.labels_N, self.probabilities_NG, self.source.genres)

    def are_of(self, models: Sequence[Trained]) -> bool:
        """Whether these models, and no others, said it; of one model, as far as it can be seen."""
        members = {member.run_id for member in self.source.members}
        return members == ({model.run.id for model in models} if len(models) > 1 else set())

    def mistakes(self, most: int) -> NDArray[np.int64]:
        """Rows of the most confident mistakes, the worst first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.probabilities_NG[wrong].max(1), kind="stable")][:most]

    def keep(self, run: Run) -> None:
        """Keep them with a run, in place of earlier ones of the split."""
        table = pa.table(
            {
                "track_id": pa.array(self.track_ids_N, pa.int64()),
                "path": pa.array(self.paths, pa.string()),
                "label": pa.array(self.labels_N, pa.int64()),
                "probabilities": pa.array(list(self.probabilities_NG), pa.list_(pa.float32())),
            }
        )
        facts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in asdict(self.source).items()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, _file(self.source.split))
            pq.write_table(table.replace_schema_metadata(facts), file)
            run.file(file)

    @classmethod
    def kept(cls, run: Run, split: str) -> Predictions | None:
        """What a run keeps of a split; None if nothing."""
        with tempfile.TemporaryDirectory() as folder:
            file = run.fetch(_file(split), Path(folder))
            if file is None:
                return None
            table = pq.read_table(file)
        facts = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        source = Source(
            facts["split"],
            tuple(json.loads(facts["genres"])),
            facts["features"],
            facts["fingerprint"],
            facts["protocol"],
            facts["leak"],
            json.loads(facts["looks"]),
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


def read_models(run: Run) -> list[Trained]:
    """The models of a run: its own, or, of a parent of seeds or folds, those of its finished runs.

    Raises
    ------
    InputError
        The run kept no checkpoint, or fewer than two of a parent's runs are finished.
    """
    runs = [run]
    if run.record().tags.get(STEP_TAG) in PARENTS:
        runs = [child for child in run.children() if child.record().status == "FINISHED"]
        if len(runs) < 2:
            raise InputError(f"run {run.id}: {len(runs)} of its runs finished, two are needed; train on, see «mgc ui»")
    return read_each(runs)


def read_each(runs: Sequence[Run]) -> list[Trained]:
    """The model of each of some runs.

    Raises
    ------
    InputError
        A run kept no checkpoint.
    """
    with tempfile.TemporaryDirectory() as folder:
        return [Trained(each, *checkpoint.read(each.checkpoint(Path(folder, each.id)))) for each in runs]


@contextmanager
def looking(run: Run, source: Source) -> Iterator[tuple[int, Run | None]]:
    """Count a look at a test split, from before anything is seen: how many there are, and the run that bears witness.

    Other splits may be looked at: 0 and no witness.
    """
    if source.split != "test":
        yield 0, None
        return
    tags = {FINGERPRINT_TAG: source.fingerprint, PROTOCOL_TAG: source.protocol}
    witness = Run.start(
        run.uri,
        EVALUATIONS_EXPERIMENT,
        name=f"{run.record().name} on {source.split}",
        step="evaluate",
        config={"run": run.id, "features": source.features, "protocol": source.protocol},
        tags={**tags, EVALUATED_TAG: run.id},
    )
    with witness.closing():
        looks = len(search(run.uri, EVALUATIONS_EXPERIMENT, tags, deleted=True))
        say(f"evaluate: look {looks} at the test split of {source.features}")
        yield looks, witness


def judge(models: Sequence[Trained], clips: Clips, source: Source) -> list[Predictions]:
    """What each model says of clips."""
    return [
        Predictions(
            source, clips.track_ids_N, clips.paths, clips.labels_N, predict_probabilities(each.model, clips.mel_NFT)
        )
        for each in models
    ]


def ensemble(models: Sequence[Trained], each: Sequence[Predictions]) -> Predictions:
    """What models say together: the mean of the probabilities that each gives the same clips; of one model, its own."""
    mean_NG = np.stack([one.probabilities_NG for one in each]).mean(axis=0, dtype=np.float64).astype(np.float32)
    return _with_members(replace(each[0], probabilities_NG=mean_NG), models, each)


def on_validation(models: Sequence[Trained], feature_set: FeatureSet) -> tuple[list[Predictions], Predictions]:
    """What models say of their validation clips: each of its own, and together, fold behind fold.

    Those of one fold, which differ by their seed, are an ensemble; no clip is judged by a model that has learnt it.

    Raises
    ------
    InputError
        The feature set cannot be read.
    """
    source = Source.of(feature_set, "validation", models[0].card.config.split)
    each: dict[str, Predictions] = {}
    ordered, parts = sorted(models, key=_fold), []
    for _, group in groupby(ordered, key=_fold):
        sharing = list(group)
        data = learning_set(feature_set, sharing[0].card.config, lazily=True)
        said = judge(sharing, data.clips.take(data.validation), source)
        parts.append(ensemble(sharing, said))
        each |= {model.run.id: own for model, own in zip(sharing, said, strict=True)}
    whole = Predictions(
        source,
        np.concatenate([part.track_ids_N for part in parts]),
        tuple(path for part in parts for path in part.paths),
        np.concatenate([part.labels_N for part in parts]),
        np.concatenate([part.probabilities_NG for part in parts]),
    )
    whole = _with_members(whole, ordered, [each[model.run.id] for model in ordered])
    return [each[model.run.id] for model in models], whole


def _with_members(whole: Predictions, models: Sequence[Trained], each: Sequence[Predictions]) -> Predictions:
    if len(models) == 1:
        return whole
    members = tuple(
        Member(one.run.id, one.card.config.seed, one.card.config.fold, float(said.right.mean()))
        for one, said in zip(models, each, strict=True)
    )
    return replace(whole, source=replace(whole.source, members=members))


def _fold(model: Trained) -> int:
    return model.card.config.fold


def _file(split: str) -> str:
    return f"predictions_{split}.parquet"
