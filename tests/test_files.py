import csv
import gc
import gzip
import io
import json
import os
import pickle
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.data import ListRows, files, open_rows

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

ROWS = [
    {"prompt": "2 + 2 = ", "completion": "4"},
    {"prompt": 'a "quoted", comma', "completion": "two\nlines"},
    {"prompt": "naïve 日本 🙂", "completion": "tab\tand\r\nCRLF\u2028separator"},
]


def write(path: Path, rows: list[dict], group: int = 2) -> Path:
    import pyarrow
    import pyarrow.parquet

    ending = "".join(path.suffixes)
    if ending in (".jsonl", ".ndjson"):
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline=""
        )
    elif ending == ".jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif ending == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif ending in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if ending == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "jsonl.gz", "json", "csv", "tsv", "parquet"])
def test_the_same_rows_come_back_from_every_kind_of_file(tmp_path, ending):
    source = open_rows(write(tmp_path / f"rows.{ending}", ROWS))
    assert len(source) == 3
    assert list(source) == ROWS
    assert [source[i] for i in (2, 0, 1)] == [ROWS[2], ROWS[0], ROWS[1]]
    assert source.fields == ["prompt", "completion"]
    with pytest.raises(IndexError, match="has 3 rows"):
        source[3]
    with pytest.raises(IndexError):
        source[-1]


def test_saved_datasets_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(str(tmp_path / "many"))
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "single"))

    assert list(open_rows(tmp_path / "one")) == ROWS
    assert open_rows(tmp_path / "one").where(1) == "one, row 2"
    assert list(open_rows(tmp_path / "single")) == ROWS
    test = open_rows(tmp_path / "many", split="test")
    assert list(test) == [ROWS[1]] and test.where(0) == "many/test, row 1"
    with pytest.raises(ValueError, match="several splits: set data.split, or name .*many/train; train, test"):
        open_rows(tmp_path / "many")
    with pytest.raises(ValueError, match="no split 'dev': set data.split, or name .*many/train; train, test"):
        open_rows(tmp_path / "many", split="dev")
    with pytest.raises(ValueError, match="one has no splits: leave out data.split = 'train'"):
        open_rows(tmp_path / "one", split="train")
    with pytest.raises(ValueError, match="holds no saved dataset"):
        open_rows(tmp_path)
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="one is not a whole saved dataset"):
        open_rows(tmp_path / "one")


@pytest.mark.parametrize(
    "data",
    [ROWS, {"data": ROWS}, {"version": 1, "data": ROWS}, {key: [row[key] for row in ROWS] for key in ROWS[0]}],
)
def test_json_layouts(tmp_path, data):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(data))
    source = open_rows(path)
    assert list(source) == ROWS
    assert source.where(1) == "rows.json, row 2"


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \n{"a": 2}\n\n{"a": 3}'
    )  # BOM, CRLF, blank lines, no last newline
    source = open_rows(path)
    assert list(source) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert [source.where(i) for i in range(3)] == ["rows.jsonl, line 1", "rows.jsonl, line 4", "rows.jsonl, line 6"]
    assert source.notes == ["rows.jsonl: 3 blank lines passed over"]

    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\r\n\r\n2,z\r\n')
    source = open_rows(path)
    assert list(source) == [{"a": "1", "b": "x\r\ny"}, {"a": "2", "b": "z"}]
    assert [source.where(i) for i in range(2)] == ["rows.csv, line 2", "rows.csv, line 5"]
    assert source.notes == ["rows.csv: 1 blank line passed over"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3), min_size=1, max_size=6), data=st.data()
)
def test_jsonl_index(tmp_path_factory, rows, data):
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    ends = st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\r\n"])
    ascii_only = data.draw(st.booleans())
    texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes("".join(text + data.draw(ends) for text in texts).encode())
    source = open_rows(path)
    order = data.draw(st.permutations(range(len(rows))))
    assert [source[i] for i in order] == [rows[i] for i in order]
    lines = path.read_bytes().decode().split("\n")
    for i, text in enumerate(texts):
        assert lines[int(source.where(i).split()[-1]) - 1].rstrip("\r") == text


