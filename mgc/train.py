"""Train one model, on one device in this process or on several through Ray Train, and keep the run.

    python -m mgc.train --features FEATURES --preset regularized

``mgc.fit`` is the loop in both cases; this module chooses where it runs, and sees to it that MLflow has the whole run.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mgc import checkpoint, report, tracking
from mgc.config import TrainConfig
from mgc.console import Progress, say
from mgc.errors import InputError, RunError
from mgc.evaluate import score_model
from mgc.features import FeatureSet, LearningSet
from mgc.fit import Epoch, Fitted, discard_state, fit
from mgc.folder import Folder
from mgc.ray_session import connect, output_folder
from mgc.splits import leak_message


def train(
    features: str | Path,
    config: TrainConfig,
    *,
    gpus: int | None = None,
    workers: int = 1,
    run_name: str | None = None,
    allow_leaks: bool = False,
) -> dict[str, Any]:
    """Fit the CNN on a feature set's training split and keep the best validation epoch.

    Parameters
    ----------
    features
        A finished feature set.
    config
        The whole run: see ``mgc.config``.
    gpus
        None takes one if there is one, 0 takes none; 2 or more train through Ray Train, a worker a GPU.
    workers
        2 or more train through Ray Train on CPUs, sharing each batch.
    allow_leaks
        Train on a set with artists in more than one split; the run is tagged ``mgc.leaky``.

    Returns
    -------
    dict
        ``run_id``, ``epochs``, ``best_epoch``, ``train_accuracy`` and ``val_accuracy`` (of the kept model, in
        evaluation mode), ``seconds`` (in epochs), ``checkpoint`` (its folder).

    Raises
    ------
    InputError
        The set is unfinished or leaks, or there are fewer GPUs than asked for; nothing was written.
    RunError
        Training failed; the run is kept as failed.
    """
    feature_set = open_for_learning(features, allow_leaks=allow_leaks)
    place = _place(gpus, workers)
    data = feature_set.learning_set()
    uri = tracking.open_store(feature_set.folder)
    run = tracking.Run.start(
        uri, tracking.EXPERIMENT, name=run_name, step="train", config=config.to_dict(), tags={"mgc.place": str(place)}
    )
    folder = tracking.home(feature_set.folder) / "checkpoints" / run.id
    with run.closing():
        describe(run, feature_set)
        say(f"train: {len(data.training)} clips, {len(data.validation)} for validation, on {place}; run {run.id}")
        watch = _Watch(run, config.epochs)
        if place.workers > 1:
            fitted = _fit_on_ray(config, feature_set.folder, folder, place, watch)
        else:
            fitted = fit(config, data, folder, on_epoch=watch, device=place.device)
        keep(run, fitted, data)
    return {
        "run_id": run.id,
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch,
        "train_accuracy": fitted.train_accuracy,
        "val_accuracy": fitted.val_accuracy,
        "seconds": round(fitted.seconds, 2),
        "checkpoint": str(fitted.checkpoint),
    }


def open_for_learning(features: str | Path, *, allow_leaks: bool) -> FeatureSet:
    """Open a feature set; refuse one with artists in two splits, whose figures would flatter."""
    feature_set = FeatureSet.open(output_folder("--features", features))  # MLflow's store may go beside it
    leaks = list(feature_set.manifest.artist_leaks)
    if leaks and not allow_leaks:
        raise InputError(
            f"--features {feature_set.folder}: {leak_message(leaks)}; mend the splits or pass --allow-leaks"
        )
    return feature_set


def describe(run: tracking.Run, feature_set: FeatureSet) -> None:
    """Name the run's input, and say if it leaks."""
    run.features(feature_set.folder, feature_set.manifest.fingerprint, "training")
    if feature_set.manifest.artist_leaks:
        run.tag({"mgc.leaky": "true"})


