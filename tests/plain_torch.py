"""Both training loops in plain torch: rows one by one, no packing, micro-batches or DeepSpeed."""

import math

import numpy as np
import torch
from laws_driver import LORA, MAX_LEN, Case, case_rows, factor
from peft import LoraConfig, get_peft_model
from tiny import row_alone
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from seal.trainer.order import EpochBatches, cycled_batch
from seal.trainer.step import plan_micro_batches

SEED = 5


def start_model(case: Case, initial: dict[str, np.ndarray]):
    """The starting model of plain transformers and peft, with the weights the run started from."""
    model = AutoModelForCausalLM.from_pretrained(case.model, attn_implementation="eager")
    if case.lora:
        settings = dict(LORA)
        rank = settings.pop("lora_rank")
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, **settings))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable.keys() == initial.keys()
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(torch.from_numpy(initial[name]))
    return model, trainable


class PlainSelector:
    """The selector's rules, by autograd where they are gradients."""

    def __init__(self, case: Case):
        self.case = case
        self.logits = torch.zeros(case.user, requires_grad=True)
        self.adam = torch.optim.Adam([self.logits], betas=(0.9, 0.95))
        self.losses = [[] for _ in range(case.user)]

    def begin_epoch(self) -> None:
        self.normaliser = self.logits.detach().exp().mean()

    def weights(self) -> torch.Tensor:
        if self.case.activation == "sigmoid":
            return 2 * self.logits.sigmoid()
        if self.case.optim == "adam":
            return self.case.user * self.logits.softmax(0)
        return self.logits.exp() / self.normaliser

    def update(self, rows: np.ndarray, losses: torch.Tensor, rate: float) -> None:
        for row, loss in zip(rows, losses.tolist(), strict=True):
            self.losses[row].append(loss)
        if self.case.optim == "mirror":
            with torch.no_grad():
                self.logits[rows] -= rate * losses
            return
        self.adam.zero_grad()
        (self.weights()[rows] * losses).mean().backward()
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()


def balance_loss(case: Case, model, rows: list, ranks: int) -> torch.Tensor:
    """Mean over micro-batches of the router's balance loss, each over the tokens of its rows."""
    lengths = np.array([len(tokens) for tokens, _ in rows])
    plan = plan_micro_batches(lengths, ranks, case.micro * MAX_LEN)
    losses = []
    for micro_batch in (m for steps in plan for m in steps):
        alone = [
            model(input_ids=rows[at][0][None], output_router_logits=True).router_logits
            for at in micro_batch
        ]
        together = tuple(torch.cat(layer) for layer in zip(*alone, strict=True))
        losses.append(load_balancing_loss_func(together, 4, 2))
    return sum(losses) / len(losses)


def selector_step(case: Case, model, rows, selector, user_rows, epoch, step):
    """(objective, what the selector learns from, metrics) of one step of both levels."""
    gamma = 1 - max(0.0, case.upper - epoch * case.decay)
    safe_rows = cycled_batch(case.safe, case.batch, SEED, step)

    def row_loss(at):
        tokens, first = rows[at]
        return row_alone(model, tokens, first) / (len(tokens) - first)

    safe = torch.stack([row_loss(at) for at in safe_rows])
    user = torch.stack([row_loss(case.safe + at) for at in user_rows])
    weights = selector.weights()[user_rows].detach()
    objective = (1 - gamma) * safe.mean() + gamma * (weights * user).mean()
    return objective, user.detach(), {"safe_loss": safe.mean(), "row_loss": user.mean()}


def sft_step(case: Case, model, rows, batch, ranks):
    """(objective, metrics) of one step: the mean over all supervised tokens of the batch."""
    chosen = [rows[at] for at in batch]
    tokens = sum(len(tokens) - first for tokens, first in chosen)
    objective = loss = sum(row_alone(model, *row) for row in chosen) / tokens
    if case.aux_loss_coef:
        objective = loss + case.aux_loss_coef * balance_loss(case, model, chosen, ranks)
    return objective, {"loss": loss}


def plain_torch(case: Case, initial: dict, ranks: int) -> dict:
    """Trains a case without packing, micro-batches, ranks or DeepSpeed."""
    model, trainable = start_model(case, initial)
    optimizer = torch.optim.SGD(trainable.values(), lr=case.rate)
    selector, rows, history = PlainSelector(case), case_rows(case), []
    per_epoch = math.ceil(case.user / case.batch)
    for epoch in range(case.epochs):
        selector.begin_epoch()
        for number, batch in enumerate(EpochBatches(case.user, case.batch, SEED, epoch)):
            step = epoch * per_epoch + number
            if case.trainer == "selector":
                objective, learned, metrics = selector_step(
                    case, model, rows, selector, batch, epoch, step
                )
                selector.update(batch, learned, case.selector_rate * factor(step))
            else:
                objective, metrics = sft_step(case, model, rows, batch, ranks)
            optimizer.zero_grad()
            objective.backward()
            norm = torch.nn.utils.clip_grad_norm_(trainable.values(), case.max_norm)
            optimizer.param_groups[0]["lr"] = case.rate * factor(step)
            optimizer.step()
            history.append({**metrics, "grad_norm": norm})
    return {
        "final": {name: p.detach().numpy() for name, p in trainable.items()},
        "metrics": {k: np.array([float(h[k].detach()) for h in history]) for k in history[0]},
        "logits": selector.logits.detach().numpy(),
        "losses": np.array([np.mean(seen) if seen else np.nan for seen in selector.losses]),
    }