CELL = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('",\n\r\t;'), max_size=8)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3).flatmap(lambda w: st.lists(st.lists(CELL, min_size=w, max_size=w), min_size=1, max_size=6)))
def test_csv_agrees_with_the_csv_module(tmp_path_factory, cells):
    out = io.StringIO(newline="")
    header = ["a", "b", "c"][: len(cells[0])]
    csv.writer(out).writerows([header, *cells])
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    path.write_bytes(out.getvalue().encode())
    expected = list(csv.DictReader(io.StringIO(out.getvalue(), newline="")))
    assert list(open_rows(path)) == expected == [dict(zip(header, row, strict=True)) for row in cells]


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(st.sampled_from("ab é🙂\n\r ") | st.characters(exclude_categories=["Cs"]), min_size=1),
    chars=st.integers(1, 9),
)
def test_text_rows_lose_no_character(tmp_path_factory, text, chars):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    rows = [row["text"] for row in open_rows(path, text_chars=chars)]
    assert "".join(rows) == text.removeprefix("\ufeff")
    assert all(0 < len(row) <= chars for row in rows)


def test_text_is_cut_between_paragraphs_then_lines_then_anywhere(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n\nthree\nfour\nabcdefghijklmno\n")
    source = open_rows(path, text_chars=12)
    # "one\n\ntwo\n\n" is 10 characters; "three\nfour\n" 11; the last line is longer than a row
    assert [row["text"] for row in source] == ["one\n\ntwo\n\n", "three\nfour\n", "abcdefghijkl", "mno\n"]
    assert [source.where(i) for i in range(4)] == [f"a.txt, line {n}" for n in (1, 5, 7, 7)]
    assert source.fields == ["text"]
    # 5 + 4 + 6 > 12: back to the paragraph's end; then 4 + 6 + 1 characters, and 5 more would be 16
    path.write_text("one\n\ntwo\nthree\n\nfour\n")
    assert [row["text"] for row in open_rows(path, text_chars=12)] == ["one\n\n", "two\nthree\n\n", "four\n"]


def test_shakespeare_comes_back_whole():
    path = DATA / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip("shared/data/tinyshakespeare.txt is not beside the checkout")
    source = open_rows(path)
    rows = [row["text"] for row in source]
    assert "".join(rows) == path.read_bytes().decode()
    assert max(map(len, rows)) <= 4096
    assert sum(row.endswith("\n\n") for row in rows) >= len(rows) - 1  # its speeches are short paragraphs


BROKEN = [
    ("a.jsonl", b'{"a": 1}\n{"a": 1, b}\n', r"a\.jsonl, line 2, column 10: malformed JSON: .*property name"),
    ("a.jsonl", b'{"a": 1}\n\n{"a": "x\n', r"a\.jsonl, line 3, column 7: malformed JSON: Unterminated string"),
    ("a.jsonl", b'{"a": "NaN", "b": NaN}\n', r"a\.jsonl, line 1, column 19: NaN is not JSON; write null"),
    ("a.jsonl", b'{"a": 1}\n{"b": -Infinity}\n', r"a\.jsonl, line 2, column 7: -Infinity is not JSON"),
    ("a.jsonl", b'{"a": 1}\n[1, 2]\n', r"a\.jsonl, line 2: a row must be an object .* this is a list"),
    ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl, line 2, byte 8: not UTF-8"),
    ("a.jsonl", b"", r"a\.jsonl is empty"),
    ("a.jsonl", b"\n \n", r"a\.jsonl is empty"),
    ("a.json", b"", r"a\.json is empty"),
    ("a.json", b"[]", r"a\.json holds no rows"),
    ("a.json", b'[{"a": 1},\n 3]', r"a\.json, row 2: a row must be an object .* this is a int"),
    ("a.json", b'[{"a": 1},\n {"a" 3}]', r"a\.json, line 2, column 7: malformed JSON"),
    ("a.json", b'[{"a": 1},\n {"a": NaN}]', r"a\.json, line 2, column 8: NaN is not JSON"),
    ("a.jsonl", b'{"a": 1}\n{"b": 2, "a": {"x": 0, "y": 1, "x": 2}}\n', r"a\.jsonl, line 2, column 32: the key 'x' is"),
    (
        "a.jsonl",
        b'{"a": 1}\n{"k\\"": [{"a": "a"}, {}], "b": 2, "k\\u0022": 3}',
        "line 2, column 35: the key 'k\"' is there",
    ),
    ("a.json", b'[{"a": 1},\n {"a": "{",\n"a": 1}]', r"a\.json, line 3, column 1: the key 'a' is there twice"),
    ("a.json", b'{"a": 1}\n{"a": 2}', r"a\.json, line 2, column 1: .*one a line belong in a \.jsonl file"),
    ("a.json", b'{"a": [1], "b": [1, 2]}', r"a\.json must be an array of rows, an object of equally long columns"),
    ("a.json", b'"text"', r"a\.json must be an array of rows"),
    ("a.json", b'["\n\xff"]', r"a\.json, line 2, byte 1: not UTF-8"),
    ("a.csv", b"", r"a\.csv is empty"),
    ("a.csv", b"a,b\n", r"a\.csv is empty"),
    ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv, line 3: the row has 1 cells and the header 2"),
    ("a.csv", b"a,a\n1,2\n", r"a\.csv, line 1: the header must name every column once"),
    ("a.csv", b'a,b\n1,2\n3,"x\ny\n', r"a\.csv, line 3: unexpected end of data"),
    ("a.csv", b'a,b\n1,"x"y\n', r"a\.csv, line 2: .* expected after"),
    ("a.csv", b"a,b\n1,2\n\xe9,3\n", r"a\.csv, line 3, byte 1: not UTF-8"),
    ("a.txt", b"", r"a\.txt is empty"),
    ("a.txt", b"fine\nnot \xff\n", r"a\.txt, line 2, byte 5: not UTF-8"),
    ("a.parquet", b"PAR1 but no", r"a\.parquet is not a readable parquet file"),
    ("a.jsonl.gz", b"not packed", r"a\.jsonl\.gz is not a whole gzip file"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], r"a\.jsonl\.gz is not a whole gzip file"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n{', mtime=0), r"a\.jsonl\.gz, line 2, column 2: malformed JSON"),
    ("a.xlsx", b"x", r"a\.xlsx: the ending '\.xlsx' is unknown; rows are read from \.jsonl .*\.parquet"),
    ("rows", b"x", r"rows: the ending '' is unknown"),
]


@pytest.mark.parametrize("name, content, message", BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(open_rows(path))
    assert "\n" not in str(caught.value)


def test_missing_paths_and_unwanted_splits(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl does not exist"):
        open_rows(tmp_path / "nowhere.jsonl")
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"rows\.jsonl has no splits: leave out data\.split = 'train'"):
        open_rows(path, split="train")
    with pytest.raises(ValueError, match="mine holds no rows"):
        ListRows([], "mine")
    with pytest.raises(ValueError, match="text_chars must be at least 1"):
        path = tmp_path / "a.txt"
        path.write_text("x")
        open_rows(path, text_chars=0)


def test_long_cells_are_read(tmp_path):
    rows = [{"text": "x" * 200_000}]  # the csv module refuses fields above 131,072 characters unless told otherwise
    assert list(open_rows(write(tmp_path / "rows.csv", rows))) == rows


def test_unpacked_gzip_goes_with_its_source(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl.gz", ROWS)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(files.tempfile, "tempdir", str(scratch))
    source = open_rows(path)
    assert source.where(2) == "rows.jsonl.gz, line 3" and len(os.listdir(scratch)) == 1
    del source
    gc.collect()
    assert os.listdir(scratch) == []
    path.write_bytes(gzip.compress(b"", mtime=0))
    with pytest.raises(ValueError, match="empty"):
        open_rows(path)
    assert os.listdir(scratch) == []


def test_parquet_keeps_few_row_groups(tmp_path, monkeypatch):
    rows = [{"text": f"{i:1000}"} for i in range(40)]
    path = write(tmp_path / "rows.parquet", rows)  # 20 groups of 2 rows, 2 kB each
    monkeypatch.setattr(files, "CACHE_BYTES", 7000)
    source = files.ParquetRows(path, path.name)
    order = random.Random(0).sample(range(40), 40)
    assert [source[i] for i in order] == [rows[i] for i in order]
    assert 1 <= len(source.cache) <= 3  # 3 of 2 kB fit in 7000 bytes
    assert source.where(39) == "rows.parquet, row 40"


def test_a_source_survives_pickling(tmp_path):
    source = open_rows(write(tmp_path / "rows.csv", ROWS))
    assert list(pickle.loads(pickle.dumps(source))) == ROWS


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt", "parquet"])
def test_memory_stays_small(tmp_path, ending):
    path = tmp_path / f"big.{ending}"
    rows, words = 20_000, "word " * 200  # 20 MB of text
    if ending == "parquet":
        write(path, [{"prompt": str(i), "text": words} for i in range(rows)], group=500)
    else:
        shape = {"jsonl": '{{"prompt": "{}", "text": "{}"}}\n', "csv": '{},"{}"\n', "txt": "{} {}\n\n"}[ending]
        with path.open("w") as file:
            file.write("prompt,text\n" * (ending == "csv"))
            file.writelines(shape.format(i, words) for i in range(rows))
    tracemalloc.start()
    try:
        source = open_rows(path)
        total = sum(len(source[i]["text"]) for i in range(0, len(source), 7))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 2_000_000
    assert peak < 2_500_000  # the index of 20,000 rows is 320 kB; pyarrow's own memory is not Python's
