"""What a process computes with: TF32 where it may, exact float32 where it has to be."""

import os
import warnings

import pytest
import torch

from mgc.model.device import prepare


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpus_float32_is_tf32_in_convolutions_and_exact_where_it_has_to_be(monkeypatch, deterministic):
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    try:
        with warnings.catch_warnings():
            prepare(torch.device("cuda"), deterministic=deterministic)
        assert (cudnn.allow_tf32, cudnn.benchmark, matmul.allow_tf32) == (not deterministic, not deterministic, False)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
        torch.use_deterministic_algorithms(False)


def test_a_pass_on_the_cpu_leaves_all_that_as_it_is():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    prepare(torch.device("cpu"), deterministic=True)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before
    assert not torch.are_deterministic_algorithms_enabled()
