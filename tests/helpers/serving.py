"""A small model, and a real server of it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
import uvicorn

from mgc.audio.logmel import LogMelSpec
from mgc.config import ModelConfig, TrainConfig
from mgc.evaluation.calibration import NONE, Calibration
from mgc.library.genre_model import GenreModel
from mgc.model import checkpoint
from mgc.model.cnn import GenreCNN
from mgc.serving.app import application
from mgc.serving.limits import Limits

SPEC = LogMelSpec(seconds=2.0)
GENRES = ("Ambient", "Drum & Bass", "Hip-Hop <b>", "Čechomor")
ALWAYS_SURE = Calibration(1.5, 0.1, 0.05, (0.9,) * 9 + (0.0,), (True,) * 10)


CONFIG = TrainConfig(model=ModelConfig(channels=(4, 8), window=40, head="avg"))
CARD = checkpoint.Card(CONFIG, GENRES, SPEC, "f" * 64, {})


def small_network():
    """A network of random weights that hears a clip of 2 s in three windows."""
    torch.manual_seed(0)
    return GenreCNN(CONFIG.model, len(GENRES), SPEC.shape).eval()


def small_model(calibration=NONE):
    """It as a model."""
    return GenreModel.of([small_network()], CARD, calibration)


def written(folder):
    """The small model as a checkpoint folder."""
    checkpoint.write(folder, small_network().state_dict(), CARD)
    return folder


def wav(path, seconds, *, rate=22_050, channels=1, seed=0):
    shape = (int(seconds * rate), channels)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, shape), rate)
    return path


@dataclass
class Client:
    """Of a server on this machine."""

    port: int

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method, address, body=None, **headers):
        """Status, headers, and the body, as values where it is JSON."""
        connection = self.connect()
        try:
            connection.request(method, address, body, {name.replace("_", "-"): each for name, each in headers.items()})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        as_json = response.headers["content-type"] == "application/json"
        return response.status, response.headers, json.loads(text) if as_json else text.decode()

    def predict(self, body, query="", **headers):
        status, _, answer = self.ask("POST", f"/v1/predict{query}", body, **headers)
        return status, answer


@contextmanager
def serving(model, token=None, **limits):
    """A real server of a model in a thread, until the block ends."""
    app = application(model, Limits(**limits), token)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, http="h11"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield Client(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
