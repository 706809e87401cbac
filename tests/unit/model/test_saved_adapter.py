"""An adapter is computed as plain PEFT computes it, or what it has besides is refused by name."""

import json
import shutil
from copy import deepcopy

import lightning.pytorch as pl
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lit_sft import Lora, Quantization, SFTDataModule, SFTModule, WordProblems
from lit_sft.callbacks.save_adapter import SaveAdapter
from lit_sft.errors import InputError
from lit_sft.model.saved_adapter import require_plain_lora
from lit_sft.model.trained import find_trained, load_source

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TOKENS = torch.arange(3, 40).reshape(1, -1)


def publish(base, folder, **fields):
    """What somebody leaves who trained an adapter with PEFT: every tensor of it is random."""
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION} | deepcopy(fields)
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **fields)
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(tiny_base, tmp_path_factory):
    return publish(tiny_base, tmp_path_factory.mktemp("published"))


def change(folder, target, **fields):
    """A copy of an adapter whose config says something else, as it stands in the file."""
    shutil.copytree(folder, target)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(config | fields))
    return target


def make_module(base, adapter, targets=ATTENTION, **variant):
    lora = Lora(r=4, alpha=8, target_modules=targets, **variant)
    return SFTModule(
        str(base), quantization=Quantization(format="none"), lora=lora, adapter=str(adapter)
    )


def make_trainer(root, **kwargs):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {"accelerator": "cpu", "precision": "32-true", "enable_checkpointing": False}
    return pl.Trainer(default_root_dir=root, **quiet, **options, **kwargs)


def make_data():
    return SFTDataModule(WordProblems(train_rows=16), val_rows=2, max_length=600)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


REFUSED = [
    ("bias", "all"),
    ("lora_bias", True),
    ("use_rslora", True),
    ("use_dora", True),
    ("use_qalora", True),
    ("alpha_pattern", {"q_proj": 16}),
    ("rank_pattern", {"q_proj": 8}),
    ("layer_replication", [[0, 1], [0, 2]]),
    ("target_parameters", ["mlp.experts.down_proj"]),
    ("modules_to_save", ["lm_head"]),
    ("alora_invocation_tokens", [1, 2]),
    ("arrow_config", {"top_k": 2}),
    ("use_bdlora", {"nblocks": 2}),
    ("kasa_config", {"beta": 0.1}),
    ("monteclora_config", {"num_samples": 4}),
    ("velora_config", {"num_groups": 4}),
    ("megatron_config", {"a": 1}),
    ("init_lora_weights", "pissa"),
    ("init_lora_weights", "pissa_niter_16"),
    ("init_lora_weights", "olora"),
    ("init_lora_weights", "corda"),
    ("init_lora_weights", "lora_ga"),
    ("init_lora_weights", "loftq"),
    ("init_lora_weights", "mica"),
    ("peft_type", "ADALORA"),
    ("peft_type", None),
    ("task_type", "SEQ_CLS"),
    ("use_lora_of_2027", True),  # unknown to the installed PEFT, which drops it with a warning
    ("scale_of_2027", 0.5),
    ("trainable_token_indices", {"embed_tokens": [3], "lm_head": [4]}),
    ("trainable_token_indices", {"lm_head": [3]}),
]


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=[f"{k}={v}" for k, v in REFUSED])
def test_what_is_not_computed_is_refused_by_name_before_the_base_loads(
    published, tiny_base, tmp_path, field, value
):
    adapter = change(published, tmp_path / "adapter", **{field: value})
    with pytest.raises(InputError, match=rf"model\.adapter: .*{field}") as error:
        make_module(tiny_base, adapter).check_base()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_layers_that_are_no_linear_ones_of_a_block_are_refused(
    published, tiny_base, tmp_path, target
):
    adapter = change(published, tmp_path / "adapter", target_modules=[*ATTENTION, target])
    with pytest.raises(InputError, match=rf"one that differs is .*{target}"):
        make_module(tiny_base, adapter).check_base()


