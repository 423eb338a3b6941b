"""AI feedback with stub judges whose answers are known: position bias, verdicts in text, agreement, rows that train."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.core.types import Rollout
from fiducial.data import parse
from fiducial.data.feedback import (
    Comparison,
    Judgement,
    ai_feedback,
    both_orders,
    position_bias,
)
from fiducial.data.feedback.ai_feedback import read_comparison
from fiducial.data.feedback.labelling import judge_metrics
from fiducial.data.feedback.writer import read_template
from fiducial.judges import AIJudge, AIScore, read_verdict


def rollout(prompt, text):
    return Rollout(prompt, text, [1, 2], [False, True], [0.0, 0.0])


class Stub:
    """A writer: `chance(prompt, option)` is how likely it finds an option, `say(prompt)` what it writes."""

    def __init__(self, chance=lambda prompt, option: 0.0, say=lambda prompt: ""):
        self.chance, self.say, self.prompts = chance, say, []

    def option_logprobs(self, prompts, options):
        self.prompts += prompts
        chances = [[self.chance(prompt, option.strip()) for option in options] for prompt in prompts]
        return [[math.log(p) if p else -math.inf for p in row] for row in chances]

    def sample(self, prompts, n=1, seed=0, **decoding):
        assert decoding["temperature"] == 0.0
        self.prompts += prompts
        return [rollout(prompt, self.say(prompt)) for prompt in prompts for _ in range(n)]


def shown(prompt) -> tuple[str, str]:
    """The first and the second response in a judge's prompt."""
    text = prompt if isinstance(prompt, str) else prompt[0]["content"]
    first, rest = text.split("[Response A]\n")[1].split("\n\n[Response B]\n")
    return first, rest.split("\n\n")[0]


def by_length(prompt, option):
    """Bradley-Terry with the length as the score: an unbiased judge."""
    first, second = map(len, shown(prompt))
    p = 1 / (1 + math.exp(second - first))
    return 0.5 * (p if option == "A" else 1 - p)


ROWS = [
    {"prompt": "q1", "chosen": "long er", "rejected": "short"},
    {"prompt": "q2", "chosen": "x", "rejected": "yyy"},
    {"prompt": "q3", "response_a": "same", "response_b": "emas", "rating": 1},
    {"prompt": "q4", "response_a": "one", "response_b": "fou r"},
]


# -- position bias -----------------------------------------------------------------------------------------------------


def test_a_judge_that_always_prefers_the_first_slot_gives_one_half():
    judge = AIJudge(Stub(lambda prompt, option: 0.4 if option == "A" else 0.1))
    made = ai_feedback(judge, ROWS)
    # p(first) = 0.4 / (0.4 + 0.1) = 0.8 in both orders: (0.8 + 1 - 0.8) / 2 = 1/2, and |0.8 + 0.8 - 1| = 0.6.
    assert [row["pref_prob"] for row in made.rows] == pytest.approx([0.5] * 4)
    assert made.metrics["judge/position_bias"] == pytest.approx(0.6)
    assert made.metrics["judge/option_mass"] == pytest.approx(0.5)
    assert made.metrics["judge/agreement_with_human"] == pytest.approx(0.5)  # every tie is half
    assert any("position bias 0.60" in note for note in made.notes)


def test_an_unbiased_judge_is_unchanged():
    made = ai_feedback(AIJudge(Stub(by_length)), ROWS)
    # lengths 7 and 5; 1 and 3; 4 and 4; 3 and 5: the likelier one leads by 2, 2, 0, 2.
    sigma2 = 1 / (1 + math.exp(-2))
    assert [row["pref_prob"] for row in made.rows] == pytest.approx([sigma2, sigma2, 0.5, sigma2])
    assert [row["chosen"] for row in made.rows if row["prompt"] != "q3"] == ["long er", "yyy", "fou r"]
    assert made.metrics["judge/position_bias"] == pytest.approx(0, abs=1e-7)
    # labels: q1 agrees (1), q2 does not (0), q3 is a tie (1/2), q4 has none.
    assert made.metrics["judge/agreement_with_human"] == pytest.approx(0.5)
    assert [row.get("human_prob") for row in made.rows] == [1.0, 0.0, 1.0, None]
    assert made.notes == []


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_averaging_is_antisymmetric(p_ab, p_ba):
    class Judge:
        name, symmetric = "table", False

        def __call__(self, comparisons):
            return [Judgement(p_ab if c.a == "a" else p_ba) for c in comparisons]

    comparison = Comparison("q", "a", "b")
    there, back = both_orders(Judge(), [comparison, comparison.swapped()])
    assert there.probability == pytest.approx((p_ab + 1 - p_ba) / 2)
    assert there.probability is not None and back.probability == pytest.approx(1 - there.probability)
    assert position_bias([there]) == pytest.approx(abs(p_ab + p_ba - 1)) == position_bias([back])


