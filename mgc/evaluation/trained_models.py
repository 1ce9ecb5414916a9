"""The models of a run: read from its checkpoint, or its children's, and run on clips, each alone or as an ensemble.

Shape suffixes: N clips, F mel bands, T frames, G genres.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mgc.core.errors import InputError
from mgc.core.progress import Progress
from mgc.core.storage import Folder
from mgc.dataset.batches import batches
from mgc.dataset.embeddings import encode
from mgc.dataset.protocols import learning_set
from mgc.evaluation.calibration import NONE, Calibration
from mgc.evaluation.predictions import Member, Predictions, Source
from mgc.model import checkpoint
from mgc.model.device import best_device, prepare
from mgc.model.inference import batch_size, logits
from mgc.model.pretrained import Pretrained
from mgc.tracking.runs import STEP_TAG, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from mgc.dataset.clips import Clips, ShardedMel
    from mgc.features.feature_set import FeatureSet
    from mgc.model.checkpoint import Card
    from mgc.model.genre_network import GenreNetwork

TOGETHER = 64
"""Clips that an encoder is given at a time."""
PARENTS = ("seeds", "folds")
"""Steps of runs whose models are those of the runs under them."""


@dataclass(frozen=True)
class TrainedModel:
    """A model and the run that trained it."""

    run: Run
    model: GenreNetwork
    """On the CPU, in evaluation mode."""
    card: Card
    calibration: Calibration | None
    """None of a model that was trained before there was one, and of a trial that was not retrained."""


def read_models(run: Run) -> list[TrainedModel]:
    """Read the models of a run.

    Parameters
    ----------
    run
        A run with a checkpoint, or a parent of seeds or folds.

    Returns
    -------
    list of TrainedModel
        The run's own model, or those of the parent's finished runs.

    Raises
    ------
    InputError
        The run kept no checkpoint, or fewer than two of the parent's runs are finished.
    """
    runs = [run]
    if run.record().tags.get(STEP_TAG) in PARENTS:
        runs = [child for child in run.children() if child.record().status == "FINISHED"]
        if len(runs) < 2:
            raise InputError(f"run {run.id}: {len(runs)} of its runs finished, two are needed; train on, see «mgc ui»")
    return read_each(runs)


def read_each(runs: Sequence[Run]) -> list[TrainedModel]:
    """Read the model of each of some runs.

    Raises
    ------
    InputError
        A run kept no checkpoint.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [each.checkpoint(Path(folder, each.id)) for each in runs]
        return [
            TrainedModel(run, *checkpoint.read(place), Calibration.read(Folder.at(place), f"run {run.id}: checkpoint"))
            for run, place in zip(runs, places, strict=True)
        ]


def check(models: Sequence[TrainedModel], feature_set: FeatureSet, run_id: str, split: str) -> None:
    """Refuse a feature set or a split that does not go with some models.

    Parameters
    ----------
    models
        The models of a run.
    feature_set
        Whose clips are to be predicted.
    run_id
        The run, for the message.
    split
        ``training``, ``validation`` or ``test``.

    Raises
    ------
    InputError
        Genres or log-Mel recipe differ, a split of folds or of chance is of another feature set, or the training split
        is asked for of folds.
    """
    manifest = feature_set.manifest
    features = f"`features={feature_set.folder}`"
    for model in models:
        if (model.card.genres, model.card.spec) != (manifest.genres, manifest.spec):
            raise InputError(
                f"{features}: other genres or another log-Mel recipe than run {run_id} was trained on; "
                "take the feature set of its training"
            )
        if model.card.config.split == "random" and model.card.fingerprint != manifest.fingerprint:
            raise InputError(f"{features}: run {run_id} drew its split at random from another feature set; take that")
        if split == "training" and model.card.config.fold:
            raise InputError(
                f"`split=training`: run {run_id} is of folds, each with its own training clips; take another split"
            )
        if split == "validation" and model.card.config.fold and model.card.fingerprint != manifest.fingerprint:
            raise InputError(f"{features}: the folds of run {run_id} are of another feature set; take that")


def predict_clips(models: Sequence[TrainedModel], clips: Clips, source: Source) -> list[Predictions]:
    """Predict the genres of clips with each of some models, on the GPU if there is one.

    Parameters
    ----------
    models
        The models.
    clips
        The clips, in memory or in their shards.
    source
        What the clips are.

    Returns
    -------
    list of Predictions
        Those of each model, in the order of ``models``.
    """
    device = best_device()
    prepare(device)
    known = source, clips.track_ids_N, clips.paths, clips.labels_N
    vectors: dict[str, NDArray[np.float16]] = {}  # of a frozen encoder, which is the same in all models
    found = []
    for each in models:
        model: nn.Module = each.model
        mel_NFT: NDArray[np.float16] | ShardedMel = clips.mel_NFT
        if isinstance(model, Pretrained) and each.card.config.frozen:
            name = each.card.config.model.encoder
            if name not in vectors:
                vectors[name] = _encoded(model, mel_NFT, device)
            model, mel_NFT = model.classifier, vectors[name]
        found.append(Predictions(*known, _probabilities(model, mel_NFT, device)))
    return found


