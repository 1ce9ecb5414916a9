"""Augmentations: what is drawn is right, what is applied is what was drawn, and workers share it as one."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mgc.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from mgc.dataset import augment
from mgc.dataset.augment import Draws, draw, training_batch
from mgc.dataset.batches import batches

BANDS, FRAMES, N = 16, 50, 23
ALL = TrainConfig(
    model=ModelConfig(window=20),
    augment=AugmentConfig(
        mixup_alpha=0.4, time_masks=2, time_mask_frames=6, band_masks=2, band_mask_bands=4, equalize=0.5
    ),
    optim=OptimConfig(batch_size=8),
    seed=3,
)
OFF = TrainConfig(optim=OptimConfig(batch_size=8))


def only(**changes):
    """Off, but for some of it; ``window`` too is a change."""
    return replace(OFF, model=ModelConfig(window=changes.pop("window", 0)), augment=AugmentConfig(**changes))


EACH = {
    "all": ALL,
    "off": OFF,
    "window": only(window=20),
    "mixup": only(mixup_alpha=0.4),
    "mixed windows": only(mixup_alpha=1.0, window=20),
    "time": only(time_masks=2, time_mask_frames=6),
    "bands": only(band_masks=1, band_mask_bands=4),
    "equalize": only(equalize=0.5),
}


@pytest.fixture(scope="module", name="mel_NFT")
def clips_of_an_epoch():
    """In their order; no value is zero."""
    mel_NFT = torch.randn(N, BANDS, FRAMES, generator=torch.Generator().manual_seed(0)).half()
    return torch.where(mel_NFT == 0, torch.ones(()).half(), mel_NFT)


def an_epoch(config, mel_NFT, *, world=1):
    """Each clip of the epoch as it comes out, though ``world`` workers share each batch: spectrograms and shares."""
    draws = draw(config, (BANDS, FRAMES), N, epoch=1).to(mel_NFT.device)
    window = config.model.window or FRAMES
    out_NFW, shares_N = torch.full((N, BANDS, window), torch.nan), torch.full((N,), torch.nan)
    for places_B in batches(np.arange(N), config.optim.batch_size):
        for rank in range(world):
            mine = slice(rank, None, world)
            given_BFT = mel_NFT[places_B] if config.augment.mixup_alpha else mel_NFT[places_B[mine]]
            mel_BFW, shares_B = training_batch(
                given_BFT, config, draws, torch.from_numpy(places_B).to(mel_NFT.device), mine
            )
            out_NFW[places_B[mine]], shares_N[places_B[mine]] = mel_BFW.cpu(), shares_B.cpu()
    return out_NFW, shares_N


# What is drawn


def test_draws_are_a_function_of_seed_and_epoch():
    one, again = (draw(ALL, (BANDS, FRAMES), N, epoch=4) for _ in range(2))
    others = [draw(ALL, (BANDS, FRAMES), N, epoch=5), draw(replace(ALL, seed=4), (BANDS, FRAMES), N, epoch=4)]
    for field in fields(Draws):
        assert torch.equal(getattr(one, field.name), getattr(again, field.name))
        assert not any(torch.equal(getattr(one, field.name), getattr(other, field.name)) for other in others)


def test_draws_do_not_touch_the_generators_that_others_use():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 (the old one, to be left alone)
    draw(ALL, (BANDS, FRAMES), N, epoch=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_each_clip_is_once_a_partner_of_one_in_its_own_batch():
    for epoch in range(20):
        partners_N = draw(ALL, (BANDS, FRAMES), N, epoch).partners_N.numpy()
        for places_B in batches(np.arange(N), 8):
            assert sorted(partners_N[places_B]) == places_B.tolist()
    others = (partners_N != np.arange(N)).mean()
    assert others > 0.5


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_of_the_beta_distribution_folded_at_a_half(alpha):
    shares_N = draw(only(mixup_alpha=alpha), (BANDS, FRAMES), 20_000, 0).shares_N
    assert shares_N.min() >= 0.5
    assert shares_N.max() <= 1
    beta_N = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    folded_N = np.maximum(beta_N, 1 - beta_N)
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(shares_N, q) == pytest.approx(np.quantile(folded_N, q), abs=0.01)


def test_crops_begin_anywhere_that_a_window_fits():
    starts_N = draw(ALL, (BANDS, FRAMES), 31 * 200, 0).starts_N.numpy()
    counts = np.bincount(starts_N, minlength=31)
    assert len(counts) == 31  # 50 - 20 + 1
    assert ((counts - 200) ** 2 / 200).sum() < 30 + 5 * np.sqrt(60)  # chi-square of 30 degrees of freedom
    for window in (0, FRAMES):
        assert not draw(only(window=window), (BANDS, FRAMES), N, 0).starts_N.any()


@pytest.mark.parametrize(
    ("name", "config", "longest", "size"),
    [
        ("times_NM2", only(time_masks=2, time_mask_frames=6), 6, FRAMES),
        ("bands_NM2", only(band_masks=2, band_mask_bands=4), 4, BANDS),
        ("times_NM2", only(time_masks=2, time_mask_frames=40, window=12), 12, 12),  # no longer than what is heard
        ("bands_NM2", only(band_masks=2, band_mask_bands=99), BANDS, BANDS),
    ],
)
def test_masks_are_of_uniform_length_and_anywhere_inside(name, config, longest, size):
    spans_NM2 = getattr(draw(config, (BANDS, FRAMES), 3000, 0), name).numpy()
    assert spans_NM2.shape == (3000, 2, 2)
    first, end = spans_NM2[..., 0].ravel(), spans_NM2[..., 1].ravel()
    length = end - first
    counts = np.bincount(length, minlength=longest + 1)
    assert len(counts) == longest + 1
    expected = 6000 / (longest + 1)
    assert ((counts - expected) ** 2 / expected).sum() < longest + 5 * np.sqrt(2 * longest)
    assert (first.min(), end.max()) == (0, size)
    for each in range(longest + 1):
        starts = np.bincount(first[length == each], minlength=size - each + 1)
        assert len(starts) == size - each + 1  # every place, and none too far
        expected = counts[each] / len(starts)
        assert ((starts - expected) ** 2 / expected).sum() < len(starts) + 6 * np.sqrt(2 * len(starts))
    assert abs(np.corrcoef(spans_NM2[:, 0, 0], spans_NM2[:, 1, 0])[0, 1]) < 0.1  # each mask for itself


def test_the_equalisers_curve_is_smooth_and_of_its_strength():
    bands = 120
    gains_NF = draw(only(equalize=0.5), (bands, FRAMES), 4000, 0).gains_NF.numpy()
    assert gains_NF.shape == (4000, bands)
    assert np.abs(gains_NF.mean(0)).max() < 0.05
    assert gains_NF[:, [0, -1]].std(0) == pytest.approx(0.5, abs=0.03)
    bends_NF = np.abs(np.diff(gains_NF, 2)) > 1e-5
    assert bends_NF.sum(1).max() <= 2 * (augment.KNOTS - 2)  # straight between knots
    assert np.abs(np.diff(gains_NF)).max() < 0.5 * 8 * (augment.KNOTS - 1) / (bands - 1)
    assert abs(np.corrcoef(gains_NF[:, 0], gains_NF[:, -1])[0, 1]) < 0.1


def test_what_is_off_draws_nothing():
    draws = draw(OFF, (BANDS, FRAMES), N, 1)
    assert (draws.shares_N == 1).all()
    assert not draws.gains_NF.any()
    assert not draws.starts_N.any()
    assert draws.times_NM2.shape == draws.bands_NM2.shape == (N, 0, 2)


# What is applied


def naively(config, mel_NFT, draws):
    """An epoch's clips one by one, as the words have it: cut out, mixed, equalised, blanked."""
    window = config.model.window or FRAMES

    def cut(place):
        start = int(draws.starts_N[place])
        return mel_NFT[place, :, start : start + window].numpy().astype(np.float64)

    out = []
    for place in range(len(mel_NFT)):
        share = float(draws.shares_N[place])
        mel_FW = share * cut(place) + (1 - share) * cut(int(draws.partners_N[place]))
        for band in range(BANDS):
            mel_FW[band] += float(draws.gains_NF[place, band])
        for first, end in draws.times_NM2[place].tolist():
            mel_FW[:, first:end] = 0
        for first, end in draws.bands_NM2[place].tolist():
            mel_FW[first:end] = 0
        out.append(mel_FW)
    return np.stack(out)


