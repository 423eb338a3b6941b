"""The program that a completion stands for: a fenced block, a whole function, or the rest of the prompt's function."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

PYTHON = ("", "py", "python", "python3")  # labels of a fence that holds the program
TRIES = 64  # places at which a text that does not parse may end earlier
_STARTS = re.compile(r"^(?:def |async def |class |import |from |@)", re.MULTILINE)

Definition = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class NoCode(Exception):
    """The completion holds no code."""


def assemble(prompt: str, completion: str, entry_point: str = "") -> str:
    r"""Source of the program: the prompt, where it is code, and what the completion adds to it or replaces.

    Raises NoCode where there is none, SyntaxError where it is not Python.

    >>> print(assemble("def double(x):\n", "    return 2 * x\nThat is all!", "double"))
    def double(x):
        return 2 * x
    """
    head = opened(prompt)
    entry_point = entry_point.partition(".")[0] or last_stub(head)
    text, fenced = code_of(completion, entry_point, bool(head))
    if not text.strip():
        raise NoCode("the completion holds no code")
    own = parse(text)
    if own and (not head or _defines(own, entry_point)):
        return _joined(head, text)
    if head:
        for program in _continuations(prompt, text):
            tree = parse(program)
            if tree and _has_body(tree, entry_point) and _compiles(program):
                return program.rstrip("\n")
    if own:
        return _joined(head, text)
    for start in [match.start() for match in _STARTS.finditer(text)][:1]:  # a sentence, then the code
        for part in (text[start:], *_prefixes(text[start:])):
            if (tree := parse(part)) and _defines(tree, entry_point):
                return _joined(head, part)
    if fenced or head:
        ast.parse(text)  # says where it is wrong
    raise NoCode("the completion is no Python code")


def code_of(completion: str, entry_point: str, continues: bool) -> tuple[str, bool]:
    """The text of a completion that is code, and whether it stood in a fence.

    Of several fences the last one that defines the entry point, else the last one for Python. What stands before the
    end of a thought (`</think>`) is left out. Where the prompt is code, a completion may close a fence of the prompt.
    """
    text = completion.rsplit("</think>", 1)[-1]
    answers = text.rsplit("<answer>", 1)
    text = answers[-1].split("</answer>", 1)[0]
    before, blocks = _fences(text)
    if not blocks:
        return text, False
    label, first, closed = blocks[0]
    if continues and before.strip() and label == "" and not closed and len(blocks) == 1:
        return before, False
    python = [block for label, block, _ in blocks if label in PYTHON] or [block for _, block, _ in blocks]
    pattern = re.compile(rf"^\s*(?:async\s+def|def|class)\s+{re.escape(entry_point)}\b", re.MULTILINE)
    naming = [block for block in python if entry_point and pattern.search(block)]
    return (naming or python)[-1], True


def _fences(text: str) -> tuple[str, list[tuple[str, str, bool]]]:
    """What stands before the first fence, and of each block its label, its text and whether it is closed."""
    before: list[str] = []
    blocks: list[tuple[str, str, bool]] = []
    mark, indent, label, lines = "", 0, "", before
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if not mark and bare.startswith(("```", "~~~")) and "`" not in bare.lstrip("`"):
            mark = bare[: len(bare) - len(bare.lstrip(bare[0]))]
            label = (bare[len(mark) :].split() or [""])[0].lower()
            indent, lines = len(line) - len(line.lstrip()), []
        elif mark and bare.startswith(mark) and not bare.strip(mark[0]):
            blocks.append((label, "".join(lines), True))
            mark, lines = "", []
        else:
            lines.append(line[indent:] if mark and not line[:indent].strip() else line)
    if mark:
        blocks.append((label, "".join(lines), False))
    return "".join(before), blocks


def parse(source: str) -> ast.Module | None:
    """The syntax tree; None where it is not Python, or too deep or too large for Python's own parser."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _compiles(source: str) -> bool:
    """Whether it is a program: a `return` at the margin parses, but is none."""
    try:
        compile(source, "solution.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def opened(prompt: str) -> str:
    """The prompt, where it is code: with a body for a function that it leaves open. Empty where it is none."""
    for closing in ("", "\n    pass\n", "\n        pass\n"):
        tree = parse(prompt + closing)
        if tree and any(isinstance(node, (*Definition, ast.Import, ast.ImportFrom)) for node in tree.body):
            return prompt + closing
    return ""


def last_stub(head: str) -> str:
    """The name of the last function or class that the prompt defines: the one that is asked for."""
    tree = parse(head)
    names = [node.name for node in tree.body if isinstance(node, Definition)] if tree else []
    return names[-1] if names else ""


def _defines(tree: ast.Module, name: str) -> bool:
    """Whether the program gives `name` a value; any program does where no name is asked for."""
    for node in tree.body:
        if isinstance(node, Definition) and node.name == name:
            return True
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return True
    return not name


def _has_body(tree: ast.Module, name: str) -> bool:
    """Whether the last definition of `name` says more than its docstring."""
    found = [node for node in tree.body if isinstance(node, Definition) and node.name == name]
    if not found:
        return not name
    body = found[-1].body[1:] if ast.get_docstring(found[-1], clean=False) is not None else found[-1].body
    return bool(body) or isinstance(found[-1], ast.ClassDef)


def _continuations(prompt: str, text: str) -> Iterator[str]:
    """Prompt and completion as one text: as it is, with the indentation that the first line or all of them lost, each
    also cut at a line that starts at the margin."""
    import textwrap  # here: a start must be quick

    lost_first = "    " + text.lstrip(" \t\n")
    bodies = (text, lost_first, textwrap.indent(textwrap.dedent(text), "    "))
    for part in (*bodies, *(part for body in bodies for part in _prefixes(body))):
        yield prompt + part
        if not prompt.endswith("\n"):
            yield f"{prompt}\n{part}"


def _prefixes(text: str) -> Iterator[str]:
    """What stands before each line at the margin, the last such line first."""
    margins = [match.start() for match in re.finditer(r"^\S", text, re.MULTILINE) if match.start()]
    for end in margins[: -TRIES - 1 : -1]:
        yield text[:end]


def _joined(head: str, text: str) -> str:
    return f"{head}\n\n{text}" if head else text
