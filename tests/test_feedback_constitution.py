"""Constitutional AI with stub models: principles drawn evenly, revisions that build on each other, clamped labels."""

import json
import math
from collections import Counter

import pytest

from fiducial.core.types import Decoding, Rollout, Score
from fiducial.data import parse
from fiducial.data.feedback import (
    PRINCIPLES,
    Made,
    Principle,
    draw_principle,
    mix,
    principled_pairs,
    read_principles,
    revised_demos,
)
from fiducial.judges import AIJudge

KIND = (Principle("kind", "The response should be kind."),)


class Reviser:
    """Writes `first` to a prompt; criticises what is flagged; a revision deletes one flagged word."""

    def __init__(self, first="bad words and bad deeds", critique="it says bad"):
        self.first, self.critique, self.requests, self.seeds = first, critique, [], []

    def answer(self, prompt) -> str:
        text = prompt if isinstance(prompt, str) else prompt[0]["content"]
        if text.endswith("Critique:"):
            return self.critique
        if text.endswith("New response:"):
            return text.split("[Response]\n")[1].split("\n\n[Principle]")[0].replace("bad ", "", 1)
        return self.first

    def sample(self, prompts, n=1, seed=0, **decoding):
        self.requests += prompts
        self.seeds.append(seed)
        return [Rollout(p, self.answer(p), [1, 2], [False, True], [0.0, 0.0]) for p in prompts for _ in range(n)]


class Harmless:
    """Minus the number of flagged words."""

    name = "harmless"

    def __call__(self, completions, rows):
        return [Score(-float(text.count("bad")), "wrong") for text in completions]


# -- principles --------------------------------------------------------------------------------------------------------


def test_principles_are_drawn_evenly():
    """chi-square with 9 degrees of freedom is below 21.67 with probability 0.99."""
    drawn = Counter(draw_principle(PRINCIPLES, 0, row, round).id for row in range(2500) for round in range(4))
    assert len(PRINCIPLES) == 10 and len(drawn) == 10
    assert sum((count - 1000) ** 2 / 1000 for count in drawn.values()) < 21.67


def test_a_draw_depends_on_its_place_alone():
    first = [draw_principle(PRINCIPLES, 1, row, 2).id for row in range(50)]
    assert first == [draw_principle(PRINCIPLES, 1, row, 2).id for row in range(50)]
    assert first != [draw_principle(PRINCIPLES, 2, row, 2).id for row in range(50)]


def test_principles_of_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(["be brief", {"id": "kind", "text": " be kind "}]))
    assert read_principles(path) == (Principle("1", "be brief"), Principle("kind", "be kind"))


@pytest.mark.parametrize(
    "text, says",
    [
        ("[", "line 1: malformed JSON"),
        ("[]", "must hold a list of principles"),
        ('[{"id": "a"}]', "principle 1 must be a sentence, or an object"),
        ('["be kind", " "]', "principle 2 is empty"),
        ('["x", {"id": "1", "text": "y"}]', "the id '1' is there twice"),
    ],
)
def test_broken_principles_are_refused(tmp_path, text, says):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="mine.json.*" + says):
        read_principles(path)


# -- stage 1 -----------------------------------------------------------------------------------------------------------


def test_harm_never_grows_and_goes_one_word_a_round():
    made = revised_demos(Reviser(), ["p1", "p2"], principles=KIND, scorer=Harmless())
    for row in made.rows:
        assert row["harmlessness"] == [-2.0, -1.0, 0.0, 0.0, 0.0]
        assert row["initial"] == "bad words and bad deeds" and row["completion"] == "words and deeds"
        assert [r["revision"] for r in row["rounds"]][0] == "words and bad deeds"
        assert {(r["principle_id"], r["critique"]) for r in row["rounds"]} == {("kind", "it says bad")}
    assert [made.metrics[f"harmlessness/round_{k}"] for k in range(5)] == [-2, -1, 0, 0, 0]
    assert [(demo.prompt, demo.completion) for row in made.rows for demo in parse(row, "demos")] == [
        ("p1", "words and deeds"), ("p2", "words and deeds")
    ]  # fmt: skip


