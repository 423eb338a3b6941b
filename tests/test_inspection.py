"""`fiducial data inspect`, `pairs` and `raters`: what is wrong with a file is told, counted, and nothing is quoted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fiducial import models
from fiducial.cli.main import main
from fiducial.core.types import CORRECT, WRONG, Decoding, Problem, Rollout, Score
from fiducial.data import Grading, ListRows, open_rows, parse
from fiducial.data.inspection import inspect_rows
from fiducial.evals.verified_pairs import verified_pairs
from fiducial.models.decoder import Decoder, DecoderConfig
from fiducial.models.tokenizer import train_tokenizer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def look(*rows, **settings):
    return inspect_rows(ListRows(list(rows), "mine"), **settings)


def ab(i, rating, rater="r", a="yes", b="no"):
    return {"prompt": f"p{i}", "response_a": f"{a} {i}", "response_b": f"{b} {i}", "rating": rating, "rater_id": rater}


def told(found, *severities):
    return [note.what for note in found.notes if note.severity in (severities or ("error", "warning"))]


@pytest.mark.parametrize(
    "wanted, unwanted, what",
    [
        (3, 2, ""),
        (4, 1, ""),  # four fifths
        (5, 1, "83% of the completions are wanted (1 are not)"),
        (1, 9, "90% of the completions are unwanted (1 are not)"),
        (3, 0, "all 3 completions are wanted"),
    ],
)
def test_labels_are_counted_and_one_sided_ones_are_told(wanted, unwanted, what):
    rows = [{"prompt": "a", "completion": f"b{i}", "label": i < wanted} for i in range(wanted + unwanted)]
    found = look(*rows)
    assert found.labels == {"wanted": wanted, "unwanted": unwanted} and told(found) == ([what] if what else [])
    assert look({"prompt": "a", "answer": "4"}).labels is None


def test_rows_are_told_by_shape_counted_and_measured():
    found = look(
        {"prompt": "abc", "chosen": "de", "rejected": "f"},
        {"prompt": "abc", "chosen": "de", "rejected": ""},
        {"prompt": "a", "completion": "bcd"},
        {"prompt": "a", "completion": "b", "label": 1},
        {"prompt": "a", "answer": "4"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "you"}]},
        {"text": "some text", "label": 3},
        {"prompt": "a", "completions": ["b", "c"], "labels": [1, 0]},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1]},
        {"answer": 4},
    )
    assert (found.rows, found.used) == (10, 8)
    assert found.counted == {"empty field": 1, "unknown shape": 1}
    assert found.first["empty field"] == ["mine, row 2"]
    assert found.shapes == {
        "prompt + chosen + rejected": 2,
        "prompt + completion": 1,
        "prompt + label + completion": 1,
        "prompt": 1,
        "messages": 1,
        "text": 1,
        "prompt + completions + labels": 1,
        "prompt + completions + ranks": 1,
    }
    # prompts: 3, 1, 1, 1, 1, 1 of the first used, and none of a chat or a plain text
    assert found.quantiles["prompt"] == {"min": 0, "median": 1, "p90": 3, "p99": 3, "max": 3}
    assert found.quantiles["completion"]["max"] == 9  # "some text"; the chat has 5
    assert found.rows == found.used + sum(found.counted.values())
    json.dumps(found.summary(), allow_nan=False)


def test_nothing_of_a_clean_file_looks_wrong():
    found = look(*(ab(i, 2 if i % 2 else -2) for i in range(40)))
    assert (found.used, told(found)) == (40, [])
    seen = found.preferences
    assert (seen["judgements"], seen["ties"], seen["ratings"]) == (40, 0, {"2": 20, "-2": 20})
    assert seen["raters"] == {"r": {"n": 40, "a": 20, "b": 20, "ties": 0}}
    assert (seen["kappa"], seen["position_bias"], seen["contradictory"]) == (None, [], 0)


def test_a_rater_who_always_answers_a():
    found = look(*(ab(i, 2, "lazy") for i in range(20)), *(ab(i, 2 if i % 2 else -2, "fair") for i in range(20)))
    (biased,) = found.preferences["position_bias"]
    assert (biased["rater_id"], biased["share_a"], biased["n"]) == ("lazy", 1.0, 20)
    assert biased["p"] == pytest.approx(2 / 2**20)
    assert "rater 'lazy' answers A in all 20 judgements (chance gives this with p = 1.9e-06)" in told(found)
    assert found.used == 40  # told, and used: leaving somebody out is for a person to decide
    # rows of chosen and rejected do not say what was shown first
    assert not look(*({"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(50))).preferences[
        "position_bias"
    ]
    unnamed = look(*({**ab(i, -2), "rater_id": ""} for i in range(20)))
    assert any("who judged answers B in all 20 judgements" in what for what in told(unnamed))


def test_contradictory_and_repeated_judgements():
    turned = {"prompt": "p1", "response_a": "no 1", "response_b": "yes 1", "rating": 1, "rater_id": "r"}
    found = look(ab(1, 2), turned, ab(2, 1), ab(2, 1), ab(3, 1, "r"), ab(3, -1, "s"))
    seen = found.preferences
    assert (seen["contradictory"], seen["repeated"], seen["disputed"], seen["pairs"]) == (1, 1, 2, 3)
    assert "1 pairs are judged both ways by the same rater" in told(found)
    assert any("raters disagree on 2 of 3 pairs" in what for what in told(found, "info"))
    both = ({"prompt": "p", "chosen": a, "rejected": b} for a, b in (("x", "y"), ("y", "x")))
    assert look(*both).preferences["contradictory"] == 1


def test_ties_ratings_out_of_range_equal_sides_and_empty_responses():
    rows = [ab(0, 0), ab(1, 0), ab(2, 3), ab(3, "often"), ab(4, 1, a="same", b="same"), {**ab(5, 1), "response_a": " "}]
    found = look(*rows)
    assert found.counted == {"tie": 2, "out of range": 1, "wrong type": 1, "equal sides": 1, "empty field": 1}
    assert found.used == 0 and "no row can train" in told(found, "error")
    assert "all 2 judgements are ties" in told(found, "error")
    half = look(*rows[:2], grading=Grading(ties="half"))
    assert half.used == 2 and not half.counted and "all 2 judgements are ties" in told(half, "error")
    slight = look(ab(0, 1), ab(1, 2), grading=Grading("filter_slight"))
    assert slight.counted == {"slight": 1} and slight.preferences["judgements"] == 2


def test_a_file_with_too_many_bad_rows_is_called_so():
    fine = [ab(i, 1 if i % 2 else -1) for i in range(19)]
    assert not told(look(*fine, ab(19, 3)), "error")  # 1 of 20: skipped and counted
    found = look(*fine[:18], ab(18, 3), ab(19, 3))
    assert told(found, "error") == ["10% of the rows cannot train; above 5% a run is refused"]


def test_length_in_pairs():
    found = look(*({"prompt": f"p{i}", "chosen": "longer", "rejected": "x" * (1 if i < 7 else 6)} for i in range(10)))
    assert (found.preferences["chosen_longer"], found.preferences["equally_long"]) == (0.7, 0.3)
    assert any("the longer one in 70% of the pairs" in what for what in told(found))
    b_wins = {"prompt": "p", "response_a": "x", "response_b": "longer", "rating": -2}
    assert look(b_wins).preferences["chosen_longer"] == 1.0


def test_columns_can_be_renamed_and_the_kind_given():
    row = {"question": "2 + 2?", "answer": "4"}
    assert look(row).counted == {"unknown shape": 1}
    found = look(row, fields={"prompt": "question", "completion": "answer"})
    assert (found.used, dict(found.shapes)) == (1, {"prompt + completion": 1})
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert look(pair, kind="problems").preferences is None
    assert look(pair, kind="steps").counted == {"missing field": 1}
    safety = {"prompt": "p", "response_0": "a", "response_1": "longer", "safer_response_id": 0}
    assert look(safety, kind="costs").used == 1 and look(safety).counted == {"missing field": 1}


def run(capsys, *argv):
    code = main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return code, (json.loads(out) if code == 0 and "--json" in argv else out), err


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_inspecting_by_the_command(capsys, tmp_path):
    secret = "zanzibar"
    rows = [ab(i, 2, "lazy", a=secret) for i in range(20)] + [ab(20, 7, a=secret), {"prompt": secret}]
    file = write(tmp_path / "judged.jsonl", rows)
    code, found, _ = run(capsys, "data", "inspect", file, "--json")
    assert code == 0 and {"rows", "counted", "quantiles"} <= set(found)
    assert (found["rows"], found["used"], found["counted"]) == (22, 21, {"out of range": 1})
    assert found["first"] == {"out of range": ["judged.jsonl, line 21"]}
    assert {note["severity"] for note in found["notes"]} == {"warning", "info"}
    code, page, _ = run(capsys, "data", "inspect", file)
    assert code == 0 and "rater 'lazy' answers A in all 20 judgements" in page and "with the majority" in page
    assert secret not in page and secret not in json.dumps(found)
    code, _, err = run(capsys, "data", "inspect", file, "--ratings", "soft")
    assert code == 2 and "needs data.rating_scale" in err
    code, found, _ = run(
        capsys, "data", "inspect", file, "--ratings", "soft", "--rating-scale", "1", "--json", "--kind", "pairs"
    )
    assert code == 0 and found["counted"] == {"out of range": 1, "missing field": 1}
    code, _, err = run(capsys, "data", "inspect", tmp_path / "none.jsonl")
    assert code == 2 and "none.jsonl does not exist" in err
    for argv, message in [(["data"], "name a kind"), (["data", "invent"], "there is no kind 'invent': inspect, pairs")]:
        code, _, err = run(capsys, *argv)
        assert code == 2 and message in err
    assert main(["data", "--help"]) == 0 and "inspect" in capsys.readouterr().out


def test_a_file_of_which_no_row_can_train_is_a_failure(capsys, tmp_path):
    file = write(tmp_path / "bad.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"size": 3}, {"size": 4}])
    code, page, err = run(capsys, "data", "inspect", file)
    assert code == 1 and "0 of 3 rows can train" in page
    (line,) = err.splitlines()
    assert line.startswith("fiducial data: bad.jsonl: no row can train: 2 unknown shape (first bad.jsonl, line 2)")
    code, page, _ = run(capsys, "data", "inspect", file, "--json")
    assert code == 1 and json.loads(page)["used"] == 0
    file = write(tmp_path / "labels.jsonl", [{"prompt": "a", "completion": f"b{i}", "label": i < 1} for i in range(8)])
    code, page, _ = run(capsys, "data", "inspect", file)
    assert code == 0 and "12.5%" in page and "88% of the completions are unwanted" in page


def test_raters_by_the_command(capsys, tmp_path):
    out = tmp_path / "cycle.jsonl"
    code, found, _ = run(
        capsys, "data", "raters", "condorcet", "--n", 40, "--with-replacement", "--raters-per-pair", 3,
        "--out", out, "--json",
    )  # fmt: skip
    assert code == 0 and found["rows"] == 120 == len(open_rows(out))
    assert found["metrics"]["kappa"] == pytest.approx(-1 / 3)  # two of three agree on every pair
    assert {name: n for name, n in found["metrics"].items() if "/" in name} == {
        f"majority/rater {i}": pytest.approx(2 / 3) for i in (1, 2, 3)
    }
    # over a file of pairs: everybody finds the chosen side better, one of four says the opposite
    pairs = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(30)]
    file = write(tmp_path / "pairs.jsonl", [*pairs, {"prompt": "p", "chosen": "x", "rejected": "x"}])
    out = tmp_path / "judged.jsonl"
    argv = ("data", "raters", file, "--raters", 4, "--poison", 0.25, "--out", out)
    code, found, _ = run(capsys, *argv, "--json")
    assert code == 0 and found["counted"] == {"equal sides": 1}
    assert [row["prompt"] for row in open_rows(out)] == [f"p{i}" for i in range(30)]  # every pair, once
    made = [parse(row, "pairs")[0] for row in open_rows(out)]
    rows = list(open_rows(out))
    for pair, row in zip(made, rows, strict=True):
        assert pair.chosen.startswith("bad") == row["poisoned"]
    assert {row["rater_id"] for row in rows if row["poisoned"]} == {next(r["rater_id"] for r in rows if r["poisoned"])}
    again = tmp_path / "again.jsonl"
    run(capsys, *argv[:-1], again)
    assert again.read_bytes() == out.read_bytes()
    code, _, err = run(capsys, "data", "raters", file, "--raters", 0, "--out", out)
    assert code == 2 and "at least one rater" in err
    code, _, err = run(capsys, "data", "raters", file, "--n", 31, "--out", out)
    assert code == 2 and "n = 31 is more than the 30 pairs" in err
    code, _, err = run(capsys, "data", "raters", file, "--with-replacement", "--out", out)
    assert code == 2 and "--with-replacement needs --n" in err


# -- pairs that a verifier makes ---------------------------------------------------------------------------------------


class Scripted:
    """A sampler that writes what is in the script: problem -> completions, each with how it ended."""

    def __init__(self, script):
        self.script = script

    def sample(self, requests, decoding):
        seen: dict[int, int] = {}
        rollouts = []
        for request in requests:
            place = seen[request.group] = seen.get(request.group, -1) + 1
            text, finish = self.script[request.group][place]
            rollouts.append(
                Rollout(request.prompt, text, [0, 1], [False, True], [0.0, 0.0], request.group, finish=finish)
            )
        return rollouts

    def update(self, weights, version):
        pass


def graded(completion: str, fields: dict[str, Any]) -> Score:
    if completion == "?":
        return Score(None, "unparseable")
    return CORRECT if completion == fields["answer"] else WRONG


def paired(script, **settings):
    problems = [Problem(f"q{i}", {"answer": "4"}, i) for i in range(len(script))]
    ended = [[(text, "stop") if isinstance(text, str) else text for text in texts] for texts in script]
    return verified_pairs(Scripted(ended), lambda p: [0], problems, graded, Decoding(), len(script[0]), **settings)


def test_correct_completions_are_chosen_over_wrong_ones():
    made = paired([["4", "5", "4", "5"], ["4", "4", "4", "4"], ["1", "2", "?", " "], ["?", "?", "4", ("4", "length")]])
    assert made.rows == [{"prompt": "q0", "chosen": "4", "rejected": "5", "group_id": "0", "source": "verifier"}]
    assert made.counted == {
        "completion: a copy": 5,  # two in the first, three in the second
        "completion: unparseable": 3,
        "completion: empty": 1,
        "completion: cut short": 1,
        "problem: no wrong one": 2,
        "problem: no correct one": 1,
    }
    assert made.metrics == {"pass@1": pytest.approx((2 + 4 + 0 + 2) / 16), "problems_with_pairs": 0.25}
    assert parse(made.rows[0], "pairs")[0].source == "verifier"


def test_unparseable_completions_may_count_as_wrong_and_pairs_differ():
    script = [["4", "1", "2", "?"]]
    assert {row["rejected"] for row in paired(script, pairs_per_problem=9).rows} == {"1", "2"}
    many = paired(script, pairs_per_problem=9, unparseable=True).rows
    assert sorted(row["rejected"] for row in many) == ["1", "2", "?"]
    drawn = {paired(script, seed=seed).rows[0]["rejected"] for seed in range(20)}
    assert drawn == {"1", "2"}
    assert paired(script, seed=3) == paired(script, seed=3)
    for settings, message in [({"pairs_per_problem": 0}, "pairs_per_problem must be at least 1")]:
        with pytest.raises(ValueError, match=message):
            paired(script, **settings)
    with pytest.raises(ValueError, match="k must be at least 2"):
        paired([["4"]])


def test_pairs_by_the_command(capsys, tmp_path):
    """A tiny model writes noise; a user's verifier finds even lengths correct, so both kinds turn up."""
    tokenizer = train_tokenizer(["abc def ghi", "a b c"], kind="bpe", vocab_size=300)
    torch.manual_seed(0)
    models.save(Decoder(DecoderConfig(len(tokenizer), hidden=32, layers=1, heads=2)), tokenizer, tmp_path / "model")
    (tmp_path / "even.py").write_text("def even(completion):\n    return float(len(completion) % 2 == 0)\n")
    file = write(tmp_path / "prompts.jsonl", [{"prompt": "abc"}, {"prompt": "def"}, {"text": "no prompt"}])
    out = tmp_path / "pairs.jsonl"
    argv = ("data", "pairs", tmp_path / "model", file, "--out", out, "--json", "--stop", "a", "--max-new-tokens", 40)
    code, found, err = run(capsys, *argv, "--k", 8, "--pairs-per-problem", 2, "--reward", f"{tmp_path}/even.py:even")
    assert code == 0, err
    assert found["counted"]["row: missing field"] == 1 and found["rows"] == len(open_rows(out)) >= 1
    for row in open_rows(out):
        assert len(row["chosen"]) % 2 == 0 and len(row["rejected"]) % 2 == 1 and row["prompt"] in ("abc", "def")
    code, _, err = run(capsys, *argv)
    assert code == 2 and "need something that verifies them: --reward" in err


def test_what_is_seen_in_real_pairs():
    path = DATA / "hh_harmless_pairs.jsonl"
    if not path.exists():
        pytest.skip("shared/data/hh_harmless_pairs.jsonl is not beside the checkout")
    found = inspect_rows(open_rows(path))
    assert (found.rows, found.used, found.counted) == (1800, 1796, {"empty field": 4})
    assert dict(found.shapes) == {"chosen + rejected": 1800}
    seen = found.preferences
    assert (seen["pairs"], seen["contradictory"], seen["repeated"], seen["ties"]) == (1796, 0, 0, 0)
    # the two sides of a row begin alike, so whole dialogues compare as their ends do
    both = [json.loads(line) for line in path.read_text().splitlines()]
    used = [row for row in both if all(row[name].rsplit("Assistant:", 1)[1].strip() for name in ("chosen", "rejected"))]
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in used)
    assert (len(used), longer) == (1796, 805) and seen["chosen_longer"] == pytest.approx(805 / 1796)
