"""Ranks that see different runs: who, and in what."""

import torch

from lit_sft.model.agreement import digest_checkpoint, find_disagreement


def test_ranks_that_agree_are_not_disturbed():
    facts = {"data.rows": "ab", "trainer.max_steps": 4}
    assert find_disagreement([("rank 0 (a)", facts)]) == ""
    assert find_disagreement([("rank 0 (a)", facts), ("rank 1 (b)", dict(facts))]) == ""


def test_who_differs_and_in_what_is_one_line():
    everyone = [
        ("rank 0 (a)", {"data.rows": "ab" * 40, "same": 1, "data.grader": "exact"}),
        ("rank 1 (a)", {"data.rows": "ab" * 40, "same": 1, "data.grader": "exact"}),
        ("rank 2 (b)", {"data.rows": "cd" * 40, "same": 1}),
    ]
    told = find_disagreement(everyone)
    assert f"data.rows is {'ab' * 30} on rank 0 (a), rank 1 (a), {'cd' * 30} on rank 2 (b)" in told
    assert "data.grader is exact on rank 0 (a), rank 1 (a), not there on rank 2 (b)" in told
    assert "same is" not in told
    assert "\n" not in told


def test_many_ranks_and_many_differences_stay_a_line():
    everyone = [(f"rank {rank} (a)", {f"x{n}": rank == 7 for n in range(6)}) for rank in range(64)]
    told = find_disagreement(everyone)
    assert "x0 is False on 63 ranks such as rank 0 (a), True on rank 7 (a)" in told
    assert "and 2 more" in told
    assert len(told) < 600


def test_a_checkpoint_that_is_not_the_same_on_all_machines_is_seen(tmp_path):
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        torch.save({"x": torch.full((3,), value)}, tmp_path / name)
    (tmp_path / "torn").write_bytes((tmp_path / "a").read_bytes()[:-10])
    digests = {x: digest_checkpoint(tmp_path / x) for x in ("a", "b", "c", "torn", "missing")}
    assert digests["a"] == digests["b"] != digests["c"]
    assert digests["torn"] == digests["missing"] == "unreadable"
    assert digest_checkpoint(None) == "none"
