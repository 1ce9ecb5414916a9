"""A fit on several processes that share each batch by gloo, as Ray Train starts them."""

import multiprocessing
import os
import socket

import torch

from mgc.training.loop import fit


def fit_on_ranks(world, config, data, folder):
    """Fit on ``world`` processes; each must end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_one_rank, args=(rank, world, port, config, data, folder)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * world


def _one_rank(rank, world, port, config, data, folder):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.set_num_threads(1)
    fitted = fit(config, data, folder)
    assert len(fitted.history) == config.epochs
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort a process that takes the group down at its end
