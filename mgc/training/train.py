"""Train one model, or one for each seed and fold, and log every run to MLflow.

    python -m mgc.train --features FEATURES --preset regularized --seeds 5

A training that was killed is resumed by the same command: MLflow knows its run by a key of all that decides it, and the
run's folder has its state.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mgc.config import DEFAULT_PRESET, PRESETS, member_name
from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.core.results import Result
from mgc.core.storage import Folder
from mgc.dataset.protocols import LEAKY, learning_set
from mgc.evaluation.metrics import wilson
from mgc.features.feature_set import FeatureSet
from mgc.model import checkpoint
from mgc.tracking import store
from mgc.tracking.runs import EXPERIMENT, PLACE_TAG, STORAGE_TAG, Run
from mgc.training.hardware import load_clips
from mgc.training.loop import is_kept
from mgc.training.placement import Place
from mgc.training.run_logging import EpochLogger, describe, keep, open_for_learning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgc.config import TrainConfig
    from mgc.dataset.protocols import LearningSet
    from mgc.training.hardware import FeedName

CHECKPOINTS = "checkpoints"
"""Folder of the storage that has a folder for each run."""
_HEAD = f"{'run':<34}{'training':>9}{'validation':>12}{'gap':>7}"


@dataclass(frozen=True)
class TrainedRun(Result):
    """One trained model and its MLflow run; accuracies and loss are of the kept model, in evaluation mode."""

    run_id: str
    """Id of the MLflow run."""
    epochs: int
    """Epochs that were trained."""
    best_epoch: int
    """The epoch that was kept."""
    train_accuracy: float
    """On the training clips."""
    val_accuracy: float
    """On the validation clips."""
    val_loss: float
    """Mean cross-entropy of the validation clips."""
    val_clips: int
    """Number of validation clips."""
    seconds: float
    """Time in epochs."""
    checkpoint: Folder
    """Folder of the kept model; as text its path or URI."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds: what the command prints with ``--json``."""
        return super().to_dict() | {"checkpoint": str(self.checkpoint)}

    def __str__(self) -> str:
        return f"{_HEAD}\n{_line(self.run_id, self)}\ncheckpoint: {self.checkpoint}"


@dataclass(frozen=True)
class TrainedRuns(Result):
    """Models that differ by seed or fold, and the MLflow run above theirs."""

    run_id: str
    """Id of the parent run."""
    train_accuracy: float
    """Mean over the models."""
    val_accuracy: float
    """Mean over the models; of folds, share of all clips."""
    val_accuracy_sd: float
    """Standard deviation over the models."""
    val_clips: int
    """Different validation clips."""
    val_ci95: tuple[float, float]
    """Wilson's 95 % interval of ``val_accuracy``, as if all clips were one set and each validated once."""
    members: tuple[TrainedRun, ...]
    """The models."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds: what the command prints with ``--json``."""
        return super().to_dict() | {"members": [member.to_dict() for member in self.members]}

    def __str__(self) -> str:
        low, high = self.val_ci95
        return "\n".join(
            [
                _HEAD,
                *(_line(member.run_id, member) for member in self.members),
                _line("mean", self),
                f"validation {self.val_accuracy:.3f} ± {self.val_accuracy_sd:.3f} (sd of {len(self.members)} models); "
                f"95 % interval {low:.3f} to {high:.3f} for {self.val_clips} clips; run {self.run_id}",
            ]
        )


