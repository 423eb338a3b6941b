"""Nothing is public until it is documented: pages that follow from the code are up to date, and names have words."""

import ast
import dataclasses
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from fiducial import config
from fiducial.cli.main import VERBS
from fiducial.core.method import KL
from fiducial.methods import METHODS

REPO = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("generate", REPO / "docs" / "generate.py")
assert spec and spec.loader
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_pages_are_up_to_date(name):
    if name == "command-line.md" and sys.version_info[:2] != (3, 11):
        pytest.skip("argparse words its help differently in other versions of Python than 3.11")
    found = (REPO / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert found == generate.PAGES[name](), "run: .venv/bin/python docs/generate.py"


def test_every_setting_says_what_it_is():
    kinds = [getattr(config, name) for name in ("Run", "Model", "NewModel", "Lora", "Data", "Optim", "Sampling")]
    kinds += [config.Verdicts, config.Eval, config.Checkpoint]
    silent = []
    for kind in kinds:
        comments = dict(generate._comments(kind))
        for field in dataclasses.fields(kind):
            nested = dataclasses.is_dataclass(field.default) or kind is KL
            if not nested and not comments.get(field.name):
                silent.append(f"{kind.__name__}.{field.name}")
    assert not silent


def test_every_public_name_has_a_docstring():
    silent = []
    for path in sorted((REPO / "fiducial").rglob("*.py")):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            silent.append(str(path.relative_to(REPO)))
        for node in tree.body:
            kinds = (ast.FunctionDef, ast.ClassDef)
            if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(REPO)}: {node.name}")
    assert not silent


def test_readme_names_every_verb_and_method():
    text = (REPO / "README.md").read_text()
    for name in [*VERBS, *METHODS]:
        assert f"`{name}`" in text or f"fiducial {name}" in text, name


def test_commands_in_the_readme_exist():
    text = (REPO / "README.md").read_text() + (REPO / "CONTRIBUTING.md").read_text()
    for verb in re.findall(r"^\s*(?:\$ )?fiducial (\w+)", text, re.M):
        assert verb in VERBS, verb
    targets = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), re.M))
    for target in re.findall(r"make ([a-z-]+)", text):
        assert target in targets, target


def test_links_inside_the_documentation_lead_somewhere():
    for page in [*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
