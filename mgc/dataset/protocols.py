"""Which clips are trained, validated and tested on: the official split, folds of it, or a random one, which leaks.

    official    training and validation as the feature set has them
    folds       cross-validation over training and validation, all clips of an artist in one fold
    random      all clips drawn anew, 80/10/10 within each genre, whoever made them, as in the literature: LEAKY

Everything that trains or evaluates asks here, so a run and its evaluation cannot disagree. A fit is never given test
clips. ``leak`` is the one judge of leaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mgc.collection.splits import SPLITS, draw_splits, leak_message
from mgc.core.errors import InputError
from mgc.dataset import clips as clips_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mgc.audio.logmel import LogMelSpec
    from mgc.config import TrainConfig
    from mgc.dataset.clips import Clips
    from mgc.features.feature_set import FeatureSet
    from mgc.features.layout import Manifest

SEED = 0
"""Of folds and random splits: the same for every run, so that runs can be compared."""
LEAKY = "LEAKY: a random split, artists on both sides"


@dataclass(frozen=True)
class LearningSet:
    """The training and validation clips of a fit."""

    clips: Clips
    training: NDArray[np.int64]
    """Rows of ``clips``."""
    validation: NDArray[np.int64]
    """Rows of ``clips``."""
    genres: tuple[str, ...]
    spec: LogMelSpec
    fingerprint: str
    leak: str
    """Why figures on it are too good, as ``leak`` says; empty without a known leak."""

    @property
    def encoder(self) -> dict[str, Tensor] | None:
        """Weights of the pretrained encoder that the network is built on."""
        import torch

        weights = self.clips.encoder
        return None if weights is None else {name: torch.tensor(array) for name, array in weights.items()}

    @property
    def taught(self) -> int:
        """Values of a teacher's vectors; 0 without a teacher."""
        return 0 if self.clips.taught_NKD is None else self.clips.taught_NKD.shape[2]

    @property
    def gaps(self) -> tuple[str, ...]:
        """Sentences that name the genres without a clip to learn from, or to validate with."""
        labels_N, untold = self.clips.labels_N, "validation does not tell how well they are learnt"
        found = (
            gap(self.genres, labels_N[self.training], "training", "they cannot be learnt"),
            gap(self.genres, labels_N[self.validation], "validation", untold),
        )
        return tuple(sentence for sentence in found if sentence)


def splits_of(config: TrainConfig) -> tuple[str, ...]:
    """Return the feature set's splits that the clips of a fit are from.

    Parameters
    ----------
    config
        Its ``split`` decides.
    """
    return SPLITS if config.split == "random" else ("training", "validation")


def learning_set(
    feature_set: FeatureSet, config: TrainConfig, *, lazily: bool = False, clips: Clips | None = None
) -> LearningSet:
    """Divide clips into training and validation as a configuration says.

    Parameters
    ----------
    feature_set
        A finished feature set.
    config
        Its ``split``, ``folds`` and ``fold``.
    lazily
        Leave the spectrograms in their shards.
    clips
        Those of ``splits_of(config)``, if they are loaded already.

    Raises
    ------
    InputError
        A split is empty, there are fewer artists of a genre than folds, or training has clips of one genre alone.
    """
    clips = clips or clips_of.load(feature_set, *splits_of(config), lazily=lazily)
    manifest = feature_set.manifest
    if config.fold:
        training, validation = _fold(clips, config, manifest.genres)
    else:
        names_N = dealt(clips, config.split)
        training, validation = np.flatnonzero(names_N == "training"), np.flatnonzero(names_N == "validation")
    if not len(validation):
        raise InputError(f"`features={feature_set.folder}`: too few clips for `split={config.split}`")
    check_genres(feature_set, clips.labels_N[training])
    return LearningSet(
        clips,
        training,
        validation,
        manifest.genres,
        manifest.spec,
        manifest.fingerprint,
        leak(manifest, config.split),
    )


