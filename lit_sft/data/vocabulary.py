"""Whether a tokenizer goes with a base: it is the base's own, and each token in use has a row.

A base may have more rows than tokens, to fill up its embedding, and a tokenizer more tokens than
the base has rows, of which none may occur.
"""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from lit_sft.data.encode import encode_chat
from lit_sft.data.prompts import PROBE
from lit_sft.data.tokenizer import load_known_tokenizer
from lit_sft.errors import InputError, require
from lit_sft.paths import locate


def require_own_vocabulary(tokenizer: PreTrainedTokenizerBase, path: str, base: str) -> None:
    """Raise `InputError` if the tokenizer of a base is at hand, and gives a text other tokens.

    Tokens that were added to either vocabulary may differ: chat tokens take the places of reserved
    ones. Nothing is downloaded.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        path: Where it came from.
        base: A Hub id or folder.
    """
    if locate(path) == locate(base):
        return
    known = load_known_tokenizer(base)
    if known is None:
        return
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    learnt = {
        number: token
        for token, number in known.get_vocab().items()
        if number not in known.added_tokens_decoder and number in tokens
    }
    other = sorted(number for number, token in learnt.items() if tokens[number] != token)
    if other:
        raise InputError(
            f"data.tokenizer: {path!r} is not the tokenizer of {base!r}: {len(other):,} of "
            f"{len(learnt):,} tokens differ, such as {other[0]}, which is {tokens[other[0]]!r} "
            f"where the base has learnt {learnt[other[0]]!r}; leave data.tokenizer out for the "
            "base's own"
        )


def require_chat_embeddings(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> None:
    """Raise `InputError` if a base has no row for a token of the chat format, or to pad with.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        num_rows: Of the base's embedding.
    """
    try:
        written = encode_chat(tokenizer, PROBE).input_ids
    except InputError:  # the first row will tell, under its own name
        written = [0]
    require_embeddings(tokenizer, written, num_rows, "the chat template writes it")
    require_embeddings(tokenizer, [tokenizer.pad_token_id], num_rows, "rows are padded with it")


def require_embeddings(
    tokenizer: PreTrainedTokenizerBase, input_ids: Iterable[int], num_rows: int, where: str
) -> None:
    """Raise `InputError` if a base has no row for one of some tokens.

    Args:
        tokenizer: Whose tokens they are.
        input_ids: At least one.
        num_rows: Of the base's embedding.
        where: What to say of them, such as which row holds them.
    """
    highest = int(max(input_ids))
    require(
        highest < num_rows,
        f"the tokenizer has {len(tokenizer):,} tokens, but the base's embedding has {num_rows:,} "
        f"rows, none for {highest}, {tokenizer.convert_ids_to_tokens(highest)!r} ({where}); use "
        "the base's own tokenizer and a chat template of its tokens, or a base whose embedding was "
        "resized",
    )
