"""LLM-SRec (S1): what trains, how users and items become vectors, and the combined loss (Eq. 4).

Encode users, encode items, dot product. The backbone and the teacher's item table are frozen and are passed in.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from llmsrec_jax import config, losses
from llmsrec_jax.batch import HISTORY, OUT, LLMBatch, PromptBatch
from llmsrec_jax.llama.model import Llama
from llmsrec_jax.models.heads import Head


class LLMSRec(nnx.Module):
    """The trainable part: f_I, f_user, f_item, f_CF-user and the two Out tokens (22,797,056 numbers at D = 3072)."""

    def __init__(
        self,
        d_cf: int,
        d_llm: int,
        head: config.Head,
        embedding_moments: tuple[float, float],
        rngs: nnx.Rngs,
    ):
        mean, std = embedding_moments
        self.item_projector = Head(d_cf, d_llm, d_llm, "leaky_relu", True, rngs)
        self.user_head = Head(d_llm, head.hidden, head.dim, head.act, head.norm, rngs)
        self.item_head = Head(d_llm, head.hidden, head.dim, head.act, head.norm, rngs)
        self.cf_user_head = Head(d_cf, head.dim, head.dim, "gelu", True, rngs)
        token = lambda: nnx.Param(mean + std * jax.random.normal(rngs.params(), (d_llm,)))
        self.user_out, self.item_out = token(), token()


class Frozen(NamedTuple):
    """What never trains and is never saved."""

    llama: nnx.State
    cf_items: Array  # float32 [I, E] the teacher's item embeddings


def _tail(
    llama: Llama,
    prompts: PromptBatch,
    cf_items_IE: Array,
    projector: Head,
    out_D: Array,
    slots: int,
) -> Float[Array, "B T D"]:
    """Embeddings of the live tail: tokens from the table, then slots filled by position.

    Slots are moved into place by a product with a 0/1 matrix: exact, and its gradient needs no scatter.
    """
    x_BTD = llama.embed(prompts.ids)
    is_slot_BT = prompts.kind == HISTORY
    _, position_BL = jax.lax.top_k(is_slot_BT.astype(jnp.int32), min(slots, is_slot_BT.shape[1]))
    item_BL = jnp.take_along_axis(prompts.slot_item, position_BL, axis=1)
    projected_BLD = projector(cf_items_IE[item_BL])
    place_BTL = is_slot_BT[:, :, None] & (
        position_BL[:, None, :] == jnp.arange(prompts.ids.shape[1])[None, :, None]
    )
    slots_BTD = jnp.einsum(
        "BTL,BLD->BTD", place_BTL.astype(jnp.float32), projected_BLD, precision="highest"
    )
    x_BTD = jnp.where(is_slot_BT[..., None], slots_BTD.astype(x_BTD.dtype), x_BTD)
    return jnp.where((prompts.kind == OUT)[..., None], out_D.astype(x_BTD.dtype), x_BTD)


def hidden(
    llama: Llama,
    prompts: PromptBatch,
    cf_items_IE: Array,
    projector: Head,
    out_D: Array,
    *,
    slots: int,
    remat: str = "none",
) -> Float[Array, "B D"]:
    """float32 hidden state at the Out slot (after the final norm, D12); the constant prefix gets no gradient."""
    has_prefix = prompts.prefix_ids.shape[1] > 0
    past = llama.prefill(prompts.prefix_ids, prompts.prefix_len) if has_prefix else None
    x_BTD = _tail(llama, prompts, cf_items_IE, projector, out_D, slots)
    out_B1 = prompts.length[:, None] - 1
    h_B1D = llama.extend(x_BTD, prompts.length, past, out_B1, remat=remat)
    return h_B1D[:, 0].astype(jnp.float32)


def encode_users(
    model: LLMSRec,
    llama: Llama,
    prompts: PromptBatch,
    cf_items_IE: Array,
    slots: int,
    remat: str = "none",
) -> Float[Array, "B R"]:
    """f_user(h_U), not normalised (D2)."""
    h_BD = hidden(
        llama,
        prompts,
        cf_items_IE,
        model.item_projector,
        model.user_out[...],
        slots=slots,
        remat=remat,
    )
    return model.user_head(h_BD)


def encode_items(
    model: LLMSRec, llama: Llama, prompts: PromptBatch, cf_items_IE: Array, remat: str = "none"
) -> Float[Array, "B R"]:
    """f_item(h_I), not normalised."""
    h_BD = hidden(
        llama, prompts, cf_items_IE, model.item_projector, model.item_out[...], slots=1, remat=remat
    )
    return model.item_head(h_BD)


def in_chunks(
    encode: Callable[[PromptBatch], Array], prompts: PromptBatch, rows: int
) -> Float[Array, "B R"]:
    """`encode(prompts)`, `rows` prompts at a time (0 = all), one after the other in the backward pass too.

    Only the prompts are kept in between: memory is that of one chunk, for one more forward pass. Vectors know nothing
    of each other until the loss, so its gradient is that of the whole batch.
    """
    total = prompts.ids.shape[0]
    if not 0 < rows < total:
        return encode(prompts)
    whole = total - total % rows
    cut = lambda x: x[:whole].reshape(whole // rows, rows, *x.shape[1:])
    parts = jax.lax.map(jax.checkpoint(encode), jax.tree.map(cut, prompts))
    done = parts.reshape(whole, -1)
    if whole == total:
        return done
    rest = jax.checkpoint(encode)(jax.tree.map(lambda x: x[whole:], prompts))
    return jnp.concatenate([done, rest])


def loss(
    model: LLMSRec,
    llama: Llama,
    batch: LLMBatch,
    cf_items_IE: Array,
    cfg: config.Config,
    axis: str | tuple[str, ...] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """This device's share of Eq. 4 and the global loss terms.

    Summed over the devices of `axis`, the shares are the loss of the global batch: user vectors are gathered, so
    distillation and uniformity do not depend on the number of devices. The gradient of a share, summed over the
    devices, is the gradient of the global loss.
    """
    slots, remat, chunk = cfg.prompts.history_len, cfg.llm.remat, cfg.train.chunk
    users = lambda group: encode_users(model, llama, group, cf_items_IE, slots, remat)
    items = lambda group: encode_items(model, llama, group, cf_items_IE, remat)
    user_BR = jnp.concatenate([in_chunks(users, group, chunk) for group in batch.users])
    item_NR = jnp.concatenate([in_chunks(items, group, chunk) for group in batch.items])
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
    share = (
        terms["retrieval"]
        + cfg.distill.weight * terms["distill"]
        + cfg.uniformity.weight * (terms["uniformity_user"] + terms["uniformity_cf"])
    )
    terms["loss"] = share
    return share, terms
