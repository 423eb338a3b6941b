"""Files of rows, read by random access without loading them.

JSON lines, CSV and plain text are indexed in one pass (16 bytes of memory a row) and read row by row; parquet is read
by row group; a saved `datasets` folder is memory-mapped. Only a `.json` file is held in memory whole, because a JSON
array cannot be read in parts. Whatever is wrong with a file is a ValueError that names the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
import tempfile
import weakref
import zlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

BOM = b"\xef\xbb\xbf"
CACHE_BYTES = 256 * 2**20  # decoded parquet row groups that stay in memory
TEXT_CHARS = 4096


class RowSource:
    """Rows of one file or folder: `len(source)`, `source[i] -> dict`, iteration, and `where(i)` for messages.

    `fields` are the columns, or the fields of the first row where rows may differ. `notes` say in sentences what was
    passed over while reading (blank lines).
    """

    name: str
    fields: list[str]
    notes: list[str]
    unit = "row"
    whole = True  # False where rows are pieces of one text, which does not end where a row does

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows; there is no row {i}")
        return self._read(i)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def where(self, i: int) -> str:
        """The place of row `i` as a person counts, from 1: "pairs.jsonl, line 17"."""
        return f"{self.name}, {self.unit} {i + 1}"

    def _read(self, i: int) -> dict[str, Any]:
        raise NotImplementedError


class ListRows(RowSource):
    """Rows that are in memory already.

    >>> source = ListRows([{"text": "a"}, {"text": "b"}], name="mine")
    >>> len(source), source[1], source.where(1)
    (2, {'text': 'b'}, 'mine, row 2')
    """

    def __init__(self, rows: Sequence[dict[str, Any]], name: str = "rows"):
        self.name, self.rows, self.notes = name, rows, []
        if not len(rows):
            raise ValueError(f"{name} holds no rows")
        self.fields = list(self[0])

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, i: int) -> dict[str, Any]:
        return _as_row(self.rows[i], self.where(i))


class _SpanRows(RowSource):
    """Rows that are spans of bytes of one file. The file is opened for each read: nothing to close, share or fork."""

    unit = "line"

    def __init__(self, path: Path, name: str):
        self.path, self.name, self.notes = path, name, []
        self.starts = array("q")  # byte where each row starts, and the end of the file
        self.lines = array("q")  # the line it starts on, from 1
        with path.open("rb") as file:
            if file.read(len(BOM)) != BOM:
                file.seek(0)
            blank = self._index(file)
        if blank:
            self.notes.append(f"{name}: {blank} blank line{'s' * (blank > 1)} passed over")
        if not self.lines:
            raise ValueError(f"{name} is empty: it holds no rows")

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, i: int) -> str:
        return f"{self.name}, line {self.lines[i]}"

    def _index(self, file: io.BufferedReader) -> int:
        """Fill `starts` and `lines`; how many blank lines there were."""
        raise NotImplementedError

    def _bytes(self, i: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.starts[i])
            return file.read(self.starts[i + 1] - self.starts[i])


class JsonlRows(_SpanRows):
    """One JSON object a line."""

    def __init__(self, path: Path, name: str):
        super().__init__(path, name)
        self.fields = list(self[0])

    def _index(self, file: io.BufferedReader) -> int:
        position, number = file.tell(), 0
        for number, line in enumerate(file, 1):
            if not line.isspace():
                self.starts.append(position)
                self.lines.append(number)
            position += len(line)
        self.starts.append(position)
        return number - len(self.lines)

    def _read(self, i: int) -> dict[str, Any]:
        line = self._bytes(i).split(b"\n", 1)[0]  # a span also holds the blank lines after its row
        text = _decode(line, self.name, self.lines[i])
        return _as_row(_parse_json(text, self.name, self.lines[i]), self.where(i))


class CsvRows(_SpanRows):
    """Comma- (or for `.tsv` tab-) separated rows under a header. Every value is text; quoted fields may span lines."""

    def __init__(self, path: Path, name: str):
        self.delimiter = "\t" if ".tsv" in Path(name).suffixes else ","
        csv.field_size_limit(2**31 - 1)  # the module's default refuses texts above 128 KiB
        super().__init__(path, name)

    def _index(self, file: io.BufferedReader) -> int:
        position = file.tell()

        def lines() -> Iterator[str]:
            nonlocal position
            for number, line in enumerate(file, 1):
                position += len(line)
                yield _decode(line, self.name, number)

        reader = csv.reader(lines(), delimiter=self.delimiter, strict=True)
        start, line, blank, self.fields = position, 1, 0, []
        try:
            for record in reader:  # the reader takes just the lines that the record needs
                if record and self.fields:
                    self._check_width(record, line)
                    self.starts.append(start)
                    self.lines.append(line)
                elif record:
                    self.fields = self._header(record, line)
                blank += not record
                start, line = position, reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{self.name}, line {line}: {error}; quote fields that hold quotes or newlines") from error
        self.starts.append(position)
        return blank

    def _header(self, record: list[str], line: int) -> list[str]:
        if len(set(record)) < len(record) or "" in record:
            raise ValueError(f"{self.name}, line {line}: the header must name every column once; it is {record}")
        return record

    def _check_width(self, record: list[str], line: int) -> None:
        if len(record) != len(self.fields):
            raise ValueError(
                f"{self.name}, line {line}: the row has {len(record)} cells and the header {len(self.fields)}; "
                "quote cells that hold the delimiter"
            )

    def _read(self, i: int) -> dict[str, Any]:
        text = io.StringIO(self._bytes(i).decode(), newline="")
        return dict(zip(self.fields, next(csv.reader(text, delimiter=self.delimiter, strict=True)), strict=True))


class TextRows(_SpanRows):
    """One long text as rows `{"text": ...}` of at most `chars` characters; joined, they are the file again.

    Rows end between paragraphs where they can, else between lines, else anywhere.
    """

    fields = ["text"]

    whole = False

    def __init__(self, path: Path, name: str, chars: int = TEXT_CHARS):
        if chars < 1:
            raise ValueError(f"text_chars must be at least 1; it is {chars}")
        self.chars = chars
        super().__init__(path, name)

    def _index(self, file: io.BufferedReader) -> int:
        position, line, size = file.tell(), 1, 0
        paragraph: tuple[int, int, int] | None = None  # position, line and size at the last paragraph's end
        for piece in self._pieces(file):
            if not self.lines:
                self._start(position, line)
            while size and size + len(piece) > self.chars:
                cut_position, cut_line, cut_size = paragraph or (position, line, size)
                self._start(cut_position, cut_line)
                size, paragraph = size - cut_size, None
            position, line, size = position + len(piece.encode()), line + piece.count("\n"), size + len(piece)
            if piece.isspace():
                paragraph = (position, line, size)
        self.starts.append(position)
        return 0

    def _start(self, position: int, line: int) -> None:
        self.starts.append(position)
        self.lines.append(line)

    def _pieces(self, file: io.BufferedReader) -> Iterator[str]:
        """Lines, those longer than a row in parts."""
        try:
            with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
                while piece := text.readline(self.chars):
                    yield piece
        except UnicodeDecodeError:
            with self.path.open("rb") as again:
                for number, line in enumerate(again, 1):
                    _decode(line, self.name, number)  # says on which line
            raise

    def _read(self, i: int) -> dict[str, Any]:
        return {"text": self._bytes(i).decode()}


class JsonRows(ListRows):
    """A JSON file, held in memory: an array of objects, an object of columns, or an object with the array in `data`."""

    def __init__(self, path: Path, name: str):
        text = _decode(path.read_bytes().removeprefix(BOM), name)
        if not text.strip():
            raise ValueError(f"{name} is empty: it holds no rows")
        data = _parse_json(text, name)
        if isinstance(data, dict) and isinstance(data.get("data"), list | dict):
            data = data["data"]
        super().__init__(data if isinstance(data, list) else _columns_to_rows(data, name), name)


class ParquetRows(RowSource):
    """A parquet file, read by row group; groups that were read stay in memory up to `CACHE_BYTES`.

    A file much larger than that, read in random order, is decoded again and again: write it with small row groups, or
    as JSON lines.
    """

    def __init__(self, path: Path, name: str):
        import pyarrow.parquet

        self.path, self.name, self.notes = path, name, []
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                self.fields = list(file.schema_arrow.names)
                counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{name} is not a readable parquet file: {_first_line(error)}") from error
        self.firsts = [0, *accumulate(counts)]  # row that each group starts with, and the number of rows
        self.cache: OrderedDict[int, Any] = OrderedDict()  # row group -> table, the least recently used first
        if not len(self):
            raise ValueError(f"{name} is empty: it holds no rows")

    def __len__(self) -> int:
        return self.firsts[-1]

    def _read(self, i: int) -> dict[str, Any]:
        group = bisect_right(self.firsts, i) - 1
        return self._table(group).slice(i - self.firsts[group], 1).to_pylist()[0]

    def _table(self, group: int) -> Any:
        import pyarrow.parquet

        if group not in self.cache:
            try:
                with pyarrow.parquet.ParquetFile(self.path) as file:
                    self.cache[group] = file.read_row_group(group)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{self.name}, row group {group + 1} is damaged: {_first_line(error)}") from error
            while len(self.cache) > 1 and sum(table.nbytes for table in self.cache.values()) > CACHE_BYTES:
                self.cache.popitem(last=False)
        self.cache.move_to_end(group)
        return self.cache[group]


class FolderRows(RowSource):
    """A folder written by `datasets.Dataset.save_to_disk`, memory-mapped; of a DatasetDict, the split `split`."""

    def __init__(self, path: Path, split: str):
        self.path, self.name, self.notes = path, path.name, []
        table = path / "dataset_dict.json"
        if table.exists():
            splits = _as_row(_parse_json(table.read_text(encoding="utf-8"), table.name), table.name).get("splits", [])
            split = split or (splits[0] if len(splits) == 1 else "")
            if split not in splits:
                asked = f"no split {split!r}" if split else "several splits"
                first = splits[0] if splits else "SPLIT"
                raise ValueError(f"{path} has {asked}: set data.split, or name {path / first}; {', '.join(splits)}")
            self.name, path = f"{self.name}/{split}", path / split
        elif split:
            raise ValueError(f"{path} has no splits: leave out data.split = {split!r}")
        self.data = _load_folder(path)
        self.fields = list(self.data.column_names)
        if not len(self.data):
            raise ValueError(f"{self.name} is empty: it holds no rows")

    def __len__(self) -> int:
        return len(self.data)

    def _read(self, i: int) -> dict[str, Any]:
        return self.data[i]


KINDS: dict[str, Callable[[Path, str], RowSource]] = {
    ".jsonl": JsonlRows,
    ".ndjson": JsonlRows,
    ".json": JsonRows,
    ".csv": CsvRows,
    ".tsv": CsvRows,
    ".parquet": ParquetRows,
    ".txt": TextRows,
}


def open_rows(path: str | os.PathLike[str], split: str = "", text_chars: int = TEXT_CHARS) -> RowSource:
    """The rows of a file, by its ending, or of a saved `datasets` folder.

    `.gz` after any ending is unpacked to a temporary file that goes with the source. `split` chooses from a saved
    DatasetDict; a `.txt` is cut to rows of at most `text_chars` characters.

    Raises ValueError naming the file, and the line where there is one.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_dir():
        return FolderRows(path, split)
    if split:
        raise ValueError(f"{path.name} has no splits: leave out data.split = {split!r}")
    endings = [ending.lower() for ending in path.suffixes]
    packed = endings[-1:] == [".gz"]
    ending = "".join(endings[:-1][-1:] if packed else endings[-1:])
    if ending not in KINDS:
        raise ValueError(
            f"{path.name}: the ending {ending!r} is unknown; rows are read from {' '.join(KINDS)}, each also as .gz, "
            "or from a folder of datasets.save_to_disk"
        )
    plain = _unpack(path) if packed else path
    try:
        rows = TextRows(plain, path.name, text_chars) if ending == ".txt" else KINDS[ending](plain, path.name)
    except BaseException:
        if packed:
            plain.unlink()
        raise
    if packed:
        weakref.finalize(rows, plain.unlink, missing_ok=True)
    return rows


