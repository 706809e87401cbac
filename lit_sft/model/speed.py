"""What is done for speed alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """Switches of what makes a step faster; the plain ways that they replace give the same numbers.

    Args:
        fused_head: Loss and gradient of the head at once, without logits, see `lit_sft.model.head`.
        fused_lora: The update of a LoRA layer as one function, see `lit_sft.model.lora`. Its
            dropout draws from the same distribution as PEFT's, but not the same numbers.
        flat_optimizer: The adapter as one buffer, see `lit_sft.model.flat`.
    """

    fused_head: bool = True
    fused_lora: bool = True
    flat_optimizer: bool = True
