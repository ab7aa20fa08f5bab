"""A Hugging Face sequence-classification model as judge: a reward model or a guard model."""

from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from seal.assess.prompts import sha256_of_text
from seal.assess.verdicts import Verdict, preference_label
from seal.errors import InputError, said
from seal.models.attention import without_plans
from seal.progress import say


class RewardJudge:
    """Scores (prompt, answer) pairs with a classifier.

    The pair is rendered by the tokenizer's chat template when it has one, else given as a text
    pair. A pair longer than the context loses the beginning of its text; how many do is printed.

    Args:
        path: Model directory or hub name. One output: a reward model. Several: a guard model.
        tokenizer: Of that model, with a padding token.
        unsafe_label: Guard models: the name (in the model's id2label) of the label to report.
        bf16: bfloat16 weights, else float32.
        batch_size: Pairs a forward.

    Raises:
        InputError: no such model, or a label it does not have.
    """

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        unsafe_label: str = "unsafe",
        bf16: bool = False,
        device: torch.device | str = "cpu",
        batch_size: int = 16,
    ):
        dtype = torch.bfloat16 if bf16 else torch.float32
        without_plans()
        try:
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError) as error:
            raise InputError(f"no judge can be loaded from {path}: {said(error)}") from error
        model.config.pad_token_id = tokenizer.pad_token_id
        self.model, self.tokenizer = model.to(device).eval(), tokenizer
        self.name = f"reward:{path}"
        self.batch_size = batch_size
        self.is_guard = model.config.num_labels > 1
        self._unsafe = self._label(unsafe_label) if self.is_guard else 0

    def _label(self, wanted: str) -> int:
        names = {name.lower(): i for i, name in self.model.config.id2label.items()}
        if wanted.lower() not in names:
            raise InputError(
                f"{self.name} has labels {', '.join(names)}, not {wanted!r}; name the unsafe one "
                "with --guard_unsafe_label"
            )
        return names[wanted.lower()]

    def preference(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[Verdict]:
        """Task `preference`: the answer with the higher reward wins, equal rewards tie."""
        ours, theirs = self.rewards(prompts, answers), self.rewards(prompts, references)
        verdicts = []
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            value = 0.5 if a == b else float(a > b)
            verdicts.append(
                Verdict(
                    judge=self.name,
                    task="preference",
                    prompt_hash=sha256_of_text(prompts[i], answers[i], references[i]),
                    label=preference_label(value),
                    value=value,
                    raw=f"{a!r} || {b!r}",
                    consistent=True,  # a score knows no order
                )
            )
        return verdicts

    def unsafe(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """Task `unsafe`: probability of the unsafe label; the verdict's label is the likeliest."""
        verdicts = []
        for i, logits in enumerate(self._logits(prompts, answers)):
            chance = logits.softmax(-1)
            verdicts.append(
                Verdict(
                    judge=self.name,
                    task="unsafe",
                    prompt_hash=sha256_of_text(prompts[i], answers[i]),
                    label=self.model.config.id2label[int(chance.argmax())],
                    value=float(chance[self._unsafe]),
                    raw=" ".join(f"{x:.6g}" for x in chance.tolist()),
                )
            )
        return verdicts

    def rewards(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """One reward a pair, in order.

        Raises:
            InputError: the model has several labels: it is a guard, not a reward model.
        """
        if self.is_guard:
            raise InputError(
                f"{self.name} has {self.model.config.num_labels} labels; a reward model has one"
            )
        return [float(logits[0]) for logits in self._logits(prompts, answers)]

    @torch.inference_mode()
    def _logits(self, prompts: Sequence[str], answers: Sequence[str]) -> list[torch.Tensor]:
        """Float32 logits [labels] a pair, in order; batched by length."""
        whole = [self._encode(p, a) for p, a in zip(prompts, answers, strict=True)]
        limit = self.model.config.get_text_config().max_position_embeddings
        encoded = [ids[-limit:] for ids in whole]
        if cut := sum(len(ids) > limit for ids in whole):
            say(f"warning: {self.name}: {cut} of {len(whole)} pairs are judged without their start")
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        found: list = [None] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = self.tokenizer.pad(
                {"input_ids": [encoded[i] for i in rows]}, padding_side="right", return_tensors="pt"
            ).to(self.model.device)
            logits = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            for i, one in zip(rows, logits.float().cpu(), strict=True):
                found[i] = one
        return found

    def _encode(self, prompt: str, answer: str) -> list[int]:
        if not self.tokenizer.chat_template:
            return self.tokenizer(prompt, answer).input_ids
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False).input_ids
