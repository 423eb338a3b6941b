"""What a completion says to its reader, without the thoughts before it."""

from __future__ import annotations

from fiducial.core.types import Prompt

OPEN, CLOSE = "<think>", "</think>"


def split_thoughts(completion: str, prompt: Prompt = "") -> tuple[str, str | None]:
    """The thoughts of a completion and what follows them, None where they never end. A prompt whose text ends in
    `<think>` has opened them.

    >>> split_thoughts("<think>2 and 2</think> four"), split_thoughts("four"), split_thoughts("<think>2 and")
    (('2 and 2', ' four'), ('', 'four'), ('2 and', None))
    """
    before, closed, output = completion.rpartition(CLOSE)
    if closed:
        said = output.partition(OPEN)[0]  # and not what it thinks again
        return before.strip().removeprefix(OPEN), said if said.strip() else None
    opened = isinstance(prompt, str) and prompt.rstrip().endswith(OPEN)
    outside, inside, thoughts = completion.partition(OPEN)
    if inside:
        return thoughts, outside if outside.strip() else None
    return (completion, None) if opened else ("", completion)


def output_of(completion: str, prompt: Prompt = "") -> str | None:
    """What a completion says after its thoughts; None where it says nothing."""
    output = split_thoughts(completion, prompt)[1]
    return output if output and output.strip() else None
