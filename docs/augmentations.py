"""Draw what each augmentation does to real clips, by the product's own functions.

    python docs/augmentations.py FEATURES docs/pictures

FEATURES is any finished feature set; two of its training clips are shown.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mgc.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from mgc.dataset import augment, clips
from mgc.features.feature_set import FeatureSet

WINDOW, SEED = 256, 5
BASE = TrainConfig(model=ModelConfig(window=WINDOW), optim=OptimConfig(batch_size=2), seed=SEED)


def main(features: Path, out: Path) -> None:
    """Write one picture an augmentation."""
    feature_set = FeatureSet.open(features)
    spec, training = feature_set.manifest.spec, clips.load(feature_set, "training", lazily=True)
    mel_BFT = torch.from_numpy(training.mel_NFT[np.array([1, 40])])
    seconds = spec.seconds * WINDOW / spec.shape[1]

    def varied(**settings: float) -> np.ndarray:
        """The first of the two clips as a fit would see it."""
        config = replace(BASE, augment=AugmentConfig(**settings))
        draws = augment.draw(config, spec.shape, 2, epoch=1)
        if "mixup_alpha" in settings:  # a share and a partner that show something
            draws = replace(draws, partners_N=torch.tensor([1, 0]), shares_N=torch.tensor([0.6, 0.6]))
        return augment.training_batch(mel_BFT, config, draws, torch.arange(2), slice(None))[0][0].numpy()

    plain, other = varied(), varied_partner(mel_BFT, spec.shape)
    pictures = {
        "crop": {f"a whole clip of {spec.seconds} s": mel_BFT[0].float().numpy(), "a random crop": plain},
        "mixup": {"a clip": plain, "another": other, "0.6 of the one, 0.4 of the other": varied(mixup_alpha=0.3)},
        "specaugment": {
            "a clip": plain,
            "two stretches of time and two of bands blanked out": varied(
                time_masks=2, time_mask_frames=40, band_masks=2, band_mask_bands=16
            ),
        },
        "equalize": {"a clip": plain, "through a random equaliser": varied(equalize=0.5)},
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, panels in pictures.items():
        figure = Figure(figsize=(4.2 * len(panels), 2.8), layout="constrained")
        for axes, (title, mel_FT) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            length = spec.seconds if mel_FT.shape[1] > WINDOW else seconds
            image = axes.imshow(
                mel_FT, origin="lower", aspect="auto", cmap="magma", vmin=-3, vmax=3, extent=(0, length, 0, spec.n_mels)
            )
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("seconds", fontsize=8)
            axes.tick_params(labelsize=7)
        figure.axes[0].set_ylabel("mel band", fontsize=8)
        figure.colorbar(image, ax=figure.axes, shrink=0.8, label="z-score")
        figure.savefig(out / f"augment_{name}.png", dpi=75)


def varied_partner(mel_BFT: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """The second clip's crop, which mixup mixes in."""
    draws = augment.draw(BASE, shape, 2, epoch=1)
    return augment.crops(mel_BFT, draws.starts_N, WINDOW)[1].float().numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
