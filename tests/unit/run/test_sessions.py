"""When a process began to train, and how it ended."""

from lit_sft.run.sessions import begin_session, end_session, name_command, read_sessions


def test_a_session_behind_a_torn_one_can_be_read(tmp_path):
    path = tmp_path / "logs" / "sessions.jsonl"
    begin_session(path, {"step": 0, "git_commit": "abc"})
    with path.open("a") as file:
        file.write('{"event": "en')
    begin_session(path, {"step": 50})
    end_session(path, 100, "finished")
    found, damaged = read_sessions(path)
    assert [(x["event"], x["step"]) for x in found] == [("begin", 0), ("begin", 50), ("end", 100)]
    assert damaged == 1
    assert {"torch", "lightning"} <= found[0]["versions"].keys()
    assert found[0]["git_commit"] == "abc"
    assert read_sessions(tmp_path / "nothing") == ([], 0)


def test_a_command_is_written_as_it_was_typed():
    words = ["/x/lit_sft/__main__.py", "fit", "--data.task.path", "my chats.jsonl"]
    assert name_command(words) == "lit-sft fit --data.task.path 'my chats.jsonl'"
    assert name_command(["/x/.venv/bin/lit-sft", "fit"]) == "lit-sft fit"
    assert name_command(["/home/me/train.py", "7"]) == "train.py 7"
