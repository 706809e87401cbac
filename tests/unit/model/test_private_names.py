"""What is used of other libraries beyond their public names is still there, and listed here."""

import ast
import pkgutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from architectures import build
from peft.tuners.lora import LoraLayer
from torch import nn

from lit_sft import Lora
from lit_sft.model.adapter import attach_lora

ROOT = Path(__file__).parents[3] / "lit_sft"
ROOMS = ("model", "evaluation", "plan")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
PRIVATE = {
    "torch:_dynamo.config.skip_fsdp_guards": "lit_sft.model.fast.kernels._see_numbers_of_layers",
    "torch:_inductor.async_compile.maybe_warm_pool": "lit_sft.model.pace.start_compilers",
    "torch:_inductor.config.deterministic": "lit_sft.model.fast.kernels._inductor_has",
    "torch:nn.Module._call_impl": "lit_sft.model.fast.memory.exchange_call",
    "torch:nn.Module._compiled_call_impl": "lit_sft.model.fast.memory.exchange_call",
    "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu": (
        "lit_sft.model.fast.cross_entropy._attend"
    ),
    "torch:ops.mkldnn._is_mkldnn_bf16_supported": "lit_sft.model.device._cpu_has_bf16",
    "torch:distributed.distributed_c10d._get_default_store": "lit_sft.model.peers._find_store",
    "torch:_subclasses.fake_tensor.FakeTensorMode": "lit_sft.plan.weightless.make_mode",
    "torch:utils._python_dispatch.TorchDispatchMode": "lit_sft.plan.operations.make_listener",
    "torch:cpu._is_avx512_bf16_supported": "lit_sft.model.device._cpu_has_bf16",
    "torch:cpu._is_amx_tile_supported": "lit_sft.model.device._cpu_has_bf16",
    "transformers:PretrainedConfig._attn_implementation": (
        "lit_sft.evaluation.static_cache.exchange_attention"
    ),
    "lightning.pytorch:_accelerator_connector": "lit_sft.model.trainer_options._shares_out",
}
"""Names with an underscore, and the one function that knows each."""
UNDOCUMENTED = [
    "peft.tuners.tuners_utils:check_target_module_exists",
    "transformers.modeling_layers:GradientCheckpointingLayer",
    "transformers.pytorch_utils:Conv1D",
    "transformers.utils.peft_utils:find_adapter_config_file",
    "torch.utils.deterministic:fill_uninitialized_memory",
    "torch.nn.attention.varlen:varlen_attn",
    "bitsandbytes.functional:dequantize_4bit",
    "torch.utils.flop_counter:flop_registry",
    "bitsandbytes.optim.adamw:PagedAdamW8bit",
]
"""Names without one that no documentation promises."""


@pytest.mark.parametrize("name", [*PRIVATE, *UNDOCUMENTED])
def test_the_name_is_there(name):
    if name.startswith("lightning.pytorch:"):  # of every trainer
        trainer = pl.Trainer(logger=False, accelerator="cpu")
        assert trainer._accelerator_connector.use_distributed_sampler is True
    else:
        pkgutil.resolve_name(name)


def test_no_other_is_used_and_each_in_one_function():
    """An underscore before a name, on anything but an object of this package."""
    used = {}
    for path in FILES:
        module = ".".join(("lit_sft", *path.relative_to(ROOT).with_suffix("").parts))
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for name in private_names(function):
                    used.setdefault(name, set()).add(f"{module}.{function.name}")
    expected = {}
    for name, function in PRIVATE.items():
        (private,) = [part for part in name.split(":")[1].split(".") if part.startswith("_")]
        expected.setdefault(private, set()).add(function)
    assert used == expected


def private_names(function: ast.FunctionDef):
    for node in ast.walk(function):
        if isinstance(node, ast.Import | ast.ImportFrom):
            paths = [getattr(node, "module", "") or "", *(alias.name for alias in node.names)]
            yield from (part for path in paths for part in path.split(".") if is_private(part))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in ("self", "module")):
                yield node.attr


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_layers_of_peft_hold_what_the_fast_ones_read():
    base = build("Llama", vocabulary=97).requires_grad_(False)
    model = attach_lora(base, Lora(r=2), [3])
    embedding = model.get_input_embeddings()
    rows = embedding.token_adapter
    (name,) = rows.active_adapters
    assert list(rows.token_indices[name]) == [3]
    assert rows.trainable_tokens_delta[name].shape == (1, model.config.hidden_size)
    assert isinstance(rows.base_layer, nn.Embedding)
    assert not rows.disable_adapters
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    assert layer.active_adapters == [name]
    assert not any((layer.lora_variant, layer.merged, layer.disable_adapters))
    for held in (layer.lora_A, layer.lora_B, layer.lora_dropout, layer.scaling):
        assert name in held


def test_layers_of_bitsandbytes_hold_what_is_read_and_set():
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32)
    assert hasattr(layer, "support_avx512bf16_for_cpu")
    assert hasattr(layer.weight, "quant_state")
