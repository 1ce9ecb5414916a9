"""One thread owns the network; files that wait at the same time share its batches."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

from mgc.library.listening import answers
from mgc.model.device import best_device, prepare
from mgc.model.inference import batch_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.library.genre_model import GenreModel
    from mgc.library.listening import Answer, Piece

    _Waiting: TypeAlias = tuple[Sequence[Piece], Future[Answer]]


class Network:
    """A model that answers from many threads, between ``start`` and ``close``.

    Parameters
    ----------
    model
        The model; its network goes to the GPU if there is one.
    """

    def __init__(self, model: GenreModel) -> None:
        self.model = model
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)

    def start(self) -> None:
        """Take the network to its device, and begin to answer; what a device raises ends the start of the server."""
        device = best_device()
        prepare(device)
        self.model.network.to(device)
        self._thread.start()

    def close(self) -> None:
        """Answer what waits, and end."""
        self._queue.put(None)
        if self._thread.ident:
            self._thread.join()

    def answer(self, pieces: Sequence[Piece]) -> Future[Answer]:
        """Queue a file.

        Parameters
        ----------
        pieces
            The file's, at least one.

        Returns
        -------
        Future
            Of what the model says of it.
        """
        future: Future[Answer] = Future()
        self._queue.put((pieces, future))
        return future

    def _work(self) -> None:
        most = batch_size(next(self.model.network.parameters()).device)
        while files := self._next(most):
            try:
                found = answers(self.model, [pieces for pieces, _ in files])
            except Exception as error:
                for _, future in files:
                    future.set_exception(error)
            else:
                for (_, future), each in zip(files, found, strict=True):
                    future.set_result(each)

    def _next(self, most: int) -> list[_Waiting]:
        """Wait for a file, and take those behind it with it, up to a batch; empty at the end."""
        files: list[_Waiting] = []
        while not files or (sum(len(pieces) for pieces, _ in files) < most and not self._queue.empty()):
            taken = self._queue.get()
            if taken is None:
                self._queue.put(None)  # for the next call: what was taken before is answered first
                break
            if taken[1].set_running_or_notify_cancel():  # a server that stops no longer waits
                files.append(taken)
        return files
