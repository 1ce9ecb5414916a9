"""MSD_musicnn: a CNN that Pons and Serra trained to give tracks of the Million Song Dataset their tags of Last.fm.

Pons and Serra, «musicnn: pre-trained convolutional neural networks for music audio tagging», ISMIR 2019 late-breaking
session; https://github.com/jordipons/musicnn. The layers are those of its ``musicnn/models.py``, ``build_musicnn``.

Shape suffixes: B patches, F mel bands, T frames, C channels, D pooled values, H hidden units, K tags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mgc.encoders.minimal_filtering import maximum_over_bands

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MELS = 96
WINDOW = 187
"""Frames of a patch: 3 s at 16 kHz with a hop of 256 samples. The network takes others too."""
TIMBRAL_MELS = (38, 67)
"""Mel bands that the filters of each timbral branch cover, on seven frames."""
TEMPORAL_FRAMES = (128, 64, 32)
"""Frames that the filters of each temporal branch cover, on one band."""
TIMBRAL_FILTERS, TEMPORAL_FILTERS, MIDDLE_FILTERS = 204, 51, 64
HIDDEN = 200
FRONT = len(TIMBRAL_MELS) * TIMBRAL_FILTERS + len(TEMPORAL_FRAMES) * TEMPORAL_FILTERS
"""Channels of all branches: 561."""
SIZE = 2 * (FRONT + 3 * MIDDLE_FILTERS)
"""Values of the pooled vector: 1506, the maximum and the mean over time of 753 channels."""
BEHIND = ("pooled_norm", "dense", "dense_norm", "output")
"""Layers behind the pooled vector: those that end in the tags."""
EPSILON, MOMENTUM = 1e-3, 0.01
"""Of TensorFlow's BatchNorm, by default."""
LAYER = {"weight": "kernel", "bias": "bias"}
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
"""PyTorch's names of a layer's tensors, and of BatchNorm's, and TensorFlow's."""

TAGS = (
    "rock", "pop", "alternative", "indie", "electronic", "female vocalists", "dance", "00s", "alternative rock", "jazz",
    "beautiful", "metal", "chillout", "male vocalists", "classic rock", "soul", "indie rock", "Mellow", "electronica",
    "80s", "folk", "90s", "chill", "instrumental", "punk", "oldies", "blues", "hard rock", "ambient", "acoustic",
    "experimental", "female vocalist", "guitar", "Hip-Hop", "70s", "party", "country", "easy listening", "sexy",
    "catchy", "funk", "electro", "heavy metal", "Progressive rock", "60s", "rnb", "indie pop", "sad", "House", "happy",
)  # fmt: skip
"""The 50 most frequent tags of Last.fm, in the network's order."""


