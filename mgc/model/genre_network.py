"""What all networks share: a clip is heard in windows, and each window votes.

Shape suffixes: K windows of a clip, B clips in a batch, F mel bands, T frames, W frames of a window, G genres.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mgc.core.errors import InputError


class GenreNetwork(nn.Module):
    """A network over log-Mel spectrograms: a subclass computes the logits of a window in ``_logits``.

    Parameters
    ----------
    window
        Frames that it hears at a time; 0 is the whole clip.
    frames
        Of a whole clip.

    Raises
    ------
    InputError
        Clips have fewer frames than ``window``.
    """

    linear: nn.Linear
    """The last layer, with an output a genre."""

    def __init__(self, window: int, frames: int) -> None:
        super().__init__()
        if window > frames:
            raise InputError(f"`model.window={window}`: clips have only {frames} frames")
        self.window = window

    def forward(self, mel_B1FT: Tensor) -> Tensor:
        """Compute logits; of clips longer than the window, the mean over windows that cover them evenly.

        Parameters
        ----------
        mel_B1FT
            Z-scored spectrograms [shape=(B, 1, F, T), dtype=float32].

        Returns
        -------
        torch.Tensor [shape=(B, G)]
            Logits.
        """
        return self.hear(mel_B1FT)[0]

    def hear(self, mel_B1FT: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits of clips, and of each of their windows.

        Parameters
        ----------
        mel_B1FT
            Z-scored spectrograms [shape=(B, 1, F, T), dtype=float32].

        Returns
        -------
        logits_BG : torch.Tensor [shape=(B, G)]
            What ``forward`` gives.
        logits_KBG : torch.Tensor [shape=(K, B, G)]
            Of the K windows that ``starts`` lists.
        """
        windows_KB1FW = windows(mel_B1FT, self.window)
        logits_KBG = self._logits(windows_KB1FW.flatten(0, 1)).unflatten(0, windows_KB1FW.shape[:2])
        return logits_KBG.mean(0), logits_KBG

    def starts(self, frames: int) -> list[int]:
        """First frames of the windows that cover a clip evenly; a network without windows hears the clip as one.

        Parameters
        ----------
        frames
            Of the clip.
        """
        return starts(frames, self.window)

    def _logits(self, mel_B1FT: Tensor) -> Tensor:
        """Logits [shape=(B, G)] of spectrograms that are heard as one."""
        raise NotImplementedError


def starts(frames: int, window: int) -> list[int]:
    """First frames of as few windows as cover a clip, evenly.

    Parameters
    ----------
    frames
        Of the clip.
    window
        Frames of a window; 0 is the whole clip.

    Examples
    --------
    >>> starts(100, 40)
    [0, 30, 60]
    """
    count = math.ceil(frames / window) if window else 1
    return [round(index * (frames - window) / (count - 1)) for index in range(count)] if count > 1 else [0]


def windows(mel_BFT: Tensor, window: int) -> Tensor:
    """Cut clips into the windows that ``starts`` lists.

    Parameters
    ----------
    mel_BFT
        Spectrograms [shape=(B, …, F, T)].
    window
        Frames of a window, W; 0 is the whole clip.

    Returns
    -------
    torch.Tensor [shape=(K, B, …, F, W)]
        The windows; without copying where there is one.
    """
    firsts = starts(mel_BFT.shape[-1], window)
    if len(firsts) == 1:
        return mel_BFT.unsqueeze(0)
    return torch.stack([mel_BFT[..., first : first + window] for first in firsts])
