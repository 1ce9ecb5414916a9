"""A model as it is used: network, card and calibration, found by any name that a user knows it by."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.core.storage import URI, Folder
from mgc.evaluation.calibration import NONE, Calibration
from mgc.model import checkpoint
from mgc.model.cnn import folded, together

if TYPE_CHECKING:
    from mgc.model.checkpoint import Card
    from mgc.model.cnn import Ensemble, GenreCNN
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

    network: GenreCNN | Ensemble
    """On the CPU, in evaluation mode, with its BatchNorm folded into its convolutions."""
    card: Card
    """Of several models the first one's."""
    calibration: Calibration

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, genres, log-Mel recipe and temperature: 64 hexadecimal digits."""
        digest = hashlib.sha256(repr((self.card.genres, self.card.spec, self.calibration.temperature)).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

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
        return GenreModel(folded(network), card, Calibration.read(Folder.at(name)) or NONE)
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
    return GenreModel(together([folded(each.model) for each in models]), models[0].card, calibration_of(models))
