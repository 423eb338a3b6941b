"""Which program a completion stands for."""

import pytest

from fiducial.sandbox.box.program import NoCode, assemble, code_of

STUB = 'from math import sqrt\n\n\ndef half(x):\n    return x / 2\n\n\ndef root(x):\n    """The root of x."""\n'
BODY = "    y = sqrt(x)\n    return y\n"


def root_of_nine(program):
    space = {}
    exec(program, space)
    return space["root"](9)


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        BODY.lstrip(),  # samplers strip
        "y = sqrt(x)\nreturn y\n",  # all indentation lost
        BODY + "\n\ndef main(:\n    this is not",  # runs on into nonsense
        BODY + "\nThat is the root.",
        BODY + "```\nThat was it.",  # closes a fence that the prompt opened
        "def root(x):\n    return sqrt(x)\n",  # the whole function
        "def root(x):\n    return sqrt(x)\n\nroot(9)\nprint('done')",
        "from math import sqrt\nroot = lambda x: sqrt(x)",
        f"```python\n{STUB}{BODY}```",
        f"```\n{BODY}```",
        f"First a try:\n```python\ndef root(x):\n    return 0\n```\nBetter:\n```python\n{STUB}{BODY}```\nCall it:\n"
        "```python\nroot(9)\n```",
        f"```python\n{STUB}{BODY}```\nRun it:\n```bash\npython root.py\n```",
        "1. So:\n   ```python\n   def root(x):\n       return sqrt(x)\n   ```\n",
        f"<think>\n```python\ndef root(x):\n    return 0\n```\n</think>\n```python\n{STUB}{BODY}```",
        f"<think>hm</think><answer>{STUB}{BODY}</answer>",
        f"```python\n{STUB}{BODY}",  # cut off before the fence closes
        "~~~python\ndef root(x):\n    return sqrt(x)\n~~~",
        "Here it is:\n\ndef root(x):\n    return sqrt(x)\n\nIt takes the root.",
    ],
)
def test_the_same_function_in_many_forms(completion):
    assert root_of_nine(assemble(STUB, completion, "root")) == 3


@pytest.mark.parametrize(
    "completion",
    [
        f"{STUB}{BODY}",
        f"Sure.\n```python\n{STUB}{BODY}```",
        f"Here it is:\n\n{STUB}{BODY}\nIt takes the root.",
    ],
)
def test_a_prompt_in_words_needs_the_whole_program(completion):
    assert root_of_nine(assemble("Write a function root(x).", completion, "root")) == 3


def test_an_open_function_and_a_method_are_continued():
    space = {}
    exec(assemble("def add(a, b):", " return a + b", "add"), space)
    exec(assemble("class Solution:\n    def twice(self, x):\n", "        return 2 * x\n", "Solution.twice"), space)
    assert (space["add"](1, 2), space["Solution"]().twice(4)) == (3, 8)


def test_without_an_entry_point_the_prompt_names_it():
    assert root_of_nine(assemble(STUB, BODY, "")) == 3


@pytest.mark.parametrize(
    "completion", ["", "  \n", "```python\n```", "I would rather not.", "<think>def root(x): ...</think>"]
)
def test_no_code(completion):
    with pytest.raises(NoCode):
        assemble("Write root(x).", completion, "root")


@pytest.mark.parametrize("completion", ["    return (x\n", "    retrun x\n", "```python\ndef root(x:\n```"])
def test_code_that_is_not_python(completion):
    with pytest.raises(SyntaxError):
        assemble(STUB, completion, "root")


def test_fences_are_read_in_one_pass():
    text = "```python\n" * 20_000
    assert code_of(text, "root", False)[1]  # would take minutes if each fence looked for its end
