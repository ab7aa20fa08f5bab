"""What several subcommands share: the flags that name a dataset or a share, rows, aligned text."""

import argparse
import sys
from typing import TYPE_CHECKING

from seal.cli.declared import REQUIRED, take

if TYPE_CHECKING:
    import datasets


def add_dataset_flags(parser: argparse.ArgumentParser, required: bool) -> None:
    """Adds `--dataset` and the flags that decide its rows, as in selector training."""
    names = ("dataset", "dataset_probs", "seed", "input_key", "output_key")
    take(parser, *names, dataset=REQUIRED if required else None)


def add_topp_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--topp` and what `--topp auto` goes by, as in fine-tuning."""
    take(parser, "topp", "max_canary_kept", "confidence", topp=REQUIRED)


def read_rows(args: argparse.Namespace) -> "datasets.Dataset":
    """The rows that the flags of `add_dataset_flags` name and that can be read, with their ids."""
    from seal.datasets import load_rows
    from seal.datasets.prompts import readable

    hide_bars()
    rows = load_rows(
        args.dataset,
        probs=args.dataset_probs,
        seed=args.seed,
        input_key=args.input_key,
        output_key=args.output_key,
    )
    return readable(rows)


def aligned(facts: dict[str, str]) -> str:
    """One line a fact, the names in a column of their own."""
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def hide_bars() -> None:
    """Switches the progress bars of datasets off where nobody looks."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
