"""The only object that knows about ranks. With one process, `add` and `shard` return what they are given."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.core.total import Counts


def number(x: Any) -> float:
    """A scalar tensor as a float; one that is spread over ranks is gathered, so all ranks must ask."""
    return float(x.full_tensor() if hasattr(x, "full_tensor") else x)


@dataclass(frozen=True)
class Runtime:
    """Where this process stands: its rank among `world`, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @staticmethod
    def start() -> Runtime:
        """One process, or one of those that `torchrun` started."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        if world == 1:
            return Runtime(device=torch.device("cuda" if cuda else "cpu"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if cuda else "gloo")
        return Runtime(torch.distributed.get_rank(), world, device)

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def mine(self, items: list[Any]) -> list[Any]:
        """This rank's share of what every rank knows: each `world`-th."""
        return items[self.rank :: self.world]

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in order of rank, on every rank."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(out, value)
        return out

    def add(self, counts: Counts) -> Counts:
        """Counts of all ranks together."""
        return sum(self.gather(counts), Counts(0, 0, 0))

    def most(self, number: int) -> int:
        """The largest `number` of any rank."""
        return max(self.gather(number))

    def wait(self) -> None:
        """Go on when every rank is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def shard(self, module: nn.Module) -> nn.Module:
        """Spread the parameters over the ranks (FSDP2), block by block."""
        if self.world == 1:
            return module
        from torch.distributed.fsdp import fully_shard

        lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
        for block in max(lists, key=len, default=[]):
            fully_shard(block)
        fully_shard(module)
        return module

    def full_state(self, module: nn.Module) -> dict[str, Tensor]:
        """All weights of a module, whole and on the CPU, on every rank."""
        if self.world == 1:
            return module.state_dict()
        out = {}
        for name, x in module.state_dict().items():
            out[name] = (x.full_tensor() if hasattr(x, "full_tensor") else x).cpu()
        return out

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """Scale the gradient to a norm of at most `limit` (0: leave it); returns its norm before, over all ranks."""
        return number(torch.nn.utils.clip_grad_norm_(parameters, limit or float("inf")))

    def stop(self) -> None:
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
