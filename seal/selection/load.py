"""The one door for selectors: an artefact (.parquet) or a published file (.pt)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from seal.datasets import PUBLISHED_TEMPLATE
from seal.errors import InputError
from seal.selection.artefact import Selection, make_selection, read_selection
from seal.selection.published import published_columns

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


def load_selection(
    path: str | os.PathLike,
    rows: "datasets.Dataset | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_len: int | None = None,
    input_template: str = PUBLISHED_TEMPLATE,
) -> Selection:
    """Reads a selector of either kind: an artefact (.parquet) or a published file (.pt).

    The other arguments are needed for a `.pt` only, as in `published_columns`.

    Raises:
        InputError: another suffix, or a `.pt` without the dataset, tokenizer and max_len.
    """
    suffix = Path(path).suffix
    if suffix == ".parquet" or Path(path).is_dir():
        return read_selection(path)
    if suffix != ".pt":
        raise InputError(f"{path}: a selector is a .parquet or a published .pt, got {suffix!r}")
    if rows is None or tokenizer is None or max_len is None:
        raise InputError(
            f"{path}: a .pt does not name its rows; give the dataset it was trained on, "
            "--selector_tokenizer and --selector_max_len, or `seal convert` it once"
        )
    return make_selection(*published_columns(path, rows, tokenizer, max_len, input_template))
