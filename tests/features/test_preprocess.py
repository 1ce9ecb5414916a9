"""Preprocessing end to end on Ray Data: every clip once, the same bytes whatever happened, nothing done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile

from mgc.collection.splits import SPLITS
from mgc.core.errors import InputError, RunError
from mgc.core.storage import Folder
from mgc.dataset import clips
from mgc.features import plan as plans
from mgc.features import preprocess as module
from mgc.features import shard_tasks
from mgc.features.card import HUB_SPLITS
from mgc.features.feature_set import FeatureSet
from mgc.features.layout import CARD, CROISSANT, MANIFEST, PLAN, QUARANTINE, SHEET
from mgc.features.preprocess import extract_features, preprocess
from mgc.features.verify import verify

RATE = 22_050
CONTRACT = [
    *("written", "skipped", "quarantined", "reasons", "shards", "seconds", "clips_per_second"),
    *("fingerprint", "features", "run_id"),
]
OPTIONS = {"clips_per_shard": 4, "max_quarantined": 0.1}
BAD = {"short.wav": "too_short", "absent.wav": "missing"}
"""Two of the twenty clips: exactly the share that is allowed."""


def make_collection(folder):
    """Twenty clips of two genres as a CSV file: 18 of 6 s, one too short, one that is not there; an artist a clip."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = ["path,genre,split,artist"]
    for i in range(18):
        soundfile.write(folder / f"{i}.wav", generator.uniform(-0.5, 0.5, 6 * RATE), RATE)
        lines.append(f"{i}.wav,{('Folk', 'Rock')[i % 2]},{SPLITS[max(0, i - 15)]},artist {i}")
    soundfile.write(folder / "short.wav", np.zeros(RATE), RATE)
    lines += ["short.wav,Folk,training,artist 18", "absent.wav,Rock,training,artist 19"]
    (folder / "clips.csv").write_text("\n".join(lines))
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("preprocess") / "clips")