class Musicnn(nn.Module):
    """The network MSD_musicnn, with fresh weights; 787,159 parameters.

    In evaluation, without gradients and on the CPU, its first layer is computed in a quarter of the time or less,
    to the same values up to rounding; else it is made of plain convolutions, which can be trained and exported.

    Examples
    --------
    >>> model = Musicnn().eval()
    >>> with torch.inference_mode():
    ...     model(torch.zeros(2, 96, 187)).shape
    torch.Size([2, 1506])
    """

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1, EPSILON, MOMENTUM)
        branches: list[_Branch] = [_Timbral(mels) for mels in TIMBRAL_MELS]
        self.front = nn.ModuleList(branches + [_Temporal(frames) for frames in TEMPORAL_FRAMES])
        self.middle = nn.ModuleList(_Middle(channels) for channels in (FRONT, MIDDLE_FILTERS, MIDDLE_FILTERS))
        self.pooled_norm = nn.BatchNorm1d(SIZE, EPSILON, MOMENTUM)
        self.dropout = nn.Dropout(0.5)
        self.dense = nn.Linear(SIZE, HIDDEN)
        self.dense_norm = nn.BatchNorm1d(HIDDEN, EPSILON, MOMENTUM)
        self.output = nn.Linear(HIDDEN, len(TAGS))

    def forward(self, mel_BFT: Tensor) -> Tensor:
        """Compute what the dense layers see: of each channel the maximum over time, then its mean.

        Parameters
        ----------
        mel_BFT
            Spectrograms [shape=(B, 96, T), dtype=float32]: ``log10(1 + 10,000 × power)`` at 16 kHz, n_fft 512, hop
            256. The network was trained with T = 187.

        Returns
        -------
        torch.Tensor [shape=(B, 1506)]
            Maximum and mean take turns: the channel c has the values 2c and 2c + 1.
        """
        normed_BFT = self.input_norm(mel_BFT.unsqueeze(1)).squeeze(1)
        front_BCT = torch.cat([branch(normed_BFT) for branch in self.front], dim=1)
        first, second, third = self.middle
        first_BCT = first(front_BCT)
        second_BCT = second(first_BCT) + first_BCT
        third_BCT = third(second_BCT) + second_BCT
        maps_BCT = torch.cat([front_BCT, first_BCT, second_BCT, third_BCT], dim=1)
        return torch.stack([maps_BCT.amax(2), maps_BCT.mean(2)], dim=2).flatten(1)

    def penultimate(self, mel_BFT: Tensor) -> Tensor:
        """Compute the last hidden layer.

        Parameters
        ----------
        mel_BFT
            As ``forward`` takes it.

        Returns
        -------
        torch.Tensor [shape=(B, 200)]
        """
        return self._hidden(self(mel_BFT))

    def tags(self, mel_BFT: Tensor) -> Tensor:
        """Compute the probability of each of ``TAGS``; they do not exclude each other.

        Parameters
        ----------
        mel_BFT
            As ``forward`` takes it.

        Returns
        -------
        torch.Tensor [shape=(B, 50)]
        """
        return self.tags_of(self(mel_BFT))

    def tags_of(self, pooled_BD: Tensor) -> Tensor:
        """Compute the probability of each of ``TAGS`` from what ``forward`` gave.

        Parameters
        ----------
        pooled_BD
            Pooled vectors [shape=(B, 1506)].

        Returns
        -------
        torch.Tensor [shape=(B, 50)]
        """
        logits_BK: Tensor = self.output(self.dropout(self._hidden(pooled_BD)))
        return logits_BK.sigmoid()

    def _hidden(self, pooled_BD: Tensor) -> Tensor:
        hidden_BH: Tensor = self.dense(self.dropout(self.pooled_norm(pooled_BD)))
        normed_BH: Tensor = self.dense_norm(hidden_BH.relu())
        return normed_BH


