"""The cells of ``docs/quickstart.py``, run as a script in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from mgc.collection.toy import make_toy

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_quickstart_goes_from_music_to_a_confusion_matrix(tmp_path):
    make_toy(tmp_path / "quickstart" / "music", clips_per_genre=4)  # a third of what the script would make
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    script = [sys.executable, ROOT / "docs" / "quickstart.py"]
    ran = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=580)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "quickstart" / "features" / "manifest.json").exists()
    assert (tmp_path / "mlflow_runs" / "mlflow.db").exists()
    assert imread(tmp_path / "quickstart" / "confusion.png").std() > 0.05
    clips, *batch, labels = re.findall(r"^(\d+) \((\d+), (\d+), (\d+)\) (.+)$", ran.stdout, re.MULTILINE)[-1]
    assert batch == ["8", "128", "1288"]
    assert int(clips) >= 8
    assert all(0 <= int(label) < 8 for label in re.findall(r"\d+", labels))
