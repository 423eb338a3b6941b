"""Preference methods on real pairs, from one small model, on the same data and budget.

    python benchmarks/preferences_hh.py --data hh_harmless_pairs.jsonl --out runs/preferences-hh

For each seed a small decoder learns the chosen sides of the rows that train (sft, from random weights); from it the
reward model and each direct method take the same number of steps on the same pairs, at one learning rate. KTO sees a
step's pairs as twice as many labelled completions. On rows that never train: does the model rank the chosen side first,
by likelihood (ranking accuracy, plain and per token) and by what it has learned over the sft model (reward accuracy);
and of completions of held-out prompts, sampled at temperature 1: the exact KL to the sft model, how different they are,
and how long.

Leaves table.json, table.md and table.png. Intervals are 95 %: Student's t over seeds, and in table.json Wilson's over
pairs within a seed. No text of the data is written or shown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fiducial import models
from fiducial.config import Data, Eval, Model, NewModel, Optim, Run
from fiducial.core.tokens import align, collate, next_token_logits, token_logprobs
from fiducial.core.types import Decoding, Encoded, Rollout
from fiducial.data import Item
from fiducial.evals import audit
from fiducial.evals.diagnostics import completion_kl, right
from fiducial.evals.pairs import Likelihoods, implicit, likelihoods, ranking
from fiducial.evals.stats import Interval, mean_interval, wilson
from fiducial.sampling.local import LocalSampler
from fiducial.sampling.policy import Policy
from fiducial.sampling.scorer import ModelReward
from fiducial.train.assemble import Assembly, assemble
from fiducial.train.loop import steps
from fiducial.train.parts import State
from fiducial.train.runtime import Runtime

NEW = NewModel(hidden=96, layers=2, heads=3, max_length=320, vocab_size=1024)
LR, BATCH, HELD_OUT = 3e-4, 12, 360
PROMPTS, EACH, DECODING = 24, 4, Decoding(max_new_tokens=64)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "reward model": ("bt_reward_model", {"center_coef": 0.01}),
    "DPO": ("dpo", {"beta": 0.1}),
    "IPO, per token": ("ipo", {"beta": 0.1, "length_average": True}),
    "KTO": ("kto", {"beta": 0.1}),
    "f-DPO, JS": ("f_dpo", {"beta": 0.1, "family": "js"}),
    "f-DPO, forward KL": ("f_dpo", {"beta": 0.1, "family": "forward_kl"}),
}
COLUMNS = {  # of the table: heading, share?
    "reward_accuracy": ("reward accuracy", True),
    "ranking_accuracy": ("ranking accuracy", True),
    "ranking_accuracy_len_norm": ("ranking accuracy, per token", True),
    "kl": ("KL to sft (nats a completion)", False),
    "entropy": ("entropy (nats a token)", False),
    "distinct_2": ("distinct-2", False),
    "self_bleu": ("self-BLEU", False),
    "length": ("mean length (tokens)", False),
}
SHARES = tuple(name for name, (_, share) in COLUMNS.items() if share)


def main(argv: Sequence[str] | None = None) -> int:
    """All seeds, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, in any format that Fiducial reads")
    parser.add_argument("--out", type=Path, default=Path("runs/preferences-hh"), help="the folder for the results")
    parser.add_argument("--seeds", type=int, default=3, help="how often everything is repeated (default 3)")
    parser.add_argument("--steps", type=int, default=60, help="steps of each preference method (default 60)")
    parser.add_argument("--sft-steps", type=int, default=200, help="steps of imitation before (default 200)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.seeds):
        for name, row in one_seed(args, seed):
            found.setdefault(name, []).append(row)
            tell(f"seed {seed}, {name}: {time.process_time() - began:.0f} s of processor time")
    table = summary(found, {**vars(args), "data": args.data.name, "out": str(args.out)}, time.process_time() - began)
    (args.out / "table.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    (args.out / "table.md").write_text(markdown(table), encoding="utf-8")
    draw(table, args.out / "table.png")
    print(markdown(table))
    return 0


def tell(line: str) -> None:
    """A line for the person who waits."""
    print(line, file=sys.stderr, flush=True)


# -- training ----------------------------------------------------------------------------------------------------------


def one_seed(args: argparse.Namespace, seed: int) -> Any:
    """(method, measures) of the sft model and of every method that starts from it."""
    data = Data(path=str(args.data), too_long="drop")
    base = Run(method="sft", seed=seed, data=data, eval=Eval(n=HELD_OUT), model=Model(new=NEW), steps=args.sft_steps)
    base = replace(base, optim=Optim(lr=2e-3, schedule="cosine", warmup=20, final=0.1, batch=16, rows_per_pass=8))
    imitated = trained(base)
    folder = args.out / f"sft-{seed}"
    models.save(imitated.model, imitated.tokenizer, folder)
    start = Policy.load(folder)
    held: list[Item] = []
    theirs: Any = None
    for name, (method, hparams) in METHODS.items():
        batch = BATCH * 2 if method == "kto" else BATCH
        optim = Optim(lr=LR, schedule="cosine", warmup=5, batch=batch, rows_per_pass=batch // 2)
        run = replace(
            base, method=method, hparams=hparams, optim=optim, model=Model(path=str(folder)), steps=args.steps
        )
        assembly = trained(run)
        if not held:  # the reward model comes first, and its rows are pairs
            held = [assembly.data[j] for j in assembly.held_out_rows]
            theirs = likelihoods(start, held)
            yield "sft", {"pairs": len(held), **of_policy(start, start, theirs, held, seed)}
        if method == "bt_reward_model":
            yield name, {"pairs": len(held), "reward_accuracy": of_reward_model(assembly, held)}
        else:
            policy = Policy(assembly.model, assembly.tokenizer)
            yield name, {"pairs": len(held), **of_policy(policy, start, theirs, held, seed)}


def trained(run: Run) -> Assembly:
    """The parts of a run after its last step. Nothing is written."""
    run = run.resolved()
    assembly = assemble(run, Runtime(), None, lambda line: None)
    for _ in steps(run, assembly.method, assembly.parts, State.begin(run, assembly.parts)):
        pass
    return assembly


# -- measuring ---------------------------------------------------------------------------------------------------------


def of_reward_model(assembly: Assembly, held: Sequence[Item]) -> float:
    """The share of held-out pairs whose chosen side scores higher."""
    reward = ModelReward(assembly.model, assembly.tokenizer)
    scores = torch.tensor(list(reward.scores([side for item in held for side in item.encoded])))
    return float(right(scores[::2], scores[1::2]).mean())


def of_policy(policy: Policy, start: Policy, theirs: Likelihoods, held: Sequence[Item], seed: int) -> dict[str, float]:
    """Accuracies on held-out pairs, which `start` finds so likely, and what the policy's own completions are like."""
    ours = likelihoods(policy, held)
    ranked, rewards = ranking(ours), implicit(ours, theirs, 1.0)
    found = {name: float(ranked[name].mean()) for name in ("ranking_accuracy", "ranking_accuracy_len_norm")}
    found["reward_accuracy"] = float(rewards["rewards/accuracies"].mean())
    room = policy.model.config.max_length - DECODING.max_new_tokens
    asked = audit.prompts_of(held, room, PROMPTS)
    groups = audit.draw(LocalSampler(policy.model, policy.tokenizer), asked, EACH, seed, DECODING)
    described = audit.described(groups)
    found |= {name: described[name] for name in ("entropy", "distinct_1", "distinct_2", "self_bleu")}
    return {**found, "length": described["completions/mean_length"], "kl": exact_kl(policy, start, groups)}


@torch.inference_mode()
def exact_kl(policy: Policy, start: Policy, groups: Sequence[Sequence[Rollout]]) -> float:
    """KL(policy || start) of whole next-token distributions, summed along the policy's completions, in nats each."""
    total = 0.0
    for group in groups:
        batch = collate([Encoded(rollout.token_ids, rollout.mask) for rollout in group])
        logits = [network.model(batch.input_ids) for network in (policy, start)]
        ours, theirs = (token_logprobs(scores, batch.input_ids) for scores in logits)
        aligned = [align(next_token_logits(scores)) for scores in logits]
        total += float(completion_kl(ours, theirs, batch.mask, *aligned)["exact"].sum())
    return total / sum(map(len, groups))


# -- the table ---------------------------------------------------------------------------------------------------------


def summary(found: dict[str, list[dict[str, Any]]], settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Means over seeds with t intervals, and every seed with Wilson's for its shares."""
    rows = []
    for name, measured in found.items():
        for row in measured:
            for share in SHARES:
                if share in row:
                    row[f"{share}/wilson"] = _ends(wilson(row[share] * row["pairs"], row["pairs"]))
        intervals = {
            column: mean_interval([row[column] for row in measured]) for column in COLUMNS if column in measured[0]
        }
        rows.append({"method": name, "mean": {column: [i.value, *_ends(i)] for column, i in intervals.items()},
                     "seeds": measured})  # fmt: skip
    hparams = {name: {"method": method, **hparams} for name, (method, hparams) in METHODS.items()}
    settings |= {"model": vars(NEW), "lr": LR, "batch": BATCH, "hparams": hparams}
    return {"settings": settings, "processor_seconds": round(seconds, 1), "rows": rows}


def _ends(interval: Interval) -> list[float | None]:
    return [end if abs(end) < float("inf") else None for end in (interval.low, interval.high)]


def markdown(table: dict[str, Any]) -> str:
    """The table for people: mean and half of the t interval over seeds."""
    settings = table["settings"]
    lines = [
        "| method | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |",
        "| --- |" + " --- |" * len(COLUMNS),
    ]
    for row in table["rows"]:
        cells = [_cell(row["mean"].get(name), share) for name, (_, share) in COLUMNS.items()]
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    pairs = [seed["pairs"] for seed in table["rows"][0]["seeds"]]
    told = (
        f"{settings['seeds']} seeds; {settings['sft_steps']} steps of sft, then {settings['steps']} of each method on "
        f"{settings['batch']} pairs a step; {min(pairs)} to {max(pairs)} held-out pairs a seed; mean ± half of the "
        f"95 % t interval over seeds; {table['processor_seconds']:.0f} s on one core."
    )
    return "\n".join([*lines, "", told, ""])


def _cell(values: list[float | None] | None, share: bool) -> str:
    if values is None:
        return "–"
    mean, low, _ = values
    assert mean is not None
    scale, form = (100, ".1f") if share else (1, ".3g")
    half = "" if low is None else f" ± {scale * (mean - low):{form}}"
    return f"{scale * mean:{form}}{' %' if share and not half else ''}{half}{' %' if share and half else ''}"


def draw(table: dict[str, Any], path: Path) -> None:
    """Each seed a dot, the mean a bar: accuracy, KL and length of every method."""
    from matplotlib.figure import Figure

    panels = {
        "reward_accuracy": ("accuracy of the reward on held-out pairs (share)", "#0072b2"),
        "kl": ("KL to sft (nats a completion)", "#e69f00"),
        "self_bleu": ("self-BLEU of samples", "#009e73"),
        "length": ("mean length of samples (tokens)", "#cc79a7"),
    }
    names = [row["method"] for row in table["rows"]]
    figure = Figure(figsize=(12.5, 3.2), layout="constrained")
    for axis, (column, (label, color)) in zip(
        figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True
    ):
        for place, row in enumerate(table["rows"]):
            values = [seed[column] for seed in row["seeds"] if column in seed]
            axis.plot(values, [place] * len(values), "o", color=color, alpha=0.6, markersize=5)
            if values:
                axis.plot([row["mean"][column][0]] * 2, [place - 0.3, place + 0.3], color="black", linewidth=1.5)
        axis.set_xlabel(label, fontsize=9)
        axis.grid(axis="x", color="#e6e6e6")
        axis.spines[["top", "right"]].set_visible(False)
        if column == "reward_accuracy":
            axis.axvline(0.5, color="#7f7f7f", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