def _unpack(path: Path) -> Path:
    """A temporary file with what a `.gz` holds: compressed bytes have no random access."""
    handle, name = tempfile.mkstemp(prefix="fiducial-")
    try:
        with gzip.open(path) as packed, os.fdopen(handle, "wb") as plain:
            shutil.copyfileobj(packed, plain)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        os.unlink(name)
        raise ValueError(f"{path.name} is not a whole gzip file: {error}") from error
    return Path(name)


def _load_folder(path: Path) -> Any:
    if not (path / "state.json").exists():
        raise ValueError(
            f"{path} holds no saved dataset (no state.json or dataset_dict.json): name one file, or a folder "
            "that datasets.save_to_disk wrote"
        )
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"reading {path} needs the package datasets: pip install 'fiducial[data]'") from error
    try:
        return datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a whole saved dataset: {_first_line(error)}") from error


def _columns_to_rows(columns: Any, name: str) -> list[dict[str, Any]]:
    values = list(columns.values()) if isinstance(columns, dict) else []
    lists = [value for value in values if isinstance(value, list)]
    if len(lists) < len(values) or len({len(column) for column in lists}) != 1:
        raise ValueError(f"{name} must be an array of rows, an object of equally long columns, or hold rows in `data`")
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _as_row(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'{where}: a row must be an object like {{"prompt": ...}}; this is a {type(value).__name__}')
    return value


