"""The tests of a row, run one by one in the harness.

What is one test: a case of input and output; an assert string of a list; of Python source each statement at the top
level, or in the body of `check(candidate)`, that holds an `assert` (so a loop of asserts is one test). Where there is
none, each function `test_*` is one, else `check(candidate)` as a whole, else the source as a whole.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from fiducial.sandbox.box.program import Definition, last_stub, opened

LINE = 100  # characters of a test in a message

Step = Callable[[], Any]
Job = dict[str, Any]


class Broken(Exception):
    """The row's own tests do not run: no verdict on the candidate."""


class Failed(Exception):
    """The candidate cannot be tested: its code does not load, or lacks what is asked for."""

    def __init__(self, verdict: str, why: str):
        super().__init__(why)
        self.verdict = verdict


class Mismatch(Exception):
    """A case whose output is not the expected one."""


class Test:
    """What is run for one test: statements that prepare, then the test itself."""

    def __init__(self, label: str, steps: list[Step] | None = None):
        self.label, self.steps = label, steps or []


def judge(job: Job, box: Any, tell: Callable[[Job], None]) -> Job:
    """{"verdict", "passed", "of", "why"} of a job; `tell` hears which test is about to run.

    Raises Failed, Broken, or the box's own error when the candidate's process ends.
    """
    head = opened(job["prompt"])
    space, stubs = _prompt_space(head)
    entry = job["entry_point"] or last_stub(head)
    for name in {*stubs, entry.partition(".")[0]}:
        space.pop(name, None)  # what the candidate is to write
    box.shared = {name: kind for name, kind in space.items() if getattr(kind, "__module__", "") == "tests"}
    box.shared = {name: kind for name, kind in box.shared.items() if isinstance(kind, type)}
    runs = bool(job["cases"]) and isinstance(job["cases"][0]["input"], str)
    names = _load(job, box, runs)
    if runs:
        tests = [Test(f"input {_short(case['input'])}", [_Program(box, case)]) for case in job["cases"]]
    elif job["cases"]:
        function = _entry(box, names, entry)
        tests = [Test(f"input {_short(case['input'])}", [_Call(function, case)]) for case in job["cases"]]
    else:
        trees = [_parsed(source) for source in (*job["setup"], *job["sources"])]
        _bind(space, stubs, trees, names, entry, box)
        tests = []
        for tree, alone in zip(trees, [False] * len(job["setup"]) + [job["listed"]] * len(job["sources"]), strict=True):
            tests = _joined(tests, _tests_of(tree, space, alone, lambda: _entry(box, names, entry)))
    return _tally(_whole(tests)[: job["max_tests"] or None], box, job["all"], tell)


def _tally(tests: list[Test], box: Any, all_must: bool, tell: Callable[[Job], None]) -> Job:
    """How many tests pass; with `all_must` the first that fails ends it."""
    passed, first = 0, ""
    for number, test in enumerate(tests, 1):
        tell({"test": number, "of": len(tests)})
        why = _outcome(test, box)
        passed += not why
        first = first or (why and f"test {number} of {len(tests)}, {test.label}: {why}")
        if why and all_must:
            break
    verdict = "correct" if passed == len(tests) else "wrong"
    return {"verdict": verdict, "passed": passed, "of": len(tests), "why": first or f"all {len(tests)} tests pass"}


def _outcome(test: Test, box: Any) -> str:
    """Why a test fails; empty when it passes."""
    try:
        for step in test.steps:
            step()
    except Failed:
        raise
    except Mismatch as error:
        return str(error)
    except AssertionError as error:
        return f"AssertionError {error}".rstrip()[:200]
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"[:200]
        if not box.asked and not isinstance(error, NameError):
            raise Broken(f"the row's tests do not run: {told}") from None
        return told
    return ""


# -- the candidate and what it defines


