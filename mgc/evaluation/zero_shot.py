"""Genres by the tags that a pretrained encoder already gives: nothing is learnt of the feature set.

Shape suffixes: N clips, D values of a vector, K windows of a clip, S tags, G genres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mgc.core.errors import InputError
from mgc.encoders import registry

if TYPE_CHECKING:
    from numpy.typing import NDArray


def tags_of(encoder: str, vectors_NDK: NDArray[np.float16]) -> NDArray[np.float32]:
    """Compute the tags of clips: the mean over their windows.

    Parameters
    ----------
    encoder
        Name of an encoder that has tags.
    vectors_NDK : np.ndarray [shape=(N, D, K)]
        Its vectors of the windows of each clip.

    Returns
    -------
    np.ndarray [shape=(N, S), dtype=float32]
        Probability of each tag.

    Raises
    ------
    InputError
        The encoder has no tags, or its weights are not here.
    """
    if not registry.encoder(encoder).tags:
        raise InputError(
            f"`encoder={encoder}`: has no tags of its own; `classifier=zero_shot` needs an encoder that has"
        )
    network: Any = registry.load(encoder)
    with torch.inference_mode():
        rows_KS = (network.tags_of(torch.from_numpy(each_DK.T.astype(np.float32))) for each_DK in vectors_NDK)
        return np.stack([each_KS.mean(0).numpy() for each_KS in rows_KS])


class ZeroShot:
    """Takes for the genre the most probable of the tags of the same name; used as a classifier of scikit-learn.

    Parameters
    ----------
    encoder
        Name of an encoder that has tags.
    genres
        Names of the labels, spelt as the tags but for capitals. A genre without a tag is never predicted.

    Raises
    ------
    InputError
        No genre has a tag.
    """

    def __init__(self, encoder: str, genres: tuple[str, ...]) -> None:
        places = {tag.lower(): place for place, tag in enumerate(registry.encoder(encoder).tags)}
        self.classes_ = np.array([label for label, genre in enumerate(genres) if genre.lower() in places], np.int64)
        """Labels of the genres that have a tag."""
        if not len(self.classes_):
            raise InputError(f"`classifier=zero_shot`: {encoder} has no tag for any of {', '.join(genres)}")
        self._places = [places[genres[label].lower()] for label in self.classes_]

    def predict_proba(self, tags_NS: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give each genre its tag's share of the probabilities of all tags that name a genre.

        Parameters
        ----------
        tags_NS : np.ndarray [shape=(N, S)]
            Tags of clips.

        Returns
        -------
        np.ndarray [shape=(N, G)]
            In the order of ``classes_``.
        """
        found_NG = tags_NS[:, self._places]
        shares_NG: NDArray[np.float32] = found_NG / np.maximum(found_NG.sum(1, keepdims=True), 1e-9)
        return shares_NG

    def score(self, tags_NS: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
        """Return the share of clips whose genre is right.

        Parameters
        ----------
        tags_NS : np.ndarray [shape=(N, S)]
            Tags of clips.
        labels_N : np.ndarray [shape=(N,)]
            Their genres.
        """
        return float((self.classes_[self.predict_proba(tags_NS).argmax(1)] == labels_N).mean())
