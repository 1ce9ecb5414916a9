"""How many wrong labels `mgc mislabels` finds: some labels are made wrong, and its list is compared with them.

    python benchmarks/mislabels.py FEATURES [--share 0.05] [--seeds 0 1] [--folds 4] [--preset short_chunk] [--out DIR]

For each seed: of the training and validation clips the share is drawn, and each of them gets another genre, drawn
evenly, in a copy of the feature set; `mgc train --folds` cross-validates the copy, and `mgc mislabels` lists it.
Precision at k is the share of wrong labels among the first k of the list, with Wilson's 95 % interval; average
precision is over all these clips. What is wrong in the labels of the original counts against it. Chance is the share.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mgc.config import PRESETS
from mgc.core.storage import Folder
from mgc.evaluation.metrics import wilson
from mgc.features import shards
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import MANIFEST, SHARDS, parquet_bytes, read_table
from mgc.training.train import train


def with_wrong_labels(features: FeatureSet, path: Path, share: float, seed: int) -> tuple[FeatureSet, set[int]]:
    """Copy a set to `path` with wrong labels in it, and say which clips have them."""
    genres, random, folder = features.manifest.genres, np.random.default_rng(seed), Folder.at(path)
    learnt = [entry for entry in features.manifest.shards if entry.split != "test"]
    ids = np.concatenate([features.table(entry, ["track_id"])["track_id"].to_numpy() for entry in learnt])
    wrong = set(random.choice(ids, round(share * len(ids)), replace=False).tolist())
    folder.make(SHARDS)
    entries, counts = [], {split: dict.fromkeys(genres, 0) for split in features.manifest.clips}
    for entry in features.manifest.shards:
        with features.folder.random_access(entry.file) as stream:
            table = read_table(stream)
        labels = table["label"].to_numpy().copy()
        for row, track_id in enumerate(table["track_id"].to_pylist()):
            if track_id in wrong:
                labels[row] = (labels[row] + random.integers(1, len(genres))) % len(genres)
        for name, values in (("label", labels), ("genre", [genres[label] for label in labels])):
            place = table.schema.get_field_index(name)
            column = pa.chunked_array([pa.array(values, table.schema.field(name).type)])
            table = table.set_column(place, table.schema.field(name), column)
        folder.write(entry.file, parquet_bytes(table))
        entries.append(shards.read_record(folder, entry.file).entry)
        for label in labels:
            counts[entry.split][genres[label]] += 1
    fingerprint = hashlib.sha256(f"{features.manifest.fingerprint} {share} {seed}".encode()).hexdigest()
    manifest = replace(features.manifest, fingerprint=fingerprint, clips=counts, shards=tuple(entries))
    folder.write(MANIFEST, manifest.to_json().encode())
    return FeatureSet.open(path), wrong


def measure(features: FeatureSet, flags: argparse.Namespace, seed: int) -> None:
    """Print the figures of one seed."""
    folder = flags.out / f"seed_{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    flawed, wrong = with_wrong_labels(features, folder, flags.share, seed)
    config = replace(PRESETS[flags.preset], folds=flags.folds, seed=seed)
    config = replace(config, epochs=flags.epochs or config.epochs)
    if flags.channels:
        config = replace(config, model=replace(config.model, channels=tuple(flags.channels)))
    trained = train(flawed, config)

    from sklearn.metrics import average_precision_score

    from mgc.evaluation.mislabels import mislabels, suspicion
    from mgc.evaluation.trained_models import kept_validation, read_models
    from mgc.tracking.runs import Run
    from mgc.tracking.store import existing_store

    most = max(50, len(wrong))
    found = mislabels(trained, flawed, root=flags.root, out=flags.out / f"seed_{seed}.html", most=most)
    hits = [row.track_id in wrong for row in found.rows]
    print(f"seed {seed}: {len(wrong)} of {found.clips} labels wrong ({len(wrong) / found.clips:.1%}: chance)")
    print(
        f"  models right of {found.accuracy:.1%} of the clips by the labels as they are; {found.disagreeing} disagree"
    )
    for k in sorted({20, 50, len(wrong)}):
        low, high = wilson(sum(hits[:k]), k)
        print(f"  precision at {k}: {sum(hits[:k])} of {k}, {sum(hits[:k]) / k:.1%} [{low:.1%}, {high:.1%}]")
    kept = kept_validation(read_models(Run.find(existing_store(flawed.folder), trained.run_id)))
    scores = suspicion(kept.labels_N, found.calibration(kept.probabilities_NG))
    truth = [track_id in wrong for track_id in kept.track_ids_N.tolist()]
    print(f"  average precision {average_precision_score(truth, scores):.3f}", flush=True)


def main() -> None:
    """Measure each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--preset", default="short_chunk", choices=list(PRESETS))
    parser.add_argument("--epochs", type=int, help="those of the preset by default")
    parser.add_argument("--channels", type=int, nargs="+", help="likewise")
    parser.add_argument("--root", type=Path, help="the collection, for players on the pages")
    parser.add_argument("--out", type=Path, help="keep pages, copies and runs here; nowhere by default")
    flags = parser.parse_args()
    features = FeatureSet.open(flags.features.resolve())
    flags.root = flags.root and flags.root.resolve()  # before the folder is another
    with tempfile.TemporaryDirectory() as scratch:
        flags.out = (flags.out or Path(scratch)).resolve()
        flags.out.mkdir(parents=True, exist_ok=True)
        os.chdir(flags.out)  # the MLflow store is here
        for seed in flags.seeds:
            measure(features, flags, seed)


if __name__ == "__main__":
    main()
