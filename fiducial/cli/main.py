"""Finds the verb and turns what goes wrong into an exit code and a sentence."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from fiducial import __version__

# verb -> what it does; the code is in the module of that name
VERBS = {
    "methods": "the catalogue of methods, or one method's page",
    "train": "run a recipe",
    "eval": "measure a model on a task, or a reward model on pairs",
    "sample": "completions of a prompt, and how they were decided",
    "score": "run a verifier or a reward over rows",
    "recipes": "the recipes that ship, or one of them",
    "tasks": "built-in and adapted tasks, or sample problems of one",
    "data": "make rows to train on, or look at those there are",
    "prove": "hold a method, or your own file, to what can be derived",
    "lab": "repeat experiments whose outcome is known",
    "replay": "recompute a step of a run and compare",
    "doctor": "look at a recipe before it runs, or at a run",
}


def main(argv: list[str] | None = None) -> int:
    """Run `fiducial VERB ...`; returns the exit code, 1 without a word where no one reads the output any more."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here, where a reader that has gone (`| head -1`) can be met
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
        return 1


def _run(argv: list[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    # Nothing here is ever fetched: a missing folder should be told at once, not after waiting for a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(
        "fiducial",
        description="Align language models and teach them to reason.",
        epilog="verbs:\n"
        + "\n".join(f"  {verb:<9} {does}" for verb, does in VERBS.items())
        + "\n\nexample: fiducial train recipes/grpo-arith-laptop.toml --steps 20 --optim.lr 3e-4\n"
        "`fiducial VERB --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="fiducial VERB ...",
        add_help=True,
    )
    parser.add_argument("--version", action="version", version=f"fiducial {__version__}")
    parser.add_argument("verb", choices=list(VERBS), metavar="VERB", help="one of those below")
    verb = parser.parse_args(argv[:1]).verb
    return run_verb(verb, argv[1:])


def run_verb(verb: str, argv: list[str]) -> int:
    """The verb's own exit code; 2 for what the user got wrong, 1 for what failed."""
    module = importlib.import_module(f"fiducial.cli.{verb}")
    try:
        return module.main(argv)
    except BrokenPipeError:
        raise
    except ValueError as error:
        print(f"fiducial {verb}: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        ours = isinstance(error, OSError) or type(error).__module__.startswith("fiducial.")
        if not ours:  # a bug, or torch's own trouble: the traceback helps more than a sentence
            raise
        print(f"fiducial {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nfiducial {verb}: stopped by hand", file=sys.stderr)
        return 130
