"""The same job as the field does it today, on Hugging Face transformers: what `--vs=torch` is measured against.

`field` follows the authors' released code: right-padded prompts without a mask (D13), slots filled prompt by prompt, gradient
checkpointing (D14), logits and the hidden states of all layers computed, the last one's Out position read. `strong` is what
a careful user would write: no logits, no checkpointing, slots filled at once, the fused attention of PyTorch. Neither
tokenises (the product's token ids are given), which the authors' code does per batch.
"""

# pyright: reportMissingImports=false

import gc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from llmsrec_jax import config
from llmsrec_jax.batch import HISTORY, USER_OUT
from llmsrec_jax.benchmark import timing
from llmsrec_jax.benchmark.padded import Whole
from llmsrec_jax.benchmark.system import System
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama.model import Llama, shapes
from llmsrec_jax.llama.weights import RULES
from llmsrec_jax.prompts.prompts import Prompts

ACTIVATIONS = {"leaky_relu": lambda: nn.LeakyReLU(0.01), "gelu": nn.GELU, "relu": nn.ReLU}


def torch_device() -> str:
    """Where PyTorch works: on the GPU if JAX does. Uses the cores that this process may use."""
    torch.set_num_threads(timing.cores())
    return "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"


def tensor(array: Any) -> torch.Tensor:
    """A copy of a host or device array; bfloat16 by its bits, numpy has no such type."""
    array = np.array(array)
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def state_dict(llama: Llama) -> dict[str, torch.Tensor]:
    """Our stacked weights under the names and in the layout of Hugging Face."""
    found = {}
    for rule in (rule for rule in RULES if rule.name in shapes(llama.cfg)):
        ours = llama.layers[rule.name] if "{}" in rule.tensor else getattr(llama, rule.name)
        stacked = shapes(llama.cfg)[rule.name]
        for row in range(llama.cfg.layers) if "{}" in rule.tensor else [None]:
            array, shape = (ours[...], stacked) if row is None else (ours[...][row], stacked[1:])
            if rule.inputs:
                array = array.reshape(math.prod(shape[: rule.inputs]), -1).T
            found[rule.tensor.format(row)] = tensor(array)
    found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


