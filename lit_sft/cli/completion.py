"""What a shell completes: a script of the commands, their options and the words that those take."""

from collections.abc import Iterator, Mapping

from lit_sft.cli.sections import TOOLS, Options
from lit_sft.cli.signatures import find_choices

SHELLS = ("bash", "zsh", "fish")
BASH = """\
_lit_sft() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} option=${{COMP_WORDS[COMP_CWORD-1]}} offered=
  [[ $word == "=" ]] && word=
  [[ $option == "=" ]] && option=${{COMP_WORDS[COMP_CWORD-2]}}
  if [[ $COMP_CWORD == 1 ]]; then
    offered="{commands} --help --version --completion"
  elif [[ $word == -* ]]; then
    case ${{COMP_WORDS[1]}} in
{options}
    esac
  else
    case $option in
{words}
    esac
  fi
  COMPREPLY=($(compgen -W "$offered" -- "$word"))
}}
complete -o default -F _lit_sft lit-sft
"""


def make_completion(shell: str, commands: Mapping[str, str]) -> str:
    """Return the script that lets a shell complete a command line.

    Args:
        shell: One of `SHELLS`.
        commands: What each command does, by its name.
    """
    taken = {command: _list_words(command) for command in commands}
    if shell == "fish":
        return "\n".join(_write_fish(commands, taken)) + "\n"
    options = [f'      {x}) offered="{" ".join(f"--{o}" for o in taken[x])}" ;;' for x in taken]
    words = {o: " ".join(w) for known in taken.values() for o, w in known.items() if w}
    script = BASH.format(
        commands=" ".join(commands),
        options="\n".join(options),
        words="\n".join(f'      --{option}) offered="{w}" ;;' for option, w in words.items()),
    )
    return script if shell == "bash" else f"autoload -Uz bashcompinit && bashcompinit\n{script}"


def _list_words(command: str) -> dict[str, list[str]]:
    """Return the options of a command, and the words that each takes where it takes no others."""
    options = Options(command)
    helps: dict[str, list[str]] = {f"{section}.help": [] for section in options.sections}
    found = {name: find_choices(parameter) or [] for name, parameter in options.list_all()}
    own: dict[str, list[str]] = {"help": []}
    return found | helps | own | ({} if command in TOOLS else {"print_config": []})


def _write_fish(
    commands: Mapping[str, str], taken: Mapping[str, Mapping[str, list[str]]]
) -> Iterator[str]:
    for command, about in commands.items():
        yield f"complete -c lit-sft -n __fish_use_subcommand -a {command} -d '{about}'"
        for option, words in taken[command].items():
            takes = f" -x -a '{' '.join(words)}'" if words else ""
            where = f"-n '__fish_seen_subcommand_from {command}'"
            yield f"complete -c lit-sft {where} -l {option}{takes}"
