"""Noise on the embeddings of what is learnt (NEFTune, Jain et al., 2023)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_noise(model: "PeftModel | PreTrainedModel", alpha: float) -> None:
    """Let a model's embeddings be noisy in training mode.

    To each number is added a draw between -m and m, with `m = alpha / sqrt(length * width)`. The
    length is that of the packed row, or of the padded batch, as in transformers' `activate_neftune`
    (whose trainers have the option by this name). What is drawn is decided by the random state at
    that moment, as with dropout.

    Args:
        model: Of transformers, with an adapter or without.
        alpha: 5 in most of the paper's runs.
    """
    noise = _Noise(alpha)
    model.get_decoder().register_forward_pre_hook(noise.note_rows, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(noise.add)


class _Noise:
    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._starts: Tensor | None = None

    def note_rows(self, decoder: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Keep where packed rows start, int32 `[rows + 1]`, before a forward."""
        self._starts = kwargs.get("cu_seq_lens_q")

    def add(self, embedding: nn.Module, inputs: object, output: Tensor) -> Tensor:
        """Return embeddings, `[batch, tokens, hidden]`, with noise in training."""
        if not embedding.training:
            return output
        tokens, width = output.shape[1:]
        lengths = torch.full((1,), tokens, device=output.device)
        if self._starts is not None:
            of_rows = self._starts.diff()
            lengths = of_rows.repeat_interleave(of_rows, output_size=tokens)
        magnitude = self._alpha / (lengths * width).float().sqrt()
        draws = torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1)
        return output + (draws * magnitude[:, None]).to(output.dtype)
