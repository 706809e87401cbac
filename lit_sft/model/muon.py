"""Muon for matrices and AdamW for all else, as one optimizer (Jordan et al., 2024)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lit_sft.errors import require
from lit_sft.model.loss import CausalLM


class MuonAndAdamW(Optimizer):
    """Torch's own `Muon` and `AdamW`, which share one list of groups and one state.

    A checkpoint and a schedule know one optimizer. By `match_rms_adamw` (Liu et al., 2025, "Muon is
    scalable for LLM training"), Muon's updates are as large as those of AdamW, so that one learning
    rate fits both.

    Args:
        matrices: `[out, in]` each, of hidden layers.
        rest: Embeddings, the head, and whatever is no matrix.
        lr: The learning rate of both.
        weight_decay: Decoupled, likewise.
        arguments: Of Muon, such as `momentum`.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        rest: Sequence[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        **arguments: Any,
    ) -> None:
        require(
            hasattr(torch.optim, "Muon"),
            f"model.optimizer: muon takes torch 2.9 or later, this is {torch.__version__}",
        )
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        of_muon = {"adjust_lr_fn": "match_rms_adamw"} | arguments
        self._muon = torch.optim.Muon([{"params": list(matrices)}], **options, **of_muon)
        self._adamw = torch.optim.AdamW([{"params": list(rest)}], **options, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> Any:
        """Take a step of both, on what a schedule or a checkpoint has put into the groups.

        Args:
            closure: Is called first, as by every optimizer of torch; what it returns is returned.
        """
        with torch.enable_grad():
            loss = closure() if closure else None
        for optimizer, group in zip((self._muon, self._adamw), self.param_groups, strict=True):
            optimizer.param_groups, optimizer.state = [group], self.state
            optimizer.step()
        return loss


def split_matrices(
    model: CausalLM, parameters: Sequence[nn.Parameter]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return which parameters Muon is given, the matrices of hidden layers, and which AdamW.

    Args:
        model: Whose embeddings and head are not hidden.
        parameters: Some of its own, such as those that are trained.
    """
    layers = [module for _, module in model.named_modules() if isinstance(module, nn.Embedding)]
    layers += [model.get_input_embeddings(), model.get_output_embeddings()]
    outer = {id(parameter) for layer in layers for parameter in layer.parameters()}
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in parameters:
        parts[parameter.ndim != 2 or id(parameter) in outer].append(parameter)
    return parts
