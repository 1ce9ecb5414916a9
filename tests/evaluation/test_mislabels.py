"""A label that was made wrong comes first, judged by models that never learnt the clip; names stay text on the page."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from helpers import feature_sets
from helpers.feature_sets import SHARDED_SPEC, make_sharded
from helpers.fits import PLAIN, one_thread  # noqa: F401 (a fit is the same each time)
from helpers.pages import Page
from helpers.runs import other_fingerprint, trained

from mgc import cli
from mgc.core.errors import InputError
from mgc.evaluation.calibration import Calibration
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.mislabels import mislabels, suspicion
from mgc.evaluation.predictions import Predictions
from mgc.evaluation.trained_models import kept_validation, predict_validation, read_models
from mgc.tracking.runs import Run
from mgc.tracking.store import existing_store
from mgc.training.train import train

WRONG = (103, 145)
"""Tracks whose label is not what they sound like: of training and of validation."""
NAMES = ("<script>alert(1)</script>", "Folk", "Jazz & Soul", "Rock")
CONFIG = replace(PLAIN, model=replace(PLAIN.model, head="flatten"), epochs=6, folds=2)


def sounds_like(track_id):
    return track_id % 4


def given(track_id):
    return (sounds_like(track_id) + (1 if track_id in WRONG else 0)) % 4


def sound(track_id):
    noise = np.random.default_rng(track_id).normal(size=SHARDED_SPEC.shape)
    noise[3 * sounds_like(track_id) : 3 * sounds_like(track_id) + 3] += 3
    return noise


@pytest.fixture(scope="module")
def flawed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_sets, "GENRES", NAMES)
        path = tmp_path_factory.mktemp("flawed") / "set"
        return make_sharded(path, genre=given, values=sound, training=[24, 16], validation=[12], test=[9])


@pytest.fixture(scope="module")
def folds(flawed):
    return train(flawed, CONFIG, seeds=2)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """The collection, but for one of its files; one of the wrong ones is in it."""
    folder = tmp_path_factory.mktemp("a b#c")
    for track_id in range(100, 161):
        if track_id != WRONG[1]:
            (folder / f"{track_id}.mp3").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def found(folds, flawed, music, tmp_path_factory):
    return mislabels(folds, flawed, root=music, out=tmp_path_factory.mktemp("page") / "doubts.html", most=5)


def models_of(result, features):
    return read_models(Run.find(existing_store(features.folder), result.run_id))


# What is found


def test_the_wrong_labels_come_first(found):
    assert {row.track_id for row in found.rows[:2]} == set(WRONG)
    for row in found.rows[:2]:
        assert row.label == NAMES[given(row.track_id)]
        assert row.predicted == NAMES[sounds_like(row.track_id)]
        assert row.score == pytest.approx(1 - row.label_probability)
    assert [row.score for row in found.rows] == sorted((row.score for row in found.rows), reverse=True)
    assert all(row.predicted != row.label for row in found.rows)
    assert found.disagreeing >= 2
    assert len(found.rows) == min(5, found.disagreeing)


def test_the_score_by_hand():
    probabilities_NG = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.4, 0.4, 0.2]], np.float32)
    assert suspicion(np.array([0, 1, 2]), probabilities_NG).tolist() == pytest.approx([0.3, 0.8, 0.8])


def test_each_clip_is_judged_by_the_models_that_never_learnt_it(found, folds, flawed):
    models = models_of(folds, flawed)
    _, anew = predict_validation(models, flawed)
    kept = kept_validation(models)
    assert kept.track_ids_N.tolist() == anew.track_ids_N.tolist()
    assert np.allclose(kept.probabilities_NG, anew.probabilities_NG, atol=1e-5)
    calibrated_NG = Calibration.fit(anew.labels_N, anew.probabilities_NG)(anew.probabilities_NG)
    scores = suspicion(anew.labels_N, calibrated_NG)
    assert found.rows[0].score == pytest.approx(scores.max(), abs=1e-4)
    wrong = calibrated_NG.argmax(1) != anew.labels_N
    assert {row.track_id for row in found.rows} <= set(anew.track_ids_N[wrong].tolist())
    assert found.clips == len(anew.labels_N) == 52
    assert found.accuracy == (anew.probabilities_NG.argmax(1) == anew.labels_N).mean()
    assert found.not_covered == {"test": 9}


def test_kept_predictions_are_used_and_others_made(folds, flawed, tmp_path, capsys, monkeypatch):
    evaluate(folds, flawed, split="validation")
    capsys.readouterr()
    again = mislabels(folds, flawed, out=tmp_path / "a.html", most=5)
    assert "keeps its predictions of its folds: nothing is predicted again" in capsys.readouterr().err
    monkeypatch.setattr(Predictions, "kept", classmethod(lambda cls, run, split: None))
    anew = mislabels(folds, flawed, out=tmp_path / "b.html", most=5)
    assert "nothing is predicted again" not in capsys.readouterr().err
    assert [row.track_id for row in anew.rows] == [row.track_id for row in again.rows]
    assert [row.score for row in anew.rows] == pytest.approx([row.score for row in again.rows], abs=1e-4)


def test_one_fold_alone_judges_its_own_clips_and_names_the_others(flawed, tmp_path):
    alone = train(flawed, replace(CONFIG, fold=1))
    result = mislabels(alone, flawed, out=tmp_path / "page.html")
    assert result.clips + sum(result.not_covered.values()) == 61
    assert set(result.not_covered) == {"training", "validation", "test"}
    assert "not judged: " in str(result)


# How it is shown


def test_it_prints_a_table_and_gives_plain_values(found):
    lines = str(found).splitlines()
    assert lines[0].startswith("52 clips judged by models that never learnt them, right of ")
    assert lines[1] == "not judged: 9 test clips"
    assert lines[3].split()[0] == "1"
    assert lines[3].endswith(found.rows[0].path)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["rows"][0]["track_id"] in WRONG
    assert plain["temperature"] == found.calibration.temperature
    assert "calibration" not in plain


def test_twenty_rows_are_printed_and_the_others_counted(found):
    long = replace(found, rows=found.rows[:1] * 23)
    assert len(str(long).splitlines()) == 2 + 1 + 20 + 1 + 2
    assert "and 3 more on the page" in str(long)


def test_the_table_beside_the_page_has_the_rows(found):
    with open(found.csv, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["track_id"]) for row in rows] == [row.track_id for row in found.rows]
    assert [row["label"] for row in rows] == [row.label for row in found.rows]
    assert [float(row["score"]) for row in rows] == [row.score for row in found.rows]


def test_names_are_text_on_the_page(found):
    page = Page(Path(found.page).read_text())
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "given as <script>alert(1)</script> (" in page.text or "sounds like <script>alert(1)</script> (" in page.text
    assert "Not judged: 9 test clips" in page.text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(found.rows)
    assert all(each["src"].startswith("data:image/webp;base64,") for each in pictures)


def test_players_are_relative_to_the_page_and_only_where_the_file_is(found, music):
    page = Page(Path(found.page).read_text())
    players = [attributes for tag, attributes in page.tags if tag == "audio"]
    there = [row for row in found.rows if row.track_id != WRONG[1]]
    assert len(players) == len(there) < len(found.rows)
    for player, row in zip(players, there, strict=True):
        assert player["preload"] == "none"
        assert "controls" in player
        assert "#" not in player["src"]
        assert (Path(found.page).parent / unquote(player["src"])).resolve() == music / row.path
    assert f"1 files are not below {music}" in page.text


def test_a_path_is_no_address_of_another_scheme(found, folds, flawed, tmp_path, monkeypatch):
    """«javascript:…» below the page's own folder would be run by whoever plays it."""
    evil = 'javascript:alert(1)"><b>.mp3'
    (tmp_path / evil).write_bytes(b"")
    read = Predictions._read.__func__

    def renamed(cls, file):
        kept = read(cls, file)
        return replace(kept, paths=(evil,) * len(kept.paths))

    monkeypatch.setattr(Predictions, "_read", classmethod(renamed))
    result = mislabels(folds, flawed, root=tmp_path, out=tmp_path / "page.html", most=1)
    page = Page(Path(result.page).read_text())
    (player,) = [attributes for tag, attributes in page.tags if tag == "audio"]
    assert player["src"].startswith("javascript%3Aalert")
    assert "b" not in {tag for tag, _ in page.tags}
    assert evil in page.text


