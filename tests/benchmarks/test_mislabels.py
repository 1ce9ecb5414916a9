"""The benchmark's wrong labels are those that it says, and in training and validation alone."""

import importlib.util
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "mislabels.py"


def test_as_many_labels_are_wrong_as_asked_for_and_none_of_the_test_clips(features, tmp_path):
    spec = importlib.util.spec_from_file_location("mislabels_benchmark", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    flawed, wrong = program.with_wrong_labels(features, tmp_path / "set", 0.25, seed=3)
    before, after = features.to_pandas(spectrograms=True), flawed.to_pandas(spectrograms=True)
    changed = before["label"].to_numpy() != after["label"].to_numpy()
    assert set(before["track_id"][changed]) == wrong
    assert len(wrong) == 14  # a quarter of 56
    assert set(before["split"][changed]) == {"training", "validation"}
    assert after["genre"].tolist() == [flawed.manifest.genres[label] for label in after["label"]]
    assert all(np.array_equal(*pair) for pair in zip(before["logmel"], after["logmel"], strict=True))
    assert flawed.manifest.clips["training"] == after[after["split"] == "training"]["genre"].value_counts().to_dict()
    assert flawed.manifest.fingerprint != features.manifest.fingerprint
