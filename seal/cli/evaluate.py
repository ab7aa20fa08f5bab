"""Is the model safer, and still useful? Models x prompt sets x judges to results.json.

    python evaluate.py --answers base=out/base seal=out/seal --harmful harmful.jsonl --out out/eval
    deepspeed evaluate.py --models base=MODEL seal=ckpt/adapter --harmful harmful.jsonl \\
        --over_refusal xstest.jsonl --judges rules openai --judge_base_url http://HOST:PORT/v1 \\
        --judge_model NAME --out out/eval

`--models` are answered first, as batch_inference.py does; `--answers` are directories of answer
files named after their prompt files. Writes results.json, verdicts.jsonl and the answers.
"""

import argparse
import os
from pathlib import Path

from seal.assess import rules
from seal.assess.answers import read_answers
from seal.assess.evaluation import KINDS, Findings, Judges, PromptSet
from seal.assess.generation import (
    Alone,
    Job,
    Sampling,
    Template,
    model_stamp,
    resolve,
    settings_of,
    tokenizer_source,
)
from seal.assess.prompts import read_prompts
from seal.assess.results import Results, read_results, write_results
from seal.assess.verdicts import VerdictCache
from seal.cli import flags
from seal.cli.declared import take
from seal.errors import InputError
from seal.utils import entry


def parser() -> flags.Parser:
    """The flags of this script."""
    groups = "what is evaluated", "judges", "answering", "every script"
    found = flags.Parser(__doc__, *groups)
    take(found, "overwrite")
    return found


def read_sets(args: argparse.Namespace) -> list[PromptSet]:
    """Every prompt file, named after its stem."""
    sets = []
    for kind in KINDS:
        for path in vars(args)[kind]:
            name = Path(path).name.removesuffix(".gz").rsplit(".", 1)[0]
            sets.append(PromptSet(name, kind, path, read_prompts(path, args.input_key)))
    names = [one.name for one in sets]
    if not sets:
        raise InputError(f"no prompts: give one of {', '.join('--' + kind for kind in KINDS)}")
    if len(set(names)) < len(names):
        raise InputError(
            f"prompt files {names} must differ in name, which the answers take; "
            "give a copy under another name"
        )
    for one in sets:
        needs = one.kind == "references" or (one.kind == "preference" and not args.baseline)
        empty = sum(not prompt.reference for prompt in one.prompts)
        if needs and empty:
            raise InputError(
                f"{one.path}: {empty} of {len(one.prompts)} rows have no reference; add a column "
                "'reference' (or give --baseline for --preference)"
            )
    return sets


def named(pairs: list[str]) -> dict[str, str]:
    """NAME=PATH flags as a dictionary."""
    found = {}
    for pair in pairs:
        name, sign, path = pair.partition("=")
        if not (name and sign and path) or name in found or "/" in name:
            raise InputError(f"{pair!r} must be NAME=PATH, each name once, no slash in it")
        found[name] = path
    return found


def given_answers(directory: str, prompt_set: str) -> Path:
    """The file of `--answers` for a prompt set.

    Raises:
        InputError: it is not there.
    """
    path = Path(directory) / f"{prompt_set}.json"
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in Path(directory).glob("*.json"))[:5]) or "none"
        raise InputError(
            f"--answers: {path} is not there (answer files in {directory}: {there}); give the "
            f"directory, and name the answers to {prompt_set}.jsonl {prompt_set}.json"
        )
    return path


def join_ranks(seed: int, with_weights: bool):
    """Ranks and device: a strategy where weights are loaded or the launcher was used."""
    if not with_weights and "RANK" not in os.environ:
        return Alone(), "cpu"
    from seal.utils.strategy import DeepspeedStrategy

    strategy = DeepspeedStrategy(seed=seed)
    strategy.setup_distributed()
    return strategy, strategy.device


# ------------------------------------------------------------------------------ answering models


def answer(args: argparse.Namespace, models: dict[str, str], sets: list[PromptSet], ranks, device):
    """Answers every prompt set with every model; returns log-perplexities of the references.

    Returns:
        (model, prompt set) -> float64 [N] nats a token, for the kind `references`.
    """
    from seal.assess.engine import HFEngine, encode_jobs, generate, load_model
    from seal.assess.references import reference_nll
    from seal.utils.tokenizer import get_tokenizer

    sampling = flags.settings(Sampling, args)
    template = Template(args.apply_chat_template, args.input_template)
    likelihoods = {}
    for name, path in models.items():
        base, adapter = resolve(path, None)
        tokenizer = get_tokenizer(tokenizer_source(path, base))
        model = {"pretrain": path, "bf16": args.bf16, "weights": model_stamp(base, adapter)}
        jobs = [
            Job(
                one.prompts,
                [],
                str(answer_path(args.out, name, one)),
                name,
                settings_of(sampling, template, model),
            )
            for one in sets
        ]
        jobs, encoded = encode_jobs(jobs, base, tokenizer, sampling, template)
        engine = HFEngine(load_model(base, adapter, args.bf16, device), tokenizer, sampling)
        for one, job, ids in zip(sets, jobs, encoded, strict=True):
            generate(job, engine, ids, args.token_budget, ranks)
            if one.kind == "references" and ranks.is_rank_0():
                texts = [p.text for p in one.prompts], [p.reference for p in one.prompts]
                nats, tokens = reference_nll(
                    engine.model, tokenizer, template, *texts, args.token_budget
                )
                likelihoods[name, one.name] = nats / tokens
    return likelihoods


