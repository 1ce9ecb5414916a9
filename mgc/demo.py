"""The main job, end to end, on a generated set: the story that ``make demo`` tells.

    mgc demo --out demo

Every step is the real one, by the same functions that the commands call; the set is synthetic and small, so the figures
say that the path works, not how good the models are.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mgc.collection import audit, toy
from mgc.collection.tracks import read_tracks
from mgc.config import PRESETS, SweepConfig
from mgc.core.errors import InputError
from mgc.core.progress import stage
from mgc.evaluation import evaluate, predict
from mgc.features import preprocess
from mgc.sweep import tune
from mgc.training import train

MARK = ".mgc-demo"
EPOCHS = {"baseline": 8, "regularized": 12}
TRIALS, TRIAL_EPOCHS = 4, 4
BATCH_SIZE = 8  # of some sixty training clips


def demo(out: Path) -> dict[str, Any]:
    """Generate, audit, preprocess, train two presets, sweep, evaluate, predict; return all results by step."""
    root, features = out / "data", out / "features"
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; choose a folder")
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise InputError(f"--out {out}: is not empty and not a demo's; choose another folder")
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(features, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("mgc demo made this folder and makes data/ and features/ in it anew\n")
    results: dict[str, Any] = {"out": str(out.absolute())}
    with stage("1/7 generate a synthetic set"):
        toy.make_toy(root)
    with stage("2/7 audit it"):
        results["audit"] = audit.audit(str(root)).to_dict()
    with stage("3/7 preprocess it with Ray Data"):
        results["preprocess"] = preprocess.preprocess(root, features)
    runs = {}
    for name, epochs in EPOCHS.items():
        with stage(f"4/7 train «{name}»"):
            config = replace(PRESETS[name], epochs=epochs, optim=replace(PRESETS[name].optim, batch_size=BATCH_SIZE))
            runs[name] = train.train(features, config, run_name=f"demo {name}")
    with stage("5/7 sweep the regularisation with Ray Tune"):
        base = replace(config, epochs=TRIAL_EPOCHS)
        results["tune"] = tune.tune(features, base, SweepConfig(trials=TRIALS, top=1, seeds=2, without=()))
    with stage("6/7 evaluate on the test split"):
        for name, run in runs.items():
            runs[name] = run | {"test": evaluate.evaluate(run["run_id"], features)}
    with stage("7/7 predict one clip"):
        tracks = read_tracks(root)
        clip = tracks.table.filter(tracks.table["split"].to_numpy() == "test").slice(0, 1).to_pylist()[0]
        answer = predict.predict(runs["regularized"]["checkpoint"], [root / clip["path"]])["clips"][0]
        results["predict"] = answer | {"true": clip["genre"]}
    return results | {"runs": runs}


def summary(results: dict[str, Any]) -> str:
    """The short table at the end, and where to look."""
    lines = [f"{'run':<14}{'training':>10}{'validation':>12}{'gap':>7}{'test (95 % interval)':>26}"]
    for name, run in results["runs"].items():
        gap, test = run["train_accuracy"] - run["val_accuracy"], run["test"]
        low, high = test["ci95"]
        interval = f"{test['accuracy']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"{name:<14}{run['train_accuracy']:>10.2f}{run['val_accuracy']:>12.2f}{gap:>7.2f}{interval:>26}")
    tuned, made, said = results["tune"], results["preprocess"], results["predict"]
    finished = tuned["trials"] - tuned["failed"] - tuned["pruned"]
    again = max(each["val_accuracy"] for each in tuned["again"])
    lines += [
        "",
        f"sweep: best validation accuracy {tuned['val_accuracy']:.2f} of {finished} finished trials "
        f"({tuned['pruned']} stopped early, {tuned['failed']} failed), {again:.2f} with fresh seeds; "
        f"configuration in {tuned['config_file']}",
        f"features: {made['written']} clips, {made['quarantined']} in quarantine: "
        + ", ".join(f"{count} {reason}" for reason, count in made["reasons"].items()),
        f"prediction: {Path(said['path']).name} is {said['genre']} "
        f"({said['probabilities'][said['genre']]:.0%}; in truth {said['true']})",
        "",
        "Look at:",
        f"  every run, its curves, pictures and model:  {_program()} ui, then http://127.0.0.1:5000",
        f"  the report of «regularized»:                {results['runs']['regularized']['test']['report']}",
        f"  the page of the sweep:                      {tuned['report']}",
        f"  the feature set and its card:               {results['out']}/features/README.md",
    ]
    return "\n".join(lines)


def _program() -> str:
    """How to call ``mgc`` from here: beside this Python, which may not be on the path."""
    program = Path(sys.executable).with_name("mgc")
    return os.path.relpath(program) if program.exists() else "mgc"
