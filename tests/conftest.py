"""What tests share: one Ray session, one MLflow store, real music, and a small feature set that is quick to learn."""

import os
import signal
import sys
from pathlib import Path

import pytest
from helpers.feature_sets import make_features

from mgc.features.feature_set import FeatureSet

SHARED = Path(__file__).parents[2] / "shared" / "data"


RAY_FILES = pytest.StashKey[set[Path]]()
"""Files with a test that needs Ray."""


def pytest_configure(config):
    """Let Ctrl-C arrive, here and in each process that a test starts: a shell's ``&`` in a script has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Forking goes first, then files that need Ray, then those that hold slow tests.

    test_child_process counts what its own process has open, which Ray adds to. The slow ones early let neither of two
    processes end long after the other.
    """
    ray = config.stash[RAY_FILES] = {item.path for item in items if "ray_session" in item.fixturenames}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: (item.path.name != "test_child_process.py", item.path not in ray, item.path not in slow)
    )


def pytest_runtest_setup(item):
    """Leave Ray before the first file that does not need it.

    Those files fork, and a process that forks while it is a Ray driver may wait for ever in its next call: Ray gives
    gRPC's fork support to its workers, not to its drivers (ray-project/ray#65984). mgc forks in workers only.
    """
    if item.path not in item.config.stash[RAY_FILES] and "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="session", autouse=True)
def working_directory(tmp_path_factory):
    """A directory of its own for the whole session: its ``mlflow_runs`` is every test's default store."""
    before = Path.cwd()
    folder = tmp_path_factory.mktemp("work")
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.pop("RAY_ADDRESS", None)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="session")
def ray_session(working_directory):
    """The one Ray session, on this machine's two CPUs, until a file does without."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def shared(name: str) -> Path:
    """A folder of real data, or skip the test."""
    if not (SHARED / name).exists():
        pytest.skip(f"real data {name} is not on this machine")
    return SHARED / name


@pytest.fixture(scope="session")
def mini() -> Path:
    """120 real clips of eight game soundtracks, in FMA's layout."""
    return shared("soundtrack8-mini")


@pytest.fixture(scope="session")
def odd_mp3() -> Path:
    """13 odd and broken files."""
    return shared("odd_mp3")


@pytest.fixture(scope="session")
def fma_clip() -> Path:
    """The one real FMA clip."""
    return shared("fma_real") / "000002.mp3"


@pytest.fixture(scope="session")
def features(tmp_path_factory) -> FeatureSet:
    """A finished feature set of four genres: noise with stripes; 44/12/13 clips (13 is prime)."""
    return make_features(tmp_path_factory.mktemp("features") / "set")


@pytest.fixture(scope="session")
def kuberay() -> Path:
    """KubeRay's own schemas."""
    return shared("kuberay")
