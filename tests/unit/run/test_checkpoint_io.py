"""Checkpoints come back whole, or are refused by name; they never run code."""

import os
import pickle
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from lit_sft.errors import InputError, SaveError
from lit_sft.run.checkpoint_io import AtomicCheckpointIO, skim_checkpoint

CHECKPOINT = {
    **{"state_dict": {"a": torch.arange(1000.0)}, "global_step": 3, "run": {"b": [1, "c"]}},
    "pytorch-lightning_version": "2.6.0",
}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    return path


def test_round_trip(saved):
    loaded = AtomicCheckpointIO().load_checkpoint(saved)
    assert torch.equal(loaded["state_dict"]["a"], CHECKPOINT["state_dict"]["a"])
    assert (loaded["global_step"], loaded["run"]) == (3, {"b": [1, "c"]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "a list without pytorch-lightning_version, global_step, state_dict, run"),
        ({"state_dict": {}}, "a dict without pytorch-lightning_version, global_step, run"),
        ({k: v for k, v in CHECKPOINT.items() if k != "run"}, "a dict without run"),
    ],
)
@pytest.mark.parametrize("load", [AtomicCheckpointIO().load_checkpoint, skim_checkpoint])
def test_what_is_whole_and_none_of_this_trainer_s_is_refused(tmp_path, load, content, says):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(
        InputError, match=rf"other\.ckpt' is none of .* it is {says}; name one that"
    ):
        load(tmp_path / "other.ckpt")


def test_what_is_skimmed_leaves_its_tensors_on_the_disk(saved):
    skimmed = skim_checkpoint(saved)
    assert skimmed["run"] == CHECKPOINT["run"]
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "last.c" in line]
    assert len(mapped) == 1
    assert torch.equal(skimmed["state_dict"]["a"], CHECKPOINT["state_dict"]["a"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint .*nothing\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(InputError, match=r"no checkpoint .*nothing\.ckpt"):
        skim_checkpoint(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    os.truncate(saved, int(saved.stat().st_size * share))
    with pytest.raises(InputError, match=r"last\.ckpt' is damaged"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_flipped_bit_in_a_tensor_is_refused(saved):
    """torch alone would load it: it does not look at the archive's checksums."""
    with zipfile.ZipFile(saved) as archive:
        (member,) = [info for info in archive.infolist() if info.filename.endswith("data/0")]
    data = bytearray(saved.read_bytes())
    data[member.header_offset + 2000] ^= 1
    saved.write_bytes(data)
    assert torch.load(saved, weights_only=True)
    with pytest.raises(InputError, match=r"checksum of .*data/0 does not match"):
        AtomicCheckpointIO().load_checkpoint(saved)


class Bomb:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("writer", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_malicious_pickle_is_never_opened(tmp_path, writer):
    writer({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "last.ckpt")
    for load in (AtomicCheckpointIO().load_checkpoint, skim_checkpoint):
        with pytest.raises(InputError, match="damaged, or is none of this trainer's"):
            load(tmp_path / "last.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_failed_save_keeps_the_old_one(saved):
    with pytest.raises(AttributeError):
        AtomicCheckpointIO().save_checkpoint({"cannot": lambda: "be pickled"}, saved)
    assert AtomicCheckpointIO().load_checkpoint(saved)["global_step"] == 3
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("room", [0, 1, 63, 64, 65, 500, 3487, 4000])
def test_a_disk_that_is_full_at_any_byte_is_told_in_a_line(saved, room):
    size = saved.stat().st_size
    assert room < size
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, former[1]))
    try:
        with pytest.raises(SaveError, match=r"could not be written \(File too large\)"):
            AtomicCheckpointIO().save_checkpoint(CHECKPOINT, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert saved.stat().st_size == size
    assert list(saved.parent.iterdir()) == [saved]
