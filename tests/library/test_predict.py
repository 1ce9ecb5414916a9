"""A file of any length is predicted as the mean of its windows."""

import json
from dataclasses import dataclass

import boto3
import numpy as np
import pytest
import soundfile
import torch
from moto.server import ThreadedMotoServer

from mgc import cli
from mgc.audio.logmel import LogMelSpec, log_mel, standardize
from mgc.config import ModelConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.library.predict import predict
from mgc.model import checkpoint, inference
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


def test_a_very_short_file_is_predicted_as_if_silence_followed(model, tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.1, 1_100).astype(np.float32)
    padded = np.pad(samples, (0, SPEC.n_samples - len(samples)))
    for name, sound in (("short", samples), ("padded", padded)):
        soundfile.write(tmp_path / f"{name}.wav", sound, 22_050, subtype="FLOAT")
    short, whole = probabilities(model, tmp_path / "short.wav", tmp_path / "padded.wav")
    assert short == pytest.approx(whole, abs=1e-6)


def test_a_file_of_more_windows_than_a_batch_is_the_mean_of_them_all(model, tmp_path):
    count = inference.BATCH_ON_CPU + 3
    samples = np.random.default_rng(4).normal(0, 0.1, (count, SPEC.n_samples)).astype(np.float32)
    samples[0] = np.sin(np.arange(SPEC.n_samples) / 10)  # so that each batch has a mean of its own
    soundfile.write(tmp_path / "long.wav", samples.ravel(), 22_050, subtype="FLOAT")
    windows = []
    for index, window in enumerate(samples):
        soundfile.write(tmp_path / f"{index}.wav", window, 22_050, subtype="FLOAT")
        windows.append(tmp_path / f"{index}.wav")
    (whole,) = probabilities(model, tmp_path / "long.wav")
    assert whole == pytest.approx(np.mean(probabilities(model, *windows), axis=0), abs=1e-6)


def test_the_result_of_a_training_is_a_model_too(model, tmp_path):
    @dataclass(frozen=True)
    class Trained:
        run_id: str
        checkpoint: str

    clip = write(tmp_path / "x.wav", 2.0)
    assert predict(Trained("nobody", str(model)), [clip]) == predict(model, [clip])


def test_a_result_prints_a_line_a_file_and_gives_plain_values(model, tmp_path):
    clips = [write(tmp_path / name, 2.0, seed=seed) for seed, name in enumerate(("x.wav", "longer.wav"))]
    result = predict(model, clips)
    for line, clip in zip(str(result).splitlines(), result.clips, strict=True):
        assert line.startswith(clip.path)
        assert line.endswith(f"  {clip.genre} ({max(clip.probabilities.values()):.0%}), unsure")
    plain = json.loads(json.dumps(result.to_dict()))
    assert [each["path"] for each in plain["clips"]] == [str(clip) for clip in clips]
    assert plain["clips"][0].keys() == {"path", "genre", "probabilities", "unsure", "warning"}
    assert plain["failed"] == []
    assert result.problem() is None


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


def test_a_bad_file_does_not_take_the_predictions_of_good_ones(model, tmp_path, capsys):
    good = [write(tmp_path / "good.wav", 2.0), write(tmp_path / "good.flac", 2.0, seed=1)]
    (tmp_path / "broken.mp3").write_text("no music")
    clips = [good[0], tmp_path / "broken.mp3", good[1], "nowhere://x/clip.mp3", tmp_path / "none.mp3"]
    code = cli.run(["predict", "--model", str(model), *map(str, clips), "--json"])
    printed, said = capsys.readouterr()
    answer = json.loads(printed)
    assert code == 1
    assert [clip["path"] for clip in answer["clips"]] == [str(clip) for clip in good]
    assert answer["clips"] == list(predict(model, good).to_dict()["clips"])
    assert [each["path"] for each in answer["failed"]] == [str(clips[index]) for index in (1, 3, 4)]
    assert answer["failed"][0]["why"].startswith("not_audio: ")
    assert len(said.splitlines()) == 2
    assert f"3 of 5 files give no prediction: {tmp_path}/broken.mp3: not_audio" in said
    lines = str(predict(model, clips)).splitlines()
    assert [line.split()[0] for line in lines] == [str(clips[index]) for index in (0, 2, 1, 3, 4)]
    assert lines[4].endswith("no prediction: missing: no such file")