def test_a_symmetric_judge_is_asked_once():
    class Judge:
        name, symmetric, calls = "longer", True, 0

        def __call__(self, comparisons):
            self.calls += len(comparisons)
            return [Judgement(float(len(c.a) > len(c.b))) for c in comparisons]

    judge = Judge()
    assert [j.probability for j in both_orders(judge, [Comparison("q", "aa", "b")])] == [1.0] and judge.calls == 1


def test_a_probability_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="in \\[0, 1\\]; it said 1.5"):
        Judgement(1.5)


# -- what the judge is asked -------------------------------------------------------------------------------------------


def test_reasons_come_before_the_verdict():
    writer = Stub(lambda prompt, option: 0.5, say=lambda prompt: "  because  ")
    judge = AIJudge(writer, reasoning=True)
    [found] = judge([Comparison("q", "a", "b")])
    assert found.details["rationale"] == "because"
    assert writer.prompts[0].endswith("Explanation:")
    assert writer.prompts[1] == writer.prompts[0] + " because\nBetter response:"
    replace(judge, chat=True)([Comparison("q", "a", "b")])
    asked, reasons, again = writer.prompts[-1]
    assert reasons == {"role": "assistant", "content": "because"} and asked["role"] == again["role"] == "user"


def test_chats_are_shown_as_dialogues_and_braces_stay():
    writer = Stub(lambda prompt, option: 0.5)
    turn = [{"role": "user", "content": "{second}"}]
    AIJudge(writer, criterion="which is {prompt}")([Comparison(turn, "{first}", "x", {"criterion": "which is kinder"})])
    text = writer.prompts[0]
    assert "[Conversation]\nUser: {second}\n" in text and "[Response A]\n{first}\n" in text
    assert "Judge which is kinder." in text


def test_a_template_without_a_placeholder_is_refused(tmp_path):
    path = tmp_path / "template.txt"
    path.write_text("{prompt} {first}")
    with pytest.raises(ValueError, match="template.txt: the template has no {second}"):
        read_template(path, ("prompt", "first", "second"))


def test_options_that_are_the_same_are_refused():
    with pytest.raises(ValueError, match="two different option texts"):
        AIJudge(Stub(), options=("A", "A"))


def test_options_read_as_one_unknown_token_are_told():
    made = ai_feedback(AIJudge(Stub(lambda prompt, option: 1e-4)), ROWS)
    assert "one unknown token" in made.notes[0] and "2.0e-04" in made.notes[1]


def test_what_does_not_fit_is_counted():
    judge = AIJudge(Stub(by_length), fits=lambda prompt, tokens: "short" not in prompt)
    made = ai_feedback(judge, ROWS)
    assert len(made.rows) == 3 and made.counted == {"too long for the judge": 1}
    assert made.metrics["judge/parse_fail_frac"] == 0


# -- verdicts in text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("A", 1.0),
        (" B. ", 0.0),
        ("**B**", 0.0),
        ("Tie", 0.5),
        ("[[A]]", 1.0),
        ("It is polite.\nBetter response: B", 0.0),
        ("It is polite. **Better response:** A, because it answers", 1.0),
        ("better response: (tie)", 0.5),
        ("Better response: A\nOr so.\nBetter response: A", 1.0),
        ("Better response: A\nNo. Better response: B", None),
        ("A good answer is hard to give.", None),
        ("Better response: A good one would be shorter", None),
        ("Better response: Both are bad", None),
        ("a", None),
        ("", None),
        ("I think that response B is a bit better than A", None),
        ("Better response: A', 'Better response: B' or 'Better response: tie'", None),
    ],
)
def test_verdicts_are_read_and_prose_is_none(text, verdict):
    assert read_verdict(text) == verdict


def test_a_judge_that_returns_prose_is_refused_and_shown():
    judge = AIJudge(Stub(say=lambda prompt: "Both have their merits."), mode="text")
    with pytest.raises(ValueError, match="100% of the judge's answers hold no verdict.*'Both have their merits.'"):
        ai_feedback(judge, ROWS)


def test_some_prose_is_counted_and_its_rows_are_left_out():
    def say(prompt):
        first, second = shown(prompt)
        if first == "x":  # one of the eight answers
            return "Hard to say."
        return "Better response: " + ("tie" if len(first) == len(second) else "BA"[len(first) > len(second)])

    made = ai_feedback(AIJudge(Stub(say=say), mode="text"), ROWS, max_unreadable=0.2)
    assert made.metrics["judge/parse_fail_frac"] == 1 / 8
    assert made.counted == {"unreadable verdict": 1}
    assert [(row["prompt"], row["pref_prob"]) for row in made.rows] == [("q1", 1.0), ("q3", 0.5), ("q4", 1.0)]
    assert made.rows[0]["judge"]["verdict"] == ["Better response: A", "Better response: B"]


def test_what_the_judge_was_not_asked_is_no_failure():
    """Of four comparisons one does not fit; one of the six answers that remain is prose."""

    def say(prompt):
        return "Hmm." if shown(prompt)[0] == "x" else "A"

    judge = AIJudge(Stub(say=say), mode="text", fits=lambda prompt, tokens: "short" not in prompt)
    made = ai_feedback(judge, ROWS, max_unreadable=0.17)
    assert made.metrics["judge/parse_fail_frac"] == pytest.approx(1 / 6)
    assert made.counted == {"too long for the judge": 1, "unreadable verdict": 1}


