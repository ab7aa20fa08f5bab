"""HEx-PHI as its authors give it to those who ask: a file a category, no header, to one file.

    python examples/hexphi.py DIRECTORY --out hexphi.jsonl
    python evaluate.py --harmful hexphi.jsonl ...

The directory holds category_1.csv to category_11.csv, one prompt a line. The data set is gated and
comes with no file of this package; its second category has been withdrawn since.

Source: Qi et al. 2023, "Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do
Not Intend To!" (arXiv 2310.03693), section 3.
"""

import argparse
import csv
import json
from pathlib import Path

from seal.errors import InputError
from seal.files import atomic_path
from seal.utils import entry

CATEGORIES = (
    "Illegal Activity",
    "Child Abuse Content",
    "Hate/Harass/Violence",
    "Malware",
    "Physical Harm",
    "Economic Harm",
    "Fraud/Deception",
    "Adult Content",
    "Political Campaigning",
    "Privacy Violation Activity",
    "Tailored Financial Advice",
)


def read_hexphi(directory: str | Path) -> list[dict[str, str]]:
    """The prompts of a directory of HEx-PHI, in the order of the categories.

    Returns:
        {"prompt", "category"} a prompt, the category by its name.

    Raises:
        InputError: no such directory, none of the files, or a line that is not one prompt.
    """
    records = []
    for number, category in enumerate(CATEGORIES, 1):
        path = Path(directory) / f"category_{number}.csv"
        if not path.is_file():
            continue
        with open(path, newline="", encoding="utf-8-sig") as file:
            for line in filter(None, csv.reader(file)):
                if len(line) != 1 or not line[0].strip():
                    raise InputError(f"{path}: {len(line)} columns, expected one prompt a line")
                records.append({"prompt": line[0], "category": category})
    if not records:
        raise InputError(f"{directory} holds no category_1.csv to category_{len(CATEGORIES)}.csv")
    return records


def main() -> None:
    """Writes one prompt file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="folder of category_1.csv to category_11.csv")
    parser.add_argument("--out", type=Path, required=True, help="prompt file to write (.jsonl)")
    args = parser.parse_args()
    records = read_hexphi(args.directory)
    with atomic_path(args.out) as tmp:
        tmp.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    found = {record["category"] for record in records}
    absent = [category for category in CATEGORIES if category not in found]
    print(f"{len(records)} prompts of {len(found)} categories: {args.out}")
    if absent:
        print(f"not there: {', '.join(absent)}")


if __name__ == "__main__":
    entry.run(main)
