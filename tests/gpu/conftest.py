"""Where these tests run: on a GPU, or not at all, with the reason."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ON_CPU = os.environ.get("LIT_SFT_GPU_TESTS_ON") == "cpu"
"""To see on a CPU that the tests themselves are right; in fp32, where bf16 is emulated."""
SIZES = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
    },
    "recipe": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
    },
}
"""Llama models; the last has the shape of the Llama-3.2-3B that the recipe trains."""


@pytest.fixture(scope="session")
def device() -> torch.device:
    if ON_CPU:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device; LIT_SFT_GPU_TESTS_ON=cpu tries these tests on a CPU")
    return torch.device("cuda")


@pytest.fixture(params=["small", "recipe"])
def size(request, device) -> str:
    """The size of the runs: the recipe's own shape only where it is asked for."""
    if request.param == "recipe" and os.environ.get("LIT_SFT_GPU_LARGE") != "1":
        pytest.skip("LIT_SFT_GPU_LARGE=1 runs the recipe's own shape, some minutes an arm")
    return "tiny" if ON_CPU else request.param


@pytest.fixture(params=["eager", "compiled"])
def kernels(request) -> str:
    return request.param


@pytest.fixture
def bfloat16(device) -> torch.dtype:
    if device.type == "cpu":
        pytest.skip("bfloat16 may be emulated on a CPU")
    return torch.bfloat16


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request) -> torch.dtype:
    is_single = request.param == "float32"
    return torch.float32 if is_single else request.getfixturevalue("bfloat16")


@pytest.fixture
def deterministic():
    """Refuse whatever may give other bits the next time, as the command line does by default."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def make_base(device, tiny_tokenizer, tmp_path_factory) -> Callable[[str], Path]:
    """Makes the folder of a random base of a size, once; its tokenizer is one token a byte."""

    @cache
    def make(size: str) -> Path:
        folder = tmp_path_factory.mktemp(size)
        shutil.copytree(tiny_tokenizer, folder, dirs_exist_ok=True)
        with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
            torch.manual_seed(0)
            config = LlamaConfig(**SIZES[size], tie_word_embeddings=True)
            dtype = torch.bfloat16 if size == "recipe" else torch.float32
            LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the runs are processes of their own
        return folder

    return make
