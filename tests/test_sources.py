"""Completions drawn ahead, in pieces, or again: the same tokens where the weights stand still, and the version of every
token where they move."""

import tomllib
from dataclasses import replace

import pytest
import torch
from small_runs import NEW, REWARDS

from fiducial import models
from fiducial.config import Run, Sampling, from_table
from fiducial.core.types import Decoding, Request
from fiducial.sampling.local import LocalSampler
from fiducial.train.assemble import assemble
from fiducial.train.loop import steps
from fiducial.train.measure import Meter
from fiducial.train.parts import State
from fiducial.train.runtime import Runtime
from fiducial.train.sources import joined


@pytest.fixture(scope="module")
def small():
    tokenizer = models.train_tokenizer(["one two three four five six seven"] * 3, "word", 30)
    config = models.DecoderConfig(
        vocab_size=len(tokenizer), hidden=32, layers=1, heads=2, max_length=64, eos_ids=(tokenizer.eos_token_id,)
    )
    return LocalSampler(models.new(config, seed=1).double(), tokenizer)


def test_a_completion_in_pieces_is_the_whole_one(small):
    """Under the same weights: a token depends on the seed and its place in the completion, not on the pieces."""
    decoding = Decoding(max_new_tokens=24, stop=("four",))
    requests = [Request([1, 5 + i % 3], seed=100 + i, group=i) for i in range(12)]
    whole = small.sample(requests, decoding)
    for size in (1, 5, 23):
        pieces = [None] * len(requests)
        for version in range(24):
            on = [i for i, r in enumerate(pieces) if r is None or r.finish == "unfinished"]
            asked = [
                replace(requests[i], budget=size)
                if pieces[i] is None
                else replace(requests[i], prompt_ids=pieces[i].token_ids, written=pieces[i].num_tokens, budget=size)
                for i in on
            ]
            for i, found in zip(on, small.sample(asked, decoding) if on else [], strict=True):
                pieces[i] = joined(pieces[i], found, version)
        for mine, its in zip(pieces, whole, strict=True):
            assert (mine.token_ids, mine.mask, mine.completion, mine.finish) == (
                its.token_ids,
                its.mask,
                its.completion,
                its.finish,
            )
            assert mine.sampler_logprobs == pytest.approx(its.sampler_logprobs, abs=1e-12)
            written = [v for v, m in zip(mine.versions, mine.mask, strict=True) if m]
            assert written == [place // size for place in range(mine.num_tokens)]


def assembled(tmp_path, method="grpo", **sampling):
    (tmp_path / "reward.py").write_text(REWARDS)
    table = tomllib.loads(NEW)
    table = {"method": method, "task": "arith", "steps": 6, "reward": f"{tmp_path / 'reward.py'}:length",
             "model": table["model"], "data": {"rows": 60, "difficulty": {"steps": 1}}, "eval": {"n": 4},
             "optim": {"batch": 4, "lr": 1e-2}, "sampling": {"n": 3, "max_new_tokens": 12, **sampling}}  # fmt: skip
    run = from_table(Run, table).resolved()
    return run, assemble(run, Runtime(), None, lambda line: None)


def drawn(tmp_path, still=False, **sampling):
    """The rollouts of each step, and each step's metrics."""
    run, assembly = assembled(tmp_path, **sampling)
    if still:
        run = replace(run, optim=replace(run.optim, lr=1e-30))
    found = []
    for report in steps(run, assembly.method, assembly.parts, State.begin(run, assembly.parts)):
        found.append((assembly.parts.feed.rollouts, report.metrics))
    return found


def told(found):
    return [[(r.token_ids, r.reward, r.group) for r in rollouts] for rollouts, _ in found]


def test_drawn_ahead_by_a_policy_that_stands_still_nothing_changes(tmp_path):
    assert told(drawn(tmp_path, still=True, ahead=2)) == told(drawn(tmp_path, still=True))


def test_each_step_trains_on_the_policy_of_some_steps_before(tmp_path):
    found = drawn(tmp_path, ahead=2)
    versions = [{r.policy_version for r in rollouts} for rollouts, _ in found]
    assert versions == [{0}, {0}, {0}, {1}, {2}, {3}]
    assert [metrics["staleness/mean"] for _, metrics in found] == [0, 1, 2, 2, 2, 2]
    fresh = drawn(tmp_path)
    assert told(found)[:1] == told(fresh)[:1] and told(found)[3:] != told(fresh)[3:]


def test_pieces_wait_for_later_steps_and_keep_their_versions(tmp_path):
    found = drawn(tmp_path, segment=3, max_staleness=100, max_new_tokens=24, stop=["s"])  # lengths of all kinds
    seen = set()
    for step, (rollouts, _) in enumerate(found):
        assert len(rollouts) == 4 * 3 and {r.group for r in rollouts} == {0, 1, 2, 3}
        for r in rollouts:
            written = [v for v, m in zip(r.versions, r.mask, strict=True) if m]
            assert written == sorted(written) and written[-1] <= step and r.finish in ("stop", "length")
            assert r.seed not in seen
            seen.add(r.seed)
    several = [r for rollouts, _ in found for r in rollouts if len({*r.versions[r.mask.index(True) :]}) > 1]
    assert several, "no completion was written under several versions: nothing is tested"
    assert max(metrics["staleness/mean"] for _, metrics in found) > 0


def test_what_is_too_old_is_begun_anew(tmp_path):
    found = drawn(tmp_path, segment=1, max_staleness=0)
    assert sum(metrics["staleness/begun_anew"] for _, metrics in found) > 0
    assert {metrics["staleness/mean"] for _, metrics in found} == {0}


def test_refilling_takes_the_place_of_groups_that_agree(tmp_path):
    """A reward that is equal for most prompts: rounds of new prompts until the step is full."""
    (tmp_path / "rare.py").write_text("def rare(completion):\n    return float(len(completion) % 9 == 0)\n")
    run, assembly = assembled(tmp_path, refill=12)
    feed = assembly.parts.feed
    from fiducial.rewards import UserReward

    feed.reward = UserReward(f"{tmp_path / 'rare.py'}:rare")
    meter = Meter()
    batch = feed.batch(0, meter)
    assert sorted(batch.group.tolist()) == [g for g in range(4) for _ in range(3)]
    spread = [batch.extra["rewards"][batch.group == g].unique().numel() for g in range(4)]
    assert spread == [2, 2, 2, 2]
    everything = feed.rollouts  # the unfiltered completions, of all rounds, in the journal and in the mean reward
    value, weight = meter.sums["reward"]
    assert weight == len(everything) > 12 and value == sum(r.reward for r in everything)
    rounds = meter.totals["dynamic/refills"]
    assert len(everything) == 12 * (1 + rounds)
    other = feed.batch(0, Meter())
    assert torch.equal(other.input_ids, batch.input_ids)


def test_settings_that_exclude_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match="exclude each other"):
        assembled(tmp_path, ahead=1, segment=4)
    assert Sampling().segment == 0
