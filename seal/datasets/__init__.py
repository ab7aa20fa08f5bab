"""Data: files and names to rows, rows to tokens with their supervision."""

from seal.datasets.blending import load_rows, read_raw
from seal.datasets.identity import row_id
from seal.datasets.published import published_length_filter
from seal.datasets.sft_dataset import Batch, SFTDataset, concatenate, tokenize_rows

__all__ = [
    "Batch",
    "SFTDataset",
    "concatenate",
    "load_rows",
    "published_length_filter",
    "read_raw",
    "row_id",
    "tokenize_rows",
]
