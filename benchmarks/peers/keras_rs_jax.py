"""keras-rs on JAX: its layers RemoveAccidentalHits and SamplingProbabilityCorrection, compile and fit, Adam(1e-3)."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
# JAX has no other way to one thread
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
import keras
import keras_rs
import numpy as np
import workload as W
from keras import layers, ops

a = W.parser(__doc__).parse_args()
columns = W.interactions(a.workload, a.users, a.items, a.batch * (a.steps + a.warmup))
columns["share"] = W.shares(columns["item_id"], a.items)[columns["item_id"]]
columns = {name: c.astype(np.int32) if c.dtype == np.int64 else c for name, c in columns.items()}


class Tower(layers.Layer):
    def __init__(self, side: str, size: int) -> None:
        super().__init__()
        self.side = side
        self.id = layers.Embedding(size, W.ID_WIDTH)
        self.names = W.categories(a.workload, side)
        self.tables = [layers.Embedding(W.CATEGORIES, W.CATEGORY_WIDTH) for _ in self.names]
        self.first, self.second = layers.Dense(W.WIDTHS[0], "relu"), layers.Dense(W.WIDTHS[1])

    def call(self, batch):
        vectors = self.id(batch[f"{self.side}_id"])
        if a.workload == "w2":
            return vectors
        parts = [vectors] + [table(batch[name]) for name, table in zip(self.names, self.tables, strict=True)]
        parts.append(ops.stack([batch[name] for name in W.numbers(a.workload, self.side)], 1))
        return ops.normalize(self.second(self.first(ops.concatenate(parts, 1))), axis=1)


class Model(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = Tower("user", a.users), Tower("item", a.items)
        self.hits = keras_rs.layers.RemoveAccidentalHits()
        self.correction = keras_rs.layers.SamplingProbabilityCorrection()

    def call(self, batch):
        logits = ops.matmul(self.user(batch), ops.transpose(self.item(batch)))
        logits = logits / W.TEMPERATURE if a.workload == "w1" else logits
        return self.hits(self.correction(logits, batch["share"]), ops.eye(a.batch), batch["item_id"])

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return ops.mean(keras.losses.categorical_crossentropy(ops.eye(a.batch), y_pred, from_logits=True))


class Ticks(keras.callbacks.Callback):
    clock = W.Clock()

    def on_train_batch_end(self, batch, logs=None):
        self.clock.tick(float(logs["loss"]))


def batches():
    for step in range(a.warmup + a.steps):
        part = slice(step * a.batch, (step + 1) * a.batch)
        yield {name: column[part] for name, column in columns.items()}, np.zeros(a.batch, "float32")


keras.utils.set_random_seed(0)
model = Model()
model.compile(optimizer=keras.optimizers.Adam(1e-3))
model.fit(batches(), steps_per_epoch=a.warmup + a.steps, epochs=1, callbacks=[Ticks()], verbose=0)
Ticks.clock.report(a)
