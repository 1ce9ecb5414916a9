"""The baseline: FMA's own statistics on real clips, each clip in its split, one evaluation on the test clips."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import librosa
import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import stats

from mgc.audio.logmel import LogMelSpec
from mgc.collection.splits import SPLITS
from mgc.collection.tracks import read_tracks
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.dataset import clips as clips_of
from mgc.dataset import protocols as learning
from mgc.evaluation import baseline as module
from mgc.evaluation import clip_statistics
from mgc.evaluation.baseline import baseline
from mgc.evaluation.clip_statistics import mfcc_statistics
from mgc.evaluation.predictions import Predictions
from mgc.features import shards
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import FORMAT, MANIFEST, Manifest
from mgc.features.plan import Plan, Recipe, with_sizes
from mgc.tracking import runs as tracking
from mgc.tracking import store

RECIPE = Recipe(spec=LogMelSpec(seconds=3.0), min_seconds=1.0)
GENRES = 3
FIGURES = {"n", "accuracy", "ci95", "macro_f1", "per_genre", "confusion"}
LEAK = {"by": "id", "artist_id": "7", "artist_name": "AWOL", "splits": {"training": 2, "test": 1}}


def reference(path, seconds):
    """FMA's features.py, to the letter, but for how much of the file it hears."""
    x, sr = librosa.load(path, sr=None, mono=True, duration=seconds)
    stft = np.abs(librosa.stft(x, n_fft=2048, hop_length=512))
    mel = librosa.feature.melspectrogram(sr=sr, S=stft**2)
    values = librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=20)
    moments = [np.mean(values, axis=1), np.std(values, axis=1), stats.skew(values, axis=1)]
    moments += [stats.kurtosis(values, axis=1), np.median(values, axis=1), np.min(values, axis=1)]
    return np.concatenate([*moments, np.max(values, axis=1)])


@pytest.fixture(scope="module")
def feature_set(mini, tmp_path_factory):
    """A set of the 45 real clips of three soundtracks: 33 training, 6 validation, 6 test."""
    tracks = read_tracks(mini)
    table = tracks.table.filter(pc.less(tracks.table["label"], GENRES))
    plan = Plan.of(with_sizes(table, tracks.audio_root), RECIPE)
    folder = Folder.at(tmp_path_factory.mktemp("baseline") / "set")
    folder.make()
    plan.begin(folder, overwrite=False)
    records = [shards.write(s, tracks.audio_root, folder, recipe=RECIPE, clip_timeout=60.0) for s in plan.shards]
    manifest = Manifest(
        format=FORMAT,
        fingerprint=plan.fingerprint,
        recipe=RECIPE.to_dict(),
        genres=tracks.genres[:GENRES],
        artist_leaks=(),
        shards=tuple(record.entry for record in records),
        **shards.totals(records),
    )
    folder.write(MANIFEST, pa.py_buffer(manifest.to_json().encode()))
    return FeatureSet(folder, manifest)


@pytest.fixture(scope="module")
def made(mini, feature_set):
    """The whole path once: the result, and the statistics on the way."""
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        compute = module.mfccs_of
        patch.setattr(module, "mfccs_of", lambda *given: kept.append(compute(*given)) or kept[0])
        result = baseline(feature_set.folder.path, mini, workers=2)
    return result, kept[0]


@pytest.fixture
def telling(feature_set, monkeypatch):
    """Make statistics that tell a clip's genre in training, the next one in validation and the next but one in test.

    Three more columns tell the true genres of all but training clips: to a machine that is fitted to them.
    """

    def prepare(protocol):
        clips = clips_of.load(feature_set, *SPLITS, lazily=True)
        held = [set(learning.held_out(feature_set, name, protocol).track_ids_N) for name in SPLITS]
        steps_N = np.array([next(i for i, ids in enumerate(held) if track in ids) for track in clips.track_ids_N])
        told_ND = np.eye(GENRES)[(clips.labels_N + steps_N) % GENRES]
        marks_ND = np.eye(GENRES)[clips.labels_N] * (steps_N > 0)[:, None]
        monkeypatch.setattr(module, "mfccs_of", lambda *_: np.hstack([told_ND, marks_ND]))
        return clips.labels_N[steps_N == SPLITS.index("test")]

    return prepare


