"""Sweeps made by hand, in a second: what ``mgc tune`` leaves of one in its folder and in MLflow, without Ray."""

import json
import math
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mgc.config import ModelConfig, OptimConfig, SweepConfig, TrainConfig
from mgc.core.storage import Folder
from mgc.evaluation.predictions import Predictions, Source
from mgc.sweep.results import SweepView, Trial
from mgc.sweep.space import Space
from mgc.sweep.sweep_folder import SweepFolder
from mgc.tracking import runs as tracking
from mgc.tracking import store

BASE = TrainConfig(epochs=4)
CLIPS = 40
GENRES = ("Blues", "Folk", "Jazz", "Rock")
SPACE = {
    "model.norm": [False, True],
    "model.dropout": {"uniform": [0, 0.5]},
    "optim.lr": {"log_uniform": [0.0002, 0.005]},
    "augment.time_masks": [0, 1, 2],
    "augment.time_mask_frames": {"uniform": [10, 60], "when": {"augment.time_masks": [1, 2]}},
}


SMALL = TrainConfig(
    model=ModelConfig(channels=(4, 8), norm=True, head="avgmax", dropout=0.0),
    optim=OptimConfig(batch_size=8),
    epochs=3,
    seed=2,
)
"""A configuration whose fit takes a second."""


def begun(features, folder, base=SMALL, space=None, **settings) -> SweepFolder:
    """A sweep as ``mgc tune`` begins one."""
    uri = store.open_store(features.folder)
    parent = tracking.Run.start(uri, tracking.EXPERIMENT, name=folder.name, step="tune", config={})
    place, fingerprint = str(features.folder), features.manifest.fingerprint
    sweep = SweepFolder(
        Folder.at(folder), place, fingerprint, base.to_dict(), space or {}, SweepConfig(**settings), uri, parent.id
    )
    sweep.write()
    return sweep


@dataclass
class Sweep:
    """A sweep's parent run, and the runs under it by what they are."""

    run: tracking.Run
    trials: list[tracking.Run] = field(default_factory=list)
    again: list[tracking.Run] = field(default_factory=list)

    def trial(self, accuracy: float, outcome: str = "kept", reason: str = "", epochs: int = 4, **values) -> str:
        """A trial of the search, of these differences (``model__norm=True``); its id."""
        number = len(self.trials) + 1
        config = {name.replace("__", "."): value for name, value in values.items()}
        run = tracking.Run.start(
            self.run.uri, "mgc", name=f"trial {number}", step="trial", config=config, parent=self.run.id
        )
        for epoch in range(1, epochs + 1):
            seen = accuracy * (1 - math.exp(-epoch)) / (1 - math.exp(-epochs))
            run.metrics({"epoch/train_accuracy": min(1, seen + 0.1), "epoch/val_accuracy": seen}, epoch=epoch)
        if outcome == "kept":
            run.metrics({"val_accuracy": accuracy, "train_accuracy": accuracy + 0.2, "gap": 0.2})
        if outcome != "running":
            run.tag({tracking.OUTCOME_TAG: outcome, **({tracking.REASON_TAG: reason} if reason else {})})
            run.finish("FAILED" if outcome == "failed" else "FINISHED")
        self.trials.append(run)
        return run.id

    def seeds(
        self,
        name: str,
        right: list[np.ndarray],
        training: list[float],
        tags: dict[str, str],
        *,
        first: float | None = None,
        seeds: tuple[int, ...] = (),
        status: str = "FINISHED",
    ) -> str:
        """A configuration with fresh seeds: whether each seed has each validation clip right, its training accuracy."""
        parent = tracking.Run.start(
            self.run.uri, "mgc", name=name, step="seeds", config={}, parent=self.run.id, tags=tags
        )
        for seed, right_N, accuracy in zip(seeds or range(1, len(right) + 1), right, training, strict=True):
            config = {"seed": seed}
            run = tracking.Run.start(
                self.run.uri, "mgc", name=f"seed {seed}", step="trial", config=config, parent=parent.id
            )
            run.metrics({"val_accuracy": right_N.mean(), "train_accuracy": accuracy})
            said(right_N).keep(run)
            run.finish("FINISHED")
        means = [right_N.mean() for right_N in right]
        figures = {"val_accuracy": np.mean(means), "train_accuracy": np.mean(training)}
        figures |= {"val_accuracy_sd": np.std(means, ddof=1)} if len(means) > 1 else {}
        figures |= {} if first is None else {"first_val_accuracy": first, "shrinkage": first - np.mean(means)}
        parent.metrics(figures)
        parent.finish(status)
        self.again.append(parent)
        return parent.id

    def repeat(self, of: str, right: list[np.ndarray], training: list[float], first: float, **options) -> str:
        """A trial of the search, retrained with fresh seeds."""
        tags = {tracking.STAGE_TAG: "again", tracking.OF_TAG: of}
        return self.seeds("again", right, training, tags, first=first, **options)

    def without(self, of: str, what: str, value: str, off: str, right, training, **options) -> str:
        """The winner with one field off."""
        tags = {tracking.STAGE_TAG: "without", tracking.OF_TAG: of}
        tags |= {tracking.FIELD_TAG: what, tracking.VALUE_TAG: value, tracking.OFF_TAG: off}
        return self.seeds(f"without {what}", right, training, tags, **options)

    def end(self, status: str = "FINISHED", **tags: str) -> tracking.Run:
        """Close it."""
        self.run.tag(tags and {f"mgc.{name}_run_id": value for name, value in tags.items()})
        self.run.finish(status)
        return self.run


