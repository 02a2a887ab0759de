"""Training on every position: the loss of all prefixes written out, nothing of a target in its own state, worlds of order."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch

import twotower as tt
from tests.worlds import id_column
from twotower import Ragged, Tags
from twotower.models.positions import targets

ITEMS = 12


def item_lists(name: str, items: int = ITEMS) -> tt.ColumnSchema:
    return tt.ColumnSchema(
        name, tags=[Tags.USER, Tags.CATEGORICAL], dtype="int64", is_list=True, is_ragged=True,
        properties={"domain": {"min": 0, "max": items - 1, "name": "item_id"}},
    )  # fmt: skip


def schema(items: int = ITEMS, unknown: bool = True) -> tt.Schema:
    item = id_column("item_id", Tags.ITEM_ID, items - 1)
    return tt.Schema(
        [
            id_column("user_id", Tags.USER_ID, 5),
            item_lists("history", items),
            tt.ColumnSchema("hour", tags=[Tags.USER, Tags.CONTINUOUS], dtype="float32"),
            item.with_properties({"unknown_id": 1}) if unknown else item,
            tt.ColumnSchema("price", tags=[Tags.ITEM, Tags.CONTINUOUS], dtype="float32"),
            tt.ColumnSchema("liked", tags=[Tags.BINARY_CLASSIFICATION], dtype="int64"),
            tt.ColumnSchema("weight", dtype="float32"),
        ]
    )


# ids 0 and 1 are missing and unknown: they are read, but are nobody's positive
ROWS = pl.DataFrame(
    {
        "user_id": [1, 2, 3, 1, 4],
        "history": [[2, 3, 4, 5], [], [6, 1, 0, 7, 7], [4, 5, 9], [11]],
        "item_id": [6, 2, 8, 10, 1],
        "hour": [0.5, 1.0, -1.0, 2.0, 0.0],
        "liked": [1, 0, 1, 1, 1],
        "weight": [1.0, 2.0, 0.5, 1.0, 3.0],
    }
)
CATALOG = {"item_id": list(range(2, ITEMS)), "price": [i / 10 for i in range(2, ITEMS)]}


def written_out(max_length: int = 50) -> pl.DataFrame:
    """Every prefix as a row of its own; a history position was liked."""
    rows = []
    for row in ROWS.iter_rows(named=True):
        read = row["history"][-max_length:]
        for place, item in enumerate([*read, row["item_id"]]):
            liked = row["liked"] if place == len(read) else 1
            if item > 1:
                rows.append({**row, "history": read[:place], "item_id": item, "liked": liked})
    return pl.DataFrame(rows, schema=ROWS.schema)


def priced(rows: pl.DataFrame) -> tt.Dataset:
    return tt.Dataset(rows.with_columns(price=pl.col("item_id") / 10), schema())


def model_of(encoder: tt.HistoryEncoder, items: bool = False, **options: object) -> tt.RetrievalModelV2:
    """A model in float64; its candidate tower reads the id alone, or the price too."""
    torch.manual_seed(3)
    everything = schema()
    embeddings = tt.Embeddings(
        everything.select_by_tag(Tags.CATEGORICAL), dim=8, sequence_combiner={"history": encoder}
    )
    inputs = tt.InputBlockV2(everything.excluding_by_name(["weight"]), categorical=embeddings)
    candidate = inputs.select_by_tag(Tags.ITEM if items else Tags.ITEM_ID)
    query, candidate = (
        tt.Encoder(block, tt.MLPBlock([16, 6], "tanh")) for block in (inputs.select_by_tag(Tags.USER), candidate)
    )
    output = tt.ContrastiveOutput(tt.DotProduct(), schema=everything[["item_id"]], **options)
    return tt.RetrievalModelV2(query=query, candidate=candidate, output=output).double()


ENCODERS = {
    "bag": lambda: tt.HistoryBag(8, weights="decay"),
    "gru": lambda: tt.HistoryGRU(8, max_length=3),
    "transformer": lambda: tt.HistoryTransformer(8, 2, 2, max_length=4),
}
OPTIONS: dict[str, dict[str, object]] = {
    "in-batch": {},
    "corrected": {"logq_sampling_correction": "corrected"},
    "catalogue": {"negative_samplers": "catalog"},
    "mixed": {"negative_samplers": ["in-batch", "catalog"]},
    "known positives": {"known_positives": ["in-batch"]},
    "two directions": {"two_directional": 0.3},
    "weights": {"sample_weight": "weight"},
    "target": {"target": "liked"},
}


def gradients(model: tt.RetrievalModelV2, loss: torch.Tensor) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.filterwarnings("ignore:1 rows hold no id")
def test_the_loss_is_that_of_all_prefixes_written_out(name: str, options: str, features: bool) -> None:
    encoder = ENCODERS[name]()
    data, expanded = priced(ROWS), priced(written_out(encoder.max_length or 50))
    catalog = tt.Dataset(CATALOG, schema()[["item_id", "price"]])
    every = model_of(encoder, features, **OPTIONS[options])
    every.compile(every_position="history")
    loss = every.adapt(data, catalog).loss(data.batch())
    own = gradients(every, loss)
    every.compile()
    reference = every.adapt(expanded, catalog).loss(expanded.batch())
    torch.testing.assert_close(loss, reference)
    for mine, theirs in zip(own, gradients(every, reference), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_targets_by_hand() -> None:
    found = targets(Ragged.from_lists([[2, 3, 4], [], [1, 5]]), torch.tensor([6, 7, 0]), 2, smallest=2)
    # row 0 reads 3, 4: vectors 0 to 2; row 1: vector 3; row 2: vectors 4 to 6, of whose targets 1, 5, 0 only 5 counts
    assert found.ids.tolist() == [3, 4, 6, 7, 5]
    assert found.row.tolist() == [0, 0, 0, 1, 2]
    assert found.place.tolist() == [0, 1, 2, 3, 5]
    assert found.own.tolist() == [False, False, True, True, False]
    dense = targets(torch.tensor([[2, 3], [1, 5]]), torch.tensor([6, 7]), None, smallest=0)
    assert dense.ids.tolist() == [2, 3, 6, 1, 5, 7]


@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_of_a_target_is_in_the_query_that_shall_find_it(name: str) -> None:
    """The query of position t moves with the table rows of the items before it and of its user, and with no others."""
    query = model_of(ENCODERS[name]()).query
    history = [7, 4, 9]
    batch = {
        "user_id": torch.tensor([3, 2]), "hour": torch.tensor([1.0, 2.0]).double(),
        "history": Ragged.from_lists([history, [10, 11]]),
    }  # fmt: skip
    vectors = query.every_position(batch, "history")
    assert vectors.lengths().tolist() == [4, 3]
    torch.testing.assert_close(vectors.values[[3, 6]], query(batch))
    weight = query.inputs.categorical.table("history").weight
    for t in range(4):
        (moves,) = torch.autograd.grad(vectors.values[t].sum(), weight, retain_graph=True, allow_unused=True)
        assert set(moves.abs().sum(1).nonzero().flatten().tolist()) == set(history[:t])


def test_own_columns_for_own_pairs_when_there_are_several_tasks() -> None:
    torch.manual_seed(0)
    both = model_of(tt.HistoryGRU(8)).float()
    like = tt.BinaryOutput("liked")
    several = tt.RetrievalModelV2(query=both.query, candidate=both.candidate, output=[*both.outputs, like])
    data = priced(ROWS[:4])
    batch = data.batch()
    several.compile(every_position="history")
    losses = several.adapt(data).losses(batch)
    several.compile()
    alone = several.adapt(data).losses(batch)
    torch.testing.assert_close(losses["liked/binary_output_loss"], alone["liked/binary_output_loss"])
    assert losses["contrastive_output_loss"] != alone["contrastive_output_loss"]


def test_known_positives_may_stand_in_the_history() -> None:
    """With the row's whole list hidden, a position competes with the other rows' items alone."""
    data = priced(
        ROWS[:2].with_columns(history=pl.Series([[2, 3], [4]], dtype=pl.List(pl.Int64)), item_id=pl.Series([5, 6]))
    )
    model = model_of(tt.HistoryBag(8), known_positives=["history"], logq_sampling_correction=False)
    model.compile(every_position="history")
    model.adapt(data)
    step = model._steps(data.batch())["contrastive_output"]
    _, negative = model.outputs[0].logits(step)
    seen = {
        (i, int(id_))
        for i, row in enumerate(negative)
        for id_, s in zip(step.candidate.ids, row, strict=True)
        if s > -torch.inf
    }
    # positions 0 to 2 are of the first row, 3 and 4 of the second; 5, the row's own, is hidden at its own position only
    assert seen == {
        (0, 4),
        (0, 5),
        (0, 6),
        (1, 4),
        (1, 5),
        (1, 6),
        (2, 4),
        (2, 6),
        (3, 2),
        (3, 3),
        (3, 5),
        (3, 6),
        (4, 2),
        (4, 3),
        (4, 5),
    }


def test_the_catalogue_and_the_frequencies_know_what_stands_in_histories() -> None:
    data = priced(ROWS)
    model = model_of(tt.HistoryGRU(8))
    model.compile(every_position="history")
    with pytest.warns(UserWarning, match="1 rows hold no id"):
        model.adapt(data)
    assert model.catalog.ids.tolist() == list(range(2, 12))
    counts = model.outputs[0].negative_samplers[0].frequency.counts
    assert counts.tolist() == [2, 1, 2, 2, 2, 2, 1, 1, 1, 1]  # of 2 to 11, lists and own candidates together
    featured = model_of(tt.HistoryGRU(8), items=True)
    featured.compile(every_position="history")
    with (
        pytest.warns(UserWarning, match="1 rows hold no id"),
        pytest.raises(
            ValueError, match=r"6 items of the histories, such as \[3, 4, 5, 7, 9\], .* Give fit \(or adapt\) catalog"
        ),
    ):
        featured.adapt(data)


def test_the_choice_is_saved_with_the_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = priced(ROWS[:4])
    model = model_of(tt.HistoryTransformer(8)).float()
    model.compile(every_position="history")
    model.fit(data, batch_size=2, epochs=1, verbose=False, health_steps=0)
    model.eval().save(tmp_path / "model")
    again = tt.RetrievalModelV2.load(tmp_path / "model")
    assert again.compiled.every_position == "history"
    torch.testing.assert_close(again.loss(data.batch()), model.loss(data.batch()))


def test_models_that_cannot_be_trained_on_every_position() -> None:
    items, user = schema(), schema().select_by_tag(Tags.USER)

    def refused(match: str, query: tt.Encoder | tt.EmbeddingEncoder, name: str = "history", **options: object) -> None:
        candidate = tt.EmbeddingEncoder(items["item_id"], 8)
        model = tt.TwoTowerModelV2(query, candidate, negative_samplers=options.pop("negative_samplers", None))
        with pytest.raises(ValueError, match=match):
            model.compile(every_position=name, **options)

    def tower(columns: tt.Schema = user, combiner: object = None, **given: object) -> tt.Encoder:
        made = tt.Embeddings(
            columns.select_by_tag(Tags.CATEGORICAL), dim=8, sequence_combiner={"history": combiner or tt.HistoryGRU(8)}
        )
        return tt.Encoder(tt.InputBlockV2(columns, categorical=made), given.pop("block", tt.MLPBlock([8])), **given)

    refused("'history' is pooled by 'mean', which has no state after every item", tower(combiner="mean"))
    refused("unknown column 'hist'", tower(), "hist")
    refused("the column holds no lists of ids", tower(), "user_id")
    other = item_lists("history").with_properties({"domain": {"min": 0, "max": 7, "name": "film"}})
    refused("its domain is 'film' with 8", tower(user.excluding_by_name(["history"]) + tt.Schema([other])))
    refused(r"also reads \['viewed'\]", tower(user + tt.Schema([item_lists("viewed")])))
    refused("leave out pre", tower(pre=torch.nn.Identity()))
    refused("batch normalisation", tower(block=tt.MLPBlock([8], normalization="batch_norm")))
    refused("leave out encode_rows=4", tower(), encode_rows=4)
    refused(r"negatives in \['shown'\]", tower(), negative_samplers=["in-batch", tt.ColumnSampler("shown")])
    refused("needs a query tower whose Embeddings", tt.EmbeddingEncoder(items["user_id"], 8))


def test_a_batch_whose_ids_are_all_unknown_has_no_loss_but_a_gradient() -> None:
    model = model_of(tt.HistoryGRU(8))
    model.compile(every_position="history")
    model.adapt(priced(ROWS[:4]))
    nobody = priced(
        ROWS[:2].with_columns(history=pl.Series([[1], []], dtype=pl.List(pl.Int64)), item_id=pl.Series([1, 0]))
    )
    loss = model.loss(nobody.batch())
    assert loss.item() == 0
    loss.backward()


# ---- a world where the next item depends on the last one


NEXT = 40


def chains(users: int, length: int, seed: int) -> list[list[int]]:
    """Sequences in which item i is followed by i + 7 (modulo the number of items) in eight of ten cases, else by any."""
    rng = np.random.default_rng(seed)
    rows = [[int(rng.integers(NEXT))] for _ in range(users)]
    for row in rows:
        while len(row) < length:
            row.append((row[-1] + 7) % NEXT if rng.random() < 0.8 else int(rng.integers(NEXT)))
    return rows


def chain_rows(users: int, length: int, seed: int) -> tt.Dataset:
    """One row for each user: all but the last event, and the last."""
    rows = chains(users, length, seed)
    columns = {"history": [row[:-1] for row in rows], "item_id": [row[-1] for row in rows]}
    both = tt.Schema([item_lists("history", NEXT), id_column("item_id", Tags.ITEM_ID, NEXT - 1)])
    return tt.Dataset(pl.DataFrame(columns), both)


def hit_rate(make: Callable[[], tt.HistoryEncoder], every: bool, users: int = 300, epochs: int = 12) -> float:
    """Recall at 1 after training; what can be reached is .8 + .2 / 40 = .805."""
    torch.manual_seed(0)
    data, test = chain_rows(users, 12, seed=1), chain_rows(2000, 12, seed=2)
    embeddings = tt.Embeddings(data.schema, dim=16, sequence_combiner={"history": make()})
    inputs = tt.InputBlockV2(data.schema, categorical=embeddings)
    query = tt.Encoder(inputs.select_by_tag(Tags.USER), tt.MLPBlock([32, 16], no_activation_last_layer=True))
    model = tt.TwoTowerModelV2(query, tt.Encoder(inputs.select_by_tag(Tags.ITEM)), negative_samplers="catalog")
    items = tt.Dataset({"item_id": np.arange(NEXT)}, data.schema[["item_id"]])
    model.compile(learning_rate=0.01, metrics=["recall_at_1"], every_position="history" if every else None)
    model.fit(data, batch_size=50, epochs=epochs, catalog=items, verbose=False, health_steps=0)
    return model.evaluate(test)["recall_at_1"]


def test_what_reads_order_finds_what_follows_and_the_mean_does_not() -> None:
    """2,000 users measure .805 to within .027 (three standard errors); the mean does not know which item was the last."""
    assert hit_rate(lambda: tt.HistoryGRU(16), every=True) > 0.805 - 0.027 - 0.02
    assert hit_rate(lambda: tt.HistoryTransformer(16, 1, 2), every=True) > 0.805 - 0.027 - 0.02
    assert hit_rate(lambda: tt.HistoryBag(16), every=True) < 0.3


def test_every_position_learns_more_from_the_same_rows() -> None:
    """Of 100 users the last positions show 100 pairs of 40 items, all positions 1,200; both get as many steps."""
    assert hit_rate(lambda: tt.HistoryGRU(16), True, users=100, epochs=30) > 0.6
    assert hit_rate(lambda: tt.HistoryGRU(16), False, users=100, epochs=30) < 0.45