# -- rows in, rows out -------------------------------------------------------------------------------------------------


def test_rows_train_as_soft_pairs():
    [row] = ai_feedback(AIJudge(Stub(by_length)), ROWS[:1]).rows
    p = 1 / (1 + math.exp(-2))
    pairs = parse(row, "pairs")
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("long er", "short"), ("short", "long er")]
    assert [pair.weight for pair in pairs] == pytest.approx([p, 1 - p])
    assert {pair.source for pair in pairs} == {"ai"}


def test_the_judges_numbers_are_those_of_the_chosen_side():
    """0.9 for the first slot if it is the better one, 0.6 if it is the worse: p(better) = (0.9 + 1 - 0.6) / 2."""

    def leaning(prompt, option):
        p = 0.9 if shown(prompt)[0] == "better" else 0.6
        return p if option == "A" else 1 - p

    rows = [{"prompt": "q", "chosen": "worse", "rejected": "better"}]
    [row] = ai_feedback(AIJudge(Stub(leaning)), rows).rows
    assert row["chosen"] == "better" and row["pref_prob"] == pytest.approx(0.65)
    assert row["judge"]["chosen_first"] == pytest.approx(0.9) and row["judge"]["chosen_second"] == pytest.approx(0.4)
    assert row["human_prob"] == 0.0


def test_bad_rows_are_counted_and_others_used():
    rows = [
        *ROWS,
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        {"prompt": "q", "chosen": "", "rejected": "b"},
        {"prompt": "q", "response_a": "a"},
        {"prompt": "q", "response_a": "a", "response_b": "b", "rating": 9},
        {"prompt": "q", "response_a": "a", "response_b": "b", "pref_prob": "often"},
    ]
    made = ai_feedback(AIJudge(Stub(by_length)), rows)
    assert len(made.rows) == 4
    assert made.counted == {
        "equal sides": 1, "empty field": 1, "missing field": 1, "out of range": 1, "wrong type": 1
    }  # fmt: skip


def test_no_row_left_is_refused():
    with pytest.raises(ValueError, match="the judge ai labelled no row: 1 equal sides"):
        ai_feedback(AIJudge(Stub(by_length)), [{"prompt": "q", "chosen": "a", "rejected": "a"}])


@pytest.mark.parametrize(
    "row, said",
    [
        ({"response_a": "a", "response_b": "b"}, None),
        ({"response_a": "a", "response_b": "b", "rating": ""}, None),
        ({"response_a": "a", "response_b": "b", "rating": 0}, 0.5),
        ({"response_a": "a", "response_b": "b", "rating": "-2"}, 0.0),
        ({"response_a": "a", "response_b": "b", "pref_prob": 0.7}, 0.7),
        ({"good": "a", "rejected": "b"}, 1.0),
    ],
)
def test_the_human_label_of_a_row(row, said):
    fields = {"chosen": "good"} if "good" in row else {}
    comparison, label = read_comparison({"prompt": "q", **row}, fields)
    assert (comparison.a, comparison.b, label) == ("a", "b", said)


def test_agreement_leaves_out_undecided_people():
    judgements = [Judgement(0.9), Judgement(0.2), Judgement(0.5), Judgement(None, "skipped"), Judgement(0.9)]
    # agrees, does not, half, not judged, the person had no preference
    assert judge_metrics(judgements, [1.0, 1.0, 0.0, 1.0, 0.5])["judge/agreement_with_human"] == pytest.approx(0.5)
    assert "judge/agreement_with_human" not in judge_metrics(judgements)


# -- a rating as a reward ----------------------------------------------------------------------------------------------


def test_the_reward_is_the_mean_rating():
    """Ratings 10 and 1 with probabilities 0.3 and 0.1, no others: (10 * 3 + 1) / 4 = 7.75, (7.75 - 5.5) / 4.5 = 1/2."""

    def chance(prompt, option):
        assert "by how kind it is" in prompt and prompt.count("[Response]\nfour\n") == 1
        return {"10": 0.3, "1": 0.1}.get(option, 1e-30)

    score = AIScore(Stub(chance), criterion="how kind it is")(["four"], [{"prompt": "2 + 2?"}])[0]
    assert score.value == pytest.approx(0.5) and score.graded and score.why == "mean rating 7.75"


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=10, max_size=10))
def test_the_reward_lies_in_its_range(chances):
    [score] = AIScore(Stub(lambda prompt, option: chances[int(option) - 1]))(["x"], [{}])
    mean = sum(p * k for k, p in enumerate(chances, 1)) / sum(chances)
    assert score.value == pytest.approx((mean - 5.5) / 4.5, abs=1e-5) and abs(score.value or 0.0) <= 1


def test_a_completion_that_does_not_fit_is_skipped():
    [score] = AIScore(Stub(), fits=lambda prompt, tokens: False)(["x"], [{}])
    assert (score.value, score.verdict, score.why) == (None, "skipped", "too long for the judge")
