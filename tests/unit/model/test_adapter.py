"""Adapters: trained rows of the embedding, going on from a folder, and folders that do not fit."""

import hashlib
import json
import shutil

import lightning.pytorch as pl
import pytest
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_sft import Lora, Quantization, SFTDataModule, SFTModule, WordProblems
from lit_sft.callbacks.save_adapter import SaveAdapter
from lit_sft.errors import InputError
from lit_sft.model.adapter import attach_lora
from lit_sft.model.base_model import fingerprint_base

PLAIN = Quantization(format="none")


def make_trainer(root, steps=2, **kwargs) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps,
        default_root_dir=root,
        accelerator="cpu",
        precision="32-true",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **kwargs,
    )


def make_data() -> SFTDataModule:
    return SFTDataModule(WordProblems(train_rows=64), val_rows=8, max_length=600)


@pytest.fixture(scope="module")
def saved(tiny_base, tmp_path_factory):
    """An adapter of rank 4 that also trained two chat tokens, and its module."""
    root = tmp_path_factory.mktemp("saved")
    module = SFTModule(
        str(tiny_base),
        quantization=PLAIN,
        lora=Lora(r=4, alpha=8),
        trainable_tokens=["<|eot_id|>", "<|start_header_id|>"],
        learning_rate=1e-2,
    )
    make_trainer(root, callbacks=[SaveAdapter()]).fit(module, make_data())
    return root / "adapter", module


def logits_of(model, tokenizer) -> torch.Tensor:
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_trained_rows_move_embedding_and_head_together(saved, tiny_base):
    _, module = saved
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    assert set(module.trained_tokens) == {"<|eot_id|>", "<|start_header_id|>"}
    inner = module.model.get_base_model()
    embedding = inner.get_input_embeddings().token_adapter.get_merged_weights(["default"])
    head = inner.get_output_embeddings().token_adapter.get_merged_weights(["default"])
    moved = (embedding - base.get_input_embeddings().weight).abs().sum(dim=1) > 0
    ids = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|start_header_id|>"])
    assert moved.nonzero().flatten().tolist() == sorted(ids)
    assert torch.equal(embedding, head)


def test_plain_peft_loads_the_folder_with_the_same_logits(saved, tiny_base):
    folder, module = saved
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
    module.model.eval()
    module.model.config._attn_implementation = "sdpa"
    ours = logits_of(module.model, tokenizer)
    torch.testing.assert_close(logits_of(model.eval(), tokenizer), ours, rtol=1e-5, atol=1e-6)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, tokenizer), ours, rtol=1e-4, atol=1e-5)


def test_training_goes_on_from_a_folder(saved, tiny_base, tmp_path):
    folder, module = saved
    other = SFTModule(
        str(tiny_base), quantization=PLAIN, lora=Lora(r=4, alpha=8), adapter=str(folder)
    )
    trainer = make_trainer(tmp_path)
    trainer.validate(other, make_data(), verbose=False)
    assert other.trained_parameters.keys() == module.trained_parameters.keys()
    for name, parameter in module.trained_parameters.items():
        assert torch.equal(parameter, other.trained_parameters[name]), name


def test_an_adapter_of_another_rank_is_refused_before_the_base_loads(saved, tiny_base):
    folder, _ = saved
    module = SFTModule(str(tiny_base), lora=Lora(r=8, alpha=8), adapter=str(folder))
    with pytest.raises(InputError, match=r"r is 4, model\.lora says 8"):
        module.check_base()


def test_an_adapter_of_another_base_is_refused(saved, tiny_base, tmp_path):
    folder, _ = saved
    copy = tmp_path / "adapter"
    shutil.copytree(folder, copy)
    provenance = json.loads((copy / "lit_sft.json").read_text())
    assert provenance["base_model"] == tiny_base.name
    provenance["base_sha256"] = "0" * 64
    (copy / "lit_sft.json").write_text(json.dumps(provenance))
    module = SFTModule(
        str(tiny_base), quantization=PLAIN, lora=Lora(r=4, alpha=8), adapter=str(copy)
    )
    with pytest.raises(InputError, match=r"was trained on another base.*fingerprint 000000000000"):
        make_trainer(tmp_path).validate(module, make_data(), verbose=False)


@pytest.mark.parametrize("token_ids", [[], [0, 261]])
def test_the_fingerprint_is_of_what_is_frozen_and_copies_no_embedding(tiny_base, token_ids):
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    names = sorted(name for name, p in base.named_parameters() if p.ndim == 1)
    digest = hashlib.sha256()
    for tensor in [*map(base.get_parameter, names), base.get_input_embeddings().weight[::997]]:
        digest.update(tensor.detach().bfloat16().view(torch.int16).numpy().tobytes())
    vocabulary = len(base.get_input_embeddings().weight)
    model = attach_lora(base, Lora(r=4), token_ids)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1.0
    copies = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not result._is_view():
                copies.append(result.numel())
            return result

    with Watch():
        fingerprint = fingerprint_base(model)
    assert fingerprint == digest.hexdigest()
    assert max(copies) < vocabulary


def test_an_adapter_that_lacks_tensors_is_refused(saved, tiny_base, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = saved
    copy = tmp_path / "adapter"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, copy / "adapter_model.safetensors")
    module = SFTModule(
        str(tiny_base), quantization=PLAIN, lora=Lora(r=4, alpha=8), adapter=str(copy)
    )
    with pytest.raises(InputError, match=r"1 tensors differ.*there missing"):
        make_trainer(tmp_path).validate(module, make_data(), verbose=False)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_without_an_adapter_is_named(tiny_base, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"model\.adapter: "):
        SFTModule(str(tiny_base), adapter=f"./{name}").check_base()
