"""The API of a real server: every file gets a prediction or a clear refusal, within limits, from those who may ask."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
import soundfile
import torch
from helpers.serving import ALWAYS_SURE, GENRES, serving, small_model, wav, written

from mgc.core.errors import InputError
from mgc.library.listening import Recording, answer
from mgc.library.predict import predict
from mgc.model.inference import batch_size
from mgc.serving import openapi
from mgc.serving.limits import Limits
from mgc.serving.network import Network

TOKEN = "a-token"
PAGES = ["/", "/app.js", "/style.css", "/icon.svg", "/docs", "/openapi.json"]


@pytest.fixture(scope="module")
def server():
    with serving(small_model()) as client:
        yield client


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return wav(tmp_path_factory.mktemp("clip") / "clip.wav", 5.0).read_bytes()


# Answers


def test_an_answer_is_what_predict_says_and_follows_the_description(server, clip, tmp_path):
    status, said = server.predict(clip)
    assert status == 200
    document = server.ask("GET", "/openapi.json")[2]
    responses = document["paths"]["/v1/predict"]["post"]["responses"]
    jsonschema.validate(said, responses["200"]["content"]["application/json"]["schema"])
    (tmp_path / "clip").write_bytes(clip)
    (expected,) = predict(written(tmp_path / "model"), [tmp_path / "clip"]).clips
    assert said["genre"] == expected.genre
    assert list(said["probabilities"]) == list(GENRES)
    assert said["probabilities"] == pytest.approx(expected.probabilities, abs=2e-6)
    assert said["confidence"] == max(said["probabilities"].values())
    assert (said["unsure"], said["threshold"], said["warning"]) == (True, None, None)
    assert said["seconds"] == 5.0
    assert "spectrogram" not in said


def test_windows_are_in_order_each_with_probabilities(server, clip):
    windows = server.predict(clip)[1]["windows"]
    starts = [each["start"] for each in windows]
    assert len(windows) == 3 + 3 + 2  # two pieces of 2 s, and the half of a third that holds sound
    assert starts == sorted(starts)
    assert windows[-1]["end"] == 5.0
    assert all(sum(each["probabilities"].values()) == pytest.approx(1, abs=1e-5) for each in windows)


def test_a_model_may_be_sure(clip):
    with serving(small_model(ALWAYS_SURE)) as client:
        said = client.predict(clip)[1]
    assert (said["unsure"], said["threshold"]) == (False, 0.0)


def test_a_spectrogram_is_there_if_it_is_asked_for_and_small(server, tmp_path):
    long = wav(tmp_path / "long.wav", 61.0).read_bytes()
    picture = server.predict(long, "?spectrogram=1")[1]["spectrogram"]
    assert (picture["width"], picture["height"], picture["end"]) == (1200, 128, 61.0)
    pixels = base64.b64decode(picture["pixels"])
    assert len(pixels) == 1200 * 128
    assert len(set(pixels)) > 50
    assert "spectrogram" not in server.predict(long, "?spectrogram=0")[1]


def test_the_lowest_band_is_the_last_row(server, tmp_path):
    rate = 22_050
    soundfile.write(tmp_path / "low.wav", np.sin(2 * np.pi * 100 * np.arange(2 * rate) / rate), rate)
    picture = server.predict((tmp_path / "low.wav").read_bytes(), "?spectrogram=1")[1]["spectrogram"]
    rows = np.frombuffer(base64.b64decode(picture["pixels"]), np.uint8).reshape(picture["height"], -1).mean(1)
    assert rows.argmax() > 0.95 * picture["height"]


def test_names_and_content_types_are_not_looked_at(server, clip):
    plain = server.predict(clip)
    assert server.predict(clip, "?path=/etc/passwd", Content_Type="application/json") == plain
    assert server.predict(clip, Content_Type="multipart/form-data; boundary=x", X_Filename="../a.txt") == plain


# Whatever is sent


def test_odd_files_get_a_prediction_or_a_clear_refusal(server, odd_mp3):
    said = {file.name: server.predict(file.read_bytes()) for file in sorted(odd_mp3.glob("*.mp3"))}
    assert {name: status for name, (status, _) in said.items() if name.startswith("bad_")} == {
        "bad_id3_only.mp3": 415,
        "bad_random_bytes.mp3": 415,
        "bad_text_renamed.mp3": 415,
        "bad_zero_length.mp3": 400,
    }
    assert all(answer["error"] for name, (_, answer) in said.items() if name.startswith("bad_"))
    rest = {name: each for name, each in said.items() if not name.startswith("bad_")}
    assert len(rest) == 9
    assert {name: status for name, (status, _) in rest.items() if status != 200} == {
        "warn_middle_zeroed.mp3": 422  # its decoder gives up there
    }
    assert "damaged" in rest["short_truncated_half.mp3"][1]["warning"]


def _wav_header(channels, rate, size):
    block = 4 * channels
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, 32)
    return b"RIFF" + struct.pack("<I", size) + b"WAVE" + form + b"data" + struct.pack("<I", size)


@pytest.mark.parametrize(
    "body",
    [
        b"\0",
        b"no music at all\n" * 1000,
        b"\xff\xfb\x90\x00" * 5000,
        b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
        b"fLaC" + b"\xff" * 2000,
        b"OggS" + bytes(2000),
        _wav_header(1024, 22_050, 1 << 31) + bytes(100_000),
        _wav_header(1, 1, 400) + bytes(400),
        _wav_header(2, 4_000_000_000, 1 << 20) + bytes(1 << 20),
        _wav_header(1, 22_050, 100_000) + b"\xff" * 100_000,
        _wav_header(0, 0, 100) + bytes(100),
    ],
    ids=["nul", "text", "frames", "id3", "flac", "ogg", "channels", "slow", "fast", "nan", "zero"],
)
def test_damaged_and_malicious_files_are_not_the_servers_fault(server, clip, body):
    status, said = server.predict(body)
    assert status in (200, 415, 422), said
    assert status == 200 or said["error"]
    assert server.predict(clip)[0] == 200


def test_what_is_not_the_apis_is_refused_as_json(server):
    status, headers, said = server.ask("GET", "/v1/predict")
    assert (status, headers["allow"]) == (405, "POST")
    assert said["error"]
    for address in ("/nothing", "/v1/predict/x", "/..%2f..%2fetc/passwd", "/page/index.html", "//"):
        status, _, said = server.ask("POST", address, b"x")
        assert (status, list(said)) == (404, ["error"])


# Limits


def test_a_large_file_is_refused_by_its_announced_size_and_the_answer_arrives():
    with serving(small_model(), max_mb=1) as client:
        body = bytes(30_000_000)  # far more than the buffers between the two hold: it is sent before the answer is read
        status, said = client.predict(body)
        assert (status, said["error"]) == (413, "more than 1 MB, the most of a file")
        status, said = client.predict(iter([body[:300_000]] * 100))  # in chunks of no announced number
        assert (status, said["error"]) == (413, "more than 1 MB, the most of a file")
        assert client.predict(b"x", Content_Length="9" * 19)[0] == 413


def test_a_client_that_waits_to_be_asked_is_told_before_it_sends():
    with serving(small_model(), max_mb=1) as client, socket.create_connection(("127.0.0.1", client.port)) as raw:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n"
        raw.sendall(f"{head}Content-Length: 9000000\r\nExpect: 100-continue\r\n\r\n".encode())
        raw.settimeout(20)
        assert raw.recv(12) == b"HTTP/1.1 413"


def test_long_audio_is_refused(clip):
    with serving(small_model(), max_seconds=4.9) as client:
        assert client.predict(clip) == (413, {"error": "more than 4.9 s of audio, the most of a file"})
    with serving(small_model(), max_seconds=5) as client:
        assert client.predict(clip)[0] == 200


def test_decoding_that_takes_too_long_is_refused(tmp_path):
    long = wav(tmp_path / "long.wav", 600).read_bytes()
    with serving(small_model(), decode_timeout=0.05) as client:
        assert client.predict(long) == (422, {"error": "timed_out: no answer in 0.05 s"})


def begin(client, body):
    """A request of which the end does not come yet."""
    connection = client.connect()
    connection.putrequest("POST", "/v1/predict")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:-100])
    return connection


def test_a_file_that_does_not_arrive_is_given_up(clip):
    with serving(small_model(), upload_timeout=0.3) as client:
        response = begin(client, clip).getresponse()
        assert (response.status, json.load(response)) == (408, {"error": "the file did not arrive in 0.3 s"})


def test_beyond_the_most_at_a_time_requests_are_told_to_come_again(clip):
    with serving(small_model(), at_once=2) as client:
        waiting = [begin(client, clip), begin(client, clip)]
        deadline = time.monotonic() + 30
        while client.predict(b"")[0] != 429:  # until the server has read the heads of both
            assert time.monotonic() < deadline
        status, headers, said = client.ask("POST", "/v1/predict", clip)
        assert (status, said["error"].startswith("2 files are in work")) == (429, True)
        assert int(headers["retry-after"]) > 0
        for each in waiting:
            each.send(clip[-100:])
            assert each.getresponse().status == 200
        assert client.predict(clip)[0] == 200


def test_a_client_that_goes_away_leaves_nothing(clip):
    with serving(small_model(), at_once=1) as client:
        begin(client, clip).close()
        deadline = time.monotonic() + 30
        while (status := client.predict(clip)[0]) == 429:
            assert time.monotonic() < deadline
        assert status == 200


@pytest.mark.parametrize("name", ["max_mb", "max_seconds", "decode_timeout", "upload_timeout", "at_once"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_takes_nothing_is_refused(name, value):
    with pytest.raises(InputError, match=f"`{name}={value:g}`: must be above 0"):
        Limits(**{name: value})


# Together


def test_answers_at_the_same_time_are_those_of_each_alone(server, tmp_path):
    bodies = [wav(tmp_path / f"{n}.wav", 1.5 + n, seed=n).read_bytes() for n in range(6)]
    alone = [server.predict(body)[1] for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(server.predict, bodies * 3))
    assert [status for status, _ in together] == [200] * 18
    for (_, said), expected in zip(together, alone * 3, strict=True):
        assert said["genre"] == expected["genre"]
        assert said["probabilities"] == pytest.approx(expected["probabilities"], abs=5e-6)
        assert [each["start"] for each in said["windows"]] == [each["start"] for each in expected["windows"]]


def test_files_that_wait_share_a_batch(tmp_path):
    model = small_model()
    heard, files, size = [], [], batch_size(torch.device("cpu"))
    for n in range(2 * size):
        with wav(tmp_path / f"{n}.wav", 2.0, seed=n).open("rb") as file:
            files.append(list(Recording(file, model.card.spec).pieces()))
    alone = [answer(model, pieces) for pieces in files]
    model.network.linear.register_forward_hook(lambda _, inputs, __: heard.append(len(inputs[0])))
    network = Network(model)
    futures = [network.answer(pieces) for pieces in files]
    network.start()
    network.close()
    for future, expected in zip(futures, alone, strict=True):
        assert future.result(0).probabilities_G == pytest.approx(expected.probabilities_G, abs=1e-6)
    assert heard == [3 * size] * 2  # each file is one piece of three windows


def test_a_network_that_fails_fails_those_files_alone(tmp_path):
    model = small_model()
    with wav(tmp_path / "x.wav", 2.0).open("rb") as file:
        pieces = list(Recording(file, model.card.spec).pieces())
    network = Network(model)
    network.start()
    with pytest.raises(AttributeError):
        network.answer([None]).result(30)
    assert network.answer(pieces).result(30).windows
    network.close()


# Who may ask


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_this_machines_names_are_answered(server, host):
    assert server.ask("GET", "/healthz", Host=f"{host}:{server.port}")[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example:{}", "127.0.0.1:1", "localhost", "localhost.evil.example:{}", "", "[::2]:{}"]
)
@pytest.mark.parametrize("address", ["/", "/healthz", "/v1/predict"])
def test_another_host_is_refused(server, host, address):
    status, _, said = server.ask("GET", address, Host=host.format(server.port))
    assert (status, "Host" in said["error"]) == (403, True)


def test_pages_of_others_are_refused_and_the_own_is_answered(server, clip):
    own = f"http://localhost:{server.port}"
    assert server.predict(clip, Origin=own, Host=own.removeprefix("http://"))[0] == 200
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        status, said = server.predict(clip, Origin=origin)
        assert (status, "Origin" in said["error"]) == (403, True)


def test_with_a_token_only_who_shows_it_gets_answers(clip):
    with serving(small_model(), token=TOKEN) as client:
        for headers in (
            {},
            {"Authorization": "Bearer a toke"},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer é"},
        ):
            for method, address in (("POST", "/v1/predict"), ("GET", "/healthz")):
                status, found, said = client.ask(method, address, clip if method == "POST" else None, **headers)
                assert (status, found["www-authenticate"], list(said)) == (401, "Bearer", ["error"])
        right = {"Authorization": f"Bearer {TOKEN}", "Host": "music.example"}
        assert client.predict(clip, **right)[0] == 200
        assert client.ask("GET", "/healthz", **right)[0] == 200
        assert [client.ask("GET", page)[0] for page in PAGES] == [200] * len(PAGES)
        assert client.ask("GET", "/openapi.json")[2]["security"]


def test_every_answer_has_the_security_headers(server, clip):
    asked = [server.ask("GET", page) for page in [*PAGES, "/healthz", "/nothing", "/v1/predict"]]
    asked += [server.ask("POST", "/v1/predict", body) for body in (clip, b"", b"text")]
    asked += [server.ask("GET", "/", Host="evil.example")]
    for _, headers, _ in asked:
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.lower().startswith("access-control")]


# What is said of it


def test_health_names_the_model_and_its_genres(server):
    assert server.ask("GET", "/healthz")[2] == {
        "status": "ok",
        "model": small_model().fingerprint[:16],
        "genres": list(GENRES),
    }


def test_the_pages_are_whole_and_load_nothing_from_elsewhere(server):
    for page in [*PAGES[:2], "/docs", "/style.css"]:
        status, headers, text = server.ask("GET", page)
        assert status == 200
        assert "charset=utf-8" in headers["content-type"]
        assert "//" not in text.replace("http://HOST:PORT", "").replace("http://www.w3.org", "").replace("// ", "")
        assert " style=" not in text
        assert "<script>" not in text


def test_the_page_of_the_api_says_all_that_its_document_does(server):
    text = server.ask("GET", "/docs")[2]
    document = openapi.document(Limits(), needs_token=False)
    for path, methods in document["paths"].items():
        assert path in text
        for call in methods.values():
            found = call["responses"]
            for name in [*found, *found["200"]["content"]["application/json"]["schema"]["properties"]]:
                assert f"<code>{name}</code>" in text or name == "200"
