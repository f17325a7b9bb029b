"""SASRec in plain PyTorch, as its common port has it (pmixer's, in the authors' variant, S2): every window max_len wide."""

# pyright: reportMissingImports=false

import math
from typing import Any

import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from llmsrec_jax import config, loaders
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.benchmark.torch_llm import tensor, torch_device
from llmsrec_jax.data import sampling


class Block(nn.Module):
    def __init__(self, cfg: config.Teacher):
        super().__init__()
        norm = lambda: nn.LayerNorm(cfg.d, eps=1e-8)
        self.query_norm, self.ff_norm = norm(), norm()
        self.attention = nn.MultiheadAttention(cfg.d, cfg.heads, cfg.dropout)
        self.ff_in, self.ff_out = (nn.Conv1d(cfg.d, cfg.d, kernel_size=1) for _ in range(2))
        self.drop_in, self.drop_out = nn.Dropout(cfg.dropout), nn.Dropout(cfg.dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        keys = x.transpose(0, 1)
        query = self.query_norm(keys)
        mixed, _ = self.attention(query, keys, keys, attn_mask=mask)
        x = self.ff_norm((query + mixed).transpose(0, 1))
        hidden = F.relu(self.drop_in(self.ff_in(x.transpose(1, 2))))
        return x + self.drop_out(self.ff_out(hidden)).transpose(1, 2)


class SASRec(nn.Module):
    def __init__(self, items: int, cfg: config.Teacher):
        super().__init__()
        self.item, self.position = nn.Embedding(items, cfg.d), nn.Embedding(cfg.max_len, cfg.d)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.blocks))
        self.norm, self.dropout = nn.LayerNorm(cfg.d, eps=1e-8), nn.Dropout(cfg.dropout)
        self.d = cfg.d

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """[B, max_len] -> [B, max_len, E]."""
        width, live = history.shape[1], (history != 0)[..., None]
        x = self.item(history) * math.sqrt(self.d)
        x = x + self.position(torch.arange(width, device=history.device))
        x = self.dropout(x) * live
        mask = ~torch.tril(torch.ones(width, width, dtype=torch.bool, device=history.device))
        for block in self.blocks:
            x = block(x, mask) * live
        return self.norm(x)

    def loss(
        self, history: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
    ) -> torch.Tensor:
        """BCE(positive, 1) + BCE(negative [B, L, K], 0) over the columns that have a positive."""
        x = self(history)
        good = (x * self.item(positive)).sum(-1)
        bad = (x[:, :, None] * self.item(negative)).sum(-1)
        counted = positive != 0
        of = F.binary_cross_entropy_with_logits
        ones, zeros = torch.ones_like(good[counted]), torch.zeros_like(bad[counted])
        return of(good[counted], ones) + of(bad[counted], zeros)


def copied(params: nnx.State, items: int, cfg: config.Teacher) -> SASRec:
    """With our numbers."""
    model, pure = SASRec(items, cfg), nnx.to_pure_dict(params)
    given = lambda array: tensor(array)
    state: dict[str, torch.Tensor] = {
        "item.weight": given(pure["item_embedding"]),
        "position.weight": given(pure["position_embedding"]),
        **_norm("norm", pure["norm"]),
    }
    for i, block in pure["blocks"].items():
        fused = [
            np.concatenate([np.asarray(block[n][k]) for n in ("query", "key_value")], -1)
            for k in ("kernel", "bias")
        ]
        name = f"blocks.{i}"
        state |= {
            f"{name}.attention.in_proj_weight": given(fused[0].T),
            f"{name}.attention.in_proj_bias": given(fused[1]),
            f"{name}.attention.out_proj.weight": given(np.asarray(block["out"]["kernel"]).T),
            f"{name}.attention.out_proj.bias": given(block["out"]["bias"]),
            **_norm(f"{name}.query_norm", block["query_norm"]),
            **_norm(f"{name}.ff_norm", block["ff_norm"]),
        }
        for layer in ("ff_in", "ff_out"):
            state[f"{name}.{layer}.weight"] = given(np.asarray(block[layer]["kernel"]).T[..., None])
            state[f"{name}.{layer}.bias"] = given(block[layer]["bias"])
    model.load_state_dict(state)
    return model


def _norm(name: str, given: Any) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": tensor(given["scale"]), f"{name}.bias": tensor(given["bias"])}


def windows(batches: loaders.TeacherBatches, step: int) -> tuple[torch.Tensor, ...]:
    """The windows of a step and their negatives as ours, int64 [B, L], [B, L], [B, L, K] with L = max_len."""
    of, epoch = batches.stretches.take(batches.order(step)), step // batches.order.steps_per_epoch
    window = loaders.windows(batches.dataset.train, of, batches.cfg.max_len + 1)
    history, positive = window[:, :-1], np.where(window[:, :-1] > 0, window[:, 1:], 0)
    options = batches.cfg.negatives, batches.seed, epoch
    negative = sampling.teacher_negatives(batches.dataset, of, positive, *options)
    return tuple(torch.from_numpy(x.astype(np.int64)) for x in (history, positive, negative))


class Trainer:
    """Steps of Adam; the loss before each."""

    def __init__(self, system: System):
        cfg, items = system.cfg.teacher, system.made.dataset.catalog.size
        self._device = torch_device()
        self._model = copied(system.teacher[1], items, cfg).to(self._device)
        parameters = self._model.parameters()
        self._adam = torch.optim.Adam(parameters, cfg.lr, betas=(0.9, cfg.b2), eps=1e-8)

    def __call__(self, windows: tuple[torch.Tensor, ...]) -> float:
        self._adam.zero_grad()
        loss = self._model.loss(*(part.to(self._device) for part in windows))
        loss.backward()
        self._adam.step()
        return loss.item()