def train(
    features: str | Path | FeatureSet,
    config: TrainConfig = PRESETS[DEFAULT_PRESET],
    *,
    seeds: int = 1,
    gpus: int | None = None,
    workers: int = 1,
    min_workers: int | None = None,
    storage: str | Path | None = None,
    wait: float = 15.0,
    feed: FeedName | None = None,
    graphs: bool = False,
    deterministic: bool = False,
    run_name: str | None = None,
    allow_leaks: bool = False,
    teacher_features: str | Path | FeatureSet | None = None,
) -> TrainedRun | TrainedRuns:
    """Train the CNN on a feature set.

    Parameters
    ----------
    features
        A finished feature set, or where it is.
    config
        Network, augmentations, optimiser and protocol: see ``mgc.config``. With ``folds``, and no single ``fold``, a
        model is trained for each fold.
    seeds
        Number of models that differ by their seed alone: ``config.seed`` and those after it.
    gpus
        None takes one GPU if there is one, 0 none; 2 or more train through Ray Train, a worker a GPU.
    workers
        2 or more train through Ray Train on CPUs, sharing each batch.
    min_workers
        With how many workers or GPUs Ray Train goes on where nodes were lost; all by default.
    storage
        Path or URI of the folder for states and checkpoints, which all workers must see; ``MGC_STORAGE`` by default, or
        the folder of the default MLflow store.
    wait
        Minutes to wait for the CPUs and GPUs of a cluster.
    feed
        Where clips live: on the GPU (``device``), in ``memory``, or in their shards (``stream``); None decides by the
        free memory.
    graphs
        On one GPU: record the training step as a CUDA graph.
    deterministic
        On a GPU: the same figures each time, in more time.
    run_name
        Name of the MLflow run; part of what an interrupted one is known by.
    allow_leaks
        Train on a set with artists in more than one split; the run is tagged ``mgc.leaky``.
    teacher_features
        Where ``config.optim.teacher`` names an encoder: a finished feature set of the same clips that it listens to.

    Returns
    -------
    TrainedRun or TrainedRuns
        Of one model, or of several seeds or folds. Printed, it is a table.

    Raises
    ------
    InputError
        The set is unfinished or leaks, there are fewer GPUs than asked for, a node does not see the storage, or the
        same training is running now.
    RunError
        Training failed; the run is kept as failed.

    Examples
    --------
    >>> run = train("features", PRESETS["regularized"])  # doctest: +SKIP
    >>> run.val_accuracy  # doctest: +SKIP
    0.533
    """
    if seeds < 1:
        raise InputError(f"`seeds={seeds}`: must be at least 1")
    feature_set = open_for_learning(features, allow_leaks=allow_leaks)
    place = Place.choose(gpus, workers, min_workers, wait)
    home = store.storage(storage, feature_set.folder)
    place.prepare(home)
    store.made(home, CHECKPOINTS)
    taught = None if teacher_features is None else FeatureSet.open(teacher_features)
    chosen, clips = load_clips(
        feature_set, config, home, feed, gpu=place.gpu, on_ray=place.on_ray, teacher_features=taught
    )
    place = replace(place, feed=chosen, graphs=graphs, deterministic=deterministic)
    folds = [config.fold] if config.fold or not config.folds else list(range(1, config.folds + 1))
    data = {fold: learning_set(feature_set, replace(config, fold=fold), clips=clips) for fold in folds}
    job = _Job(feature_set, data, place, store.open_store(feature_set.folder), home)
    for sentence in (f"{f'fold {fold}: ' * bool(fold)}{gap}" for fold, each in data.items() for gap in each.gaps):
        say(f"train: {sentence}")
    if config.split == "random":
        say(f"train: {LEAKY}")
    if seeds == 1 and len(folds) == 1:
        return job.train(config, run_name, None)
    return _train_several(job, config, seeds, run_name)


def _train_several(job: _Job, config: TrainConfig, seeds: int, run_name: str | None) -> TrainedRuns:
    """Train the members of a parent run, fold by fold and seed by seed."""
    configs = [replace(config, seed=config.seed + seed, fold=fold) for fold in job.data for seed in range(seeds)]
    step = "folds" if len(job.data) > 1 else "seeds"
    with job.run(config, run_name, None, step=step, seeds=seeds) as (parent, _):
        members = []
        for number, each in enumerate(configs, 1):
            name = member_name(each.seed, each.fold)
            say(f"train: {name} ({number} of {len(configs)})")
            members.append(job.train(each, name, parent.id))
        result = _together(parent.id, tuple(members), seeds)
        names = ("train_accuracy", "val_accuracy", "val_accuracy_sd", "val_clips")
        gap = result.train_accuracy - result.val_accuracy
        parent.metrics({name: getattr(result, name) for name in names} | {"gap": gap})
    return result