def _load(job: Job, box: Any, runs: bool) -> dict[str, str]:
    """Have the program loaded; the names that it defines. Raises Failed where it does not load."""
    request = {name: job[name] for name in ("prompt", "completion", "entry_point")}
    reply = box.ask({**request, "shared": sorted(box.shared), "runs": runs})
    box.asked = 0  # tests that fail from here on, before anything was asked, are broken themselves
    if "unparseable" in reply:
        raise Failed("unparseable", str(reply["unparseable"])[:200])
    if "raise" in reply:
        raise Failed("wrong", f"its code does not load: {': '.join(map(str, reply['raise'][1:]))[:200]}")
    names = reply.get("names")
    if not isinstance(names, dict):
        raise Failed("wrong", "its process sent what is no reply")
    return {name: str(kind) for name, kind in names.items()}


def _entry(box: Any, names: dict[str, str], entry: str) -> Any:
    """The function or class that is tested: the entry point, else the last one that the program defines."""
    callables = [name for name, kind in names.items() if kind in ("function", "class")]
    wanted = entry or (callables[-1] if callables else "")
    if wanted.partition(".")[0] not in names:
        raise Failed("wrong", f"its code does not define {wanted!r}" if wanted else "its code defines no function")
    return box.named(wanted, "function")


def _bind(
    space: dict[str, Any], stubs: dict[str, bool], trees: list[ast.Module], names: dict[str, str], entry: str, box: Any
) -> None:
    """Give the tests the names that only the candidate defines, the entry point, and modules that they use unimported.

    A name means a class where the prompt says so or it is written like one: the candidate has no say in it.
    """
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    first = entry.partition(".")[0]
    for name in used:
        if name != first and (name in space or hasattr(builtins, name)):
            continue
        if name in names:
            try:
                space[name] = box.named(name, names[name], stubs.get(name, name.lstrip("_")[:1].isupper()))
            except Exception as error:  # it raised that, in place of the value
                raise Failed("wrong", f"its {name!r} has no value: {type(error).__name__}: {error}"[:200]) from None
        elif name in sys.stdlib_module_names:
            space[name] = importlib.import_module(name)


def _prompt_space(head: str) -> tuple[dict[str, Any], dict[str, bool]]:
    """The names that the prompt's own code defines, and the stubs that the candidate is to write: is it a class?"""
    module = types.ModuleType("tests")
    sys.modules["tests"] = module  # dataclasses look their module up
    tree = _parsed(head)
    open_ones = [node for node in tree.body if isinstance(node, Definition) and _is_stub(node)]
    stubs = {node.name: isinstance(node, ast.ClassDef) for node in open_ones}
    try:
        exec(compile(tree, "prompt.py", "exec"), vars(module))
    except Exception:  # a prompt that does not run by itself lends the tests what it defined until then
        pass
    return vars(module), stubs


def _is_stub(node: ast.AST) -> bool:
    """Whether a definition has nothing in its body, or a class a method without one."""
    if isinstance(node, ast.ClassDef):
        return any(_is_stub(inner) for inner in node.body if isinstance(inner, Definition))
    empty = (ast.Pass, ast.Raise)
    return all(
        isinstance(s, empty) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        for s in node.body  # type: ignore[attr-defined]
    )


# -- tests from source


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Broken(f"the row's tests are not Python: {error}") from None


def _tests_of(tree: ast.Module, space: dict[str, Any], alone: bool, entry: Callable[[], Any]) -> list[Test]:
    """The tests of a source; with `alone` it is one test. What follows the last test belongs to it."""
    body = [statement for statement in tree.body if not _calls_check(statement)]
    if alone:
        return [Test(_label(body[0]) if body else "", [_step(s, space) for s in body])]
    tests = _split(body, space)
    check = next((s for s in reversed(body) if isinstance(s, ast.FunctionDef) and s.name == "check"), None)
    if check is not None:
        tests = _joined(tests, _check_tests(check, space, entry))
    elif not any(test.label for test in tests):
        named = [s.name for s in body if isinstance(s, ast.FunctionDef) and s.name.startswith("test")]
        found = [Test(f"{name}()", [lambda name=name: space[name]()]) for name in named]
        tests = _joined(tests, found)
    return tests


