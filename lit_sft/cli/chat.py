"""`lit-sft chat`: speak to what a run has trained, through the template of its training."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from threading import Event
from types import FrameType
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from lit_sft.cli.failures import explain
from lit_sft.data.encode import encode_prompt
from lit_sft.data.prompts import decode_answer
from lit_sft.errors import InputError, require
from lit_sft.model.trained import Trained, find_trained, load_source
from lit_sft.types import Message

QUIT, ANEW = "/quit", "/new"
HINT = f"{QUIT} or Ctrl-D ends, {ANEW} starts anew, Ctrl-C stops an answer"
INTERRUPTED = 130
"""The exit status of a command that Ctrl-C has ended, as shells have it."""
CONTROL = {code: None for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
"""Characters with which a text could move a terminal's cursor, or worse."""


def run(arguments: Sequence[str]) -> int:
    """Run `lit-sft chat`, and return its exit status: 2 for a wrong input, 130 for Ctrl-C.

    Args:
        arguments: Those after the program's name, `chat` included.
    """
    options = make_parser().parse_args(list(arguments[1:]))
    try:
        source = find_trained(options.run, options.base)
        require_limits(options)
        if options.prompt is None and sys.stdin.isatty():
            print(f"loading {source.base} with {source.adapter}", file=sys.stderr, flush=True)
        speaker = Speaker(load_source(source), options)
        return speak(speaker, options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # such as of `| head`
        return 0
    except Exception as error:
        ending = explain(error)
        if ending is None:
            raise
        status, text = ending
        print(text, file=sys.stderr)
        return status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `lit-sft chat`."""
    parser = argparse.ArgumentParser(
        prog="lit-sft chat",
        description="Speak to what a run has trained. " + HINT + ".",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN_OR_ADAPTER", help="A run's folder, or an adapter's.")
    parser.add_argument("--prompt", help="Print the answer to this text alone; - reads stdin.")
    parser.add_argument("--system", help="A system message before the conversation.")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token; 1 draws."
    )
    parser.add_argument("--max_new_tokens", type=int, default=512, help="Of an answer, at most.")
    parser.add_argument("--base", help="The base, if it is not where the run has found it.")
    return parser


def require_limits(options: argparse.Namespace) -> None:
    """Raise `InputError` for a limit that no answer can keep."""
    temperature, limit = options.temperature, options.max_new_tokens
    require(0 <= temperature < float("inf"), f"--temperature must be 0 or more, got {temperature}")
    require(limit > 0, f"--max_new_tokens must be positive, got {limit}")
    for name in ("prompt", "system"):
        text = getattr(options, name)
        require(text is None or bool(text.strip()), f"--{name} is empty")


class Speaker:
    """A model, and a conversation with it.

    Args:
        trained: As `load_source` returns it.
        options: Of the command line.
    """

    def __init__(self, trained: Trained, options: argparse.Namespace) -> None:
        self._trained, self._limit = trained, options.max_new_tokens
        self._opening: list[Message] = []
        if options.system:
            self._opening = [{"role": "system", "content": options.system}]
        self._said = list(self._opening)
        self._stopped, self._answers = Event(), False
        drawn: dict[str, Any] = {"do_sample": False}
        if options.temperature:
            drawn = {"do_sample": True, "temperature": options.temperature, "top_k": 0}
        make: Any = GenerationConfig
        # The base may ask for a way of drawing of its own: it is not what was measured.
        trained.model.base_model.model.generation_config = make(  # type: ignore[union-attr]
            eos_token_id=trained.stop_ids, pad_token_id=trained.tokenizer.pad_token_id, **drawn
        )

    def forget(self) -> None:
        """Start the conversation anew."""
        self._said = list(self._opening)

    @torch.inference_mode()
    def answer(self, text: str) -> bool:
        """Print the answer to a text as it comes; return whether it came to its end.

        What the text spells is text, control tokens too. An answer that was stopped is kept as far
        as it came.

        Raises:
            InputError: If the template refuses it, or it is too long; it is not kept then.
        """
        trained, turn = self._trained, Message(role="user", content=text)
        prompt = encode_prompt(trained.tokenizer, [*self._said, turn])
        limit = min(self._limit, _count_left(trained, len(prompt)))
        tokens = torch.tensor([prompt], device=trained.model.device)
        generate: Any = trained.model.generate
        with self._stopping(), trained.autocast(), torch.compiler.set_stance("force_eager"):
            ids = generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=limit,
                use_cache=True,
                streamer=Printer(trained.tokenizer, trained.stop_ids),
                stopping_criteria=[self._is_stopped],
            )[0, len(prompt) :].tolist()
        ended = bool(ids) and ids[-1] in trained.stop_ids
        said = decode_answer(trained.tokenizer, ids[:-1] if ended else ids)
        if said:  # no template writes an empty answer
            self._said += [turn, Message(role="assistant", content=said)]
        return ended

    @property
    def was_stopped(self) -> bool:
        """Whether Ctrl-C has ended the last answer."""
        return self._stopped.is_set()

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Let Ctrl-C end the answer, between two of its tokens."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopped.set()

        self._stopped.clear()
        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _is_stopped(self, input_ids: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        """Return bool `[rows]`, as transformers asks for."""
        return torch.full((len(input_ids),), self.was_stopped, device=input_ids.device)


class Printer(TextStreamer):
    """Print an answer as it comes, to the letter, without the token that ends it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> None:
        written = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        begin: Any = super().__init__
        begin(tokenizer, skip_prompt=True, **written)
        self._stop_ids, self._is_terminal = set(stop_ids), sys.stdout.isatty()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, int64 of shape `[batch, tokens]`, then a token at a time, `[batch]`."""
        is_prompt: bool = self.next_tokens_are_prompt
        if is_prompt or value.item() not in self._stop_ids:
            super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what has become certain; what could command a terminal is left out there."""
        shown = text.translate(CONTROL) if self._is_terminal else text
        print(shown, end="\n" if stream_end else "", flush=True)


def speak(speaker: Speaker, options: argparse.Namespace) -> int:
    """Answer one prompt, each line of a pipe, or who sits at the terminal; return the status."""
    if options.prompt is not None:
        text = sys.stdin.read().strip() if options.prompt == "-" else options.prompt
        require(bool(text), "--prompt -: there is nothing on stdin")
        speaker.answer(text)
        return INTERRUPTED if speaker.was_stopped else 0
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(HINT, file=sys.stderr)
    while (text := _read_line(is_terminal)) is not None:
        if text == QUIT:
            break
        if text == ANEW:
            speaker.forget()
        elif text:
            _answer_or_tell(speaker, text, is_terminal)
            if speaker.was_stopped and not is_terminal:
                return INTERRUPTED
    return 0


def _read_line(is_terminal: bool) -> str | None:
    """Return what was typed, "" for a line that Ctrl-C has left, None at the end."""
    try:
        return input("> " if is_terminal else "").strip()
    except EOFError:
        if is_terminal:
            print()
        return None
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        print()
        return ""


def _answer_or_tell(speaker: Speaker, text: str, is_terminal: bool) -> None:
    try:
        ended = speaker.answer(text)
    except InputError as error:
        if not is_terminal:
            raise
        print(f"error: {error}", file=sys.stderr)
        return
    if not ended and is_terminal:
        why = "stopped" if speaker.was_stopped else "--max_new_tokens reached"
        print(f"[{why}]", file=sys.stderr)


def _count_left(trained: Trained, used: int) -> int:
    """Return how many tokens an answer may have behind a prompt.

    Raises:
        InputError: If there is no room for any.
    """
    config = trained.model.config.get_text_config()
    room = getattr(config, "max_position_embeddings", None) or sys.maxsize
    require(
        used < room,
        f"the conversation has {used:,} tokens, and the model reads {room:,}; {ANEW} starts anew",
    )
    return int(room - used)
