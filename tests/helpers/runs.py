"""Runs made by hand, in a second: what ``mgc train`` leaves of one, without the training."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from mgc.config import ModelConfig, TrainConfig
from mgc.evaluation import figures as pictures
from mgc.evaluation import run_page
from mgc.features.feature_set import FeatureSet
from mgc.model import checkpoint
from mgc.model.cnn import GenreCNN
from mgc.pages.html import Page
from mgc.tracking import runs as tracking
from mgc.tracking import store

CONFIG = TrainConfig(model=ModelConfig(channels=(4, 8), head="avgmax"), epochs=3)


def trained(features, *, name="a run", step="train", parent=None, status="FINISHED", **changes) -> tracking.Run:
    """A run of the session's store, with curves and the checkpoint of a model with the weights that its seed draws."""
    config, manifest = replace(CONFIG, **changes), features.manifest
    uri = store.open_store(features.folder)
    run = tracking.Run.start(uri, "mgc", name=name, step=step, config=config.to_dict(), parent=parent)
    run.features(features.folder, manifest.fingerprint, "training")
    for epoch in (1, 2, 3):
        figures = {
            "epoch/train_loss": 2 / epoch,
            "epoch/val_loss": 2.5 / epoch,
            "epoch/train_accuracy": 0.3,
            "epoch/val_accuracy": 0.1 * epoch,
        }
        run.metrics(figures, epoch=epoch)
    torch.manual_seed(config.seed)
    model = GenreCNN(config.model, len(manifest.genres), manifest.spec.shape)
    figures = {"best_epoch": 3, "train_accuracy": 0.3, "val_accuracy": 0.3, "val_loss": 0.8}
    card = checkpoint.Card(config, manifest.genres, manifest.spec, manifest.fingerprint, figures)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write(Path(folder), model.state_dict(), card)
        for file in (checkpoint.WEIGHTS, checkpoint.CARD):
            run.file(Path(folder, file), tracking.CHECKPOINT)
    run.finish(status)
    return run


def parent_of(features, *, step="seeds", name="several", **each: list) -> tuple[tracking.Run, list[tracking.Run]]:
    """A parent run and a run under it for each value: ``seed=[0, 1, 2]``."""
    uri = store.open_store(features.folder)
    parent = tracking.Run.start(uri, "mgc", name=name, step=step, config=CONFIG.to_dict())
    parent.features(features.folder, features.manifest.fingerprint, "training")
    keys, values = each.keys(), zip(*each.values(), strict=True)
    children = [trained(features, parent=parent.id, **dict(zip(keys, value, strict=True))) for value in values]
    parent.finish("FINISHED")
    return parent, children


def other_fingerprint(features, path: Path, digit: str):
    """A copy of a feature set under another fingerprint."""
    shutil.copytree(features.folder.path, path)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(features.manifest.fingerprint, digit * 64))
    return FeatureSet.open(path)


def draw_nothing(monkeypatch) -> None:
    """Evaluate without pictures and page, which take longer than all else."""
    for name in ("confusion_matrix", "reliability"):
        monkeypatch.setattr(pictures, name, lambda scores, split: Figure(figsize=(1, 1)))
    monkeypatch.setattr(pictures, "risk_coverage", lambda *known: Figure(figsize=(1, 1)))
    monkeypatch.setattr(run_page, "make", lambda run, **known: Page(run.id, None, "", None))
