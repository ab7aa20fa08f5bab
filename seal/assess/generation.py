"""Answering a prompt set over several ranks: shares, batches, progress, going on after a kill."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from seal.assess.answers import Answer, Parts, is_complete, write_answers
from seal.assess.prompts import Prompt, sha256_of_text
from seal.datasets import PUBLISHED_TEMPLATE
from seal.errors import InputError
from seal.progress import Progress

if TYPE_CHECKING:
    from seal.assess.served import Endpoint
    from seal.utils.strategy import DeepspeedStrategy

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: greedy at temperature 0, else sampled, each prompt with own seed.

    Raises:
        InputError: a value out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise InputError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}; 1 keeps every token")


@dataclass(frozen=True)
class Template:
    """How a prompt becomes the model's input.

    `chat` uses the tokenizer's own chat template; otherwise `text`, in which {} is the prompt.
    """

    chat: bool = False
    text: str = PUBLISHED_TEMPLATE


class Alone:
    """The ranks of a process that has no others: what is asked of a strategy, without one."""

    rank, world_size = 0, 1

    def is_rank_0(self) -> bool:
        """Always."""
        return True

    def print(self, *message: object) -> None:
        """Prints."""
        print(*message, flush=True)

    def all_gather_object(self, value: object) -> list:
        """A list of one."""
        return [value]

    def agree(self, failure: BaseException | None) -> None:
        """Raises the failure, if any."""
        if failure is not None:
            raise failure

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """Does the work."""
        return work()


def prompt_seeds(prompts: Sequence[str], seed: int) -> list[int]:
    """A seed a prompt from its text, its occurrence and `seed`: not from its batch or rank."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed}:{seen[prompt]}:{prompt}".encode()).digest()
        seeds.append(int.from_bytes(digest[:8], "little") >> 1)
        seen[prompt] += 1
    return seeds


def share_of(indices: Sequence[int], lengths: Sequence[int], rank: int, ranks: int) -> list[int]:
    """This rank's share of the prompts: strided over descending length, so shares weigh alike."""
    return sorted(indices, key=lambda i: (-lengths[i], i))[rank::ranks]


def batches_of(
    indices: Sequence[int], lengths: Sequence[int], new_tokens: int, budget: int
) -> list[list[int]]:
    """Cuts `indices` (longest first) into batches of at most `budget` padded tokens.

    A batch weighs rows * (longest prompt + new_tokens). A prompt over the budget goes alone.
    """
    batches: list[list[int]] = []
    for i in indices:
        if batches:
            longest = max(lengths[i], lengths[batches[-1][0]])
            if (len(batches[-1]) + 1) * (longest + new_tokens) <= budget:
                batches[-1].append(i)
                continue
        batches.append([i])
    return batches


class Job(NamedTuple):
    """Prompts to be answered, and where.

    Attributes:
        prompts: [N].
        lengths: [N] tokens or characters: what batches are balanced by.
        output: The .json to write.
        generator: The model's name in it.
        settings: Everything that the answers depend on besides the prompts, JSON-able.
    """

    prompts: Sequence[Prompt]
    lengths: Sequence[int]
    output: str
    generator: str
    settings: dict

    def fingerprint(self) -> str:
        """sha256 of settings and prompts."""
        settings = json.dumps(self.settings, sort_keys=True)
        return sha256_of_text(settings, *(prompt.text for prompt in self.prompts))


def run_job(
    job: Job,
    work: Callable[[list[int], Callable[[list[Answer]], None]], None],
    ranks: DeepspeedStrategy | Alone,
) -> None:
    """Answers every prompt of `job` once, over all ranks, and writes the answer files.

    Finished answers are on disk at once; a second run with equal settings goes on from them, with
    any number of ranks.

    Args:
        work: Answers the prompts whose indices it is given, longest first, handing each batch of
            answers to the function it is given; any thread may call that.

    Raises:
        InputError: on every rank, when `work` raised it on one.
    """
    fingerprint = ranks.all_gather_object(job.fingerprint())[0]
    if ranks.all_gather_object(is_complete(job.output, fingerprint))[0]:
        ranks.print(f"{job.output} is complete already: {len(job.prompts)} answers")
        return
    parts = Parts(job.output, fingerprint, ranks.rank)
    done = ranks.all_gather_object(sorted(parts.done()))[0]  # read before anyone appends
    if done:
        ranks.print(f"going on from {len(done)} of {len(job.prompts)} answers in {parts.directory}")
    left = sorted(set(range(len(job.prompts))) - set(done))
    mine = share_of(left, job.lengths, ranks.rank, ranks.world_size)
    failure = None
    try:
        _work(work, mine, parts)
    except Exception as error:
        failure = error
    ranks.agree(failure)
    ranks.on_rank_0(lambda: _finish(job, parts, fingerprint))
    ranks.print(f"{len(job.prompts)} answers in {job.output}")


def _work(work, mine: list[int], parts: Parts) -> None:
    lock = threading.Lock()
    with Progress("answers", len(mine), "prompts") as progress:

        def keep(answers: list[Answer]) -> None:
            with lock:
                parts.append(answers)
                progress.update(len(answers))

        work(mine, keep)


def _finish(job: Job, parts: Parts, fingerprint: str) -> None:
    answers = [answer for _, answer in sorted(parts.done().items())]
    meta = {"fingerprint": fingerprint, "settings": job.settings}
    write_answers(job.output, job.prompts, answers, job.generator, meta)
    parts.remove()


def generate_served(
    job: Job, endpoint: Endpoint, sampling: Sampling, ranks: DeepspeedStrategy | Alone
) -> None:
    """Runs `job` on a served model; each answer is kept as it arrives."""
    seeds = prompt_seeds([prompt.text for prompt in job.prompts], sampling.seed)

    def work(mine: list[int], keep: Callable[[list[Answer]], None]) -> None:
        def ask(i: int) -> None:
            reply = endpoint.complete(
                [{"role": "user", "content": job.prompts[i].text}],
                sampling.max_new_tokens,
                sampling.temperature,
                sampling.top_p,
                seeds[i] % 2**31,
            )
            keep([Answer(i, reply.text.strip(), reply.finish_reason, reply.completion_tokens)])

        endpoint.map(ask, mine)

    run_job(job, work, ranks)


def settings_of(sampling: Sampling, template: Template, model: dict) -> dict:
    """The settings that an answer depends on, for `Job`."""
    return {"sampling": asdict(sampling), "template": asdict(template), "model": model}


def model_stamp(*directories: str | None) -> dict:
    """Names what the weights are: size and time of each weight file of local directories."""
    stamp = {}
    for directory in filter(None, directories):
        files = sorted(Path(directory).glob("*.safetensors")) + sorted(
            Path(directory).glob("*.bin")
        )
        stamp[str(directory)] = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    return stamp


def resolve(pretrain: str, lora_path: str | None) -> tuple[str, str | None]:
    """Base model and adapter: a `pretrain` that is itself an adapter directory names its base."""
    config = Path(pretrain) / "adapter_config.json"
    if lora_path is None and config.is_file():
        return json.loads(config.read_text())["base_model_name_or_path"], pretrain
    return pretrain, lora_path


def tokenizer_source(pretrain: str, base: str) -> str:
    """Where a model's tokenizer lies: beside an adapter when it was saved there, else its base."""
    return pretrain if (Path(pretrain) / "tokenizer_config.json").is_file() else base
