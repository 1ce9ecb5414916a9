import numpy as np
import pytest
import soundfile
import torch

from mgc.audio.logmel import LogMelSpec, log_mel, standardize
from mgc.config import ModelConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.evaluation.predict import predict
from mgc.model import checkpoint
from mgc.model.cnn import GenreCNN

SPEC = LogMelSpec(seconds=2.0)
GENRES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = TrainConfig(model=ModelConfig(channels=(4, 8)))
    network = GenreCNN(config.model, len(GENRES), SPEC.shape)
    checkpoint.write(folder, network.state_dict(), checkpoint.Card(config, GENRES, SPEC, "f" * 64, {}))
    return folder


def write(path, seconds, *, rate=22_050, channels=1, seed=0):
    shape = (int(seconds * rate), channels)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, shape), rate)
    return path


def probabilities(model, *clips):
    return [list(clip.probabilities.values()) for clip in predict(str(model), clips).clips]


def test_a_clip_gets_a_probability_a_genre_and_the_most_probable_one(model, tmp_path):
    clips = [write(tmp_path / "x.wav", 2.0), write(tmp_path / "y.flac", 2.0, rate=44_100, channels=2, seed=1)]
    answer = predict(str(model), clips).clips
    assert [clip.path for clip in answer] == [str(clip) for clip in clips]
    for clip in answer:
        assert tuple(clip.probabilities) == GENRES
        assert clip.genre == max(clip.probabilities, key=clip.probabilities.get)


def test_a_clip_of_the_models_length_gives_what_the_model_says_of_its_feature(model, tmp_path):
    clip = write(tmp_path / "x.wav", 2.0)
    samples, _ = soundfile.read(clip, dtype="float32")
    mel = torch.from_numpy(standardize(log_mel(samples, SPEC))[0])
    with torch.inference_mode():
        expected = checkpoint.read(model)[0](mel[None, None]).softmax(1)[0]
    assert probabilities(model, clip)[0] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_long_file_is_the_mean_of_its_windows_and_a_short_rest_does_not_count(model, tmp_path):
    samples = np.random.default_rng(3).normal(0, 0.1, int(4.5 * 22_050)).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", samples, 22_050, subtype="FLOAT")
    for index in range(2):
        window = samples[index * SPEC.n_samples : (index + 1) * SPEC.n_samples]
        soundfile.write(tmp_path / f"{index}.wav", window, 22_050, subtype="FLOAT")
    whole, one, two = probabilities(model, tmp_path / "long.wav", tmp_path / "0.wav", tmp_path / "1.wav")
    assert whole == pytest.approx((np.array(one) + np.array(two)) / 2, abs=1e-6)


def test_a_very_short_file_is_predicted_too(model, tmp_path):
    assert sum(probabilities(model, write(tmp_path / "short.wav", 0.05))[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: None, "missing"),
        (lambda p: p.touch(), "empty"),
        (lambda p: p.write_text("no music"), "not_audio"),
        (lambda p: p.mkdir(), "unreadable"),
        (lambda p: write(p, 0.0), "no audio"),
    ],
)
def test_what_is_not_audio_is_named(model, tmp_path, make, said):
    clip = tmp_path / "clip.wav"
    make(clip)
    with pytest.raises(InputError, match=said) as caught:
        predict(str(model), [clip])
    assert str(clip) in str(caught.value)


def test_an_mp3_of_real_music_is_predicted(model, fma_clip):
    assert sum(probabilities(model, fma_clip)[0]) == pytest.approx(1)
