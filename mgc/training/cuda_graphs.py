"""CUDA graphs: the kernels of a function, recorded once and launched as one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mgc.core.errors import RunError, first_line


class CudaGraphs:
    """Records functions on one GPU. All recordings share their memory, so only one may be replayed at a time.

    Parameters
    ----------
    device
        The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._side_stream = torch.cuda.Stream(device)

    def warm_up(self, body: Callable[[], None]) -> None:
        """Call a function once on a side stream: what ran on the default stream cannot be recorded.

        Parameters
        ----------
        body
            What is to be recorded later.
        """
        now = torch.cuda.current_stream(self._device)
        self._side_stream.wait_stream(now)
        with torch.cuda.stream(self._side_stream):
            body()
        now.wait_stream(self._side_stream)

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record the kernels that a function launches, without running them.

        Parameters
        ----------
        body
            Reads and writes the same memory each time.

        Returns
        -------
        Callable
            Runs them.

        Raises
        ------
        RunError
            The function does what cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: the thread that sends batches goes on meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                body()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RunError(f"a step cannot be recorded ({first_line(error)}); leave out `graphs`") from error
        return graph.replay
