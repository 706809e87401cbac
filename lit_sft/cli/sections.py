"""The options of each command, as signatures and parsers declare them in their source."""

import ast
from collections.abc import Iterator, Mapping

from lit_sft.cli.signatures import (
    Parameter,
    find_arguments,
    find_class,
    find_classes,
    find_flags,
    find_parameters,
    find_type_names,
    is_dataclass,
)
from lit_sft.cli.sources import find_binding
from lit_sft.errors import InputError

SECTIONS = {
    "model": "lit_sft.SFTModule",
    "data": "lit_sft.SFTDataModule",
    "trainer": "lightning.pytorch.Trainer",
    "checkpoint": "lit_sft.callbacks.checkpoint.LastCheckpoint",
}
"""Of a config, and the class that takes each; `lit_sft.cli.app` gives the same to its parser."""
SEEDED = ("data.seed", "model.seed")
"""What `--seed_everything` sets, and no option of its own does."""
PARSERS = ("lightning.pytorch.cli", "lit_sft.cli.app")
"""The modules that add single options to the parser."""
INSPECT = "lit_sft.inspect.command"
"""The module of a command that looks at the data alone, and has a parser of its own."""
TOOLS = {
    "report": ("RUN [RUN ...]", "lit_sft.cli.report"),
    "export": ("RUN", "lit_sft.cli.export"),
    "chat": ("RUN_OR_ADAPTER", "lit_sft.cli.chat"),
    "push": ("RUN_OR_FOLDER REPO", "lit_sft.cli.push"),
}
"""Commands about a run that there is: the words that they take, and the modules that read them."""
TRAINER_DEFAULTS = "lit_sft.cli.app.TRAINER_DEFAULTS"
"""The trainer's, where they are not Lightning's."""
GIVEN = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
"""What a command of the trainer takes that is no option."""


RETIRED = ("model.speed.fused_head", "model.speed.fused_lora", "model.speed.flat_optimizer")
"""Switches that are gone, as what they switched on is always done. A run keeps its config and goes
on from it; those of former versions hold these, true by default: so they are taken, and dropped."""


class Options:
    """The options that a command takes, and what is known of each.

    Args:
        command: Such as `fit`.
    """

    def __init__(self, command: str) -> None:
        inspects = command == "inspect"
        read = ("data",) if inspects else tuple(SECTIONS)
        if command in TOOLS:
            self.sections: dict[str, Mapping[str, Parameter] | None] = {}
            self.of_run = dict(find_flags(TOOLS[command][1]))
            return
        self.sections = {name: find_parameters(find_class(SECTIONS[name])) for name in read}
        """None where a class takes what its source does not tell."""
        if known := self.sections.get("trainer"):
            ours = {k: v for k, v in _read_dict(TRAINER_DEFAULTS).items() if k in known}
            self.sections["trainer"] = {
                **known,
                **{name: known[name]._replace(default=value) for name, value in ours.items()},
            }
        trainer = find_class(SECTIONS["trainer"])
        taken = trainer and find_arguments(trainer, "fit" if inspects else command)
        self.of_run = {k: v for k, v in (taken or {}).items() if k not in GIVEN}
        """Outside of any section."""
        for module in (*PARSERS, INSPECT) if inspects else PARSERS:
            for flag, parameter in find_flags(module):
                section, _, name = flag.partition(".")
                known = self.sections.get(section)
                if not name:
                    self.of_run[flag] = parameter
                elif known:  # it stands in place of the class's own
                    self.sections[section] = {**known, name: parameter}

    @property
    def names(self) -> set[str]:
        """The first parts of the names of all options."""
        return {*SECTIONS, *self.of_run}

    def list_all(self) -> Iterator[tuple[str, Parameter]]:
        """Yield all options by their dotted names; behind that of a data class come its fields."""
        yield from self.of_run.items()
        for section, parameters in self.sections.items():
            yield from list_fields(section, parameters or {})


def require_retired_on(name: str, value: object) -> None:
    """Raise `InputError` if a retired switch is anything else than on."""
    if value is not True:
        raise InputError(
            f"{name}: expected true or nothing, got {value!r}: the switch is gone, and what it "
            "switched on is always done; remove it"
        )


def list_fields(place: str, known: Mapping[str, Parameter]) -> Iterator[tuple[str, Parameter]]:
    """Yield what a section or a class takes by dotted names, down to the fields of data classes."""
    for name, parameter in known.items():
        yield f"{place}.{name}", parameter
        yield from list_fields(f"{place}.{name}", find_fields(parameter) or {})


def find_fields(parameter: Parameter) -> Mapping[str, Parameter] | None:
    """Return the fields of an option that is a data class, or None if it is none."""
    if len(find_type_names(parameter)) != 1:
        return None
    classes = [declared for declared in find_classes(parameter) if is_dataclass(declared)]
    return find_parameters(classes[0]) if classes else None


def _read_dict(path: str) -> dict[str, ast.expr]:
    """Return the entries of a dictionary that a module writes out, by name."""
    found = find_binding(path)
    value = getattr(found and found[0], "value", None)
    pairs = zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ()
    return {str(key.value): item for key, item in pairs if isinstance(key, ast.Constant)}
