"""What is measured: the product's model, steps and encoders over made data, with random weights or given ones."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llmsrec_jax import config, parallel, stores, train
from llmsrec_jax.benchmark import made
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama import weights
from llmsrec_jax.llama.model import Llama
from llmsrec_jax.models import cf, llm4rec
from llmsrec_jax.prompts.prompts import within


@dataclass(frozen=True)
class System:
    """One configuration on the local devices."""

    cfg: config.Config
    shape: made.Shape
    given: Dataset | None = None  # your own, instead of made data

    @classmethod
    def of(cls, cfg: config.Config) -> "System":
        """Over the data of the configuration. Raises ValueError: an unusable file."""
        shape, given = made.shape(cfg.data), made.given(cfg.data, cfg.seed)
        return cls(cfg, shape if given is None else made.shape_of(given, shape), given)

    @cached_property
    def mesh(self) -> parallel.DeviceMesh:
        return parallel.make_mesh(self.cfg.mesh)

    @property
    def devices(self) -> int:
        return self.mesh.mesh.size

    @cached_property
    def dtype(self) -> Any:
        return weights.compute_dtype(self.cfg.llm.dtype)

    @cached_property
    def located(self) -> tuple[llama_config.LlamaConfig, Any]:
        """The shape of the backbone, and its folder or None."""
        shape, folder = llama_config.locate(self.cfg.llm.path, self.cfg.llm.revision)
        return replace(shape, writes=not self.cfg.prompts.retrieves), folder

    @property
    def llama(self) -> llama_config.LlamaConfig:
        return self.located[0]

    def made_as(self, shape: made.Shape) -> made.Made:
        """Data of that shape for this backbone."""
        prompts = within(self.cfg.prompts, self.llama.max_positions)
        return made.Made(shape, self.cfg.seed, self.llama.vocab, prompts)

    @cached_property
    def made(self) -> made.Made:
        return replace(self.made_as(self.shape), given=self.given)

    @cached_property
    def samples(self) -> Samples:
        """What is trained on."""
        dataset, cfg = self.made.dataset, self.cfg.train
        users = dataset.eligible("train")
        return Samples.of(dataset, users[: cfg.max_users or len(users)], cfg.targets)

    @cached_property
    def backbone(self) -> Llama:
        (shape, folder), mode = self.located, self.cfg.llm.quant
        options = {"mode": mode, "sharding": self.mesh.weights}
        self.mesh.weights.check(shape, mode)
        if folder is None:
            return weights.random(shape, self.cfg.seed, self.dtype, **options)
        return weights.load(folder, shape, self.dtype, **options)

    @cached_property
    def llama_graph(self) -> nnx.GraphDef:
        return nnx.split(self.backbone)[0]

    @cached_property
    def cf_items(self) -> np.ndarray:
        """float32 [I, item_width]: what stands for items in prompts."""
        return self.normal(self.made.dataset.catalog.size, self.cfg.item_width)

    @cached_property
    def cf_users(self) -> np.ndarray:
        """float32 [n, E]: the teacher's vectors of the samples' inputs."""
        return self.normal(len(self.samples))

    def told(self, users: int) -> np.ndarray | None:
        """float32 [users, E]: the teacher's vectors, where prompts open with them."""
        return self.normal(users) if self.cfg.prompts.user_repr else None

    def normal(self, rows: int, width: int | None = None) -> np.ndarray:
        """Of the teacher's width, or another one."""
        rng = np.random.default_rng([self.cfg.seed, rows])
        return rng.standard_normal((rows, width or self.cfg.teacher.d), np.float32)

    @cached_property
    def frozen(self) -> llm4rec.Frozen:
        cf_items = parallel.replicate(self.cf_items, self.mesh)
        kept = None if self.store is None else self.store.resident
        key = jax.random.key(self.cfg.seed) if self.cfg.lora.trains else None
        key = parallel.replicate(key, self.mesh)
        return llm4rec.Frozen(nnx.split(self.backbone)[1], cf_items, kept, key)

    @cached_property
    def model(self) -> tuple[nnx.GraphDef, nnx.State]:
        rngs = nnx.Rngs(params=self.cfg.seed)
        return nnx.split(llm4rec.new(self.cfg, self.backbone, rngs))

    @cached_property
    def params(self) -> nnx.State:
        return parallel.replicate(self.model[1], self.mesh)

    def state(self) -> train.State:
        """A fresh one: steps donate theirs."""
        params = jax.tree.map(jnp.copy, self.model[1])
        return parallel.replicate(
            train.init_state(params, self.cfg.train.lr, self.cfg.train.b2), self.mesh
        )

    def step(self, llama_graph: nnx.GraphDef | None = None, **more: Any) -> Any:
        """The product's training step, jitted; more: of `train.llm_step`."""
        parts = {"model": self.model[0], "llama": llama_graph or self.llama_graph, **more}
        step = partial(train.llm_step, **parts, cfg=self.cfg, axis=self.mesh.axis)
        return parallel.train_wrapper(step, self.mesh)

    def encoder(self, kind: str) -> Any:
        """Of `users` or `items`, jitted."""
        return parallel.encode_wrapper(
            llm4rec.encoder(kind, self.model[0], self.llama_graph), self.mesh
        )

    @cached_property
    def store(self) -> stores.ItemStore | None:
        """Of all items of the made data, where the configuration keeps one."""
        items = self.made.builder.items(np.arange(1, self.made.dataset.catalog.size))
        return stores.of(self.cfg.llm, nnx.split(self.backbone), items, self.mesh)

    @cached_property
    def teacher(self) -> tuple[nnx.GraphDef, nnx.State]:
        rngs = nnx.Rngs(params=self.cfg.seed)
        return nnx.split(cf.new(self.made.dataset.catalog.size, self.cfg.teacher, rngs))

    def teacher_state(self) -> train.State:
        params = jax.tree.map(jnp.copy, self.teacher[1])
        return parallel.replicate(
            train.init_state(params, self.cfg.teacher.lr, self.cfg.teacher.b2), self.mesh
        )

    def put(self, batch: Any) -> Any:
        return parallel.put_batch(batch, self.mesh)
