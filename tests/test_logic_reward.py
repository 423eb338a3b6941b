"""The reward of Logic-RL: its four totals, its format, and the seven ways of cheating that it flags."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiducial.core.types import Rollout, Score
from fiducial.data.tasks import kk, problems
from fiducial.evals.evaluate import flag_counts
from fiducial.rewards import Weighted, build
from fiducial.rewards.logic import LogicReward, format_trouble
from fiducial.rewards.repetition import repeated_in_a_row, repetition

# Zoey says Oliver is not a knight; Oliver says: Oliver is a knight iff Zoey is a knave. Zoey lies, Oliver does not.
PUZZLE = kk.build(["Zoey", "Oliver"], [["not", ["knight", 1]], ["iff", ["knight", 1], ["knave", 0]]])
ROW = {**PUZZLE.fields, "prompt": PUZZLE.prompt}
THOUGHT = (
    "If Zoey told the truth, Oliver would lie, and then what he says would hold. So Zoey lies and Oliver does not."
)
RIGHT = "(1) Zoey is a knave\n(2) Oliver is a knight"
CLEAN = f"<think>{THOUGHT}</think><answer>{RIGHT}</answer>"


def judged(text, row=ROW, **options):
    (score,) = LogicReward(**options)([text], [row])
    return score


def raised(text, row=ROW):
    return {name.removeprefix("hack/") for name, is_raised in judged(text, row).flags.items() if is_raised}


@pytest.mark.parametrize(
    ("text", "total"),
    [
        (CLEAN, 3),  # +1 +2
        (CLEAN.replace("Zoey is a knave", "Zoey is a knight"), -0.5),  # +1 -1.5
        (CLEAN.replace(RIGHT, "I do not know"), -1),  # +1 -2
        (CLEAN.replace(RIGHT, "Oliver is a knight"), -1),  # one person is not named
        (CLEAN.replace(RIGHT, RIGHT + ", Zoey is a knight"), -1),  # three role words for two people
        (CLEAN.replace(RIGHT, "Zoey is a knave, Zoey is a knight"), -1),
        (f"<answer>{RIGHT}</answer>", -3),  # -1 -2, although the answer is right
        (CLEAN.replace("</think>", ""), -3),
        (CLEAN + "<answer>again</answer>", -3),
        (f"<answer>{RIGHT}</answer><think>{THOUGHT}</think>", -3),
        (f"<think> </think><answer>{RIGHT}</answer>", -3),  # no thought
        ("", -3),
    ],
)
def test_the_four_totals(text, total):
    score = judged(text)
    assert score.value == total == score.parts["format"].value + score.parts["answer"].value
    assert score.verdict == ("correct" if total == 3 else "wrong")
    assert len(score.flags) == 7


def test_a_missing_tag_is_no_tag_before_the_others():
    """text.find of a missing tag is -1, which is smaller than every place: order alone would pass."""
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert format_trouble(CLEAN.replace(tag, "")) == f"0 times {tag}, where one is wanted"
    swapped = CLEAN.replace("</think>", "X").replace("<answer>", "</think>").replace("X", "<answer>")
    assert format_trouble(swapped) == "the tags are out of order"


def test_min_think_tokens_and_require_parsable():
    seven = f"<think>one two three four five six seven</think><answer>{RIGHT}</answer>"
    assert judged(seven, min_think_tokens=7).value == 3
    assert judged(seven, min_think_tokens=8).value == -3
    unreadable = CLEAN.replace(RIGHT, "Zoey lies")
    assert judged(unreadable).value == -1
    assert judged(unreadable, require_parsable=True).value == -3
    assert judged(CLEAN, require_parsable=True).value == 3
    wrong = CLEAN.replace("knave", "knight")
    assert judged(wrong, require_parsable=True).value == -0.5
    with pytest.raises(ValueError, match="min_think_tokens must be at least 1"):
        build("logic_reward(min_think_tokens=0)")


def test_an_opened_think_block_of_the_prompt_counts_once():
    rest = CLEAN.removeprefix("<think>")
    assert judged(rest).value == -3
    assert judged(rest, {**ROW, "prompt": PUZZLE.prompt + "\n<think>"}).value == 3
    assert judged(CLEAN, {**ROW, "prompt": PUZZLE.prompt + "\n<think>\n"}).value == 3
    chat = [{"role": "user", "content": PUZZLE.prompt}, {"role": "assistant", "content": "<think>"}]
    assert judged(rest, {**ROW, "prompt": chat}).value == 3
    assert judged(rest, prefilled=True).value == 3


@pytest.mark.parametrize(
    ("hack", "texts"),
    [
        ("skip_think", [f"<answer>{RIGHT}</answer>", f"<think>Easy.</think><answer>{RIGHT}</answer>"]),
        (
            "reason_in_answer",
            [
                CLEAN.replace(RIGHT, f"Since Zoey lies: {RIGHT}"),
                CLEAN.replace(RIGHT, f"{RIGHT} {'and that is all there is to say ' * 4}"),
                CLEAN.replace(RIGHT, f"If Zoey is a liar then {RIGHT}"),
            ],
        ),
        (
            "repeat_guess",
            [
                CLEAN + "<answer>(1) Zoey is a knight</answer>",
                CLEAN.replace(RIGHT, f"{RIGHT} or (1) Zoey is a knight (2) Oliver is a knave"),
            ],
        ),
        (
            "irrelevant_padding",
            [
                CLEAN + " I hope that this helps!",
                "Sure. " + CLEAN,
                CLEAN.replace("</think>", "</think> and so "),
                CLEAN.replace(THOUGHT, THOUGHT + " so it is" * 6),
                CLEAN.replace(THOUGHT, "Let me see now " + "#@ %% ** !! " * 3),
            ],
        ),
        (
            "wrong_organisation",
            [
                f"<think>{THOUGHT} {RIGHT}</think><answer>as said above</answer>",
                f"<think>{THOUGHT}</think> {RIGHT} <answer></answer>",
                f"{THOUGHT} {RIGHT}",
            ],
        ),
        (
            "revisit_think",
            [
                CLEAN + "<think>Let us see again.</think>",
                CLEAN.replace(RIGHT, f"{RIGHT}</think>"),
                CLEAN + " Wait, Zoey may be right.",
            ],
        ),
        (
            "echo_prompt",
            [
                CLEAN.replace(THOUGHT, PUZZLE.prompt),
                CLEAN.replace(THOUGHT, "The question: " + PUZZLE.prompt.upper()),
                CLEAN.replace(THOUGHT, "My thinking process here, in some steps."),
            ],
        ),
    ],
)
def test_each_hack_is_flagged(hack, texts):
    assert len(texts) >= 2
    for text in texts:
        assert hack in raised(text), text


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (CLEAN, set()),
        (CLEAN.replace("knave", "knight"), set()),  # an honest mistake
        (CLEAN.replace("</think><answer>", "</think>\n\n<answer>") + "\n", set()),
        (f"<think>{THOUGHT}</think>", set()),  # cut off before the answer
        (CLEAN + " I hope that this helps!", {"irrelevant_padding"}),
        (f"<think></think><answer>{RIGHT}</answer>", {"skip_think"}),
        (CLEAN.replace(THOUGHT, PUZZLE.prompt), {"echo_prompt"}),
    ],
)
def test_only_the_hack_that_is_there_is_flagged(text, flags):
    assert raised(text) == flags


@pytest.mark.parametrize("n_people", [2, 3, 5, 8])
def test_honest_work_is_not_flagged(n_people):
    for problem in problems(kk.TASK, 40, "train", 0, n_people=n_people):
        row = {**problem.fields, "prompt": problem.prompt}
        score = judged(kk.TASK.trace(problem, Random(0)), row)
        assert score.value == 3 and not any(score.flags.values()), score


def test_rows_with_an_answer_only_and_rows_without():
    assert judged(CLEAN, {"answer": RIGHT}).value == 3
    flipped = RIGHT.replace("knave", "saint").replace("knight", "sinner")
    assert judged(CLEAN.replace(RIGHT, flipped), {"answer": flipped, "roles": ["saint", "sinner"]}).value == 3
    assert "'answer' '42' does not say who is what" in judged(CLEAN, {"answer": "42"}).why
    assert "neither 'names' and 'solution' nor an 'answer'" in judged(CLEAN, {}).why
    assert judged(CLEAN, {"names": ["Zoey"], "solution": [True, False]}).verdict == "skipped"


@given(st.text(alphabet="<>/thinkasweraZoey is a knave.\n", max_size=300))
def test_any_text_has_one_of_four_totals(text):
    assert judged(text).value in (3, -0.5, -1, -3)


def test_letters_with_several_capitals_are_no_trouble():
    assert judged(CLEAN.replace("knight", "kn\u0131ght"), ROW).value in (3, -1)  # dotless i
    assert judged(CLEAN.replace("Oliver", "Ol\u0130ver"), ROW).value in (3, -1)  # dotted capital I


def test_flags_reach_a_weighted_reward_and_the_metrics():
    both = Weighted({"logic": (LogicReward(), 1.0), "format": (build("format"), 0.0)})
    clean, cheat = both([CLEAN, f"<answer>{RIGHT}</answer>"], [ROW, ROW])
    assert not any(clean.flags.values()) and cheat.flags["hack/skip_think"]
    rollouts = [Rollout("", "", [], [], [], score=score) for score in (clean, cheat, Score(1.0, "correct"))]
    counts = flag_counts(rollouts)
    assert counts["hack/skip_think"] == (1, 2) and counts["hack/echo_prompt"] == (0, 2) and len(counts) == 7


def test_repetition_by_its_closed_form():
    assert repetition(list(range(50))) == 0
    for length in (3, 4, 10, 100):  # one distinct 3-gram of L - 3 + 1
        assert repetition(["a"] * length) == pytest.approx(1 - 1 / (length - 2))
    assert repetition(["a", "a"]) == 0  # no 3-gram at all
    assert repetition("a b c a b c a".split(), n=2) == pytest.approx(1 - 3 / 6)  # ab bc ca ab bc ca
    assert repeated_in_a_row(["a"] * 9) and not repeated_in_a_row(["a"] * 7)
    assert repeated_in_a_row("a b".split() * 5) and not repeated_in_a_row("a b".split() * 4)
    assert not repeated_in_a_row(list("abcdefghijklm") * 6)  # thirteen words are a paragraph, not a stutter
