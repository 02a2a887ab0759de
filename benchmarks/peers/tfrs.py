"""TensorFlow Recommenders: tfrs.tasks.Retrieval with its correction and accidental hits removed, batches cached in memory.

--variant default: tf.keras.optimizers.Adam(1e-3); adagrad: Adagrad(0.1), the tutorials' choice.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf
import tensorflow_recommenders as tfrs
import workload as W

a = W.parser(__doc__).parse_args()
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
columns = W.interactions(a.workload, a.users, a.items, a.batch * (a.steps + a.warmup))
columns["share"] = W.shares(columns["item_id"], a.items)[columns["item_id"]]


class Tower(tf.keras.Model):
    def __init__(self, side: str, size: int) -> None:
        super().__init__()
        self.side = side
        self.id = tf.keras.layers.Embedding(size, W.ID_WIDTH)
        names = W.categories(a.workload, side)
        self.tables = {name: tf.keras.layers.Embedding(W.CATEGORIES, W.CATEGORY_WIDTH) for name in names}
        if a.workload == "w1":
            dense = tf.keras.layers.Dense
            self.mlp = tf.keras.Sequential([dense(W.WIDTHS[0], "relu"), dense(W.WIDTHS[1])])

    def call(self, batch):
        vectors = self.id(batch[f"{self.side}_id"])
        if a.workload == "w2":
            return vectors
        parts = [vectors] + [table(batch[name]) for name, table in self.tables.items()]
        parts.append(tf.stack([batch[name] for name in W.numbers(a.workload, self.side)], 1))
        return tf.math.l2_normalize(self.mlp(tf.concat(parts, 1)), axis=1)


class Model(tfrs.Model):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = Tower("user", a.users), Tower("item", a.items)
        temperature = W.TEMPERATURE if a.workload == "w1" else None
        self.task = tfrs.tasks.Retrieval(temperature=temperature, remove_accidental_hits=True)

    def compute_loss(self, batch, training=False):
        return self.task(
            self.user(batch), self.item(batch), candidate_sampling_probability=batch["share"],
            candidate_ids=batch["item_id"], compute_metrics=False,
        )  # fmt: skip


class Ticks(tf.keras.callbacks.Callback):
    clock = W.Clock()

    def on_train_batch_end(self, batch, logs=None):
        self.clock.tick(float(logs["loss"]) / a.batch)  # TFRS sums over the batch


model = Model()
rate = {"default": lambda: tf.keras.optimizers.Adam(1e-3), "adagrad": lambda: tf.keras.optimizers.Adagrad(0.1)}
model.compile(optimizer=rate[a.variant]())
batches = {name: column.reshape(-1, a.batch) for name, column in columns.items()}
model.fit(
    tf.data.Dataset.from_tensor_slices(batches).cache().prefetch(2), epochs=1, callbacks=[Ticks()], verbose=0
)  # fmt: skip
Ticks.clock.report(a)
