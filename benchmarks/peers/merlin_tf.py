"""Merlin Models on TensorFlow: TwoTowerModelV2 (w1) or MatrixFactorizationModelV2 (w2), in-batch negatives.

--variant default: as its examples do, compile(optimizer="adam") and fit, which measures top-k metrics on the way;
lazy: LazyAdam on the tables, without those metrics.

Its correction is applied before the division by the temperature, so its loss on w1 is another number than everybody
else's; the work is the same.
"""

import os
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
warnings.filterwarnings("ignore")
import logging

logging.disable(logging.WARNING)
import tensorflow as tf

# before Merlin starts TensorFlow
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
import merlin.io
import merlin.models.tf as mm
import numpy as np
import pandas as pd
import workload as W
from merlin.models.tf.outputs.base import DotProduct
from merlin.models.tf.transforms.bias import PopularityLogitsCorrection
from merlin.models.utils.schema_utils import categorical_cardinalities
from merlin.schema import ColumnSchema, Schema, Tags

a = W.parser(__doc__).parse_args()
columns = W.interactions(a.workload, a.users, a.items, a.batch * (a.steps + a.warmup))


def ids(name, size, tags):
    domain = {"min": 0, "max": size - 1, "name": name}
    return ColumnSchema(name, dtype="int64", tags=[*tags, Tags.CATEGORICAL], properties={"domain": domain})


schema = []
for side, size, tag, own in (("user", a.users, Tags.USER, Tags.USER_ID), ("item", a.items, Tags.ITEM, Tags.ITEM_ID)):
    schema.append(ids(f"{side}_id", size, [tag, own]))
    schema += [ids(name, W.CATEGORIES, [tag]) for name in W.categories(a.workload, side)]
    schema += [ColumnSchema(n, dtype="float32", tags=[tag, Tags.CONTINUOUS]) for n in W.numbers(a.workload, side)]
schema = Schema(schema)
data = merlin.io.Dataset(pd.DataFrame(columns), schema=schema)
data.schema = schema


def tower(tag):
    own = schema.select_by_tag(tag)
    categorical = own.select_by_tag(Tags.CATEGORICAL)
    widths = {c.name: W.ID_WIDTH if c.name.endswith("_id") else W.CATEGORY_WIDTH for c in categorical}
    inputs = mm.InputBlockV2(own, categorical=mm.Embeddings(categorical, dim=widths))
    return mm.Encoder(inputs, mm.MLPBlock(W.WIDTHS, no_activation_last_layer=True), post=mm.L2Norm())


if a.workload == "w1":
    item = schema.select_by_tag(Tags.ITEM_ID)
    counts = W.shares(columns["item_id"], a.items) * len(columns["item_id"])
    # the correction wants a table as long as the cardinality that Merlin infers
    counts = np.concatenate([counts, np.ones(categorical_cardinalities(item)["item_id"] - len(counts), "float32")])
    output = mm.ContrastiveOutput(
        to_call=DotProduct(), negative_samplers="in-batch", schema=item, logits_temperature=W.TEMPERATURE,
        store_negative_ids=True, downscore_false_negatives=True, post=PopularityLogitsCorrection(counts, schema=item),
    )  # fmt: skip
    model = mm.TwoTowerModelV2(tower(Tags.USER), tower(Tags.ITEM), outputs=output, schema=schema)
else:
    model = mm.MatrixFactorizationModelV2(schema, dim=W.ID_WIDTH, negative_samplers="in-batch")
model.compile(optimizer="adam" if a.variant == "default" else mm.LazyAdam(learning_rate=1e-3))


class Ticks(tf.keras.callbacks.Callback):
    clock = W.Clock()

    def on_train_batch_end(self, batch, logs=None):
        self.clock.tick(float(logs["loss"]))


options = {} if a.variant == "default" else {"train_metrics_steps": 0}
model.fit(data, batch_size=a.batch, epochs=1, callbacks=[Ticks()], verbose=0, **options)
Ticks.clock.report(a)