def test_every_field_of_the_installed_peft_is_refused_unless_it_is_known():
    """What is known is written down; a field that PEFT adds is not, and takes its default alone."""
    plain = LoraConfig(task_type="CAUSAL_LM").to_dict() | {"peft_type": "LORA"}
    require_plain_lora("a", plain)
    accepted = set()
    for name in plain:
        try:
            require_plain_lora("a", plain | {name: "something else"})
        except InputError:
            continue
        accepted.add(name)
    assert accepted == {
        *("r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "exclude_modules"),
        *("layers_to_transform", "modules_to_save"),
        *("layers_pattern", "trainable_token_indices", "lora_dropout", "fan_in_fan_out"),
        *("base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
        *("inference_mode", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("qalora_group_size", "megatron_core", "ensure_weight_tying"),
    }


@pytest.mark.parametrize(
    ("fields", "targets"),
    [
        ({}, ATTENTION),
        ({"exclude_modules": ["o_proj"]}, ["q_proj", "k_proj", "v_proj"]),
        ({"exclude_modules": r".*layers\.0.*"}, r".*\.1\..*\.[qkvo]_proj"),
        ({"layers_to_transform": 0}, r".*layers\.0\..*\.[qkvo]_proj"),
        ({"layers_to_transform": [1], "layers_pattern": "layers"}, r".*s\.1\..*\.[qkvo]_proj"),
        ({"target_modules": "all-linear"}, "all-linear"),
        ({"target_modules": r".*\.(q|down)_proj"}, ["q_proj", "down_proj"]),
        ({"use_rslora": True}, ATTENTION),
        ({"use_dora": True, "use_rslora": True}, ATTENTION),
        ({"init_lora_weights": "gaussian"}, ATTENTION),
        ({"init_lora_weights": "orthogonal"}, ATTENTION),
        ({"fan_in_fan_out": True}, ATTENTION),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, ATTENTION),
        ({"trainable_token_indices": [9, 4]}, ATTENTION),
        ({"trainable_token_indices": {"embed_tokens": [9, 4], "lm_head": [9, 4]}}, ATTENTION),
        ({"trainable_token_indices": [4], "ensure_weight_tying": True}, ATTENTION),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set", "ignore:You have requested `ensure_w")
def test_what_is_accepted_has_the_logits_of_plain_peft(tiny_base, tmp_path, fields, targets):
    adapter = publish(tiny_base, tmp_path / "adapter", **fields)
    targets = targets if isinstance(targets, str) else tuple(targets)
    variants = ("use_rslora", "use_dora", "modules_to_save")
    variant = {name: fields[name] for name in variants if name in fields}
    module = make_module(tiny_base, adapter, targets, **variant)
    make_trainer(tmp_path).validate(module, make_data(), verbose=False)
    module.model.config._attn_implementation = "sdpa"
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    untouched = logits_of(base)
    plain = logits_of(PeftModel.from_pretrained(base, adapter))
    torch.testing.assert_close(logits_of(module.model), plain, rtol=1e-4, atol=1e-4)
    assert (plain - untouched).abs().max() > 0.1


def test_other_layers_than_asked_for_are_named(tiny_base, tmp_path):
    adapter = publish(tiny_base, tmp_path / "adapter", layers_to_transform=[0])
    with pytest.raises(InputError, match=r"4 layers are adapted .*layers_to_transform \[0\].*8"):
        make_module(tiny_base, adapter).check_base()


def test_its_own_shape_is_taken_where_none_is_asked_for(tiny_base, tmp_path, capsys):
    names = ["q_proj", "v_proj", "gate_proj"]
    adapter = publish(tiny_base, tmp_path / "adapter", r=2, lora_alpha=6, target_modules=names)
    module = SFTModule(str(tiny_base), adapter=str(adapter), lora=Lora(dropout=0.3))
    module.check_base()
    assert module.lora == Lora(r=2, alpha=6, dropout=0.3, target_modules=tuple(sorted(names)))
    asked = SFTModule(str(tiny_base), adapter=str(adapter), lora=Lora(r=2))
    with pytest.raises(InputError, match=r"alpha is 6, model\.lora says 64"):
        asked.check_base()
    assert asked.lora == Lora(r=2)


MALFORMED = [
    ("r", None, "expected r of .* to be a positive number, got None"),
    ("r", "4", "expected r of .* to be a positive number, got '4'"),
    ("lora_alpha", -1, "expected lora_alpha of .* to be a positive number, got -1"),
    ("modules_to_save", "lm_head", "expected modules_to_save to be a list of names, got 'lm_head'"),
    ("modules_to_save", [1], "expected modules_to_save to be a list of names"),
    ("trainable_token_indices", "x", "expected trainable_token_indices of .* the numbers of token"),
    ("trainable_token_indices", {"embed_tokens": [-1]}, "the numbers of tokens, got {"),
    ("trainable_token_indices", [99999], "a row of token 99999, and the base has .* tokens"),
]


@pytest.mark.parametrize(("field", "value", "says"), MALFORMED)
def test_a_config_that_holds_something_else_is_a_line(
    published, tiny_base, tmp_path, field, value, says
):
    adapter = change(published, tmp_path / "adapter", **{field: value})
    with pytest.raises(InputError, match=rf"^model\.adapter: .*{says}"):
        SFTModule(str(tiny_base), adapter=str(adapter)).check_base()


def test_weights_that_are_not_finite_are_of_the_adapter(published, tiny_base, tmp_path):
    adapter = change(published, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    weights[name][0, 0] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors")
    trainer = make_trainer(tmp_path, max_steps=1)
    with pytest.raises(InputError, match=f"model.adapter: 1 tensors of .* hold NaN .*{name}"):
        trainer.fit(make_module(tiny_base, adapter), make_data())


def test_other_whole_layers_than_asked_for_are_named(tiny_base, tmp_path):
    tied = {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}
    adapter = publish(tiny_base, tmp_path / "adapter", **tied)
    make_module(tiny_base, adapter, modules_to_save=("embed_tokens",)).check_base()
    with pytest.raises(InputError, match=r"modules_to_save is \['embed_tokens'\], model.lora says"):
        make_module(tiny_base, adapter).check_base()
    untied = change(adapter, tmp_path / "untied", ensure_weight_tying=False)
    with pytest.raises(InputError, match=r"unties embedding and head, which are tied here"):
        make_module(tiny_base, untied, modules_to_save=("lm_head",)).check_base()


@pytest.mark.parametrize(
    "variant", [{"modules_to_save": ("lm_head",)}, {"use_dora": True}], ids=str
)
def test_plain_peft_loads_what_a_variant_leaves(tiny_base, tmp_path, variant):
    lora = Lora(r=4, alpha=8, **variant)
    module = SFTModule(
        str(tiny_base), Quantization(format="none"), lora, learning_rate=1e-2, warmup_ratio=0.0
    )
    make_trainer(tmp_path, max_steps=2, limit_val_batches=0, callbacks=[SaveAdapter()]).fit(
        module, make_data()
    )
    module.model.config._attn_implementation = "sdpa"
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    untouched = logits_of(base)
    plain = logits_of(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(module.model), plain, rtol=1e-5, atol=1e-5)
    assert (plain - untouched).abs().max() > 0.01
    answering = load_source(find_trained(str(tmp_path / "adapter"), str(tiny_base)), "cpu")
    assert answering.model.peft_config["default"].use_dora is lora.use_dora


@pytest.mark.parametrize("targets", [r".*layers\.1\..*\.(q|up)_proj", ("up_proj", "q_proj")])
def test_what_is_written_says_what_was_computed(tiny_base, tmp_path, targets):
    module = SFTModule(str(tiny_base), lora=Lora(r=4, alpha=8, target_modules=targets))
    module.quantization = Quantization(format="none")
    make_trainer(tmp_path, max_steps=2, limit_val_batches=0, callbacks=[SaveAdapter()]).fit(
        module, make_data()
    )
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    require_plain_lora("adapter", config)
    wanted = targets if isinstance(targets, str) else sorted(targets)
    assert config["target_modules"] == wanted
    module.model.config._attn_implementation = "sdpa"
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(module.model), logits_of(plain), rtol=1e-5, atol=1e-5)
