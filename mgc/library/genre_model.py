"""A model as it is used: network, card and calibration, found by any name that a user knows it by."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.core.storage import URI, Folder
from mgc.evaluation.calibration import NONE, Calibration
from mgc.model import checkpoint
from mgc.model.cnn import folded, together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.model.checkpoint import Card
    from mgc.model.cnn import Ensemble
    from mgc.model.genre_network import GenreNetwork
    from mgc.tracking.runs import RunLike

    class HasCheckpoint(Protocol):
        """A result that knows its checkpoint: of a training."""

        @property
        def checkpoint(self) -> str | Path | Folder:
            """The checkpoint's folder."""

    ModelLike: TypeAlias = str | Path | HasCheckpoint | RunLike
    """A checkpoint folder, or the result of a training that has one; the id of an MLflow run with a checkpoint, or of a
    parent run of seeds or folds (the mean of its models' probabilities), or a result that knows it; or ``"champion"``,
    the model that was promoted."""


@dataclass(frozen=True)
class GenreModel:
    """A network, or several as one, and what is needed to use it."""

    network: GenreNetwork | Ensemble
    """On the CPU, in evaluation mode, with its BatchNorm folded into its convolutions."""
    card: Card
    """Of several models the first one's."""
    calibration: Calibration
    fingerprint: str
    """Hash of weights, genres, log-Mel recipe and temperature: 64 hexadecimal digits."""

    @classmethod
    def of(cls, networks: Sequence[GenreNetwork], card: Card, calibration: Calibration) -> GenreModel:
        """Put a model together.

        Parameters
        ----------
        networks
            Trained networks, on the CPU; several answer as one. They stay as they are.
        card
            Of the first one.
        calibration
            Of all together.
        """
        # rounded: the temperature of several is fitted anew each time, and another machine's last digit is another
        facts = repr((card.genres, card.spec, f"{calibration.temperature:.5g}"))
        digest = hashlib.sha256(facts.replace(", scaling='zscore'", "").encode())  # as before there was another
        for network in networks:
            for name, tensor in sorted(network.state_dict().items()):
                digest.update(name.encode() + tensor.numpy().tobytes())
        return cls(together([folded(each) for each in networks]), card, calibration, digest.hexdigest())

    def threshold(self, precision: float) -> float:
        """``Calibration.threshold``; where it is infinite, a person is told why everything is unsure."""
        threshold = self.calibration.threshold(precision)
        if self.calibration is NONE:
            say("the model has no validation predictions to tell what its confidence is worth: all answers are unsure")
        elif math.isinf(threshold):
            say(f"no confidence gave {precision:.0%} right answers on validation clips: all answers are unsure")
        return threshold


def load(model: ModelLike) -> GenreModel:
    """Load a model with its calibration.

    Parameters
    ----------
    model
        A checkpoint folder, or the result of a training that has one; the id of an MLflow run with a checkpoint, or of
        a parent run of seeds or folds (the mean of its models' probabilities), or a result that knows it; or
        ``"champion"``, the model that was promoted.

    Returns
    -------
    GenreModel
        On the CPU, in evaluation mode.

    Raises
    ------
    InputError
        There is no such model.
    RunError
        The MLflow store does not answer.
    """
    name = str(getattr(model, "checkpoint", None) or getattr(model, "run_id", None) or model)
    if URI.match(name) or Path(name).is_dir():
        network, card = checkpoint.read(name)
        return GenreModel.of([network], card, Calibration.read(Folder.at(name)) or NONE)
    from mgc.evaluation.trained_models import calibration_of, read_each, read_models
    from mgc.tracking import registry  # a folder needs no MLflow
    from mgc.tracking.runs import Run
    from mgc.tracking.store import existing_store

    uri = existing_store(Folder.at(Path.cwd()))
    if name == registry.CHAMPION:
        version = registry.champion(uri)
        if version is None:
            raise InputError(f"`model={name}`: no run is champion yet; promote an evaluated one («mgc promote RUN»)")
        models = read_each([Run.find(uri, run_id) for run_id in version.models])
    else:
        models = read_models(Run.find(uri, name))
    return GenreModel.of([each.model for each in models], models[0].card, calibration_of(models))
