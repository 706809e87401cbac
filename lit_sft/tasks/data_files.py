"""Which data files a path, a list, a glob or a folder names, and of which split each is.

Of a folder the Hub's own rule tells the splits, and is refused where it errs. A data set must not
change when it is cloned, so that `datasets` itself is asked. On the Hub as in a folder, the YAML
head of a `README.md` says it; else shards in `data/` do, each called after its split; else the
names of folders, and else those of files; else all files are `train`.
"""

import glob
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_sft.errors import InputError, require, suggest
from lit_sft.tasks.plain import read_ending, remove_endings

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What data sets call their splits, as `datasets` recognises them."""
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside the data."""
SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")
"""What it writes behind a split's name, formerly with a hash."""
PART = re.compile(r"[-_.]?(part|shard)?[-_.]?\d+$")
"""A number behind the name of one of several files."""
HELD_OUT = ("holdout", "heldout")
"""What `datasets` does not take for the name of a split."""
LISTED = 8


class FoundSplits(NamedTuple):
    """The data files of a folder, in order."""

    files: dict[str, list[Path]]
    """By split."""
    doubts: dict[str, str]
    """Why a split may hold rows of another."""


def is_data(path: Path) -> bool:
    """Return whether a file holds rows, by its name."""
    return read_ending(path) in ENDINGS and path.name not in NO_DATA


def may_be_held_out(path: Path) -> bool:
    """Return whether the name of a file says that it is of another split than `train`."""
    names = {name for split in ("val", "test") for name in SPLIT_NAMES[split]}
    return _names_another(Path(path.name), names)


def has_glob(path: str) -> bool:
    """Return whether a path stands for all that match it."""
    return any(mark in path for mark in "*?[")


def find_files(pattern: Path) -> list[Path]:
    """Return the data files that match a pattern, sorted.

    Raises:
        InputError: If there is none, or some may be held out from the others.
    """
    names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 (a Path globs no absolute ones)
    files = [Path(name) for name in sorted(names)]
    files = [path for path in files if path.is_file() and is_data(path)]
    require(bool(files), f"{pattern}: no data file matches it; expected {', '.join(ENDINGS)}")
    held_out = [path.name for path in files if may_be_held_out(path)]
    require(
        len(held_out) in (0, len(files)),
        f"{pattern}: {', '.join(held_out[:3])} may be held out from the others that match; name "
        "the files to train on in a list, or the folder, whose splits are told apart",
    )
    return files


def require_files(names: Sequence[str]) -> list[Path]:
    """Return the paths of data files, in the order given.

    Raises:
        InputError: If one is no file, is of no known kind, or stands twice.
    """
    paths = [Path(name).expanduser() for name in names]
    require(bool(paths), "task.path names no file")
    for path in paths:
        require(
            path.is_file(),
            f"{path}: there is no such file; a list names files, and lit_sft.Mixture joins folders "
            "and data sets of the Hub",
        )
        require(
            read_ending(path) in ENDINGS,
            f"{path}: expected one of {', '.join(ENDINGS)}, or one of them and .gz or .zst",
        )
        is_repeated = sum(path.samefile(other) for other in paths if other.is_file()) > 1
        require(not is_repeated, f"{path}: stands twice in task.path")
    return paths


def find_splits(folder: Path, subset: str | None, named: Collection[str]) -> FoundSplits:
    """Return the data files of a folder by split.

    Args:
        folder: Which exists.
        subset: As the README calls it, or the folder inside.
        named: Splits that are asked for by name; where the rule knows no such split, the files of
            that name, without ending and shard, or the file or folder of that path.

    Raises:
        InputError: If there is nothing to read, or no such subset.
    """
    stated = _read_config(folder, subset)
    base = folder / (stated.get("data_dir") or "") if stated else folder / (subset or "")
    require(base.is_dir(), f"{base}: there is no such folder")
    everything = _list_files(base)
    found = _resolve(base, stated.get("data_files"))
    # What the README lists is certain.
    doubts = {} if stated.get("data_files") else _find_doubts(base, found)
    for name in named:
        if name not in found or name in doubts:
            own = [file for file in everything if name in _names_of(file.relative_to(base))]
            if own:
                found[name] = own
                doubts.pop(name, None)
    require(
        bool(found),
        f"{base}: `datasets` finds no split in {_list_names(base, everything)}; name the files "
        "with the task's `splits`",
    )
    return FoundSplits(found, doubts)