def hf_config(cfg: llama_config.LlamaConfig) -> LlamaConfig:
    rope: dict[str, Any] = {"rope_type": cfg.rope.kind, "rope_theta": cfg.rope.theta}
    if cfg.rope.kind == "llama3":
        rope |= {
            "factor": cfg.rope.factor,
            "low_freq_factor": cfg.rope.low,
            "high_freq_factor": cfg.rope.high,
            "original_max_position_embeddings": cfg.rope.original,
        }
    fields: dict[str, Any] = {
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.d,
        "intermediate_size": cfg.ff,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "rms_norm_eps": cfg.eps,
        "rope_parameters": rope,
        # no less than rope's, or it warns; it changes nothing
        "max_position_embeddings": max(cfg.max_positions, cfg.rope.original + 1),
        "tie_word_embeddings": True,  # an lm_head of its own would cost the same
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    return LlamaConfig(**fields)


def backbone(llama: Llama, device: str) -> LlamaForCausalLM:
    """Ours as theirs, frozen, in the same dtype."""
    given, default = state_dict(llama), torch.get_default_dtype()
    # the default while it is made, as from_pretrained does: a later cast would round the rotations' frequencies too
    torch.set_default_dtype(given["model.norm.weight"].dtype)
    try:
        with torch.device(device):
            model: Any = LlamaForCausalLM(hf_config(llama.cfg))
    finally:
        torch.set_default_dtype(default)
    model.load_state_dict(given)
    return model.requires_grad_(False)


def _linear(given: Any) -> nn.Linear:
    layer = nn.Linear(*given["kernel"][...].shape)
    layer.weight = nn.Parameter(tensor(given["kernel"][...]).T.contiguous())
    layer.bias = nn.Parameter(tensor(given["bias"][...]))
    return layer


def _norm(given: Any) -> nn.LayerNorm:
    layer = nn.LayerNorm(given["bias"][...].shape, eps=1e-5)
    layer.weight = nn.Parameter(tensor(given["scale"][...]))
    layer.bias = nn.Parameter(tensor(given["bias"][...]))
    return layer


def _head(given: Any, act: str) -> nn.Sequential:
    """Linear - LayerNorm (if any) - activation - Linear with our numbers."""
    norm = [_norm(given["norm"])] if "norm" in given else []
    first, last = _linear(given["first"]), _linear(given["last"])
    return nn.Sequential(first, *norm, ACTIVATIONS[act](), last)


class Batch(NamedTuple):
    """A training batch: whole prompts, as a data loader would hand them over."""

    users: Prompts
    items: Prompts
    candidates: torch.Tensor  # int64 [B, C] rows of `items`
    cf_user_repr: torch.Tensor  # [B, E]

    @classmethod
    def of(cls, whole: Whole) -> "Batch":
        candidates, cf = tensor(whole.candidates).long(), tensor(whole.cf_user_repr)
        return cls(whole.users, whole.items, candidates, cf)


class LLMSRec(nn.Module):
    """The trainable part, and the passes through a frozen backbone."""

    def __init__(
        self,
        llm: LlamaForCausalLM,
        params: nnx.State,
        cf_items: np.ndarray,
        cfg: config.Config,
        *,
        strong: bool,
    ):
        super().__init__()
        pure: Any = nnx.to_pure_dict(params)
        self.item_projector = _head(pure["item_projector"], "leaky_relu")
        self.user_head = _head(pure["user_head"], cfg.head.act)
        self.item_head = _head(pure["item_head"], cfg.head.act)
        self.cf_user_head = _head(pure["cf_user_head"], "gelu")
        self.user_out = nn.Parameter(tensor(pure["user_out"]))
        self.item_out = nn.Parameter(tensor(pure["item_out"]))
        self.cf_items: torch.Tensor
        self.register_buffer("cf_items", tensor(cf_items))
        self.to(llm.device)
        self.llm: Any
        self.body: Any
        self.__dict__.update(llm=llm, body=llm.model)  # no submodules: nothing of them trains
        self.cfg, self.strong = cfg, strong

    def hidden(self, prompts: Prompts, out_token: torch.Tensor) -> torch.Tensor:
        """float32 [n, D] at the Out positions of prompts padded to the longest."""
        device = out_token.device
        rows = [
            slice(*ends) for ends in zip(prompts.offsets[:-1], prompts.offsets[1:], strict=True)
        ]
        pad = lambda values: nn.utils.rnn.pad_sequence(
            [torch.from_numpy(values[row].astype(np.int64)) for row in rows], batch_first=True
        ).to(device)
        ids, kind, slot_item = pad(prompts.ids), pad(prompts.kind), pad(prompts.slot_item)
        fill = self._fill_at_once if self.strong else self._fill_one_by_one
        x = fill(self.llm.model.embed_tokens(ids), kind, slot_item, out_token)
        if self.strong:
            last = self.body(inputs_embeds=x, use_cache=False).last_hidden_state
        else:
            made = self.llm(inputs_embeds=x, output_hidden_states=True, use_cache=False)
            last = made.hidden_states[-1]
        out = torch.from_numpy(prompts.lengths - 1).to(device)
        return last[torch.arange(len(rows), device=device), out].float()

    def _fill_one_by_one(self, x: Any, kind: Any, slot_item: Any, out_token: Any) -> torch.Tensor:
        filled = []
        for row, kinds, items in zip(x, kind, slot_item, strict=True):
            row = row.clone()
            places = torch.nonzero(kinds == HISTORY)[:, 0]
            projected = self.item_projector(self.cf_items[items[places]])
            for place, vector in zip(places.tolist(), projected, strict=True):
                row[place] = vector.to(row.dtype)
            row[torch.nonzero(kinds >= USER_OUT)[0, 0]] = out_token.to(row.dtype)
            filled.append(row)
        return torch.stack(filled)

    def _fill_at_once(self, x: Any, kind: Any, slot_item: Any, out_token: Any) -> torch.Tensor:
        is_slot = kind == HISTORY
        projected = self.item_projector(self.cf_items[slot_item[is_slot]])
        x = x.masked_scatter(is_slot[..., None], projected.to(x.dtype))
        return torch.where((kind >= USER_OUT)[..., None], out_token.to(x.dtype), x)

    def users(self, prompts: Prompts) -> torch.Tensor:
        return self.user_head(self.hidden(prompts, self.user_out))

    def items(self, prompts: Prompts) -> torch.Tensor:
        return self.item_head(self.hidden(prompts, self.item_out))

    def loss(self, batch: Batch) -> torch.Tensor:
        """Eq. 4 with unit vectors, means and no logarithm, as by default."""
        user, item = self.users(batch.users), self.items(batch.items)
        cf = self.cf_user_head(batch.cf_user_repr.to(user.device))
        scores = torch.einsum("br,bcr->bc", user, item[batch.candidates.to(item.device)])
        loss = F.cross_entropy(scores, torch.zeros(len(user), dtype=torch.long, device=user.device))
        unit_user, unit_cf = F.normalize(user, dim=1), F.normalize(cf, dim=1)
        loss = loss + self.cfg.distill.weight * F.mse_loss(unit_user, unit_cf)
        spread = lambda x: (
            torch.pdist(x).square().mul(-self.cfg.uniformity.temperature).exp().mean()
        )
        return loss + self.cfg.uniformity.weight * (spread(unit_user) + spread(unit_cf))


class Trainer:
    """Steps of Adam as S1 has it."""

    def __init__(self, model: LLMSRec, cfg: config.Train):
        self.model = model
        self._adam = torch.optim.Adam(model.parameters(), cfg.lr, betas=(0.9, cfg.b2), eps=1e-8)
        if not model.strong:  # the older name still exists in later versions, with a warning
            enable = getattr(model.llm, "activation_checkpointing_enable", None)
            (enable or model.llm.gradient_checkpointing_enable)({"use_reentrant": False})

    def __call__(self, batch: Batch) -> float:
        """One step; the loss before it. Waits for the device, as `.item()` does."""
        self.model.llm.train(not self.model.strong)  # checkpointing happens in this mode only
        self._adam.zero_grad()
        loss = self.model.loss(batch)
        loss.backward()
        self._adam.step()
        return loss.item()


def variants(system: System, say: Callable[[str], None]) -> dict[str, LLMSRec]:
    """Models on one backbone with the weights of `system`; without the compiled one where that does not work."""
    torch.compiler.reset()  # models of an earlier call
    gc.collect()
    torch.cuda.empty_cache()
    llm = backbone(system.backbone, torch_device())
    make = lambda strong: LLMSRec(llm, system.model[1], system.cf_items, system.cfg, strong=strong)
    found = {"torch field": make(False), "torch strong": make(True)}
    compiled = make(True)
    try:
        compiled.__dict__["body"] = torch.compile(llm.model, dynamic=True)
        x = torch.zeros(2, 16, llm.config.hidden_size, device=llm.device, dtype=llm.dtype)
        compiled.body(inputs_embeds=x, use_cache=False)
        found["torch compiled"] = compiled
    except Exception as error:  # it fails in many ways
        say(f"torch.compile does not work here: {str(error).splitlines()[0][:200]}")
    return found


@torch.no_grad()
def encode(model: LLMSRec, kind: str, prompts: Prompts) -> np.ndarray:
    """Vectors of `users` or `items` prompts, float32 [n, R], as one batch."""
    model.llm.eval()
    return getattr(model, kind)(prompts).cpu().numpy()
