import pytest

from lit_sft import ChatTask, SFTDataModule
from lit_sft.data.encode import encode_chat
from lit_sft.data.encoded_rows import encode_rows
from lit_sft.data.row_policy import RowPolicy, encode_to_fit
from lit_sft.data.token_cache import hash_request, load_or_encode
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.types import IGNORE_INDEX, Message

SHORT: list[Message] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module", params=["one token a byte", "llama3"])
def tokenizer(request, tiny_tokenizer):
    if request.param == "llama3":
        return request.getfixturevalue("llama3_tokenizer")
    return load_tokenizer(str(tiny_tokenizer))


def chat(*contents: str, system: str = "Be brief.", **weights: int) -> list[Message]:
    """Lay turns out in order; `turn_3=0` gives the third message after the system's a weight."""
    messages: list = [{"role": "system", "content": system}]
    for number, content in enumerate(contents):
        role = "assistant" if number % 2 else "user"
        messages.append({"role": role, "content": content})
        if f"turn_{number}" in weights:
            messages[-1]["weight"] = weights[f"turn_{number}"]
    return messages


def fit(tokenizer, messages, max_length, policy):
    return encode_to_fit(tokenizer, [messages], ["row"], RowPolicy(max_length, policy))[0]


def read(tokenizer, ids) -> str:
    return tokenizer.decode([token for token in ids if token != IGNORE_INDEX])


LONG = " ".join(f"word{number}" for number in range(200)) + " end?"
TURNS = [
    chat(LONG, "It ends."),
    chat("🙂" * 300 + " end?", "It ends."),
    chat(LONG, "first", LONG, "It ends."),
    chat(LONG, LONG, LONG, "It ends.", turn_1=0),
    chat("<|eot_id|>" * 100 + " end?", "It ends."),
]


@pytest.mark.parametrize("messages", TURNS)
def test_a_prompt_loses_its_first_words(tokenizer, messages):
    whole = encode_chat(tokenizer, messages)
    limit = 120
    example, length, *_ = fit(tokenizer, messages, limit, "truncate_prompt")
    assert length == len(whole.input_ids) > limit
    assert limit - 25 <= len(example.input_ids) <= limit
    # What is learnt is what was learnt, and the turns with their control tokens all stand.
    assert read(tokenizer, example.labels) == read(tokenizer, whole.labels)
    text = read(tokenizer, example.input_ids)
    assert text.count("<|start_header_id|>") == len(messages)
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief."
    )
    assert text.endswith(
        "end?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIt ends.<|eot_id|>"
    )


def test_the_longest_turn_is_cut_and_only_as_far_as_it_must(llama3_tokenizer):
    messages = chat("What of old?", "first", LONG, "It ends.")
    whole = encode_chat(llama3_tokenizer, messages)
    example, *_ = fit(llama3_tokenizer, messages, len(whole.input_ids) - 10, "truncate_prompt")
    assert len(example.input_ids) >= len(whole.input_ids) - 12
    text = read(llama3_tokenizer, example.input_ids)
    assert "What of old?<|eot_id|>" in text
    assert "word199 end?<|eot_id|>" in text
    assert "word0" not in text


@pytest.mark.parametrize(
    "messages",
    [
        chat("q", LONG),
        chat("q", LONG, "q", "a"),
        chat("q", "a", system=LONG),
        chat("q" * 5, "a" * 25),
    ],
)
def test_an_answer_or_system_turn_that_does_not_fit_is_dropped(tokenizer, messages):
    without_question = [*messages[:1], {**messages[1], "content": ""}, *messages[2:]]
    limit = len(encode_chat(tokenizer, without_question).input_ids)
    assert fit(tokenizer, messages, limit, "truncate_prompt").example is None


