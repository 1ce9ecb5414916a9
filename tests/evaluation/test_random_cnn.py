"""The floor of random filters: what its statistics are, that they follow from the set alone, and ridge regression."""

import numpy as np
import pytest
import torch
from helpers.feature_sets import GENRES, SPEC, make_features, make_sharded

from mgc.core.errors import InputError
from mgc.dataset import clips as clips_of
from mgc.evaluation import random_cnn
from mgc.evaluation.baseline import baseline
from mgc.evaluation.random_cnn import RandomCNN, random_cnn_of
from mgc.evaluation.ridge import Ridge


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory):
    return make_features(tmp_path_factory.mktemp("random") / "set")


def test_statistics_are_means_and_maxima_of_the_input_and_of_each_block():
    network = RandomCNN(bands=32, seed=0)
    mel_BFT = torch.randn(2, 32, 600)
    with torch.inference_mode():
        network.train()(mel_BFT)
        values_BD = network.eval()(mel_BFT)
        normed_BFT = network.input_norm(mel_BFT)
        first_BCFT = network.blocks[0](normed_BFT.unsqueeze(1))
    ranges = [8, 8, 4, 2]  # of 16, 8, 4 and 2 bands
    assert values_BD.shape == (2, 64 + 2 * sum(c * r for c, r in zip(random_cnn.CHANNELS, ranges, strict=True)))
    halves = normed_BFT.unflatten(2, (2, 300))  # 600 frames are two stretches of at least 256
    torch.testing.assert_close(values_BD[:, :32], halves.mean(3).mean(2))
    torch.testing.assert_close(values_BD[:, 32:64], halves.amax(3).mean(2))
    pairs_BCFT = first_BCFT.unflatten(2, (8, 2)).mean(3)
    expected = pairs_BCFT.unflatten(3, (2, 150)).amax(4).mean(3).flatten(1)
    torch.testing.assert_close(values_BD[:, 64 + 128 : 64 + 256], expected)


def test_a_block_normalises_by_the_clips_that_it_was_fitted_on_and_leaves_the_others_alone():
    network, mel_BFT = RandomCNN(bands=16, seed=0), torch.randn(8, 16, 64) * 3 + 5
    with torch.inference_mode():
        network.train()(mel_BFT)
        network.eval()
        together = network(mel_BFT)
        alone = torch.cat([network(each) for each in mel_BFT.split(1)])
        assert network.input_norm(mel_BFT).mean().item() == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(together, alone)


def test_each_clip_has_a_row_in_the_order_of_the_clips_and_the_same_again(feature_set):
    statistics_ND = random_cnn_of(feature_set, ("validation", "training"))
    again_ND = random_cnn_of(feature_set, ("training",))
    assert statistics_ND.shape[0] == 12 + 44
    np.testing.assert_array_equal(statistics_ND[12:], again_ND)
    one = statistics_ND.shape[1] // random_cnn.DRAWS
    assert not np.allclose(statistics_ND[:, 300:one], statistics_ND[:, one + 300 : 2 * one])  # another draw
    mel_NFT = clips_of.load(feature_set, "training").mel_NFT.astype(np.float32)
    scale = np.std(mel_NFT[: random_cnn.FITTED], axis=(0, 2), ddof=1)
    shift = mel_NFT[: random_cnn.FITTED].mean((0, 2))
    expected = (mel_NFT.mean(2) - shift) / scale
    np.testing.assert_allclose(statistics_ND[12:, : SPEC.shape[0]], expected, atol=2e-3)


def test_too_few_bands_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"4 poolings leave nothing of 12 mel bands"):
        random_cnn_of(make_sharded(tmp_path / "set", training=(4,)), ("training",))


def test_the_floor_tells_textures_apart_and_keeps_probabilities(feature_set):
    result = baseline(feature_set, kind="random_cnn", classifier="ridge", folds=3)
    assert (result.name, result.n, result.test_evaluations) == ("random CNN + ridge regression", 56, 0)
    assert result.accuracy > 0.9
    assert set(result.per_genre) == set(GENRES)


def test_ridge_regression_is_least_squares_with_a_penalty_on_standardised_statistics():
    generator = np.random.default_rng(0)
    labels_N = np.repeat([1, 4, 6], 20)
    statistics_ND = generator.normal(size=(60, 200)).astype(np.float32) * 3 + 1
    statistics_ND[:, 0] += labels_N
    machine = Ridge().fit(statistics_ND, labels_N)
    scaled_ND = (statistics_ND - statistics_ND.mean(0)) / statistics_ND.std(0)
    targets_NG = np.eye(3)[np.repeat([0, 1, 2], 20)]
    kernel_NN = scaled_ND @ scaled_ND.T / 200
    left_NG = np.linalg.solve(kernel_NN + 0.05 * np.eye(60), targets_NG - targets_NG.mean(0))
    expected_NG = kernel_NN @ left_NG + targets_NG.mean(0)
    probabilities_NG = machine.predict_proba(statistics_ND)
    logits_NG = np.log(probabilities_NG)
    slope = np.polyfit(
        (expected_NG - expected_NG.mean(1, keepdims=True)).ravel(),
        (logits_NG - logits_NG.mean(1, keepdims=True)).ravel(),
        1,
    )[0]
    centred_NG = logits_NG - logits_NG.mean(1, keepdims=True)
    np.testing.assert_allclose(centred_NG, slope * (expected_NG - expected_NG.mean(1, keepdims=True)), atol=1e-2)
    assert machine.classes_.tolist() == [1, 4, 6]
    assert machine.score(statistics_ND, labels_N) == (expected_NG.argmax(1) == np.repeat([0, 1, 2], 20)).mean()


def test_ridge_probabilities_are_as_sure_as_clips_left_out_allow():
    """Of pure noise nothing is known, although the training clips are fitted almost exactly."""
    generator = np.random.default_rng(1)
    statistics_ND, labels_N = generator.normal(size=(300, 2000)).astype(np.float32), generator.integers(0, 4, 300)
    machine = Ridge().fit(statistics_ND[:150], labels_N[:150])
    assert machine.score(statistics_ND[:150], labels_N[:150]) == 1.0
    assert machine.predict_proba(statistics_ND[150:]).max(1).mean() < 0.4
