"""Ridge regression of genres: the linear classifier for more statistics than clips.

Shape suffixes: N clips, D statistics, G genres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mgc.evaluation.calibration import Calibration

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRENGTH = 0.05
"""Of the penalty, times the number of statistics."""


class Ridge:
    """Least squares on a one for the genre of a clip and zeros for the others, with a penalty on the weights.

    Its scores become probabilities by a softmax whose temperature fits the training clips, each left out in turn.
    """

    def fit(self, statistics_ND: NDArray[np.float32], labels_N: NDArray[np.int64]) -> Ridge:
        """Fit it.

        Parameters
        ----------
        statistics_ND : np.ndarray [shape=(N, D)]
            Of training clips; they are standardised first.
        labels_N : np.ndarray [shape=(N,)]
            Their genres.
        """
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.classes_, places_N = np.unique(labels_N, return_inverse=True)
        targets_NG = np.eye(len(self.classes_), dtype=np.float32)[places_N]
        # with a scoring it keeps predictions, and without it their squared errors
        strength = STRENGTH * statistics_ND.shape[1]
        ridge = RidgeCV([strength], scoring="neg_mean_squared_error", store_cv_results=True)
        self._machine = make_pipeline(StandardScaler(), ridge).fit(statistics_ND, targets_NG)
        left_out_NG = ridge.cv_results_[..., 0]
        self._temperature = Calibration.fit(places_N, _softmax(left_out_NG)).temperature
        return self

    def predict_proba(self, statistics_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probability of each genre of ``classes_`` [shape=(N, G)].

        Parameters
        ----------
        statistics_ND : np.ndarray [shape=(N, D)]
            Of any clips.
        """
        return _softmax(self._machine.predict(statistics_ND) / self._temperature)

    def score(self, statistics_ND: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
        """Return the share of clips whose genre is the most probable.

        Parameters
        ----------
        statistics_ND : np.ndarray [shape=(N, D)]
            Of any clips.
        labels_N : np.ndarray [shape=(N,)]
            Their genres.
        """
        return float((self.classes_[self.predict_proba(statistics_ND).argmax(1)] == labels_N).mean())


def _softmax(scores_NG: NDArray[np.float32]) -> NDArray[np.float32]:
    raised_NG = np.exp(scores_NG - scores_NG.max(1, keepdims=True))
    shares_NG: NDArray[np.float32] = raised_NG / raised_NG.sum(1, keepdims=True)
    return shares_NG
