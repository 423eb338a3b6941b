"""What a name in a recipe or a command stands for, when something has to judge completions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fiducial import rewards
from fiducial.core.types import Reward
from fiducial.data import tasks
from fiducial.data.feedback.comparing import PairJudge
from fiducial.judges.ai_judge import AIJudge
from fiducial.judges.file import is_judge_file, read_judge
from fiducial.judges.of_rewards import ModelJudge, ScoreJudge, UserJudge
from fiducial.judges.ratings import AIScore
from fiducial.judges.task import TaskReward
from fiducial.judges.tournament import Tournament
from fiducial.models.folder import is_reward_model, read_config
from fiducial.rewards import UserReward
from fiducial.sampling.endpoint import is_endpoint, open_policy
from fiducial.sampling.scorer import PairScorer, load_scorer


def ai_score(name: str) -> AIScore:
    """The language model of a folder or a server as a reward; one with a chat template is asked as a user asks it, and
    a server's rating is read from what it writes."""
    writer = open_policy(name)
    shared = {"chat": writer.chats, "fits": writer.fits, "name": told_name(name)}
    return AIScore(writer, "text" if is_endpoint(name) else "logprobs", **shared)


def told_name(name: str) -> str:
    """What a folder or a server's model is called in a table."""
    return name.rpartition("#")[2] if is_endpoint(name) else Path(name).name


def judge(
    name: str | Mapping[str, float | Mapping[str, Any]], timeout: float | None = None, trust: bool = False
) -> Reward:
    """A verifier (with options: `numeric(rel_tol=0.01)`), a task's own by its id, `file.py:function`, the folder of a
    reward or preference model, a judge's file `judge.toml`, `ai:MODEL` (the rating of a language model, of a folder or
    a server), or a table of these with weights (`rewards.combined`).

    `timeout` is in seconds per row; None means 10 for a verifier and 30 for a user's function. `trust` lets code that
    a model wrote run without a sandbox where there is none. ValueError if there is no such thing.
    """
    if not isinstance(name, str):
        return rewards.combined(name, lambda part: judge(part, timeout, trust))
    if name in tasks.TASKS or name.startswith("rg/"):
        return TaskReward(tasks.get(name), 10.0 if timeout is None else timeout)
    if is_judge_file(name):
        return read_judge(name, lambda part: judge(part, timeout, trust)).reward()
    if name.startswith("ai:"):
        return ai_score(name.removeprefix("ai:"))
    if is_endpoint(name):
        raise ValueError(f"{name} is a server: as a reward write ai:{name}, or a judge's file that names it")
    verifier, _ = rewards.named(name)
    if verifier not in rewards.VERIFIERS and Path(name).is_dir():
        scorer = load_scorer(name)
        return Tournament(ModelJudge(scorer)) if isinstance(scorer, PairScorer) else scorer
    if ":" not in name and verifier not in rewards.VERIFIERS:
        known = ", ".join([*rewards.VERIFIERS, *tasks.TASKS])
        raise ValueError(
            f"there is no verifier {name!r}: {known}, a reward model's folder, a judge's file (.toml), or "
            "path/file.py:function"
        )
    return rewards.build(name, timeout, trust)


def pair_judge(
    name: str,
    *,
    timeout: float | None = None,
    mode: Literal["logprobs", "text"] = "logprobs",
    reasoning: bool = False,
    chat: bool = False,
    seed: int = 0,
) -> PairJudge:
    """What a name stands for when two completions are compared: the folder of a reward model, the folder or the server
    of a language model (the AI judge; `mode`, `reasoning` and `chat` are its), a judge's file, `file.py:function` of
    two completions or of one, a verifier or a task's id. ValueError if there is no such thing."""
    if is_judge_file(name) and (compares := read_judge(name, lambda part: judge(part, timeout)).pair_judge()):
        return compares
    if Path(name).is_dir() or is_endpoint(name):
        if not is_endpoint(name) and is_reward_model(read_config(Path(name))):
            scorer = load_scorer(name)
            return ModelJudge(scorer) if isinstance(scorer, PairScorer) else ScoreJudge(scorer, "sigmoid")
        writer = open_policy(name)
        chat = chat or is_endpoint(name)
        return AIJudge(writer, mode, reasoning, chat, seed=seed, fits=writer.fits, name=told_name(name))
    reward = judge(name, timeout)
    if isinstance(reward, UserReward) and {"a", "b"} <= {reward.completion_name, *reward.fields}:
        return UserJudge(reward)
    return ScoreJudge(reward, "sign")
