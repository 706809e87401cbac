"""The door: help at once, everything else through `lit_sft.cli.app`."""

import gc
import importlib
import os
import sys

COMMANDS = {
    "fit": "train, and leave a run folder with checkpoints, figures and the adapter",
    "validate": "loss and exact match on the held-out rows",
    "test": "loss and exact match on the test split, with a 95 % interval",
    "predict": "answers to the prompts of the test split",
    "inspect": "the rows as the model will see them, and figures of the data; reads no weights",
    "report": "a page to look at: curves, answers and config of a run, or of several",
    "export": "the trained model for PEFT, vLLM, transformers, llama.cpp or Ollama, and a proof",
    "chat": "speak to what a run has trained, at the terminal or in a pipe",
    "push": "upload what a run has trained, or an export of it, to the Hugging Face Hub",
}
TOOLS = ("report", "export", "chat", "push")
"""Those about a run that there is: they take no config, and read their own words."""
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""How a user says what a thread does while it waits for another; by default it spins, and takes the
core from the one that it waits for where other processes run."""
HELP = """usage: lit-sft COMMAND --config FILE [--any.option VALUE ...]

Supervised fine-tuning of chat models with QLoRA, on PyTorch Lightning.

commands:
{commands}

--ckpt_path last goes on from, or measures, the last checkpoint of the run's folder; best takes
the one that measured best, auto the last where there is one. Without it, fit starts anew, and the
others measure the base as it is.

Every option of a command, with its default: lit-sft COMMAND --help
The config that a command line makes:        lit-sft COMMAND ... --print_config
What Tab completes in bash, zsh or fish:     lit-sft --completion SHELL
The version:                                 lit-sft --version
"""


def main() -> None:
    """Run the command line; the exit status is 0, 1 for a failed run, 2 for a wrong input."""
    leave_working_folder()
    from lit_sft.signals import SIGNALS  # not before the path is in order

    arguments = sys.argv[1:]
    is_fit = arguments[:1] == ["fit"]
    if arguments[:1] != ["chat"]:  # there, Ctrl-C ends an answer
        SIGNALS.own_process("no step was taken, and the run is as it was" if is_fit else "stopped")
    if answer(arguments):
        return
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is imported
    from lit_sft.cli.notices import silence_known_notices

    silence_known_notices()  # some are said when a library is imported
    if arguments[0] == "inspect":  # it needs neither torch nor Lightning
        gc.disable()  # a sixth of its time; what it reads lives to the end, and has no cycles
        from lit_sft.inspect.command import run
    elif arguments[0] in TOOLS:
        run = importlib.import_module(f"lit_sft.cli.{arguments[0]}").run
    else:
        from lit_sft.cli.app import run

    sys.exit(run(arguments))


def leave_working_folder() -> None:
    """Take the working folder from the places where Python looks for modules first.

    `python -m` puts it there, and so does a `PYTHONPATH` that names it or ends with a colon: a file
    in it would stand in for a package. What a config names is found there nevertheless, see
    `lit_sft.cli.allowlist`.
    """
    try:
        here = os.getcwd()  # noqa: PTH109 (pathlib would be searched there, too)
    except FileNotFoundError:  # nothing lies in a folder that was removed
        return
    text = os.environ.get("PYTHONPATH")
    named = [os.path.realpath(path) for path in text.split(os.pathsep)] if text else []
    is_named = here in named
    searched = [path for path in sys.path[:1] if os.path.realpath(path) != here]
    searched += [path for path in sys.path[1:] if not is_named or os.path.realpath(path) != here]
    sys.path[:] = [path for path in searched if path]


def answer(arguments: list[str]) -> bool:
    """Answer before the imports that only a run needs, which take seconds; return whether it is so.

    What is asked may be help, or what is wrong with a name: that ends the process with status 2.
    """
    command = arguments[0] if arguments else "--help"
    option, _, shell = command.partition("=")
    if command in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {x:<10} {COMMANDS[x]}" for x in COMMANDS)), end="")
    elif command == "--version":
        import lit_sft

        print(f"lit-sft {lit_sft.__version__}")
    elif option == "--completion":
        from lit_sft.cli.completion import SHELLS, make_completion

        shell = shell or " ".join(arguments[1:])
        if shell not in SHELLS:
            _refuse(f"there is no completion for {shell!r}", shell, list(SHELLS))
        print(make_completion(shell, COMMANDS), end="")
    elif command in COMMANDS:
        from lit_sft.cli.help import print_help

        if not print_help(arguments, COMMANDS[command]):
            if command not in TOOLS:
                refuse_unknown_names(arguments)
            return False
    elif command.startswith("-"):  # a config, perhaps, and the command behind it
        later = next((n for n in (2, 1) if COMMANDS.keys() & arguments[n : n + 1]), None)
        if later:
            refuse_unknown_names(arguments[later:])
        return False
    else:
        _refuse(f"there is no command {command!r}", command, list(COMMANDS))
    return True


def refuse_unknown_names(arguments: list[str]) -> None:
    """End the process with status 2 and a line where a command line misspells a name."""
    from lit_sft.cli.names import require_known_names
    from lit_sft.errors import InputError

    try:
        require_known_names(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        print(f"every option: lit-sft {arguments[0]} --help", file=sys.stderr)
        sys.exit(2)


def _refuse(text: str, wrong: str, known: list[str]) -> None:
    from lit_sft.errors import suggest

    hint = suggest(wrong, known)
    print(f"error: {text}; use one of {', '.join(known)}.{hint}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
