"""`seal merge`: fold a LoRA adapter into its base model."""

import argparse
import sys
from pathlib import Path

from seal.errors import InputError, said
from seal.files import atomic_folder

EXAMPLE = "seal merge ckpt/adapter --out merged"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("merge", help="fold a LoRA adapter into its base model")
    parser.add_argument("adapter", help="directory of the adapter (adapter_config.json)")
    parser.add_argument("--out", required=True, help="directory of the merged model, to be made")
    parser.add_argument("--base", help="base model, when it is not where training found it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[dict, str]:
    adapter, out = Path(args.adapter), Path(args.out)
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: no adapter_config.json; give the directory of a LoRA adapter")
    if out.exists():
        raise InputError(f"{out} exists; give a directory that does not")
    with atomic_folder(out) as folder:
        base = _merge(adapter, args.base, folder)
    result = {"adapter": str(adapter), "base": base, "out": str(out)}
    return result, f"merged {adapter} into {base}: {out}"


def _merge(adapter: Path, base: str | None, folder: Path) -> str:
    """Writes the merged model and its tokenizer to `folder`; returns the base model's name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from seal.models.adapters import adapter_config, load_adapter

    if not sys.stderr.isatty():
        disable_progress_bar()
    base = base or adapter_config(adapter).base_model_name_or_path
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        has_tokenizer = (adapter / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(adapter if has_tokenizer else base)
    except (OSError, ValueError) as error:
        raise InputError(
            f"base model {base!r} cannot be read, give --base: {said(error)}"
        ) from error
    merged = load_adapter(model, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    card = adapter / "README.md"
    if card.is_file():  # it holds for the merged model, but for how that is loaded
        text = card.read_text(encoding="utf-8")
        text = text.replace("library_name: peft", "library_name: transformers", 1)
        (folder / card.name).write_text(text, encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return base