@pytest.mark.parametrize("config", EACH.values(), ids=EACH)
def test_a_batch_is_what_a_naive_loop_over_its_clips_makes_of_it(mel_NFT, config):
    out_NFW, shares_N = an_epoch(config, mel_NFT)
    draws = draw(config, (BANDS, FRAMES), N, epoch=1)
    assert out_NFW.dtype == torch.float32
    assert torch.equal(shares_N, draws.shares_N)
    expected_NFW = naively(config, mel_NFT, draws)
    np.testing.assert_allclose(out_NFW.numpy(), expected_NFW, atol=1e-5)
    masked = bool(config.augment.time_masks or config.augment.band_masks)
    assert np.array_equal(out_NFW.numpy() == 0, expected_NFW == 0)
    assert (expected_NFW == 0).any() == masked
    if config is not OFF:
        assert out_NFW.shape != mel_NFT.shape or not torch.equal(out_NFW, mel_NFT.float())


@pytest.mark.parametrize("world", [2, 3, 9])  # of nine workers one has no clip of a batch of eight
@pytest.mark.parametrize("config", EACH.values(), ids=EACH)
def test_workers_shares_of_a_batch_are_together_the_batch_bit_for_bit(mel_NFT, config, world):
    for ours, alone in zip(an_epoch(config, mel_NFT, world=world), an_epoch(config, mel_NFT), strict=True):
        assert not ours.isnan().any()
        assert torch.equal(ours, alone)


