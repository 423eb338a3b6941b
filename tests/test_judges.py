"""Language models as rewards, with stub judges whose answers are known: ratings, yes and no, votes, tournaments,
rubrics and specifications. Every number is worked out beside it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.core.types import Decoding, Problem, Rollout, Score
from fiducial.data.feedback import Comparison, Judgement, both_orders
from fiducial.data.feedback.spec import Spec, refuses
from fiducial.data.feedback.spec_distill import build_context_distilled, with_spec
from fiducial.judges import AIJudge, AIScore, AIYesNo
from fiducial.judges.asking import LMJudge, read_number
from fiducial.judges.output import output_of, split_thoughts
from fiducial.judges.ratings import read_yes_no
from fiducial.judges.rubric import Criterion, Rubric, read_rubric, rubric_value
from fiducial.judges.spec import SpecJudge
from fiducial.judges.tournament import Ordered, Tournament

VOTES = Decoding(max_new_tokens=8, temperature=1.0)


class Stub:
    """`says(prompt, n)` is what it writes the n-th time; `chance(prompt, option)` how likely it finds an option."""

    def __init__(self, says=lambda prompt, n: "", chance=lambda prompt, option: 0.0):
        self.says, self.chance, self.prompts, self.seeds = says, chance, [], []

    def sample(self, prompts, n=1, seed=0, **decoding):
        self.prompts += prompts
        self.seeds.append(seed)
        said = [(p, self.says(p, k)) for p in prompts for k in range(n)]
        return [s if isinstance(s, Rollout) else Rollout(p, s, [1, 2], [False, True], [0.0, 0.0]) for p, s in said]

    def option_logprobs(self, prompts, options):
        self.prompts += prompts
        rows = [[self.chance(prompt, option.strip()) for option in options] for prompt in prompts]
        return [[math.log(p) if p else -math.inf for p in row] for row in rows]


def failed(verdict, why="no answer"):
    return Rollout("p", "", [], [], [], finish="error", score=Score(None, verdict, why))


def part(prompt: str, name: str) -> str:
    return prompt.split(f"[{name}]\n")[1].split("\n\n")[0]


# -- ratings and votes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, rating",
    [
        ("7", 7.0),
        (" 7.5. ", 7.5),
        ("8/10", 8.0),
        ("8 out of 10.", 8.0),
        ("[[3]]", 3.0),
        ("Good.\nRating: 9", 9.0),
        ("**Rating:** 9/10, for it is kind", 9.0),
        ("rating: -2.", -2.0),
        ("Rating: 7 or 8", 7.0),
        ("Rating: 7\nNo. Rating: 8", None),
        ("7 or 8", None),
        ("I give it 7 points", None),
        ("Rating: high", None),
        ("", None),
    ],
)
def test_ratings_are_read_and_prose_is_none(text, rating):
    assert read_number(text, "Rating:") == rating


@pytest.mark.parametrize(
    "text, value",
    [("yes", 1.0), ("No.", 0.0), ("**YES**", 1.0), ("So.\nAnswer: No, for it is late", 0.0), ("yes or no", None),
     ("Answer: yes\nAnswer: no", None), ("Yes, it is.", None), ("", None)],
)  # fmt: skip
def test_yes_and_no_are_read(text, value):
    assert read_yes_no(text) == value


def test_a_rating_in_text_is_mapped_and_what_lies_beyond_is_counted():
    judge = AIScore(
        Stub(lambda prompt, n: f"Rating: {part(prompt, 'Response')}"), "text", scale=(0, 4), range=(0.0, 2.0)
    )
    scores = judge(["1", "4", "3.5", "6", "many"], [{"prompt": "q"}] * 5)
    # 0..4 becomes 0..2, so a rating is worth half of itself; 6 counts as 4.
    assert [s.value for s in scores] == [0.5, 2.0, 1.75, 2.0, None]
    assert [s.flags["judge/clipped"] for s in scores[:4]] == [0, 0, 0, 1]
    assert [s.flags["judge/parse_rate"] for s in scores] == [1, 1, 1, 1, 0]
    assert scores[4].verdict == "crashed" and "holds no verdict: 'Rating: many'" in scores[4].why
    assert all(s.graded for s in scores[:4])


def test_the_mean_of_the_votes_that_can_be_read():
    judge = AIScore(Stub(lambda prompt, n: ["2", "4", "well", "4"][n]), "text", n_votes=4, decoding=VOTES, scale=(0, 4),
                    range=(0.0, 1.0))  # fmt: skip
    [score] = judge(["x"], [{}])
    # (2 + 4 + 4) / 3 / 4 = 10/12; three of four could be read; of the three pairs of votes one is equal.
    assert score.value == pytest.approx(10 / 12)
    assert score.flags == {"judge/parse_rate": 0.75, "judge/agreement": pytest.approx(1 / 3), "judge/clipped": 0.0}


def test_votes_that_would_all_be_the_same_are_refused():
    for settings_ in ({"decoding": VOTES}, {"mode": "text"}):
        with pytest.raises(ValueError, match="n_votes = 2 would all be the same"):
            AIScore(Stub(), n_votes=2, **settings_)
    with pytest.raises(ValueError, match="tau above 0"):
        AIScore(Stub(), tau=0.0)


def test_yes_is_its_share_of_yes_and_no():
    chances = {"yes": 0.3, "no": 0.1}
    [score] = AIYesNo(Stub(chance=lambda prompt, option: chances[option]))(["x"], [{}])
    assert score.value == pytest.approx(0.75) and score.graded
    # tau = 1/2 squares the odds: 9 to 1.
    [sharper] = AIYesNo(Stub(chance=lambda prompt, option: chances[option]), tau=0.5)(["x"], [{}])
    assert sharper.value == pytest.approx(0.9)
    [sure] = AIYesNo(Stub(chance=lambda prompt, option: float(option == "yes")))(["x"], [{}])
    assert sure.value == 1.0  # the other one is not among what a server reports
    [neither] = AIYesNo(Stub())(["x"], [{}])
    assert (neither.value, neither.verdict) == (None, "crashed")


def test_one_answer_in_text_is_a_verdict():
    judge = AIYesNo(Stub(lambda prompt, n: "yes" if part(prompt, "Response") == "4" else "no"), "text")
    assert judge(["4", "5"], [{}] * 2) == [Score(1.0, "correct", flags={"judge/parse_rate": 1.0}),
                                          Score(0.0, "wrong", flags={"judge/parse_rate": 1.0})]  # fmt: skip


def test_a_template_names_fields_of_the_row():
    writer = Stub(lambda prompt, n: "yes")
    judge = AIYesNo(writer, "text", template="{prompt}|{response}|{answer}|{criterion}|{task}")
    there, lacking = judge(["{answer}", "x"], [{"prompt": "q", "answer": 4}, {"prompt": "q"}])
    assert writer.prompts[0].startswith("q|{answer}|4|Is the response correct?|Answer with") and there.value == 1.0
    assert lacking.verdict == "skipped" and "no field 'answer'" in lacking.why


def test_a_server_that_fails_is_a_typed_verdict():
    judge = AIScore(
        Stub(lambda prompt, n: failed("timeout", "http://h gave no answer") if "slow" in prompt else "9"), "text"
    )
    slow, fine = judge(["slow", "quick"], [{}] * 2)
    assert (slow.value, slow.verdict, slow.why) == (None, "timeout", "http://h gave no answer")
    assert fine.value == pytest.approx(2 * 8 / 9 - 1) and "judge/parse_rate" not in slow.flags

    class Broken(Stub):
        def option_logprobs(self, prompts, options):
            return [Score(None, "crashed", "status 502")] * len(prompts)

    assert AIScore(Broken())(["x"], [{}])[0].why == "status 502"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5))
def test_pairwise_votes_are_averaged(values):
    words = {0.0: "B", 0.5: "tie", 1.0: "A"}
    judge = AIJudge(Stub(lambda prompt, n: words[values[n]]), "text", n_votes=len(values), decoding=VOTES)
    [found] = judge([Comparison("q", "a", "b")])
    assert found.probability == pytest.approx(sum(values) / len(values)) and found.votes == tuple(values)


# -- both orders -------------------------------------------------------------------------------------------------------


def test_a_judge_that_prefers_the_first_gives_exactly_one_half():
    for mode in ("text", "logprobs"):
        judge = AIJudge(Stub(lambda prompt, n: "A", lambda prompt, option: float(option == "A")), mode)
        assert [j.probability for j in Ordered(judge)([Comparison("q", "a", "b")])] == [0.5]
        assert [j.probability for j in Ordered(judge, swap_positions=False)([Comparison("q", "a", "b")])] == [1.0]


@pytest.mark.parametrize(
    "p_ab, p_ba, average, tie",
    [(0.9, 0.6, 0.65, 0.5), (0.9, 0.1, 0.9, 0.9), (0.2, 0.3, 0.45, 0.5), (0.9, 0.5, 0.7, 0.7), (0.5, 0.5, 0.5, 0.5)],
)
def test_orders_that_part_may_be_a_tie(p_ab, p_ba, average, tie):
    """Both say "the first" (0.9, 0.6) or both "the second" (0.2, 0.3): they part."""

    class Table:
        name, symmetric = "table", False

        def __call__(self, comparisons):
            return [Judgement(p_ab if c.a == "a" else p_ba) for c in comparisons]

    for disagreement, expected in (("average", average), ("tie", tie)):
        [found] = both_orders(Table(), [Comparison("q", "a", "b")], disagreement)
        assert found.probability == pytest.approx(expected)


# -- a judge of two as a reward ----------------------------------------------------------------------------------------


class Longer:
    """The longer one wins with probability 0.8; nothing is said of a text with a question mark and one without."""

    name, symmetric = "longer", True

    def __init__(self):
        self.asked = 0

    def __call__(self, comparisons):
        self.asked += len(comparisons)
        return [self.judge(c.a, c.b) for c in comparisons]

    def judge(self, a, b):
        if ("?" in a) != ("?" in b):
            return Judgement(None, "unreadable verdict")
        return Judgement(0.5 if len(a) == len(b) else 0.8 if len(a) > len(b) else 0.2)


def test_a_tournament_is_the_mean_win_rate():
    reward = Tournament(Longer())
    scores = reward(["a", "bb", "ccc", "bb"], [{"prompt": "q"}] * 4)
    # a loses to all three; bb beats a, loses to ccc and equals its copy; ccc beats all.
    assert [s.value for s in scores] == pytest.approx([0.2, (0.8 + 0.2 + 0.5) / 3, 0.8, (0.8 + 0.2 + 0.5) / 3])
    assert all(s.graded for s in scores) and reward.judge.asked == 3
    table = reward.preferences("q", ["a", "bb", "ccc"])
    expected = torch.tensor([[0.5, 0.2, 0.2], [0.8, 0.5, 0.2], [0.8, 0.8, 0.5]])
    torch.testing.assert_close(table, expected)
    assert reward.judge.asked == 3  # what the reward asked is known


def test_completions_without_a_verdict_leave_and_the_table_of_the_others_is_whole():
    reward = Tournament(Longer())
    scores = reward(["a", "bb?", "ccc", "dddd"], [{"prompt": "q"}] * 4)
    # bb? lacks three comparisons, the others one each: it leaves, and they are compared among themselves.
    assert [s.verdict for s in scores] == ["wrong", "crashed", "wrong", "wrong"]
    assert [s.value for s in scores] == pytest.approx([0.2, None, 0.5, 0.8])
    assert scores[1].why == "longer: unreadable verdict"
    assert reward.preferences("q", ["a", "ccc", "dddd"]).isfinite().all()
    with pytest.raises(ValueError, match="have no verdict of longer"):
        reward.preferences("q", ["a", "bb?"])


def test_prompts_are_apart_and_one_alone_is_skipped():
    reward = Tournament(Longer())
    scores = reward(["a", "bb", "ccc"], [{"prompt": "q"}, {"prompt": "r"}, {"prompt": "q"}])
    assert [s.value for s in scores] == pytest.approx([0.2, None, 0.8]) and scores[1].verdict == "skipped"


def test_what_a_tournament_tells_of_a_language_model():
    """It always takes the first of the two, but where "b" stands second it says nothing one time in two."""
    judge = AIJudge(Stub(lambda prompt, n: "A" if n == 0 or part(prompt, "Response B") != "b" else "Hm."), "text",
                    n_votes=2, decoding=VOTES)  # fmt: skip
    first, second = Tournament(Ordered(judge))(["a", "b"], [{"prompt": "q"}] * 2)
    assert first.value == second.value == 0.5
    # Of four answers three can be read; a first: "a", and b first: "b", twice. One of the three pairs agrees.
    assert first.flags == {"judge/parse_rate": 0.75, "judge/position_bias": 1.0, "judge/first_wins": 1.0,
                           "judge/agreement": pytest.approx(1 / 3)}  # fmt: skip


# -- thoughts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion, prompt, thoughts, output",
    [
        ("four", "", "", "four"),
        ("<think>2 and 2</think> four", "", "2 and 2", " four"),
        ("2 and 2</think>four", "Think.\n<think>", "2 and 2", "four"),
        ("2 and 2", "Think.\n<think>", "2 and 2", None),
        ("<think>2 and", "", "2 and", None),
        ("<think>a</think>b<think>c</think>d", "", "a</think>b<think>c", "d"),
        ("<think>a</think>b<think>c", "", "a", "b"),
        ("b <think>c", "", "c", "b "),
        ("<think>a</think>  ", "", "a", None),
    ],
)
def test_thoughts_are_parted_from_what_is_said(completion, prompt, thoughts, output):
    assert split_thoughts(completion, prompt) == (thoughts, output)
    assert output_of(completion, prompt) == output


def test_a_judge_of_the_answer_sees_no_thoughts():
    writer = Stub(lambda prompt, n: "9")
    said, silent = AIScore(writer, "text", reads="answer")(["<think>SECRET</think>four", "<think>SECRET"], [{}] * 2)
    assert said.value is not None and silent.verdict == "unparseable"
    judge = AIJudge(writer, "text", reads="answer")
    judge([Comparison("q", "<think>SECRET</think>four", "<think>SECRET")])
    assert len(writer.prompts) == 2 and not any("SECRET" in prompt for prompt in writer.prompts)
    assert part(writer.prompts[1], "Response B") == "(This response ends before it answers.)"


# -- rubrics -----------------------------------------------------------------------------------------------------------

RANGES = tuple(Criterion(name, f"It is {name}", max=top) for name, top in (("a", 5), ("b", 3), ("c", 2)))


@pytest.mark.parametrize(
    "ratings, value, clipped, missing",
    [
        ({"a": 5, "b": 3, "c": 2}, 1.0, 0, 0),
        ({"a": 5, "b": 0, "c": 0}, 0.5, 0, 0),
        ({"a": 9, "b": -1, "c": 0}, 0.5, 2, 0),
        ({"a": None, "b": 3, "c": 0}, 0.6, 0, 1),  # 3 / (3 + 2)
        ({}, None, 0, 3),
    ],
)
def test_the_rubrics_formula(ratings, value, clipped, missing):
    assert rubric_value(RANGES, ratings) == (value, clipped, missing)
    strict = rubric_value(RANGES, ratings, strict=True)
    assert strict.value == (None if missing else value)


def test_weights_and_pitfalls():
    kind, long, rude = Criterion("kind", max=2, weight=3), Criterion("long", weight=1), Criterion("rude", weight=-4)
    rubric = (kind, long, rude)
    # Possible: 3 * 2 + 1 * 1 = 7; the pitfall is in the numerator alone.
    assert rubric_value(rubric, {"kind": 2, "long": 0, "rude": 0}).value == pytest.approx(6 / 7)
    assert rubric_value(rubric, {"kind": 2, "long": 0, "rude": 1}).value == pytest.approx(2 / 7)
    assert rubric_value(rubric, {"kind": 0, "long": 0, "rude": 1}).value == 0.0  # -4/7, clipped
    assert rubric_value(rubric, {"rude": 1}).value is None  # nothing to reach is left


class Marks(Stub):
    """Rates a criterion by the number that the response has for it: "a5 b0"."""

    def __init__(self):
        super().__init__(self.mark)

    def mark(self, prompt, n):
        name = prompt.split("nothing else: It is ")[1][0]
        marks = {mark[0]: mark[1:] for mark in part(prompt, "Response").split()}
        return f"Rating: {marks[name]}"


def test_a_rubric_by_a_language_model():
    reward = Rubric(LMJudge(Marks(), "text"), RANGES)
    best, half, clipped, missing = reward(["a5 b3 c2", "a5 b0 c0", "a9 b0 c0", "a? b3 c2"], [{"prompt": "q"}] * 4)
    assert (best.value, best.verdict, half.value) == (1.0, "correct", 0.5)
    assert {id: p.value for id, p in half.parts.items()} == {"a": 5, "b": 0, "c": 0} and half.why == "a 5, b 0, c 0"
    assert clipped.value == 0.5 and clipped.flags["rubric/clipped"] == pytest.approx(1 / 3)
    assert clipped.parts["a"].value == 5.0
    assert missing.value == 1.0 and missing.flags["rubric/missing"] == pytest.approx(1 / 3)
    assert missing.flags["judge/parse_rate"] == pytest.approx(2 / 3)
    [strict] = Rubric(LMJudge(Marks(), "text"), RANGES, strict=True)(["a? b3 c2"], [{"prompt": "q"}])
    assert (strict.value, strict.verdict) == (None, "crashed") and "1 of 3 criteria have no rating" in strict.why


def test_a_row_brings_its_own_rubric():
    own = [
        {"title": "a", "criterion": "It is a", "max": 4, "points": 2, "tags": ["x"]},
        {"id": "b", "description": "It is b", "weight": -2},
    ]
    writer = Marks()
    mine, usual, bad = Rubric(LMJudge(writer, "text"), RANGES)(
        ["a3 b1", "a5 b3 c2", "a1"], [{"rubric": own}, {}, {"rubric": [{"id": "a", "wieght": 2}]}]
    )
    assert mine.value == pytest.approx((2 * 3 - 2 * 1) / (2 * 4)) and usual.value == 1.0
    assert bad.verdict == "skipped" and "unknown key 'wieght'" in bad.why
    [none] = Rubric(LMJudge(writer, "text"))(["a1"], [{}])
    assert none.verdict == "skipped" and "no field 'rubric'" in none.why
    assert [(c.id, c.description) for c in read_rubric(["It is kind", "It is short"])] == [
        ("1", "It is kind"),
        ("2", "It is short"),
    ]


def test_a_criterion_may_name_what_rates_it():
    class Exact:
        name = "exact"

        def __call__(self, completions, rows):
            return [Score(1.0, "correct") if "a5" in c else Score(0.0, "wrong") for c in completions]

    reward = Rubric(
        LMJudge(Marks(), "text"), [RANGES[0], Criterion("form", max=3, judge="exact")], others={"exact": Exact()}
    )
    assert [s.value for s in reward(["a5", "a1"], [{}] * 2)] == pytest.approx([1.0, 1 / 8])


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: Criterion("a", min=1, max=1), "a min below its max"),
        (lambda: Criterion("a", weight=0), "a weight other than 0"),
        (lambda: Criterion("a", min=-2, max=0), "its max must be above 0"),
        (lambda: Rubric(None, RANGES), "criterion 'a' has no judge"),
        (lambda: Rubric(LMJudge(Stub()), [RANGES[0], RANGES[0]]), "'a' is there twice"),
        (lambda: Rubric(LMJudge(Stub()), [Criterion("a", "x", weight=-1)]), "nothing to reach"),
        (lambda: Rubric(LMJudge(Stub()), [Criterion("a", "x", max=0.5)]), "whole numbers, not from 0 to 0.5"),
        (lambda: Rubric(LMJudge(Stub()), [Criterion("a")]), "has no description"),
        (lambda: read_rubric({"a": 1}), "must be a list of criteria"),
    ],
)
def test_rubrics_that_are_wrong(make, told):
    with pytest.raises(ValueError, match=told):
        make()


# -- a specification ---------------------------------------------------------------------------------------------------

SPEC = Spec(
    {
        "law": "Give no help to break a lock that is not one's own.",
        "health": "Point to a doctor, and answer what can be answered.",
    }
)


def test_the_judge_sees_the_part_of_the_specification_and_no_thoughts():
    writer = Stub(lambda prompt, n: "10" if "doctor" in part(prompt, "Response") else "1")
    judge = SpecJudge(writer, "text", spec=SPEC)
    rows = [{"prompt": "my knee hurts", "category": "health"}, {"prompt": "my knee hurts", "category": "health"}]
    good, bad = judge(["<think>SECRET doctor</think>See a doctor.", "<think>SECRET</think>Run."], rows)
    assert (good.value, bad.value) == (1.0, 0.0) and good.flags["spec/compliance"] == 1.0
    assert all("SECRET" not in prompt and "Point to a doctor" in prompt for prompt in writer.prompts)
    assert all("break a lock" not in prompt for prompt in writer.prompts)
    assert judge.score("my knee hurts", "See a doctor.", "health").value == 1.0
    assert judge.score("my knee hurts", "See a doctor.", "love").verdict == "skipped"
    judge.score("my knee hurts", "See a doctor.")
    assert "break a lock" in writer.prompts[-1] and "Point to a doctor" in writer.prompts[-1]  # all of it
    with pytest.raises(ValueError, match="never the thoughts"):
        SpecJudge(writer, spec=SPEC, reads="whole")


def test_flags_of_refusals_and_citations():
    judge = SpecJudge(Stub(lambda prompt, n: "5"), "text", spec=SPEC)
    rows = [{"category": "health", "should_refuse": False}] * 3 + [{"category": "health"}]
    refusal = "<think>The policy says: see a doctor.</think>I'm sorry, I can't help."
    scores = judge([refusal, "<think>Knees.</think>Rest it.", "Rest it.", "I can't help."], rows)
    assert [s.flags.get("spec/overrefusal") for s in scores] == [1.0, 0.0, 0.0, None]
    assert [s.flags.get("spec/citation_rate") for s in scores] == [1.0, 0.0, None, None]


@pytest.mark.parametrize("thoughts, cited", [
    ("It falls under health.", True), ("the guidelines say so", True), ("so point to a doctor and answer it", True),
    ("point to a doctor", False), ("special healthy police", False),
])  # fmt: skip
def test_what_counts_as_a_citation(thoughts, cited):
    assert SPEC.cited_in(thoughts, "health") == cited


def test_quotes_are_measured_in_words():
    assert SPEC.longest_quote("You should give NO help, to break a lock!") == 7
    assert SPEC.longest_quote("") == 0 and SPEC.longest_quote("one's own point to a") == 3
    assert SPEC.repeated_in(
        "as it says: Point to a doctor and answer what can be answered; so"
    ) and not SPEC.repeated_in("Point to a doctor")
    assert not refuses("Here is how. Rest it first. I can't say more.")


def distil(says, rates, problems=None, **more):
    writer = Stub(says)
    judge = SpecJudge(Stub(rates), "text", spec=SPEC, decoding=VOTES)
    asked = problems or [Problem("my knee hurts", {"category": "health"})]
    return build_context_distilled(writer, judge, asked, **{"n": 1, **more}), writer, judge.writer


def test_rows_hold_no_specification():
    says = [
        "<think>Health bears on it.</think>See a doctor.",
        "<think>Point to a doctor, and answer what can be answered.</think>See one.",  # a whole category
        "<think>only thoughts",
        "<think>x</think>Run.",
    ]
    made, writer, judge = distil(
        lambda prompt, n: says[n], lambda prompt, n: "1" if "Run" in prompt else "10", n=4, threshold=0.5
    )
    assert "Point to a doctor" in writer.prompts[0] and writer.prompts[0].endswith("my knee hurts")
    [row] = made.rows
    assert row == {"prompt": "my knee hurts", "completion": says[0], "category": "health", "spec_score": 1.0,
                   "spec_scores": [1.0], "source": "ai"}  # fmt: skip
    assert all(text not in str(made.rows) for text in SPEC.categories.values())
    assert made.counted == {"repeats the specification": 1, "no answer": 1, "judged below 0.5": 1}
    assert made.metrics["spec/kept"] == 0.25 and made.metrics["spec/compliance"] == pytest.approx(0.5)
    assert not any("bears" in prompt for prompt in judge.prompts)  # thoughts are not shown


def test_the_lowest_of_several_runs_decides():
    rates = iter(["10", "8", "9", "10"])  # two completions in each of two runs: 10 and 9, 8 and 10
    says = ["See a doctor.", "See one."]
    made, _, judge = distil(lambda prompt, n: says[n], lambda prompt, n: next(rates), n=2, runs=2, threshold=0.85)
    # Ratings of 1 to 10 become 0 to 1: 8 is 7/9, 9 is 8/9. The second one's lowest, 7/9, is too low.
    [row] = made.rows
    assert row["completion"] == "See a doctor." and row["spec_scores"] == pytest.approx([1.0, 8 / 9])
    assert row["spec_score"] == pytest.approx(8 / 9) and len(set(judge.seeds)) == 2
    with pytest.raises(ValueError, match="runs = 2 would all be the same"):
        build_context_distilled(Stub(), SpecJudge(Stub(), spec=SPEC), [], runs=2)


def test_what_cannot_be_judged_is_counted_and_nothing_left_is_told():
    cut = Rollout("p", "x", [1, 2], [False, True], [0.0, 0.0], finish="length")
    with pytest.raises(ValueError, match="no completion was kept: 1 a category that .*, 1 cut at max_new_tokens"):
        distil(lambda prompt, n: cut, lambda prompt, n: "9",
               [Problem("q", {"category": "love"}), Problem("q", {"category": "law"})])  # fmt: skip
    with pytest.raises(ValueError, match="1 not judged: crashed"):
        distil(lambda prompt, n: "See a doctor.", lambda prompt, n: "Hm.")


def test_the_specification_goes_before_a_chat():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    shown = with_spec(chat, "Be kind.", "{spec}")
    assert (
        shown == [{"role": "system", "content": "Be kind.\nBe brief."}, chat[1]] and chat[0]["content"] == "Be brief."
    )