def ensemble(models: Sequence[TrainedModel], each: Sequence[Predictions]) -> Predictions:
    """Combine predictions of several models on the same clips: the mean of their probabilities.

    Parameters
    ----------
    models
        The models.
    each
        Their predictions, in the same order.

    Returns
    -------
    Predictions
        With the models as members; those of a single model as they are.
    """
    mean_NG = np.stack([one.probabilities_NG for one in each]).mean(axis=0, dtype=np.float64).astype(np.float32)
    return _with_members(replace(each[0], probabilities_NG=mean_NG), models, each)


def predict_validation(
    models: Sequence[TrainedModel], feature_set: FeatureSet
) -> tuple[list[Predictions], Predictions]:
    """Predict the validation clips of models: of folds, each clip with the models that were not trained on it.

    Models of one fold, which differ by their seed, are an ensemble.

    Parameters
    ----------
    models
        The models of a run.
    feature_set
        The feature set that they were trained on.

    Returns
    -------
    tuple of list of Predictions and Predictions
        Those of each model on its own validation clips, in the order of ``models``; and those of all together, the
        folds one after another.

    Raises
    ------
    InputError
        The feature set cannot be read.
    """
    source = Source.of(feature_set, "validation", models[0].card.config.split)
    own: dict[str, Predictions] = {}
    for _, group in groupby(sorted(models, key=_fold), key=_fold):
        members = list(group)
        data = learning_set(feature_set, members[0].card.config, lazily=True)
        each = predict_clips(members, data.clips.take(data.validation), source)
        own |= {member.run.id: its for member, its in zip(members, each, strict=True)}
    return [own[model.run.id] for model in models], _by_fold(models, own)


def kept_validation(models: Sequence[TrainedModel]) -> Predictions | None:
    """Put together the predictions of validation clips that the runs of some models keep.

    As ``predict_validation``, without predicting: the seeds of a fold are an ensemble, folds follow one another.

    Parameters
    ----------
    models
        The models of a run.

    Returns
    -------
    Predictions or None
        None where a run keeps none, or those of another feature set than it was trained on.

    Raises
    ------
    InputError
        Predictions that a run keeps are damaged.
    """
    own: dict[str, Predictions] = {}
    for model in models:
        kept = Predictions.kept(model.run, "validation")
        if kept is None or kept.source.fingerprint != model.card.fingerprint:
            return None
        own[model.run.id] = kept
    return _by_fold(models, own)


def calibration_of(models: Sequence[TrainedModel]) -> Calibration:
    """Calibrate some models as one, by the validation predictions that their runs keep; one has its own calibration.

    Models of one fold, which differ by their seed, are calibrated as the ensemble that they are. Those of several folds
    have no clips that none of them was trained on: each clip counts with the models of its own fold, which are fewer
    than all and a little less right, so that their calibration errs on the careful side.

    Parameters
    ----------
    models
        The models of a run.

    Returns
    -------
    Calibration
        ``NONE`` where a run keeps no validation predictions of the feature set that it was trained on.

    Raises
    ------
    InputError
        Predictions that a run keeps are damaged.
    """
    if len(models) == 1 and models[0].calibration:
        return models[0].calibration
    kept = kept_validation(models)
    return Calibration.fit(kept.labels_N, kept.probabilities_NG) if kept else NONE


def _probabilities(
    model: nn.Module, mel_NFT: NDArray[np.float16] | ShardedMel, device: torch.device
) -> NDArray[np.float32]:
    """Genre probabilities [shape=(N, G)], computed on a device; the model goes back to the CPU."""
    parts = batches(np.arange(len(mel_NFT)), batch_size(device))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        computed = [
            each.softmax(1).cpu() for each in logits(model, (torch.from_numpy(mel_NFT[part]) for part in parts))
        ]
    finally:
        model.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return torch.cat(computed).numpy()


def _encoded(model: Pretrained, mel_NFT: NDArray[np.float16] | ShardedMel, device: torch.device) -> NDArray[np.float16]:
    """What the encoder of a model makes of clips [shape=(N, D, K)]; the model goes back to the CPU."""
    parts = batches(np.arange(len(mel_NFT)), TOGETHER)
    progress = Progress("evaluate", len(mel_NFT), "clips")
    model.encoder.to(device)
    computed = []
    for part in parts:
        computed.append(encode(model.encoder, model.window, mel_NFT[part], device))
        progress.advance(len(part))
    model.encoder.to("cpu")
    return np.concatenate(computed)


def _by_fold(models: Sequence[TrainedModel], own: dict[str, Predictions]) -> Predictions:
    """The predictions of each model on its own validation clips, by run, as one: folds one after another."""
    ordered = sorted(models, key=_fold)
    groups = [list(group) for _, group in groupby(ordered, key=_fold)]
    parts = [ensemble(group, [own[model.run.id] for model in group]) for group in groups]
    whole = Predictions(
        replace(parts[0].source, members=()),
        np.concatenate([part.track_ids_N for part in parts]),
        tuple(path for part in parts for path in part.paths),
        np.concatenate([part.labels_N for part in parts]),
        np.concatenate([part.probabilities_NG for part in parts]),
    )
    return _with_members(whole, ordered, [own[model.run.id] for model in ordered])


def _with_members(whole: Predictions, models: Sequence[TrainedModel], each: Sequence[Predictions]) -> Predictions:
    if len(models) == 1:
        return whole
    members = tuple(
        Member(one.run.id, one.card.config.seed, one.card.config.fold, float(its.right.mean()))
        for one, its in zip(models, each, strict=True)
    )
    return replace(whole, source=replace(whole.source, members=members))


def _fold(model: TrainedModel) -> int:
    return model.card.config.fold
