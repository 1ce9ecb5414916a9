"""Calibration: probabilities that mean what they say, and a «don't know» below a confidence.

The temperature is fitted on validation clips, never on test clips, and the same clips say what a confidence is worth.

Shape suffixes: N clips, G genres, … any leading dimensions.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc.core.errors import InputError, first_line
from mgc.evaluation.metrics import calibration_error, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgc.core.storage import Folder

FILE = "calibration.json"
"""Beside the weights and the card of a checkpoint."""
FEWEST = 10
"""Clips that a precision is stated of, at least: the most confident few are right by luck."""
PRECISION = 0.9
"""Share of right answers that ``unsure`` is to leave, by default."""
_TEMPERATURES = (0.05, 20.0)
_TINY = 1e-12
"""Probabilities below it count as this."""


@dataclass(frozen=True)
class Calibrated:
    """What the temperature, and leaving unsure clips out, make of the predictions of a split."""

    temperature: float
    """Of validation clips, whatever the split."""
    ece: float
    """Expected calibration error with it."""
    precision: float
    """Share of right answers that was asked for, of validation clips."""
    threshold: float | None
    """The confidence from which on an answer is sure; None where no confidence gave the precision."""
    sure_share: float
    """Share of the clips whose answer is sure."""
    sure_accuracy: float | None
    """Share of right answers among these; None where there are none."""
    sure_ci95: tuple[float, float] | None
    """Wilson's 95 % interval of it."""
    fitted_here: bool
    """Whether temperature and threshold were fitted on these very clips, which flatters."""

    def __str__(self) -> str:
        """Return two sentences: the calibration error with the temperature, and what ``unsure`` buys."""
        fitted = "; these are the clips that it was fitted on" if self.fitted_here else ", fitted on validation clips"
        asked = f"(asked: {100 * self.precision:g}% on validation)"
        if self.sure_accuracy is None or self.sure_ci95 is None:
            bought = f"sure of none of the clips {asked}"
        else:
            low, high = self.sure_ci95
            bought = (
                f"sure of {self.sure_share:.0%} of the clips, of which {self.sure_accuracy:.1%} "
                f"[{low:.1%}, {high:.1%}] are right {asked}"
            )
        return f"calibration error {self.ece:.3f} with temperature {self.temperature:.2f}{fitted}\n{bought}"


