"""The run folder on disk, which is the interface: the report, `fiducial doctor`, `replay` and a user's own scripts read
only what is here.

    config.json      the resolved recipe, versions of everything that matters, the commit
    metrics.jsonl    one line per step; a number that is not finite is null and counted in `nonfinite`
    samples.jsonl    completions worth reading: before, during and after training
    journal.jsonl    what is needed to recompute a step
    data.json        what became of every row of the data, and the sha256 of the files it was read from
    stopped.json     why the run stopped before its end, until it goes on: step, kind, reason, detail, advice
    rollouts/        step-000123.parquet, every completion of a step
    checkpoints/     step-000123/
    model/           the final model, a Hugging Face folder
    report.html

Nothing is left half-written: a line is appended whole or not at all, and every other file is written beside, synced and
moved into place. A process that is killed may leave one cut last line; readers skip it and the next append removes it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PACKAGES = (
    "fiducial", "torch", "numpy", "transformers", "tokenizers", "safetensors", "peft", "pyarrow", "datasets",
    "math-verify", "reasoning-gym", "vllm",
)  # fmt: skip
PROVENANCE = ("versions", "commit")  # what `create` adds to the settings in config.json
PHASES = ("before", "during", "after")
_STEP_FILE = re.compile(r"step-(\d+)\.parquet")


class RunFolder:
    """A run's folder. Paths of what it holds are properties; reading something that is not there gives nothing."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.journal = self.path / "journal.jsonl"
        self.rollouts = self.path / "rollouts"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.report = self.path / "report.html"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").exists() or self.metrics.exists() or self.checkpoints.exists()

    def refuse_used(self) -> None:
        """ValueError if the folder already holds a run, or is none."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: choose another --out")
        if self.holds_run:
            step = self.last_step()
            done = "no step yet" if step is None else f"step {step}"
            raise ValueError(
                f"{self.path} already holds a run ({done}): add --resume to go on, or choose another --out"
            )

    def create(self, config: dict[str, Any]) -> RunFolder:
        """Start a run here: make the folder and write config.json. ValueError if it already holds a run."""
        self.refuse_used()
        self._make()
        self.write_json("config.json", {**config, "versions": versions(), "commit": commit()})
        return self

    def _make(self) -> None:
        """Make the folder if there is none. ValueError if its name, or a part of its path, is a file's."""
        with self._explained("create"):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                taken = next(path for path in (self.path, *self.path.parents) if path.exists())
                raise ValueError(f"{taken} is a file: choose another --out") from None

    def read_config(self) -> dict[str, Any]:
        """The run's settings, as given to `create`."""
        return {key: value for key, value in self._config().items() if key not in PROVENANCE}

    def provenance(self) -> dict[str, Any]:
        """`versions` of Python, the platform and the packages, and the `commit` of Fiducial (None if it has none)."""
        config = self._config()
        return {key: config.get(key) for key in PROVENANCE}

    def _config(self) -> dict[str, Any]:
        config = self.read_json("config.json")
        if config is None:
            raise ValueError(f"{self.path} is not a run folder: it has no config.json")
        return config

    # -- why it stopped ------------------------------------------------------------------------------------------

    def write_stop(self, stop: dict[str, Any]) -> None:
        """Leave why the run stopped: step, kind (the error's class), reason, detail, advice. The first of several
        processes to say so is the one that knows: what the others meet follows from it."""
        if self.read_stop() is None:
            self.write_json("stopped.json", stop)

    def read_stop(self) -> dict[str, Any] | None:
        """What `write_stop` left, None if the run goes on or reached its end."""
        return self.read_json("stopped.json")

    def forget_stop(self) -> None:
        """The run goes on."""
        (self.path / "stopped.json").unlink(missing_ok=True)

    # -- lines ---------------------------------------------------------------------------------------------------

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Add one line. Numbers may be tensors or arrays of one element; what is not finite becomes null and counts."""
        row, nonfinite = {}, 0
        for name, value in metrics.items():
            row[name] = plain = _plain(value)
            nonfinite += plain is None and value is not None
        self._append(self.metrics, {**row, "nonfinite": row.get("nonfinite", 0) + nonfinite} if nonfinite else row)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines in the order they were written."""
        return read_lines(self.metrics)

    def append_sample(self, sample: dict[str, Any]) -> None:
        """Add a completion worth reading: step, phase ("before", "during", "after"), prompt, completion, verdict,
        reward, why, and whatever else is known about it."""
        if sample.get("phase") not in PHASES:
            raise ValueError(f"a sample's phase must be one of {', '.join(PHASES)}; it is {sample.get('phase')!r}")
        self._append(self.samples, sample)

    def read_samples(self) -> list[dict[str, Any]]:
        return read_lines(self.samples)

    def append_journal(self, entry: dict[str, Any]) -> None:
        """Add what is needed to recompute a step; `step` names it."""
        self._append(self.journal, entry)

    def read_journal(self) -> list[dict[str, Any]]:
        return read_lines(self.journal)

    def last_step(self) -> int | None:
        """The largest step in metrics.jsonl, None without one."""
        return max((row["step"] for row in self.read_metrics() if isinstance(row.get("step"), int)), default=None)

    def truncate_after(self, step: int) -> None:
        """Forget metrics, samples, journal entries and rollouts of later steps, so that a run can go on from `step`."""
        for file in (self.metrics, self.samples, self.journal):
            rows = read_lines(file)
            kept = [row for row in rows if (row.get("step") or 0) <= step]
            if file.exists():
                self.write_text(file.name, "".join(_line(row) for row in kept))
        for later in self.rollout_steps():
            if later > step:
                self._rollout_file(later).unlink()

    def sync(self) -> None:
        """Return when all lines written so far are on the disk. Call before a checkpoint that relies on them."""
        for file in (self.metrics, self.samples, self.journal):
            if file.exists():
                with self._explained(f"write {file.name} in"), file.open("rb") as handle:
                    os.fsync(handle.fileno())

    def _append(self, file: Path, row: dict[str, Any]) -> None:
        """Add one whole line; if the disk is full the file stays as it was."""
        data = _line(row).encode()
        with self._explained(f"write {file.name} in"):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                end = _end_of_last_line(handle)
                os.ftruncate(handle, end)
                os.lseek(handle, end, os.SEEK_SET)
                try:
                    _write_all(handle, data)
                except OSError:
                    os.ftruncate(handle, end)
                    raise
            finally:
                os.close(handle)

    # -- whole files ---------------------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the folder at once: readers see the old one or the new one, never a part."""
        return self._replace(self.path / name, lambda file: file.write(text.encode()))

    def write_json(self, name: str, value: Any) -> Path:
        return self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """The value in a JSON file of the folder, None if the file does not exist."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error

    def write_rollouts(self, step: int, rows: Sequence[dict[str, Any]]) -> Path:
        """Write a step's completions as parquet. Values that have no column type (dicts, mixed types) are JSON text
        there, and come back as they were. A field that only some rows have is None in the others."""
        import pyarrow.parquet as parquet

        table = _to_table(rows)
        return self._replace(self._rollout_file(step), lambda file: parquet.write_table(table, file))

    def read_rollouts(self, step: int) -> list[dict[str, Any]]:
        """A step's completions. ValueError if they were not kept."""
        import pyarrow.parquet as parquet

        file = self._rollout_file(step)
        if not file.exists():
            steps = self.rollout_steps()
            kept = f"it has those of steps {', '.join(map(str, steps))}" if steps else "it has none"
            raise ValueError(f"{self.path} has no rollouts of step {step}: {kept}")
        return _from_table(parquet.read_table(file))

    def rollout_steps(self) -> list[int]:
        """The steps whose rollouts are here, in order."""
        names = (_STEP_FILE.fullmatch(file.name) for file in self.rollouts.glob("step-*.parquet"))
        return sorted(int(match[1]) for match in names if match)

    def _rollout_file(self, step: int) -> Path:
        return self.rollouts / f"step-{step:06d}.parquet"

    def _replace(self, path: Path, write: Callable[[BinaryIO], Any]) -> Path:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # several ranks may write stopped.json
        with self._explained(f"write {path.name} in"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
                sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
        return path

    # -- one process at a time -----------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder while the block runs. ValueError if another live process holds it. However the process ends,
        the kernel lets go of the lock, and children that it forked never keep it."""
        import fcntl

        self._make()
        file = self.path / ".lock"
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        _locks.add(handle)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = file.read_text() or "unknown"
                raise ValueError(
                    f"{self.path} is in use by process {owner}: wait for it, stop it, or choose another --out"
                ) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            if handle in _locks:  # it is not in a forked child, which has closed its copy
                _locks.discard(handle)
                os.close(handle)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Errors of the file system say what could not be done, where, and what to do."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            advice = "free some space, then go on with --resume"
            raise OSError(error.errno, f"the disk is full: cannot {doing} {self.path}; {advice}") from error


# -- lines of JSON -----------------------------------------------------------------------------------------------


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, [] if it does not exist. A last line that was cut short is skipped; any other line
    that is not JSON is a ValueError that names it."""
    path = Path(path)
    if not path.exists():
        return []
    *whole, rest = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(whole, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not valid JSON: {error}") from error
    with contextlib.suppress(ValueError):  # what a killed process left, or a whole line without its end
        rows.append(json.loads(rest))
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n"


def _plain(value: Any) -> Any:
    """A metric as JSON can hold it: Python numbers, None where a number is not finite."""
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _end_of_last_line(handle: int) -> int:
    """Where the next line may start: behind the last newline. A whole object that only lacks its newline gets it."""
    size = os.lseek(handle, 0, os.SEEK_END)
    tail, start = b"", size
    while start > 0 and b"\n" not in tail:
        chunk = min(65536, start)
        start -= chunk
        tail = os.pread(handle, chunk, start) + tail
    rest = tail[tail.rfind(b"\n") + 1 :]
    with contextlib.suppress(ValueError):
        json.loads(rest)
        os.pwrite(handle, b"\n", size)
        return size + 1
    return size - len(rest)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- rows and columns --------------------------------------------------------------------------------------------


def _to_table(rows: Sequence[dict[str, Any]]) -> Any:
    import pyarrow

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns, as_json = [], []
    for name in names:
        values = [row.get(name) for row in rows]
        column = _column(values)
        if column is None:
            as_json.append(name)
            column = pyarrow.array([None if value is None else json.dumps(value) for value in values], pyarrow.string())
        columns.append(column)
    table = pyarrow.table(dict(zip(names, columns, strict=True)))
    return table.replace_schema_metadata({"fiducial.json": json.dumps(as_json)})


def _column(values: list[Any]) -> Any:
    """A typed column, or None if only JSON can hold these values as they are."""
    import pyarrow

    if not all(value is None or _is_columnar(value) for value in values):
        return None
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):  # mixed types, a huge integer, half a character
        return None


def _is_columnar(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, bool | int | float) for item in value)
    return isinstance(value, bool | int | float | str)


def _from_table(table: Any) -> list[dict[str, Any]]:
    as_json = set(json.loads((table.schema.metadata or {}).get(b"fiducial.json", b"[]")))
    rows = table.to_pylist()
    for row in rows:
        for name in as_json:
            row[name] = None if row[name] is None else json.loads(row[name])
    return rows


# -- where a run comes from --------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Python, the platform, and the installed packages that a result depends on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str | None:
    """The git commit of Fiducial's own source, "+changes" behind it if files differ. None if it is not under git."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie inside someone else's repository
        head = git("rev-parse", "HEAD")
        return head + "+changes" if git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


_locks: set[int] = set()


def _close_inherited_locks() -> None:
    """A forked child shares its parent's open files, and an flock lives as long as any copy of its file is open."""
    for handle in _locks:
        os.close(handle)
    _locks.clear()


os.register_at_fork(after_in_child=_close_inherited_locks)
