"""One name, one meaning: what losses ask for is in the glossary, and the glossary's forbidden words are nowhere."""

import ast
import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from fiducial.config import Run
from fiducial.core.method import GLOSSARY, Method
from fiducial.methods import METHODS, NAMES

ROOT = Path(__file__).resolve().parents[1] / "fiducial"
FORBIDDEN = {
    "logps", "log_probs", "log_prob", "logp", "loss_mask", "action_mask", "response_mask", "completion_mask",
    "kl_coef", "eps_clip", "clip_range", "trajectory", "winner", "loser", "policy_logps",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_losses_and_credit_ask_for_glossary_names(method):
    assert set(method.needs) <= set(GLOSSARY)
    assert set(method.credit_needs) <= set(GLOSSARY)
    assert method.name in NAMES


def test_every_method_file_is_in_the_list():
    files = {p.stem for p in (ROOT / "methods").glob("*.py")} - {"__init__"}
    assert files == set(NAMES)


def test_a_method_reads_like_its_paper():
    """A method's file is one screen or two: its docstring, its loss, its record."""
    for name in NAMES:
        lines = (ROOT / "methods" / f"{name}.py").read_text().splitlines()
        assert len(lines) <= 80, f"methods/{name}.py has {len(lines)} lines"


def test_forbidden_names_are_not_used():
    wrong = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "arg", None) or getattr(node, "id", None) or getattr(node, "name", None)
            if name in FORBIDDEN:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong, wrong


def test_a_loss_that_asks_for_an_unknown_tensor_is_refused_with_a_hint():
    def mine(chosen_logps, rejected_logprobs):
        return chosen_logps

    with pytest.raises(ValueError, match="'chosen_logps'.*perhaps 'chosen_logprobs'"):
        Method(paper="", feed="pairs", loss=mine, per="row")


def recipe_keys(kind: Any = Run, at: str = "") -> set[str]:
    """Every table and setting of a recipe, with dots."""
    found = set()
    for name, hint in typing.get_type_hints(kind).items():
        found.add(at + name)
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                found |= recipe_keys(part, f"{at}{name}.")
    return found


def spoken(tree: ast.AST) -> list[str]:
    """What a file says in words: its strings, but for docstrings; what an f-string inserts is left out."""
    parents = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, parents) and isinstance(n.body[0], ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
    return [node.value for node in constants if isinstance(node.value, str) and " " in node.value]


def test_settings_that_messages_name_are_the_recipes():
    known = recipe_keys()
    assert {"model.new.heads", "kl.weight", "optim.batch", "data.split"} <= known
    tables = "model|data|optim|sampling|verdicts|eval|checkpoint|kl|lora|tokenizer|new"
    key = re.compile(rf"(?<![\w./])(?:{tables})(?:\.[a-z_]+)+(?![\w/(])")
    files = ("json", "jsonl", "py", "safetensors", "model")
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in ROOT.rglob("*.py")
        for text in spoken(ast.parse(path.read_text()))
        for name in key.findall(text)
        if name not in known and name.rpartition(".")[2] not in files
    ]
    assert not wrong, wrong


def settings(kind) -> list[str]:
    """Every leaf of a dataclass of settings."""
    out = []
    for field in dataclasses.fields(kind):
        inner = [t for t in (field.type, field.default) if dataclasses.is_dataclass(t)]
        out += settings(type(inner[-1])) if inner and not inspect.isclass(inner[-1]) else [field.name]
    return out


def test_settings_are_few():
    """A run has at most 100 settings, those of data columns and of a fresh model included: each must earn its place."""
    assert len(settings(Run)) <= 100
