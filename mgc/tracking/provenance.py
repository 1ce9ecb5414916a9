"""Provenance of a run: who ran it, the commit of the code, and the libraries' versions."""

from __future__ import annotations

import getpass
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import mgc

VERSION_TAG = "mgc.version."
"""Prefix of the tags that hold versions."""
COMMIT_TAG = "mlflow.source.git.commit"
DIRTY_TAG = "mgc.git.dirty"
VERSIONS_OF = ("torch", "ray", "mlflow", "numpy", "pyarrow", "soundfile", "soxr")


def provenance() -> dict[str, str]:
    """Collect the tags of a run: user, git commit, whether the code differs from it, and versions of the libraries."""
    tags = {f"{VERSION_TAG}{name}": version(name) for name in VERSIONS_OF}
    tags |= {f"{VERSION_TAG}mgc": mgc.__version__, f"{VERSION_TAG}python": platform.python_version()}
    tags |= {"mlflow.user": getpass.getuser(), "mlflow.source.name": "mgc", "mlflow.source.type": "LOCAL"}
    if not shutil.which("git"):  # a container image, say
        return tags
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        tags[COMMIT_TAG] = head.stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
        tags[DIRTY_TAG] = str(bool(dirty.stdout.strip())).lower()
    return tags
