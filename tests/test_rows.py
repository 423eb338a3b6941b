import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.core.types import Demo, Label, Pair, Problem
from fiducial.data import BadRow, Steps, open_rows, parse

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
USER, HELLO, BYE = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "assistant", "content": "Bye"},
)
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

SHAPES = [
    # demos
    ({"text": "All of it"}, "demos", [Demo("", "All of it")]),
    ({"prompt": "a", "completion": "b"}, "demos", [Demo("a", "b")]),
    ({"prompt": "a", "completion": "b", "weight": 2}, "demos", [Demo("a", "b", 2.0)]),
    ({"prompt": "a", "completion": "b", "weight": ""}, "demos", [Demo("a", "b")]),  # an empty cell of a CSV
    ({"messages": [USER, HELLO]}, "demos", [Demo("", [USER, HELLO])]),
    ({"messages": json.dumps([USER, HELLO])}, "demos", [Demo("", [USER, HELLO])]),  # as a CSV holds it
    ({"prompt": [USER], "completion": [HELLO]}, "demos", [Demo([USER], [HELLO])]),
    ({"prompt": [USER], "completion": "Hello"}, "demos", [Demo([USER], [HELLO])]),
    ({"prompt": "Hi", "completion": [HELLO]}, "demos", [Demo([USER], [HELLO])]),
    ({"prompt": "a", "text": None, "completion": "b", "messages": None}, "demos", [Demo("a", "b")]),  # parquet's nulls
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "demos", [Demo("a", "b")]),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "rating": -1}, "demos", [Demo("a", "c")]),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "edited": "d"}, "demos", [Demo("a", "d")]),
    # pairs
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs", [Pair("a", "b", "c")]),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5, "source": "human", "weight": "2"},
        "pairs",
        [Pair("a", "b", "c", 0.5, 2.0, "human")],
    ),
    ({"prompt": "Hi", "chosen": [USER, HELLO], "rejected": [USER, BYE]}, "pairs", [Pair([USER], [HELLO], [BYE])]),
    ({"prompt": [USER], "chosen": "Hello", "rejected": "Bye"}, "pairs", [Pair([USER], [HELLO], [BYE])]),
    ({"chosen": [USER, HELLO], "rejected": [USER, BYE]}, "pairs", [Pair([USER], [HELLO], [BYE])]),
    # one dialogue goes on: the prompt still ends where an assistant's turn follows on both sides
    (
        {"chosen": [USER, HELLO], "rejected": [USER, HELLO, USER, BYE]},
        "pairs",
        [Pair([USER], [HELLO], [HELLO, USER, BYE])],
    ),
    (
        {"chosen": f"{HUMAN} x{ASSISTANT} y", "rejected": f"{HUMAN} x{ASSISTANT} z"},
        "pairs",
        [Pair(f"{HUMAN} x{ASSISTANT}", " y", " z")],
    ),
    # the completions begin alike, and hold a turn of their own
    (
        {"chosen": f"{HUMAN} x{ASSISTANT} yes", "rejected": f"{HUMAN} x{ASSISTANT} yes{HUMAN} and{ASSISTANT} no"},
        "pairs",
        [Pair(f"{HUMAN} x{ASSISTANT}", " yes", f" yes{HUMAN} and{ASSISTANT} no")],
    ),
    # without turns: before the last common white space, so that no word is cut
    ({"chosen": "The cat sat", "rejected": "The cat sang"}, "pairs", [Pair("The cat", " sat", " sang")]),
    ({"chosen": "Q: x\nA: y", "rejected": "Q: x\nA: z"}, "pairs", [Pair("Q: x\nA:", " y", " z")]),
    # ratings: above 0 a is better, below 0 b
    ({"prompt": "a", "response_a": "b", "response_b": "c", "rating": 2}, "pairs", [Pair("a", "b", "c", rating=2.0)]),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "rating": "-2"}, "pairs", [Pair("a", "c", "b", rating=2.0)]),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "rating": 1}, "pairs", [Pair("a", "b", "c", rating=1.0)]),
    (
        {"prompt": "a", "response_a": "b", "response_b": "c", "rating": -2, "margin": 1},
        "pairs",
        [Pair("a", "c", "b", 1.0, rating=2.0)],
    ),
    # soft preferences: weights p and 1 - p, the preferred side first, the margin turned round with the pair
    (
        {"prompt": "a", "response_a": "b", "response_b": "c", "pref_prob": 0.25, "margin": 1},
        "pairs",
        [Pair("a", "c", "b", 1.0, 0.75, pref_prob=0.75), Pair("a", "b", "c", -1.0, 0.25, pref_prob=0.25)],
    ),
    (
        {"prompt": "a", "response_a": "b", "response_b": "c", "pref_prob": 0.6},
        "pairs",
        [Pair("a", "b", "c", 0.0, 0.6, pref_prob=0.6), Pair("a", "c", "b", 0.0, 0.4, pref_prob=0.4)],
    ),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "pref_prob": 0.75, "weight": 2},
        "pairs",
        [Pair("a", "b", "c", 0.0, 1.5, pref_prob=0.75), Pair("a", "c", "b", 0.0, 0.5, pref_prob=0.25)],
    ),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "pref_prob": 1}, "pairs", [Pair("a", "b", "c")]),
    # edited > chosen > rejected: three pairs share the weight 3
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "edited": "d", "weight": 3},
        "pairs",
        [Pair("a", "b", "c"), Pair("a", "d", "b"), Pair("a", "d", "c")],
    ),
    # labels
    ({"prompt": "a", "completion": "b", "label": True}, "labels", [Label("a", "b", True)]),
    ({"prompt": "a", "completion": "b", "label": "False"}, "labels", [Label("a", "b", False)]),
    ({"prompt": "a", "completion": "b", "label": 0, "weight": 0.5}, "labels", [Label("a", "b", False, 0.5)]),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "labels", [Label("a", "b", True), Label("a", "c", False)]),
    # problems
    ({"prompt": "a", "answer": 4, "level": "easy"}, "problems", [Problem("a", {"answer": 4, "level": "easy"})]),
    ({"prompt": [USER], "tests": "assert 1"}, "problems", [Problem([USER], {"tests": "assert 1"})]),
    (
        {"chosen": f"{HUMAN} x{ASSISTANT} y", "rejected": f"{HUMAN} x{ASSISTANT} z", "id": 7},
        "problems",
        [
            Problem(
                f"{HUMAN} x{ASSISTANT}",
                {"chosen": f"{HUMAN} x{ASSISTANT} y", "rejected": f"{HUMAN} x{ASSISTANT} z", "id": 7},
            )
        ],
    ),
    # steps
    (
        {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]},
        "steps",
        [Steps("a", ["b", "c"], [1.0, 0.0])],
    ),
    ({"prompt": "a", "completions": '["b"]', "labels": "[0.25]"}, "steps", [Steps("a", ["b"], [0.25])]),
]


