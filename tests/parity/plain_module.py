"""A run without what is done for speed, to compare with: PEFT's layers, logits, many parameters."""

from peft.tuners.lora import LoraLayer
from torch import nn
from torch.optim import Optimizer

from lit_sft import SFTModule
from lit_sft.model.loss import sum_supervised_loss


class PlainModule(SFTModule):
    """Each switch gives back one of the fast ways.

    Args:
        fused_head: Loss and gradient of the head at once, without logits.
        fused_lora: The update of a LoRA layer as one function.
        flat_optimizer: The adapter as one buffer.
    """

    def __init__(
        self,
        *args,
        fused_head: bool = False,
        fused_lora: bool = False,
        flat_optimizer: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.fused_head, self.fused_lora = fused_head, fused_lora
        self.flat_optimizer = flat_optimizer

    def configure_model(self) -> None:
        super().configure_model()
        for layer in self.model.modules():
            is_gated = isinstance(getattr(layer, "down_proj", None), LoraLayer)
            is_lora, has_rows = isinstance(layer, LoraLayer), hasattr(layer, "token_adapter")
            if ((is_lora or is_gated) and not self.fused_lora) or (
                has_rows and not self.fused_head
            ):
                vars(layer).pop("forward", None)  # what stands before the class's own

    def configure_optimizers(self) -> Optimizer:
        if self.flat_optimizer:
            return super().configure_optimizers()
        parameters = list(self.trained_parameters.values())
        self._flat = self._build_optimizer([parameters])  # to zero gradients
        return self._flat

    def _collect_gradients(self) -> list[nn.Parameter]:
        if self.flat_optimizer:
            return super()._collect_gradients()
        return list(self.trained_parameters.values())

    def _sum_loss(self, batch):
        return sum_supervised_loss(self.model, batch, self.fused_head, self.logit_scale)
