"""What several matrices of faults compare with."""

import pytest


@pytest.fixture(scope="session")
def whole_of_two(tiny_base, tmp_path_factory):
    """The bytes and the figures of a run of two ranks that nothing has interrupted."""
    from test_interrupted_runs import read_result  # pytest rewrites its asserts when it is loaded
    from test_two_ranks_interrupted import run_two

    folder = tmp_path_factory.mktemp("whole_of_two")
    assert run_two(folder, tiny_base).status == 0
    return read_result(folder)
