"""A model with its adapter and without contents: what is run on it is only noted."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_sft.data.batching import pack_batch, pad_batch
from lit_sft.model.adapter import Lora, attach_lora
from lit_sft.model.fast.kernels import make_fast
from lit_sft.types import Batch, Example

if TYPE_CHECKING:
    from peft import PeftModel


class Weightless:
    """What is trained, with tensors that have shapes, dtypes and a device, and no contents.

    Operations on them take the ways of that device, and no memory.

    Args:
        base: As `outline` returns it; it is changed.
        lora: The shape of the adapter.
        token_rows: Rows of the embedding that are trained as well.
        dtype: What the base is computed in.
        device: Where it would be.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        lora: Lora,
        token_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.device, self.mode = device, make_mode()
        base.requires_grad_(False)
        base.config.use_cache = False
        for parameter in base.parameters():
            parameter.data = parameter.data.to(dtype)
        self.model: PeftModel = attach_lora(base, lora, range(token_rows))
        self._replace_tensors()
        make_fast(self.model)  # beside the mode: it tries out what an MLP computes, with numbers

    def make_batch(self, lengths: Sequence[int], packed: bool) -> Batch:
        """Return a batch of rows of these lengths, without contents."""
        examples = [Example([1] * length, [1] * length) for length in lengths]
        batch: Any = pack_batch(examples) if packed else pad_batch(examples, pad_token_id=0)
        starts = batch.get("cu_seq_lens")
        with self.mode:
            for name, value in batch.items():
                if isinstance(value, Tensor):
                    batch[name] = torch.empty(value.shape, dtype=value.dtype, device=self.device)
        if starts is not None and self.device.type != "cuda":
            batch["cu_seq_lens"] = _Boundaries(starts.diff().tolist())
        made: Batch = batch
        return made

    def _replace_tensors(self) -> None:
        replaced: dict[int, tuple[Tensor, Tensor]] = {}
        for module in self.model.modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                if id(tensor) not in replaced:
                    replaced[id(tensor)] = (tensor, self._imitate(tensor))
                setattr(module, name, replaced[id(tensor)][1])

    def _imitate(self, tensor: Tensor) -> Tensor:
        with self.mode:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made


class _Boundaries:
    """Where rows start, for a device whose attention asks for their lengths as numbers."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def diff(self) -> "_Boundaries":
        return self

    def tolist(self) -> list[int]:
        return self._lengths


def make_mode() -> AbstractContextManager[object]:
    """Return torch's own mode of tensors without contents, for which it has no public name.

    What cannot be run in it is an error, of which it would print a second traceback.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    mode: AbstractContextManager[Any] = FakeTensorMode(allow_non_fake_inputs=True)
    return mode