@pytest.mark.parametrize("row, kind, expected", SHAPES)
def test_shapes(row, kind, expected):
    assert parse(row, kind) == expected


BAD = [
    ({"prompt": "a"}, "demos", "missing field", "demos need prompt and completion, .*; the row has prompt"),
    ({"completion": "a"}, "demos", "missing field", "'prompt' is missing; the row has completion"),
    ({"chosen": "b"}, "pairs", "missing field", "'rejected' is missing"),
    ({"prompt": "a", "chosen": "b", "rejected": None}, "pairs", "missing field", "'rejected' is missing"),
    ({"prompt": "a", "response_a": "b", "response_b": "c"}, "pairs", "missing field", "'rating' is missing"),
    ({"prompt": "a", "completion": "b"}, "labels", "missing field", "labels need .*the row has prompt, completion"),
    ({"answer": "4"}, "problems", "missing field", "problems need a prompt"),
    ({}, "demos", "missing field", "the row has no fields"),
    ({"prompt": "a", "completion": ""}, "demos", "empty field", "'completion' is empty"),
    ({"prompt": "a", "completion": " \n"}, "demos", "empty field", "'completion' is empty"),
    ({"prompt": "", "completion": "b"}, "demos", "empty field", "'prompt' is empty"),
    ({"text": ""}, "demos", "empty field", "'text' is empty"),
    ({"messages": []}, "demos", "empty field", "'messages' is empty"),
    ({"prompt": "a", "answer": ""}, "problems", "empty field", "'answer' is empty"),
    ({"prompt": "a", "completions": [], "labels": []}, "steps", "empty field", "'completions' is empty"),
    (
        {"chosen": f"{HUMAN} x{ASSISTANT} ", "rejected": f"{HUMAN} x{ASSISTANT} z"},
        "pairs",
        "empty field",
        "nothing follows the common prompt",
    ),
    ({"prompt": 5, "completion": "b"}, "demos", "wrong type", r"'prompt' must be text; it is 5 \(int\)"),
    ({"text": ["a"]}, "demos", "wrong type", r"'text' must be text; it is \['a'\] \(list\)"),
    ({"messages": "Hi there"}, "demos", "wrong type", "'messages' must be a list; it is the text 'Hi there'"),
    ({"messages": {"role": "user"}}, "demos", "wrong type", "'messages' must be a list"),
    ({"messages": ["Hi"]}, "demos", "wrong type", "'messages', message 1 must be an object with role and content"),
    ({"messages": [USER, {"role": "bot", "content": "x"}]}, "demos", "wrong type", "message 2 has the role 'bot'"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "demos", "wrong type", "message 2, content must be"),
    (
        {"messages": [USER, {**HELLO, "tool_calls": [{"name": "f"}]}]},
        "demos",
        "wrong type",
        "message 2 calls tools",
    ),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, "demos", "empty field", "message 2, content is empty"),
    ({"messages": [USER]}, "demos", "no assistant turn", "holds no assistant's turn"),
    ({"prompt": [USER], "completion": [USER]}, "demos", "no assistant turn", "must begin with the assistant"),
    ({"prompt": [USER, HELLO], "completion": "b"}, "demos", "wrong type", "'prompt' ends with the assistant's turn"),
    ({"prompt": [USER, HELLO]}, "problems", "wrong type", "'prompt' ends with the assistant's turn"),
    ({"prompt": "a", "completion": "\ud83d"}, "demos", "broken text", "half a surrogate pair"),
    ({"prompt": "a", "completion": "b", "weight": "heavy"}, "demos", "wrong type", "'weight' must be a number"),
    ({"prompt": "a", "completion": "b", "weight": 0}, "demos", "out of range", "'weight' is 0"),
    ({"prompt": "a", "completion": "b", "weight": -1}, "demos", "out of range", "'weight' must lie in"),
    ({"prompt": "a", "completion": "b", "label": "maybe"}, "labels", "wrong type", "'label' must be true or false"),
    ({"prompt": "a", "completion": "b", "label": -1}, "labels", "wrong type", "'label' must be true or false"),
    ({"prompt": "a", "completion": "b", "label": [1]}, "labels", "wrong type", "'label' must be true or false"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "pairs", "equal sides", "'chosen' and 'rejected' are the same"),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "edited": "c"},
        "pairs",
        "equal sides",
        "'rejected' and 'edited' are the same",
    ),
    ({"prompt": "a", "response_a": "b", "response_b": "c", "rating": 0}, "pairs", "tie", "neither is better"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "pref_prob": 1.5}, "pairs", "out of range", r"in \[0, 1\]"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "nan"}, "pairs", "wrong type", "'margin' must be a num"),
    ({"chosen": "yes", "rejected": "no"}, "pairs", "no common prompt", "add a field 'prompt'"),
    (
        {"chosen": f"{HUMAN} x{ASSISTANT} y", "rejected": f"{HUMAN} w{ASSISTANT} y"},
        "pairs",
        "no common prompt",
        "do not begin with the same prompt",
    ),
    ({"chosen": [USER, HELLO], "rejected": [BYE]}, "pairs", "no common prompt", "share no turns"),
    ({"chosen": [USER, HELLO], "rejected": "Hi"}, "pairs", "wrong type", "one side is text and another messages"),
    ({"prompt": "a", "completions": ["b"], "labels": [1, 0]}, "steps", "unequal lists", "1 steps .* 2 labels"),
    ({"prompt": "a", "completions": ["b"], "labels": [2]}, "steps", "out of range", "label 1 must lie in"),
]


