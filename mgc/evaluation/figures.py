"""Plots: learning curves, confusion matrix, calibration, spectrograms, mistakes.

Shape suffixes: N clips, F mel bands, T frames, G genres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mgc.audio.logmel import standardize
from mgc.evaluation.calibration import FEWEST
from mgc.evaluation.metrics import BINS, bins, wilson
from mgc.pages.plots import GREY, TRAINING, VALIDATION, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from mgc.audio.logmel import LogMelSpec
    from mgc.dataset.clips import Clips
    from mgc.evaluation.calibration import Calibrated, Calibration
    from mgc.evaluation.metrics import Scores
    from mgc.evaluation.predictions import Predictions

    History: TypeAlias = Sequence[Mapping[str, float]]


_HOLLOW = {"color": VALIDATION, "mfc": "w", "alpha": 0.8}
"""How points look that are not the ones to read first."""


def learning_curves(history: History, best_epoch: int) -> Figure:
    """Plot loss and accuracy over epochs, training against validation, with the kept epoch marked.

    Parameters
    ----------
    history
        A dict an epoch: ``epoch``, ``train_loss``, ``val_loss``, ``train_accuracy``, ``val_accuracy``.
    best_epoch
        The epoch that was kept.

    Returns
    -------
    matplotlib.figure.Figure
        Loss above accuracy.
    """
    return member_curves([(history, best_epoch)])


def member_curves(members: Sequence[tuple[History, int]]) -> Figure:
    """Plot the learning curves of several models over each other, faintly.

    Parameters
    ----------
    members
        ``history`` and ``best_epoch`` of each, as ``learning_curves`` takes them.

    Returns
    -------
    matplotlib.figure.Figure
        Loss above accuracy.
    """
    figure = Figure(figsize=(5.4, 5.6), layout="constrained")
    faint = 1.0 if len(members) == 1 else 0.45
    for axes, what in zip(figure.subplots(2, 1, sharex=True), ("loss", "accuracy"), strict=True):
        for history, best_epoch in members:
            epochs = [point["epoch"] for point in history]
            for split, colour in (("train", TRAINING), ("val", VALIDATION)):
                values = [point[f"{split}_{what}"] for point in history]
                axes.plot(epochs, values, "o-", ms=3, color=colour, alpha=faint)
            axes.axvline(best_epoch, color=GREY, lw=1, ls="--", alpha=faint)
        axes.set_ylabel(what)
        axes.xaxis.get_major_locator().set_params(integer=True)
        plain(axes)
    axes.set(xlabel="epoch", ylim=(0, 1.02))
    for split, colour in (("training", TRAINING), ("validation", VALIDATION)):
        axes.plot([], [], "o-", ms=3, color=colour, label=split)
    kept = f"kept: epoch {members[0][1]}" if len(members) == 1 else "kept epochs"
    axes.plot([], [], color=GREY, lw=1, ls="--", label=kept)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, handlelength=1.5, columnspacing=1.2)
    return figure


def confusion_matrix(scores: Scores, split: str) -> Figure:
    """Plot true against predicted genres: a cell's number counts clips, its colour is their share of the true genre.

    Parameters
    ----------
    scores
        Of the split.
    split
        Its name, for the title.

    Returns
    -------
    matplotlib.figure.Figure
        A matrix with a row for each true genre.
    """
    genres = list(scores.per_genre)
    counts = np.array(scores.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.55 * len(genres)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(genres))
    axes.set_xticks(ticks, genres, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(ticks, genres, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true", title=f"{split}: {scores.accuracy:.3f} of {scores.n} clips")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, count, ha="center", va="center", color="w" if shares[row, column] > 0.55 else "k")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true genre")
    return figure


def reliability(scores: Scores, split: str) -> Figure:
    """Plot accuracy against confidence, bin by bin of the calibration error, and the clips in each bin.

    A perfectly calibrated model is on the diagonal. Error bars are Wilson's 95 % interval of the accuracy.

    Parameters
    ----------
    scores
        Of the split.
    split
        Its name, for the title.

    Returns
    -------
    matplotlib.figure.Figure
        Accuracy above a histogram of the confidence.
    """
    figure = Figure(figsize=(5.4, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    confidence = [each.confidence for each in scores.reliability]
    accuracy = np.array([each.accuracy for each in scores.reliability])
    clips = [each.clips for each in scores.reliability]
    ends = np.array([wilson(round(each.accuracy * each.clips), each.clips) for each in scores.reliability]).T
    upper.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="calibrated")
    spread = np.maximum(np.abs(ends - accuracy), 0)
    upper.errorbar(
        confidence, accuracy, spread, fmt="o", ms=6, color=TRAINING, ecolor=TRAINING, elinewidth=1.2, label="model"
    )
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    upper.set_title(f"{split}: calibration error {scores.ece:.3f} of {scores.n} clips", fontsize=11)
    upper.legend(frameon=False, loc="upper left")
    width = 1 / BINS
    edges = np.ceil(np.array(confidence) / width - 1e-9) * width
    lower.bar(edges, clips, -width, align="edge", color=TRAINING, edgecolor="w")
    lower.set(xlabel="confidence: probability of the predicted genre", ylabel="clips")
    lower.xaxis.set_major_formatter(PercentFormatter(1))
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (upper, lower):
        plain(axes)
    return figure


def risk_coverage(predictions: Predictions, calibration: Calibration, calibrated: Calibrated) -> Figure:
    """Plot how right the answers are when the less confident ones are left out, and the reliability before and after.

    The first is the risk–coverage curve with accuracy in place of risk (R. El-Yaniv, Y. Wiener: «On the Foundations of
    Noise-free Selective Classification», JMLR 2010), from ``calibration.FEWEST`` clips on, in Wilson's 95 % band.

    Parameters
    ----------
    predictions
        Of a split.
    calibration
        Of the models that predicted.
    calibrated
        What it makes of the predictions: its threshold is marked.

    Returns
    -------
    matplotlib.figure.Figure
        The curve above the reliability.
    """
    probabilities_NG = calibration(predictions.probabilities_NG)
    confidence_N, right_N, n = probabilities_NG.max(1), predictions.right, len(predictions.labels_N)
    counts = np.unique(np.linspace(min(FEWEST, n), n, 200).round().astype(int))
    right = np.cumsum(right_N[np.argsort(-confidence_N, kind="stable")])[counts - 1]
    ends = np.array([wilson(int(some), int(count)) for some, count in zip(right, counts, strict=True)])
    figure = Figure(figsize=(5.4, 7.6), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    upper.fill_between(counts / n, ends[:, 0], ends[:, 1], color=TRAINING, alpha=0.18, lw=0, label="95% interval")
    upper.plot(counts / n, right / counts, color=TRAINING, lw=1.8, label="accuracy of the most confident")
    upper.axhline(right_N.mean(), color=GREY, lw=1, ls="--", label=f"answering all: {right_N.mean():.1%}")
    if calibrated.sure_accuracy is not None:
        label = f"sure: {calibrated.sure_accuracy:.1%} right of {calibrated.sure_share:.0%} of the clips"
        upper.plot(calibrated.sure_share, calibrated.sure_accuracy, "o", ms=9, color=VALIDATION, mec="w", label=label)
    upper.set(xlabel="share of the clips that is answered, the most confident first", ylabel="accuracy of these")
    upper.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
    upper.set_title(f"{predictions.source.title}: what leaving unsure clips out buys", fontsize=11)
    upper.legend(frameon=False, fontsize=8.5)
    lower.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="calibrated")
    before = bins(predictions.probabilities_NG.max(1), right_N)
    after = bins(confidence_N, right_N)
    error = predictions.score().ece
    named = f"before: calibration error {error:.3f}"
    lower.plot([b.confidence for b in before], [b.accuracy for b in before], "s-", ms=5, lw=0.8, **_HOLLOW, label=named)
    ends = np.array([wilson(round(b.accuracy * b.clips), b.clips) for b in after])
    named = f"after, temperature {calibrated.temperature:.2f}: {calibrated.ece:.3f}"
    accuracy = np.array([b.accuracy for b in after])
    spread = np.maximum(np.abs(ends.T - accuracy), 0)
    lower.errorbar(
        [b.confidence for b in after], accuracy, spread, fmt="o", ms=6, color=TRAINING, elinewidth=1.2, label=named
    )
    lower.set(xlabel="confidence: probability of the predicted genre", ylabel="accuracy", xlim=(0, 1.02))
    lower.set(ylim=(-0.02, 1.02))
    lower.legend(frameon=False, fontsize=8.5)
    for axes in (upper, lower):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        plain(axes)
    return figure


def spectrogram(mel_FT: NDArray[np.float16], spec: LogMelSpec) -> Figure:
    """Plot one log-Mel spectrogram, without axes.

    Parameters
    ----------
    mel_FT : np.ndarray [shape=(F, T)]
        Scaled as its recipe says.
    spec
        Its recipe.

    Returns
    -------
    matplotlib.figure.Figure
        Nothing but the spectrogram: time from left to right, low bands at the bottom.
    """
    figure = Figure(figsize=(3.2, 0.8))
    axes = figure.add_axes((0, 0, 1, 1))
    _spectrogram(axes, mel_FT, spec)
    axes.set_axis_off()
    return figure


def spectrograms(clips: Clips, genres: tuple[str, ...], spec: LogMelSpec, columns: int = 3) -> Figure:
    """Plot some log-Mel spectrograms of each genre, a row a genre, on one colour scale; only these are read.

    Parameters
    ----------
    clips
        Clips to choose from, in memory or in their shards.
    genres
        Names of the labels.
    spec
        The recipe of the spectrograms.
    columns
        Clips of each genre, at most.

    Returns
    -------
    matplotlib.figure.Figure
        The grid of spectrograms.
    """
    columns = min(columns, int(np.bincount(clips.labels_N).max()))
    shown = [np.flatnonzero(clips.labels_N == label)[:columns] for label in range(len(genres))]
    mel_NFT = iter(clips.mel_NFT[np.concatenate(shown)])
    figure = Figure(figsize=(3.6 * columns + 0.6, 1.35 * len(genres) + 0.5), layout="constrained")
    grid = figure.subplots(len(genres), columns, sharex=True, sharey=True, squeeze=False)
    for line, rows, genre in zip(grid, shown, genres, strict=True):
        for axes, row in zip(line, rows, strict=False):
            image = _spectrogram(axes, next(mel_NFT), spec)
            axes.set_title(f"clip {clips.track_ids_N[row]}", fontsize=7, pad=2)
        for axes in line[len(rows) :]:
            axes.set_axis_off()
        line[0].set_ylabel(f"{genre}\nmel band", fontsize=8, parse_math=False)
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=8)
    figure.colorbar(image, ax=grid, shrink=0.5, label="z-score")
    return figure


def embedding_map(vectors_ND: NDArray[np.float32], labels_N: NDArray[np.int64], genres: tuple[str, ...]) -> Figure:
    """Plot an encoder's vectors of clips on their first two principal components (PCA), a colour a genre.

    Parameters
    ----------
    vectors_ND : np.ndarray [shape=(N, D)]
        A vector for each clip; each of its values is standardised first.
    labels_N : np.ndarray [shape=(N,)]
        Labels of the clips.
    genres
        Names of the labels.

    Returns
    -------
    matplotlib.figure.Figure
        A point for each clip.
    """
    z_ND = vectors_ND - vectors_ND.mean(0)
    z_ND /= np.maximum(z_ND.std(0), 1e-6)
    left, strength, _ = np.linalg.svd(z_ND, full_matrices=False)
    points_N2 = left[:, :2] * strength[:2]
    shares = strength**2 / max(float((strength**2).sum()), 1e-12)
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    axes = figure.subplots()
    for label, genre in enumerate(genres):
        x_N, y_N = points_N2[labels_N == label].T
        axes.scatter(x_N, y_N, s=14, alpha=0.75, linewidths=0, color=f"C{label % 10}", label=genre)
    axes.set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second component ({shares[1]:.0%})")
    legend = axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)
    plain(axes)
    return figure


def mistakes(clips: Clips, probabilities_NG: NDArray[np.float32], genres: tuple[str, ...], spec: LogMelSpec) -> Figure:
    """Plot the spectrogram of each wrongly predicted clip, with true genre, predicted genre and confidence.

    Parameters
    ----------
    clips
        The clips, the most confident mistake first; they are numbered from 1.
    probabilities_NG : np.ndarray [shape=(N, G)]
        Their predicted probabilities.
    genres
        Names of the labels.
    spec
        The recipe of the spectrograms.

    Returns
    -------
    matplotlib.figure.Figure
        A row for each clip.
    """
    figure = Figure(figsize=(5.4, 1.45 * len(clips) + 0.4), layout="constrained")
    grid = figure.subplots(len(clips), 1, sharex=True, squeeze=False)[:, 0]
    mel_NFT = clips.mel_NFT[np.arange(len(clips))]
    for row, axes in enumerate(grid):
        _spectrogram(axes, mel_NFT[row], spec)
        true, predicted = genres[clips.labels_N[row]], genres[probabilities_NG[row].argmax()]
        title = f"{row + 1}   {true}, taken for {predicted} ({probabilities_NG[row].max():.0%})"
        axes.set_title(title, fontsize=10, loc="left", pad=3, parse_math=False)
        axes.set_yticks([])
    axes.set_xlabel("seconds")
    return figure


def _spectrogram(axes: Axes, mel_FT: NDArray[np.float16], spec: LogMelSpec) -> Any:
    axes.tick_params(labelsize=7)
    return axes.imshow(
        mel_FT.astype(np.float32) if spec.scaling == "zscore" else standardize(mel_FT.astype(np.float32))[0],
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-3,
        vmax=3,
        extent=(0, spec.seconds, 0, spec.n_mels),
    )