def test_no_revision_returns_the_original():
    [row] = revised_demos(Reviser(), ["p"], n_revisions=0).rows
    assert row["completion"] == row["initial"] == "bad words and bad deeds" and row["rounds"] == []


def test_a_request_shows_the_latest_response_the_principle_and_the_critique():
    writer = Reviser()
    revised_demos(
        writer, [[{"role": "user", "content": "hello {response}"}]], principles=KIND, n_revisions=2, chat=True
    )
    first, *requests = writer.requests
    assert first == [{"role": "user", "content": "hello {response}"}]
    texts = [request[0]["content"] for request in requests]
    assert len(texts) == 4 and all("User: hello {response}\n" in text for text in texts)
    assert all("The response should be kind.\n" in text for text in texts)
    assert "it says bad" in texts[1] and "it says bad" not in texts[0]
    assert "[Response]\nwords and bad deeds\n" in texts[2]  # the second critique is of the first revision
    assert len(set(writer.seeds)) == 5


def test_different_rows_meet_different_principles():
    rows = revised_demos(Reviser(), [f"p{i}" for i in range(40)], n_revisions=1).rows
    assert len({row["rounds"][0]["principle_id"] for row in rows}) >= 8  # 10 * (1 - 0.9 ** 40) = 9.85 are expected


def test_rounds_meet_different_principles():
    [row] = revised_demos(Reviser(), ["p"], n_revisions=20).rows
    assert len({round["principle_id"] for round in row["rounds"]}) >= 5  # 10 * (1 - 0.9 ** 20) = 8.8 are expected


def test_empty_texts_and_prompts_without_room_are_counted():
    made = revised_demos(Reviser(), ["p", "too long"], n_revisions=1, fits=lambda prompt, n: prompt != "too long")
    assert len(made.rows) == 1 and made.counted == {"too long for the model": 1}
    with pytest.raises(ValueError, match="no response was revised: 2 empty critique"):
        revised_demos(Reviser(critique=" "), ["p", "q"])
    with pytest.raises(ValueError, match="no response was revised: 1 empty response"):
        revised_demos(Reviser(first=""), ["p"])
    with pytest.raises(ValueError, match="n_revisions must be 0 or more; it is -1"):
        revised_demos(Reviser(), ["p"], n_revisions=-1)


def test_cut_completions_are_told_and_stop_strings_leave():
    class Cut(Reviser):
        def sample(self, prompts, n=1, seed=0, **decoding):
            finish = "length" if prompts[0] == "p0" else "stop"
            return [Rollout(p, "text\nHuman:", [1, 2], [False, True], [0.0, 0.0], finish=finish) for p in prompts]

    decoding = Decoding(max_new_tokens=7, stop=("\nHuman:",))
    [row] = revised_demos(Cut(), ["p1"], n_revisions=0, decoding=decoding).rows
    assert row["completion"] == "text"
    made = revised_demos(Cut(), ["p0"], n_revisions=0, decoding=decoding)
    assert made.notes == ["1 of 1 completions were cut at max_new_tokens = 7: raise it"]


def test_what_cannot_be_scored_is_told():
    class Picky(Harmless):
        def __call__(self, completions, rows):
            return [Score(None, "skipped") if "bad" in text else Score(1.0, "correct") for text in completions]

    made = revised_demos(Reviser(), ["p"], n_revisions=2, scorer=Picky())
    assert made.rows[0]["harmlessness"] == [None, None, 1.0]
    assert made.metrics == {"harmlessness/round_2": 1.0}
    assert made.notes == ["harmless could not score 2 of 3 responses"]


# -- stage 2 -----------------------------------------------------------------------------------------------------------


class Pairs:
    """Writes two responses to each prompt."""

    def __init__(self, texts=("kind", "rude words")):
        self.texts = texts

    def sample(self, prompts, n=1, seed=0, **decoding):
        assert n == 2
        return [Rollout(p, text, [1, 2], [False, True], [0.0, 0.0]) for p in prompts for text in self.texts]


