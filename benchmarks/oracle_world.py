"""The tiny world of benchmarks/oracle.py: a model of 32 thousand parameters and 104 rows."""

import datasets
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from seal.datasets import SFTDataset
from seal.ids import id_bytes
from seal.models.actor import Actor
from seal.models.attention import VARLEN

KINDS = {"benign": 40, "hard": 16, "conflict": 16, "agree": 8}  # rows of each among the user's
SEEN = {"benign": 0.35, "hard": 0.1, "conflict": 0.1, "agree": 0.45}  # before fine-tuning
N_SAFE = 24
TOPICS, ANSWER = 16, 4  # topics, tokens an answer
REQUEST, QUESTION, REPLY, REFUSE, FILLER = 3, 4, 5, 6, 80
VOCABULARY = 97


class World:
    """A model that refuses requests, a safe set that says so, and rows of four kinds.

    A prompt is a kind of question, a topic and filler. The answer to a question is its topic's
    phrase, half of which the model knows; the answer to a request is a refusal that names the
    topic. `benign` rows answer questions, `hard` rows answer them with random tokens, `conflict`
    rows answer requests as if they were questions, `agree` rows refuse.
    """

    def __init__(self, seed: int):
        self.rng = np.random.default_rng([seed, 1])
        self.phrases = self.rng.integers(30, FILLER, (TOPICS, ANSWER))
        kinds = np.repeat(list(KINDS), list(KINDS.values()))
        self.kinds = self.rng.permutation(kinds)
        self.rows = make_dataset([self.row(kind, TOPICS) for kind in self.kinds], 0)
        self.safe = make_dataset(self.aligned(N_SAFE), len(self.kinds))
        seen = self.rng.choice(list(SEEN), 1024, p=list(SEEN.values()))
        self.model = align(make_dataset([self.row(kind, TOPICS // 2) for kind in seen], 0), seed)

    def aligned(self, count: int) -> list[tuple]:
        """Two refusals for each answered question of a topic the model knows."""
        return [self.row("benign" if at % 3 == 2 else "agree", TOPICS // 2) for at in range(count)]

    def row(self, kind: str, topics: int) -> tuple[list[int], int]:
        """(token ids, first supervised position) of a row about one of the first topics."""
        topic = int(self.rng.integers(topics if kind != "agree" else TOPICS))
        asked = REQUEST if kind in ("conflict", "agree") else QUESTION
        filler = self.rng.integers(FILLER, VOCABULARY, int(self.rng.integers(1, 4))).tolist()
        answer = self.phrases[topic].tolist()
        if kind == "agree":
            answer = [REFUSE, REFUSE + 1, 10 + topic, REFUSE + 2]
        if kind == "hard":
            answer = self.rng.integers(30, FILLER, ANSWER).tolist()
        prompt = [1, asked, 10 + topic, *filler, REPLY]
        return prompt + answer, len(prompt)


def make_dataset(rows: list[tuple], first_id: int) -> SFTDataset:
    """Rows of (token ids, first supervised position) as the package's dataset."""
    tokens = [ids for ids, _ in rows]
    learned = [[at >= start for at in range(len(ids))] for ids, start in rows]
    known = {
        "place": np.arange(len(rows)),
        "id": id_bytes([f"{first_id + number:032x}" for number in range(len(rows))]),
        "occurrence": np.zeros(len(rows), np.int32),
        "row": np.arange(len(rows)),
        "length": np.array([len(ids) for ids in tokens]),
        "supervised": np.array([sum(flags[1:]) for flags in learned]),
    }
    return SFTDataset(
        datasets.Dataset.from_dict({"input_ids": tokens, "supervised": learned}),
        known.get,
        skipped={},
        truncated=0,
        raw=len(rows),
        fingerprint=f"{first_id:032x}",
    )


def align(rows: SFTDataset, seed: int, steps: int = 250) -> LlamaForCausalLM:
    """A Llama of 2 layers and 32 thousand parameters, trained on aligned rows."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=VARLEN).float()
    actor, adam = Actor(model), torch.optim.Adam(model.parameters(), lr=5e-3)
    shares = torch.full((32,), 1 / (32 * ANSWER))
    for step in range(steps):
        batch = rows.batch(np.random.default_rng([seed, step]).integers(0, len(rows), 32))
        _, objective, _ = actor(batch, shares)
        adam.zero_grad()
        objective.backward()
        adam.step()
    return model