@pytest.mark.parametrize("messages", [*TURNS, chat("q", "🙂" * 200), chat("q", LONG, "q", LONG)])
def test_a_cut_row_is_the_start_of_the_proven_one(tokenizer, messages):
    whole = encode_chat(tokenizer, messages)
    first = next(i for i, label in enumerate(whole.labels) if label != IGNORE_INDEX)
    for limit in (first + 1, first + 9, len(whole.input_ids) - 1):
        example, length, *_ = fit(tokenizer, messages, limit, "truncate")
        assert example == (whole.input_ids[:limit], whole.labels[:limit])
        assert length == len(whole.input_ids)
    # The cut answer does not end: its stop token is not there to be learnt.
    assert example.labels[-1] != tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert fit(tokenizer, messages, first, "truncate").example is None


ROWS = [(f"train row {i}", chat("q" * i, "a" * 40)) for i in range(0, 400, 40)]


@pytest.mark.parametrize(
    ("policy", "dropped", "truncated"),
    [
        ("drop", range(5, 10), []),
        ("truncate_prompt", [], range(5, 10)),
        ("truncate", range(6, 10), [5]),
    ],
)
def test_what_became_of_long_rows_is_counted_and_comes_back_from_the_cache(
    tiny_tokenizer, tmp_path, policy, dropped, truncated
):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    lengths = [len(encode_chat(tokenizer, messages).input_ids) for _, messages in ROWS]
    for _ in range(2):
        encoded, _ = load_or_encode(tokenizer, ROWS, RowPolicy(lengths[4], policy), tmp_path)
        assert encoded.dropped.tolist() == list(dropped)
        assert encoded.truncated.tolist() == list(truncated)
        assert encoded.find_unfit() == list(enumerate(lengths))[5:]
        assert len(encoded) == 10 - len(dropped)
        assert max(encoded.lengths()) == lengths[4]


def test_error_names_the_first_long_rows(tiny_tokenizer):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    limit = len(encode_chat(tokenizer, ROWS[3][1]).input_ids)
    reason = (
        rf"^6 rows over data\.max_length={limit} tokens: train row 160 \({limit + 40}\), .*"
        r"train row 320 \(\d+\), …; raise it, or set data\.on_overlength to"
    )
    with pytest.raises(InputError, match=reason):
        encode_rows(tokenizer, ROWS, RowPolicy(limit, "error"))
    assert len(encode_rows(tokenizer, ROWS, RowPolicy(600, "error"))) == 10


def test_each_policy_has_a_cache_of_its_own(tiny_tokenizer):
    tokenizer = load_tokenizer(str(tiny_tokenizer))
    policies = ("drop", "error", "truncate_prompt", "truncate")
    assert len({hash_request(tokenizer, ROWS, RowPolicy(100, policy)) for policy in policies}) == 4


class Rising(ChatTask):
    def rows(self, split):
        return [{"n": n} for n in range(0, 400, 40)]

    def messages(self, row):
        return chat("q" * row["n"], "a" * 40)


def test_the_data_module_names_long_rows_below_its_ledger(tiny_base, capsys):
    data = SFTDataModule(
        Rising(), tokenizer=str(tiny_base), max_length=200, on_overlength="truncate", val_rows=2
    )
    data.setup("fit")
    printed = capsys.readouterr().out.splitlines()
    assert printed[3].startswith("train: ")
    assert "rows over data.max_length=200 tokens: train row " in printed[3]
    ledger = data.prepared["train"].ledger
    assert ledger.truncated > 0
    assert printed[3].endswith(f"{ledger.dropped} dropped, {ledger.truncated} truncated")


def test_fifty_megabytes_are_left_out_without_a_look_at_their_tokens(llama3_tokenizer):
    huge = chat("word " * 10_000_000, "It ends.")
    dropped, kept = encode_to_fit(llama3_tokenizer, [huge, SHORT], ["a", "b"], RowPolicy(512))
    assert dropped.example is None
    assert 512 < dropped.length < 5_000_000, "the least that its characters make, not its tokens"
    assert kept.example == encode_chat(llama3_tokenizer, SHORT)