def sweep(*, name: str = "a sweep", search: str = "tpe", tree: dict | None = None, base: TrainConfig = BASE) -> Sweep:
    """A sweep that has begun."""
    space = Space.of(tree or SPACE, base)
    words = {each.field: str(each) for each in space.dimensions}
    config = {"search": search, "trials": 8, "epochs": base.epochs, "top": 2, "seeds": 3, "space": words}
    uri = store.open_store(Folder.at(Path.cwd()))
    tags = {tracking.FEATURES_TAG: "data/set", tracking.FINGERPRINT_TAG: "f" * 64}
    run = tracking.Run.start(uri, "mgc", name=name, step="tune", config=config, tags=tags)
    with tempfile.TemporaryDirectory() as folder:
        for file, content in (("space.json", space.tree()), ("base.json", base.to_dict())):
            Path(folder, file).write_text(json.dumps(content))
            run.file(Path(folder, file))
    return Sweep(run)


def said(right_N: np.ndarray) -> Predictions:
    """Predictions that have these clips right, their rows in an order of their own."""
    rows = np.random.default_rng(int(right_N.sum())).permutation(len(right_N))
    labels_N = np.arange(len(right_N)) % len(GENRES)
    predicted_N = np.where(right_N, labels_N, (labels_N + 1) % len(GENRES))
    source = Source("validation", GENRES, "set", "f" * 64, "official", "")
    whole = Predictions(
        source, np.arange(len(right_N)), tuple(map(str, rows)), labels_N, np.eye(4, dtype=np.float32)[predicted_N]
    )
    return replace(
        whole,
        track_ids_N=whole.track_ids_N[rows],
        labels_N=whole.labels_N[rows],
        probabilities_NG=whole.probabilities_NG[rows],
    )


def first(count: int, clips: int = CLIPS) -> np.ndarray:
    """The first so many clips are right."""
    return np.arange(clips) < count


def full(name: str = "a sweep") -> Sweep:
    """A finished sweep: eight trials of all outcomes, two of them again, the winner without each of two fields."""
    made = sweep(name=name)
    plain = {"model__norm": False, "augment__time_masks": 0}
    masked = {"model__norm": True, "augment__time_masks": 1}
    made.trial(0.40, model__dropout=0.10, optim__lr=0.0004, **plain)
    best = made.trial(0.80, model__dropout=0.31, optim__lr=0.002, augment__time_mask_frames=25, **masked)
    made.trial(0.45, model__dropout=0.20, optim__lr=0.0030, **plain)
    second = made.trial(0.75, model__dropout=0.35, optim__lr=0.001, augment__time_mask_frames=44, **masked)
    made.trial(0.70, model__dropout=0.05, optim__lr=0.004, augment__time_mask_frames=12, **masked)
    why = "ASHA stopped it after 2 epochs"
    made.trial(0.42, "pruned", why, 2, model__dropout=0.45, optim__lr=0.0002, **plain)
    made.trial(0.20, "failed", "ValueError: a <b> & c", 1, model__dropout=0.5, optim__lr=0.005, **plain)
    made.trial(0.0, "stopped", "interrupted", 0, model__dropout=0.25, optim__lr=0.0025, **plain)
    made.repeat(best, [first(26), first(28), first(24)], [0.9, 0.9, 0.9], 0.80)
    winner = made.repeat(second, [first(28), first(30), first(29)], [0.85, 0.85, 0.85], 0.75)
    fields = ("model.norm", "model.dropout")
    made.without(winner, fields[0], "True", "False", [first(14), first(15), first(13)], [0.95, 0.96, 0.94])
    made.without(winner, fields[1], "0.3500001", "0.0", [first(28), first(29), first(30)], [0.85, 0.85, 0.85])
    made.end(winner=winner, best=best)
    return made


# Without MLflow


def trial(number: int, accuracy: float | None, outcome: str = "kept", epochs: int = 4, **values) -> Trial:
    """A trial as it is read."""
    curve = tuple((accuracy or 0) * epoch / epochs for epoch in range(1, epochs + 1))
    values = {name.replace("__", "."): value for name, value in values.items()}
    gap = 0.2 if outcome == "kept" else None
    return Trial(
        f"id{number}", f"trial {number}", outcome, "", values, tuple(range(1, epochs + 1)), curve, accuracy, gap
    )


def view(trials: list[Trial], *, tree: dict | None = None, search: str = "tpe", **others) -> SweepView:
    """A sweep as it is read, of these trials, the best first."""
    record = tracking.Record("a $sweep_{", "FINISHED", 0.0, {tracking.STEP_TAG: "tune"}, {}, False, {})
    best = next((each for each in trials if each.kept), None)
    rest = {"retrained": (), "winner": None, "effects": (), "missing": ()} | others
    space = Space.of(tree or SPACE, BASE)
    return SweepView(tracking.Run("", "id"), record, search, space, tuple(trials), best, **rest)


def drawn(count: int, seed: int = 0) -> list[Trial]:
    """Trials whose accuracy is model.norm's doing, and a little dropout's; masks only without norm."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        values = {"model__norm": bool(number % 2), "model__dropout": float(generator.uniform(0, 0.5))}
        values |= {"optim__lr": float(generator.uniform(0.0002, 0.005)), "augment__time_masks": number % 3}
        if number % 3:
            values["augment__time_mask_frames"] = int(generator.integers(10, 61))
        accuracy = 0.4 + 0.3 * values["model__norm"] - 0.1 * values["model__dropout"]
        made.append(trial(number, accuracy, **values))
    return sorted(made, key=lambda each: -each.val_accuracy)
