"""A-LLMRec's stage 1 (S11): one space for what the teacher knows of an item and what its text says.

Two autoencoders, of the frozen teacher's item embeddings and of a text encoder's vectors, whose narrow middles are drawn together;
what the first one decodes must still recommend. Stage 2's prompts hold its middles, `item_repr`.

Differences from the authors' code: the text encoder is frozen, where theirs trains along (so the vectors are made once); a batch is
one step, where theirs takes one per 60 samples of it and never clears the gradients in between. The losses are theirs, term by term:
dot products and squares are means over dimensions, positive and negative items are added, not averaged.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from llmsrec_jax.batch import AlignBatch
from llmsrec_jax.models.heads import torch_linear


class Autoencoder(nnx.Module):
    def __init__(self, width: int, middle: int, rngs: nnx.Rngs):
        self.first = torch_linear(width, middle, rngs)
        self.last = torch_linear(middle, width, rngs)

    def encode(self, x: Float[Array, "*B X"]) -> Float[Array, "*B R"]:
        return jax.nn.sigmoid(self.first(x))

    def decode(self, middle: Float[Array, "*B R"]) -> Float[Array, "*B X"]:
        return self.last(middle)


class Alignment(nnx.Module):
    """The trainable part: the autoencoders of CF embeddings (width E) and of text vectors (width X)."""

    def __init__(self, d_cf: int, d_text: int, middle: int, rngs: nnx.Rngs):
        self.item = Autoencoder(d_cf, middle, rngs)
        self.text = Autoencoder(d_text, middle, rngs)


def operations(d_cf: int, d_text: int, middle: int) -> int:
    """Of the forward pass of a sample: both autoencoders, there and back, of two items."""
    return 2 * 2 * 2 * middle * (d_cf + d_text)


class Frozen(NamedTuple):
    """What never trains and is never saved."""

    cf_items: Array  # float32 [I, E] the teacher's item embeddings
    texts: (
        Array  # float32 [I, X] vectors of the items' texts; of row 0, the pad's, any finite numbers
    )


def check(model: Alignment, frozen: Frozen) -> None:
    """Refuses tables of other widths than the model was made (and trained) for; ValueError says what to do.

    Shapes are enough (`jax.ShapeDtypeStruct`), so a checkpoint can be checked before anything is computed.
    """
    _check_width("the text encoder", model.text, frozen.texts)
    _check_width("the teacher", model.item, frozen.cf_items)
    if len(frozen.texts) != len(frozen.cf_items):
        raise ValueError(
            f"vectors of {len(frozen.texts)} texts, but the teacher has {len(frozen.cf_items)} items: "
            "they are of another catalogue"
        )


def _check_width(what: str, autoencoder: Autoencoder, table: Array) -> None:
    want, width = autoencoder.first.in_features, table.shape[-1]
    if want != width:
        raise ValueError(
            f"{what} gives vectors of width {width}, A-LLMRec's stage 1 is of width {want}: "
            "name the one it was trained with, or train stage 1 again"
        )


def item_repr(model: Alignment, cf_items: Float[Array, "*I E"]) -> Float[Array, "*I R"]:
    """Joint embeddings of items, from the CF side: what stands for them in prompts. ValueError where they are of another width."""
    _check_width("the teacher", model.item, cf_items)
    return model.item.encode(cf_items)


def decoded(model: Alignment, cf_items: Float[Array, "*I E"]) -> Float[Array, "*I E"]:
    """What the CF side makes of items again, which is to recommend as they do."""
    return model.item.decode(item_repr(model, cf_items))


def loss(
    model: Alignment,
    batch: AlignBatch,
    frozen: Frozen,
    *,
    item_weight: float = 0.5,
    text_weight: float = 0.2,
    axis: str | tuple[str, ...] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """This device's share of recommendation + matching + item_weight * item + text_weight * text, and of each term.

    Means over the samples with a positive item. Summed over the devices of `axis`, the shares are those of the global
    batch. Raises as `check`.
    """
    check(model, frozen)
    counted_B = batch.positive != 0
    count = jnp.sum(counted_B)
    everywhere = jnp.maximum(count if axis is None else jax.lax.psum(count, axis), 1)
    mean = lambda x_B: jnp.sum(jnp.where(counted_B, x_B, 0.0)) / everywhere
    distance = lambda x, y: mean(jnp.mean((x - y) ** 2, axis=-1))

    def side(ids_B: Array, sign: float) -> dict[str, Array]:
        cf_BE, text_BX = frozen.cf_items[ids_B], frozen.texts[ids_B]
        middle_BR, text_middle_BR = model.item.encode(cf_BE), model.text.encode(text_BX)
        decoded_BE = model.item.decode(middle_BR)
        logit_B = jnp.mean(batch.cf_user_repr * decoded_BE, axis=-1)
        return {
            "recommendation": mean(jax.nn.softplus(-sign * logit_B)),
            "matching": distance(middle_BR, text_middle_BR),
            "item": distance(decoded_BE, cf_BE),
            "text": distance(model.text.decode(text_middle_BR), text_BX),
        }

    terms = jax.tree.map(jnp.add, side(batch.positive, 1.0), side(batch.negative, -1.0))
    reconstruction = item_weight * terms["item"] + text_weight * terms["text"]
    terms["loss"] = terms["recommendation"] + terms["matching"] + reconstruction
    return terms["loss"], terms
