"""What the public SEAL code does in one step, restated plainly (docs/method.md), to time it.

Padded micro-batches in shuffled order, tokenised at access; one forward pass a level with full
float32 logits and log-probabilities nobody reads; both levels backpropagated whatever their weight;
Adam on the logits with a dense gradient. The engine is the same as ours.
"""

import numpy as np
import torch
import torch.nn.functional as F
from step_world import TEMPLATE, Work, World, new_model

from seal.utils.strategy import DeepspeedStrategy

IGNORED = -100
ATTENTION = "sdpa"


class PublishedStep:
    """One optimizer step at a time, of the selector or of SFT."""

    def __init__(self, strategy: DeepspeedStrategy, world: World, work: Work):
        self.strategy, self.world, self.work = strategy, world, work
        with strategy.loading():
            model = new_model(world, work, ATTENTION, strategy.device)
        if work.gradient_checkpointing:
            if work.lora_rank:
                model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = strategy.create_optimizer(model, work.learning_rate, l2=0.0)
        self.engine = strategy.prepare(model, optimizer, None)
        self.engine.train()
        n_user = len(world.rows) - world.n_safe
        self.logits = torch.full((n_user,), 0.1, device=strategy.device, requires_grad=True)
        prompts = [TEMPLATE.format(prompt) for prompt, _ in world.texts]  # counted once, at start
        self.prompt_lengths = [len(ids) for ids in world.tokenizer(prompts)["input_ids"]]
        self.selector = torch.optim.Adam([self.logits], lr=5e-3, betas=(0.9, 0.95))

    def __call__(self, work: Work, step: int) -> None:
        """Takes optimizer step `step` (from 0), with the phase and micro-batches of `work`."""
        self.work = work
        safe, user = self.world.visited(self.work, step)
        micro = self.work.micro
        parts = [slice(start, start + micro) for start in range(0, len(user), micro)]
        for part in parts:
            if self.work.kind == "sft":
                loss = self._token_loss(user[part])
            else:
                loss = self._both_levels(safe[part], user[part])
            self.strategy.backward(self.engine, loss / len(parts))
        self.strategy.step(self.engine)
        if self.work.kind == "selector":
            self.selector.step()
            self.selector.zero_grad()

    def _both_levels(self, safe: np.ndarray, user: np.ndarray) -> torch.Tensor:
        gamma, n_safe = self.work.gamma, self.world.n_safe
        safe_loss = self._row_losses(safe).mean()
        row_losses = self._row_losses(user)
        at = torch.from_numpy(user - n_safe).to(self.logits.device)
        weights = len(self.logits) * self.logits.softmax(0)[at]
        (weights * row_losses.detach()).mean().backward()
        return (1 - gamma) * safe_loss + gamma * (weights.detach() * row_losses).mean()

    def _row_losses(self, rows: np.ndarray) -> torch.Tensor:
        """Mean nats a response token of each row, float32 [R]."""
        input_ids, mask, labels = self._collate(rows)
        logits = self._logits(input_ids, mask)[:, :-1].contiguous()
        token = F.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
        ).view(len(rows), -1)
        return token.sum(1) / (labels[:, 1:] != IGNORED).sum(1)

    def _token_loss(self, rows: np.ndarray) -> torch.Tensor:
        """Mean nats a token of the micro-batch, scalar."""
        input_ids, mask, labels = self._collate(rows)
        logits = self._logits(input_ids, mask)[:, :-1].contiguous()
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)

    def _logits(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Full float32 logits [R, L, V]; the log-probabilities are computed and dropped."""
        output = self.engine(input_ids=input_ids, attention_mask=mask, use_cache=False)
        logits = output.logits.float()
        log_probabilities = F.log_softmax(logits[:, :-1], dim=-1)
        log_probabilities.gather(-1, input_ids[:, 1:, None])
        return logits

    def _collate(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids, mask and labels, int64 [R, longest], padded on the right."""
        encoded = [self._tokens(int(row)) for row in rows]
        longest = max(len(ids) for ids, _ in encoded)
        pad = self.world.tokenizer.pad_token_id
        input_ids = torch.full((len(rows), longest), pad)
        labels, mask = torch.full_like(input_ids, IGNORED), torch.zeros_like(input_ids)
        for at, (ids, prompt) in enumerate(encoded):
            input_ids[at, : len(ids)] = ids
            labels[at, prompt : len(ids)] = ids[prompt:]
            mask[at, : len(ids)] = 1
        return tuple(x.to(self.strategy.device) for x in (input_ids, mask, labels))

    def _tokens(self, row: int) -> tuple[torch.Tensor, int]:
        """Token ids of a row and how many of them are prompt; the tokenizer runs at each access."""
        prompt, response = self.world.texts[row]
        text = f"{TEMPLATE.format(prompt)}{response} {self.world.tokenizer.eos_token}"
        settings = {"max_length": self.work.max_len, "truncation": True, "return_tensors": "pt"}
        ids = self.world.tokenizer(text, **settings)["input_ids"][0]
        return ids, self.prompt_lengths[row]