def test_what_is_off_leaves_clips_exactly_as_they_are(mel_NFT):
    out_NFW, shares_N = an_epoch(OFF, mel_NFT)
    assert out_NFW.dtype == torch.float32
    assert torch.equal(out_NFW, mel_NFT.float())
    assert (shares_N == 1).all()


def test_the_clips_given_stay_as_they_are(mel_NFT):
    before = mel_NFT.clone()
    an_epoch(ALL, mel_NFT)
    assert torch.equal(mel_NFT, before)


def test_a_crop_is_a_slice(mel_NFT):
    starts_N = torch.arange(N) % 31
    cropped = augment.crops(mel_NFT, starts_N, 20)
    for clip in range(N):
        assert torch.equal(cropped[clip], mel_NFT[clip, :, clip % 31 : clip % 31 + 20])
    assert torch.equal(augment.crops(mel_NFT, torch.zeros(N, dtype=torch.long), FRAMES), mel_NFT)


def test_a_clip_mixed_with_a_share_of_one_is_the_clip_and_of_a_half_the_mean(mel_NFT):
    one, other = mel_NFT[:2].float(), mel_NFT[2:4].float()
    mixed = augment.mixup(one, other, torch.tensor([1.0, 0.5]))
    assert torch.equal(mixed[0], one[0])
    assert torch.allclose(mixed[1], (one[1] + other[1]) / 2, atol=1e-6)


def test_blanks_reach_from_the_first_to_before_the_last_and_an_empty_one_nothing():
    ones = torch.ones(2, 4, 6)
    times = torch.tensor([[[0, 2], [5, 6]], [[3, 3], [0, 0]]])
    bands = torch.tensor([[[4, 4]], [[1, 3]]])
    blanked = augment.blank(ones, times, bands)
    assert blanked[0].tolist() == [[0, 0, 1, 1, 1, 0]] * 4
    assert blanked[1].tolist() == [[1] * 6, [0] * 6, [0] * 6, [1] * 6]
    assert torch.equal(augment.blank(ones, times[:, :0], bands[:, :0]), ones)


def test_the_equaliser_adds_each_bands_gain_to_all_its_frames(mel_NFT):
    gains_NF = torch.randn(N, BANDS)
    equalized = augment.equalize(mel_NFT.float(), gains_NF)
    for clip in range(N):
        for band in range(BANDS):
            assert torch.equal(equalized[clip, band], mel_NFT[clip, band].float() + gains_NF[clip, band])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("config", EACH.values(), ids=EACH)
def test_on_a_gpu_a_batch_is_what_it_is_on_the_cpu(mel_NFT, config):
    (on_gpu, _), (on_cpu, _) = an_epoch(config, mel_NFT.cuda()), an_epoch(config, mel_NFT)
    assert torch.allclose(on_gpu.cpu(), on_cpu, atol=1e-5)
