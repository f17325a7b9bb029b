"""LLM-SRec (S1): what trains, how users and items become vectors, and the combined loss (Eq. 4).

Encode users, encode items, dot product. The backbone and the teacher's item table are frozen and are passed in.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from llmsrec_jax import config, losses
from llmsrec_jax.batch import HISTORY, ITEM_OUT, USER_OUT, USER_REPR, LLMBatch, PromptBatch
from llmsrec_jax.llama import axes
from llmsrec_jax.llama.adapters import Adapters
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.kv import KV, Source
from llmsrec_jax.llama.model import NOTHING, Added, Llama
from llmsrec_jax.models.heads import Head


class LLMSRec(nnx.Module):
    """The trainable part: f_I, f_user, f_item, f_CF-user and the two Out tokens (22,797,056 numbers at D = 3072).

    And f_U, where prompts tell the teacher's user representation (E19); and A and B of the backbone, where it has LoRA (S8).
    Without f_I, where prompts are titles alone; without heads and Out tokens, where they ask for a title.
    """

    def __init__(
        self,
        d_cf: int,
        d_llm: int,
        head: config.Head | None,
        embedding_moments: tuple[float, float],
        rngs: nnx.Rngs,
        user_repr: bool = False,
        lora: tuple[config.Lora, LlamaConfig] | None = None,
        item_repr: bool = True,
        d_item: int | None = None,
    ):
        """head: None = without heads and Out tokens. lora: with the shape of the backbone. d_item: width of what stands for items in prompts; None = d_cf."""
        mean, std = embedding_moments
        projector = lambda width: Head(width, d_llm, d_llm, "leaky_relu", True, rngs)
        self.item_projector = projector(d_item or d_cf) if item_repr else None
        if head is not None:
            self.user_head = Head(d_llm, head.hidden, head.dim, head.act, head.norm, rngs)
            self.item_head = Head(d_llm, head.hidden, head.dim, head.act, head.norm, rngs)
            self.cf_user_head = Head(d_cf, head.dim, head.dim, "gelu", True, rngs)
            token = lambda: nnx.Param(mean + std * jax.random.normal(rngs.params(), (d_llm,)))
            self.user_out, self.item_out = token(), token()
        # the last draws: without them the others are the same
        self.user_projector = projector(d_cf) if user_repr else None
        self.lora = None if lora is None else Adapters(*lora, rngs)

    def added(self, key: Array | None = None) -> Added:
        """To the backbone; with a key for dropout."""
        return NOTHING if self.lora is None else self.lora.added(key)


def new(cfg: config.Config, llama: Llama, rngs: nnx.Rngs) -> LLMSRec:
    """Untrained, for this backbone: Out tokens are drawn with the moments of its token table."""
    table = llama.table[...].astype(jnp.float32)
    return of(cfg, llama.cfg, (float(table.mean()), float(table.std())), rngs)


def of(
    cfg: config.Config, llama: LlamaConfig, embedding_moments: tuple[float, float], rngs: nnx.Rngs
) -> LLMSRec:
    """Untrained, for a backbone of this shape."""
    head = cfg.head if cfg.prompts.retrieves else None
    return LLMSRec(cfg.teacher.d, llama.d, head, embedding_moments, rngs, *variant(cfg, llama))


def variant(
    cfg: config.Config, llama: LlamaConfig
) -> tuple[bool, tuple[config.Lora, LlamaConfig] | None, bool, int]:
    """What else trains, and how wide items are, as LLMSRec takes it."""
    lora = (cfg.lora, llama) if cfg.lora.trains else None
    return cfg.prompts.user_repr, lora, cfg.prompts.item_repr, cfg.item_width


class Frozen(NamedTuple):
    """What never trains and is never saved."""

    llama: nnx.State
    cf_items: Array  # float32 [I, item_width] what stands for items: the teacher's embeddings, or A-LLMRec's joint ones
    items: KV | None = None  # keys and values of all item prompts' prefixes, where they are kept
    key: Array | None = None  # of dropout in training


def _tail(
    model: LLMSRec, llama: Llama, prompts: PromptBatch, cf_items_IE: Array
) -> Float[Array, "A D"]:
    """Embeddings of the live tails: tokens from the table, slots from the trainables."""
    x_AD = llama.embed(prompts.ids)
    slots = {}  # kind -> their embeddings; history slots come first
    if len(prompts.slot_item):
        if model.item_projector is None:
            raise ValueError("prompts with item embeddings, and no projector of them")
        items_SD = model.item_projector(cf_items_IE[prompts.slot_item])
        shown = prompts.shows_items
        slots[HISTORY] = items_SD if shown is None else jnp.where(shown, items_SD, 0.0)
    if prompts.cf_user_repr is not None:
        if model.user_projector is None:
            raise ValueError("prompts with a user representation, and no projector of it")
        slots[USER_REPR] = model.user_projector(prompts.cf_user_repr)
    fills: dict[int, Array] = {}
    if slots:
        slots_SD = jnp.concatenate([*slots.values()]).astype(x_AD.dtype)
        slots_AD = axes.permute(slots_SD, prompts.slot, prompts.slot_at)
        fills = dict.fromkeys(slots, slots_AD)
    if prompts.asked is None:
        fills |= {USER_OUT: model.user_out[...], ITEM_OUT: model.item_out[...]}
    for kind, values in fills.items():
        x_AD = jnp.where((prompts.kind == kind)[:, None], values.astype(x_AD.dtype), x_AD)
    return x_AD


def _past(
    llama: Llama, prompts: PromptBatch, items: KV | None, added: Added
) -> list[Source | None]:
    """What the tails of every grid continue."""
    has_prefix = prompts.prefix_ids.shape[0] > 0
    made = llama.prefill(prompts.prefix_ids, prompts.prefix, added) if has_prefix else None
    sources = [(made, grid) for grid in prompts.prefix.grids]
    stored = items if prompts.kv is None else prompts.kv
    if prompts.stored and stored is None:
        raise ValueError("prompts whose prefixes are stored, and no store")
    sources += [(stored, grid) for grid in prompts.stored]
    return [None if kv is None or not grid.at.shape[1] else (kv, grid) for kv, grid in sources]


def read(
    model: LLMSRec,
    llama: Llama,
    prompts: PromptBatch,
    frozen: Frozen,
    at: Sequence[Array],
    remat: str = "none",
    key: Array | None = None,
) -> Float[Array, "Q D"]:
    """float32 hidden states (after the final norm, D12) at positions `at` of every grid; the constant prefix gets no gradient.

    key: of dropout.
    """
    x_AD, added = _tail(model, llama, prompts, frozen.cf_items), model.added(key)
    past = _past(llama, prompts, frozen.items, added)
    return llama.extend(x_AD, prompts.live, past, at, remat=remat, added=added)


def hidden(
    model: LLMSRec,
    llama: Llama,
    prompts: PromptBatch,
    frozen: Frozen,
    remat: str = "none",
    key: Array | None = None,
) -> Float[Array, "B D"]:
    """float32 hidden state at the Out slot of every prompt. key: of dropout."""
    outs = prompts.outs
    at = [grid.length[:, None] - 1 for grid in prompts.live.grids] if outs is None else outs.at
    h_BD = read(model, llama, prompts, frozen, at, remat, key)
    if outs is not None:
        h_BD = axes.permute(h_BD, outs.place, outs.prompt)
    return h_BD.astype(jnp.float32)


HEADS = {"users": "user_head", "items": "item_head"}


def encode(
    kind: str, model: LLMSRec, llama: Llama, prompts: PromptBatch, frozen: Frozen
) -> Float[Array, "B R"]:
    """Vectors of `users`, f_user(h_U), or of `items`, f_item(h_I); not normalised (D2)."""
    return getattr(model, HEADS[kind])(hidden(model, llama, prompts, frozen))


def states(
    kind: str, model: LLMSRec, llama: Llama, prompts: PromptBatch, frozen: Frozen
) -> Float[Array, "B D+R"]:
    """Hidden states and, behind them, vectors: what `encode` is made of, to compare either (E9)."""
    h_BD = hidden(model, llama, prompts, frozen)
    return jnp.concatenate([h_BD, getattr(model, HEADS[kind])(h_BD)], axis=1)


def encoder(
    kind: str, model: nnx.GraphDef, llama: nnx.GraphDef, encode: Callable[..., Array] = encode
) -> Callable[[Frozen, nnx.State, PromptBatch], Array]:
    """`encode` (or `states`) as a function of arrays alone."""
    return lambda frozen, params, prompts: encode(
        kind, nnx.merge(model, params), nnx.merge(llama, frozen.llama), prompts, frozen
    )


def part_by_part(
    encode: Callable[[PromptBatch], Array], prompts: PromptBatch
) -> Float[Array, "parts ..."]:
    """`encode` of every part [parts, ...], one after the other in the backward pass too.

    Only the prompts are kept in between: memory is that of one part, for one more forward pass. Vectors know nothing
    of each other until the loss, so its gradient is that of the whole batch.
    """
    if prompts.ids.shape[0] == 1:
        return encode(jax.tree.map(lambda x: x[0], prompts))[None]
    return jax.lax.map(jax.checkpoint(encode), prompts)


def loss(
    model: LLMSRec,
    llama: Llama,
    batch: LLMBatch,
    frozen: Frozen,
    cfg: config.Config,
    axis: str | tuple[str, ...] | None = None,
    key: Array | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """This device's share of Eq. 4 and the global loss terms. key: of dropout, the same on every device.

    Summed over the devices of `axis`, the shares are the loss of the global batch: user vectors are gathered, so
    distillation and uniformity do not depend on the number of devices. The gradient of a share, summed over the
    devices, is the gradient of the global loss.
    """
    if model.lora is not None and (batch.prompts.prefix_ids.shape[-1] or batch.prompts.stored):
        raise ValueError("LoRA trains on every token, and these prompts have constant prefixes")
    encode = lambda part: hidden(model, llama, part, frozen, cfg.llm.remat, key)
    h_PBD = part_by_part(encode, batch.prompts)
    users = batch.candidates.shape[0] // h_PBD.shape[0]  # of each part
    rows = lambda h_PBD: h_PBD.reshape(-1, h_PBD.shape[-1])
    user_BR = model.user_head(rows(h_PBD[:, :users]))
    item_NR = model.item_head(rows(h_PBD[:, users:]))
    cf_BR = model.cf_user_head(batch.cf_user_repr)
    devices = 1 if axis is None else jax.lax.axis_size(axis)
    gather = lambda x: x if axis is None else jax.lax.all_gather(x, axis, tiled=True)
    everyone_GR, cf_everyone_GR = gather(user_BR), gather(cf_BR)
    uniformity = [
        losses.uniformity_loss(x, log=cfg.uniformity.log, temperature=cfg.uniformity.temperature)
        for x in (everyone_GR, cf_everyone_GR)
    ]
    distill = losses.distill_loss(
        everyone_GR,
        cf_everyone_GR,
        type=cfg.distill.type,
        normalize=cfg.distill.normalize,
        reduction=cfg.distill.reduction,
        temperature=cfg.distill.temperature,
    )
    terms = {
        "retrieval": losses.retrieval_loss(user_BR, item_NR[batch.candidates]) / devices,
        "distill": distill / devices,
        "uniformity_user": uniformity[0] / devices,
        "uniformity_cf": uniformity[1] / devices,
    }
    share = terms["retrieval"]
    # a term without weight is measured, but no part of what is differentiated
    if cfg.distill.weight:
        share += cfg.distill.weight * terms["distill"]
    if cfg.uniformity.weight:
        share += cfg.uniformity.weight * (terms["uniformity_user"] + terms["uniformity_cf"])
    terms["loss"] = share
    return share, terms