@pytest.fixture(scope="module")
def made(ray_session, collection):
    """The collection as a finished set, undisturbed, and what the run said."""
    out = collection.parents[1] / "undisturbed"
    return out, preprocess(collection, out, **OPTIONS)


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the finished set, to be damaged."""
    return shutil.copytree(made[0], tmp_path / "set")


@pytest.fixture
def no_ray(monkeypatch):
    """Fail if Ray would be started."""

    def fail():
        raise AssertionError("Ray was started")

    monkeypatch.setattr(module, "connect", fail)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def mlflow_run(run_id):
    from mgc.tracking import runs as tracking
    from mgc.tracking import store

    return tracking.Run.find(store.open_store(Folder.at(Path.cwd())), run_id)._client.get_run(run_id)


# A whole run


def test_the_result_has_the_keys_of_the_contract_and_is_json(made, collection):
    out, result = made
    assert list(result.to_dict()) == CONTRACT
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert (result.written, result.skipped, result.quarantined, result.shards) == (18, 0, 2, 7)
    assert result.clips_per_second > 0
    assert result.seconds > 0
    assert result.features == str(out)
    assert result.fingerprint == FeatureSet.open(out).manifest.fingerprint


def test_the_result_is_shown_a_value_a_line(made):
    lines = str(made[1]).splitlines()
    assert [line.split()[0] for line in lines] == CONTRACT
    assert lines[0] == "written           18"
    assert lines[3] == 'reasons           {"missing": 1, "too_short": 1}'


def test_every_clip_is_in_the_set_once_as_a_feature_or_in_quarantine(made, collection):
    out, _ = made
    rows = pq.read_table(out / "shards", columns=["path", "split", "genre", "label"]).to_pylist()
    expected = {cells[0]: cells[1:3] for cells in (line.split(",") for line in collection.read_text().split("\n")[1:])}
    assert len(rows) == 18
    assert {row["path"]: [row["genre"], row["split"]] for row in rows} == {
        path: cells for path, cells in expected.items() if path not in BAD
    }
    assert all(row["label"] == ("Folk", "Rock").index(row["genre"]) for row in rows)
    assert {row["path"]: row["reason"] for row in pq.read_table(out / QUARANTINE).to_pylist()} == BAD


def test_the_manifest_counts_what_is_there(made):
    manifest = FeatureSet.open(made[0]).manifest
    assert manifest.genres == ("Folk", "Rock")
    assert manifest.clips == {"training": {"Folk": 8, "Rock": 8}, "validation": {"Folk": 1}, "test": {"Rock": 1}}
    assert manifest.quarantined == {"missing": 1, "too_short": 1}
    assert manifest.artist_leaks == ()
    assert sum(entry.rows for entry in manifest.shards) == 18


def test_nothing_is_in_the_folder_but_the_set(made):
    files = set(contents(made[0]))
    assert files == {
        MANIFEST,
        PLAN,
        QUARANTINE,
        CARD,
        CROISSANT,
        SHEET,
        *(e.file for e in FeatureSet.open(made[0]).manifest.shards),
    }


def test_the_run_is_tracked_with_its_settings_its_figures_and_its_features(made):
    run = mlflow_run(made[1].run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mgc.step"] == "preprocess"
    assert run.data.params["min_seconds"] == "5.0"
    assert run.data.params["spec.n_mels"] == "128"
    assert run.data.metrics["written"] == 18
    assert run.data.metrics["quarantined"] == 2
    assert run.data.metrics["nodes"] == 1
    stages = [run.data.metrics[f"{stage}_seconds"] for stage in ("plan", "start", "write", "finish")]
    assert all(seconds > 0 for seconds in stages)
    assert sum(stages) == pytest.approx(run.data.metrics["seconds"])
    stats = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/ray_data_stats.txt")
    assert "7 tasks executed" in stats  # a task a shard
    (dataset,) = run.inputs.dataset_inputs
    assert made[1].fingerprint.startswith(dataset.dataset.digest)


def test_every_reading_in_the_readme_works_in_the_folder_even_with_a_leftover_of_a_kill(
    copy, monkeypatch, capsys, tmp_path
):
    (copy / "shards" / ".training-00000-of-00005.parquet.0123.tmp").write_bytes(b"half a shard")
    monkeypatch.chdir(copy)
    loaded = {split: clips.load(FeatureSet.open(copy), split) for split in SPLITS}
    mel_of = {
        i: mel for each in loaded.values() for i, mel in zip(each.track_ids_N.tolist(), each.mel_NFT, strict=True)
    }
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    blocks = re.findall(r"^([\w ]+):\n```python\n(.*?)```", (copy / CARD).read_text(), re.DOTALL | re.MULTILINE)
    assert [name for name, _ in blocks] == ["pyarrow", "DuckDB", "polars", "Hugging Face datasets", "pandas"]
    for name, code in blocks:
        scope = {}
        exec(code, scope)
        if name == "DuckDB":
            shown = capsys.readouterr().out
            assert re.search(r"test\s*│ Rock\s*│\s*1 ", shown)
            assert re.search(r"training\s*│ Folk\s*│\s*8 ", shown)
        elif name == "Hugging Face datasets":
            counts = {split: len(rows) for split, rows in scope["data"].items()}
            assert counts == {HUB_SPLITS[split]: len(loaded[split]) for split in SPLITS}
            np.testing.assert_array_equal(scope["first"], mel_of[scope["data"]["train"][0]["track_id"]])
        else:
            table = scope.get("table", scope.get("frame"))
            assert len(table) == 18
            track_id = table["track_id"][0]
            np.testing.assert_array_equal(scope["first"], mel_of[getattr(track_id, "as_py", lambda i=track_id: i)()])
            assert scope["first"].shape == (128, 1288)


def test_real_clips_of_an_fma_folder_become_features_within_a_limit(ray_session, mini, tmp_path):
    result = preprocess(mini, tmp_path / "set", limit=12, workers=2)
    assert (result.written, result.quarantined, result.reasons) == (12, 0, {})
    manifest = FeatureSet.open(tmp_path / "set").manifest
    assert len(manifest.genres) == 8  # labels do not depend on the limit
    rows = pq.read_table(tmp_path / "set" / "shards").to_pandas()
    assert (rows["seconds"] == 29.9).all()
    assert not rows["padded"].any()
    assert rows["std_db"].between(5, 40).all()
    assert rows["track_id"].is_unique
    assert pd.Series(manifest.genres)[rows["label"]].tolist() == rows["genre"].tolist()


# A second run


def test_a_second_run_writes_nothing_and_loads_neither_ray_nor_mlflow(made, collection, tmp_path):
    before = {file: file.stat().st_mtime_ns for file in made[0].rglob("*")}
    code = (
        "import json, sys\n"
        "from mgc.features.preprocess import preprocess\n"
        f"result = preprocess({str(collection)!r}, {str(made[0])!r}, **{OPTIONS!r}).to_dict()\n"
        "heavy = [name for name in ('ray', 'mlflow', 'torch', 'librosa') if name in sys.modules]\n"
        "print(json.dumps([result, heavy]))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    result, heavy = json.loads(done.stdout)
    assert heavy == []
    assert "nothing to do" in done.stderr
    assert (result["written"], result["skipped"], result["quarantined"], result["run_id"]) == (0, 18, 2, None)
    assert list(result) == CONTRACT
    assert {file: file.stat().st_mtime_ns for file in made[0].rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lost", ["a shard", "a shard and the manifest", "half of a shard"])
def test_only_what_is_lost_is_written_again_and_is_the_same(made, copy, collection, lost):
    shard = copy / "shards" / "training-00002-of-00005.parquet"
    if lost == "half of a shard":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    else:
        shard.unlink()
    if "manifest" in lost:
        (copy / MANIFEST).unlink()
    kept = {file: file.stat().st_mtime_ns for file in (copy / "shards").iterdir() if file != shard}
    result = preprocess(collection, copy, **OPTIONS)
    assert result.written == pq.read_metadata(shard).num_rows
    assert result.written + result.skipped == 18
    assert result.quarantined == 2
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert contents(copy) == contents(made[0])


@pytest.mark.parametrize("name", [QUARANTINE, CARD, CROISSANT, SHEET])
def test_a_lost_file_that_derives_from_the_shards_is_written_again_without_ray(made, copy, collection, no_ray, name):
    (copy / name).unlink()
    assert preprocess(collection, copy, **OPTIONS).written == 0
    assert contents(copy) == contents(made[0])


def test_an_unfinished_set_is_refused_by_readers_and_finished_without_ray(made, copy, collection, no_ray):
    for name in (MANIFEST, QUARANTINE, CARD, CROISSANT, SHEET):
        (copy / name).unlink()
    (copy / "shards" / f".training-00000-of-00005.parquet.{'0' * 32}.tmp").write_bytes(b"half a shard")
    (copy / f".{MANIFEST}.{'1' * 32}.tmp").write_bytes(b"{")
    (copy / ".lock").write_text("process 1 on nowhere")
    with pytest.raises(InputError, match="unfinished"):
        FeatureSet.open(copy)
    assert preprocess(collection, copy, **OPTIONS).written == 0
    assert contents(copy) == contents(made[0])


def test_too_many_quarantined_clips_fail_the_run_and_a_higher_limit_finishes_it_without_ray(
    ray_session, made, collection, tmp_path, monkeypatch
):
    out = tmp_path / "set"
    with pytest.raises(RunError, match="2 of 20 clips failed") as caught:
        preprocess(collection, out, clips_per_shard=4, max_quarantined=0.09)
    assert "`max_quarantined=0.09`" in str(caught.value)
    assert not (out / MANIFEST).exists()
    assert len(pq.read_table(out / QUARANTINE)) == 2  # to be looked at
    monkeypatch.setattr(module, "connect", lambda: 1 / 0)
    result = preprocess(collection, out, clips_per_shard=4, max_quarantined=0.1)
    assert (result.written, result.skipped, result.quarantined) == (0, 18, 2)
    assert contents(out) == contents(made[0])
    with pytest.raises(RunError, match="2 of 20 clips failed"):  # a finished set is held to the limit too
        preprocess(collection, out, clips_per_shard=4, max_quarantined=0.09)


# Other input into the same folder


def refused(*words, root, out, **options):
    before = contents(out) if out.is_dir() else None
    with pytest.raises(InputError) as caught:
        preprocess(root, out, **{**OPTIONS, **options})
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    assert (contents(out) if out.is_dir() else None) == before


def test_another_recipe_into_the_same_folder_is_refused_by_what_differs(copy, collection, no_ray):
    both_ways = ("choose another folder", "`overwrite=True`")
    refused(str(copy), "min_seconds was 5.0, now 2.0", *both_ways, root=collection, out=copy, min_seconds=2.0)
    refused("clips_per_shard was 4, now 8", *both_ways, root=collection, out=copy, clips_per_shard=8)
    refused("keep_damaged was False, now True", *both_ways, root=collection, out=copy, keep_damaged=True)


def test_a_set_of_another_decoder_is_refused(copy, collection, no_ray, monkeypatch):
    real = module.Recipe
    monkeypatch.setattr(module, "Recipe", lambda **options: real(**options, decoder="soundfile 99"))
    refused("decoder was soundfile", "now soundfile 99", root=collection, out=copy)


def test_clips_that_are_gone_or_changed_are_refused_and_named(copy, collection, no_ray, tmp_path):
    refused("10 of its 20 clips are not among the 10 clips now", root=collection, out=copy, limit=10)
    other = shutil.copytree(collection.parent, tmp_path / "other")
    (other / "absent.wav").write_bytes(b"here now")
    refused("1 file sizes changed (absent.wav: -1, now 8)", root=other / "clips.csv", out=copy)


def test_other_artists_into_the_same_folder_are_refused(copy, collection, no_ray):
    leaking = collection.with_name("leaking.csv")
    leaking.write_text(collection.read_text().replace("artist 17", "artist 0"))
    refused("1 artists changed", root=leaking, out=copy)  # the set says that no artist leaks


def test_another_recipe_into_an_unfinished_folder_is_refused(copy, collection, no_ray):
    (copy / MANIFEST).unlink()
    refused("min_seconds was", root=collection, out=copy, min_seconds=2.0)


@pytest.mark.parametrize("name", [MANIFEST, PLAN])
def test_a_damaged_manifest_or_plan_is_refused(copy, collection, no_ray, name):
    (copy / name).write_text("{")
    refused(f"not a {name.partition('.')[0]}", root=collection, out=copy)


def test_a_folder_of_somebody_elses_is_refused(collection, no_ray, tmp_path):
    (tmp_path / CARD).write_text("years of work")
    refused("not empty", root=collection, out=tmp_path)
    refused("not empty", root=collection, out=tmp_path, overwrite=True)
    (tmp_path / CARD).rename(tmp_path / "deep")
    refused("not empty", root=collection, out=tmp_path)


def test_a_source_replaced_by_another_of_the_same_size_is_noticed(
    ray_session, made, copy, collection, tmp_path, capsys
):
    other = shutil.copytree(collection.parent, tmp_path / "other")
    for file in other.rglob("*.*"):
        file.touch()  # newer than their features, and the same
    assert preprocess(other / "clips.csv", copy, **OPTIONS).written == 0
    assert "are newer than their features: comparing what is in them" in capsys.readouterr().err
    with (copy / MANIFEST).open() as manifest:
        file = json.load(manifest)["shards"][0]["file"]
    victim = pq.read_table(copy / file, columns=["path"])["path"][0].as_py()
    data = bytearray((other / victim).read_bytes())
    data[-1000:] = bytes(1000)
    (other / victim).write_bytes(data)
    refused(
        f"1 clips were replaced since their features were made, the first is {victim}",
        root=other / "clips.csv",
        out=copy,
    )
    before = {file: file.stat().st_mtime_ns for file in (copy / "shards").iterdir()}
    preprocess(other / "clips.csv", copy, **OPTIONS, overwrite=True)
    assert [path.name for path, time in before.items() if path.stat().st_mtime_ns != time] == [Path(file).name]
    assert preprocess(other / "clips.csv", copy, **OPTIONS).written == 0


def test_overwrite_replaces_what_differs_and_nothing_else(ray_session, made, copy, collection, tmp_path):
    other = shutil.copytree(collection.parent, tmp_path / "other")
    soundfile.write(other / "absent.wav", np.zeros(6 * RATE), RATE)
    before = {file: file.stat().st_mtime_ns for file in (copy / "shards").iterdir()}
    result = preprocess(other / "clips.csv", copy, **OPTIONS, overwrite=True)
    after = {file: file.stat().st_mtime_ns for file in (copy / "shards").iterdir()}
    assert before.keys() == after.keys()
    assert sum(before[file] != after[file] for file in before) == 1
    assert result.reasons == {"too_short": 1}
    assert result.written + result.skipped == 19
    preprocess(collection, copy, **OPTIONS, overwrite=True)
    assert contents(copy) == contents(made[0])
    result = preprocess(collection, copy, **(OPTIONS | {"clips_per_shard": 40}), overwrite=True)
    assert (result.written, result.skipped, result.shards) == (18, 0, 3)
    assert len(list((copy / "shards").iterdir())) == 3


# New clips


def test_new_clips_get_new_shards_and_the_old_ones_stay_untouched(ray_session, collection, tmp_path):
    """A folder per genre, whose splits are drawn: clips that are in the set keep theirs."""
    for i in range(12):
        (tmp_path / "music" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(collection.parent / f"{i}.wav", tmp_path / "music" / "ab"[i % 2] / f"{i}.wav")
    preprocess(tmp_path / "music", tmp_path / "set", **OPTIONS)
    before = contents(tmp_path / "set" / "shards")
    for i in range(12, 18):
        shutil.copy(collection.parent / f"{i}.wav", tmp_path / "music" / "ab"[i % 2] / f"{i}.wav")
    result = preprocess(tmp_path / "music", tmp_path / "set", **OPTIONS)
    assert (result.written, result.skipped) == (6, 12)
    after = contents(tmp_path / "set" / "shards")
    assert before.items() <= after.items()
    assert len(after) > len(before)
    rows = pq.read_table(tmp_path / "set" / "shards", columns=["path"])["path"].to_pylist()
    assert len(rows) == len(set(rows)) == 18
    manifest = FeatureSet.open(tmp_path / "set").manifest
    assert sum(sum(genres.values()) for genres in manifest.clips.values()) == 18
    assert preprocess(tmp_path / "music", tmp_path / "set", **OPTIONS).run_id is None


# Licences


@pytest.fixture
def licensed(collection):
    """The same collection with a licence a clip: a third of them NC, a third unknown."""
    lines = collection.read_text().splitlines()
    texts = ("CC-BY-4.0", "Attribution-NonCommercial 3.0 International", "")
    rows = [f"{line},{texts[number % 3]}" for number, line in enumerate(lines[1:])]
    file = collection.with_name("licensed.csv")
    file.write_text("\n".join([f"{lines[0]},license", *rows]))
    return file


@pytest.fixture(scope="module")
def old(ray_session, collection):
    """The set as it was made before licences were known: no such column, and fewer files."""
    out = collection.parents[1] / "old"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "_CLIPS", plans._CLIPS.remove(plans._CLIPS.get_field_index("license")))
        preprocess(collection, out, **OPTIONS)
    for name in (CROISSANT, SHEET):
        (out / name).unlink()
    return out


def test_licences_are_in_the_rows_and_counted_and_a_filter_leaves_clips_out(ray_session, made, licensed, tmp_path):
    result = preprocess(licensed, tmp_path / "set", **OPTIONS)
    features = FeatureSet.open(tmp_path / "set")
    cells = [line.split(",") for line in licensed.read_text().splitlines()[1:]]
    licence_of = {path: text or "unknown" for path, *_, text in cells}
    frame = features.to_pandas()
    assert dict(zip(frame["path"], frame["license"], strict=True)) == {path: licence_of[path] for path in frame["path"]}
    assert features.manifest.licenses == {s: dict(Counter(frame["license"][frame["split"] == s])) for s in SPLITS}
    assert result.fingerprint == made[1].fingerprint  # a licence changes no feature

    free = preprocess(licensed, tmp_path / "free", without_license=["NC"], **(OPTIONS | {"max_quarantined": 1.0}))
    assert set(FeatureSet.open(tmp_path / "free").to_pandas()["license"]) == {"CC-BY-4.0"}
    assert free.written + free.quarantined == 7
    assert free.fingerprint != made[1].fingerprint
    assert mlflow_run(free.run_id).data.params["without_license"] == "['NC']"
    same = preprocess(licensed, tmp_path / "free", license=["CC-BY"], **(OPTIONS | {"max_quarantined": 1.0}))
    assert (same.written, same.fingerprint) == (0, free.fingerprint)


def test_another_licence_is_said_and_kept_out_until_the_set_is_overwritten(ray_session, made, copy, licensed, capsys):
    assert preprocess(licensed, copy, **OPTIONS).run_id is None
    kept = r"14 licences changed \(\S+: unknown, now .*\); the set keeps those that it was made with"
    assert re.search(kept, capsys.readouterr().err)
    (copy / "shards" / "training-00002-of-00005.parquet").unlink()
    (copy / MANIFEST).unlink()
    preprocess(licensed, copy, **OPTIONS)
    assert contents(copy) == contents(made[0])
    result = preprocess(licensed, copy, overwrite=True, **OPTIONS)
    assert result.fingerprint == made[1].fingerprint
    assert set(FeatureSet.open(copy).to_pandas()["license"]) == {
        *("CC-BY-4.0", "Attribution-NonCommercial 3.0 International", "unknown")
    }
    assert verify(copy).ok


@pytest.mark.parametrize("root", ["collection", "licensed"])
def test_a_set_of_before_licences_stays_as_it_is(made, old, no_ray, request, tmp_path, root):
    copy = shutil.copytree(old, tmp_path / "set")
    result = preprocess(request.getfixturevalue(root), copy, **OPTIONS)
    assert (result.written, result.run_id, result.fingerprint) == (0, None, made[1].fingerprint)
    assert contents(copy) == contents(old)
    assert set(FeatureSet.open(copy).to_pandas()["license"]) == {"unknown"}
    assert verify(copy).ok


def test_a_killed_preprocessing_of_before_licences_goes_on_as_it_began(ray_session, old, licensed, tmp_path, capsys):
    copy = shutil.copytree(old, tmp_path / "set")
    for name in (MANIFEST, CARD, QUARANTINE, "shards/training-00002-of-00005.parquet"):
        (copy / name).unlink()
    assert preprocess(licensed, copy, **OPTIONS).written < 5
    assert "its licences were not known when it was made, 14 are now" in capsys.readouterr().err
    assert contents(copy).items() >= contents(old).items()
    assert contents(copy).keys() == contents(old).keys() | {CROISSANT, SHEET}
    preprocess(licensed, copy, overwrite=True, **OPTIONS)
    assert "CC-BY-4.0" in set(pq.read_table(copy / "shards", columns=["license"])["license"].to_pylist())
    assert verify(copy).ok


# Two at once


def test_a_second_run_into_one_set_is_refused_while_the_first_lives_and_not_after(copy, collection, no_ray):
    code = f"""