def test_the_statistics_of_a_real_clip_are_those_of_fmas_own_code(mini):
    path = read_tracks(mini).table["path"][0].as_py()
    values = clip_statistics._of_clip(path, Folder.at(mini), 29.9)
    assert values.shape == (140,)
    np.testing.assert_allclose(values, reference(mini / path, 29.9), rtol=1e-3, atol=1e-2)


def test_the_statistics_of_silence_are_numbers():
    assert np.isfinite(mfcc_statistics(np.zeros(22_050, np.float32), 22_050)).all()


def test_each_clip_has_its_own_statistics_of_what_the_recipe_takes(made, mini, feature_set):
    _, statistics_ND = made
    paths = clips_of.load(feature_set, *SPLITS, lazily=True).paths
    assert statistics_ND.shape == (45, 140)
    for row in (0, 20, 44):
        np.testing.assert_allclose(statistics_ND[row], reference(mini / paths[row], 3.0), rtol=1e-3, atol=1e-2)


def test_the_result_has_the_contracts_keys_and_more_than_luck_in_it(made):
    result, _ = made
    others = {
        "run_id",
        "name",
        "split",
        "folds",
        "leaky",
        "looks",
        "training_accuracy",
        "validation_accuracy",
        "seconds",
    }
    assert set(result.to_dict()) == FIGURES | others
    assert (result.split, result.leaky, result.n) == ("official", False, 6)
    assert np.sum(result.confusion) == 6
    assert result.training_accuracy > 0.6
    assert result.test_evaluations == 1
    json.dumps(result.to_dict())


def test_the_run_keeps_the_figures(made, feature_set):
    result, _ = made
    run = mlflow.MlflowClient(store.existing_store(feature_set.folder)).get_run(result.run_id)
    assert (run.info.run_name, run.info.status) == ("MFCC + SVM", "FINISHED")
    assert run.data.tags["mgc.step"] == "baseline"
    assert run.data.tags["mgc.features.fingerprint"] == feature_set.manifest.fingerprint
    assert "mgc.leaky" not in run.data.tags
    assert run.data.params["split"] == "official"
    assert run.data.params["svm.C"] == "1.0"
    accuracies = (run.data.metrics["train_accuracy"], run.data.metrics["val_accuracy"])
    assert accuracies == (result.training_accuracy, result.validation_accuracy)
    assert run.data.metrics["gap"] == pytest.approx(result.training_accuracy - result.validation_accuracy)
    assert run.data.metrics["test_accuracy"] == result.accuracy
    assert (run.data.metrics["test_ci95_low"], run.data.metrics["test_ci95_high"]) == result.ci95


@pytest.mark.parametrize("split", ["official", "random"])
def test_the_machine_learns_from_training_clips_alone_and_is_scored_on_all_test_clips(
    telling, mini, feature_set, split
):
    labels_N = telling(split)
    result = baseline(feature_set.folder.path, mini, split=split)
    assert (result.training_accuracy, result.validation_accuracy, result.accuracy) == (1.0, 0.0, 0.0)
    expected = np.zeros((GENRES, GENRES), int)
    np.add.at(expected, (labels_N, (labels_N + 2) % GENRES), 1)
    assert result.confusion == expected.tolist()


def test_a_random_split_is_another_and_leaky(telling, mini, feature_set):
    assert len(telling("random")) != 6
    result = baseline(feature_set.folder.path, mini, split="random")
    assert result.leaky
    assert "LEAKY: a random split" in str(result)
    run = mlflow.MlflowClient(store.existing_store(feature_set.folder)).get_run(result.run_id)
    assert run.data.tags["mgc.leaky"] == "true"


