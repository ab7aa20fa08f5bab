"""Answer a prompt file with a model: AlpacaEval's JSON, and JSONL beside it.

    deepspeed batch_inference.py --pretrain MODEL --prompts prompts.jsonl --output_path out/a.json
    python batch_inference.py --engine openai --pretrain NAME --base_url http://HOST:PORT/v1 ...

Runs on any number of ranks; a run that was stopped goes on where it stood. The order and number of
answers equal the input's.
"""

import argparse
from pathlib import Path

from seal.assess.generation import (
    Alone,
    Job,
    Sampling,
    Template,
    generate_served,
    model_stamp,
    resolve,
    settings_of,
    tokenizer_source,
)
from seal.assess.prompts import read_prompts
from seal.cli import flags
from seal.errors import InputError
from seal.utils import entry


def parser() -> flags.Parser:
    """The flags of this script."""
    groups = "every script", "one model", "answering", "prompts"
    return flags.Parser(__doc__, *groups, max_len=None)


def check(args: argparse.Namespace) -> None:
    """Refuses flags that do not fit together, before anything is loaded."""
    if len(args.prompts) != len(args.output_path):
        raise InputError(
            f"{len(args.prompts)} prompt files and {len(args.output_path)} output paths; give as "
            "many of one as of the other"
        )
    wrong = [path for path in args.output_path if not path.endswith(".json")]
    if wrong or len(set(args.output_path)) < len(args.output_path):
        raise InputError(f"--output_path {wrong or args.output_path} must be distinct .json files")
    if args.engine == "openai" and not args.base_url:
        raise InputError("--engine openai needs --base_url, the server's address up to /v1")


def jobs_of(args: argparse.Namespace, sampling: Sampling, template: Template) -> list[Job]:
    """One job a prompt file, lengths in characters."""
    model = {
        "engine": args.engine,
        "pretrain": args.pretrain,
        "lora_path": args.lora_path,
        "bf16": args.bf16,
        "base_url": args.base_url,
        "truncate_prompt": args.truncate_prompt,
        "max_len": args.max_len,
        "weights": model_stamp(*resolve(args.pretrain, args.lora_path)),
    }
    name = args.generator or Path(args.lora_path or args.pretrain).name
    jobs = []
    for path, output in zip(args.prompts, args.output_path, strict=True):
        prompts = read_prompts(path, args.input_key)
        lengths = [len(prompt.text) for prompt in prompts]
        jobs.append(Job(prompts, lengths, output, name, settings_of(sampling, template, model)))
    return jobs


def run_local(
    args: argparse.Namespace, jobs: list[Job], sampling: Sampling, template: Template
) -> None:
    """Answers with weights loaded here, by transformers."""
    from seal.assess.engine import HFEngine, encode_jobs, generate, load_model
    from seal.utils.strategy import DeepspeedStrategy
    from seal.utils.tokenizer import get_tokenizer

    ranks = DeepspeedStrategy(seed=args.seed)
    ranks.setup_distributed()
    base, adapter = resolve(args.pretrain, args.lora_path)
    source = tokenizer_source(args.pretrain, base)
    tokenizer = get_tokenizer(source, trust_remote_code=args.trust_remote_code)
    truncate = args.truncate_prompt == "left"
    jobs, encoded = encode_jobs(jobs, base, tokenizer, sampling, template, args.max_len, truncate)
    engine = HFEngine(load_model(base, adapter, args.bf16, ranks.device), tokenizer, sampling)
    for job, ids in zip(jobs, encoded, strict=True):
        generate(job, engine, ids, args.token_budget, ranks)


def main() -> None:
    """Reads every prompt file, then answers one after the other."""
    args = parser().parse_args()
    check(args)
    sampling = flags.settings(Sampling, args)
    template = Template(args.apply_chat_template, args.input_template)
    jobs = jobs_of(args, sampling, template)
    if args.engine == "openai":
        from seal.assess.served import Endpoint

        endpoint = Endpoint(args.base_url, args.pretrain, concurrency=args.concurrency)
        endpoint.check()
        for job in jobs:
            generate_served(job, endpoint, sampling, Alone())
    else:
        run_local(args, jobs, sampling, template)


if __name__ == "__main__":
    entry.run(main)
