"""Generation with weights loaded here: batched by transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from seal.assess.answers import Answer
from seal.assess.generation import (
    Alone,
    Job,
    Sampling,
    Template,
    batches_of,
    prompt_seeds,
    run_job,
)
from seal.assess.rendering import encode_prompts
from seal.datasets.rendering import opened_thought, turn_end
from seal.errors import InputError, said
from seal.models.attention import without_plans
from seal.progress import Progress

if TYPE_CHECKING:
    from seal.utils.strategy import DeepspeedStrategy


def load_model(
    pretrain: str, lora_path: str | None, bf16: bool, device: torch.device | str
) -> PreTrainedModel:
    """Loads a causal model for generation, a LoRA adapter merged into it.

    Args:
        pretrain: Model directory or hub name.
        lora_path: Adapter directory, None for none.
        bf16: bfloat16 weights, else float32.

    Raises:
        InputError: there is no such model or adapter.
    """
    without_plans()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            pretrain, dtype=torch.bfloat16 if bf16 else torch.float32
        )
        if lora_path is not None:
            from seal.models.adapters import load_adapter

            model = load_adapter(model, lora_path).merge_and_unload()
    except (OSError, ValueError) as error:
        where = f"{pretrain} with adapter {lora_path}" if lora_path else pretrain
        raise InputError(f"no model can be loaded from {where}: {said(error)}") from error
    return model.to(device).eval()


def context_length(config: PreTrainedConfig) -> int | None:
    """Positions a model of this configuration has, None for one without a limit."""
    try:
        return config.get_text_config().max_position_embeddings
    except AttributeError:
        return None


def encode_jobs(
    jobs: Sequence[Job],
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    template: Template,
    max_len: int | None = None,
    truncate: bool = False,
) -> tuple[list[Job], list[list[list[int]]]]:
    """The jobs with lengths in tokens, and the token ids of their rendered prompts.

    A prompt may have `max_len` tokens, and what the context of `base` leaves beside the answer.

    Raises:
        InputError: as `encode_prompts`.
    """
    limits = [] if max_len is None else [max_len]
    try:
        context = context_length(AutoConfig.from_pretrained(base))
    except (OSError, ValueError) as error:
        raise InputError(f"no model can be loaded from {base}: {said(error)}") from error
    if context is not None:
        limits.append(context - sampling.max_new_tokens)
    limit = min(limits, default=None)
    encoded = [
        encode_prompts([p.text for p in job.prompts], tokenizer, template, limit, truncate)
        for job in jobs
    ]
    counted = [
        job._replace(lengths=[len(row) for row in ids])
        for job, ids in zip(jobs, encoded, strict=True)
    ]
    return counted, encoded


class SeededSampler(LogitsProcessor):
    """Sampling as an argmax: adds Gumbel noise drawn for each row from that row's own generator.

    Greedy search over the result is exact sampling from the tempered, top-p filtered distribution,
    and a row's draws depend on its seed and step alone.

    Source: Gumbel 1954; Maddison, Tarlow and Minka 2014, "A* sampling", section 2.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float):
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [B, V] logits; returns [B, V] float32 whose argmax is the sample."""
        logits = scores.float() / self._temperature
        if self._top_p < 1:
            ordered, places = logits.sort(dim=-1, descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(
                -1, places, before >= self._top_p
            )
            logits = logits.masked_fill(dropped, float("-inf"))
        uniform = torch.stack(
            [torch.rand(logits.shape[-1], generator=g) for g in self._generators]
        ).clamp_min(torch.finfo(torch.float32).tiny)
        return logits - (-uniform.log()).log().to(logits.device)


class Count(StoppingCriteria):
    """Stops nothing: tells how many tokens a batch has, and how many of its answers are whole."""

    def __init__(self, progress: Progress, ends: Sequence[int]):
        self._progress, self._ends, self._whole = progress, torch.tensor(ends), None

    def __call__(self, input_ids: torch.Tensor, scores, **_) -> torch.Tensor:
        """input_ids: [B, T]; returns [B] False."""
        ended = torch.isin(input_ids[:, -1].cpu(), self._ends)
        self._whole = ended if self._whole is None else self._whole | ended
        self._progress.update(1, answered=int(self._whole.sum()))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


LONGEST_OPENING = 16  # tokens of <think> and the blanks behind it


class HFEngine:
    """Batched generation with a Hugging Face model, left padded.

    Args:
        model: On its device, in eval mode. Its generation defaults are replaced, end tokens kept.
        tokenizer: With a padding token.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
    ):
        ends = model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        self._ends = sorted({*ends, tokenizer.eos_token_id, turn_end(tokenizer)} - {None})
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self._ends,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[tuple]:
        """Answers one batch: (text, finish reason, tokens) a row."""
        width = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        rows = torch.tensor([[pad] * (width - len(r)) + list(r) for r in ids])  # [B, width]
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in ids])
        processors = LogitsProcessorList()
        if self.sampling.temperature > 0:
            settings = (self.sampling.temperature, self.sampling.top_p)
            processors.append(SeededSampler(seeds, *settings))
        steps = self.sampling.max_new_tokens
        with Progress(f"a batch of {len(ids)} prompts", steps, "tokens") as progress:
            output = self.model.generate(
                input_ids=rows.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([Count(progress, self._ends)]),
            )
        answers = output[:, width:].tolist()
        return [self._taken_apart(*both) for both in zip(ids, answers, strict=True)]

    def _taken_apart(self, prompt: Sequence[int], row: list[int]) -> tuple[str, str, int]:
        """An answer goes on with the thought that its prompt has opened: the tag belongs to it."""
        opened = opened_thought(self.tokenizer.decode(prompt[-LONGEST_OPENING:]))
        end = next((k for k, token in enumerate(row) if token in self._ends), None)
        text = self.tokenizer.decode(row[:end], skip_special_tokens=True).strip()
        return (
            opened + text,
            "length" if end is None else "stop",
            len(row) if end is None else end + 1,
        )


def answer_texts(engine: HFEngine, encoded: Sequence[Sequence[int]], budget: int) -> list[str]:
    """Greedy answers to prompts, in their order; the longest prompts are answered first.

    Args:
        encoded: [N] token ids of each rendered prompt.
        budget: Padded tokens a batch may hold, answers included.
    """
    lengths, answers = [len(ids) for ids in encoded], [""] * len(encoded)
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    with Progress("answers", len(encoded), "prompts") as work:
        for batch in batches_of(order, lengths, engine.sampling.max_new_tokens, budget):
            found = engine([encoded[i] for i in batch], [0] * len(batch))
            work.update(len(batch))
            for i, (text, *_) in zip(batch, found, strict=True):
                answers[i] = text
    return answers


def generate(
    job: Job,
    engine: HFEngine,
    encoded: Sequence[Sequence[int]],
    budget: int,
    ranks: DeepspeedStrategy | Alone,
) -> None:
    """Runs `job` on a Hugging Face engine.

    Args:
        encoded: [N] token ids of each rendered prompt.
        budget: Padded tokens a batch may hold, answers included.
    """
    sampling = engine.sampling
    seeds = prompt_seeds([prompt.text for prompt in job.prompts], sampling.seed)

    def work(mine: list[int], keep: Callable[[list[Answer]], None]) -> None:
        for batch in batches_of(mine, job.lengths, sampling.max_new_tokens, budget):
            found = engine([encoded[i] for i in batch], [seeds[i] for i in batch])
            keep([Answer(i, *one) for i, one in zip(batch, found, strict=True)])

    run_job(job, work, ranks)
