"""What a user gets wrong: one clear line that names the culprit, status 2, no traceback."""

import json
import os
import shutil
from pathlib import Path

import pytest
from command import lit_sft, lit_sft_from_scratch, lit_sft_in_process
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertLMHeadModel

ROWS = [{"question": f"{i} + {i}?", "answer": f"{2 * i}\n#### {2 * i}"} for i in range(40)]

WHOLE = ["--model.lora", "null", "--model.quantization.format", "none"]


@pytest.fixture
def data_folder(tmp_path) -> Path:
    """A small GSM8K-shaped folder for a test to break."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        lines = [json.dumps(row) for row in ROWS]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def fails(tiny_base, data_folder, tmp_path):
    """Run `fit` with extra arguments, and check that it ends as a user's mistake should."""

    def run(*arguments: object, says: str, not_yet: str = "loading ") -> None:
        outcome = lit_sft_in_process(
            "fit",
            *("--config", "configs/gsm8k_qlora.yaml", "--model.base_model", tiny_base),
            *("--data.task.init_args.path", data_folder, "--data.val_rows", 8),
            *("--trainer.default_root_dir", tmp_path / "run", "--trainer.max_steps", 1),
            *("--trainer.logger", "false"),
            *arguments,
        )
        assert outcome.status == 2, outcome
        assert "Traceback" not in outcome.stderr
        assert says in " ".join(outcome.stderr.split()), outcome.stderr
        assert not_yet not in outcome.stdout

    return run


def corrupt(folder: Path, line: bytes, number: int = 5) -> None:
    path = folder / "train.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model.lerning_rate", "1"], "Did you mean 'model.learning_rate'?"),
        (["--trainer.max_step", "1"], "Did you mean 'trainer.max_steps'?"),
        (
            ["--data.template_kwargs", "{enable_thinking: false}"],
            "data.template_kwargs: 'enable_thinking' is unknown to the chat template",
        ),
        (["--data.task.class_path", "lit_sft.GSM9K"], "Did you mean 'GSM8K'?"),
        (["--data.task.class_path", "lit_stf.GSM8K"], "Did you mean 'lit_sft'?"),
        (["--data.task.init_args.paht", "x"], "Did you mean 'path'?"),
        (["--model.optimizer", "paged_adam_32bit"], "Did you mean 'paged_adamw_32bit'?"),
        (["--model.learning_rate", "fast"], "model.learning_rate: expected a number, got 'fast'"),
        (["--model.learning_rate", "-1"], "model.learning_rate must be positive, got -1.0"),
        (["--data.batch_size", "0"], "data.batch_size must be positive, got 0"),
        (["--data.max_length", "-5"], "data.max_length must be at least 2 tokens, got -5"),
        (["--data.val_rows", "-1"], "data.val_rows must not be negative, got -1"),
        (["--data.val_rows", "40"], "leaves nothing to train on: train has 40 rows"),
        (["--data.max_length", "5"], "all 32 rows"),
        (
            ["--data.max_length", "30", "--data.on_overlength", "error"],
            "32 rows over data.max_length=30 tokens: train row ",
        ),
        (["--data.on_overlength", "trim"], "on_overlength"),
        (["--data.chat_template", "chatml"], "lacks <|im_start|>, <|im_end|>"),
        (["--data.chat_template", "nowhere.jinja"], "data.chat_template=nowhere.jinja: expected"),
        (
            ["--model.lora", "null"],
            "four bits cannot be trained: set model.quantization.format none",
        ),
        ([*WHOLE, "--model.adapter", "a"], "model.adapter has its own: merge 'a' into its base"),
        ([*WHOLE, "--model.trainable_tokens", "[a]"], "leave model.trainable_tokens out"),
        ([*WHOLE, "--model.quantization.weight_cache", "bf16"], "is of frozen ones; leave it at"),
        (
            ["--model.lora.modules_to_save", "[norm]"],
            "expected embed_tokens and lm_head, the embedding and the head of the model, got norm",
        ),
        (
            ["--model.lora.modules_to_save", "[lm_head]", "--model.trainable_tokens", "[a]"],
            "model.lora.modules_to_save trains whole layers, and no rows of others",
        ),
        (["--model.lora.init_weights", "pisa"], "lora.init_weights must be default, pissa, or"),
        (
            ["--model.lora.init_weights", "pissa", "--model.lora.use_dora", "true"],
            "pissa goes with neither lora.use_dora nor lora.use_rslora",
        ),
        (
            ["--model.lora.init_weights", "pissa", "--model.adapter", "a"],
            "pissa begins anew, and model.adapter goes on from what it holds",
        ),
        (["--model.lora.r", "0"], "lora.r must be positive, got 0"),
        (["--model.lora.target_modules", "[q_prj]"], "no linear layer q_prj; it has down_proj"),
        (["--trainer.accumulate_grad_batches", "4"], "data.accumulate_grad_batches"),
        (["--ckpt_path", "last"], "there is no checkpoint"),
        (["--data.task.init_args.path", "./nowhere"], "nowhere"),
        (["--model.base_model", "./nowhere"], "there is no folder './nowhere'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option(fails, arguments, says):
    fails(*arguments, says=says)


@pytest.mark.parametrize("precision", ["16-true", "16-mixed", "64", "high"])
def test_a_precision_that_there_is_not(fails, precision):
    fails("--trainer.precision", precision, says="bf16-mixed", not_yet="split ")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"question": "q"}', "there is no column 'answer'; the columns are question"),
        (b'{"question": "q", "answer": 3}', "column 'answer' must hold a string, but holds int 3"),
        (b'{"question": "q", "answer": null}', "column 'answer' must hold a string"),
        (b'{"question": "q", "answer": "\xff"}', "train.jsonl, line 5: not UTF-8"),
        (b'{"question": "q", "answer"', "train.jsonl, line 5: not JSON"),
        (b'["q", "a"]', "train.jsonl, line 5: expected a JSON object, found list"),
    ],
)
def test_a_broken_row(fails, data_folder, line, says):
    corrupt(data_folder, line)
    fails(says=says)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"init_lora_weights": "pissa"}, "has init_lora_weights: pissa (PEFT converts one that"),
        ({"alora_invocation_tokens": [7]}, "has alora_invocation_tokens: [7], which is not compu"),
        ({"peft_type": "IA3", "r": None}, "has peft_type: IA3"),
    ],
)
def test_an_adapter_that_is_no_plain_lora(fails, tmp_path, config, says):
    folder = tmp_path / "adapter"
    folder.mkdir()
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 32, "lora_alpha": 64}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    (folder / "adapter_model.safetensors").write_text("not read")
    fails("--model.adapter", folder, says=says, not_yet="split ")


