"""The config that ranks compare: all but where things lie on a machine."""

from lit_sft.cli.meeting import flatten_config


def test_options_have_dotted_names_and_places_are_left_out():
    config = {
        "seed_everything": 0,
        "config": ["/a/x.yaml"],
        "data": {"cache_dir": "/a", "task": {"class_path": "T", "init_args": {"rows": 3}}},
        "trainer": {"default_root_dir": "/a", "callbacks": [{"class_path": "C"}], "logger": {}},
    }
    assert flatten_config(config) == {
        "seed_everything": "0",
        "data.task.class_path": "'T'",
        "data.task.init_args.rows": "3",
        "trainer.callbacks": "[{'class_path': 'C'}]",
        "trainer.logger": "{}",
    }


def test_what_has_no_text_of_its_own_is_the_same_in_each_process():
    first, second = (flatten_config({"x": value}) for value in (object(), object()))
    assert first == second
