"""Imports go down one staircase: a folder may import folders on lower levels only, never a neighbour."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "fiducial"
LEVEL = {
    "core": 0, "store": 0, "sandbox": 0,
    "methods": 1, "exact": 1, "models": 1, "rewards": 1, "data": 1,
    "sampling": 2, "config": 2,
    "evals": 3, "judges": 3,
    "train": 4,
    "prove": 5, "doctor": 5, "demo": 5,
    "labs": 6,
    "cli": 7,
}  # fmt: skip
LIGHT = {
    "core": {"torch"},
    "store": set(),
    "sandbox": set(),
    "methods": {"torch"},
    "exact": {"torch"},
}  # what these import at the top
HEAVY = {
    "transformers", "peft", "datasets", "pyarrow", "matplotlib", "math_verify", "reasoning_gym", "rich", "tensorboard",
    "tokenizers", "safetensors", "vllm", "ray", "langdetect",
}  # fmt: skip


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path):
    """(module, at the top of the file?) of every import; those under TYPE_CHECKING do not run."""
    tree = ast.parse(path.read_text())
    top = {node for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "fiducial" else [node.module]
            yield from ((name, node in top) for name in names)


FILES = [p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__", "__main__")]


def test_every_part_has_a_level():
    assert {part(p) for p in FILES} == set(LEVEL)


def test_imports_go_down():
    wrong = []
    for path in FILES:
        here = part(path)
        for module, _ in imports(path):
            if module.startswith("fiducial."):
                there = module.split(".")[1]
                if there != here and there in LEVEL and LEVEL[there] >= LEVEL[here]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, wrong


def test_heavy_packages_are_imported_where_they_are_used():
    wrong = []
    for path in FILES:
        for module, top in imports(path):
            if top and module.split(".")[0] in HEAVY:
                wrong.append(f"{path.relative_to(ROOT)} imports {module} at its top")
    assert not wrong, wrong


def test_the_core_needs_torch_and_nothing_else():
    import sys

    wrong = []
    for path in FILES:
        if (allowed := LIGHT.get(part(path))) is not None:
            for module, top in imports(path):
                package = module.split(".")[0]
                if top and package not in sys.stdlib_module_names | allowed | {"fiducial"}:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, wrong


def test_import_is_quick():
    """`import fiducial` loads no torch, so that the command answers at once: within 0.2 s of CPU time."""
    import os
    import subprocess
    import sys

    code = "import sys, fiducial; sys.exit('torch' in sys.modules)"
    best = float("inf")
    for _ in range(5):
        before = os.times()
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, used)
    assert best < 0.2