def keep(run: tracking.Run, fitted: Fitted, data: LearningSet) -> None:
    """Give a run all that a finished fit leaves: figures, pictures, checkpoint, and the model as a program.

    The fit's state goes last: interrupted before, the fit can be taken up and this done again.
    """
    gap = fitted.train_accuracy - fitted.val_accuracy
    run.metrics(
        {
            "best_epoch": fitted.best_epoch,
            "best_train_accuracy": fitted.train_accuracy,
            "best_val_accuracy": fitted.val_accuracy,
            "best_gap": gap,
        }
    )
    run.figure(report.learning_curves([asdict(p) for p in fitted.history], fitted.best_epoch), "pictures/curves.png")
    model, card = checkpoint.read(fitted.checkpoint)
    for name in (checkpoint.WEIGHTS, checkpoint.CARD):
        run.file(fitted.checkpoint / name, tracking.CHECKPOINT)
    scores = score_model(model, data.validation, data.genres)
    run.figure(report.confusion_matrix(scores, "validation"), "pictures/confusion_validation.png")
    run.figure(report.spectrograms(data.training, data.genres, data.spec), "pictures/spectrograms.png")
    run.model(model, card.spec.shape, len(card.genres))
    discard_state(fitted.checkpoint)


@dataclass(frozen=True)
class Place:
    """Where a fit runs."""

    workers: int
    gpu: bool

    @property
    def device(self) -> str:
        """The device of each worker."""
        return "cuda" if self.gpu else "cpu"

    def __str__(self) -> str:
        unit = "GPU" if self.gpu else "CPU worker" if self.workers > 1 else "CPU"
        return f"{self.workers} {unit}{'s' if self.workers > 1 else ''}" if self.workers > 1 or self.gpu else unit


def _place(gpus: int | None, workers: int) -> Place:
    if workers < 1:
        raise InputError(f"--workers {workers}: must be at least 1")
    if gpus is None:
        gpus = 1 if workers == 1 and torch.cuda.is_available() else 0
    there = torch.cuda.device_count()
    if gpus > max(1, there) and os.environ.get("RAY_ADDRESS"):  # the cluster's GPUs count, not this machine's
        connect()
        import ray

        there = int(ray.cluster_resources().get("GPU", 0))
    if gpus and workers not in (1, gpus):
        raise InputError(
            f"--gpus {gpus} --workers {workers}: a worker a GPU; leave --workers out, or --gpus 0 for the CPU"
        )
    if gpus > there:
        raise InputError(f"--gpus {gpus}: there {'is' if there == 1 else 'are'} {there} here; ask for fewer, or none")
    return Place(gpus, True) if gpus else Place(workers, False)


class _Watch:
    """What happens after each epoch: MLflow and the person at the terminal hear of it."""

    def __init__(self, run: tracking.Run, epochs: int) -> None:
        self.run = run
        self.progress = Progress("train", epochs, "epochs")

    def __call__(self, point: Epoch) -> None:
        self.run.metrics(point.metrics(), epoch=point.epoch, at=point.ended)
        self.progress.advance(
            1,
            f"loss {point.train_loss:.3f}, accuracy {point.train_accuracy:.3f}; "
            f"validation {point.val_loss:.3f}, {point.val_accuracy:.3f}",
        )


def _fit_on_ray(
    config: TrainConfig, features: Folder, folder: Path, place: Place, on_epoch: Callable[[Epoch], None]
) -> Fitted:
    """Run ``fit`` in every worker of a TorchTrainer (DDP over gloo or NCCL); rank 0's epochs are heard of here."""
    connect()
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    epochs = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config,
            "features": features,
            "folder": folder,
            "epochs": epochs,
            "device": place.device,
        },
        scaling_config=ray.train.ScalingConfig(num_workers=place.workers, use_gpu=place.gpu),
        run_config=ray.train.RunConfig(name=folder.name, storage_path=str(folder.parent.parent / "ray_train")),
    )

    def listen() -> None:
        for point in iter(epochs.get, None):
            on_epoch(point)

    with ThreadPoolExecutor(1) as executor:
        listening = executor.submit(listen)
        try:
            fitted = trainer.fit().return_value
        except Exception as error:
            raise RunError(f"train: {str(error).strip().splitlines()[-1]}") from error
        finally:
            epochs.put(None)
        listening.result()
    assert isinstance(fitted, Fitted)
    return fitted


def _worker(job: dict[str, Any]) -> Fitted:
    """The training function of one Ray Train worker."""
    tell = job["epochs"].put if torch.distributed.get_rank() == 0 else lambda _: None
    data = FeatureSet.open(job["features"]).learning_set()
    return fit(job["config"], data, job["folder"], on_epoch=tell, device=job["device"])


if __name__ == "__main__":
    from mgc.cli import main

    main(["train", *sys.argv[1:]])