@dataclass(frozen=True)
class Calibration:
    """Temperature of a model, and what its confidences were worth on validation clips."""

    temperature: float
    """Logits are divided by it: above 1 for a model that is too sure of itself."""
    ece_before: float
    """Expected calibration error of the validation clips without it."""
    ece_after: float
    """The same with it; on the clips that it was fitted to."""
    confidences: tuple[float, ...]
    """Calibrated probability of the predicted genre, of each validation clip; highest first."""
    right: tuple[bool, ...]
    """Whether the predicted genre was the true one, in the same order."""

    @classmethod
    def fit(cls, labels_N: NDArray[np.int64], probabilities_NG: NDArray[np.float32]) -> Calibration:
        """Fit the temperature: the one by which the true genres are most probable.

        Temperature scaling: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger: «On Calibration of Modern Neural Networks»
        (ICML 2017), section 4.2.

        Parameters
        ----------
        labels_N : np.ndarray [shape=(N,)]
            True genres of validation clips, which no model was trained on.
        probabilities_NG : np.ndarray [shape=(N, G)]
            Their predicted probabilities; rows sum to 1.
        """
        from scipy.optimize import minimize_scalar

        rows_N = np.arange(len(labels_N))

        def loss(log_temperature: float) -> float:
            scaled_NG = with_temperature(probabilities_NG, float(np.exp(log_temperature)))
            return float(-np.log(np.maximum(scaled_NG[rows_N, labels_N], _TINY)).mean())

        found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded")
        temperature = float(np.exp(found.x))
        scaled_NG = with_temperature(probabilities_NG, temperature)
        right_N, confidence_N = scaled_NG.argmax(1) == labels_N, scaled_NG.max(1)
        order = np.argsort(-confidence_N, kind="stable")
        return cls(
            temperature,
            calibration_error(probabilities_NG.max(1), right_N),
            calibration_error(confidence_N, right_N),
            tuple(confidence_N[order].tolist()),
            tuple(right_N[order].tolist()),
        )

    def __call__(self, probabilities_G: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Calibrate probabilities [shape=(…, G)]."""
        return with_temperature(probabilities_G, self.temperature)

    def threshold(self, precision: float = PRECISION) -> float:
        """Find the lowest confidence at which so large a share of the validation clips was right.

        Of the clips with at least this confidence, the share ``precision`` is right: the point of the risk–coverage
        curve that leaves the most clips (Y. Geifman, R. El-Yaniv: «Selective Classification for Deep Neural Networks»,
        NeurIPS 2017). It is an estimate from as many clips as there are, not a guarantee.

        Parameters
        ----------
        precision
            A share, above 0 and at most 1.

        Returns
        -------
        float
            Infinity where no confidence gives it: then every answer is unsure.

        Raises
        ------
        InputError
            ``precision`` is no such share.
        """
        check_precision(precision)
        clips_N = np.arange(1, len(self.right) + 1)
        last_N = np.diff(self.confidences, append=-1.0) != 0  # of clips of one confidence: all are above it or none
        enough = np.flatnonzero((np.cumsum(self.right) / clips_N >= precision) & (clips_N >= FEWEST) & last_N)
        return self.confidences[int(enough[-1])] if len(enough) else float("inf")

    def on(
        self, labels_N: NDArray[np.int64], probabilities_NG: NDArray[np.float32], precision: float, *, fitted_here: bool
    ) -> Calibrated:
        """Say what the calibration is worth on some clips.

        Parameters
        ----------
        labels_N : np.ndarray [shape=(N,)]
            True genres.
        probabilities_NG : np.ndarray [shape=(N, G)]
            Predicted probabilities, not calibrated.
        precision
            As of ``threshold``.
        fitted_here
            Whether these are the clips that it was fitted on.

        Raises
        ------
        InputError
            As ``threshold``.
        """
        calibrated_NG, threshold = self(probabilities_NG), self.threshold(precision)
        confidence_N, right_N = calibrated_NG.max(1), calibrated_NG.argmax(1) == labels_N
        sure_N = confidence_N >= threshold
        sure, right = int(sure_N.sum()), int((sure_N & right_N).sum())
        return Calibrated(
            self.temperature,
            calibration_error(confidence_N, right_N),
            precision,
            None if math.isinf(threshold) else threshold,
            sure / len(labels_N),
            right / sure if sure else None,
            wilson(right, sure) if sure else None,
            fitted_here,
        )

    def write(self, folder: Folder) -> None:
        """Write ``calibration.json`` beside a checkpoint's other files.

        Parameters
        ----------
        folder
            The checkpoint's folder.
        """
        folder.write(FILE, (json.dumps(asdict(self)) + "\n").encode())

    @classmethod
    def read(cls, folder: Folder, name: str | None = None) -> Calibration | None:
        """Read the calibration of a checkpoint; None where it has none, as one of before.

        Parameters
        ----------
        folder
            The checkpoint's folder.
        name
            Of the checkpoint, for messages; its folder by default.

        Raises
        ------
        InputError
            The file is damaged.
        """
        try:
            facts = json.loads(folder.read(FILE))
            confidences, right = map(float, facts.pop("confidences")), map(bool, facts.pop("right"))
            found = cls(**facts, confidences=tuple(confidences), right=tuple(right))
            if not (found.temperature > 0 and len(found.confidences) == len(found.right)):
                raise ValueError("values that cannot be")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{name or folder}/{FILE}: damaged ({first_line(error)}); delete it, or train again"
            ) from None
        return found


NONE = Calibration(1.0, float("nan"), float("nan"), (), ())
"""Of a model without validation clips: probabilities as they are, and nothing is sure."""


def check_precision(precision: float) -> None:
    """Refuse what is no share of right answers.

    Parameters
    ----------
    precision
        Must be above 0 and at most 1.

    Raises
    ------
    InputError
        It is not.
    """
    if not 0 < precision <= 1:
        raise InputError(f"`precision={precision:g}`: must be above 0 and at most 1")


def with_temperature(probabilities_G: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float64]:
    """Divide the logits that probabilities come from by a temperature.

    Parameters
    ----------
    probabilities_G : np.ndarray [shape=(…, G)]
        Probabilities, the last dimension summing to 1.
    temperature
        Above 1 they become more even, below 1 less.

    Returns
    -------
    np.ndarray [shape=(…, G)]
        Probabilities.
    """
    scaled_G = np.log(np.maximum(probabilities_G.astype(np.float64), _TINY)) / temperature
    powers_G = np.exp(scaled_G - scaled_G.max(-1, keepdims=True))
    calibrated_G: NDArray[np.float64] = powers_G / powers_G.sum(-1, keepdims=True)
    return calibrated_G
