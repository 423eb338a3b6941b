import dataclasses
import json
import tracemalloc
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiducial.core.types import Demo, Encoded, Pair, Problem
from fiducial.data import BadRow, Dataset, ListRows, Quantiles, colour_sample, open_rows

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
STOP = 0


def encode_text(prompt: Any, completion: Any, stop=True):
    """One token a character; the completion trains, and a stop token after it."""
    prompt, completion = [ord(c) for c in prompt], [ord(c) for c in completion] + [STOP] * stop
    return Encoded(prompt + completion, [False] * len(prompt) + [True] * len(completion))


def encode(example: Any) -> list[Encoded]:
    match example:
        case Pair():
            return [encode_text(example.prompt, side) for side in (example.chosen, example.rejected)]
        case Problem():
            return [encode_text(example.prompt, "", stop=False)]
        case _:
            return [encode_text(example.prompt, example.completion)]


def demos(*completions, prompt="ab"):
    return ListRows([{"prompt": prompt, "completion": text} for text in completions], "mine")


def test_rows_are_counted_measured_and_read_on_demand():
    source = demos("x", "", "xyz", "xy")
    done = []
    data = Dataset(
        source, "demos", encode, max_length=99, max_bad=0.25, stop_id=STOP, progress=lambda i, n: done.append((i, n))
    )
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(data) == 3
    assert [item.example for item in data] == [
        Demo("ab", "x", index=0),
        Demo("ab", "xyz", index=2),
        Demo("ab", "xy", index=3),
    ]
    assert data[1].encoded == [Encoded([97, 98, 120, 121, 122, 0], [False, False, True, True, True, True])]
    assert data.where(1) == "mine, row 3"
    assert data.lengths.tolist() == [4, 6, 5]  # 2 of the prompt, 1 to 3 characters, the stop token
    with pytest.raises(IndexError, match="mine gives 3 examples"):
        data[3]

    report = data.report
    assert (report.rows, report.used, report.counted) == (4, 3, {"empty field": 1})
    assert report.first == {"empty field": ["mine, row 2: 'completion' is empty"]}
    assert report.prompt == Quantiles(2, 2, 2, 2, 2)
    assert report.completion == Quantiles(2, 3, 4, 4, 4)  # with the stop token: 2, 4 and 3
    assert (report.trained_tokens, report.truncated, report.stop_trained) == (9, 0, 1.0)
    assert [item.example.completion for item in report.samples] == ["x", "xyz", "xy"]
    summary = json.loads(json.dumps(report.summary()))
    assert summary["rows"] == 4 and summary["counted"] == {"empty field": 1}
    assert summary["quantiles"]["completion"] == {"min": 2, "median": 3, "p90": 4, "p99": 4, "max": 4}


def test_pairs_labels_and_problems():
    rows = [
        {"prompt": "a", "chosen": "bb", "rejected": "c"},
        {"prompt": "d", "chosen": "e", "rejected": "f", "pref_prob": 0.75},
    ]
    pairs = Dataset(ListRows(rows), "pairs", encode, max_length=9, stop_id=STOP)
    # a soft preference is one row and two examples
    assert [(item.example.chosen, item.example.weight) for item in pairs] == [("bb", 1.0), ("e", 0.75), ("f", 0.25)]
    assert [len(item.encoded) for item in pairs] == [2, 2, 2]
    assert pairs.lengths.tolist() == [4, 3, 3]  # "a", "bb", stop: the longer side
    assert [pairs.where(j) for j in range(3)] == ["rows, row 1", "rows, row 2", "rows, row 2"]
    assert (pairs.report.used, pairs.report.completions) == (2, 6)
    assert pairs.report.trained_tokens == 3 + 2 + 4 * 2

    labels = Dataset(ListRows(rows[:1]), "labels", encode, max_length=9)
    assert [item.example.desirable for item in labels] == [True, False]
    assert labels.report.stop_trained is None  # no stop token was given

    problems = Dataset(ListRows([{"prompt": "abc", "answer": "1"}]), "problems", encode, max_length=3, stop_id=STOP)
    assert problems[0].example == Problem("abc", {"answer": "1"})
    report = problems.report
    assert (report.prompt.max, report.completion.max, report.trained_tokens, report.stop_trained) == (3, 0, 0, None)
    assert "train" not in report.render()


