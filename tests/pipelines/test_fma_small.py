"""From a collection to the table of both tracks; a row is made once, and each test-set evaluation counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from encoders.conftest import downloaded  # noqa: F401 (a fixture)

REPO = Path(__file__).parents[2]


@pytest.fixture
def collection(mini, tmp_path):
    """Real clips of two genres, an artist a clip."""
    clips = sorted((mini / "fma_small").glob("*/*.mp3"))[::12][:10]
    splits = ["training"] * 4 + ["validation"] * 2 + ["test"] * 2
    lines = [f"{clip},{'ab'[i % 2]},{splits[i]},artist {i}" for i, clip in enumerate(clips[: len(splits)])]
    file = tmp_path / "clips.csv"
    file.write_text("\n".join(["path,genre,split,artist", *lines]))
    return file


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_table_has_a_row_a_model_and_a_second_time_nothing_is_done(collection, downloaded, tmp_path):  # noqa: F811
    script = str(REPO / "pipelines" / "fma_small.py")
    command = [sys.executable, script, "--root", str(collection), "--allow-outside", "--out", str(tmp_path / "results")]
    command += ["--presets", "plain_cnn", "musicnn", "--seeds", "2", "--epochs", "1", "--json"]
    environment = os.environ | {"MGC_CACHE": str(downloaded[0]), "OMP_NUM_THREADS": "1"}
    rows = []
    for _ in range(2):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=450, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout.splitlines()[-1])["rows"])
    assert rows[0] == rows[1]
    assert [(row["model"], row["track"]) for row in rows[0]] == [
        ("MFCC + SVM", "from scratch"),
        ("random CNN + ridge regression", "from scratch"),
        ("musicnn + SVM", "pretrained (musicnn)"),
        ("musicnn_random + SVM", "random features (musicnn_random)"),
        ("plain_cnn", "from scratch"),
        ("musicnn", "pretrained (musicnn)"),
        ("plain_cnn + musicnn + random CNN + ridge regression", "together"),
    ]
    assert all(0 <= row["ci95"][0] <= row["accuracy"] <= row["ci95"][1] <= 1 for row in rows[0])
    assert "test-set evaluation" not in done.stderr  # the second time
    table = (tmp_path / "results" / "table.md").read_text().splitlines()
    assert len(table) == 2 + 7
    assert json.loads((tmp_path / "results" / "table.json").read_text())["rows"] == rows[0]
    other = [*command[:-1], "--seeds", "3"]
    done = subprocess.run(
        other, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 2
    assert "table.json is of other presets, seeds, epochs or clips" in done.stderr.splitlines()[-1]
