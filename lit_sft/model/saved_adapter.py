"""An adapter that was trained before: computed as its config says, or refused by name."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from lit_sft.errors import InputError, require
from lit_sft.model.adapter import Lora, name_saved_layers, name_token_layers
from lit_sft.model.target_layers import find_targets, list_adapted
from lit_sft.paths import is_local, locate, require_folder

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PROVENANCE = "lit_sft.json"
"""In an adapter's folder: what the adapter was trained on, so that a wrong base is found out."""
HONOURED = frozenset(
    {"r", "lora_alpha", "use_rslora", "use_dora", "trainable_token_indices", "modules_to_save"}
)
"""Fields that the adapter here is compared with, besides those of `TARGETING`."""
TARGETING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Fields that say which layers are adapted, all four together."""
NEUTRAL = frozenset(
    {
        *("base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
        # Of a run, which has its own; of a layer, which PEFT asks for the order of its weights.
        *("inference_mode", "runtime_config", "lora_dropout", "fan_in_fan_out"),
        # Read where init_lora_weights, use_qalora or megatron_config turn them on, alone.
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("qalora_group_size", "megatron_core"),
        # Of layers outside the attention and the MLP, which PEFT ties without it too.
        "ensure_weight_tying",
    }
)
"""Fields that change no number."""
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to initialise A and B that leave the base as it is, and train both.

`pissa`, `olora`, `corda`, `lora_ga` and `loftq` take a part out of the base's weights, which a file
of A and B does not hold; `mica` trains A alone. An adapter that PEFT has converted to plain LoRA
says True.
"""


def read_adapter_config(adapter: str) -> dict[str, Any]:
    """Return the config of an adapter's folder or Hub id as it stands; no weights are touched.

    PEFT's own reader drops what it does not know.

    Raises:
        InputError: If there is none.
    """
    if is_local(adapter):
        for name in (CONFIG, WEIGHTS):  # never a pickle
            require_folder(adapter, holding=name, option="model.adapter")
    try:
        if is_local(adapter):
            path = Path(locate(adapter)) / CONFIG
        else:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(adapter, CONFIG))
        config = json.loads(path.read_text(encoding="utf-8"))
    except Exception as error:  # of the client, of its HTTP library, of the file
        raise InputError(
            f"model.adapter: no adapter could be read from {adapter!r} "
            f"({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
        ) from error
    require(
        isinstance(config, dict),
        f"model.adapter: expected a JSON object in {CONFIG} of {adapter!r}, found "
        f"{type(config).__name__}",
    )
    return dict(config)


def read_adapter_tokens(adapter: str) -> list[int]:
    """Return the token ids whose rows an adapter has trained, in its order."""
    layers = read_adapter_config(adapter).get("trainable_token_indices") or []
    ids = next(iter(layers.values()), ()) if isinstance(layers, dict) else layers
    if not isinstance(ids, list) or not all(isinstance(x, int) and x >= 0 for x in ids):
        raise InputError(
            f"model.adapter: expected trainable_token_indices of {adapter!r} to hold the numbers "
            f"of tokens, got {json.dumps(layers):.80}"
        )
    return ids