def answer_path(directory: str, model: str, prompt_set: PromptSet) -> Path:
    """Where the answers of a model to a prompt set lie below `--out`."""
    return Path(directory) / "answers" / model / f"{prompt_set.name}.json"


# --------------------------------------------------------------------------------------- judging


def load_judges(args: argparse.Namespace, sets: list[PromptSet], device) -> Judges:
    """The judges of `--judges`, able to judge every prompt set."""
    served = reward = None
    if "openai" in args.judges:
        if not (args.judge_base_url and args.judge_model):
            raise InputError("--judges openai needs --judge_base_url and --judge_model")
        from seal.assess.openai_judge import OpenAIJudge
        from seal.assess.served import Endpoint

        endpoint = Endpoint(
            args.judge_base_url,
            args.judge_model,
            retries=args.judge_retries,
            timeout=args.judge_timeout,
            concurrency=args.judge_concurrency,
        )
        endpoint.check()
        cache = VerdictCache(args.judge_cache or Path(args.out) / "verdicts.sqlite")
        served = OpenAIJudge(endpoint, cache, args.seed, args.judge_max_tokens)
    if "reward" in args.judges:
        if not args.reward_model:
            raise InputError("--judges reward needs --reward_model")
        from seal.assess.reward_judge import RewardJudge
        from seal.utils.tokenizer import get_tokenizer

        tokenizer = get_tokenizer(args.reward_model)
        reward = RewardJudge(
            args.reward_model, tokenizer, args.guard_unsafe_label, args.bf16, device
        )
    refusal = [rules.judge] if "rules" in args.judges else []
    if "trained" in args.judges:
        if not args.judge_file:
            raise InputError("--judges trained needs --judge_file")
        from seal.assess.trained_judge import TrainedJudge

        refusal.append(TrainedJudge.load(args.judge_file).judge)
    judges = Judges(refusal, served, reward)
    judges.check(sets)
    return judges


def show(results: Results) -> None:
    """Prints one line a measure."""
    for m in results.measures:
        value = "nothing scored"
        if m.value is not None:
            value = f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]"
        left_out = f", {m.unscored} unscored" if m.unscored else ""
        print(f"{m.model:12} {m.prompt_set:24} {m.measure:26} {value} n={m.n}{left_out} {m.judge}")


def refuse_to_drop(args: argparse.Namespace, files: dict[tuple[str, str], Path]) -> None:
    """Refuses to replace an evaluation of other models or prompt sets, unless asked to."""
    earlier = Path(args.out) / "results.json"
    if args.overwrite or not earlier.exists():
        return
    there = {(one["model"], one["prompt_set"]) for one in read_results(earlier).answers}
    if lost := sorted(there - set(files)):
        model, prompts = lost[0]
        raise InputError(
            f"{earlier} holds {len(lost)} results that this would drop, {model} on {prompts} the "
            "first; give another --out, or --overwrite"
        )


def main() -> None:
    """Answers what must be answered on every rank, then judges on the first."""
    args = parser().parse_args()
    models, given = named(args.models), named(args.answers)
    if (not models and not given) or set(models) & set(given):
        raise InputError("give --models or --answers (both is fine), each name once")
    if args.baseline and args.baseline not in {**models, **given}:
        raise InputError(f"--baseline {args.baseline!r} is none of {', '.join([*models, *given])}")
    sets = read_sets(args)
    files = {(m, s.name): answer_path(args.out, m, s) for m in models for s in sets}
    files |= {(m, s.name): given_answers(given[m], s.name) for m in given for s in sets}
    refuse_to_drop(args, files)
    read = {(m, s.name): read_answers(files[m, s.name], s.prompts) for m in given for s in sets}
    ranks, device = join_ranks(args.seed, bool(models) or "reward" in args.judges)
    judges = ranks.on_rank_0(lambda: load_judges(args, sets, device))
    likelihoods = answer(args, models, sets, ranks, device) if models else {}
    if not ranks.is_rank_0():
        return
    read |= {(m, s.name): read_answers(files[m, s.name], s.prompts) for m in models for s in sets}
    found = Findings(args.seed)
    for one in sets:
        for model in {**models, **given}:
            rival = read[args.baseline, one.name] if args.baseline else None
            if one.kind == "preference" and model == args.baseline:
                continue
            found.add(model, one, read[model, one.name], judges, rival)
            if (model, one.name) in likelihoods:
                found.add_log_perplexity(model, one, likelihoods[model, one.name])
    served = judges.served and {
        "name": judges.served.name,
        "base_url": args.judge_base_url,
        **judges.served.cost._asdict(),
    }
    out = Path(args.out)
    results = found.results(sets, out / "verdicts.jsonl", files, [served] if served else [])
    write_results(out / "results.json", results)
    show(results)
    print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    entry.run(main)
