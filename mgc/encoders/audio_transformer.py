"""AST: a vision transformer over spectrograms, trained on AudioSet; by ``transformers`` (the extra ``encoders-hub``).

Gong, Chung and Glass, «AST: Audio Spectrogram Transformer», Interspeech 2021; https://github.com/YuanGongND/ast.

Shape suffixes: B windows, F mel bands, T frames, D values of the vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from mgc.core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

REPOSITORY = "MIT/ast-finetuned-audioset-10-10-0.4593"
"""Of the Hugging Face hub."""
FILES = ("config.json", "model.safetensors")
"""Of a checkpoint there: its layers and its weights."""
WINDOW = 1024
"""Frames that it hears at a time: 10.24 s."""
SIZE = 768


class AudioTransformer(nn.Module):
    """The encoder of AST.

    Parameters
    ----------
    network
        A ``transformers.ASTModel``; by default one of the published size, with fresh weights.

    Raises
    ------
    InputError
        ``transformers`` is not installed.
    """

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        try:
            from transformers import ASTConfig, ASTModel
        except ImportError as error:
            raise missing_extra() from error
        self.network = network or ASTModel(ASTConfig())

    def forward(self, mel_BFT: Tensor) -> Tensor:
        """Compute the mean of the class and the distillation token, from which AST's own output is made.

        Parameters
        ----------
        mel_BFT
            Spectrograms [shape=(B, 128, 1024), dtype=float32]: the recipe ``ast`` of ``mgc.audio.logmel.RECIPES``.

        Returns
        -------
        torch.Tensor [shape=(B, 768)]
        """
        vectors_BD: Tensor = self.network(mel_BFT.transpose(1, 2)).pooler_output
        return vectors_BD


def from_hub(folder: Path) -> AudioTransformer:
    """Make the encoder with the weights of a checkpoint of the hub.

    Parameters
    ----------
    folder
        With its ``FILES``. Weights are read as safetensors, never as pickle.

    Returns
    -------
    AudioTransformer
        In evaluation mode.

    Raises
    ------
    ValueError
        The checkpoint lacks tensors of the network.
    """
    from transformers import ASTForAudioClassification

    whole, found = ASTForAudioClassification.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"lacks {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1))
    return AudioTransformer(whole.audio_spectrogram_transformer).eval()


def missing_extra() -> InputError:
    """Make the error of an encoder whose packages are not installed."""
    return InputError("`encoder=ast`: needs transformers; run «pip install 'mgc[encoders-hub]'» first")