def test_an_empty_split(fails, data_folder):
    (data_folder / "train.jsonl").write_text("")
    fails(says="train.jsonl: holds no rows")


def test_a_base_without_config(fails, tmp_path):
    (tmp_path / "base").mkdir()
    fails("--model.base_model", tmp_path / "base", says="has no config.json; it holds nothing")


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({}, "has no weights: expected model.safetensors, or model.safetensors.index.json and the"),
        ({"consolidated.pth": ""}, "has no weights: expected model.safetensors, or model.safet"),
        (
            {"model.safetensors.index.json": '{"weight_map": {"a": "1.safetensors", '
             '"b": "2.safetensors"}}', "1.safetensors": ""},
            "names 2 files, of which 1 are missing, such as 2.safetensors",
        ),
        ({"model.safetensors": ""}, "holds no weights, or not all of them"),
        (
            {"model.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"},
            "(a pointer of Git LFS: run `git lfs pull` there)",
        ),
    ],
)  # fmt: skip
def test_a_base_without_weights(fails, tiny_base, data_folder, tmp_path, weights, says):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "model.safetensors").unlink()
    for name, content in weights.items():
        (base / name).write_text(content)
    (data_folder / "train.jsonl").write_text("")  # would be found when rows are read
    fails("--model.base_model", base, says=says)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_base_that_lacks_some_weights(fails, tiny_base, tmp_path, quantization):
    """They would be random, and the run would look healthy."""
    shutil.copytree(tiny_base, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    weights = load_file(path)
    save_file({x: w for x, w in weights.items() if "q_proj" not in x}, path, {"format": "pt"})
    fails(
        *("--model.base_model", tmp_path / "base"),
        *("--model.quantization.format", quantization),
        says="lacks 2 of its weights, which would be random, such as model.layers.0.self_attn.q_p",
        not_yet="step",
    )


def test_a_tokenizer_with_more_tokens_than_the_base_has_rows(fails, tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    for extra in (["--model.base_model", base], ["--data.tokenizer", base]):
        fails(
            *extra,
            *("--data.chat_template", "chatml"),
            says="has 264 tokens, but the base's embedding has 262 rows, none for 263",
        )


def test_a_tokenizer_of_another_base(fails, tiny_tokenizer, tmp_path):
    other = shutil.copytree(tiny_tokenizer, tmp_path / "other")
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    fails("--data.tokenizer", other, says="is not the tokenizer of")


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, "learnt as silence"),
        ({"reasoning_content": "why"}, "error: train row 0: message 1 (assistant): the chat templ"),
        ({"name": "Ann", "role": "user"}, "its name, which would be lost; set a data.chat_templ"),
    ],
)
def test_a_field_that_the_template_does_not_write(fails, tmp_path, turn, says):
    say = {"role": "assistant", "content": "a"}
    row = {"messages": [{"role": "user", "content": "q"}, say | turn, say]}
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for _ in range(20)))
    fails("--data.task", "lit_sft.ChatFile", "--data.task.path", chats, says=says)


