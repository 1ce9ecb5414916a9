"""What describes a training run: one frozen tree of plain values.

tyro turns it into flags and help, MLflow keeps its leaves as parameters, the checkpoint holds it whole, and
``--config FILE`` reads it back. No torch here: ``mgc train --help`` must be quick.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from mgc.core.errors import InputError
from mgc.core.storage import Folder

EncoderName: TypeAlias = Literal["none", "musicnn", "musicnn_random", "ast"]
"""A pretrained encoder, or none."""
Node = TypeVar("Node", bound="ModelConfig | AugmentConfig | OptimConfig | TrainConfig")


def _require(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise InputError(f"`{name}={value!r}`: must be {rule}")


@dataclass(frozen=True)
class ModelConfig:
    """The network; the defaults are the plain CNN, 752,520 parameters for 8 genres."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Filters of each block: 3 × 3 convolution, ReLU, 2 × 2 max pooling, dropout."""
    norm: bool = False
    """BatchNorm after each convolution."""
    input_norm: bool = False
    """BatchNorm of each mel band at the input."""
    dropout: float = 0.1
    """Dropout at the end of each block."""
    head: Literal["flatten", "avg", "avgmax", "bands"] = "flatten"
    """What the linear layer sees: all values, each channel's mean, its mean and maximum, or these two over time alone,
    for each of the bands that the poolings leave."""
    head_dropout: float = 0.0
    """Dropout before the linear layer."""
    spatial_dropout: bool = False
    """Blocks drop whole channels instead of single values."""
    encoder: EncoderName = "none"
    """Instead of a CNN: a classifier on what a pretrained encoder makes of each window of the clip. Of the other fields
    it has ``input_norm``, ``hidden``, ``norm``, ``dropout`` and ``head_dropout``."""
    hidden: tuple[int, ...] = ()
    """Units of the classifier's hidden layers: dropout, linear, BatchNorm, ReLU; none is a linear classifier."""
    window: int = 0
    """Frames that the network hears at a time (43 are a second): random crops in training, a vote over evenly spaced
    windows elsewhere; 0 is the whole clip."""

    def __post_init__(self) -> None:
        _require(bool(self.channels) and all(n > 0 for n in self.channels), "model.channels", self.channels, "positive")
        _require(all(n > 0 for n in self.hidden), "model.hidden", self.hidden, "positive")
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")
        _require(0 <= self.head_dropout < 1, "model.head_dropout", self.head_dropout, "in [0, 1)")
        _require(self.window >= 0, "model.window", self.window, "at least 0")


