"""Train one model, or one a seed and a fold, and keep every run.

    python -m mgc.train --features FEATURES --preset regularized --seeds 5

A training that was killed goes on when the same command is given again: MLflow knows its run by a key of all that
decides it, and the run's folder has its state.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from mgc.config import member_name
from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.core.storage import Folder
from mgc.dataset.protocols import LEAKY, learning_set
from mgc.evaluation.metrics import wilson
from mgc.model import checkpoint
from mgc.tracking import store
from mgc.tracking.runs import EXPERIMENT, PLACE_TAG, Run
from mgc.training.loop import is_kept
from mgc.training.placement import FeedName, Place, choose_feed
from mgc.training.run_logging import Watch, describe, keep, open_for_learning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgc.config import TrainConfig
    from mgc.dataset.clips import Clips
    from mgc.features.feature_set import FeatureSet


def train(
    features: str | Path,
    config: TrainConfig,
    *,
    seeds: int = 1,
    gpus: int | None = None,
    workers: int = 1,
    feed: FeedName | None = None,
    graphs: bool = False,
    deterministic: bool = False,
    run_name: str | None = None,
    allow_leaks: bool = False,
) -> dict[str, Any]:
    """Fit the CNN on a feature set's training split.

    Parameters
    ----------
    features
        A finished feature set.
    config
        The whole run: see ``mgc.config``. With ``folds``, and no single ``fold``, a model a fold is trained.
    seeds
        Models to train that differ by their seed alone: ``config.seed`` and those after it.
    gpus
        None takes one if there is one, 0 takes none; 2 or more train through Ray Train, a worker a GPU.
    workers
        2 or more train through Ray Train on CPUs, sharing each batch.
    feed
        Keep the clips on the GPU, in memory, or in their shards; by default as they fit.
    graphs
        On one GPU: record a training step and launch it as one.
    deterministic
        On a GPU: the same figures each time, in more time.
    allow_leaks
        Train on a set with artists in more than one split; the run is tagged ``mgc.leaky``.

    Returns
    -------
    dict
        Of one model: ``run_id``, ``epochs``, ``best_epoch`` (the kept one), ``train_accuracy`` and ``val_accuracy`` (of
        the kept model, in evaluation mode), ``val_loss``, ``val_clips``, ``seconds`` (in epochs), ``checkpoint`` (its
        folder). Of several: ``run_id`` (the parent's), ``members`` (as of one), ``train_accuracy`` and ``val_accuracy``
        (means), ``val_accuracy_sd`` (over models), ``val_clips`` (different ones), ``val_ci95`` (Wilson).

    Raises
    ------
    InputError
        The set is unfinished or leaks, there are fewer GPUs than asked for, or the same training is running now.
    RunError
        Training failed; the run is kept as failed.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: must be at least 1")
    feature_set = open_for_learning(features, allow_leaks=allow_leaks)
    place = Place.choose(gpus, workers)
    chosen, lazily = choose_feed(feed, feature_set, config, place)
    place = replace(place, feed=chosen, graphs=graphs, deterministic=deterministic)
    clips = learning_set(feature_set, config, lazily=lazily).clips
    job = _Job(feature_set, clips, place, store.open_store(feature_set.folder))
    if config.split == "random":
        say(f"train: {LEAKY}")
    if seeds == 1 and (config.fold or not config.folds):
        return job.train(config, run_name, None)
    return _several(job, config, seeds, run_name)


def summary(result: dict[str, Any]) -> str:
    """What a training came to, for a terminal: the model, or a line a model and what they are together."""

    def line(name: str, figures: dict[str, Any]) -> str:
        train, val = figures["train_accuracy"], figures["val_accuracy"]
        return f"{name:<34}{train:>9.3f}{val:>12.3f}{train - val:>7.3f}"

    head = f"{'run':<34}{'training':>9}{'validation':>12}{'gap':>7}"
    if "members" not in result:
        return "\n".join([head, line(result["run_id"], result), f"checkpoint: {result['checkpoint']}"])
    low, high = result["val_ci95"]
    return "\n".join(
        [
            head,
            *(line(member["run_id"], member) for member in result["members"]),
            line("mean", result),
            f"validation {result['val_accuracy']:.3f} ± {result['val_accuracy_sd']:.3f} "
            f"(sd of {len(result['members'])} models); 95 % interval {low:.3f} to {high:.3f} "
            f"for {result['val_clips']} clips; run {result['run_id']}",
        ]
    )


def _several(job: _Job, config: TrainConfig, seeds: int, run_name: str | None) -> dict[str, Any]:
    """Train the members of a parent run, and say what they come to together."""
    folds = [config.fold] if config.fold or not config.folds else list(range(1, config.folds + 1))
    configs = [replace(config, seed=config.seed + seed, fold=fold) for fold in folds for seed in range(seeds)]
    step = "folds" if len(folds) > 1 else "seeds"
    with job.run(config, run_name, None, step=step, seeds=seeds) as (parent, _):
        members = []
        for number, each in enumerate(configs, 1):
            name = member_name(each.seed, each.fold)
            say(f"train: {name} ({number} of {len(configs)})")
            members.append(job.train(each, name, parent.id))
        result = _together(members, seeds)
        parent.metrics({name: value for name, value in result.items() if not isinstance(value, tuple)})
    return {"run_id": parent.id, **result, "members": members}


def _together(members: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Mean and spread over models, and the interval of the accuracy if all clips were one set, each validated once."""
    accuracies = [member["val_accuracy"] for member in members]
    clips = sum(member["val_clips"] for member in members) // seeds
    right = sum(member["val_clips"] * member["val_accuracy"] for member in members) / seeds
    return {
        "train_accuracy": mean(member["train_accuracy"] for member in members),
        "val_accuracy": right / clips,
        "val_accuracy_sd": stdev(accuracies),
        "val_clips": clips,
        "val_ci95": wilson(round(right), clips),
    }


@dataclass(frozen=True)
class _Job:
    """What the models of one command share."""

    feature_set: FeatureSet
    clips: Clips
    place: Place
    uri: str

    def train(self, config: TrainConfig, name: str | None, parent: str | None) -> dict[str, Any]:
        """Train one model in its own MLflow run; of a parent's, one that is done is not trained again."""
        done = Run.finished(self.uri, EXPERIMENT, self._key(config, name, parent)) if parent else None
        if done and is_kept(self._folder(done)):
            return _result(done, self._folder(done))
        data = learning_set(self.feature_set, config, clips=self.clips)
        with self.run(config, name, parent, step="train") as (run, folder):
            clips = f"{len(data.training)} clips, {len(data.validation)} for validation"
            say(f"train: {clips}, on {self.place}; run {run.id}")
            keep(run, self.place.fit(config, data, folder, Watch(run, "train", config.epochs)), data)
        return _result(run, folder)

    @contextmanager
    def run(
        self, config: TrainConfig, name: str | None, parent: str | None, *, step: str, **settings: int
    ) -> Iterator[tuple[Run, Path]]:
        """The run, and its folder, that the same command began and could not end; if there is none, a new one."""
        key = self._key(config, name, parent, **settings)
        run, resumed = Run.resume_or_start(
            self.uri,
            EXPERIMENT,
            key,
            name=name,
            step=step,
            config={**config.to_dict(), **settings},
            tags={PLACE_TAG: str(self.place)},
            parent=parent,
            resumable=lambda run: self._folder(run).is_dir(),
        )
        if resumed:
            say(f"train: goes on with the interrupted run {run.id}")
        self._folder(run).mkdir(parents=True, exist_ok=True)
        held = Folder.at(self._folder(run)).claim("train: this very training is running,", "then see «mgc ui»")
        with held, run.closing():
            describe(run, self.feature_set, config)
            yield run, self._folder(run)

    def _folder(self, run: Run) -> Path:
        return store.home(self.feature_set.folder) / "checkpoints" / run.id

    def _key(self, config: TrainConfig, name: str | None, parent: str | None, **settings: int) -> str:
        """What the same command has in common with itself."""
        facts = [config.to_dict(), name, parent, settings, self.feature_set.manifest.fingerprint, str(self.place)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _result(run: Run, folder: Path) -> dict[str, Any]:
    return {"run_id": run.id, **checkpoint.read(folder)[1].figures, "checkpoint": str(folder)}
