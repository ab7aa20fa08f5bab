"""SEAL: safety-enhanced fine-tuning by bilevel data selection.

`import seal` itself loads nothing: what it offers is looked up when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seal.cli.score_dataset import score_rows_of as score
    from seal.selection.rows import select

__version__ = "0.1.0"
_HOME = {
    "score": ("seal.cli.score_dataset", "score_rows_of"),
    "select": ("seal.selection.rows", "select"),
}
__all__ = ["__version__", "score", "select"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _HOME[name]
    return vars(importlib.import_module(module))[function]
