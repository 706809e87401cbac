"""Which strategies a run is trained by: by name, by class, and as an object of a script's."""

import sys

import pytest
from jsonargparse import Namespace
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_sft import make_trainer
from lit_sft.errors import InputError
from lit_sft.model.known_strategies import require_known_name
from lit_sft.model.sharded.strategy import ShardedStrategy

OF_LIGHTNING = "lightning.pytorch.strategies."
ON_CPU = {"accelerator": "cpu", "precision": "32-true", "max_steps": 1}


def of_class(path: str) -> Namespace:
    return Namespace(class_path=path, init_args=Namespace())


@pytest.mark.parametrize(
    "asked",
    [
        *("auto", "ddp", "DDP", "fsdp2", "ddp_find_unused_parameters_true"),
        of_class(f"{OF_LIGHTNING}DDPStrategy"),
        of_class(f"{ShardedStrategy.__module__}.ShardedStrategy"),
        *(DDPStrategy(), ShardedStrategy(), SingleDeviceStrategy("cpu")),
    ],
    ids=lambda asked: asked if isinstance(asked, str) else type(asked).__name__,
)
def test_what_trains_windows_is_taken(asked):
    require_known_name(asked)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        *((name, name) for name in ("single_device", "single_xla", "single_tpu", "xla", "fsdp")),
        ("DDPStrategy", "DDPStrategy"),
        *(
            (of_class(f"{OF_LIGHTNING}{name}"), f"{OF_LIGHTNING}{name}")
            for name in ("SingleDeviceStrategy", "FSDPStrategy", "DeepSpeedStrategy")
        ),
    ],
    ids=str,
)
def test_the_others_are_refused_with_what_is_taken(asked, name):
    with pytest.raises(InputError) as refused:
        require_known_name(asked)
    start, _, works = str(refused.value).partition("; ")
    assert start == f"trainer.strategy must be auto, ddp or fsdp2, got {name}"
    assert works.startswith("a class is taken with options of its own, such as {class_path: DDP")


def test_a_strategy_of_one_device_takes_no_more(tmp_path):
    given = {"strategy": SingleDeviceStrategy("cpu"), "default_root_dir": tmp_path, **ON_CPU}
    for more in ({"devices": 2}, {"devices": 1, "num_nodes": 2}):
        with pytest.raises(InputError, match=r"one device, and trainer\.devices and num_nodes ask"):
            make_trainer(**given, **more)
    assert make_trainer(**given, devices=1).world_size == 1


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2"])
def test_a_notebook_has_one_device(tmp_path, monkeypatch, strategy):
    given = {"strategy": strategy, "default_root_dir": tmp_path, **ON_CPU}
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(InputError, match="2 devices need a script, as an interactive Python or a"):
        make_trainer(**given, devices=2)
    if strategy == "auto":
        assert make_trainer(**given, devices=1).world_size == 1
