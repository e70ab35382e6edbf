"""Your own trainer: what `umscale sweep STUDY --trainer 'python examples/own_trainer.py {spec} {out}'` calls per cell.

A plain PyTorch loop, as yours may be: it reads a cell's specification as JSON, trains a small MLP language model whose
width follows the cell, and writes a JSON line for each budget. Nothing of umscale is imported.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CONTEXT = 4


class Model(nn.Module):
    """Predicts a token from the ``CONTEXT`` before it, and ``top_m`` hashed rows of ``n_keys`` squared."""

    def __init__(self, spec: dict, vocab_size: int) -> None:
        super().__init__()
        width, memory = spec["d_model"], spec.get("memory")
        self.embedding = nn.Embedding(vocab_size, width)
        self.up = nn.Linear(CONTEXT * width, spec["ffn"]["d_ffn"])
        self.down = nn.Linear(spec["ffn"]["d_ffn"], width)
        self.rows, top_m = (memory["n_keys"] ** 2, memory["top_m"]) if memory else (1, 1)
        self.table = nn.EmbeddingBag(self.rows, width, mode="sum")
        self.register_buffer("factors", 2 * torch.arange(1, top_m + 1) + 29)
        for table in (self.embedding, self.table):
            nn.init.normal_(table.weight, std=width**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, CONTEXT] to logits [B, V]."""
        x = self.down(F.gelu(self.up(self.embedding(tokens).flatten(1))))
        hashed = (tokens[:, -2:-1] * self.factors + tokens[:, -1:]) % self.rows  # [B, top_m]
        return F.linear(x + self.table(hashed), self.embedding.weight)


def read_tokens(corpus: dict, split: str) -> np.ndarray:
    """Return the tokens of a prepared corpus: shards are one stream of little-endian integers."""
    folder = Path(corpus["path"])
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = [np.fromfile(folder / shard["name"], manifest["dtype"]) for shard in manifest[split]["shards"]]
    return np.concatenate(shards).astype(np.int64)


def batch(tokens: np.ndarray, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return contexts [B, CONTEXT] and targets [B]."""
    start = rng.integers(0, len(tokens) - CONTEXT, size)
    window = torch.from_numpy(tokens[start[:, None] + np.arange(CONTEXT + 1)])
    return window[:, :-1], window[:, -1]


def main(spec_path: str, out_path: str) -> None:
    """Train one cell and write its records."""
    cell = json.loads(Path(spec_path).read_text())
    spec, corpus = cell["spec"], cell["corpus"]
    torch.manual_seed(spec["seed"])
    rng = np.random.default_rng(spec["seed"])
    model = Model(spec["model"], corpus["vocab_size"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train, held_out = read_tokens(corpus, "train"), read_tokens(corpus, "validation")
    contexts, targets = batch(held_out, 4096, np.random.default_rng(0))
    size = spec["train"]["batch_size"] * spec["data"]["seq_len"]
    budgets = spec["train"]["budgets"]
    with open(out_path, "w", encoding="utf-8") as out:
        for step in range(1, math.ceil(budgets[-1] / size) + 1):
            x, y = batch(train, size, rng)
            loss = F.cross_entropy(model(x), y)
            if not math.isfinite(loss.item()):
                print(
                    json.dumps({"status": "diverged", "reason": f"loss {loss.item()} at step {step}"}),
                    file=out,
                )
                return
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(json.dumps({"type": "curve", "tokens": step * size, "loss": loss.item()}), file=out)
            for budget in budgets:
                if step == math.ceil(budget / size):
                    with torch.no_grad():
                        held = F.cross_entropy(model(contexts), targets).item()
                    print(json.dumps({"budget": budget, "stage": "annealed", "loss": held}), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