def _list_files(base: Path) -> list[Path]:
    try:
        files = [path for path in sorted(base.rglob("*")) if is_data(path)]
    except OSError as error:
        raise InputError(
            f"{base}: what is in the folder cannot be listed ({error}); name a folder of data alone"
        ) from error
    files = [p for p in files if not any(x.startswith(".") for x in p.relative_to(base).parts)]
    require(bool(files), f"{base}: the folder holds no data file; expected {', '.join(ENDINGS)}")
    return files


def _read_config(folder: Path, subset: str | None) -> Mapping[str, Any]:
    """Return what the README says of a subset, or of the default; nothing where it says nothing."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData
    from huggingface_hub.repocard import metadata_load

    try:
        head = DatasetCardData(**(metadata_load(readme) or {}))
        configs: Any = MetadataConfigs.from_dataset_card_data(head)
        name = subset or configs.get_default_config_name()
    except Exception as error:  # YAML and datasets fail in many types
        raise InputError(f"{readme}: its YAML head cannot be read ({error!s:.200})") from error
    if not configs or (subset not in configs and subset and (folder / subset).is_dir()):
        return {}
    require(
        name is not None,
        f"{folder}: it has the subsets {', '.join(configs)}; name one with the task's `subset`",
    )
    require(
        name in configs,
        f"{folder}: there is no subset {name!r}, only {', '.join(configs)}."
        f"{suggest(str(name), configs)}",
    )
    config: Mapping[str, Any] = configs[name]
    return config


def _resolve(base: Path, data_files: Any) -> dict[str, list[Path]]:
    from datasets.data_files import get_data_patterns, resolve_pattern, sanitize_patterns

    place = glob.escape(str(base.resolve()))
    try:
        patterns = sanitize_patterns(data_files) if data_files else get_data_patterns(place)
    except (FileNotFoundError, ValueError):  # files that it does not know; a name that is no split
        return {}
    found: dict[str, list[Path]] = {}
    for split, wanted in patterns.items():
        paths: set[Path] = set()
        for pattern in wanted:
            try:
                names = resolve_pattern(pattern, place, allowed_extensions=list(ENDINGS))
            except FileNotFoundError:
                continue
            paths |= {base / Path(name).relative_to(base.resolve()) for name in names}
        files = sorted(path for path in paths if is_data(path))
        if files:
            found[str(split)] = files
    return found


def _find_doubts(base: Path, found: Mapping[str, list[Path]]) -> dict[str, str]:
    """Return why the files that the Hub would read as a split may not be of that split alone."""
    doubts = {}
    for split, files in found.items():
        others = {name for names in SPLIT_NAMES.values() if split not in names for name in names}
        usual = any(split in names for names in SPLIT_NAMES.values())
        stray = [x for x in files if usual and _names_another(x.relative_to(base), others)]
        kinds = sorted({PART.sub("", SHARD.sub("", remove_endings(x))) for x in files})
        named = [kind for kind in kinds if usual and split in _words(Path(kind))]
        names = Counter(x.name for x in files)
        if stray:
            doubts[split] = f"{_list_names(base, stray)} may be of another"
        elif len(named) > 1:
            doubts[split] = f"it has files of {', '.join(named)}"
        elif twice := [name for name, count in names.items() if count > 1]:
            doubts[split] = f"{twice[0]} stands in several folders"
    return doubts


def _names_another(path: Path, others: Collection[str]) -> bool:
    words = set(_words(path))
    begins = ("test", "eval") if "test" in others else ()
    return bool({*others, *HELD_OUT} & words) or any(word.startswith(begins) for word in words)


def _words(path: Path) -> list[str]:
    return re.split(r"[^a-z]+", (path.parent / remove_endings(path)).as_posix().lower())


def _names_of(path: Path) -> set[str]:
    """Return what a file may be asked for by: its own name, its path, or that of its folders."""
    folders = {parent.as_posix() for parent in path.parents}
    return {SHARD.sub("", remove_endings(path)), path.as_posix()} | folders


def _list_names(base: Path, files: Collection[Path]) -> str:
    names = [file.relative_to(base).as_posix() for file in files]
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
