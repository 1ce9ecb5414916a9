"""Passes over clips: a validation sees each clip once, in any mode of the model; the next epoch is planned ahead."""

import numpy as np
import pytest
import torch
from helpers.feature_sets import make_sharded
from helpers.fits import EVERYTHING, PLAIN, one_thread  # noqa: F401 (a fixture)

from mgc.dataset.batches import Feed, order
from mgc.dataset.protocols import learning_set
from mgc.training.epoch import train_epoch, validate
from mgc.training.optim import build_learner
from mgc.training.step import TrainStep

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """43 clips, and 37 to validate on."""
    made = make_sharded(tmp_path_factory.mktemp("epoch") / "set", training=(20, 23), validation=(18, 19))
    return learning_set(made, PLAIN)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("config", [PLAIN, EVERYTHING])
def test_a_validation_is_of_the_rows_in_their_order_and_of_evaluation_mode(data, config, resident):
    model = build_learner(config, data, CPU).model.train()
    rows_N = np.random.default_rng(0).permutation(data.validation)
    val = validate(model, Feed(data.clips, CPU, resident=resident), rows_N)
    assert model.training
    with torch.no_grad():
        logits_NG = model.eval()(torch.from_numpy(data.clips.mel_NFT[rows_N]).float().unsqueeze(1))
    labels_N = torch.from_numpy(data.clips.labels_N[rows_N])
    np.testing.assert_allclose(val.probabilities_NG, logits_NG.softmax(1).numpy(), atol=1e-5)
    assert val.loss == pytest.approx(torch.nn.functional.cross_entropy(logits_NG, labels_N).item(), abs=1e-5)
    assert val.accuracy == (val.probabilities_NG.argmax(1) == labels_N.numpy()).mean()


def test_ranks_predict_each_clip_once_and_all_of_them_know_it(data, monkeypatch):
    model, feed = build_learner(PLAIN, data, CPU).model, Feed(data.clips, CPU, resident=True)
    whole = validate(model, feed, data.validation)
    for world in (2, 5, 40):  # 40: some ranks have none
        shares = []
        monkeypatch.setattr(
            "mgc.training.epoch.summed", lambda each, shares=shares: shares.append(each.clone()) or each
        )
        for rank in range(world):
            monkeypatch.setattr("mgc.training.epoch.rank_and_world", lambda rank=rank, world=world: (rank, world))
            validate(model, feed, data.validation)
        loss, right = (sum(shares[::2]) / len(data.validation)).tolist()
        assert (loss, right) == pytest.approx((whole.loss, whole.accuracy))
        np.testing.assert_allclose(sum(shares[1::2]).numpy(), whole.probabilities_NG, atol=1e-6)


def test_the_next_epoch_is_planned_before_this_one_is_waited_for(data):
    """And a plan of another epoch is not taken."""
    step = TrainStep(build_learner(PLAIN, data, CPU), Feed(data.clips, CPU, resident=True), PLAIN)
    ahead = []
    for epoch in (1, 2, 1, 3):
        train_epoch(step, data, epoch)
        ahead.append(step.ahead and step.ahead.epoch)
    assert ahead == [2, 3, 2, 2]  # the last epoch plans none
    expected = order(data.clips, data.training, PLAIN.seed, 3)
    assert torch.equal(step._rows_N, torch.from_numpy(expected))
