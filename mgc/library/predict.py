"""The command ``mgc predict``: the genre of any audio file, of any length.

A file is cut into pieces as long as the clips the model was trained on; the calibrated genre probabilities of the
pieces are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgc.audio.decode import open_clip
from mgc.audio.quiet import quiet
from mgc.core.errors import ClipError, InputError, RunError, StoreError
from mgc.core.results import Result
from mgc.core.storage import URI, Folder
from mgc.evaluation.calibration import PRECISION
from mgc.library.genre_model import load
from mgc.library.listening import Recording, answer
from mgc.model.device import best_device, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mgc.core.errors import MgcError
    from mgc.library.genre_model import GenreModel, ModelLike

NAMED = 5
"""The most files that an error names."""


@dataclass(frozen=True)
class ClipPrediction:
    """The genre of one audio file."""

    path: str
    genre: str
    """The most probable one."""
    probabilities: dict[str, float]
    """Calibrated, of each genre."""
    unsure: bool
    """The genre's probability is below what gave the asked-for precision on validation clips."""
    warning: str | None = None
    """Why this is worth less than others: the file is much shorter than what the model has learnt from, or damaged."""


@dataclass(frozen=True)
class NoPrediction:
    """An audio file that has no genre."""

    path: str
    why: str
    """Reason and detail, as in a feature set's quarantine; or that its store does not answer."""


@dataclass(frozen=True)
class ClipPredictions(Result):
    """The genres of some audio files, in the order that they were given."""

    clips: tuple[ClipPrediction, ...]
    failed: tuple[NoPrediction, ...] = ()
    """The files among them that give no prediction."""

    def problem(self) -> MgcError | None:
        """A RunError that names the files without a prediction, if there are any."""
        return RunError(self._failures()) if self.failed else None

    def _failures(self) -> str:
        named = "; ".join(f"{each.path}: {each.why}" for each in self.failed[:NAMED])
        more = f"; and {len(self.failed) - NAMED} more" if len(self.failed) > NAMED else ""
        return f"{len(self.failed)} of {len(self.clips) + len(self.failed)} files give no prediction: {named}{more}"

    def __str__(self) -> str:
        """Return a line for each file: its genre, and how probable that is, or why it has none."""
        lines = [(clip.path, _said(clip)) for clip in self.clips]
        lines += [(each.path, f"no prediction: {each.why}") for each in self.failed]
        width = max((len(path) for path, _ in lines), default=0)
        return "\n".join(f"{path:<{width}}  {said}" for path, said in lines)


def predict(model: ModelLike, clips: Sequence[str | Path], *, precision: float = PRECISION) -> ClipPredictions:
    """Predict the genres of audio files, on the GPU if there is one.

    Parameters
    ----------
    model : str, Path, or object with ``checkpoint`` or ``run_id``
        A checkpoint folder, or the result of a training that has one; the id of an MLflow run with a checkpoint, or of
        a parent run of seeds or folds (the mean of its models' probabilities), or a result that knows it; or
        ``"champion"``, the model that was promoted.
    clips : sequence of str or Path
        MP3, WAV, FLAC or Ogg files, by path or URI.
    precision
        Share of right answers, on the model's validation clips, that ``unsure`` leaves.

    Returns
    -------
    ClipPredictions
        ``clips``: for each file ``path``, ``genre``, ``probabilities`` and whether it is ``unsure``; ``failed``: those
        that give none, and why.

    Raises
    ------
    InputError
        There is no such model, no file is named, or none gives a prediction; the message names them.
    RunError
        The MLflow store does not answer.

    Examples
    --------
    >>> predict("champion", ["song.mp3"]).clips[0].genre  # doctest: +SKIP
    'Folk'
    """
    if not clips:
        raise InputError("`clips`: name at least one audio file")
    loaded = load(model)
    threshold = loaded.threshold(precision)
    device = best_device()
    prepare(device)
    loaded.network.to(device)
    with quiet():
        answers = [_predict_clip(loaded, str(clip), threshold) for clip in clips]
    result = ClipPredictions(
        tuple(answer for answer in answers if isinstance(answer, ClipPrediction)),
        tuple(answer for answer in answers if isinstance(answer, NoPrediction)),
    )
    if not result.clips:
        raise InputError(str(result.problem()))
    return result


def _predict_clip(model: GenreModel, clip: str, threshold: float) -> ClipPrediction | NoPrediction:
    shown = str(Folder(clip)) if URI.match(clip) else clip  # without a password
    try:
        folder, name = Folder.at(clip).parent
        with open_clip(folder, name) as file:
            recording = Recording(file, model.card.spec)
            mean_G = answer(model, recording.pieces()).probabilities_G
    except (ClipError, InputError, StoreError) as error:  # its own, its URI's, its store's: the others are not at fault
        return NoPrediction(shown, str(error))
    genre = model.card.genres[int(mean_G.argmax())]
    probabilities = dict(zip(model.card.genres, mean_G.tolist(), strict=True))
    unsure = probabilities[genre] < threshold
    return ClipPrediction(shown, genre, probabilities, unsure, "; ".join(recording.warnings) or None)


def _said(clip: ClipPrediction) -> str:
    notes = ["unsure"] * clip.unsure + [clip.warning] * bool(clip.warning)
    return f"{clip.genre} ({clip.probabilities[clip.genre]:.0%})" + "".join(f", {note}" for note in notes)