@pytest.mark.parametrize("row, kind, reason, detail", BAD)
def test_bad_rows_say_what_is_wrong(row, kind, reason, detail):
    with pytest.raises(BadRow, match=detail) as caught:
        parse(row, kind)
    assert caught.value.reason == reason
    assert str(caught.value) == f"{reason}: {caught.value.detail}"


def test_renaming():
    gsm8k = {"question": "2 + 2?", "answer": "It is #### 4"}
    names = {"prompt": "question", "completion": "answer"}
    assert parse(gsm8k, "demos", names, index=3) == [Demo("2 + 2?", "It is #### 4", index=3)]
    assert parse(gsm8k, "problems", {"prompt": "question"}) == [Problem("2 + 2?", {"answer": "It is #### 4"})]
    # a renamed shape goes before those the row also has, and a field of the standard name gives way
    row = {"prompt": "old", "messages": [USER, HELLO], "body": "the text"}
    assert parse(row, "demos", {"text": "body"}) == [Demo("", "the text")]
    assert parse(row, "problems", {"prompt": "body"})[0].prompt == "the text"
    assert parse(gsm8k, "demos", {**names, "text": "text"}) == parse(gsm8k, "demos", names)  # its own name: no change
    with pytest.raises(BadRow, match=r"'body' \(completion\) is missing; the row has question, answer"):
        parse(gsm8k, "demos", {"prompt": "question", "completion": "body"})
    with pytest.raises(BadRow, match=r"'question' \(prompt\) is empty"):
        parse({"question": "", "answer": "b"}, "demos", names)
    with pytest.raises(ValueError, match="there is no field 'prompts' to rename 'question' to; there are prompt, "):
        parse(gsm8k, "demos", {"prompts": "question"})
    with pytest.raises(ValueError, match="not as 'chats'"):
        parse(gsm8k, "chats")  # pyright: ignore


