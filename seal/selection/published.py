"""Selectors as the paper published them: a bare tensor of logits in a `.pt` file.

Such a file says nothing about its rows. Its logits number the rows that the published length
filter let through, so they are matched by replaying that filter on the same dataset.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seal.datasets import PUBLISHED_TEMPLATE
from seal.errors import InputError
from seal.selection.artefact import selection_meta

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


def read_published(path: str | os.PathLike) -> np.ndarray:
    """Reads the logits of a bare-tensor file on the CPU; nothing in the file is executed.

    Returns:
        float32 [N].

    Raises:
        InputError: the file cannot be read, carries code, or is not a finite tensor of one
            dimension.
    """
    import torch

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give a published selector (.pt)")
    try:
        logits = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly any type on a file that is not its own
        reason = str(error).split(". ")[0].splitlines()[0] if str(error) else repr(error)
        raise InputError(f"{path}: refused, not a file of plain tensors: {reason:.200}") from error
    if not isinstance(logits, torch.Tensor):
        raise InputError(f"{path}: holds a {type(logits).__name__}, must be one tensor of logits")
    if logits.ndim != 1 or len(logits) == 0:
        raise InputError(f"{path}: shape {list(logits.shape)}, must be [N], a logit a row")
    if logits.is_complex() or not torch.isfinite(logits).all():
        raise InputError(f"{path}: has logits that are not finite real numbers")
    return logits.detach().float().numpy()


def published_columns(
    path: str | os.PathLike,
    rows: "datasets.Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    max_len: int,
    input_template: str = PUBLISHED_TEMPLATE,
) -> tuple[dict, dict]:
    """Gives each logit of a published file its row, by replaying the published length filter.

    Args:
        rows: the dataset it was trained on, as `seal.datasets.load_rows` gives it.
        tokenizer, max_len (tokens), input_template: those it was trained with; an empty template
            stands for the prompt as it is.

    Returns:
        columns and metadata, as `write_selection` takes them.

    Raises:
        InputError: the file is refused, or the filter lets through another number of rows.
    """
    from seal.datasets import published_length_filter

    logits = read_published(path)
    mask = published_length_filter(rows, tokenizer, max_len=max_len, input_template=input_template)
    passed = np.flatnonzero(mask)
    if len(passed) != len(logits):
        raise InputError(
            f"{path}: {len(logits)} logits, but {len(passed)} of {len(rows)} rows pass the "
            f"published length filter at {max_len} tokens; the dataset, the tokenizer or the "
            "max_len is not the one it was trained with"
        )
    keys = rows.select_columns(["id", "occurrence"]).with_format("arrow")[:].take(passed)
    weight = np.exp(logits - logits.max(), dtype=np.float64)  # softmax but for its scale
    columns = {"id": keys["id"], "occurrence": keys["occurrence"], "row": passed}
    columns |= {"score": logits, "logit": logits, "weight": weight}
    meta = selection_meta(
        method="published",
        arguments={"file": Path(path).name, "input_template": input_template},
        fingerprint=rows._fingerprint,
        raw=len(rows),
        skipped={"published length filter": len(rows) - len(passed)},
        tokenizer=tokenizer.name_or_path,
        max_len=max_len,
    )
    return columns, meta
