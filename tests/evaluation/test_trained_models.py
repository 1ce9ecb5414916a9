"""Models of runs predict clips, wherever these lie; figures of an ensemble do not hide those of its members."""

import numpy as np
import pytest
import torch
from helpers.runs import draw_nothing, parent_of, trained

from mgc.dataset import clips
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.predictions import Source
from mgc.evaluation.trained_models import ensemble, predict_clips, read_models


@pytest.fixture(scope="module")
def seeds(features):
    return parent_of(features, seed=[0, 1, 2])


def source(features):
    return Source.of(features, "training", "official")


def test_clips_in_their_shards_are_predicted_as_those_in_memory(features, seeds):
    """44 clips, which is three batches on the CPU."""
    models = read_models(seeds[0])
    there, here = (clips.load(features, "training", lazily=lazily) for lazily in (True, False))
    lazy, loaded = (predict_clips(models, each, source(features)) for each in (there, here))
    for one, other, model in zip(lazy, loaded, models, strict=True):
        assert np.array_equal(one.probabilities_NG, other.probabilities_NG)
        with torch.inference_mode():
            expected = model.model(torch.from_numpy(here.mel_NFT).float()[:, None]).softmax(1).numpy()
        assert np.allclose(one.probabilities_NG, expected, atol=1e-6)
        assert one.track_ids_N.tolist() == here.track_ids_N.tolist()


def test_after_predicting_a_model_is_where_and_as_it_was(features, seeds):
    (model,) = read_models(seeds[1][0])
    strides = {name: tensor.stride() for name, tensor in model.model.state_dict().items()}
    predict_clips([model], clips.load(features, "test"), source(features))
    assert {name: tensor.stride() for name, tensor in model.model.state_dict().items()} == strides
    assert not model.model.training
    assert {parameter.device.type for parameter in model.model.parameters()} == {"cpu"}


def test_an_ensemble_of_one_is_that_one_without_members(features):
    (model,) = read_models(trained(features))
    each = predict_clips([model], clips.load(features, "test"), source(features))
    whole = ensemble([model], each)
    assert np.array_equal(whole.probabilities_NG, each[0].probabilities_NG)
    assert whole.source.members == ()


def test_the_mean_of_seeds_stays_the_parents_validation_accuracy(features, seeds, monkeypatch):
    """As training logged it; that of the ensemble has a name of its own."""
    draw_nothing(monkeypatch)
    parent, children = seeds
    parent.metrics({"val_accuracy": 0.123})
    result = evaluate(parent.id, features.folder, split="validation")
    metrics = parent.record().metrics
    assert (metrics["val_accuracy"], metrics["val_ensemble_accuracy"]) == (0.123, result.accuracy)
    assert metrics["val_accuracy_mean"] == pytest.approx(result.accuracy_mean)
    for child, member in zip(children, result.members, strict=True):
        assert child.record().metrics["val_accuracy"] == member.accuracy
