"""CUDA graphs; that a recorded step learns what an eager one learns is in ``test_step``."""

import pytest
import torch

from mgc.core.errors import RunError
from mgc.training.cuda_graphs import CudaGraphs


def test_what_cannot_be_recorded_is_one_line_with_the_way_out(monkeypatch):
    class Refuses:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with …")

        def __exit__(self, *_):
            pass

    for name in ("graph_pool_handle", "Stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph", Refuses)
    with pytest.raises(RunError, match=r"^a step cannot be recorded \(CUDA error: [^\n]*\); leave out `graphs`$"):
        CudaGraphs(torch.device("cpu")).record(lambda: None)
