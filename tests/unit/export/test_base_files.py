"""A base's tensors, read one at a time from whatever files they lie in."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_sft.errors import InputError
from lit_sft.export.base_files import open_base
from lit_sft.model.base_model import fingerprint_base


def test_tensors_are_the_model_s_from_one_file_and_from_several(tiny_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = model.state_dict()
    for base in (open_base(str(tiny_base)), open_base(str(tmp_path))):
        assert base.embedding == "model.embed_tokens.weight"
        assert set(base.names) == state.keys() - {"lm_head.weight"}, "tied to the embedding"
        for name in base.names:
            assert torch.equal(base.read(name), state[name])
            assert base.shape(name) == tuple(state[name].shape)
        assert base.fingerprint == fingerprint_base(model)


def test_a_tensor_that_is_stored_under_no_name_of_the_model_is_a_line(tiny_base, tmp_path):
    for path in tiny_base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["renamed"] = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"stores no tensor 'model.norm.weight' under that name"):
        open_base(str(tmp_path))


def test_a_base_without_safetensors_says_how_to_save_it(tiny_base, tmp_path):
    for path in tiny_base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no safetensors .*; save it so"):
        open_base(str(tmp_path))
