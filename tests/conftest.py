"""What every test stands on: no network, no caches of the user, and a base model of a few KB."""

import gc
import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

# huggingface_hub reads these when it is imported, so a fixture would come too late.
_HF_HOME = tempfile.TemporaryDirectory(prefix="lit_sft_hf_")
os.environ["HF_HOME"] = _HF_HOME.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
import torch  # noqa: E402
from tiny_tokenizer import build_tiny_tokenizer  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from lit_sft.cli.notices import WARNINGS  # noqa: E402
from lit_sft.data.tokenizer import load_tokenizer  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Ignore in tests what the command line ignores, and nothing more."""
    for pattern in WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{pattern}")


def pytest_collection_finish() -> None:
    """Let the collector pass over what the imports made: no test lets go of it.

    To look at all of it again took a third of the time of tests that make many objects.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where tests have their caches: `mktemp` would look through the folders of all others."""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in count())


@pytest.fixture(autouse=True)
def _isolate_caches(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch):
    """Give every test an empty token cache, and a W&B folder and logins of nobody."""
    root = next(_caches)
    root.mkdir()
    monkeypatch.setenv("LIT_SFT_CACHE", str(root / "lit_sft"))
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(root))
    monkeypatch.setenv("NETRC", str(root / "no_netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real GSM8K and the real Llama 3 tokenizer, which are not in the repository."""
    if not SHARED.is_dir():
        pytest.skip("there is no ../shared folder beside this checkout: no real data to test with")
    return SHARED


@pytest.fixture(scope="session")
def llama3_tokenizer(shared: Path) -> PreTrainedTokenizerBase:
    """The real Llama 3 tokenizer as `load_tokenizer` prepares it. Do not change it."""
    return load_tokenizer(str(shared / "llama-3.2-3b"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer: one token a byte, and the Llama 3 special tokens.

    Like the real base model's it prepends BOS itself, and has neither chat template nor pad token.
    """
    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_base")
    tokenizer = build_tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
