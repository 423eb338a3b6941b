"""fiducial methods [ID]"""

from __future__ import annotations

import inspect
from typing import Any

from fiducial.cli import show
from fiducial.core.method import GLOSSARY, Method
from fiducial.methods import METHODS, lookup


def title(method: Method) -> str:
    """What a method is called: by its record, else by the first sentence of its file, else by its loss."""
    told = inspect.cleandoc(method.loss.__globals__.get("__doc__") or "").partition("\n")[0]
    return method.title or told or method.name


def entry(name: str, method: Method) -> dict[str, Any]:
    """What `--json` gives of a method."""
    anchors = {"ref"} if any(n.startswith("ref_") for n in method.needs) or method.kl.weight else set(method.anchors)
    anchors |= {"old"} if "old_logprobs" in method.needs else set()
    return {
        "id": name,
        "title": title(method),
        "paper": method.paper,
        "family": method.family,
        "feed": method.feed,
        "per": method.per,
        "needs": list(method.needs),
        "hparams": method.hparams,
        "kl": vars(method.kl),
        "learners": [method.learns, *method.critics],
        "anchors": sorted(anchors),
        "rows": method.kind,
        "samples": method.samples,
        "stages": list(method.stages),
        "target": method.target,
    }


def learns_from(method: Method) -> str:
    """What trains, and what it is made of."""
    if not method.select:
        return method.feed
    who = "its own" if method.sampled_by == "policy" else "its reference's"
    return f"{method.feed} of {who} samples" + (" and demos" if method.given == "demos" else "")


def page(name: str, method: Method) -> None:
    """A method's page: what its file says, what it needs, its settings and its checks."""
    print(inspect.cleandoc(method.loss.__globals__.get("__doc__") or method.loss.__doc__ or ""))
    print(
        f"\npaper     {method.paper}\nfamily    {method.family}\nlearns    {method.learns} from {learns_from(method)}"
    )
    print(f"averages  per {method.per}")
    kl = f"{method.kl.weight:g} x {method.kl.estimator}, in the {method.kl.place}" if method.kl.weight else "none"
    print(f"KL        {kl} (the recipe's [kl] table)")
    show.table(["the loss asks for", ""], [(need, GLOSSARY[need]) for need in method.needs])
    settings = []
    for key, default in method.hparams.items():
        allowed = ", ".join(map(str, method.choices.get(key, ()))) or str(method.ranges.get(key, ""))
        settings.append((key, "must be given" if key in method.required else default, allowed))
    if settings:
        show.table(["setting", "default", "range"], settings)
    print(f"checks    fiducial prove {name}   (closed form: {method.target or 'none claimed'})")


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser("methods", "The catalogue of methods, or one method's page.", "fiducial methods dpo")
    parser.add_argument("id", nargs="?", help="a method's id, or the path of your own file")
    args = parser.parse_args(argv)
    chosen = {args.id: lookup(args.id)} if args.id else METHODS
    if args.json:
        show.emit([entry(name, method) for name, method in chosen.items()])
    elif args.id:
        page(args.id, chosen[args.id])
    else:
        rows = [(name, m.title, learns_from(m), m.paper, ", ".join(m.hparams)) for name, m in chosen.items()]
        show.table(["id", "", "learns from", "paper", "settings"], rows)
    return 0