def test_a_set_whose_artists_leak_is_leaky(telling, mini, feature_set, tmp_path):
    telling("official")
    leaking = shutil.copytree(feature_set.folder.path, tmp_path / "set")
    (leaking / MANIFEST).write_text(replace(feature_set.manifest, artist_leaks=(LEAK,)).to_json())
    result = baseline(leaking, mini)
    assert result.leaky
    assert "LEAKY: 1 artist is in more than one split: AWOL" in str(result)


def test_the_result_prints_the_figures_of_each_split_and_genre(made, feature_set):
    result, _ = made
    text = str(result)
    assert f"test: accuracy {result.accuracy:.3f}" in text
    assert f"training {result.training_accuracy:.3f}" in text
    assert f"validation {result.validation_accuracy:.3f}" in text
    assert "LEAKY" not in text
    for genre in feature_set.manifest.genres:
        assert genre in text


def test_a_missing_file_is_named_in_one_line_and_leaves_no_run(made, mini, feature_set, tmp_path):
    shutil.copytree(mini / "fma_metadata", tmp_path / "fma_metadata")
    client = mlflow.MlflowClient(store.existing_store(feature_set.folder))
    before = len(client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id]))
    with pytest.raises(InputError) as caught:
        baseline(feature_set.folder.path, tmp_path, workers=1)
    (line,) = str(caught.value).splitlines()
    for word in (f"`root={tmp_path}`", clips_of.load(feature_set, "training", lazily=True).paths[0], "missing"):
        assert word in line
    assert len(client.search_runs([client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id])) == before


def test_a_file_that_is_no_audio_is_named_in_one_line(tmp_path):
    (tmp_path / "page.mp3").write_text("<html>404</html>")
    with pytest.raises(InputError, match=r"page\.mp3: not_audio") as caught:
        clip_statistics._of_clip("page.mp3", Folder.at(tmp_path), 3.0)
    assert len(str(caught.value).splitlines()) == 1


def test_no_workers_are_refused(mini, feature_set):
    with pytest.raises(InputError, match="`workers=0`"):
        baseline(feature_set.folder.path, mini, workers=0)


@pytest.mark.parametrize("classifier", ["svm", "logistic"])
def test_a_cross_validation_predicts_each_clip_once_and_leaves_the_test_clips_alone(feature_set, classifier):
    result = baseline(feature_set.folder.path, kind="logmel", classifier=classifier, folds=3)
    assert (result.n, result.folds, result.test_evaluations) == (39, 3, 0)
    assert result.training_accuracy > result.accuracy == result.validation_accuracy
    run = tracking.Run.find(store.existing_store(feature_set.folder), result.run_id)
    kept = Predictions.kept(run, "validation")
    assert len({*kept.track_ids_N}) == 39
    assert kept.right.mean() == result.accuracy
    assert kept.probabilities_NG.sum(1) == pytest.approx(np.ones(39))
    assert Predictions.kept(run, "test") is None
    assert f"{result.name}, 3 folds, validation: accuracy {result.accuracy:.3f}" in str(result)


def test_log_mel_statistics_are_of_decibels(feature_set):
    statistics_ND = clip_statistics.logmels_of(feature_set, SPLITS)
    clips = clips_of.load(feature_set, *SPLITS)
    entry = next(entry for entry in feature_set.manifest.shards if entry.split == "training")
    row = feature_set.table(entry, ["mean_db", "std_db"]).to_pylist()[0]
    db_FT = clips.mel_NFT[0].astype(float) * row["std_db"] + row["mean_db"]
    assert statistics_ND.shape == (45, 256)
    np.testing.assert_allclose(statistics_ND[0], [*db_FT.mean(1), *db_FT.std(1)], rtol=1e-4, atol=1e-3)


def test_mfccs_need_the_audio_and_folds_the_official_split(feature_set):
    with pytest.raises(InputError, match="`root`: needed for MFCCs"):
        baseline(feature_set.folder.path)
    with pytest.raises(InputError, match="`folds=3`"):
        baseline(feature_set.folder.path, kind="logmel", folds=3, split="random")
