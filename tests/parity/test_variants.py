"""Variants of LoRA, of the optimizer and of the schedule, each against a plain loop of PEFT's."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from test_training import LEARNING_RATE, STEPS, WARMUP_STEPS, order_of_epochs, relative_error, train
from transformers import (
    AutoModelForCausalLM,
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)
from transformers.integrations.neftune import activate_neftune

from lit_sft import Lora, Quantization, Schedule
from lit_sft.data.batching import pad_batch
from lit_sft.model.distributed import seed_step

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LORA = {"r": 4, "alpha": 8, "dropout": 0.0}


def make_adamw(model, parameters):
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)


def make_loraplus(model, parameters):
    kind = torch.optim.AdamW
    return create_loraplus_optimizer(model, kind, lr=LEARNING_RATE, loraplus_lr_ratio=4.0)


def make_muon(model, parameters):
    return torch.optim.Muon(parameters, lr=LEARNING_RATE, weight_decay=0.0, momentum=0.9)


def make_sgd(model, parameters):
    return torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9)


CASES = {
    "rsLoRA and LoRA+ on all layers, cosine with a floor": (
        {
            "lora": Lora(
                **LORA, target_modules="all-linear", use_rslora=True, loraplus_lr_ratio=4.0
            ),
            "schedule": Schedule(warmup_steps=WARMUP_STEPS, min_lr_ratio=0.1),
        },
        {"target_modules": "all-linear", "use_rslora": True},
        make_loraplus,
        partial(get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.1),
    ),
    "Muon, linear": (
        {
            "optimizer": "torch.optim.Muon",
            "optimizer_args": {"momentum": 0.9},
            "schedule": Schedule("linear"),
        },
        {},
        make_muon,
        get_linear_schedule_with_warmup,
    ),
    "SGD with momentum, noise, constant": (
        {
            "optimizer": "torch.optim.SGD",
            "optimizer_args": {"momentum": 0.9},
            "schedule": Schedule("constant"),
            "neftune_noise_alpha": 5.0,
        },
        {},
        make_sgd,
        lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_variant_equals_a_plain_loop(tiny_base, tmp_path, name):
    ours, theirs, make_optimizer, make_schedule = CASES[name]
    rows_at_once = 1 if "neftune_noise_alpha" in ours else 8
    recorder, module, data = train(
        tiny_base,
        tmp_path,
        count=16,
        batch_size=rows_at_once,
        accumulate=1,
        quantization=Quantization(format="none"),
        **{"optimizer": "adamw", "lora": Lora(**LORA)} | ours,
    )
    windows = order_of_epochs(data.prepared["train"].encoded, data, epochs=4)[:STEPS]
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ATTENTION} | theirs
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config)).train()
    if "neftune_noise_alpha" in ours:
        activate_neftune(model, ours["neftune_noise_alpha"])
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(model, list(parameters.values()))
    schedule = make_schedule(optimizer, WARMUP_STEPS, STEPS)
    assert len(windows) == STEPS
    for step, window in enumerate(windows):
        batch = pad_batch(window, pad_token_id=0)
        mask = torch.zeros_like(batch["input_ids"])
        for row, example in enumerate(window):
            mask[row, : len(example.input_ids)] = 1
        torch.manual_seed(seed_step(0, step, 0))
        output = model(batch["input_ids"], attention_mask=mask, labels=batch["labels"])
        output.loss.backward()
        assert recorder.losses[step] == pytest.approx(output.loss.item(), rel=1e-4)
        assert recorder.rates[step] == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for key, parameter in parameters.items():
            gradient = recorder.gradients[step][f"_model.{key}"]
            assert relative_error(gradient, parameter.grad) < 1e-3, (step, key)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    for key, parameter in parameters.items():
        assert relative_error(module.trained_parameters[f"_model.{key}"], parameter) < 1e-3, key


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 100)])
def test_schedules_equal_those_of_transformers(warmup, total):
    decay = round(0.3 * total)
    cases = [
        (Schedule("linear"), get_linear_schedule_with_warmup),
        (Schedule("constant"), lambda o, w, t: get_constant_schedule_with_warmup(o, w)),
        (
            Schedule(min_lr_ratio=0.2),
            partial(get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.2),
        ),
        (
            Schedule("warmup_stable_decay", min_lr_ratio=0.0, decay_ratio=0.3),
            lambda o, w, t: get_wsd_schedule(o, w, decay, num_training_steps=t),
        ),
    ]
    for ours, make in cases:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = make(optimizer, warmup, total)
        for step in range(total + 1):
            expected = pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15)
            assert ours.factor(step, warmup / total, total) == expected, (ours, step)
            optimizer.step()
            theirs.step()
