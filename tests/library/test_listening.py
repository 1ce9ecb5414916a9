"""What a model says of a file is the mean over its pieces, and what it says of a stretch is of that stretch."""

import numpy as np
import pytest
import soundfile
import torch

from mgc.library.genre_model import GenreModel, load
from mgc.library.listening import Recording, answer, answers
from mgc.model.cnn import together

RATE = 22_050


def write(path, seconds, seed=0):
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


def listened(model, path):
    with path.open("rb") as file:
        return answer(model, Recording(file, model.card.spec).pieces())


def test_windows_cover_a_file_and_end_with_it(half_seconds, tmp_path):
    model = load(half_seconds)
    found = listened(model, write(tmp_path / "x.wav", 5.2))
    starts = [window.start for window in found.windows]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert found.windows[-1].end == pytest.approx(5.2, abs=0.01)
    for before, after in zip(found.windows, found.windows[1:], strict=False):
        assert after.start <= before.end + 0.05  # no gap
    assert {len(window.probabilities_G) for window in found.windows} == {3}


def test_a_window_says_what_the_network_says_of_its_frames(half_seconds, tmp_path):
    model = load(half_seconds)
    path = write(tmp_path / "x.wav", 2.0)
    with path.open("rb") as file:
        (piece,) = Recording(file, model.card.spec).pieces()
    found = answer(model, [piece])
    for start, window in zip(model.network.starts(piece.mel_FT.shape[1]), found.windows, strict=True):
        frames = torch.from_numpy(piece.mel_FT[:, start : start + 22]).float()
        with torch.inference_mode():
            alone = model.network(frames[None, None]).softmax(1).numpy()[0]
        assert window.probabilities_G == pytest.approx(model.calibration(alone), abs=1e-5)


def test_silence_after_the_end_has_no_window(half_seconds, tmp_path):
    model = load(half_seconds)
    found = listened(model, write(tmp_path / "x.wav", 0.7))
    assert found.windows[-1].end == pytest.approx(0.7)
    assert len(found.windows) == 2


def test_a_network_without_windows_hears_pieces(whole_clips, tmp_path):
    model = load(whole_clips)
    found = listened(model, write(tmp_path / "x.wav", 4.0))
    assert [(window.start, window.end) for window in found.windows] == [(0, 2), (2, 4)]
    mean_G = np.mean([window.probabilities_G for window in found.windows], axis=0)
    assert found.probabilities_G == pytest.approx(mean_G)


def test_files_that_share_batches_get_the_answers_that_they_get_alone(half_seconds, tmp_path):
    model = load(half_seconds)
    pieces = []
    for seed, seconds in enumerate((3.9, 0.4, 6.0, 2.0)):
        with write(tmp_path / f"{seed}.wav", seconds, seed).open("rb") as file:
            pieces.append(list(Recording(file, model.card.spec).pieces()))
    together_, alone = answers(model, pieces), [answer(model, each) for each in pieces]
    for one, other in zip(together_, alone, strict=True):
        assert one.probabilities_G == pytest.approx(other.probabilities_G, abs=1e-6)
        assert [window.start for window in one.windows] == [window.start for window in other.windows]


def test_windows_of_an_ensemble_are_the_mean_of_its_members(half_seconds, tmp_path):
    one = load(half_seconds)
    networks = [one.network, load(half_seconds).network]
    with torch.no_grad():
        networks[1].linear.weight.neg_()
    both = GenreModel(together(networks), one.card, one.calibration, "")
    path = write(tmp_path / "x.wav", 2.0)
    raw = [GenreModel(network, one.card, type(one.calibration)(1.0, 0.0, 0.0, (), ()), "") for network in networks]
    members = [listened(each, path).windows for each in raw]
    for window, *each in zip(listened(both, path).windows, *members, strict=True):
        mean_G = np.mean([member.probabilities_G for member in each], axis=0)
        assert window.probabilities_G == pytest.approx(one.calibration(mean_G), abs=1e-5)
