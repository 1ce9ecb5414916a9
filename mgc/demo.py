"""The main job, end to end, on a generated set: the story that ``make demo`` tells.

    mgc demo --out demo

Every step is the real one, by the same functions that the commands call; the set is synthetic and small, so the figures
say that the path works, not how good the models are.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mgc.collection.audit import audit
from mgc.collection.toy import make_toy
from mgc.collection.tracks import read_tracks
from mgc.config import PRESETS, SweepConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.core.progress import stage
from mgc.core.results import Result
from mgc.evaluation.evaluate import evaluate
from mgc.features.preprocess import preprocess
from mgc.library.predict import predict
from mgc.sweep.tune import tune
from mgc.training.train import train

if TYPE_CHECKING:
    from mgc.collection.audit import AuditReport
    from mgc.evaluation.evaluate import Evaluation
    from mgc.features.preprocess import Preprocessed
    from mgc.library.predict import ClipPrediction
    from mgc.sweep.tune import SweepResult
    from mgc.training.train import TrainedRun

MARK = ".mgc-demo"
EPOCHS = {"plain_cnn": 8, "short_chunk": 12}
TRIALS, TRIAL_EPOCHS = 4, 4
BATCH_SIZE = 8  # of some sixty training clips


@dataclass(frozen=True)
class DemoResult(Result):
    """What every step of the demo gave back."""

    out: Path
    audit: AuditReport
    preprocess: Preprocessed
    tune: SweepResult
    predict: ClipPrediction
    true_genre: str
    """Of the clip that was predicted."""
    runs: dict[str, tuple[TrainedRun, Evaluation]]
    """By preset: the training, and its test-set evaluation."""

    def to_dict(self) -> dict[str, Any]:
        """Return the results of the steps, by step."""
        steps = {name: getattr(self, name).to_dict() for name in ("audit", "preprocess", "tune", "predict")}
        runs = {name: run.to_dict() | {"test": test.to_dict()} for name, (run, test) in self.runs.items()}
        return {"out": str(self.out), **steps, "predict": steps["predict"] | {"true": self.true_genre}, "runs": runs}

    def __str__(self) -> str:
        lines = [f"{'run':<14}{'training':>10}{'validation':>12}{'gap':>7}{'test (95 % interval)':>26}"]
        for name, (run, test) in self.runs.items():
            gap, (low, high) = run.train_accuracy - run.val_accuracy, test.ci95
            accuracies = f"{run.train_accuracy:>10.2f}{run.val_accuracy:>12.2f}{gap:>7.2f}"
            lines.append(f"{name:<14}{accuracies}{f'{test.accuracy:.2f} ({low:.2f} to {high:.2f})':>26}")
        sweep, made, said = self.tune, self.preprocess, self.predict
        finished = sweep.trials - sweep.failed - sweep.pruned
        retrained = max(each.val_accuracy for each in sweep.retrained)
        lines += [
            "",
            f"sweep: best validation accuracy {sweep.val_accuracy:.2f} of {finished} finished trials "
            f"({sweep.pruned} stopped early, {sweep.failed} failed), {retrained:.2f} with fresh seeds; "
            f"configuration in {sweep.config_file}",
            f"features: {made.written} clips, {made.quarantined} in quarantine: "
            + ", ".join(f"{count} {reason}" for reason, count in made.reasons.items()),
            f"prediction: {Path(said.path).name} is {said.genre} "
            f"({said.probabilities[said.genre]:.0%}; in truth {self.true_genre})",
            "",
            "Look at:",
            f"  every run, its curves, pictures and model:  {_program()} ui, then http://127.0.0.1:5000",
            f"  the report of «short_chunk»:                {self.runs['short_chunk'][1].report}",
            f"  the page of the sweep:                      {sweep.report}",
            f"  the feature set and its card:               {self.out}/features/README.md",
        ]
        return "\n".join(lines)


def demo(out: Path) -> DemoResult:
    """Run every step on a generated set: audit, preprocess, train two presets, sweep, evaluate, predict.

    Parameters
    ----------
    out
        The folder that gets ``data/`` and ``features/``; those of an earlier demo are made anew.

    Returns
    -------
    DemoResult
        The results of the steps.

    Raises
    ------
    InputError
        ``out`` is a file, or a folder with something else in it.
    """
    root, features = out / "data", out / "features"
    _clear(out, root, features)
    with stage("1/7 generate a synthetic set"):
        make_toy(root)
    with stage("2/7 audit it"):
        audited = audit(str(root))
    with stage("3/7 preprocess it with Ray Data"):
        preprocessed = preprocess(root, features)
    runs: dict[str, TrainedRun] = {}
    for name in EPOCHS:
        with stage(f"4/7 train «{name}»"):
            runs[name] = cast("TrainedRun", train(features, _config(name), run_name=f"demo {name}"))
    with stage("5/7 sweep the regularisation with Ray Tune"):
        base = replace(_config("short_chunk"), epochs=TRIAL_EPOCHS)
        tuned = tune(features, base, SweepConfig(trials=TRIALS, top=1, seeds=2, without=()))
    with stage("6/7 evaluate on the test split"):
        scored = {name: (run, evaluate(run, features)) for name, run in runs.items()}
    with stage("7/7 predict one clip"):
        tracks = read_tracks(root)
        clip = tracks.table.filter(tracks.table["split"].to_numpy() == "test").slice(0, 1).to_pylist()[0]
        (answer,) = predict(runs["short_chunk"], [root / clip["path"]]).clips
    return DemoResult(out.absolute(), audited, preprocessed, tuned, answer, clip["genre"], scored)


def _clear(out: Path, root: Path, features: Path) -> None:
    """Make the folder, without what an earlier demo has left in it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"`out={out}`: is a file; choose a folder")
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise InputError(f"`out={out}`: is not empty and not a demo's; choose another folder")
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(features, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("mgc demo made this folder and makes data/ and features/ in it anew\n")


def _config(preset: str) -> TrainConfig:
    """A preset, for as few clips and epochs as the demo has."""
    full = PRESETS[preset]
    return replace(full, epochs=EPOCHS[preset], optim=replace(full.optim, batch_size=BATCH_SIZE))


def _program() -> str:
    """How to call ``mgc`` from here: beside this Python, which may not be on the path."""
    program = Path(sys.executable).with_name("mgc")
    return os.path.relpath(program) if program.exists() else "mgc"