def test_a_file_much_shorter_than_what_was_learnt_from_says_so(model, tmp_path):
    short, long = predict(model, [write(tmp_path / "s.wav", 0.8), write(tmp_path / "l.wav", 1.2)]).clips
    assert short.warning == "only 0.8 s of audio, the model has learnt from 2 s"
    assert long.warning is None
    assert str(predict(model, [tmp_path / "s.wav"])).endswith(
        "%), unsure, only 0.8 s of audio, the model has learnt from 2 s"
    )


def test_a_damaged_file_is_predicted_from_what_is_there_and_says_so(model, odd_mp3, tmp_path):
    half = write(tmp_path / "half.wav", 20)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    ogg = write(tmp_path / "half.ogg", 20)
    ogg.write_bytes(ogg.read_bytes()[: ogg.stat().st_size // 2])
    mixed = tmp_path / "mixed.mp3"
    whole, other = (odd_mp3 / name for name in ("ok_cbr256_44k_stereo.mp3", "ok_mono_48k.mp3"))
    mixed.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3] + other.read_bytes())
    said = [clip.warning for clip in predict(model, [half, ogg, mixed, whole, other]).clips]
    assert said[0] == "damaged, 10.0 of 20.0 s of audio came out"
    assert said[1].startswith("damaged, 9.")
    assert said[1].endswith(" s of audio came out")
    assert said[2].startswith("damaged, 10.0 of 30.0 s of audio came out; the MP3 is joined of parts")
    assert said[3:] == [None, None]


def test_a_clip_may_be_a_uri_whose_password_is_not_shown(model, tmp_path):
    clip = write(tmp_path / "x y.wav", 2.0)
    here, there = predict(model, [clip, clip.as_uri()]).clips
    assert there.path == clip.as_uri()
    assert there.probabilities == here.probabilities
    with pytest.raises(InputError, match=r"nowhere://bucket/x\.mp3: .*give a path or a URI") as caught:
        predict(model, ["nowhere://KEY:SECRET@bucket/x.mp3"])
    assert "SECRET" not in str(caught.value)


def test_a_clip_in_a_bucket_is_predicted_as_on_a_disk(model, fma_clip, tmp_path):
    (tmp_path / "cut.mp3").write_bytes(fma_clip.read_bytes()[1000:])  # has no name that ends in .mp3 once it is fetched
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = "{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "KEY", "aws_secret_access_key": "SECRET", "region_name": "us-east-1"}
        s3 = boto3.client("s3", endpoint_url=f"http://{endpoint}", **keys)
        s3.create_bucket(Bucket="music")
        s3.put_object(Bucket="music", Key="a b/cut.mp3", Body=(tmp_path / "cut.mp3").read_bytes())
        uri = f"s3://KEY:SECRET@music/a%20b/{{}}.mp3?endpoint_override={endpoint}&scheme=http&region=us-east-1"
        answer = predict(model, [tmp_path / "cut.mp3", uri.format("cut"), uri.format("none")])
    finally:
        server.stop()
    here, there = answer.clips
    assert there.probabilities == here.probabilities
    assert "SECRET" not in str(answer)
    (failed,) = answer.failed
    assert failed.why == "missing: no such file"


def test_an_mp3_of_real_music_is_predicted_as_the_same_sound_in_a_wav(model, fma_clip, tmp_path):
    samples, rate = soundfile.read(fma_clip, dtype="float32")
    soundfile.write(tmp_path / "same.wav", samples, rate, subtype="FLOAT")
    mp3, wav = probabilities(model, fma_clip, tmp_path / "same.wav")
    assert mp3 == pytest.approx(wav, abs=1e-4)
