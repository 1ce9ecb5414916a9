"""FMA-small from its archives to a table: frozen encoders and small CNNs on the official artist-filtered split.

    mgc download fma_metadata --root fma && mgc download fma_small --root fma && mgc download musicnn
    python pipelines/fma_small.py --root fma --out results

Audits the collection, makes both feature sets and scores baselines; trains five seeds of a small CNN from scratch and
of a classifier on the pretrained encoder, evaluates each on the test split once, and blends them and the random CNN
with weights from validation. What is reached is in OUT/table.md and OUT/table.json, beside the feature sets. The same
command goes on where a killed one was: a row of OUT/table.json is not made again. ``--json`` and the exit codes are
those of ``mgc audit``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mgc
from mgc.cli import Audit, main
from mgc.config import track
from mgc.core.atomic_files import replacing
from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.core.results import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgc.features.feature_set import FeatureSet


FILE = "table.json"
RANDOM = "random CNN + ridge regression"


@dataclass(frozen=True)
class Row:
    """A line of the table: a kind of model on the test split."""

    model: str
    track: str
    run_id: str
    seeds: int
    accuracy: float
    """Of the models together."""
    ci95: tuple[float, float]
    macro_f1: float
    one: float
    """Mean accuracy of one model."""
    sd: float
    """Over the seeds; 0 of one that draws nothing."""
    validation: float
    """Accuracy there, of the models together."""
    seconds: float
    """Time that it took to train and to evaluate."""


@dataclass(frozen=True)
class Table(Result):
    """What was reached on the test split, and where it is written."""

    rows: tuple[Row, ...]
    out: str

    def __str__(self) -> str:
        """Return the table as Markdown."""
        head = "| model | track | seeds | validation | test: one model | test: together | macro-F1 | minutes |"
        lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|"]
        for row in self.rows:
            low, high = row.ci95
            one = f"{row.one:.3f} ± {row.sd:.3f}" if row.seeds > 1 else ""
            together = f"{row.accuracy:.3f} [{low:.3f}, {high:.3f}]"
            lines.append(
                f"| {row.model} | {row.track} | {row.seeds} | {row.validation:.3f} | {one} | {together} | "
                f"{row.macro_f1:.3f} | {row.seconds / 60:.1f} |"
            )
        return "\n".join(lines)


def run_all(command: Audit, *, out: Path, seeds: int, presets: list[str], epochs: int) -> Table:
    """Refuse a collection that leaks, then make each row of the table that is not there yet."""
    if seeds < 2:
        raise InputError(f"`seeds={seeds}`: must be at least 2")
    configs = {name: mgc.PRESETS[name] for name in presets if name in mgc.PRESETS}
    if len(configs) < len(presets):
        raise InputError(f"`presets={' '.join(presets)}`: choose from {', '.join(mgc.PRESETS)}")
    if epochs:
        configs = {name: replace(config, epochs=epochs) for name, config in configs.items()}
    root = command.root
    which: dict[str, Any] = {"subset": command.subset, "allow_outside": command.allow_outside}
    report = mgc.audit(root, **which)
    say(str(report))
    if problem := report.problem():
        raise problem
    out.mkdir(parents=True, exist_ok=True)
    sets = {name: mgc.extract_features(root, out / name, features=name, **which) for name in ("logmel", "musicnn")}
    settings: dict[str, Any] = {name: config.to_dict() for name, config in configs.items()} | {"seeds": seeds}
    settings |= {f"{name} set": features.manifest.fingerprint for name, features in sets.items()}
    table = _Table.read(out, json.loads(json.dumps(settings)))

    def add(model: str, make: Callable[[str], Row]) -> Row:
        if model not in table.rows:
            say(f"fma_small: {model}")
            table.rows[model] = make(model)
            table.write()
        return table.rows[model]

    add("MFCC + SVM", partial(_baseline, sets["logmel"], root=root))
    random = add(RANDOM, partial(_baseline, sets["logmel"], kind="random_cnn", classifier="ridge"))
    add("musicnn + SVM", partial(_baseline, sets["musicnn"], encoder="musicnn"))
    add("musicnn_random + SVM", partial(_baseline, sets["musicnn"], encoder="musicnn_random"))
    trained = [
        add(
            name,
            partial(_trained, table, sets["logmel" if config.model.encoder == "none" else "musicnn"], config, seeds),
        )
        for name, config in configs.items()
    ]
    blended = [*trained, random]
    add(" + ".join(row.model for row in blended), partial(_blend, blended))
    return Table(tuple(table.rows.values()), str(out))


@dataclass
class _Table:
    """The table while it is made: what is in OUT/table.json."""

    out: Path
    settings: dict[str, Any]
    """What the rows depend on: configurations, seeds, feature sets."""
    rows: dict[str, Row]
    runs: dict[str, str]
    """Trained parent runs by model, whose row may not be made yet."""

    @classmethod
    def read(cls, out: Path, settings: dict[str, Any]) -> _Table:
        file = out / FILE
        if not file.exists():
            return cls(out, settings, {}, {})
        tree = json.loads(file.read_text())
        if tree["settings"] != settings:
            raise InputError(f"`out={out}`: {FILE} is of other presets, seeds, epochs or clips; choose another folder")
        rows = {row["model"]: Row(**row | {"ci95": tuple(row["ci95"])}) for row in tree["rows"]}
        return cls(out, settings, rows, tree["runs"])

    def write(self) -> None:
        tree = {"settings": self.settings, "runs": self.runs, "rows": [asdict(row) for row in self.rows.values()]}
        table = str(Table(tuple(self.rows.values()), str(self.out)))
        for name, text in ((FILE, json.dumps(tree, indent=1)), ("table.md", table)):
            with replacing(self.out / name) as temporary:
                temporary.write_text(text + "\n")


def _baseline(features: FeatureSet, model: str, *, encoder: str = "none", **given: Any) -> Row:
    """Statistics, or the vectors of an encoder, and a classifier."""
    from mgc.evaluation.baseline import baseline

    found = baseline(features, encoder=encoder, **given)  # type: ignore[arg-type]
    figures = (found.accuracy, found.ci95, found.macro_f1, found.accuracy, 0.0, found.validation_accuracy)
    return Row(model, track(encoder), found.run_id, 1, *figures, found.seconds)


def _trained(table: _Table, features: FeatureSet, config: mgc.TrainConfig, seeds: int, model: str) -> Row:
    """Several seeds of a network, evaluated together and each alone."""
    from mgc.evaluation.evaluate import evaluate_once

    start = time.monotonic()
    if model not in table.runs:
        table.runs[model] = mgc.fit(features, config, seeds=seeds, run_name=model).run_id
        table.write()
    run = table.runs[model]
    validation = evaluate_once(run, features, split="validation")
    found = evaluate_once(run, features)
    figures = (found.accuracy, found.ci95, found.macro_f1, found.accuracy_mean, found.accuracy_sd)
    return Row(model, config.track, run, seeds, *figures, validation.accuracy, time.monotonic() - start)


def _blend(rows: list[Row], model: str) -> Row:
    """Several rows together, by weights from validation."""
    from mgc.evaluation.blend import blend

    start = time.monotonic()
    on_validation = blend([row.run_id for row in rows])
    found = blend([row.run_id for row in rows], split="test")
    figures = (found.accuracy, found.ci95, found.macro_f1, found.accuracy, 0.0, on_validation.accuracy)
    return Row(model, "together", found.run_id, 1, *figures, time.monotonic() - start)


if __name__ == "__main__":
    usage = "fma_small.py --root ROOT --out OUT [FLAGS]"
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=usage)
    parser.add_argument("--out", type=Path, required="--help" not in sys.argv, help="for feature sets and the table")
    parser.add_argument("--seeds", type=int, default=5, help="models of each network, which differ by their seed")
    parser.add_argument("--presets", nargs="+", default=["short_chunk", "musicnn"], help="networks of the table")
    parser.add_argument("--epochs", type=int, default=0, help="of each network, for a rehearsal; by default its own")
    own, rest = parser.parse_known_args()
    if "--help" in rest:
        parser.print_help()
    main(["audit", *rest], partial(run_all, **vars(own)))
