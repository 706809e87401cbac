"""The run that nothing breaks, which those that are broken are compared with."""

import pytest
from test_interrupted_runs import read_result, run


@pytest.fixture(scope="session")
def whole(tiny_base, tmp_path_factory):
    """The bytes of its adapter, its figures, and the bytes of its answers."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = run(folder, tiny_base)
    assert outcome.status == 0, outcome.stderr
    adapter, rows = read_result(folder)
    assert [row["step"] for row in rows] == [str(step) for step in range(13)]
    return adapter, rows, (folder / "run" / "logs" / "generations.jsonl").read_bytes()
