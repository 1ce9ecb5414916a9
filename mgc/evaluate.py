"""Evaluate a run's model on a split: the figures, their uncertainty, and the pictures, kept with the run."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mgc import checkpoint, report, tracking
from mgc.errors import InputError
from mgc.features import FeatureSet, Split
from mgc.metrics import Scores, score
from mgc.model import GenreCNN, predict_logits


def evaluate(run_id: str, features: str | Path, *, split: str = "test") -> dict[str, Any]:
    """Score the checkpoint of an MLflow run on one split of a feature set.

    Parameters
    ----------
    run_id
        A training run or a trial of the store.
    features
        A finished feature set of the same genres and log-Mel recipe; not necessarily the one trained on.

    Returns
    -------
    dict
        ``run_id``, ``split``, ``n``, ``accuracy``, ``ci95`` (Wilson), ``macro_f1``, ``per_genre``, ``confusion``
        (row = true, column = predicted, in the order of ``per_genre``), ``report`` (where the page is).

    Raises
    ------
    InputError
        No such run, or run and feature set do not go together.
    """
    feature_set = FeatureSet.open(features)
    run = tracking.Run.find(tracking.existing_store(feature_set.folder), run_id)
    with tempfile.TemporaryDirectory() as folder:
        model, card = checkpoint.read(run.checkpoint(Path(folder)))
    manifest = feature_set.manifest
    if (card.genres, card.spec) != (manifest.genres, manifest.spec):
        raise InputError(
            f"--features {feature_set.folder}: other genres or another log-Mel recipe than run {run_id} was trained on"
        )
    clips = feature_set.load(split)
    scores = score_model(model, clips, card.genres)

    low, high = scores.ci95
    leaky = " LEAKY: artists are in more than one split." if manifest.artist_leaks else ""
    claim = (
        f"{scores.accuracy:.1%} of {scores.n} {split} clips right (95 % interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {scores.macro_f1:.3f}.{leaky}"
    )
    facts = {
        "run": run_id,
        "features": f"{feature_set.folder} ({manifest.fingerprint[:12]}…)",
        "trained on the same features": "yes" if card.fingerprint == manifest.fingerprint else "no",
        **card.figures,
        **tracking.flatten(card.config.to_dict()),
    }
    confusion = report.confusion_matrix(scores, split)
    samples = report.spectrograms(clips, card.genres, card.spec)
    page = report.page(f"mgc: {split} split", claim, scores, facts, {"Confusion": confusion, "Spectrograms": samples})
    run.metrics({f"{split}_accuracy": scores.accuracy, f"{split}_ci95_low": low, f"{split}_ci95_high": high})
    run.metrics({f"{split}_macro_f1": scores.macro_f1, f"{split}_clips": scores.n})
    run.figure(confusion, f"pictures/confusion_{split}.png")
    run.text(page, f"report_{split}.html")
    return {"run_id": run_id, "split": split, **asdict(scores), "report": run.artifact_uri(f"report_{split}.html")}


def score_model(model: GenreCNN, clips: Split, genres: tuple[str, ...]) -> Scores:
    """Score a model on clips in memory."""
    predicted = predict_logits(model, torch.from_numpy(clips.mel_NFT)).argmax(1).numpy()
    return score(clips.labels_N, predicted, genres)
