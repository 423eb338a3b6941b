"""A control group for a sandbox, where this machine lets us make one: memory and processes limited as a whole."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class Group:
    """The group that a process keeps for its sandboxes, one at a time: making one for each would double a start.

    Both layouts are known: one tree (version 2), and one tree for each controller (version 1). Raises OSError where
    this machine does not let us.
    """

    def __init__(self, memory: int, processes: int, root: Path = ROOT):
        name = f"fiducial-{os.getpid()}"
        if (root / "cgroup.controllers").exists():
            limits = {root / name: {"memory.max": memory, "memory.swap.max": 0, "pids.max": processes}}
        else:
            limits = {
                root / "memory" / name: {"memory.limit_in_bytes": memory},
                root / "pids" / name: {"pids.max": processes},
            }
        _clear(root)
        self.folders = list(limits)
        self.settled = False  # this process is inside, and so is all that it starts
        for folder, values in limits.items():
            folder.mkdir(exist_ok=True)
            for file, value in values.items():
                if file != "memory.swap.max" or (folder / file).exists():  # absent where swap is not counted
                    (folder / file).write_text(str(value))

    def enter(self) -> None:
        """Put the calling process in, and with it all that it starts."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text("0")

    def settle(self) -> None:
        """Enter for good: to enter takes the kernel longer than to start a sandbox."""
        if not self.settled:
            self.enter()
            self.settled = True

    def remove(self) -> None:
        """Remove the group, which must be empty but for this process; one that is left goes when the next is made."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                if self.settled:
                    (folder.parent / "cgroup.procs").write_text("0")
                folder.rmdir()


@functools.cache
def own_group(memory: int, processes: int) -> Group:
    """This process's group, which goes when the process ends. Raises OSError where this machine does not let us."""
    group = Group(memory, processes)
    atexit.register(group.remove)
    return group


def _clear(root: Path) -> None:
    """Remove the groups of processes that were killed. The kernel refuses to remove one in use."""
    for parent in (root, root / "memory", root / "pids"):
        for folder in parent.glob("fiducial-*"):
            pid = folder.name.rpartition("-")[2]
            if not Path("/proc", pid).exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()
