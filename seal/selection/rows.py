"""The selection as an operation on a `datasets.Dataset`."""

import os
import warnings

import datasets

from seal.datasets.identity import number_rows, row_keys
from seal.datasets.prompts import readable, to_messages
from seal.errors import InputError
from seal.selection.artefact import select_rows
from seal.selection.calibration import share_kept
from seal.selection.evidence import doubts
from seal.selection.load import load_selection


def kept_rows(
    dataset: datasets.Dataset,
    selector: str | os.PathLike,
    topp: float | str,
    *,
    unscored: str,
    input_key: str | None,
    output_key: str | None,
    max_canary_kept: float,
    confidence: float,
) -> datasets.Dataset:
    """The rows of `dataset` that a selector keeps; `seal.select` documents the arguments."""
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(
            f"select needs a datasets.Dataset, got a {type(dataset).__name__}; of several splits "
            'give one, as dataset["train"]'
        )
    plain = dataset.with_format(None)
    rows = readable(number_rows(to_messages(plain, "given", input_key, output_key)))
    selection = load_selection(selector)
    for doubt in doubts(selection.meta):
        warnings.warn(doubt, stacklevel=3)
    share = share_kept(selection, topp, max_canary_kept, confidence)
    selected = select_rows(*row_keys(rows), selection, share, unscored)
    return dataset.select(rows.select(selected.indices)["row"])