@dataclass(frozen=True)
class AugmentConfig:
    """How training clips are varied, each time they are seen; the defaults leave them as they are."""

    mixup_alpha: float = 0.0
    """Mix each clip and its target with another's: the shares are drawn from Beta(alpha, alpha); 0 is off."""
    time_masks: int = 0
    """SpecAugment: stretches of time to blank out."""
    time_mask_frames: int = 40
    """Longest of them, in frames."""
    band_masks: int = 0
    """SpecAugment: ranges of mel bands to blank out."""
    band_mask_bands: int = 16
    """Widest of them, in bands."""
    equalize: float = 0.0
    """Random smooth equaliser: standard deviation of its gains over the bands, in units of the z-score; 0 is off."""

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "time_masks", "band_masks", "equalize"):
            _require(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "at least 0")
        for name in ("time_mask_frames", "band_mask_bands"):
            _require(getattr(self, name) >= 1, f"augment.{name}", getattr(self, name), "at least 1")


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are learnt: AdamW, which with weight decay 0 is the baseline's Adam."""

    lr: float = 1e-3
    """Learning rate at the start."""
    encoder_lr: float = 0.0
    """Learning rate of a pretrained encoder, as a share of ``lr``; 0 keeps its weights as they are."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Keep the learning rate, or let it fall to zero along half a cosine."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    label_smoothing: float = 0.0
    """Share of the target spread over all genres."""
    batch_size: int = 32
    """Most clips in an optimiser's step, over all workers together; an epoch's batches are as even as they can be."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from zero."""
    clip_norm: float = 0.0
    """Longest gradient; longer ones are shortened to it; 0 is off."""
    ema_epochs: float = 0.0
    """Validate and keep an exponential moving average of the weights over so many epochs; 0 is off."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions in training; norms, loss and evaluation are always float32."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr", self.lr, "positive")
        _require(self.encoder_lr >= 0, "optim.encoder_lr", self.encoder_lr, "at least 0")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        _require(0 <= self.label_smoothing < 1, "optim.label_smoothing", self.label_smoothing, "in [0, 1)")
        _require(self.batch_size > 0, "optim.batch_size", self.batch_size, "positive")
        for name in ("warmup_epochs", "clip_norm", "ema_epochs"):
            _require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "at least 0")


LATER: tuple[tuple[str, str, Any], ...] = (
    ("model", "encoder", "none"),
    ("model", "hidden", []),
    ("optim", "encoder_lr", 0.0),
)
"""Fields that came after the first stored runs, and their defaults."""


@dataclass(frozen=True)
class TrainConfig:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int = 20
    """Passes over the training clips."""
    keep: Literal["best", "last"] = "best"
    """Keep the epoch of the best validation accuracy, whose figure is then partly luck, or the last one."""
    patience: int = 0
    """Stop after so many epochs without a better validation accuracy; 0 is never."""
    split: Literal["official", "random"] = "official"
    """The feature set's own split, or the literature's random one, which is LEAKY."""
    folds: int = 0
    """Cross-validate over training and validation, all clips of an artist in one fold; 0 is off."""
    fold: int = 0
    """Only this fold, from 1; 0 is all of them."""
    seed: int = 0
    """Of the initial weights, the order of the clips, the augmentations and the dropout."""

    def __post_init__(self) -> None:
        _require(self.epochs > 0, "epochs", self.epochs, "at least 1")
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        _require(self.patience >= 0, "patience", self.patience, "at least 0")
        _require(not (self.patience and self.keep == "last"), "patience", self.patience, "0 where the last is kept")
        _require(self.folds == 0 or self.folds >= 2, "folds", self.folds, "at least 2")
        _require(0 <= self.fold <= self.folds, "fold", self.fold, f"one of the {self.folds} folds")
        _require(not self.folds or self.split == "official", "folds", self.folds, "without `split=random`")
        if self.model.encoder != "none":  # BatchNorm of vectors learns nothing of a batch of one
            _require(self.optim.batch_size > 2, "optim.batch_size", self.optim.batch_size, "at least 3 on an encoder")
        if self.frozen:  # its classifier does not see the spectrogram
            for part, name in (
                ("augment", "time_masks"),
                ("augment", "band_masks"),
                ("augment", "equalize"),
                ("model", "window"),
            ):
                value = getattr(getattr(self, part), name)
                rule = f"0 on the frozen encoder {self.model.encoder}; `optim.encoder_lr` above 0 trains it too"
                _require(not value, f"{part}.{name}", value, rule)

    @property
    def crop(self) -> int:
        """Frames of a clip that a training step sees; of a frozen encoder's vectors one. 0 is the whole clip."""
        return 1 if self.frozen else self.model.window

    @property
    def frozen(self) -> bool:
        """Whether the network is a classifier on a pretrained encoder whose weights stay as they are."""
        return self.model.encoder != "none" and not self.optim.encoder_lr

    @property
    def track(self) -> str:
        """Where the network's knowledge is from: its own clips alone, or music that others have heard before."""
        return track(self.model.encoder)

    def identity(self) -> dict[str, Any]:
        """Return the tree by which a fit is known: without fields that came later where they have their defaults.

        What was begun before they came goes on.
        """
        tree = self.to_dict()
        for part, name, default in LATER:
            if tree[part][name] == default:
                del tree[part][name]
        return tree

    def to_dict(self) -> dict[str, Any]:
        """The tree as plain values that JSON holds."""
        tree: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return tree


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep searches, and what it does with what it finds."""

    trials: int = 20
    """Configurations to try; a grid has its own number."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """Optuna's tree-structured Parzen estimator, random draws, or all combinations of choices."""
    asha: bool = True
    """Stop trials that lag behind at a quarter of their epochs: asynchronous successive halving."""
    concurrent: int | None = None
    """Trials at a time; as the machine or the cluster has room for by default."""
    cpus_per_trial: int | None = None
    """CPUs that a trial takes; by default a machine's are divided among the trials, and on a cluster it is 1."""
    gpus_per_trial: float | None = None
    """Share of a GPU that a trial takes; 0.25 puts four trials on one. By default a GPU if there is one now."""
    workers_per_trial: int = 1
    """2 or more train each trial through Ray Train, on a CPU or a GPU a worker."""
    time_budget: float = 0.0
    """Seconds after which the search ends with what it has; 0 is no limit. Retraining comes after it."""
    top: int = 3
    """Best configurations that are retrained; the winner has the best mean. 0 takes the best trial of the search."""
    seeds: int = 3
    """Fresh seeds that each of them is retrained with."""
    without: tuple[str, ...] = ("model.norm", "model.dropout")
    """Fields to ablate: each is put off in the winner, one at a time, with the same seeds. A field that is off in the
    winner is set to the base configuration's value instead."""

    def __post_init__(self) -> None:
        for name in ("trials", "workers_per_trial", "concurrent", "cpus_per_trial"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        _require(
            self.gpus_per_trial is None or self.workers_per_trial > 1 or 0 < self.gpus_per_trial <= 1,
            "gpus_per_trial",
            self.gpus_per_trial,
            "above 0 and at most 1; for several GPUs a trial use `workers_per_trial`",
        )
        _require(
            self.workers_per_trial == 1 or self.gpus_per_trial in (None, self.workers_per_trial),
            "gpus_per_trial",
            self.gpus_per_trial,
            "left out with `workers_per_trial`, or equal to it: a GPU a worker",
        )
        _require(
            self.workers_per_trial == 1 or self.cpus_per_trial is None,
            "cpus_per_trial",
            self.cpus_per_trial,
            "left out with `workers_per_trial`, whose workers have a CPU each",
        )
        _require(self.time_budget >= 0, "time_budget", self.time_budget, "at least 0")
        _require(self.top >= 0, "top", self.top, "at least 0")
        _require(self.seeds >= 2 or not self.top, "seeds", self.seeds, "at least 2; `top=0` retrains nothing")


def track(encoder: str) -> str:
    """Say where a network's knowledge is from; figures of different tracks answer different questions.

    Parameters
    ----------
    encoder
        Its encoder, or ``none``.

    Examples
    --------
    >>> track("musicnn")
    'pretrained (musicnn)'
    """
    if encoder == "none":
        return "from scratch"
    return f"{'random features' if encoder.endswith('_random') else 'pretrained'} ({encoder})"


def member_name(seed: int, fold: int) -> str:
    """Return what tells a model from those that are trained with it.

    Parameters
    ----------
    seed
        Of its configuration.
    fold
        Of the cross-validation, from 1; 0 without folds.

    Examples
    --------
    >>> member_name(3, 0)
    'seed 3'
    """
    return f"fold {fold}, seed {seed}" if fold else f"seed {seed}"


PRESETS: dict[str, TrainConfig] = {
    "plain_cnn": TrainConfig(),
    "regularized": TrainConfig(
        model=ModelConfig(norm=True, input_norm=True, dropout=0.2, head="avgmax", head_dropout=0.5),
        optim=OptimConfig(lr=3e-3, schedule="cosine", weight_decay=1e-2, label_smoothing=0.1),
    ),
    "short_chunk": TrainConfig(
        model=ModelConfig(norm=True, input_norm=True, dropout=0.1, head="bands", head_dropout=0.3, window=128),
        augment=AugmentConfig(
            mixup_alpha=0.2, time_masks=1, time_mask_frames=20, band_masks=1, band_mask_bands=12, equalize=0.3
        ),
        optim=OptimConfig(
            lr=2e-3, schedule="cosine", warmup_epochs=2, weight_decay=1e-2, label_smoothing=0.1, batch_size=16
        ),
        epochs=40,
        keep="last",
    ),
    "musicnn": TrainConfig(
        model=ModelConfig(encoder="musicnn", hidden=(512,), norm=True, input_norm=True, dropout=0.3, head_dropout=0.5),
        augment=AugmentConfig(mixup_alpha=0.2),
        optim=OptimConfig(lr=3e-3, schedule="cosine", warmup_epochs=2, weight_decay=5e-2, label_smoothing=0.1),
        epochs=40,
        keep="last",
    ),
}
"""``plain_cnn`` is the field's plain CNN; ``regularized`` is what helps it most on whole clips; ``short_chunk``, which
validates best of those tried (``docs/log.md``), hears 3 s at a time, augmented in each epoch (after Won et al.,
«Evaluation of CNN-based automatic music tagging models», SMC 2020); ``musicnn`` is a classifier on the pretrained
encoder of this name."""
DEFAULT_PRESET: Literal["short_chunk"] = "short_chunk"
"""What ``mgc train`` and ``mgc.fit`` train without being told otherwise: the one that validates best."""
OLD_PRESETS = {"baseline": "plain_cnn"}
"""Presets by their former names, which are still understood."""


def preset(name: str) -> TrainConfig:
    """Return a preset by its name, or by its former name.

    Parameters
    ----------
    name
        A key of ``PRESETS`` or ``OLD_PRESETS``.

    Raises
    ------
    InputError
        There is no such preset.

    Examples
    --------
    >>> preset("baseline") == preset("plain_cnn") == TrainConfig()
    True
    """
    name = OLD_PRESETS.get(name, name)
    if name not in PRESETS:
        raise InputError(f"`preset={name}`: is none; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def overlay(base: Node, tree: dict[str, Any], where: str = "") -> Node:
    """Return the configuration ``base`` with the values of a (partial) tree in place of its own.

    Parameters
    ----------
    base
        A configuration, or a part of one.
    tree
        Values by field, as JSON holds them; nested as the configuration is.
    where
        Dotted name of the part that ``base`` is, with its last dot: for messages.

    Raises
    ------
    InputError
        The tree has a field that the configuration has not, or a value of another type.
    """
    hints = get_type_hints(type(base))
    known = {each.name for each in fields(base)}
    changes: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{where}{key}"
        if key not in known:
            raise InputError(f"config field «{name}» does not exist; there are {', '.join(sorted(known))}")
        current = getattr(base, key)
        if is_dataclass(current):
            if not isinstance(value, dict):
                raise InputError(f"config field «{name}»: {value!r} must be an object")
            changes[key] = overlay(current, value, f"{name}.")  # type: ignore[type-var]
        else:
            changes[key] = _value(hints[key], value, name)
    return replace(base, **changes)


def read_config(file: str | Path, base: TrainConfig) -> TrainConfig:
    """Read a configuration file, whole or partial, over ``base``.

    Parameters
    ----------
    file
        JSON, as ``mgc tune`` writes it, by its path or URI.
    base
        What the file's values replace.

    Raises
    ------
    InputError
        The file cannot be read, is not JSON, or does not fit the configuration.
    StoreError
        The object store does not answer.
    """
    folder, name = Folder.at(file).parent
    try:
        tree = json.loads(folder.read(name))
    except FileNotFoundError:
        raise InputError(f"`config={file}`: no such file") from None
    except OSError as error:
        raise InputError(f"`config={file}`: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"`config={file}`: not JSON ({error})") from None
    if not isinstance(tree, dict):
        raise InputError(f"`config={file}`: must hold an object, like {json.dumps({'epochs': 20})}")
    try:
        return overlay(base, tree)
    except InputError as error:
        raise InputError(f"`config={file}`: {_without_marks(error)}") from None


def _value(hint: Any, value: Any, name: str) -> Any:
    """Check one leaf against its type; integers pass for floats, lists for tuples."""
    if get_origin(hint) is Literal:
        _require(value in get_args(hint), name, value, f"one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        ok = isinstance(value, list | tuple) and all(type(item) is int for item in value)
        _require(ok, name, value, "a list of whole numbers")
        return tuple(value)
    ok = type(value) is hint or (hint is float and type(value) is int)
    _require(ok, name, value, {bool: "true or false", int: "a whole number", float: "a number"}.get(hint, str(hint)))
    return hint(value)


def _without_marks(error: InputError) -> str:
    """The message about a file's field, which is no flag: ``model.dropout=1.5: must be in [0, 1)``."""
    return str(error).replace("`", "")