def _split(statements: list[ast.stmt], scope: dict[str, Any]) -> list[Test]:
    """Statements as tests: each that holds an assert ends one. The last has no label where no assert follows."""
    tests = [Test("")]
    for statement in statements:
        tests[-1].steps.append(_step(statement, scope))
        asserts = any(isinstance(node, ast.Assert) for node in ast.walk(statement))
        if asserts and not isinstance(statement, Definition):
            tests[-1].label = _label(statement)
            tests.append(Test(""))
    return tests


def _check_tests(check: ast.FunctionDef, space: dict[str, Any], entry: Callable[[], Any]) -> list[Test]:
    """The statements of `check(candidate)` as tests, run as if they stood at the top level; else the call as one."""
    own = [node for node in ast.walk(check) if not isinstance(node, Definition) or node is check]
    leaves = any(isinstance(node, ast.Return | ast.Yield | ast.YieldFrom | ast.Nonlocal | ast.Global) for node in own)
    if len(check.args.args) == 1 and not check.args.defaults and not leaves:
        scope: dict[str, Any] = {}

        def enter() -> None:
            scope.update(space)
            scope[check.args.args[0].arg] = entry()

        tests = _split(check.body, scope)
        if any(test.label for test in tests):
            tests[0].steps.insert(0, enter)
            return tests
    return [Test("check(candidate)", [lambda: space["check"](entry())])]


def _joined(tests: list[Test], more: list[Test]) -> list[Test]:
    """Both, with the steps that no test of the first used before the first test of the second."""
    if tests and more and not tests[-1].label:
        more[0].steps[:0] = tests.pop().steps
    return tests + more


def _whole(tests: list[Test]) -> list[Test]:
    """The tests, with steps after the last one added to it; where there is none, all steps are one test."""
    if len(tests) > 1 and not tests[-1].label:
        rest = tests.pop()
        tests[-1].steps += rest.steps
    if not tests or not any(test.steps for test in tests):
        raise Broken("the row's tests are empty")
    return tests


def _step(statement: ast.stmt, scope: dict[str, Any]) -> Step:
    try:
        code = compile(ast.Module([statement], []), "tests.py", "exec")
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Broken(f"the row's tests are not Python: {error}") from None
    return lambda: exec(code, scope)


def _calls_check(statement: ast.stmt) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check"


def _label(statement: ast.stmt) -> str:
    return _short(ast.unparse(statement).split("\n")[0])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.strip().replace("\n", "\\n")
    return text if len(text) <= LINE else f"{text[: LINE - 3]}..."


# -- tests from cases


class _Program:
    """A case of a program: what it prints on an input, up to white space at the ends of lines."""

    def __init__(self, box: Any, case: Job):
        self.box, self.case = box, case

    def __call__(self) -> None:
        found = self.box.ask({"run": self.case["input"]})
        printed, code = str(found.get("printed")), found.get("code")
        if "raise" in found:
            raise Mismatch(f"it could not be run: {found['raise']}"[:200])
        if found.get("cut"):
            raise Mismatch("it printed more than the limit")
        if code == -24:  # SIGXCPU
            raise Mismatch("it ran out of CPU time")
        if code != 0:
            raise Mismatch(f"it ended with code {code}")
        if _lines(printed) != _lines(str(self.case["output"])):
            raise Mismatch(f"it printed {_short(printed)!r}, expected {_short(str(self.case['output']))!r}")


class _Call:
    """A case of a function: what it returns for a list of arguments. JSON has no tuples: they count as lists."""

    def __init__(self, function: Any, case: Job):
        self.function, self.case = function, case

    def __call__(self) -> None:
        value = self.function(*self.case["input"])
        if _as_json(value) != _as_json(self.case["output"]):
            raise Mismatch(f"it returned {_short(value)}, expected {_short(self.case['output'])}")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().split("\n")]


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return value