def load_adapter(model: "PeftModel", adapter: str, base_sha256: str) -> None:
    """Put the weights of an adapter's folder or Hub id into a `peft.PeftModel`.

    Args:
        model: Is changed in place.
        adapter: The folder or Hub id.
        base_sha256: Of the model's base, as `fingerprint_base` returns it.

    Raises:
        InputError: If the adapter was trained on another base, or its tensors are not exactly the
            model's.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    _require_same_base(base_sha256, adapter)
    weights = load_peft_weights(locate(adapter), device="cpu")
    broken = [name for name, x in weights.items() if not torch.isfinite(x).all()]
    require(
        not broken,
        f"model.adapter: {len(broken)} tensors of {adapter!r} hold NaN or infinity, such as "
        f"{next(iter(broken), '')}; take an earlier one",
    )
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    require_same_shapes(own, weights, f"model.adapter {adapter!r}")
    set_peft_model_state_dict(model, weights)


def require_same_shapes(
    expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], what: str
) -> None:
    """Raise `InputError` unless two sets of tensors have the same names and shapes.

    Args:
        expected: Those of this model.
        given: Those of a file.
        what: What to call the file.
    """

    def describe(tensor: torch.Tensor | None) -> str:
        return "missing" if tensor is None else str(list(tensor.shape))

    differing = [
        f"{name}: here {describe(expected.get(name))}, there {describe(given.get(name))}"
        for name in sorted(expected.keys() | given.keys())
        if describe(expected.get(name)) != describe(given.get(name))
    ]
    require(
        not differing,
        f"{what} is of another adapter: {len(differing)} tensors differ, such as "
        f"{'; '.join(differing[:3])}. Were model.lora or model.trainable_tokens changed?",
    )


def require_plain_lora(adapter: str, config: Mapping[str, Any]) -> None:
    """Raise `InputError` unless an adapter is computed as LoRA alone, on the base as it is.

    Whatever is not known to be honoured or to change no number has to have PEFT's default, and what
    the installed PEFT does not know has to be empty: an adapter of a release to come is refused
    rather than computed as something else.

    Args:
        adapter: Its folder or Hub id.
        config: Its `adapter_config.json`.
    """
    kind, task = config.get("peft_type"), config.get("task_type")
    unlike = [f"peft_type: {kind}"] if kind != "LORA" else []
    if task not in ("CAUSAL_LM", None):  # PEFT computes what names no task alike
        unlike.append(f"task_type: {task}")
    from peft import LoraConfig

    plain: Any = LoraConfig()
    defaults = plain.to_dict()
    for name in sorted(config.keys() - {"peft_type", "task_type", "init_lora_weights"}):
        value, default = config[name], defaults.get(name)
        is_known = name in HONOURED or name in TARGETING or name in NEUTRAL
        if not is_known and value != default and (value or default):
            unlike.append(f"{name}: {json.dumps(value):.60}")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        unlike.append(
            f"init_lora_weights: {start} (PEFT converts one that changed the base to plain LoRA: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )
    require(
        not unlike,
        f"model.adapter: expected plain LoRA of a causal language model, but {adapter!r} has "
        f"{'; '.join(unlike)}, which is not computed here; train or merge it with PEFT",
    )


def require_same_lora(
    adapter: str, config: Mapping[str, Any], lora: Lora, base: PreTrainedModel
) -> None:
    """Raise `InputError` unless an adapter has the shape that the options ask for.

    Args:
        adapter: Its folder or Hub id.
        config: Its `adapter_config.json`.
        lora: The options.
        base: What it is attached to, with weights or without.
    """
    require_plain_lora(adapter, config)
    there = {"r": config.get("r", 8), "alpha": config.get("lora_alpha", 8)}  # PEFT's defaults
    here = {"r": lora.r, "alpha": lora.alpha}
    for switch in ("use_rslora", "use_dora"):
        here[switch], there[switch] = getattr(lora, switch), bool(config.get(switch))
    differing = [
        f"{key} is {there[key]}, model.lora says {here[key]}"
        for key in here
        if here[key] != there[key]
    ]
    differing += _compare_saved(config, lora, base)
    targeting = {name: config[name] for name in TARGETING if config.get(name) not in (None, [], "")}
    own = find_targets(base, lora.target_modules)
    theirs, ours = _list_theirs(adapter, targeting, base), list_adapted(base, own)
    if theirs != ours:
        said = ", ".join(f"{name} {_in_order(value)}" for name, value in targeting.items())
        differing.append(
            f"{len(theirs)} layers are adapted ({said or 'no target_modules'}), by model.lora "
            f"{len(ours)} (target_modules {own}); one that differs is {min(theirs ^ ours)}"
        )
    require(not differing, f"model.adapter: of {adapter!r} {'; '.join(differing)}")
    _require_same_token_layers(adapter, config.get("trainable_token_indices"), base)


def name_saved(config: Mapping[str, Any]) -> set[str]:
    """Return the layers that an adapter holds as a whole; PEFT writes some under two names."""
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"model.adapter: expected modules_to_save to be a list of names, got {names!r:.60}"
        )
    return {name.rpartition(".")[2] for name in names}


def _compare_saved(config: Mapping[str, Any], lora: Lora, base: PreTrainedModel) -> list[str]:
    """Return, in words, how the layers differ that are trained as a whole."""
    there, here = name_saved(config), set(lora.modules_to_save)
    is_tied = bool(base.config.tie_word_embeddings)
    if is_tied and there and not config.get("ensure_weight_tying"):
        return [f"modules_to_save {sorted(there)} unties embedding and head, which are tied here"]
    if (is_tied and bool(there) == bool(here)) or there == here:
        name_saved_layers(base, sorted(there))
        return []
    return [f"modules_to_save is {sorted(there)}, model.lora says {sorted(here)}"]


def _require_same_token_layers(adapter: str, given: Any, base: PreTrainedModel) -> None:
    """Raise `InputError` unless token rows are trained in the layers where they are here."""
    if not given:
        return
    tokens = read_adapter_tokens(adapter)
    count = int(base.config.get_text_config().vocab_size)
    require(
        max(tokens, default=-1) < count,
        f"model.adapter: {adapter!r} has trained a row of token {max(tokens, default=0)}, and the "
        f"base has {count} tokens: it is not the base that it was trained on",
    )
    expected = name_token_layers(base, tokens)
    rows = given if isinstance(given, dict) else {next(iter(expected)): tokens}
    rows = {name.rpartition(".")[2]: list(ids) for name, ids in rows.items()}
    both = name_token_layers(base, tokens, also_tied=True)
    require(
        rows in (expected, both),
        f"model.adapter: of {adapter!r} trainable_token_indices is {json.dumps(given):.120}; "
        f"expected the same rows of {' and '.join(expected)}",
    )


def _list_theirs(adapter: str, targeting: Mapping[str, Any], base: PreTrainedModel) -> set[str]:
    """Return the full names of the modules that an adapter says it adapts."""
    targets, *others = (targeting.get(name) for name in TARGETING)
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = find_targets(base, "all-linear")
    try:
        return list_adapted(base, targets or [], **dict(zip(TARGETING[1:], others, strict=True)))
    except (ValueError, TypeError, re.error) as error:
        raise InputError(
            f"model.adapter: {adapter!r} does not say which layers it adapts ({error})"
        ) from error


def _in_order(value: object) -> object:
    return sorted(value) if isinstance(value, list) else value


def _require_same_base(here: str, adapter: str) -> None:
    path = Path(locate(adapter)) / PROVENANCE
    if not path.is_file():
        return  # trained by another tool, or not on this machine: the shapes must do
    there = json.loads(path.read_text(encoding="utf-8"))
    require(
        there.get("base_sha256") == here,
        f"model.adapter: {adapter!r} was trained on another base, {there.get('base_model')!r} "
        f"(fingerprint {str(there.get('base_sha256'))[:12]}; here it is {here[:12]})",
    )
