"""The selection as an operation on a `datasets.Dataset`."""

import os

import datasets

from seal.datasets.identity import number_rows
from seal.datasets.prompts import to_messages
from seal.errors import InputError
from seal.selection.artefact import select_rows
from seal.selection.calibration import share_kept
from seal.selection.keys import row_keys
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
    messages = to_messages(
        dataset.with_format(None), "given", input_key=input_key, output_key=output_key
    )
    keys = row_keys(number_rows(messages))
    selection = load_selection(selector)
    share = share_kept(selection, topp, max_canary_kept, confidence)
    selected = select_rows(*keys, selection, share, unscored)
    return dataset.select(selected.indices)
