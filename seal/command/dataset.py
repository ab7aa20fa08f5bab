"""What several subcommands share: the flags that name a dataset or a share, rows, aligned text."""

import argparse
import sys
from typing import TYPE_CHECKING

from seal.selection.calibration import CONFIDENCE, MAX_CANARY_KEPT

if TYPE_CHECKING:
    import datasets


def add_dataset_flags(parser: argparse.ArgumentParser, required: bool) -> None:
    """Adds `--dataset` and the flags that decide its rows, spelt as in selector training."""
    parser.add_argument(
        "--dataset",
        required=required,
        help="the rows that were scored: files (.json .jsonl .csv .parquet), directories or hub "
        "names, separated by commas",
    )
    parser.add_argument(
        "--dataset_probs", default="1.0", help="blending probabilities, separated by commas"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the blending")
    parser.add_argument("--input_key", help="column of the prompt, when it is not recognised")
    parser.add_argument("--output_key", help="column of the response, when it is not recognised")


def add_topp_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--topp` and what `--topp auto` goes by, spelt as in fine-tuning."""
    parser.add_argument(
        "--topp",
        required=True,
        help="share of the scored rows kept, in (0, 1], or auto: what the canaries justify",
    )
    for name, value, meaning in (
        ("max_canary_kept", MAX_CANARY_KEPT, "limit of --topp auto"),
        ("confidence", CONFIDENCE, "of --topp auto's bound"),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, help=f"{meaning} ({value})")


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
