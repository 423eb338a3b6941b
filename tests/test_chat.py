"""What trains: token by token against templates written out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.core.types import Encoded
from fiducial.models.chat import encode, encode_prompt
from fiducial.models.tokenizer import train_tokenizer

TEXT = "The cat sat on the mat. Assistant: yes\nUser: no <|im_start|><|im_end|>\n\n"
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' %}\
{% generation %}{{ message.content }}<eos>{% endgeneration %}{% else %}{{ message.content }}<eos>{% endif %}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
QUESTION = {"role": "user", "content": "The cat?"}
ANSWER = {"role": "assistant", "content": "sat on"}


def fresh(template: str | None = None):
    tokenizer = train_tokenizer([TEXT] * 3, "bpe", vocab_size=320)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


TOKENIZER = fresh()
MARKED = fresh(CHATML)
UNMARKED = fresh(CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", ""))


def show(tokenizer, encoded: Encoded) -> list[tuple[str, bool]]:
    """Runs of equally masked tokens as text."""
    runs: list[tuple[list[int], bool]] = []
    for token, trains in zip(encoded.token_ids, encoded.mask, strict=True):
        if runs and runs[-1][1] == trains:
            runs[-1][0].append(token)
        else:
            runs.append(([token], trains))
    return [(tokenizer.decode(ids), trains) for ids, trains in runs]


def test_text_after_text():
    assert show(TOKENIZER, encode(TOKENIZER, "The cat", " sat")) == [("<bos>The cat", False), (" sat<eos>", True)]
    assert encode(TOKENIZER, "The cat", "").token_ids[-1] == TOKENIZER.eos_token_id


def test_plain_text_trains_whole():
    assert show(TOKENIZER, encode(TOKENIZER, "", "The cat")) == [("<bos>", False), ("The cat<eos>", True)]


def test_no_token_spans_prompt_and_completion():
    # "cat" is one token; cut in two it is what a sampler that was given "c" would have had to write.
    assert len(TOKENIZER.encode("cat", add_special_tokens=False)) == 1
    encoded = encode(TOKENIZER, "c", "at")
    assert encoded.token_ids == [*encode_prompt(TOKENIZER, "c"), *TOKENIZER.encode("at", add_special_tokens=False), 2]
    assert show(TOKENIZER, encoded) == [("<bos>c", False), ("at<eos>", True)]


@given(st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=60, deadline=None)
def test_training_tokens_follow_the_sampling_prompt(prompt, completion):
    for asked in (prompt, [{"role": "user", "content": prompt}]):
        given_ids, encoded = encode_prompt(TOKENIZER, asked), encode(TOKENIZER, asked, completion)
        written = encoded.token_ids[len(given_ids) :]
        assert encoded.token_ids[: len(given_ids)] == given_ids
        assert encoded.mask == [False] * len(given_ids) + [True] * len(written)
        assert written == [*TOKENIZER.encode(completion, add_special_tokens=False), TOKENIZER.eos_token_id]


def test_prompt_may_train_too():
    assert show(TOKENIZER, encode(TOKENIZER, "The cat", " sat", train_prompt=True)) == [
        ("<bos>", False),
        ("The cat sat<eos>", True),
    ]
    assert all(encode(MARKED, [QUESTION], [ANSWER], train_prompt=True).mask)


def test_default_template_written_out():
    system = {"role": "system", "content": "no"}
    assert show(TOKENIZER, encode(TOKENIZER, [system, QUESTION], [ANSWER])) == [
        ("<bos><|system|>no<|user|>The cat?<|assistant|>", False),
        ("sat on<eos>", True),
    ]
    with pytest.raises(ValueError, match="refuses the messages: the roles are system, .* a message has tool"):
        encode_prompt(TOKENIZER, [{"role": "tool", "content": "4"}])


@pytest.mark.parametrize("tokenizer", [MARKED, UNMARKED], ids=["marked", "unmarked"])
def test_chat_after_a_prompt(tokenizer):
    # The row ends where a sampler stops: before the line break that the template writes after the stop token.
    for completion in ([ANSWER], "sat on"):
        assert show(tokenizer, encode(tokenizer, [QUESTION], completion)) == [
            ("<|im_start|>user\nThe cat?<eos>\n<|im_start|>assistant\n", False),
            ("sat on<eos>", True),
        ]


def test_every_assistant_turn_of_a_conversation_trains():
    messages = [QUESTION, ANSWER, {"role": "user", "content": "no"}, {"role": "assistant", "content": "\nyes"}]
    for prompt in ([], ""):
        assert show(MARKED, encode(MARKED, prompt, messages)) == [
            ("<|im_start|>user\nThe cat?<eos>\n<|im_start|>assistant\n", False),
            ("sat on<eos>", True),
            ("\n<|im_start|>user\nno<eos>\n<|im_start|>assistant\n", False),
            ("\nyes<eos>", True),  # "\n\n" could have become one token, across the border
        ]
    # An assistant's turn in the prompt is context.
    later = encode(MARKED, messages[:1], messages[1:])
    assert show(MARKED, later) == show(MARKED, encode(MARKED, [], messages))
    assert [t for t, trains in show(MARKED, encode(MARKED, messages[:3], messages[3:])) if trains] == ["\nyes<eos>"]


def test_what_cannot_train_rightly_is_refused():
    conversation = [QUESTION, ANSWER]
    with pytest.raises(ValueError, match=r"put {% generation %} and {% endgeneration %}"):
        encode(UNMARKED, [], conversation)
    with pytest.raises(ValueError, match="no assistant turn"):
        encode(MARKED, [], [QUESTION])
    with pytest.raises(ValueError, match="prompt is text but its completion is messages"):
        encode(MARKED, "The cat?", [ANSWER])
    with pytest.raises(ValueError, match="last message is the assistant's"):
        encode_prompt(MARKED, conversation)
    bare = fresh()
    bare.chat_template = None
    for call in (lambda: encode_prompt(bare, [QUESTION]), lambda: encode(bare, [], conversation)):
        with pytest.raises(ValueError, match="rows are chat messages, but the model's tokenizer has no chat template"):
            call()


def test_templates_that_would_train_something_else_are_refused():
    no_stop = fresh(CHATML.replace("<eos>", "<|im_end|>"))
    with pytest.raises(ValueError, match="does not end the assistant's turn with the stop token '<eos>'"):
        encode(no_stop, [QUESTION], "sat on")
    outside = fresh(CHATML.replace("<eos>{% endgeneration %}", "{% endgeneration %}<eos>"))
    with pytest.raises(ValueError, match="stop token '<eos>'"):
        encode(outside, [], [QUESTION, ANSWER])
    numbered = fresh("{{ messages | length }}" + CHATML)
    with pytest.raises(ValueError, match="writes the prompt differently once an answer follows"):
        encode(numbered, [QUESTION], "sat on")
    cut = fresh(CHATML.replace("{% generation %}{{ message.content }}", "{% generation %}{{ message.content[:3] }}"))
    with pytest.raises(ValueError, match="trains 'sat' where the assistant's turn is 'saton'"):
        encode(cut, [], [QUESTION, ANSWER])


def test_real_dialogues_keep_their_turns():
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh_harmless_pairs.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the checkout")
    for line in path.read_text().splitlines()[:40]:
        parts = json.loads(line)["chosen"].split("\n\n")
        turns: list[dict[str, str]] = []
        for part in parts:
            role, mark, text = part.partition(": ")
            if mark and role in ("Human", "Assistant"):
                turns.append({"role": {"Human": "user", "Assistant": "assistant"}[role], "content": text})
            elif turns:
                turns[-1]["content"] += "\n\n" + part
        trained = [text for text, trains in show(TOKENIZER, encode(TOKENIZER, [], turns)) if trains]
        assert trained == [turn["content"] + "<eos>" for turn in turns if turn["role"] == "assistant"]
