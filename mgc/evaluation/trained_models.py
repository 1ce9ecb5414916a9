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
from mgc.core.storage import Folder
from mgc.dataset.batches import batches
from mgc.dataset.protocols import learning_set
from mgc.evaluation.calibration import Calibration
from mgc.evaluation.predictions import Member, Predictions, Source
from mgc.model import checkpoint
from mgc.model.device import best_device, prepare
from mgc.model.inference import batch_size, logits
from mgc.tracking.runs import STEP_TAG, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from mgc.dataset.clips import Clips, ShardedMel
    from mgc.features.feature_set import FeatureSet
    from mgc.model.checkpoint import Card
    from mgc.model.cnn import GenreCNN

PARENTS = ("seeds", "folds")
"""Steps of runs whose models are those of the runs under them."""


@dataclass(frozen=True)
class TrainedModel:
    """A model and the run that trained it."""

    run: Run
    model: GenreCNN
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
            TrainedModel(run, *checkpoint.read(place), Calibration.read(Folder.at(place)))
            for run, place in zip(runs, places, strict=True)
        ]


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
    return [
        Predictions(
            source, clips.track_ids_N, clips.paths, clips.labels_N, _probabilities(each.model, clips.mel_NFT, device)
        )
        for each in models
    ]


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
    ordered, parts = sorted(models, key=_fold), []
    for _, group in groupby(ordered, key=_fold):
        members = list(group)
        data = learning_set(feature_set, members[0].card.config, lazily=True)
        each = predict_clips(members, data.clips.take(data.validation), source)
        parts.append(ensemble(members, each))
        own |= {member.run.id: its for member, its in zip(members, each, strict=True)}
    whole = Predictions(
        source,
        np.concatenate([part.track_ids_N for part in parts]),
        tuple(path for part in parts for path in part.paths),
        np.concatenate([part.labels_N for part in parts]),
        np.concatenate([part.probabilities_NG for part in parts]),
    )
    whole = _with_members(whole, ordered, [own[model.run.id] for model in ordered])
    return [own[model.run.id] for model in models], whole


def _probabilities(
    model: nn.Module, mel_NFT: NDArray[np.float16] | ShardedMel, device: torch.device
) -> NDArray[np.float32]:
    """Genre probabilities [shape=(N, G)], computed on a device; the model goes back to the CPU."""
    parts = batches(np.arange(len(mel_NFT)), batch_size(device))
    model.to(device)
    try:
        computed = [
            each.softmax(1).cpu() for each in logits(model, (torch.from_numpy(mel_NFT[part]) for part in parts))
        ]
    finally:
        model.cpu()
    return torch.cat(computed).numpy()


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
