"""Names to rows: local files, folders and hub datasets, blended into one dataset."""

import glob
import logging
import re
from pathlib import Path

import datasets
import numpy as np

from seal.datasets.identity import number_rows
from seal.datasets.prompts import to_messages
from seal.datasets.readers import EMPTY, SUFFIXES, file_suffix, read_files
from seal.errors import InputError, said
from seal.files import meant

logger = logging.getLogger(__name__)

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
_NOT_DATA = ("config.json", "dataset_info.json", "dataset_infos.json")


def load_rows(
    names: str,
    *,
    probs: str = "1.0",
    seed: int = 42,
    max_samples: int | None = None,
    split: str = "train",
    input_key: str | None = None,
    output_key: str | None = None,
    trust_remote_code: bool = False,
) -> datasets.Dataset:
    """Reads datasets and blends them into one, a conversation a row.

    Args:
        names: Comma-separated files (.json .jsonl .csv .tsv .parquet, also .gz), patterns such as
            data/*.jsonl, folders, folders of `datasets.save_to_disk`, hub names; `name@subset`
            picks a configuration or a folder inside. `name:column` and `name:prompt:response`
            name the columns of this one dataset, as input_key and output_key do.
        probs: Comma-separated. All 1.0 (or a single one): every row, in the order of `names`.
            Otherwise one probability a dataset: each next row is drawn from a dataset by its
            probability, and the blend ends where the first dataset is used up, as in OpenRLHF.
        seed: Of that draw.
        max_samples: Keep the first so many rows of each dataset.
        split: Which split to read where there are several; a single file has only itself.
        input_key: The prompt's column, or without `output_key` the column of conversations;
            comma-separated for one a dataset.
        output_key: The response's column, in the same way.

    Returns:
        `messages` (list of {"role", "content"}), `id` (32 hex digits), `occurrence` (int32, which
        copy of that id), `row` (int64, position here), `origin` (name as typed), `origin_row`
        (int64, position there). Where a row needs them also `extra` (see `prompts.whole`) and
        `skip` (why it cannot be read). No other column of the source is carried.

    Raises:
        InputError: A dataset is missing, unreadable, empty or of unknown schema, or too many of
            its rows cannot be read.
    """
    named = [_columns_of(name.strip()) for name in names.split(",") if name.strip()]
    origins = [origin for origin, *_ in named]
    weights = _probabilities(probs, origins)
    keys = list(zip(*(_one_each(key, len(named)) for key in (input_key, output_key)), strict=True))
    if max_samples is not None and max_samples < 1:
        raise InputError(f"max_samples must be at least 1, got {max_samples}")
    parts = []
    for (origin, *own), shared in zip(named, keys, strict=True):
        raw = read_raw(origin, split, trust_remote_code)
        raw = raw.select(range(min(len(raw), max_samples or len(raw))))
        columns = own if own[0] else shared
        parts.append(to_messages(raw, origin, *columns))
    return number_rows(_blend(parts, weights, seed))


def _columns_of(name: str) -> tuple[str, str | None, str | None]:
    """`name:prompt:response` as its three parts; None for a column that is not named."""
    stem, *columns = name.split(":")
    odd = len(columns) not in (1, 2) or not all(columns) or any("/" in text for text in columns)
    if odd or Path(name).expanduser().exists():
        return name, None, None
    return stem, columns[0], columns[1] if len(columns) > 1 else None


def _one_each(key: str | None, count: int) -> list[str | None]:
    keys = (key or "").split(",")
    if len(keys) not in (1, count):
        raise InputError(f"{len(keys)} columns ({key}) for {count} datasets; give one each")
    return [name.strip() or None for name in keys] * (1 if len(keys) == count else count)


def _probabilities(probs: str, origins: list[str]) -> list[float] | None:
    """One probability a dataset, or None for "every row of each, in order"."""
    if not origins:
        raise InputError("no dataset is named; give a file, a folder or a hub name")
    try:
        weights = [float(prob) for prob in probs.split(",")]
    except ValueError:
        raise InputError(f"probabilities {probs!r} are not comma-separated numbers") from None
    if set(weights) == {1.0} and len(weights) in (1, len(origins)):
        return None
    if len(weights) != len(origins):
        raise InputError(f"{len(weights)} probabilities ({probs}) for {len(origins)} datasets")
    if min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6:
        raise InputError(f"probabilities must be positive and sum to 1 (or all be 1), got {probs}")
    return weights


