"""Online and self-play methods: completions are sampled, and a selection makes the examples that the loss sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fiducial.core.method import Choice
from fiducial.core.seeds import mix
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Rollout, Tokens
from fiducial.train.feeds import GroupFeed, last_turn, locate, trainable
from fiducial.train.learner import PER_PAIR
from fiducial.train.measure import Meter


class SelectFeed(GroupFeed):
    """Samples completions of prompts, scores them if the selection asks, and lets it choose among each prompt's."""

    def batch(self, step: int, meter: Meter) -> Tokens:
        self.rollouts = self.scored(step, self.source.take(step, meter), self.order, meter)
        rows, weights, places = [], [], []
        for place, members in self.members(step).items():
            choices = self.choose(step, place, members, meter)
            meter.add("selection/unused", float(not choices))
            for number, choice in enumerate(choices):
                rows.append([members[i][0] for i in choice.members])
                weights.append(choice.weight)
                places.append(place * self.run.sampling.n + number)
        meter.total("selection/examples", len(rows))
        size = self.run.optim.batch * self.run.sampling.n
        if not rows:
            rows, weights, places = [[Encoded([0, 0], [False, False])] * 2], [0.0], [0]
        return locate(self.collate(rows, weights), places, size)

    def members(self, step: int) -> dict[int, list[tuple[Encoded, Rollout | None]]]:
        """What a selection may choose from, by a prompt's place in the step: its completions that can train, after the
        row's own where the method is given demonstrations."""
        out: dict[int, list[tuple[Encoded, Rollout | None]]] = {}
        size = self.run.optim.batch
        for place, j in self.runtime.mine(list(enumerate(self.order.take(step * size, size)))):
            out[place] = []
            if self.method.given == "demos":
                row = self.problems[j].encoded[0]
                start = last_turn(row)
                out[place].append((Encoded(row.token_ids, [False] * start + row.mask[start:]), None))
        for rollout in self.rollouts:
            unscored = self.reward is not None and rollout.reward is None
            cut = self.run.sampling.truncated == "mask" and rollout.finish == "length"
            if not (unscored or cut or not any(rollout.mask)):
                out[rollout.group].append((trainable(rollout), rollout))
        return out

    def choose(
        self, step: int, place: int, members: Sequence[tuple[Encoded, Rollout | None]], meter: Meter
    ) -> list[Choice]:
        """The selection's choices among one prompt's completions; none where too few are left."""
        sampled = [rollout for _, rollout in members if rollout is not None]
        if len(sampled) < self.method.min_group:
            return []
        meter.add("selection/distinct", len({r.completion for r in sampled}), len(sampled))
        draw = torch.Generator().manual_seed(mix(self.run.seed, "selection", step, place))
        tensors = {"draws": torch.rand(len(members) + 1, generator=draw)}
        if self.reward is not None:
            tensors["rewards"] = torch.tensor([r.reward for r in sampled])
            if "preferences" in self.method.select_needs:
                tensors["preferences"] = self.preferences(sampled, tensors["rewards"])
        choices = self.method.make_choices(tensors, self.run.hparams)
        for choice in choices:
            if self.reward is not None and len(choice.members) == 2:
                chosen, rejected = (tensors["rewards"][i] for i in choice.members)
                meter.add("pair/score_gap", float(chosen - rejected) * choice.weight, choice.weight)
        return choices

    def preferences(self, sampled: Sequence[Rollout], rewards: Tensor) -> Tensor:
        """How likely each completion of a prompt is better than each other one, [N, N]: the judge's own word where it
        compares, else Bradley-Terry's of the rewards."""
        judge: Any = self.reward
        if hasattr(judge, "preferences"):
            return judge.preferences(sampled[0].prompt, [r.completion for r in sampled])
        return torch.sigmoid(rewards[:, None] - rewards[None, :])

    def collate(self, rows: Sequence[Sequence[Encoded]], weights: Sequence[float]) -> Tokens:
        """Examples of the method's feed: pairs of rows, chosen first, or single rows."""
        if self.method.feed != "pairs":
            return collate([members[0] for members in rows], weight=weights)
        batch = collate([m[0] for m in rows] + [m[1] for m in rows], weight=[*weights, *weights], pairs=True)
        usual = {"pref_prob": 1.0}
        for name in PER_PAIR:
            kind = torch.bool if name == "tied" else torch.float32
            batch.extra[name] = torch.full((len(batch.input_ids),), usual.get(name, 0.0)).to(kind)
        return batch
