"""The card and the Croissant file: other people's readers find in the folder what mgc itself reads there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import mlcroissant
import pytest
import yaml
from helpers.wav_sets import BAD, GENRES, LICENCES, RECIPE, finish, tracks
from matplotlib.image import imread

from mgc.collection.splits import SPLITS
from mgc.core.storage import Folder
from mgc.features import shards
from mgc.features.card import HUB_SPLITS, SHOWN, dataset_card
from mgc.features.contact_sheet import preview
from mgc.features.croissant import croissant
from mgc.features.layout import CARD, CROISSANT, SCHEMA, WITHOUT_LICENCE
from mgc.features.plan import Plan
from mgc.features.verify import verify


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    return folder / "clips", tracks(folder / "clips", {"training": 5, "validation": 2, "test": 1}, bad=BAD)


@pytest.fixture(scope="module")
def made(clips):
    """Three genres of 5/2/1 clips, three clips in quarantine, of three licences."""
    root, table = clips
    return finish(Plan.of(table, RECIPE), root, Folder.at(root.parent / "set"))


@pytest.fixture(scope="module")
def old(clips):
    """The same clips as a set of before licences were known."""
    root, table = clips
    plan = Plan.of(table, RECIPE)
    plan = Plan(plan.recipe, plan.table.drop_columns(["license"]), plan.deal)
    return finish(plan, root, Folder.at(root.parent / "old"))


@pytest.fixture
def load(monkeypatch, tmp_path):
    """``datasets.load_dataset`` with a cache of its own and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    return lambda folder: datasets.load_dataset(str(folder.path), cache_dir=str(tmp_path / "cache"))


def header(manifest):
    _, text, _ = dataset_card(manifest).split("---\n", 2)
    return yaml.safe_load(text)


def of_licences(manifest, **counts):
    """The manifest with other counts of licences in the training split."""
    return replace(manifest, licenses={"training": counts, "validation": {}, "test": {}})


# Hugging Face


@pytest.mark.parametrize("name", ["made", "old"])
def test_hugging_face_reads_the_folder_as_a_data_set_with_splits(name, load, request):
    features = request.getfixturevalue(name)
    data = load(features.folder)
    assert list(data) == ["train", "validation", "test"]
    frame = features.to_pandas(spectrograms=True)
    for split in SPLITS:
        found = data[HUB_SPLITS[split]]
        rows = [row for row in frame.to_dict("records") if row["split"] == split]
        assert found.column_names == features.manifest.schema.names
        assert found.features["label"].names == list(GENRES)
        assert found.info.splits[HUB_SPLITS[split]].num_examples == len(found) == len(rows)
        for ours, theirs in zip(rows, found, strict=True):
            if name == "old":
                assert ours.pop("license") == "unknown"
            assert ours | {"logmel": ours["logmel"].tobytes()} == theirs


def test_a_set_whose_validation_split_is_empty_is_read_with_the_others(clips, load, tmp_path):
    root, table = clips
    table = table.filter([split != "validation" for split in table["split"].to_pylist()])
    data = load(finish(Plan.of(table, RECIPE), root, Folder.at(tmp_path / "set")).folder)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 13, "test": 3}


def test_the_header_counts_what_is_in_the_manifest(made):
    found = header(made.manifest)
    assert (found["task_categories"], found["size_categories"]) == (["audio-classification"], ["n<1K"])
    assert found["pretty_name"] == "Log-Mel spectrograms of 21 clips of 3 music genres"
    sizes = {each["name"]: (each["num_examples"], each["num_bytes"]) for each in found["dataset_info"]["splits"]}
    of = {split: [entry for entry in made.manifest.shards if entry.split == split] for split in SPLITS}
    assert sizes == {HUB_SPLITS[s]: (sum(e.rows for e in of[s]), sum(e.bytes for e in of[s])) for s in SPLITS}
    many = {split: dict.fromkeys(GENRES, 400) for split in SPLITS}
    assert header(replace(made.manifest, clips=many))["size_categories"] == ["1K<n<10K"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"CC0 1.0 Universal": 7}, {"license": "cc0-1.0"}),
        ({"Attribution-NonCommercial 3.0 International": 7}, {"license": "cc-by-nc-3.0"}),
        ({"https://creativecommons.org/licenses/by/4.0/": 7}, {"license": "cc-by-4.0"}),
        ({"unknown": 7}, {"license": "unknown"}),
        (
            {"Attribution-NoDerivatives 3.0 International": 7},
            {
                "license": "other",
                "license_name": "Attribution-NoDerivatives 3.0 International",
                "license_link": "https://creativecommons.org/licenses/by-nd/3.0/",
            },
        ),
        ({"Attribution 3.0 Germany": 7}, {"license": "other", "license_name": "Attribution 3.0 Germany"}),
        ({"my: own\n---\nterms": 7}, {"license": "other", "license_name": "my: own\n---\nterms"}),
        ({"CC0-1.0": 7, "unknown": 1}, {"license": "other", "license_name": "several-see-the-column-license"}),
    ],
)
def test_the_header_names_the_one_licence_of_all_clips(made, counts, expected):
    found = yaml.safe_load(dataset_card(of_licences(made.manifest, **counts))[4:].partition("\n---\n# ")[0])
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