def _blend(
    parts: list[datasets.Dataset], weights: list[float] | None, seed: int
) -> datasets.Dataset:
    if weights is None:
        return datasets.concatenate_datasets(parts)
    rows = datasets.interleave_datasets(
        parts, probabilities=weights, seed=seed, stopping_strategy="first_exhausted"
    )
    used = dict(zip(*np.unique(rows["origin"][:], return_counts=True), strict=True))
    for part in parts:
        name = part[0]["origin"]
        logger.info("blend uses %d of the %d rows of %s", used.get(name, 0), len(part), name)
    return rows


def read_raw(name: str, split: str = "train", trust_remote_code: bool = False) -> datasets.Dataset:
    """One dataset with all its columns and rows, in its own order.

    Raises:
        InputError: It is missing, unreadable or holds no row.
    """
    path = _local_path(name)
    if path is None:
        rows = _from_hub(name, split, trust_remote_code)
    elif isinstance(path, list):
        rows = read_files(path)
    elif path.is_file():
        rows = read_files([path])
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        rows = _from_disk(path, split)
    else:
        rows = read_files(_data_files(path, split))
    if len(rows) == 0:
        raise InputError(f"dataset {name} holds no rows; {EMPTY}")
    return rows


def _local_path(name: str) -> Path | list[Path] | None:
    """The file, folder or files that `name` means, or None where it can only be a hub name."""
    stem, _, subset = name.partition("@")
    for candidate in (Path(name), Path(stem) / subset):
        if candidate.expanduser().exists():
            return candidate.expanduser()
    if glob.has_magic(name):
        paths = map(Path, sorted(glob.glob(str(Path(name).expanduser()), recursive=True)))
        if files := [path for path in paths if path.is_file()]:
            return files
        raise InputError(f"no file matches {name}, looked for in {Path.cwd()}")
    if file_suffix(Path(name)) in SUFFIXES or name[0] in "./~" or stem.count("/") > 1:
        path = Path(name).expanduser()
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        hint = meant(path) or "look at the path"
        raise InputError(f"dataset {name} not found{where}; {hint}")
    return None


def _data_files(folder: Path, split: str) -> list[Path]:
    """The data files of a folder in order of name; where names speak of splits, those of `split`.

    A file speaks of a split by a word in its name or in that of a folder below: train-00000.jsonl.
    """
    found = {
        path: _split_of(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if file_suffix(path) in SUFFIXES
        and path.name not in _NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if not found:
        raise InputError(f"folder {folder} holds no file with suffix {', '.join(SUFFIXES)} or .gz")
    if not any(found.values()):
        return list(found)
    wanted = _SPLITS.get(split, split)
    files = [path for path, of in found.items() if of == wanted]
    if not files:
        splits = ", ".join(sorted({of or "no split" for of in found.values()}))
        raise InputError(
            f"folder {folder} has no file of split {split!r}; its files are of {splits}"
        )
    return files


def _split_of(path: Path) -> str | None:
    words = re.split(r"[^a-z]+", path.as_posix().lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _from_disk(folder: Path, split: str) -> datasets.Dataset:
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow, json and datasets errors, all for a damaged folder
        raise InputError(f"folder {folder} cannot be read ({said(error)})") from error
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise InputError(f"folder {folder} has no split {split!r}; it has {', '.join(saved)}")
    return saved[split]


def _from_hub(name: str, split: str, trust_remote_code: bool) -> datasets.Dataset:
    """`name@subset`: a configuration of the hub dataset, or a folder of it, as in OpenRLHF."""
    stem, _, subset = name.partition("@")
    options = {"split": split, "trust_remote_code": trust_remote_code}
    try:
        if not subset:
            return datasets.load_dataset(stem, **options)
        try:
            return datasets.load_dataset(stem, subset, **options)
        except ValueError:  # not the name of a configuration
            return datasets.load_dataset(stem, data_dir=subset, **options)
    except Exception as error:  # hub, network and builder errors share no class
        hint = meant(Path(stem)) or "give a local file or directory"
        raise InputError(
            f"dataset {name} is no file or directory in {Path.cwd()}, and could not be loaded from "
            f"the hub; {hint} ({said(error)})"
        ) from error
