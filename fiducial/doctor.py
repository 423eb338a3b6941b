"""`fiducial doctor`: a look at a recipe before it runs. What looks wrong in a run is in `evals.health`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fiducial.config import Run
from fiducial.config import read_recipe as read_toml
from fiducial.data.dataset import UNKNOWN
from fiducial.evals.health import Finding, read_run, rows_skipped
from fiducial.evals.preference_health import unbalanced
from fiducial.sandbox.spawn import NONE
from fiducial.train.assemble import Assembly, assemble
from fiducial.train.parts import TrainingError
from fiducial.train.preflight import Preflight, preflight
from fiducial.train.roles import WRITTEN
from fiducial.train.runtime import Runtime

__all__ = ["Finding", "read_recipe", "read_run"]

UNTRAINED_STOP = 0.99  # share of completions whose stop token should train
CUT = 0.05  # share of completions that lose their end
ROOM = 0.8  # share of memory that a run may plan for


def read_recipe(path: str | Path, over: dict[str, Any] | None = None) -> list[Finding]:
    """Load everything that the recipe names, try its longest batch, and say what to change. Trains nothing.

    Raises as `fiducial train` would where the recipe or the data is wrong.
    """
    run = read_toml(path, over).resolved()
    where = str(path)
    assembly = assemble(run, Runtime(), None, lambda line: None)
    try:
        look = preflight(assembly, colours=False)
    except TrainingError as error:
        return [Finding("error", "the longest batch fails", where, str(error))]
    found = [*_data(assembly, where), *_roles(look, where), *_settings(run, where), *_memory(look, where)]
    found += _isolation(assembly, where)
    facts = f"{look.trained:,} of {look.parameters:,} parameters train; passes of up to {look.longest} tokens"
    return [*found, Finding("info", "the recipe runs", where, facts)]


def _data(assembly: Assembly, where: str) -> list[Finding]:
    report, found = assembly.data.report, []
    for reason, number in report.counted.items():
        text = f"{number} of {report.rows} rows are skipped ({reason}), the first {report.first[reason][0]}"
        found.append(Finding("warning", text, where, "mend them in the file if they matter: they never train"))
    if (skipped := rows_skipped(report.counted, report.rows, where)) and skipped.severity == "error":
        found.append(skipped)
    if skew := unbalanced(report.labels, assembly.run.hparams):
        found.append(Finding("warning", skew[0], where, skew[1]))
    if report.unknown:
        severity = "warning" if report.unknown_share > UNKNOWN else "info"
        text = f"{report.unknown_share:.2%} of the tokens are unknown to the tokenizer"
        found.append(
            Finding(severity, text, where, 'take another tokenizer: model.new.tokenizer = "bpe" knows any text')
        )
    if report.completions and report.truncated / report.completions > CUT:
        share = report.truncated / report.completions
        advice = 'raise data.max_length, or data.too_long = "drop"'
        found.append(Finding("warning", f"{share:.0%} of completions are cut and lose their stop token", where, advice))
    if report.stop_trained is not None and report.stop_trained < UNTRAINED_STOP and report.kind != "problems":
        text = f"the stop token trains in only {report.stop_trained:.0%} of completions"
        found.append(Finding("warning", text, where, "the model may never learn to end: look at the chat template"))
    return found


def _roles(look: Preflight, where: str) -> list[Finding]:
    whole, found = sum(look.roles.values()), []
    for role, number in look.roles.items():
        if number and role not in WRITTEN:
            text = f"{number / whole:.1%} of the tokens that train are of the {role}"
            advice = "only what the assistant writes should train: look at the chat template's generation blocks"
            found.append(Finding("warning", text, where, advice))
    return found


def _isolation(assembly: Assembly, where: str) -> list[Finding]:
    """How code that the model writes is contained, where a reward runs it."""
    judges = [assembly.verify, assembly.gold]
    judges += [part.reward for judge in judges for part in getattr(judge, "parts", {}).values()]
    levels = {judge.isolation.level for judge in judges if hasattr(judge, "isolation")}
    text = "code that the model writes runs"
    if NONE in levels:
        advice = "install bubblewrap: verdicts.trust_code is for code that you trust"
        return [Finding("warning", f"{text} without a sandbox", where, advice)]
    return [Finding("info", f"{text} in a sandbox of the level {level}", where, "docs/sandbox.md") for level in levels]


def _settings(run: Run, where: str) -> list[Finding]:
    found, s, method = [], run.sampling, run.record()
    updates = run.optim.epochs * run.optim.minibatches
    unclipped = "old_logprobs" not in method.needs or ("clip" in run.hparams and run.hparams["clip"] is None)
    if method.feed == "groups" and updates > 1 and unclipped:
        text = (
            f"{updates} updates a step are off-policy but for the first, and {method.name} as set does not correct that"
        )
        cure = "set hparams.clip = 0.2" if "clip" in run.hparams else "take a method with old_logprobs, such as grpo"
        advice = f"{cure}, or optim.epochs = 1 and optim.minibatches = 1"
        found.append(Finding("warning", text, where, advice))
    if run.record().feed == "groups" and (s.top_k or s.top_p < 1 or s.min_p > 0):
        text = "top_k, top_p or min_p make the sampler another policy than the one that trains"
        found.append(Finding("warning", text, where, "leave them off in training, or the gradient is biased"))
    certain = run.hparams.get("pair_rule") == "best_worst" and run.hparams.get("loss") == "sigmoid"
    if certain and not run.penalty.weight:
        text = "pairs of the best and the worst are certain, and DPO's loss has no finite optimum on them"
        advice = (
            'nothing but few steps holds the policy: give kl.weight a value, or take hparams.loss = "ipo" or '
            'hparams.pair_rule = "random_two_labelled"'
        )
        found.append(Finding("info", text, where, advice))
    if run.checkpoint.every == 0 and run.steps > 200:
        advice = "set checkpoint.every: --resume can only go back to step 0"
        found.append(Finding("info", f"{run.steps} steps without a checkpoint", where, advice))
    return found


def _memory(look: Preflight, where: str) -> list[Finding]:
    """Weights, gradients, optimizer and reference against the machine's memory; activations were tried for real."""
    needed, there = sum(look.memory.values()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed <= ROOM * there:
        return []
    text = f"in one process weights, optimizer and reference take {needed / 2**30:.1f} of {there / 2**30:.1f} GiB"
    advice = (
        "use model.lora, a smaller dtype, or more processes: they share all but the reference and the sampler's copy"
    )
    return [Finding("warning", text, where, advice)]
