"""A classifier on a frozen encoder learns from its vectors and answers as the whole network; fine-tuning moves both."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.feature_sets import GENRES, make_sharded
from helpers.ranks import fit_on_ranks

from mgc.audio.logmel import RECIPES
from mgc.config import ModelConfig, OptimConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.dataset import clips as clips_of
from mgc.dataset import embeddings
from mgc.dataset.embeddings import FOLDER, load_embedded, vectors_of
from mgc.dataset.protocols import learning_set
from mgc.encoders import registry
from mgc.model import checkpoint
from mgc.model.cnn import together
from mgc.model.inference import heard
from mgc.model.networks import build
from mgc.training.hardware import load_clips
from mgc.training.loop import fit

SPEC = replace(RECIPES["musicnn"], seconds=5.0)
"""313 frames: two windows."""
FROZEN = TrainConfig(
    model=ModelConfig(encoder="musicnn_random", input_norm=True, hidden=(16,), norm=True, head_dropout=0.2),
    optim=OptimConfig(lr=0.01, batch_size=8),
    epochs=8,
    keep="last",
)
TUNED = replace(
    FROZEN,
    model=replace(FROZEN.model, window=187),
    optim=replace(FROZEN.optim, encoder_lr=0.1, lr=1e-3, batch_size=3),
    epochs=1,
)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Four genres, which differ by the band that is loud; of three shards."""

    def genre(track_id):
        return track_id % len(GENRES)

    def values(track_id):
        generator = np.random.default_rng(track_id)
        mel_FT = generator.uniform(0, 0.5, SPEC.shape)
        mel_FT[20 * genre(track_id) : 20 * genre(track_id) + 12] += 2
        return mel_FT

    return make_sharded(
        tmp_path_factory.mktemp("features") / "set",
        spec=SPEC,
        genre=genre,
        values=values,
        training=(16, 16),
        validation=[8],
    )


@pytest.fixture
def storage(tmp_path):
    return Folder.at(tmp_path / "storage")


def test_a_classifier_on_a_frozen_encoder_answers_as_the_whole_network(features, storage, tmp_path):
    clips = load_embedded(features, ("training", "validation"), FROZEN.model.encoder, storage)
    fitted = fit(FROZEN, learning_set(features, FROZEN, clips=clips), tmp_path / "fit")
    assert fitted.val_accuracy > 0.8
    model, card = checkpoint.read(fitted.checkpoint)
    encoder = registry.load("musicnn_random").state_dict()
    assert all(torch.equal(model.encoder.state_dict()[name], tensor) for name, tensor in encoder.items())
    mel_NFT = torch.from_numpy(clips_of.load(features, "validation").mel_NFT)
    ((logits_NG, logits_KNG),) = heard(together([model]), [mel_NFT])
    assert logits_KNG.shape == (2, 8, 4)
    assert card.spec == SPEC
    found = logits_NG.softmax(1).numpy()
    assert np.abs(found - fitted.val_probabilities_NG).max() < 0.01  # the kept vectors are float16
    assert (found.argmax(1) == fitted.val_probabilities_NG.argmax(1)).all()


def test_vectors_are_computed_once_for_each_shard_and_again_where_their_file_is_damaged(features, storage, monkeypatch):
    computed = []
    compute = embeddings.encode
    monkeypatch.setattr(embeddings, "encode", lambda *given: computed.append(len(given[2])) or compute(*given))
    first = vectors_of(features, ("training",), "musicnn_random", storage)
    assert first.shape == (32, 1506, 2)
    assert computed == [16, 16]
    again = vectors_of(features, ("training", "validation"), "musicnn_random", storage)
    assert computed == [16, 16, 8]
    assert np.array_equal(again[:32], first)
    (folder,) = (storage.path / FOLDER).iterdir()
    for file, content in zip(sorted(folder.iterdir()), (b"", b"nonsense", None), strict=True):
        file.unlink() if content is None else file.write_bytes(content)
    assert np.array_equal(vectors_of(features, ("training", "validation"), "musicnn_random", storage), again)
    assert computed[3:] == [16, 16, 8]