# The text


def test_the_card_counts_licences_by_split_the_most_frequent_first(made, old):
    counts = made.to_pandas().groupby(["license", "split"]).size()
    lines = (made.folder.path / CARD).read_text().splitlines()
    at = [
        lines.index(f"| {text} | " + " | ".join(str(counts.get((text, s), 0)) for s in SPLITS) + " |")
        for text in LICENCES
    ]
    totals = made.to_pandas()["license"].value_counts()
    assert sorted(LICENCES, key=lambda text: (-totals[text], text)) == [
        text for _, text in sorted(zip(at, LICENCES, strict=True))
    ]
    assert "| unknown | 13 | 5 | 3 |" in (old.folder.path / CARD).read_text()


def test_many_licences_are_cut_short_and_odd_ones_stay_text(made):
    card = dataset_card(of_licences(made.manifest, **{f"licence {number}": 9 for number in range(SHOWN + 5)}))
    assert card.count("| licence ") == SHOWN + 1
    assert "… and 5 more." in card
    odd = dataset_card(of_licences(made.manifest, **{"<b>a | b</b>\n| c": 1}))
    assert r"| &lt;b&gt;a \| b&lt;/b&gt; \| c | 1 | 0 | 0 |" in odd


# The picture


def test_the_picture_has_a_clip_of_each_genre_and_the_same_bytes_each_time(made, tmp_path):
    records = [shards.read_record(made.folder, entry.file) for entry in made.manifest.shards]
    first = preview(made, records)
    (tmp_path / "sheet.png").write_bytes(first)
    height, width, _ = imread(tmp_path / "sheet.png").shape
    assert width > height > 80 * 0.97 * len(GENRES)
    assert preview(made, records) == first
    assert b"Matplotlib" not in first


def test_a_set_without_a_clip_has_no_picture_and_a_card_that_shows_none(tmp_path):
    table = tracks(tmp_path / "clips", {"training": 1}, bad={f"training/{genre}-0.wav": b"" for genre in GENRES})
    made = finish(Plan.of(table, RECIPE), tmp_path / "clips", Folder.at(tmp_path / "set"))
    records = [shards.read_record(made.folder, entry.file) for entry in made.manifest.shards]
    assert preview(made, records) is None
    assert "![" not in (made.folder.path / CARD).read_text()
    mlcroissant.Dataset(tmp_path / "set" / CROISSANT)


# Croissant


@pytest.mark.parametrize("name", ["made", "old"])
def test_mlcroissant_finds_the_file_valid_and_reads_the_rows_of_the_set(name, request):
    features = request.getfixturevalue(name)
    dataset = mlcroissant.Dataset(features.folder.path / CROISSANT)
    assert not dataset.metadata.ctx.issues.errors
    frame = features.to_pandas(spectrograms=True).set_index("track_id", drop=False)
    records = list(dataset.records("clips"))
    assert len(records) == len(frame) == 21
    for record in records:
        row = frame.loc[record["clips/track_id"]]
        for column in features.manifest.schema.names:
            ours = row[column].tobytes() if column == "logmel" else row[column]
            assert record[f"clips/{column}"] == (ours.encode() if isinstance(ours, str) else ours), column


def test_every_shard_is_a_file_with_its_hash_and_every_column_a_field(made):
    found = json.loads((made.folder.path / CROISSANT).read_text())
    files = {each["contentUrl"]: each for each in found["distribution"] if each["@type"] == "cr:FileObject"}
    assert list(files) == [entry.file for entry in made.manifest.shards]
    for file, each in files.items():
        data = (made.folder.path / file).read_bytes()
        assert (each["sha256"], each["contentSize"]) == (hashlib.sha256(data).hexdigest(), f"{len(data)} B")
    (record_set,) = found["recordSet"]
    assert [field["name"] for field in record_set["field"]] == SCHEMA.names
    assert all(field["description"] for field in record_set["field"])


def test_known_licences_are_urls(made):
    manifest = of_licences(
        made.manifest, **{"CC0-1.0": 1, "Attribution 4.0 International": 9, "MIT": 3, "CC-BY-4.0": 2}
    )
    assert json.loads(croissant(manifest))["license"] == [
        "https://creativecommons.org/licenses/by/4.0/",
        "MIT",
        "https://creativecommons.org/publicdomain/zero/1.0/",
    ]


# Sets of before licences were known


def test_a_set_of_before_licences_keeps_its_fingerprint_and_verifies(made, old):
    assert old.manifest.fingerprint == made.manifest.fingerprint
    assert old.manifest.schema == WITHOUT_LICENCE
    assert verify(old).ok
    assert verify(made).ok
    assert set(old.to_pandas()["license"]) == {"unknown"}