def test_the_page_that_the_run_keeps_has_no_players_and_says_where_they_are(folds, flawed, music, tmp_path):
    found = mislabels(folds, flawed, root=music, out=tmp_path / "page.html", most=2)
    kept = Path(found.report.removeprefix("file://"))
    page = Page(kept.read_text())
    assert "audio" not in {tag for tag, _ in page.tags}
    assert f"There are no players: they are on {found.page}." in page.text
    assert kept.with_suffix(".csv").read_text() == Path(found.csv).read_text()


def test_without_the_collection_there_are_no_players(folds, flawed, tmp_path, capsys):
    out = tmp_path / "x.html"
    line = ["mislabels", "--run", folds.run_id, "--features", flawed.folder, "--out", out, "--most", 1, "--json"]
    assert cli.run([str(word) for word in line]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert len(plain["rows"]) == 1
    page = Page(out.read_text())
    assert "audio" not in {tag for tag, _ in page.tags}
    assert "There are no players: give the collection on this disk with --root." in page.text


# Refusals


def test_a_run_without_folds_is_refused_and_nothing_written(flawed, tmp_path):
    run = trained(flawed)
    with pytest.raises(InputError, match=rf"run {run.id}: has no folds, .*give the run of «mgc train --folds 5»"):
        mislabels(run.id, flawed, out=tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_another_feature_set_is_refused(folds, flawed, tmp_path):
    other = other_fingerprint(flawed, tmp_path / "set", "w")
    with pytest.raises(InputError, match=r"the folds of run .* are of another feature set; take that"):
        mislabels(folds, other, out=tmp_path / "page.html")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"most": 0}, "`most=0`: must be at least 1"),
        ({"out": "page.txt"}, r"`out=page\.txt`: must end in \.html"),
        ({"out": "no/page.html"}, "`out=no/page.html`: its folder is not there"),
        ({"root": "nowhere"}, "`root=.*nowhere`: no such file or folder"),
        ({"root": "s3://bucket/music"}, "`root=s3://bucket/music`: a page plays files of a disk only"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_read(values, said):
    with pytest.raises(InputError, match=said):
        mislabels("no-run", "no-features", **values)