def test_fine_tuning_moves_the_encoder_by_its_share_and_not_its_statistics(tmp_path):
    features = make_sharded(tmp_path / "set", spec=SPEC, genre=lambda track: track % 4, training=[4], validation=[2])
    _, clips = load_clips(features, TUNED, Folder.at(tmp_path))
    fitted = fit(TUNED, learning_set(features, TUNED, clips=clips), tmp_path / "fit")
    model, _ = checkpoint.read(fitted.checkpoint)
    before = build(TUNED.model, 4, SPEC.shape)
    before.encoder.load_state_dict(registry.load("musicnn_random").state_dict())
    for name, tensor in before.encoder.named_buffers():
        assert torch.equal(model.encoder.get_buffer(name), tensor)
    moved = torch.cat(
        [
            (model.encoder.get_parameter(name) - tensor).detach().abs().flatten()
            for name, tensor in before.encoder.named_parameters()
            if not name.startswith(("pooled_norm", "dense", "output"))  # behind what is taken
        ]
    )
    assert 0 < moved.max() <= 2 * 1.2e-4  # AdamW moves a weight by about its learning rate in each of two steps
    assert model.training is False


def test_two_ranks_learn_the_classifier_that_one_process_learns(features, storage, tmp_path):
    config = replace(FROZEN, model=replace(FROZEN.model, dropout=0.0, head_dropout=0.0), epochs=3)
    clips = load_embedded(features, ("training", "validation"), "musicnn_random", storage)
    data = learning_set(features, config, clips=clips)
    fit(config, data, tmp_path / "one")
    fit_on_ranks(2, config, data, tmp_path / "two")
    (one, _), (two, _) = (checkpoint.read(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_two_ranks_fine_tune(tmp_path, monkeypatch):
    monkeypatch.setenv("MGC_CACHE", str(tmp_path / "empty"))  # the weights come with the clips
    features = make_sharded(tmp_path / "set", spec=SPEC, genre=lambda track: track % 4, training=[8], validation=[2])
    _, clips = load_clips(features, TUNED, Folder.at(tmp_path))
    fit_on_ranks(2, TUNED, learning_set(features, TUNED, clips=clips), tmp_path / "fit")
    assert checkpoint.read(tmp_path / "fit")[0].linear.out_features == 4


def test_other_spectrograms_than_an_encoders_are_refused(storage, tmp_path):
    other = make_sharded(tmp_path / "other", training=[4], validation=[2])
    for config in (FROZEN, TUNED):
        with pytest.raises(InputError, match=r"`model.encoder=musicnn_random`: listens to .* --features musicnn"):
            load_clips(other, config, storage)
    with pytest.raises(InputError, match="hears 187 frames at a time"):
        build(replace(FROZEN.model, window=100), 4, SPEC.shape)


def test_weights_that_are_not_here_are_named_before_anything_is_done(features, storage, tmp_path, monkeypatch):
    monkeypatch.setenv("MGC_CACHE", str(tmp_path / "empty"))
    config = replace(FROZEN, model=replace(FROZEN.model, encoder="musicnn"))
    with pytest.raises(InputError, match="«mgc download musicnn»"):
        load_clips(features, config, storage)
    assert storage.kind() is None


def test_what_a_frozen_encoder_cannot_do_is_refused_by_its_own_name():
    with pytest.raises(InputError, match=r"`augment.band_masks=1`: must be 0 on the frozen encoder musicnn_random"):
        replace(FROZEN, augment=replace(FROZEN.augment, band_masks=1))
    with pytest.raises(InputError, match=r"`model.window=187`: must be 0 on the frozen encoder"):
        replace(FROZEN, model=replace(FROZEN.model, window=187))
    with pytest.raises(InputError, match=r"`model.hidden=\(-3,\)`: must be positive"):
        replace(FROZEN.model, hidden=(-3,))
    with pytest.raises(InputError, match=r"`optim.batch_size=2`: must be at least 3 on an encoder"):
        replace(FROZEN, optim=replace(FROZEN.optim, batch_size=2))