class _Branch(nn.Module):
    """Convolution, ReLU, BatchNorm, maximum over the mel bands; frames beyond the ends are zero.

    Parameters
    ----------
    filters
        Output channels.
    mels, frames
        What a filter covers.
    """

    def __init__(self, filters: int, mels: int, frames: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, filters, (mels, frames))
        self.norm = nn.BatchNorm2d(filters, EPSILON, MOMENTUM)

    def forward(self, mel_BFT: Tensor) -> Tensor:
        """From spectrograms [shape=(B, 96, T)] to channels [shape=(B, C, T)]."""
        if self.norm.training or torch.is_grad_enabled() or mel_BFT.is_cuda or torch.compiler.is_exporting():
            return self.plain(mel_BFT)
        # ReLU and BatchNorm rise with the convolution's value, or BatchNorm falls: then its minimum is wanted
        bias_C: Tensor = self.convolution.bias  # type: ignore[assignment]
        sign_C11 = torch.where(self.norm.weight < 0, -1.0, 1.0)[:, None, None]
        signed_CFT = self.convolution.weight.squeeze(1) * sign_C11
        extreme_BCT = self._maximum(mel_BFT, signed_CFT) * sign_C11[..., 0] + bias_C[:, None]
        normed_BCT: Tensor = self.norm(extreme_BCT.relu().unsqueeze(2)).squeeze(2)
        return normed_BCT

    def plain(self, mel_BFT: Tensor) -> Tensor:
        """The same in its plain order, which can be trained."""
        frames = self.convolution.kernel_size[1]
        padded = functional.pad(mel_BFT.unsqueeze(1), ((frames - 1) // 2, frames // 2))
        maximum_BCT: Tensor = self.norm(self.convolution(padded).relu()).amax(2)
        return maximum_BCT

    def _maximum(self, mel_BFT: Tensor, filters_CFT: Tensor) -> Tensor:
        """The largest response of each filter, at each frame, over the bands: [shape=(B, C, T)]."""
        raise NotImplementedError


class _Timbral(_Branch):
    """A branch whose filters cover many bands and seven frames."""

    def __init__(self, mels: int) -> None:
        super().__init__(TIMBRAL_FILTERS, mels, 7)

    def _maximum(self, mel_BFT: Tensor, filters_CFT: Tensor) -> Tensor:
        return maximum_over_bands(mel_BFT, filters_CFT)


class _Temporal(_Branch):
    """A branch whose filters cover one band and many frames."""

    TOGETHER = 4
    """Frames computed by one product of matrices: taller ones are quicker."""
    PATCHES = 5
    """Patches at a time: what is computed for them stays in the cache."""

    def __init__(self, frames: int) -> None:
        super().__init__(TEMPORAL_FILTERS, 1, frames)

    def _maximum(self, mel_BFT: Tensor, filters_CFT: Tensor) -> Tensor:
        """Multiply the filters with those frames that they cover; all bands and patches are columns."""
        return torch.cat([self._some(each, filters_CFT.squeeze(1)) for each in mel_BFT.split(self.PATCHES)])

    def _some(self, mel_BFT: Tensor, filters_CT: Tensor) -> Tensor:
        count, taps = filters_CT.shape
        patches, bands, frames = mel_BFT.shape
        together, before = self.TOGETHER, (taps - 1) // 2
        shifted_NCT = torch.stack([functional.pad(filters_CT, (n, together - 1 - n)) for n in range(together)])
        shifted_CT = shifted_NCT.flatten(0, 1)
        columns_TF = mel_BFT.permute(2, 0, 1).flatten(1)
        maxima = []
        for first in range(-before, frames - before, together):
            start, stop = max(0, first), min(frames, first + taps + together - 1)
            response = shifted_CT[:, start - first : stop - first] @ columns_TF[start:stop]
            maxima.append(response.view(together, count, patches, bands).amax(3))
        return torch.cat(maxima)[:frames].permute(2, 1, 0)


class _Middle(nn.Module):
    """Convolution of seven frames over all channels, ReLU, BatchNorm.

    Parameters
    ----------
    channels
        Input channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels, MIDDLE_FILTERS, 7, padding=3)
        self.norm = nn.BatchNorm1d(MIDDLE_FILTERS, EPSILON, MOMENTUM)

    def forward(self, maps_BCT: Tensor) -> Tensor:
        """From channels [shape=(B, C, T)] to others [shape=(B, 64, T)]."""
        normed_BCT: Tensor = self.norm(self.convolution(maps_BCT).relu())
        return normed_BCT


def from_tensorflow(tensors: Mapping[str, NDArray[Any]]) -> Musicnn:
    """Make the network with the weights of the original checkpoint.

    Parameters
    ----------
    tensors
        Variables of MSD_musicnn by their names, as ``tensorflow_bundle.read_bundle`` gives them.

    Returns
    -------
    Musicnn
        In evaluation mode.

    Raises
    ------
    KeyError
        A variable is missing.
    RuntimeError
        A variable has another shape.
    """
    model = Musicnn().eval()
    blocks = [*model.front, *model.middle]
    layers = {
        "conv2d": [block.convolution for block in blocks],
        "batch_normalization": [
            model.input_norm, *(block.norm for block in blocks), model.pooled_norm, model.dense_norm
        ],
        "dense": [model.dense, model.output],
    }  # fmt: skip
    state = model.state_dict()  # of which BatchNorm's counts of batches stay
    names = {module: name for name, module in model.named_modules()}
    for kind, modules in layers.items():
        for number, module in enumerate(modules):
            layer = f"{kind}_{number}" if number else kind
            for ours, theirs in (NORM if kind == "batch_normalization" else LAYER).items():
                values = torch.from_numpy(tensors[f"{layer}/{theirs}"].copy())
                if values.ndim == 4:  # frames, bands or channels, 1, filters
                    values = values.permute(3, 2, 1, 0)
                    values = values.squeeze(1) if isinstance(module, nn.Conv1d) else values
                state[f"{names[module]}.{ours}"] = values.T if values.ndim == 2 else values
    model.load_state_dict(state)
    return model