class Feedback:
    """Finds the response "kind" better with log-odds `odds`, wherever it stands."""

    def __init__(self, odds):
        self.odds, self.asked = odds, []

    def sample(self, prompts, n=1, seed=0, **decoding):
        return [Rollout(p, "reasons", [1, 2], [False, True], [0.0, 0.0]) for p in prompts]

    def option_logprobs(self, prompts, options):
        self.asked += prompts
        first = [prompt.split("[Response A]\n")[1].startswith("kind") for prompt in prompts]
        return [[-10 + self.odds * ((option.strip() == "A") == f) for option in options] for f in first]


def test_labels_are_normalised_option_probabilities():
    feedback = Feedback(odds=3.0)
    made = principled_pairs(Pairs(), AIJudge(feedback), ["p"], principles=KIND)
    [row] = made.rows
    assert row["chosen"] == "kind" and row["pref_prob"] == pytest.approx(1 / (1 + math.exp(-3.0)))
    assert row["principle_id"] == "kind" and row["source"] == "ai"
    assert "which one keeps better to this principle: The response should be kind.\n" in feedback.asked[0]
    assert [pair.weight for pair in parse(row, "pairs")] == pytest.approx([row["pref_prob"], 1 - row["pref_prob"]])


@pytest.mark.parametrize("odds, label", [(3.0, 0.6), (-3.0, 0.6), (0.1, 1 / (1 + math.exp(-0.1)))])
def test_labels_after_reasons_are_clamped(odds, label):
    [row] = principled_pairs(Pairs(), AIJudge(Feedback(odds), reasoning=True), ["p"]).rows
    assert row["chosen"] == ("kind" if odds > 0 else "rude words")
    assert row["pref_prob"] == pytest.approx(label) and 0.4 <= row["pref_prob"] <= 0.6
    assert row["judge"]["rationale"] == ["reasons", "reasons"]


def test_equal_and_empty_responses_are_counted():
    judge = AIJudge(Feedback(1.0))
    with pytest.raises(ValueError, match="no pair was made: 2 equal sides"):
        principled_pairs(Pairs(("a", "a")), judge, ["p", "q"])
    with pytest.raises(ValueError, match="no pair was made: 1 empty response"):
        principled_pairs(Pairs(("a", " ")), judge, ["p"])
    made = principled_pairs(Pairs(), judge, ["p", "long"], fits=lambda prompt, n: prompt != "long")
    assert len(made.rows) == 1 and made.counted == {"too long for the model": 1}


# -- mixed with helpful rows -------------------------------------------------------------------------------------------

OURS = Made([{"prompt": f"p{i}", "completion": "c", "source": "ai"} for i in range(6)])
HELPFUL = [{"prompt": f"h{i}", "completion": "d"} for i in range(10)] + [{"prompt": "h", "completion": ""}]


def test_all_helpful_rows_are_mixed_in():
    made = mix(OURS, HELPFUL, "demos")
    assert Counter(row["source"] for row in made.rows) == {"ai": 6, "human": 10}
    assert made.counted == {"helpful row: empty field": 1}
    assert made.notes == ["6 rows by principles and 10 helpful ones (62%)"]
    assert [row["source"] for row in made.rows] != sorted(row["source"] for row in made.rows)  # shuffled


def test_a_share_of_helpful_rows():
    made = mix(OURS, HELPFUL, "demos", share=0.4)  # 0.4 / 0.6 * 6 = 4
    assert Counter(row["source"] for row in made.rows) == {"ai": 6, "human": 4}
    with pytest.raises(ValueError, match="0.8 helpful rows beside 6 others is 24, but only 10 can be used"):
        mix(OURS, HELPFUL, "demos", share=0.8)
    with pytest.raises(ValueError, match="must lie in \\[0, 1\\); it is 1"):
        mix(OURS, HELPFUL, "demos", share=1)
