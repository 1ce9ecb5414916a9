"""Distillation: what the teacher says of what is heard, a network that learns it, and a checkpoint without it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.feature_sets import GENRES, SPEC, make_sharded
from helpers.ranks import fit_on_ranks

from mgc.audio.logmel import RECIPES
from mgc.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.core.storage import Folder
from mgc.dataset import clips as clips_of
from mgc.dataset.embeddings import taught_by, vectors_of
from mgc.dataset.protocols import learning_set
from mgc.model import checkpoint
from mgc.model.cnn import GenreCNN
from mgc.model.student import Student, distance, said_of
from mgc.training.fit_state import history
from mgc.training.hardware import load_clips
from mgc.training.loop import fit
from mgc.training.train import train

HEARD = replace(RECIPES["musicnn"], seconds=5.0)
CONFIG = TrainConfig(
    model=ModelConfig(channels=(4, 8), norm=True, head="bands", window=16),
    augment=AugmentConfig(mixup_alpha=0.2),
    optim=OptimConfig(lr=3e-3, batch_size=8, teacher="musicnn_random"),
    epochs=2,
    keep="last",
)


def genre(track_id):
    return track_id % len(GENRES)


def loud_band(spec):
    def values(track_id):
        mel_FT = np.random.default_rng(track_id).uniform(0, 0.5, spec.shape)
        mel_FT[20 * genre(track_id) : 20 * genre(track_id) + 12] += 2
        return mel_FT

    return values


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same clips twice: for the network, and for the teacher in other shards."""
    folder = tmp_path_factory.mktemp("student")
    own = make_sharded(folder / "own", spec=SPEC, genre=genre, values=loud_band(SPEC), training=(24, 8), validation=[8])
    heard = make_sharded(
        folder / "heard", spec=HEARD, genre=genre, values=loud_band(HEARD), training=(8, 24), validation=[8]
    )
    return own, heard


@pytest.fixture
def storage(tmp_path):
    return Folder.at(tmp_path / "storage")


def test_the_teacher_says_what_it_heard_where_the_network_listens():
    taught_BKD = torch.arange(3.0)[None, :, None].repeat(4, 1, 1).half()  # windows 0, 1 and 2
    said_BD = said_of(taught_BKD, torch.tensor([0, 24, 26, 100]), last=100)
    assert said_BD.squeeze(1).tolist() == [0, 0, 1, 2]
    assert said_of(taught_BKD, torch.zeros(4, dtype=torch.int64), last=0).squeeze(1).tolist() == [1, 1, 1, 1]


def test_a_student_gives_logits_and_its_guess_in_training_and_logits_elsewhere():
    network = GenreCNN(CONFIG.model, 4, SPEC.shape)
    student, mel_B1FT = Student(network, 6), torch.randn(2, 1, SPEC.shape[0], 16)
    assert student.train()(mel_B1FT).shape == (2, 4 + 6)
    torch.testing.assert_close(student.eval()(mel_B1FT), network.eval()(mel_B1FT))
    assert distance(torch.tensor([[2.0, 0]]), torch.tensor([[0.0, 3]])).item() == 1


def test_what_is_taught_are_components_of_the_teachers_vectors_in_the_order_of_the_clips(sets, storage):
    own, heard = sets
    clips = clips_of.load(own, "training", "validation")
    taught_NKD = taught_by("musicnn_random", heard, clips, storage).astype(np.float32)
    assert taught_NKD.shape == (40, 2, 128)
    vectors_NDK = vectors_of(heard, ("training", "validation"), "musicnn_random", storage).astype(np.float32)
    rows_ND = vectors_NDK.transpose(0, 2, 1).reshape(80, -1)
    rows_ND = (rows_ND - rows_ND.mean(0)) / np.maximum(rows_ND.std(0, ddof=1), 1e-4)
    _, values, axes = np.linalg.svd(rows_ND, full_matrices=False)
    expected = np.abs(rows_ND @ axes[0]) / (values[0] ** 2 / 80) ** 0.25
    np.testing.assert_allclose(np.abs(taught_NKD.reshape(80, 128)[:, -1]), expected, rtol=0.02, atol=0.02)
    turned = clips.take(np.array([30, 2]))
    np.testing.assert_array_equal(turned.track_ids_N, clips.track_ids_N[[30, 2]])
    np.testing.assert_allclose(taught_by("musicnn_random", heard, clips, storage)[2], taught_NKD[2], atol=0.02)