import time
from mgc.core.storage import Folder
with Folder({str(copy)!r}).claim("`out`"):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        refused(f"process {holder.pid} on", "is writing it", root=collection, out=copy)
    finally:
        holder.kill()
        holder.wait()
    assert (copy / ".lock").exists()  # stale, which does not block
    assert preprocess(collection, copy, **OPTIONS).run_id is None
    assert not (copy / ".lock").exists()


# Input that cannot be used


@pytest.mark.parametrize("option", ["workers", "limit", "clips_per_shard"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_number_below_one_is_refused_by_its_name(collection, tmp_path, no_ray, option, value):
    refused(f"`{option}={value}`", root=collection, out=tmp_path / "set", **{option: value})


@pytest.mark.parametrize(
    ("option", "value"), [("min_seconds", -1.0), ("max_quarantined", 5.0), ("max_quarantined", -0.1)]
)
def test_a_share_or_a_length_that_makes_no_sense_is_refused_by_its_name(collection, tmp_path, no_ray, option, value):
    refused(f"`{option}={value}`", root=collection, out=tmp_path / "set", **{option: value})


def test_an_out_that_cannot_be_written_is_refused_before_anything_is(collection, tmp_path, no_ray, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    refused(f"`out={tmp_path / 'file' / 'set'}`", "cannot be written", root=collection, out=tmp_path / "file" / "set")
    refused("`out=/proc/nowhere`", "cannot be written", root=collection, out=Path("/proc/nowhere"))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_out_that_is_a_file_is_refused(collection, tmp_path, no_ray):
    (tmp_path / "file").write_text("a file")
    refused(f"`out={tmp_path / 'file'}`", "cannot be written", root=collection, out=tmp_path / "file")


def test_an_out_without_permission_is_refused(collection, tmp_path, no_ray):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "set").mkdir(mode=0o500)
    refused("cannot be written", root=collection, out=tmp_path / "set")


def test_a_relative_out_is_refused_in_a_ray_job_alone(collection, monkeypatch, no_ray):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    refused("must be absolute", root=collection, out=Path("features"))


def test_of_bad_input_nothing_is_left_but_what_was_there(collection, tmp_path, no_ray):
    """The folder is made and locked before the collection is read."""
    (tmp_path / "mine").mkdir()
    before = list(tmp_path.rglob("*"))
    for out in (tmp_path / "a" / "b" / "set", tmp_path / "mine", tmp_path / "mine" / "set"):
        with pytest.raises(InputError):
            preprocess(tmp_path / "no collection", out, **OPTIONS)
        assert list(tmp_path.rglob("*")) == before


def test_a_set_is_looked_at_under_its_lock_alone_and_its_plan_read_once(copy, collection, no_ray, monkeypatch):
    opened, random_access = [], Folder.random_access

    def spy(self, name):
        opened.append((name, (copy / ".lock").exists()))
        return random_access(self, name)

    monkeypatch.setattr(Folder, "random_access", spy)
    preprocess(collection, copy, **OPTIONS)
    assert all(locked for _, locked in opened)
    assert [name for name, _ in opened].count(PLAN) == 1


# For a notebook


def test_features_are_extracted_and_opened(made, copy, collection, no_ray):
    features = extract_features(collection, copy, **OPTIONS)
    assert features == FeatureSet.open(copy)
    assert features.manifest == FeatureSet.open(made[0]).manifest
    assert len(features.to_pandas()) == 18
    with pytest.raises(InputError, match="min_seconds was"):
        extract_features(collection, copy, **OPTIONS, min_seconds=2.0)


@pytest.mark.parametrize("workers", [None, 1])
def test_shards_that_are_given_to_ray_some_at_a_time_make_the_same_set(
    ray_session, made, collection, tmp_path, monkeypatch, workers
):
    monkeypatch.setattr(shard_tasks, "GROUP", 3)
    preprocess(collection, tmp_path / "set", workers=workers, **OPTIONS)
    assert contents(tmp_path / "set") == contents(made[0])


# What goes wrong in a task


def failing_once(flags, at):
    """The task, which at shards named in ``at`` kills its own process, once each: before it writes, or after."""
    write = shard_tasks.write_shard

    def task(block, *, job):
        name = Path(block["shard"][0].as_py()).name
        flag = flags / name
        kill = name in at and not flag.exists()
        if kill:
            flag.touch()
        if kill and at[name] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = write(block, job=job)
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return task


def test_a_worker_killed_before_or_after_it_wrote_neither_loses_nor_doubles_a_clip(
    ray_session, made, collection, tmp_path, monkeypatch
):
    (tmp_path / "flags").mkdir()
    at = {"training-00001-of-00005.parquet": "before", "validation-00000-of-00001.parquet": "after"}
    monkeypatch.setattr(shard_tasks, "write_shard", failing_once(tmp_path / "flags", at))
    result = preprocess(collection, tmp_path / "set", **OPTIONS)
    assert {flag.name for flag in (tmp_path / "flags").iterdir()} == set(at)
    assert (result.written, result.quarantined) == (18, 2)
    assert contents(tmp_path / "set") == contents(made[0])


def test_a_shard_that_cannot_be_written_fails_the_run_with_its_cause_and_keeps_the_others(
    ray_session, made, collection, tmp_path, monkeypatch
):
    write = shard_tasks.write_shard

    def full_disk(block, *, job):
        if block["shard"][0].as_py().startswith("shards/test"):
            raise OSError(28, "No space left on device")
        return write(block, job=job)

    with monkeypatch.context() as patch:
        patch.setattr(shard_tasks, "write_shard", full_disk)
        with pytest.raises(RunError, match="No space left on device") as caught:
            preprocess(collection, tmp_path / "set", workers=1, **OPTIONS)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "set" / MANIFEST).exists()
    kept = contents(tmp_path / "set")
    assert kept
    assert kept.items() <= contents(made[0]).items()
    result = preprocess(collection, tmp_path / "set", **OPTIONS)
    assert result.written < 18
    assert contents(tmp_path / "set") == contents(made[0])


def test_a_leaking_collection_is_made_with_a_warning_and_the_set_says_so(ray_session, collection, tmp_path, capsys):
    leaking = collection.with_name("leaking.csv")
    leaking.write_text(collection.read_text().replace("artist 17", "artist 0"))
    preprocess(leaking, tmp_path / "set", max_quarantined=1.0)
    (leak,) = FeatureSet.open(tmp_path / "set").manifest.artist_leaks
    assert leak["artist_name"] == "artist 0"
    assert leak["splits"] == {"training": 1, "test": 1}
    assert "artist 0" in capsys.readouterr().err
