"""Who learns from which clips: the official split, folds of it, or the literature's leaky random one.

    official    training and validation as the feature set has them
    folds       cross-validation over training and validation, all clips of an artist in one fold
    random      all clips dealt anew, 80/10/10 within each genre, whoever made them: LEAKY

Everything that trains or evaluates asks here, so a run and its evaluation cannot disagree. Test clips are never among
what a fit is given.
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
    """What a fit is given."""

    clips: Clips
    training: NDArray[np.int64]
    """Rows of ``clips``."""
    validation: NDArray[np.int64]
    """Rows of ``clips``."""
    genres: tuple[str, ...]
    spec: LogMelSpec
    fingerprint: str
    leak: str
    """Why figures of it flatter; empty where nothing is known against them."""


def splits_of(config: TrainConfig) -> tuple[str, ...]:
    """The feature set's splits that a fit of this configuration is given clips of."""
    return SPLITS if config.split == "random" else ("training", "validation")


def learning_set(
    feature_set: FeatureSet, config: TrainConfig, *, lazily: bool = False, clips: Clips | None = None
) -> LearningSet:
    """Training and validation clips as a configuration divides them, in memory or, ``lazily``, in their shards.

    Parameters
    ----------
    clips
        Those of ``splits_of(config)``, if they are there already.

    Raises
    ------
    InputError
        A split is empty, or there are fewer artists of a genre than folds.
    """
    clips = clips or clips_of.load(feature_set, *splits_of(config), lazily=lazily)
    if config.fold:
        training, validation = _fold(clips, config)
    else:
        names_N = dealt(clips, config.split)
        training, validation = np.flatnonzero(names_N == "training"), np.flatnonzero(names_N == "validation")
    manifest = feature_set.manifest
    return LearningSet(
        clips,
        training,
        validation,
        manifest.genres,
        manifest.spec,
        manifest.fingerprint,
        leak(manifest, config.split),
    )


def held_out(feature_set: FeatureSet, split: str, protocol: str = "official") -> Clips:
    """The clips of one split, in memory, as a run of this protocol (``config.split``) saw or did not see them.

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
        raise InputError(f"--features {feature_set.folder}: too few clips for a random split «{split}»")
    return clips.take(rows)


def leak(manifest: Manifest, protocol: str) -> str:
    """Why figures of a feature set under a protocol flatter; empty where nothing is known against them."""
    if protocol == "random":
        return LEAKY
    return f"LEAKY: {leak_message(manifest.artist_leaks)}" if manifest.artist_leaks else ""


def dealt(clips: Clips, protocol: str) -> NDArray[np.str_]:
    """The split of each clip under a protocol (``config.split``); ``random`` needs the clips of all splits."""
    if protocol == "official":
        return clips.splits_N
    own = [str(track_id) for track_id in clips.track_ids_N]
    return np.array(draw_splits(own, [str(label) for label in clips.labels_N], SEED))


def _fold(clips: Clips, config: TrainConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and to validate on, of one fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    artists = {label: len(set(clips.artists_N[clips.labels_N == label])) for label in np.unique(clips.labels_N)}
    if min(artists.values()) < config.folds:
        raise InputError(f"--folds {config.folds}: a genre has only {min(artists.values())} artists; take fewer folds")
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=SEED)
    training, validation = list(folds.split(clips.labels_N, clips.labels_N, clips.artists_N))[config.fold - 1]
    return training, validation