def test_a_folder_without_a_certain_split(fails, tmp_path):
    folder = tmp_path / "chats"
    folder.mkdir()
    for name in ("train_sft-00000-of-00001-0a1b", "train_gen-00000-of-00001-0a1b"):
        (folder / f"{name}.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    fails(
        *("--data.task", "lit_sft.ChatFile", "--data.task.path", folder),
        says="'train' is not certain: it has files of train_gen, train_sft; name what to read",
    )


def test_a_tokenizer_without_template_or_header_tokens(fails, tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    path = base / "tokenizer.json"
    path.write_text(path.read_text().replace("<|start_header_id|>", "<|something_else|>"))
    fails("--model.base_model", base, says="the vocabulary lacks <|start_header_id|>")


def test_turns_that_the_template_rejects(fails, tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'assistant') %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}"
    )
    (tmp_path / "two_users.py").write_text(
        "from lit_sft import ChatTask\n"
        "class TwoUsers(ChatTask):\n"
        "    def rows(self, split):\n"
        "        return [{'q': 'a'}] * 20\n"
        "    def messages(self, row):\n"
        "        ask = {'role': 'user', 'content': row['q']}\n"
        "        return [ask, ask, {'role': 'assistant', 'content': 'b'}]\n"
    )
    outcome = lit_sft(
        "fit",
        *("--model.base_model", base, "--data.task", "two_users.TwoUsers"),
        *("--data.val_rows", 0, "--trainer.default_root_dir", tmp_path / "run"),
        cwd=tmp_path,
    )
    assert outcome.status == 2, outcome
    assert "train row 0" in outcome.stderr
    assert "roles must alternate" in outcome.stderr


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ("{'role': 'robot', 'content': 'b'}", "unknown role 'robot'"),
        ("{'role': 'assistant', 'content': ['b']}", "content must be a string, got list"),
        ("{'role': 'user', 'content': 'b'}", "no assistant turn"),
    ],
)
def test_a_task_that_says_nonsense(tiny_base, tmp_path, turn, says):
    (tmp_path / "nonsense.py").write_text(
        "from lit_sft import ChatTask\n"
        "class Nonsense(ChatTask):\n"
        "    def rows(self, split):\n"
        "        return [{'q': 'a'}] * 20\n"
        "    def messages(self, row):\n"
        f"        return [{{'role': 'user', 'content': 'a'}}, {turn}]\n"
    )
    outcome = lit_sft(
        "fit",
        *("--model.base_model", tiny_base, "--data.task", "nonsense.Nonsense"),
        *("--data.val_rows", 0, "--trainer.default_root_dir", tmp_path / "run"),
        cwd=tmp_path,
    )
    assert outcome.status == 2, outcome
    assert "train row 0" in outcome.stderr
    assert says in outcome.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_output_folder(fails, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    fails("--trainer.default_root_dir", tmp_path / "locked" / "run", says="cannot be written")


def test_an_output_folder_that_is_a_file(fails, tmp_path):
    (tmp_path / "file").write_text("")
    fails("--trainer.default_root_dir", tmp_path / "file" / "run", says="cannot be written")


def test_a_mistake_is_one_line_without_a_traceback():
    """Through a process from scratch; what that does not import is tested beside `names`."""
    outcome = lit_sft_from_scratch("fit", "--model.base_modl", "x")
    assert outcome.status == 2
    assert outcome.stderr.splitlines() == [
        "error: unrecognized arguments: --model.base_modl x. Did you mean 'model.base_model'?",
        "every option: lit-sft fit --help",
    ]


def test_nothing_that_failed_left_a_run_behind(fails, tmp_path):
    fails("--data.batch_size", "0", says="must be positive")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_model_whose_own_loss_is_another_is_refused_with_both(fails, tiny_base, tmp_path):
    """Tokens of BERT see those behind them, so that padding changes what it says."""
    base = tmp_path / "bert"
    shutil.copytree(tiny_base, base)
    config = BertConfig(
        vocab_size=262,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertLMHeadModel(config).save_pretrained(base)
    says = "BertLMHeadModel is not trained on its own loss: loss "
    attention = ("--model.lora.target_modules", "attention")
    fails("--model.base_model", base, *attention, says=says, not_yet="step 1")


def test_all_linear_of_a_model_without_linear_layers_is_refused(fails, tiny_base, tmp_path):
    base = tmp_path / "empty"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 0}))
    fails(
        *("--model.base_model", base, "--model.lora.target_modules", "all-linear"),
        says="LlamaForCausalLM has no layer for 'all-linear'; it has none",
    )
