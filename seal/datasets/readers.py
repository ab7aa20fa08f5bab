"""Files to rows: JSON, JSON lines, CSV, TSV and Parquet, plain or gzipped, text left as it is.

Nothing here guesses a type from the looks of a text: "007" in a CSV stays "007", and a JSON
string that looks like a date stays a string. (The loaders of pyarrow, pandas and `datasets` turn
one or both into something else.)
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from seal.datasets.cache import fingerprint, mapped_table
from seal.errors import InputError, said

TEXTS = (".json", ".jsonl", ".csv", ".tsv")
SUFFIXES = (*TEXTS, ".parquet")
EMPTY = "leave it out, or write it again"
_BLOCK = 10_000  # records held as Python objects at a time
_VERSION = 2  # of what is written to the cache

Record = tuple[int, dict]  # line of the file (from 1), column -> value


def file_suffix(path: Path) -> str:
    """The suffix that says how to read `path`, without .gz and in lower case."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def read_files(paths: list[Path]) -> datasets.Dataset:
    """All rows of `paths`, one after the other, with the union of their columns.

    The rows are written once to the cache as Arrow, under the files' names, sizes and times, and
    mapped from there. A column whose values are nested or differ in type keeps them as
    `datasets.Json`.

    Raises:
        InputError: A file is not readable as its suffix says (with the line), or no row is left.
    """
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    name = fingerprint("files", _VERSION, stats)

    def read() -> pa.Table:
        tables = [table for path in paths for table in _tables(path)]
        if not any(len(table) for table in tables):
            raise InputError(f"{', '.join(map(str, paths[:3]))} holds no rows; {EMPTY}")
        return _concat(tables)

    return datasets.Dataset(mapped_table(name, read), fingerprint=name)


def read_records(path: Path) -> Iterator[Record]:
    """The records of a JSON, JSON lines, CSV or TSV file, plain or gzipped, one by one.

    Raises:
        InputError: It is not readable as its suffix says (with the line).
    """
    with _told(path):
        if file_suffix(path) not in TEXTS:
            raise InputError(f"{path}: unknown suffix; known are {', '.join(SUFFIXES)} and .gz")
        sheet = file_suffix(path) in (".csv", ".tsv")
        yield from _csv_records(path) if sheet else _json_records(path)


def _tables(path: Path) -> Iterator[pa.Table]:
    with _told(path):
        if file_suffix(path) == ".parquet":
            yield _parquet_table(path)
            return
        records = read_records(path)
        while block := list(islice(records, _BLOCK)):
            yield _table(path, block)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Says which file it is that cannot be read."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: broken gzip file ({error}); copy it again") from error
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({said(error)})") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, numbered from 1."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                message = f"{path}: line {number} is not UTF-8 text; save the file as UTF-8"
                raise InputError(message) from error


def _json_records(path: Path) -> Iterator[Record]:
    """One object a line, or one list of objects."""
    lines = _lines(path)
    for number, line in lines:
        if line.isspace():
            continue
        if line.lstrip().startswith("[") and file_suffix(path) == ".json":
            rest = "".join(text for _, text in lines)
            values = _parse(path, number, line + rest)
            yield from ((number, _object(path, f"item {i}", v)) for i, v in enumerate(values))
            return
        yield number, _object(path, f"line {number}", _parse(path, number, line.strip()))


def _parse(path: Path, number: int, text: str) -> object:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        line = number + error.lineno - 1 if isinstance(error, json.JSONDecodeError) else number
        reason = error.msg if isinstance(error, json.JSONDecodeError) else said(error)
        raise InputError(
            f"{path}: line {line} is not JSON ({reason}); "
            "a file holds one object a line or, with suffix .json, one list of objects"
        ) from error


def _number(digits: str) -> int | float:
    """An integer; one of more than 64 bits, which `datasets` cannot hold, as the nearest float."""
    value = int(digits)
    return value if -(2**63) <= value < 2**63 else float(digits)


# `json.loads` makes a decoder a call where its arguments are not the defaults.
_DECODER = json.JSONDecoder(parse_int=_number)


def _object(path: Path, where: str, value: object) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {where} holds a {type(value).__name__}, expected an object")
    return value


def _csv_records(path: Path) -> Iterator[Record]:
    """Rows of a CSV file with a header; every value is text, quotes and newlines in it kept.

    A header without a comma is cut at its semicolons or tabs, as spreadsheets write it in places
    where the comma is the decimal sign.
    """
    csv.field_size_limit(2**31 - 1)  # the default stops at 131,072 characters
    lines = (line for _, line in _lines(path))
    first = next(lines, "")
    cut = "\t" if file_suffix(path) == ".tsv" else max(",;\t", key=first.__contains__)
    reader = csv.reader(chain([first], lines), delimiter=cut, strict=True)
    try:
        header = next(reader, [])
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(values)} values, the header "
                    f"{len(header)}; cut at {cut!r}; quote the values that hold it or newlines, or "
                    "use another sign"
                )
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} is not CSV ({error})") from error


def _parquet_table(path: Path) -> pa.Table:
    source = pa.BufferReader(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path
    with pq.ParquetFile(source) as file:
        table = file.read().replace_schema_metadata(None)
    table.validate(full=True)  # finds text that is not UTF-8
    return table


def _table(path: Path, records: list[Record]) -> pa.Table:
    names = dict.fromkeys(name for _, record in records for name in record)
    try:
        return pa.table({n: _column([record.get(n) for _, record in records]) for n in names})
    except UnicodeEncodeError as error:
        line = next(line for line, record in records if not _is_unicode(record))
        raise InputError(
            f"{path}: line {line} holds half a surrogate pair, which is no text; repair or drop it"
        ) from error


def _is_unicode(record: dict) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _column(values: list) -> pa.Array:
    try:
        found = pa.array(values)
        return _as_json(values) if _is_deep(found.type) else found
    # Values of several types, nested ones of several forms, whole numbers beyond 64 bits.
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return _as_json(values)


def _is_deep(kind: pa.DataType) -> bool:
    """Whether values hold objects below messages, in which Arrow fills in one row's keys in all."""
    while pa.types.is_list(kind):
        kind = kind.value_type
    return pa.types.is_struct(kind) and any(pa.types.is_nested(field.type) for field in kind)


def _as_json(values: list) -> pa.ExtensionArray:
    """Values of several types in one column: `datasets` reads them back one by one."""
    texts = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _concat(tables: list[pa.Table]) -> pa.Table:
    """One table with the union of the columns; absent values are null."""
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        if not _unifies([t.schema.field(name) for t in tables if name in t.column_names]):
            tables = [_recode(table, name) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def _unifies(fields: list[pa.Field]) -> bool:
    try:
        pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def _recode(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names or table.schema.field(name).type == pa.json_():
        return table
    values = _as_json(table[name].to_pylist())
    return table.set_column(table.column_names.index(name), name, values)
