"""Data: files and names to rows, rows to tokens with their supervision.

The names below are imported when they are first used: reading rows needs neither torch nor
transformers, which take seconds to load.
"""

import importlib

_HOME = {
    "Batch": "sft_dataset",
    "SFTDataset": "sft_dataset",
    "concatenate": "sft_dataset",
    "load_rows": "blending",
    "published_length_filter": "published",
    "read_raw": "blending",
    "row_id": "identity",
    "tokenize_rows": "sft_dataset",
}
PUBLISHED_TEMPLATE = "Human: {}\nAssistant: "
__all__ = [*_HOME, "PUBLISHED_TEMPLATE"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(f"{__name__}.{_HOME[name]}"))[name]