def check_genres(feature_set: FeatureSet, labels_N: NDArray[np.int64]) -> None:
    """Refuse to learn from clips of a single genre.

    Parameters
    ----------
    feature_set
        A finished feature set.
    labels_N : np.ndarray [shape=(N,)]
        Labels of the training clips.

    Raises
    ------
    InputError
        There are fewer than two genres among them.
    """
    there = [feature_set.manifest.genres[label] for label in np.unique(labels_N)]
    if len(there) < 2:
        raise InputError(
            f"`features={feature_set.folder}`: training clips of «{there[0]}» alone; a model needs two genres or more"
        )


def gap(genres: tuple[str, ...], labels_N: NDArray[np.int64], split: str, so: str) -> str:
    """Say which genres a split has no clips of.

    Parameters
    ----------
    genres
        Names of the labels.
    labels_N : np.ndarray [shape=(N,)]
        Labels of the split's clips.
    split
        ``training``, ``validation`` or ``test``.
    so
        What follows for these genres.

    Returns
    -------
    str
        A sentence; empty where there are clips of every genre.
    """
    lacking = [f"«{genre}»" for label, genre in enumerate(genres) if label not in labels_N]
    return f"no {split} clips of {', '.join(lacking)}: {so}" if lacking else ""


def held_out(feature_set: FeatureSet, split: str, protocol: str = "official") -> Clips:
    """Read the clips of one split, in memory, as a protocol has it.

    Parameters
    ----------
    feature_set
        A finished feature set.
    split
        ``training``, ``validation`` or ``test``.
    protocol
        ``config.split`` of the run that is evaluated: ``official`` or ``random``.

    Raises
    ------
    InputError
        The split has no clips.
    """
    if protocol == "official":
        return clips_of.load(feature_set, split)
    clips = clips_of.load(feature_set, *SPLITS, lazily=True)
    rows = np.flatnonzero(dealt(clips, protocol) == split)
    if not len(rows):
        raise InputError(f"`features={feature_set.folder}`: too few clips for a random split «{split}»")
    return clips.take(rows)


def leak(manifest: Manifest, protocol: str) -> str:
    """Say why figures on a feature set are too good: the same artists on both sides of a split.

    Parameters
    ----------
    manifest
        Of the feature set.
    protocol
        ``config.split``: ``official`` or ``random``.

    Returns
    -------
    str
        Starts with «LEAKY»; empty without a known leak.
    """
    if protocol == "random":
        return LEAKY
    return f"LEAKY: {leak_message(manifest.artist_leaks)}" if manifest.artist_leaks else ""


def dealt(clips: Clips, protocol: str) -> NDArray[np.str_]:
    """Return the split of each clip.

    Parameters
    ----------
    clips
        For ``random``, those of all splits.
    protocol
        ``config.split``: ``official`` or ``random``.

    Returns
    -------
    np.ndarray [shape=(N,), dtype=str]
        ``training``, ``validation`` or ``test``.
    """
    if protocol == "official":
        return clips.splits_N
    own = [str(track_id) for track_id in clips.track_ids_N]
    return np.array(draw_splits(own, [str(label) for label in clips.labels_N], SEED))


def _fold(clips: Clips, config: TrainConfig, genres: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and to validate on, of one fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    artists = {genres[label]: len(set(clips.artists_N[clips.labels_N == label])) for label in np.unique(clips.labels_N)}
    most = min(artists.values())
    if most < config.folds:
        few = ", ".join(f"«{genre}» ({count})" for genre, count in artists.items() if count < config.folds)
        way_out = f"at most `folds={most}`" if most > 1 else "leave `folds` out, or take `split=random`, which leaks"
        raise InputError(
            f"`folds={config.folds}`: all clips of an artist are in one fold, and in training and validation there are "
            f"too few artists of {few}; {way_out}"
        )
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=SEED)
    training, validation = list(folds.split(clips.labels_N, clips.labels_N, clips.artists_N))[config.fold - 1]
    return training, validation
