"""The runs that nothing breaks, which those that are broken are compared with."""

import pytest


@pytest.fixture(scope="session")
def whole(tiny_base, tmp_path_factory):
    """The bytes of its adapter, its figures, and the bytes of its answers."""
    from test_interrupted_runs import read_result, run  # pytest rewrites its asserts when loaded

    folder = tmp_path_factory.mktemp("whole")
    outcome = run(folder, tiny_base)
    assert outcome.status == 0, outcome.stderr
    adapter, rows = read_result(folder)
    assert [row["step"] for row in rows] == [str(step) for step in range(13)]
    return adapter, rows, (folder / "run" / "logs" / "generations.jsonl").read_bytes()


@pytest.fixture(scope="session")
def folder_of_two(tiny_base, tmp_path_factory):
    """Where a run of two ranks has ended, each of which holds the base."""
    from test_two_ranks_interrupted import run_two

    folder = tmp_path_factory.mktemp("whole_of_two")
    assert run_two(folder, tiny_base).status == 0
    return folder


@pytest.fixture(scope="session")
def whole_of_two(folder_of_two):
    """Its bytes and its figures."""
    from test_interrupted_runs import read_result

    return read_result(folder_of_two)