def test_a_fit_learns_both_and_keeps_the_network_alone(sets, storage, tmp_path):
    own, heard = sets
    _, clips = load_clips(own, CONFIG, storage, teacher_features=heard)
    data = learning_set(own, CONFIG, clips=clips)
    fitted = fit(replace(CONFIG, epochs=8), data, tmp_path / "fit")
    losses = [epoch.train_loss for epoch in fitted.history]
    assert losses[-1] < losses[0]
    model, card = checkpoint.read(fitted.checkpoint)
    assert isinstance(model, GenreCNN)
    assert card.config.track == "distilled (musicnn_random)"
    assert not any("guess" in name for name in model.state_dict())
    plain = replace(CONFIG, epochs=8, optim=replace(CONFIG.optim, teacher="none"))
    untaught = fit(plain, replace(data, clips=replace(clips, taught_NKD=None)), tmp_path / "plain")
    other, _ = checkpoint.read(untaught.checkpoint)
    assert not torch.equal(other.linear.weight, model.linear.weight)
    assert fitted.history[0].train_loss > untaught.history[0].train_loss + 0.3  # the guess counts


def test_the_gradient_is_that_of_cross_entropy_and_cosine_together(sets, storage):
    from mgc.dataset.batches import Feed
    from mgc.training.epoch import plan_epoch
    from mgc.training.optim import build_learner
    from mgc.training.step import TrainStep

    own, heard = sets
    config = replace(CONFIG, augment=AugmentConfig(), optim=replace(CONFIG.optim, teacher_weight=0.5, lr=1e-9))
    _, clips = load_clips(own, config, storage, teacher_features=heard)
    data = learning_set(own, config, clips=clips)
    learner, feed = build_learner(config, data, torch.device("cpu")), Feed(clips, "cpu", resident=True)
    step, plan = TrainStep(learner, feed, config), plan_epoch(config, data, 1)
    step.start_epoch(plan)
    torch.manual_seed(0)
    step(8)
    found = {name: each.grad.clone() for name, each in learner.model.named_parameters()}
    learner.model.zero_grad()
    rows, starts_B = plan.rows_N[:8], plan.draws.starts_N[:8]
    mel = [clips.mel_NFT[row][:, start : start + 16] for row, start in zip(rows, starts_B.tolist(), strict=True)]
    torch.manual_seed(0)
    output_BX = learner.model(torch.from_numpy(np.stack(mel)).float().unsqueeze(1))
    said_BD = [clips.taught_NKD[row, int(start >= 8.5)] for row, start in zip(rows, starts_B.tolist(), strict=True)]
    cosine_B = torch.cosine_similarity(output_BX[:, 4:], torch.from_numpy(np.stack(said_BD)).float())
    labels_B = torch.from_numpy(clips.labels_N[rows])
    (torch.nn.functional.cross_entropy(output_BX[:, :4], labels_B) + 0.5 * (1 - cosine_B).mean()).backward()
    for name, each in learner.model.named_parameters():
        torch.testing.assert_close(found[name], each.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(sets, storage, tmp_path):
    own, heard = sets
    config = replace(CONFIG, model=replace(CONFIG.model, dropout=0.0), epochs=1)
    _, clips = load_clips(own, config, storage, teacher_features=heard)
    data = learning_set(own, config, clips=clips)
    alone = fit(config, data, tmp_path / "alone")
    fit_on_ranks(2, config, data, tmp_path / "shared")
    (shared,) = history(Folder.at(tmp_path / "shared"))
    assert shared.train_loss == pytest.approx(alone.history[0].train_loss, rel=1e-4)


def test_a_training_by_name_is_tagged_with_its_track(sets, storage):
    own, heard = sets
    run = train(own, replace(CONFIG, epochs=1), teacher_features=heard.folder, storage=str(storage))
    assert checkpoint.read_card(run.checkpoint).config.optim.teacher == "musicnn_random"


def test_a_teacher_and_what_it_hears_need_each_other(sets, storage, tmp_path):
    own, heard = sets
    with pytest.raises(InputError, match=r"`optim\.teacher` and `teacher_features` need each other"):
        load_clips(own, CONFIG, storage)
    plain = replace(CONFIG, optim=replace(CONFIG.optim, teacher="none"))
    with pytest.raises(InputError, match="need each other"):
        load_clips(own, plain, storage, teacher_features=heard)
    with pytest.raises(InputError, match="listens to spectrograms of «mgc preprocess --features musicnn»"):
        load_clips(own, CONFIG, storage, teacher_features=own)
    few = make_sharded(tmp_path / "few", spec=HEARD, training=(4,), validation=[4])
    with pytest.raises(InputError, match=r"clips are not in it, the first is track"):
        load_clips(own, CONFIG, storage, teacher_features=few)
    with pytest.raises(InputError, match=r"`optim\.teacher='musicnn'`: must be none on an encoder"):
        TrainConfig(model=ModelConfig(encoder="musicnn"), optim=OptimConfig(teacher="musicnn"))
