"""The prompt of R1-Zero: what it renders is read back, and agrees with the verifier `format`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiducial.data.r1_zero import Parts, R1Zero
from fiducial.rewards import build

TEXT = st.text(alphabet="ab 12+=\n<>/.", max_size=40).filter(lambda text: "think" not in text)


def judged(template, completion, question="What is 2 + 2?"):
    (score,) = build("format")([completion], [{"prompt": template.render(question)}])
    return score.verdict


@pytest.mark.parametrize("prefill", [False, True])
@given(thought=TEXT, answer=TEXT)
def test_what_is_written_is_read_back_and_has_the_format(prefill, thought, answer):
    template = R1Zero(prefill=prefill)
    completion = template.completion(thought, answer)
    assert template.parse(completion) == Parts(thought.strip(), answer.strip())
    assert judged(template, completion) == "correct"


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "4",
        "<think>a</think><answer>4",
        "<answer>4</answer><think>a</think>",
        "<think>a<answer>4</answer></think>",
        "So: <think>a</think><answer>4</answer>",
        "<think>a</think> hence <answer>4</answer>",
        "<think>a</think><answer>4</answer> Done.",
        "<think>a</think><answer>4</answer><answer>5</answer>",
        "<think><think>a</think><answer>4</answer>",
    ],
)
def test_reading_and_the_verifier_refuse_the_same(completion):
    for template in (R1Zero(), R1Zero(prefill=True)):
        assert template.parse(completion) is None
        assert judged(template, completion) == "wrong"


def test_the_prompt():
    prompt = R1Zero().render("What is 2 + 2?")
    assert prompt.startswith("A conversation between User and Assistant.")
    assert "<think> reasoning process here </think> <answer> answer here </answer>" in prompt
    assert prompt.endswith("User: What is 2 + 2?\nAssistant:")
    opened = R1Zero(prefill=True)
    assert opened.render("x") == R1Zero().render("x") + " <think>"
    for completion in ("so</think><answer>4</answer>", "<think>so</think><answer>4</answer>"):  # counted once
        assert opened.parse(completion) == Parts("so", "4") and judged(opened, completion) == "correct"
    assert R1Zero().parse("so</think><answer>4</answer>") is None
    own = R1Zero(think="reason", answer="result")
    assert own.parse(own.completion("a", "b")) == Parts("a", "b") and "<reason>" in own.render("x")
    with pytest.raises(ValueError, match="need different tags"):
        R1Zero(think="answer")
    with pytest.raises(ValueError, match="a tag's name"):
        R1Zero(think="my thought")
