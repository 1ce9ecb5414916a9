"""The state of a running fit: one file, replaced after each epoch, from which a killed fit is resumed.

It holds the current weights, those of the epoch to keep, Adam's moments, the EMA weights and the learning curves, as
safetensors: loading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load, save

from mgc.core.errors import InputError, first_line
from mgc.training.optim import Learner

if TYPE_CHECKING:
    from torch import Tensor

    from mgc.config import TrainConfig
    from mgc.core.storage import Folder
    from mgc.dataset.protocols import LearningSet

STATE = "state.safetensors"


@dataclass(frozen=True)
class Epoch:
    """One point of the learning curves."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch, in training mode."""
    train_accuracy: float
    """Share right during the epoch, in training mode: augmented, with dropout, while the weights move."""
    val_loss: float
    val_accuracy: float
    """Share of the validation clips right after the epoch."""
    lr: float
    """Learning rate of the last step."""
    seconds: float
    ended: float
    """When it ended, in Unix seconds."""

    def metrics(self) -> dict[str, float]:
        """Return the figures by their names in MLflow: ``epoch/train_loss``, ``epoch/val_accuracy`` and so on."""
        return {f"epoch/{name}": value for name, value in asdict(self).items() if name not in ("epoch", "ended")}


@dataclass
class FitState(Learner):
    """A learner with what its fit has done so far."""

    history: list[Epoch] = field(default_factory=list)
    """The epochs that are done."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the epoch to keep."""

    def keep(self) -> None:
        """Keep the weights of the evaluated model as they are now."""
        self.kept = {name: tensor.detach().clone() for name, tensor in self.evaluated_model.state_dict().items()}

    def write(self, folder: Folder, signature: str) -> None:
        """Write the state file, in place of the last epoch's.

        Parameters
        ----------
        folder
            Of the fit; is made if it is not there.
        signature
            What ``signature_of`` gives for the fit's configuration and data.
        """
        folder.make()
        tensors = {f"last.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        if self.averaged:
            tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        history = json.dumps([asdict(point) for point in self.history])
        metadata = {"signature": signature, "history": history, "sha256": _digest(tensors, history)}
        folder.write(STATE, save(tensors, metadata))

    def resume(self, folder: Folder, signature: str) -> None:
        """Load the state that an interrupted fit has left in a folder; without one, nothing is changed.

        Parameters
        ----------
        folder
            Of the fit.
        signature
            What ``signature_of`` gives for this fit; the state's own must be equal.

        Raises
        ------
        InputError
            The state is damaged, or that of another fit.
        """
        file = f"{folder}/{STATE}"
        try:
            data = folder.read(STATE)
            tensors, metadata = load(data), _metadata(data[8 : 8 + int.from_bytes(data[:8], "little")])
        except FileNotFoundError:
            return
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{file}: damaged ({first_line(error)}); delete it to begin anew") from None
        if metadata.get("signature") != signature:
            raise InputError(f"{file}: belongs to another configuration or feature set; choose another folder")
        if metadata.get("sha256") != _digest(tensors, metadata.get("history", "")):
            raise InputError(f"{file}: damaged (not what its hash says); delete it to begin anew")
        parts: dict[str, dict[str, Tensor]] = {"last": {}, "kept": {}, "averaged": {}, "optimizer": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self.model.load_state_dict(parts["last"])
        if self.averaged:
            self.averaged.load_state_dict(parts["averaged"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["optimizer"].items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.history = [Epoch(**point) for point in json.loads(metadata["history"])]
        self.kept = parts["kept"]


def _digest(tensors: dict[str, Tensor], history: str) -> str:
    """Hash of what a state holds: after a power cut a file may be whole in length only."""
    return hashlib.sha256(save(tensors) + history.encode()).hexdigest()


def signature_of(config: TrainConfig, data: LearningSet) -> str:
    """Return the text that identifies a fit: only a state with the same one is resumed.

    Parameters
    ----------
    config
        Of the fit.
    data
        Its feature set is known by its fingerprint.
    """
    return json.dumps({"config": config.identity(), "fingerprint": data.fingerprint}, sort_keys=True)


def history(folder: Folder) -> list[Epoch]:
    """Read the epochs that an unfinished fit has done, without its weights.

    Parameters
    ----------
    folder
        Of the fit.

    Returns
    -------
    list of Epoch
        Empty if no fit was started there, or if it is finished.

    Raises
    ------
    InputError
        The state is damaged.
    StoreError
        The object store does not answer.
    """
    try:
        with folder.random_access(STATE) as file:
            length = int.from_bytes(file.read(8), "little")
            metadata = _metadata(file.read(min(length, file.size())))
        return [Epoch(**point) for point in json.loads(metadata["history"])]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder}/{STATE}: damaged ({first_line(error)}); delete it to begin anew") from None


def discard(folder: Folder) -> None:
    """Delete the state of a fit; its checkpoint stays.

    Parameters
    ----------
    folder
        Of the fit.
    """
    folder.remove(STATE)


def _metadata(header: bytes) -> dict[str, str]:
    """The texts in the header of a safetensors file, which stands after its length in 8 bytes, little-endian."""
    metadata: dict[str, str] = json.loads(header).get("__metadata__", {})
    return metadata