def _decode(raw: bytes, name: str, line: int = 1) -> str:
    """The text of `raw`, which starts on `line`."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        byte = error.start - raw.rfind(b"\n", 0, error.start)
        raise ValueError(f"{name}, line {line}, byte {byte}: not UTF-8; save the file as UTF-8") from error


class _Duplicate(Exception):
    """A key that an object has twice, of which Python's reader would drop the first."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Duplicate
    return made


def _duplicate(text: str) -> tuple[str, int]:
    """The first key that its object already has, and where it stands; `text` is valid JSON up to there."""
    seen: list[set[str]] = []  # keys of the objects that are open
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"(?P<colon>\s*:)?|[{}]', text):
        if token.group() == "{":
            seen.append(set())
        elif token.group() == "}":
            seen.pop()
        elif token["colon"]:
            key = json.loads(token.group()[: -len(token["colon"])])
            if key in seen[-1]:
                return key, token.start()
            seen[-1].add(key)
    raise AssertionError("no key is there twice")


class _Constant(Exception):
    """NaN, Infinity or -Infinity, which Python's reader would let pass."""


def _refuse_constant(word: str) -> NoReturn:
    raise _Constant(word)


def _parse_json(text: str, name: str, line: int = 1) -> Any:
    """The value of `text`, which starts on `line`. ValueError names line, column and reason."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        hint = "; rows one a line belong in a .jsonl file" if error.msg == "Extra data" and error.lineno > 1 else ""
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        raise ValueError(f"{name}, {place}: malformed JSON: {error.msg}{hint}") from error
    except _Constant as error:
        word = str(error)
        tokens = re.finditer(r'"(?:[^"\\]|\\.)*"|-?[A-Za-z]+', text)
        at = next(token.start() for token in tokens if token.group() == word)
        raise ValueError(f"{name}, {_place(text, at, line)}: {word} is not JSON; write null or a number") from error
    except _Duplicate as error:
        key, at = _duplicate(text)
        raise ValueError(f"{name}, {_place(text, at, line)}: the key {key!r} is there twice; keep one") from error


def _place(text: str, at: int, line: int) -> str:
    return f"line {line + text.count(chr(10), 0, at)}, column {at - text.rfind(chr(10), 0, at)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