@pytest.mark.parametrize(
    "bad, rows, fine", [(1, 20, True), (1, 19, False), (5, 100, True), (6, 100, False), (0, 1, True)]
)
def test_five_percent_of_bad_rows_pass(bad, rows, fine):
    source = demos(*["x"] * (rows - bad), *[""] * bad)
    if fine:
        expected = {"empty field": bad} if bad else {}
        assert Dataset(source, "demos", encode, max_length=9).report.counted == expected
        return
    message = rf"mine: {bad} of {rows} rows cannot train as demos, more than the 5% that may be .*: {bad} empty field "
    with pytest.raises(ValueError, match=message + rf"\(first mine, row {rows - bad + 1}: 'completion' is empty\)"):
        Dataset(source, "demos", encode, max_length=9)


def test_reasons_are_told_apart_in_the_refusal():
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 7
    rows += [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 2 + [{"prompt": "a", "chosen": "b"}]
    with pytest.raises(
        ValueError, match=r"3 of 10 rows .*: 2 equal sides \(first rows, row 8: .*; 1 missing field \(first"
    ):
        Dataset(ListRows(rows), "pairs", encode, max_length=9)
    data = Dataset(ListRows(rows), "pairs", encode, max_length=9, max_bad=0.3)
    assert data.report.counted == {"equal sides": 2, "missing field": 1}
    assert len(data.report.first["equal sides"]) == 2


def test_ties_are_counted_but_are_no_defect():
    rated = {"prompt": "a", "response_a": "b", "response_b": "c"}
    source = ListRows([{**rated, "rating": rating} for rating in (0, 0, 0, 1)])
    data = Dataset(source, "pairs", encode, max_length=9)
    assert data.report.counted == {"tie": 3} and len(data) == 1
    with pytest.raises(ValueError, match=r"rows: no row is left to train as pairs: 1 tie \(first rows, row 1"):
        Dataset(ListRows([{**rated, "rating": 0}]), "pairs", encode, max_length=9)


def test_a_row_that_is_too_long_is_refused_by_default():
    source = demos("x", "x" * 7, "x" * 9, "x" * 8)  # with prompt and stop token: 4, 10, 12, 11
    assert len(Dataset(source, "demos", encode, max_length=12)) == 4
    with pytest.raises(
        ValueError,
        match="2 of 4 rows are longer than the 10 tokens that fit, the longest 12 at mine, row 3; raise data.max",
    ) as caught:
        Dataset(source, "demos", encode, max_length=10)
    for setting in ("raise data.max_length", 'set data.too_long = "drop"', 'or "truncate"'):
        assert setting in str(caught.value)
    # the longest side of the row is told, also when another side is too long as well
    pair = ListRows([{"prompt": "a", "chosen": "b" * 10, "rejected": "c" * 20}])
    for kind in ("pairs", "labels"):
        with pytest.raises(ValueError, match="1 of 1 rows .* the longest 22 at rows, row 1"):
            Dataset(pair, kind, encode, max_length=9)


def test_drop_skips_and_counts_any_number():
    data = Dataset(demos("x", "x" * 8, "x" * 9, "x" * 7), "demos", encode, max_length=10, too_long="drop", stop_id=STOP)
    assert [item.example.index for item in data] == [0, 3]
    assert data.report.counted == {"too long": 2}  # half the rows: asked for, not bad
    assert data.report.first["too long"][0] == "mine, row 2: the row does not fit in 10 tokens; the whole is 11"
    assert data.report.stop_trained == 1.0
    long_prompts = ListRows([{"prompt": "a" * n, "completion": "x"} for n in (5, 50)], "mine")
    data = Dataset(long_prompts, "demos", encode, max_length=10, too_long="drop")
    assert data.report.counted == {"prompt too long": 1}


def test_truncation_cuts_completions_at_the_end_and_says_what_is_lost():
    data = Dataset(demos("x", "vwxyz"), "demos", encode, max_length=5, too_long="truncate", stop_id=STOP)
    assert data[1].encoded == [Encoded([97, 98, *map(ord, "vwx")], [False, False, True, True, True])]
    assert (data[0].cut, data[1].cut) == (0, 1)
    report = data.report
    assert (report.truncated, report.stop_trained, report.trained_tokens) == (1, 0.5, 5)
    assert report.completion.max == 3
    text = report.render()
    assert "1 of 2 completions (50.0%) cut at 5 tokens: they lose their stop token" in text
    assert "the stop token trains in 50.0% of completions" in text


def test_a_prompt_is_never_cut():
    rows = [{"prompt": "a" * n, "completion": "xyz"} for n in (3, 4, 5, 6)]
    # 4 tokens fit: after a prompt of 3 one token trains; prompts of 4 and more leave no room
    data = Dataset(ListRows(rows), "demos", encode, max_length=4, too_long="truncate", max_bad=0.75)
    assert data.report.counted == {"prompt too long": 3}
    assert data[0].encoded[0].mask == [False, False, False, True]
    with pytest.raises(
        ValueError, match=r"3 of 4 rows cannot train .*3 prompt too long \(first rows, row 2: the prompt"
    ):
        Dataset(ListRows(rows), "demos", encode, max_length=4, too_long="truncate")
    problems = ListRows([{"prompt": "abcd"}, {"prompt": "abcde"}])
    with pytest.raises(ValueError, match="1 of 2 rows are longer than the 4 tokens that fit, the longest 5"):
        Dataset(problems, "problems", encode, max_length=4)
    assert len(Dataset(problems, "problems", encode, max_length=4, too_long="drop")) == 1


def test_sides_that_are_equal_once_cut_teach_nothing():
    rows = [{"prompt": "a", "chosen": "bcd1", "rejected": "bcd2"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    data = Dataset(ListRows(rows), "pairs", encode, max_length=4, too_long="truncate", max_bad=0.5)
    assert data.report.counted == {"equal sides": 1}
    assert data.report.first["equal sides"] == ["rows, row 1: both sides are the same tokens once cut"]


def test_a_row_of_which_nothing_trains_is_counted():
    def silent(example):
        n = len(example.completion)
        return [Encoded([1] * n, [True] + [False] * (n - 1))]  # position 0 has no prediction

    with pytest.raises(ValueError, match="2 of 2 rows cannot train .*2 nothing to train"):
        Dataset(demos("ab", "abc"), "demos", silent, max_length=9)


def test_a_stop_token_that_never_trains_is_told():
    def endless(example):
        return [encode_text(example.prompt, example.completion, stop=False)]

    report = Dataset(demos("x"), "demos", endless, max_length=9, stop_id=STOP).report
    assert report.stop_trained == 0
    assert "the stop token never trains: completions will not learn to end" in report.render()

    # as context it does not count
    def context(example):
        return [Encoded([97, STOP, 98], [False, False, True])]

    assert Dataset(demos("x"), "demos", context, max_length=9, stop_id=STOP).report.stop_trained == 0


def test_a_broken_file_stops_the_preflight(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 99 + '{"prompt": "a"\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 100, column 15: malformed JSON"):
        Dataset(open_rows(path), "demos", encode, max_length=9)


def test_an_encoder_may_skip_a_row_or_stop():
    def picky(example):
        if example.completion == "y":
            raise BadRow("no template", "too odd")
        if example.completion == "z":
            raise ValueError("the chat template has no marks")
        return encode(example)

    data = Dataset(demos("x", "y"), "demos", picky, max_length=9, max_bad=0.5)
    assert data.report.counted == {"no template": 1}
    with pytest.raises(ValueError, match="^mine, row 2: the chat template has no marks$"):
        Dataset(demos("x", "z"), "demos", picky, max_length=9, max_bad=0.5)


def test_settings_are_checked():
    with pytest.raises(ValueError, match='too_long must be "refuse", "drop" or "truncate"; it is \'cut\''):
        Dataset(demos("x"), "demos", encode, max_length=9, too_long="cut")  # pyright: ignore
    with pytest.raises(ValueError, match="max_length must be at least 1 token; it is 0"):
        Dataset(demos("x"), "demos", encode, max_length=0)
    with pytest.raises(ValueError, match="max_bad is a share of the rows"):
        Dataset(demos("x"), "demos", encode, max_length=9, max_bad=5)
    with pytest.raises(ValueError, match="there is no field 'question'"):
        Dataset(demos("x"), "demos", encode, max_length=9, fields={"question": "prompt"})


@given(st.lists(st.integers(0, 60), min_size=1, max_size=250))
def test_quantiles_are_nearest_ranks(lengths):
    result = Quantiles.of(lengths)
    for share, value in ((50, result.median), (90, result.p90), (99, result.p99)):
        # the smallest length that at least this share of rows does not exceed
        assert sum(x <= value for x in lengths) * 100 >= share * len(lengths)
        assert value in lengths and sum(x < value for x in lengths) * 100 < share * len(lengths)
    assert (result.min, result.max) == (min(lengths), max(lengths))


def test_colours_mark_what_trains():
    def decode(ids):
        return "".join(map(chr, ids))

    row = Encoded([*map(ord, "Hi you. Bye")], [True, True] + [False] * 2 + [True] * 3 + [False] * 4)
    assert colour_sample(decode, row, console_colors=False) == "H[[i]] y[[ou.]] Bye"  # position 0 never trains
    green, dim, off = "\x1b[30;42m", "\x1b[2m", "\x1b[0m"
    expected = f"{dim}H{off}{green}i{off}{dim} y{off}{green}ou.{off}{dim} Bye{off}"
    assert colour_sample(decode, row) == expected


def test_a_long_stretch_loses_its_middle_and_what_trains_stays_in_sight():
    decode = lambda ids: "".join(map(chr, ids))  # noqa: E731
    row = encode_text("a" * 50 + "b" * 50, "c" * 30, stop=False)
    assert colour_sample(decode, row, False, limit=10) == (
        "aaaaa ... (90 characters) ... bbbbb[[ccccc ... (20 characters) ... ccccc]]"
    )
    assert colour_sample(decode, row, False) == "a" * 50 + "b" * 50 + "[[" + "c" * 30 + "]]"


@pytest.mark.parametrize(("known", "warned"), [(90, True), (98, False)])
def test_tokens_that_the_tokenizer_does_not_know_are_counted(known, warned):
    """One unknown character in each row of prompt 2 + completion + stop: 1 of 93 is above 1 %, 1 of 101 is not."""
    source = demos("?" + "x" * (known - 1), "?" + "x" * (known - 1), prompt="ab")
    report = Dataset(source, "demos", encode, max_length=999, stop_id=STOP, unk_id=ord("?")).report
    assert (report.unknown, report.tokens) == (2, 2 * (known + 3))
    text = f"2 of {2 * (known + 3):,} tokens"
    assert text in report.render() and ("\x1b[33m  " + text in report.render(console_colors=True)) == warned
    summary = report.summary()
    assert (summary["unknown"], summary["tokens"]) == (2, 2 * (known + 3))
    assert "unknown" not in Dataset(source, "demos", encode, max_length=999).report.render()


def test_render_with_and_without_colours():
    source = demos(*["x"] * 30, "")
    source.notes.append("mine: 2 blank lines passed over")
    report = Dataset(source, "demos", encode, max_length=9, stop_id=STOP).report
    plain = report.render()
    assert "mine as demos: 30 of 31 rows used" in plain
    assert "skipped 1 empty field, first mine, row 31: 'completion' is empty" in plain
    assert "mine: 2 blank lines passed over" in plain and "60 tokens train" in plain
    assert "\x1b[33m  skipped 1 empty field" in report.render(console_colors=True) and "\x1b" not in plain
    lines = {line.split()[0]: line.split()[1:] for line in plain.splitlines()}
    assert lines["prompt"] == ["2"] * 5 and lines["completion"] == ["2"] * 5


def test_hh_pairs_through_the_preflight():
    path = DATA / "hh_harmless_pairs.jsonl"
    if not path.exists():
        pytest.skip("shared/data/hh_harmless_pairs.jsonl is not beside the checkout")

    def words(example):
        prompt = [1] * len(example.prompt.split())
        sides = [[crc32(word.encode()) + 2 for word in side.split()] for side in (example.chosen, example.rejected)]
        return [Encoded(prompt + side + [STOP], [False] * len(prompt) + [True] * (len(side) + 1)) for side in sides]

    data = Dataset(open_rows(path), "pairs", words, max_length=2000, stop_id=STOP)
    report = data.report
    assert (report.rows, report.used, report.counted) == (1800, 1796, {"empty field": 4})
    # words of the prompt and its completion are the words of the dialogue; the stop token is one more
    assert [int(n) for n in data.lengths] == [
        1 + max(len(row["chosen"].split()), len(row["rejected"].split()))
        for i, row in enumerate(data.source)
        if i in set(data._rows)
    ]
    limit = int(data.lengths.float().quantile(0.9))
    cut = Dataset(open_rows(path), "pairs", words, max_length=limit, too_long="truncate", max_bad=1.0, stop_id=STOP)
    assert cut.report.rows == cut.report.used + sum(cut.report.counted.values())
    assert cut.report.truncated and cut.lengths.max() == limit
    assert cut.report.stop_trained == pytest.approx(1 - cut.report.truncated / cut.report.completions)


def test_memory_stays_small(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = json.dumps({"prompt": "a", "completion": "word " * 1000}) + "\n"
    with path.open("w") as file:
        file.writelines([line] * 4000)  # 20 MB
    tracemalloc.start()
    try:
        source = open_rows(path)
        data = Dataset(source, "demos", lambda example: [Encoded([1, 2, 3], [False, True, True])], max_length=9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) == 4000
    assert peak < 1_500_000  # 33 bytes a row are 132 kB, 4 of them 8-byte lengths; one row and buffers beside


def test_item_is_what_trains():
    data = Dataset(demos("xyz"), "demos", encode, max_length=4, too_long="truncate")
    assert dataclasses.astuple(data[0])[1:] == ([([97, 98, 120, 121], [False, False, True, True])], 1)