WORDS = st.text("ab ", min_size=1, max_size=6).filter(str.strip)


@given(prompt=WORDS, a=WORDS, b=WORDS, rating=st.sampled_from([-2, -1, 1, 2]), p=st.floats(0, 1))
def test_swapping_the_responses_and_the_judgement_changes_nothing(prompt, a, b, rating, p):
    if a == b:
        return
    one = {"prompt": prompt, "response_a": a, "response_b": b}
    two = {"prompt": prompt, "response_a": b, "response_b": a}
    assert parse({**one, "rating": rating}, "pairs") == parse({**two, "rating": -rating}, "pairs")

    def soft(row, p):
        return {(x.chosen, x.rejected): x.weight for x in parse({**row, "pref_prob": p}, "pairs")}

    left, right = soft(one, p), soft(two, 1 - p)
    assert sum(left.values()) == pytest.approx(1)
    assert all(left.get(pair, 0) == pytest.approx(right.get(pair, 0)) for pair in left | right)
    assert left.get((a, b), 0) == pytest.approx(p)


TURN = st.text(st.sampled_from("ab \n:"), max_size=5)


@settings(max_examples=60)
@given(turns=st.lists(st.tuples(TURN, TURN), min_size=1, max_size=3), chosen=TURN, rejected=TURN)
def test_dialogues_split_at_the_last_common_assistant(turns, chosen, rejected):
    said = "".join(f"{HUMAN} {h}{ASSISTANT} {a}" for h, a in turns[:-1]) + f"{HUMAN} {turns[-1][0]}{ASSISTANT}"
    row = {"chosen": f"{said} {chosen}", "rejected": f"{said} {rejected}"}
    if chosen == rejected or not chosen.strip() or not rejected.strip():
        with pytest.raises(BadRow):
            parse(row, "pairs")
    else:
        assert parse(row, "pairs") == [Pair(said, f" {chosen}", f" {rejected}")]


def read(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"shared/data/{name} is not beside the checkout")
    return open_rows(path)


def test_every_hh_row_is_used_or_counted():
    source, reasons, used = read("hh_harmless_pairs.jsonl"), Counter(), 0
    for i, row in enumerate(source):
        try:
            (pair,) = parse(row, "pairs", index=i)
        except BadRow as bad:
            reasons[bad.reason] += 1
            assert not all(row[side].rsplit(ASSISTANT, 1)[1].strip() for side in ("chosen", "rejected"))
            continue
        used += 1
        assert pair.prompt + pair.chosen == row["chosen"] and pair.prompt + pair.rejected == row["rejected"]
        assert pair.prompt.startswith(HUMAN) and pair.prompt.endswith(ASSISTANT)
        assert HUMAN not in pair.chosen + pair.rejected  # in these rows only the last turn differs
        assert pair.index == i
    assert (used, reasons) == (1796, Counter({"empty field": 4}))  # 4 sides hold nothing after the last "Assistant:"


def test_gsm8k_and_code_rows():
    source = read("gsm8k_train.jsonl")
    demos = [parse(row, "demos", {"prompt": "question", "completion": "answer"}, i)[0] for i, row in enumerate(source)]
    assert len(demos) == 6000 and all("####" in demo.completion for demo in demos)
    assert demos[0].prompt.startswith("Natalia sold clips") and demos[-1].index == 5999
    problem = parse(source[0], "problems", {"prompt": "question"})[0]
    assert problem.fields == {"answer": source[0]["answer"]}
    code = parse(read("humaneval_first60.jsonl")[0], "problems", {"tests": "test"})[0]
    assert set(code.fields) == {"task_id", "entry_point", "canonical_solution", "tests"}