def _together(run_id: str, members: tuple[TrainedRun, ...], seeds: int) -> TrainedRuns:
    """Mean and spread over models, and the interval of the accuracy."""
    clips = sum(member.val_clips for member in members) // seeds
    right = sum(member.val_clips * member.val_accuracy for member in members) / seeds
    return TrainedRuns(
        run_id,
        mean(member.train_accuracy for member in members),
        right / clips,
        stdev(member.val_accuracy for member in members),
        clips,
        wilson(round(right), clips),
        members,
    )


@dataclass(frozen=True)
class _Job:
    """What the models of one training share."""

    feature_set: FeatureSet
    data: dict[int, LearningSet]
    """By fold."""
    place: Place
    uri: str
    storage: Folder

    def train(self, config: TrainConfig, name: str | None, parent: str | None) -> TrainedRun:
        """Train one model in an MLflow run of its own; a member that is finished is not trained again."""
        done = Run.finished(self.uri, EXPERIMENT, self._key(config, name, parent)) if parent else None
        if done and is_kept(self._folder(done)):
            return _trained(done, self._folder(done))
        data = self.data[config.fold]
        with self.run(config, name, parent, step="train") as (run, folder):
            clips = f"{len(data.training)} clips, {len(data.validation)} for validation"
            say(f"train: {clips}, {config.track}, on {self.place}; run {run.id}")
            began = time.monotonic()
            fitted = self.place.fit(config, data, folder, EpochLogger(run, "train", config.epochs))
            run.metrics({"nodes": self.place.nodes, "fit_seconds": time.monotonic() - began})
            keep(run, fitted, data)
        return _trained(run, folder)

    @contextmanager
    def run(
        self, config: TrainConfig, name: str | None, parent: str | None, *, step: str, **settings: int
    ) -> Iterator[tuple[Run, Folder]]:
        """The interrupted run of the same training and its folder, or a new one's; claimed, and closed at the end."""
        key, running = self._key(config, name, parent, **settings), "train: this very training is running,"
        checkpoints, way_out = store.made(self.storage / CHECKPOINTS), "then see «mgc ui»"
        with ExitStack() as held:
            # or two that begin at the same moment would make a run each; members begin under the claim of their parent
            with nullcontext() if parent else checkpoints.claim(running, way_out, f".lock-{key[:16]}"):
                run, resumed = Run.resume_or_start(
                    self.uri,
                    EXPERIMENT,
                    key,
                    name=name,
                    step=step,
                    config={**config.to_dict(), **settings},
                    tags={PLACE_TAG: str(self.place)},
                    parent=parent,
                    resumable=self._resumable,
                )
                with nullcontext() if resumed else run.ending():
                    folder = store.made(self._folder(run))
                    held.enter_context(folder.claim(running, way_out))
            if resumed:
                say(f"train: goes on with the interrupted run {run.id}")
            with run.closing():
                run.tag({STORAGE_TAG: str(folder)})
                describe(run, self.feature_set, config)
                yield run, folder

    def _folder(self, run: Run) -> Folder:
        """Where a run's state and checkpoint are: where it says, or, if it was moved, in the storage of now."""
        here, said = self.storage / CHECKPOINTS / run.id, run.record().tags.get(STORAGE_TAG)
        if said and said != str(here) and (there := Folder.at(said)).kind() == "folder":
            return there
        return here

    def _resumable(self, run: Run) -> bool:
        """Whether a run's folder is there; an object store has no empty folders, so there it need not be."""
        folder = self._folder(run)
        return folder.path is None or folder.kind() == "folder"

    def _key(self, config: TrainConfig, name: str | None, parent: str | None, **settings: int) -> str:
        """Hash of all that decides a run."""
        facts = [config.identity(), name, parent, settings, self.feature_set.manifest.fingerprint, str(self.place)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _line(name: str, of: TrainedRun | TrainedRuns) -> str:
    train, val = of.train_accuracy, of.val_accuracy
    return f"{name:<34}{train:>9.3f}{val:>12.3f}{train - val:>7.3f}"


def _trained(run: Run, folder: Folder) -> TrainedRun:
    """The result of a finished run."""
    figures = checkpoint.read_card(folder).figures
    return TrainedRun(
        run.id,
        int(figures["epochs"]),
        int(figures["best_epoch"]),
        figures["train_accuracy"],
        figures["val_accuracy"],
        figures["val_loss"],
        int(figures["val_clips"]),
        figures["seconds"],
        folder,
    )
