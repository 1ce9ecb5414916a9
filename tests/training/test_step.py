"""A step: recorded and replayed it is what it is piece by piece; on a GPU it computes as is said."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.feature_sets import make_sharded
from helpers.fits import EVERYTHING, PLAIN, changed, one_thread  # noqa: F401 (a fixture)
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mgc.dataset.augment import draw
from mgc.dataset.batches import Feed, batches, order
from mgc.dataset.protocols import learning_set
from mgc.model.device import prepare
from mgc.training.cuda_graphs import CudaGraphs
from mgc.training.epoch import plan_epoch, train_epoch, validate
from mgc.training.optim import build_learner
from mgc.training.step import WARM_UP, EpochPlan, TrainStep

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """43 clips: batches of 8, 7, 7, 7, 7 and 7."""
    made = make_sharded(tmp_path_factory.mktemp("step") / "set", training=(20, 23), validation=(11,))
    return learning_set(made, PLAIN)


class Replays:
    """Stands in for CUDA graphs: what is recorded is done again with the memory it was recorded with, and counted."""

    def __init__(self):
        self.log = []

    def warm_up(self, body):
        self.log.append("warm-up")
        body()

    def record(self, body):
        self.log.append("record")
        assert body.args[1] is None or isinstance(body.args[1], torch.Tensor)

        def replay():
            self.log.append("replay")
            body()

        return replay


def trained(data, config, *, graphs=None, resident=True, epochs=3, fused=False):
    """Weights, average, moments and figures after some epochs."""
    learner = build_learner(config, data, CPU)
    if fused:  # the optimiser that a GPU has, whose learning rate is a tensor
        rate = torch.tensor(config.optim.lr)
        decay = config.optim.weight_decay
        learner.optimizer = torch.optim.AdamW(learner.model.parameters(), lr=rate, weight_decay=decay, fused=True)
    step = TrainStep(learner, Feed(data.clips, CPU, resident=resident), config, graphs)
    figures = []
    for epoch in range(1, epochs + 1):
        torch.manual_seed(epoch)
        figures.append(train_epoch(step, data, epoch))
        val = validate(learner.evaluated_model, step.feed, data.validation)
        figures.append((val.loss, val.accuracy, val.probabilities_NG.tobytes()))
    tensors = [*learner.model.state_dict().values(), *learner.evaluated_model.state_dict().values()]
    for moments in learner.optimizer.state_dict()["state"].values():
        tensors += moments.values()
    return tensors, figures


# Recorded


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    "config", [PLAIN, changed(PLAIN, ema_epochs=0.5), EVERYTHING, changed(EVERYTHING, precision="bfloat16")]
)
def test_a_recorded_step_learns_what_the_plain_one_learns_bit_for_bit(data, config, resident):
    graphs = Replays()
    expected, figures = trained(data, config)
    tensors, told = trained(data, config, graphs=graphs, resident=resident)
    assert told == figures
    assert len(tensors) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(tensors, expected, strict=True))
    # of the batch of 8 there is one an epoch, of those of 7 five
    assert graphs.log.count("record") == 1
    assert graphs.log.count("warm-up") == 3 + WARM_UP
    assert graphs.log.count("replay") == 3 * 5 - WARM_UP


def test_what_is_recorded_reads_nothing_from_the_host_that_changes(data):
    """The function that is replayed is given a size and memory that stays; order, draws and rates stay too."""
    seen = []

    class Watching(Replays):
        def record(self, body):
            step, (size, mel_BFT) = body.func.__self__, body.args

            def memory():
                tensors = [mel_BFT, step._rows_N, step._rates_S, step._place, step._count, step._sums]
                tensors += vars(step._draws).values()
                return [size, *(each.data_ptr() for each in tensors)]

            seen.append(memory())

            def replay():
                seen.append(memory())
                step._rates = None  # the host's
                body()

            return replay

    trained(data, EVERYTHING, graphs=Watching(), resident=False, fused=True)
    assert len(seen) > 10
    assert all(each == seen[0] for each in seen)


@pytest.mark.parametrize("config", [changed(PLAIN, warmup_epochs=1.5, schedule="cosine"), EVERYTHING])
def test_a_learning_rate_in_a_tensor_is_that_of_the_schedule(data, config):
    """Fused AdamW, whose rate a recorded step takes from the device, against the one that is told it step by step."""
    expected, figures = trained(data, config)
    tensors, told = trained(data, config, graphs=Replays(), fused=True)
    assert [each[-1] for each in told[::2]] == [each[-1] for each in figures[::2]]  # the rates
    for one, other in zip(tensors, expected, strict=True):
        assert torch.allclose(one.double(), other.double(), atol=2e-4)
    constant, _ = trained(data, changed(config, warmup_epochs=0, schedule="constant"), fused=True)
    pairs = zip(constant, expected, strict=True)
    assert any(not torch.allclose(one.double(), other.double(), atol=2e-3) for one, other in pairs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [PLAIN, changed(EVERYTHING, ema_epochs=0)])
def test_a_step_asks_its_device_nothing(data, monkeypatch, config, precision):
    """Done with tensors that have no values, which whoever asks for one is refused: so nothing waits for a GPU."""
    config = changed(config, precision=precision)
    plan = plan_epoch(config, data, 1)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    with FakeTensorMode(allow_non_fake_inputs=True):
        learner = build_learner(config, data, CPU)
        learner.optimizer = torch.optim.AdamW(learner.model.parameters(), fused=True)
        learner.optimizer.param_groups[0]["lr"] = torch.tensor(0.0)
        # the average's count is on the CPU, wherever the weights are
        module, move = build_learner(config, data, CPU).model, get_ema_multi_avg_fn(0.7)
        learner.averaged = SimpleNamespace(module=module, multi_avg_fn=move, n_averaged=0)
        step = TrainStep(learner, Feed(data.clips, CPU, resident=True), config)
        step.start_epoch(plan)
        for size in (8, 7, 7):
            step(size)
        with pytest.raises(DataDependentOutputException):
            step.sums.tolist()


def test_a_resumed_optimiser_takes_its_rate_from_the_step_again(data):
    learner = build_learner(PLAIN, data, CPU)
    learner.optimizer = torch.optim.AdamW(learner.model.parameters(), lr=torch.tensor(1e-3), fused=True)
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": {}, "param_groups": groups})  # as resuming does: copies
    step = TrainStep(learner, Feed(data.clips, CPU, resident=True), PLAIN)
    rows = order(data.clips, data.training, 0, 1)
    step.start_epoch(EpochPlan(1, rows, draw(PLAIN, data.spec.shape, len(rows), 1), [0.5] * 6))
    step(8)
    assert learner.optimizer.param_groups[0]["lr"].item() == 0.5


def test_the_sums_are_of_the_epoch_and_one_pass_over_it(data):
    step = TrainStep(build_learner(PLAIN, data, CPU), Feed(data.clips, CPU, resident=True), PLAIN)
    rows = order(data.clips, data.training, 0, 1)
    losses = []
    for epoch in (1, 2):
        step.start_epoch(EpochPlan(epoch, rows, draw(PLAIN, data.spec.shape, len(rows), epoch), [1e-30] * 6))
        for part in batches(rows, 8):
            step(len(part))
        loss, right = step.sums.tolist()
        assert right == int(right) <= len(rows)
        losses.append(loss)
    assert losses[1] == pytest.approx(losses[0])


def test_a_plan_stays_as_it_is_when_the_next_one_takes_its_place(data):
    step = TrainStep(build_learner(EVERYTHING, data, CPU), Feed(data.clips, CPU, resident=True), EVERYTHING)
    plans, again = ([plan_epoch(EVERYTHING, data, epoch) for epoch in (1, 2)] for _ in range(2))
    for plan in plans:
        step.start_epoch(plan)
    for one, other in zip(plans, again, strict=True):
        assert one.rows_N.tolist() == other.rows_N.tolist()
        assert all(
            torch.equal(*pair) for pair in zip(vars(one.draws).values(), vars(other.draws).values(), strict=True)
        )


# What it computes with


@pytest.mark.parametrize("config", [PLAIN, EVERYTHING])
def test_bfloat16_is_of_the_layers_between_norms_and_loss_are_float32(data, config):
    config = changed(config, precision="bfloat16")
    learner = build_learner(config, data, CPU)
    seen = {}

    def note(name):
        def hook(_, given, out):
            seen[name] = given[0].dtype, out.dtype

        return hook

    for name, module in learner.model.named_modules():
        module.register_forward_hook(note(name))
    losses = []
    cross_entropy = torch.nn.functional.cross_entropy
    with pytest.MonkeyPatch.context() as patch:
        watched = lambda logits, *rest, **named: losses.append(logits.dtype) or cross_entropy(logits, *rest, **named)  # noqa: E731
        patch.setattr("mgc.training.step.functional.cross_entropy", watched)
        train_epoch(TrainStep(learner, Feed(data.clips, CPU, resident=True), config), data, 1)
    assert seen["blocks.0"][1] == seen["linear"][1] == torch.bfloat16
    assert set(losses) == {torch.float32}
    norms = [each for each in learner.model.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        tensors = [norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.weight.grad]
        assert {each.dtype for each in tensors} == {torch.float32}
    assert {each.dtype for each in learner.model.parameters()} == {torch.float32}


def test_a_norms_statistics_of_bfloat16_values_are_those_of_float32():
    values = (torch.randn(4, 3, 20, 20) * 3 + 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        norm = torch.nn.BatchNorm2d(3)
        normed = norm(values)
    assert torch.allclose(norm.running_mean, 0.1 * values.float().mean((0, 2, 3)), atol=1e-5)
    exact = torch.nn.BatchNorm2d(3)(values.float())
    assert (normed.float() - exact).abs().max() < 0.02  # half a step of bfloat16 at 4


# On a GPU


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
WAYS = list(product([True, False], [True, False]))


@gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [PLAIN, EVERYTHING])
def test_on_a_gpu_all_ways_learn_the_same_bit_for_bit_in_deterministic_mode(data, config, precision):
    device, config = torch.device("cuda"), changed(config, precision=precision)
    prepare(device, deterministic=True)
    results = []
    try:
        for graphed, resident in WAYS:
            learner = build_learner(config, data, device)
            graphs = CudaGraphs(device) if graphed else None
            step = TrainStep(learner, Feed(data.clips, device, resident=resident), config, graphs)
            figures = []
            for epoch in (1, 2, 3):
                torch.manual_seed(epoch)
                figures.append(train_epoch(step, data, epoch))
            results.append((figures, [each.cpu() for each in learner.evaluated_model.state_dict().values()]))
    finally:
        prepare(device, deterministic=False)
    (figures, weights), *others = results
    for other_figures, other_weights in others:
        assert other_figures == figures
        assert all(torch.equal(one, other) for one, other in zip(weights, other_weights, strict=True))


@gpu
def test_a_gpu_learns_what_the_cpu_learns(data):
    config, device = changed(replace(PLAIN, keep="last"), ema_epochs=0.5, clip_norm=0.5), torch.device("cuda")
    expected, _ = trained(data, config)
    prepare(device, deterministic=True)
    try:
        learner = build_learner(config, data, device)
        step = TrainStep(learner, Feed(data.clips, device, resident=True), config, CudaGraphs(device))
        for epoch in (1, 2, 3):
            train_epoch(step, data, epoch)
    finally:
        prepare(device, deterministic=False)
    tensors = [*learner.model.state_dict().values(), *learner.evaluated_model.state_dict().values()]
    for one, other in zip(tensors, expected, strict=False):
        assert np.allclose(one.cpu().double(), other.double(), atol=1e-3)
