"""Tell a local folder from a Hub id, before a library guesses."""

import json
import os
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from lit_sft.errors import InputError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What transformers reads, the first that is there; or an index of that name and its shards."""
EMBEDDED_BASE = "lit_sft/tiny"
"""Names the small base model inside this package, wherever that is installed."""


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""How an id of the Hub reads: `owner/name`."""


def default_cache_dir() -> Path:
    """Return the folder `LIT_SFT_CACHE`, or `~/.cache/lit_sft`."""
    return Path(os.environ.get("LIT_SFT_CACHE", "~/.cache/lit_sft")).expanduser()


def locate(path: str) -> str:
    """Return where a library finds `path`: the embedded base, a local folder, or a Hub id."""
    if path == EMBEDDED_BASE:
        return str(files("lit_sft.toy") / "base")
    return str(Path(path).expanduser()) if is_local(path) else path


def is_local(path: str) -> bool:
    """Return whether `path` names this machine rather than the Hub.

    A Hub id reads `owner/name`; whatever exists here, starts like a path, has another number of
    parts or characters that no id has, such as those of a glob, is local.
    """
    return (
        path == EMBEDDED_BASE
        or path.startswith((".", "/", "~"))
        or not HUB_ID.fullmatch(path)
        or Path(path).expanduser().exists()
    )


def require_folder(path: str, holding: str, option: str) -> Path:
    """Return the local folder `path`, which must hold the file `holding`.

    Args:
        path: A path for which `is_local` holds.
        holding: The file that tells a right folder from a wrong one.
        option: The option that named it, for the error.

    Raises:
        InputError: If the folder or the file is missing.
    """
    folder = Path(locate(path))
    if not folder.is_dir():
        raise InputError(f"{option}: there is no folder {path!r} (a Hub id reads owner/name)")
    if not (folder / holding).is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{option}: the folder {path!r} has no {holding}; it holds {found}")
    return folder


def require_own_shards(folder: Path, option: str) -> None:
    """Raise `InputError` if a model's folder names weights outside of it.

    Args:
        folder: With an index such as `model.safetensors.index.json`, if it has several files.
        option: The option that named it, for the error.
    """
    for index in folder.glob("*.index.json"):
        try:
            shards = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            foreign = [name for name in shards if Path(name).name != name]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{option}: {str(index)!r} is no index of weights ({error})"
            ) from error
        if foreign:
            raise InputError(
                f"{option}: {str(index)!r} names {foreign[0]!r}, which is not in its folder"
            )


def require_weights(folder: Path, option: str) -> None:
    """Raise `InputError` unless a model's folder holds its weights once, each file to its end.

    The head of a safetensors file tells how long it is. A file of Git LFS that was not fetched is
    one of a hundred bytes.

    Args:
        folder: Whose indices name no file outside of it, see `require_own_shards`.
        option: The option that named it, for the error.
    """
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        shards = _list_shards(index) if index.is_file() else set()
        if (folder / name).is_file():
            if shards - {name}:
                raise InputError(
                    f"{option}: the folder {str(folder)!r} holds {name}, and shards beside it that "
                    f"{index.name} names; transformers reads the single file alone. Remove which "
                    "of the two is not the base"
                )
            _require_whole(folder, [name], option)
            return
        if shards:
            missing = sorted(shard for shard in shards if not (folder / shard).is_file())
            if missing:
                raise InputError(
                    f"{option}: {str(index)!r} names {len(shards)} files, of which {len(missing)} "
                    f"are missing, such as {missing[0]}; get the folder whole"
                )
            _require_whole(folder, sorted(shards), option)
            return
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise InputError(
        f"{option}: the folder {str(folder)!r} has no weights: expected {WEIGHTS[0]}, or "
        f"{WEIGHTS[0]}.index.json and the shards that it names; it holds {found}"
    )


def _list_shards(index: Path) -> set[str]:
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())


def _require_whole(folder: Path, names: Iterable[str], option: str) -> None:
    from safetensors import SafetensorError, safe_open

    for name in names:
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(folder / name, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            with (folder / name).open("rb") as file:
                is_pointer = file.read(40).startswith(b"version https://git-lfs")
            reason = "a pointer of Git LFS: run `git lfs pull` there" if is_pointer else str(error)
            raise InputError(
                f"{option}: {str(folder / name)!r} holds no weights, or not all of them ({reason})"
            ) from error
