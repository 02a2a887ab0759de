"""Made-up worlds: events obey the stated probabilities, and a model can come near the best that is stated."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import chi2

import twotower as tt
from tests.worlds import id_column, towers
from twotower import Tags
from twotower.baselines import Popularity
from twotower.data.synthetic.schemas import WORLDS


def tiny(users: int = 3, items: int = 7) -> tt.Schema:
    return tt.Schema([
        tt.ColumnSchema("u", [Tags.USER_ID], "int64", properties={"domain": {"min": 1, "max": users}}),
        id_column("i", Tags.ITEM_ID, items - 1),
        tt.ColumnSchema("click", [Tags.BINARY_CLASSIFICATION], "int64"),
        tt.ColumnSchema("buy", [Tags.BINARY_CLASSIFICATION], "int64"),
    ])  # fmt: skip


def check_counts(counts: np.ndarray, expected: np.ndarray) -> None:
    """Pearson's chi-square per row, at odds of one in a million; where nothing is expected, nothing comes."""
    assert counts[expected == 0].sum() == 0
    for seen, wanted in zip(counts, expected, strict=True):
        there = wanted > 0
        statistic = ((seen - wanted)[there] ** 2 / wanted[there]).sum()
        assert statistic < chi2.ppf(1 - 1e-6, there.sum() - 1), (seen, wanted)


def by_hand(world: tt.World, user: int, last: int | None = None) -> list[float]:
    """The formula of World's docstring, item by item."""
    laws = world.laws
    pulls = []
    for item in range(len(world.items)):
        topic = laws.topic[item]
        pull = laws.taste[user, topic]
        if last is not None:
            pull += laws.flow[laws.topic[last], topic]
        pulls.append(laws.weight[item] * math.exp(pull))
    return [pull / sum(pulls) for pull in pulls]


def test_items_come_as_often_as_stated() -> None:
    world = tt.generate_world(tiny(), 60_000, seed=3)
    truth = world.probabilities([1, 2, 3])
    for row, user in zip(truth, range(3), strict=True):
        assert row.tolist() == pytest.approx(by_hand(world, user))
    events = world.sets[0].to_polars()
    counts = np.zeros((3, 7))
    np.add.at(counts, (events["u"].to_numpy() - 1, events["i"].to_numpy()), 1)
    check_counts(counts, counts.sum(1, keepdims=True) * truth.numpy())
    with pytest.raises(AssertionError):  # the check has teeth: another world's probabilities fail it
        check_counts(
            counts, counts.sum(1, keepdims=True) * tt.generate_world(tiny(), 9, seed=4).probabilities([1, 2, 3]).numpy()
        )


def test_targets_come_as_often_as_stated() -> None:
    world = tt.generate_world(tiny(), 60_000, seed=3)
    frame = world.sets[0].to_polars()
    click, buy = (world.target_probabilities([1, 2, 3], name) for name in ("click", "buy"))
    taste = world.laws.taste[1, world.laws.topic[4]]
    assert float(click[1, 4]) == pytest.approx(1 / (1 + math.exp(3 - taste)))
    assert float(buy[1, 4]) == pytest.approx(1 / (1 + math.exp(3 - taste)) / (1 + math.exp(4 - taste)))
    assert frame.filter(click=0)["buy"].sum() == 0
    rows = frame["u"].to_numpy() - 1, frame["i"].to_numpy()
    for name, truth in [("click", click), ("buy", buy)]:
        share = truth.numpy()[rows]
        error = math.sqrt((share * (1 - share)).sum())
        assert abs(frame[name].sum() - share.sum()) < 5 * error
    # p(item | user, click) is what the clicks alone look like
    clicks = frame.filter(click=1)
    counts = np.zeros((3, 7))
    np.add.at(counts, (clicks["u"].to_numpy() - 1, clicks["i"].to_numpy()), 1)
    given = world.probabilities([1, 2, 3], given="click").numpy()
    check_counts(counts, counts.sum(1, keepdims=True) * given)


def test_the_next_topic_follows_on_the_last_as_stated() -> None:
    schema = tt.Schema([
        id_column("u", Tags.USER_ID, 1),
        id_column("i", Tags.ITEM_ID, 4),
        tt.create_categorical_column("before", 4, domain_name="i", tags=[Tags.USER], max_value_count=3),
    ])  # fmt: skip
    world = tt.generate_world(schema, 12_000, seed=1)
    frame = world.sets[0].to_polars()
    # a slow loop makes the histories again
    past: dict[int, list[int]] = {0: [], 1: []}
    counts = np.zeros((2, 5, 5))
    for user, item, before in frame.select("u", "i", "before").iter_rows():
        assert before == past[user][-3:]
        if past[user]:
            counts[user, past[user][-1], item] += 1
        past[user].append(item)
    for user in (0, 1):
        truth = world.probabilities([user] * 5, last=range(5))
        assert truth[2].tolist() == pytest.approx(by_hand(world, user, last=2))
        check_counts(counts[user], counts[user].sum(1, keepdims=True) * truth.numpy())
    assert world.probabilities([0], last=[-1])[0].tolist() == pytest.approx(by_hand(world, 0))


def test_cold_items_come_only_in_the_last_set() -> None:
    world = tt.generate_world("testing", 20_000, (0.4, 0.3, 0.3), cold_items=0.2, seed=2)
    cold = set(np.flatnonzero(world.laws.cold).tolist())
    assert len(cold) == 20
    seen = [set(part.to_polars()["item_id"]) for part in world.sets]
    assert not seen[0] & cold
    assert not seen[1] & cold
    assert len(seen[2] & cold) > 10
    assert float(world.probabilities([5], cold=False)[0, list(cold)].sum()) == 0
    assert float(world.probabilities([5])[0, list(cold)].min()) > 0


def test_sets_follow_each_other_in_time() -> None:
    world = tt.generate_world("testing", 1001, (0.5, 0.25, 0.25))
    assert [len(part) for part in world.sets] == [500, 251, 250]
    times = [part.to_polars()["timestamp"] for part in world.sets]
    assert (pl.concat(times).diff().drop_nulls() > 0).all()
    assert "timestamp" not in world.schema
    schema = tiny() + tt.Schema([tt.ColumnSchema("when", [Tags.TIME], "int64")])
    assert (tt.generate_world(schema, 50).sets[0].to_polars()["when"].diff().drop_nulls() > 0).all()


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_keeps_its_schema(name: str) -> None:
    world = tt.generate_world(name, 500, (0.8, 0.2))
    for part in [*world.sets, world.users, world.items]:
        part.batch()  # checks domains, nulls, nan
    assert world.sets[0].schema == world.schema
    assert len(world.users) == world.schema["user_id"].cardinality
    # a feature of a user or an item is what the catalogue says, whenever the id comes
    events = world.sets[0].to_polars()
    for side, key in [(world.users, "user_id"), (world.items, "item_id")]:
        joined = events.select(key).join(side.to_polars(), on=key, how="left", maintain_order="left")
        assert joined.equals(events.select(joined.columns))
    for column in world.schema.select_by_tag([Tags.USER, Tags.ITEM]):
        if column.is_list and column.name != "history":
            lengths = (world.users if Tags.USER in column.tags else world.items).to_polars()[column.name].list.len()
            assert (lengths.min(), lengths.max()) == (column.value_count.min, column.value_count.max)  # type: ignore[union-attr]


def test_features_tell_of_the_topic() -> None:
    world = tt.generate_world("e-commerce", 100)
    items = world.items.to_polars()
    # Cramer's V of category and topic; chance alone gives about sqrt(29 / 1001) = 0.17
    table = np.zeros((30, world.laws.taste.shape[1]))
    np.add.at(table, (items["item_category"].to_numpy(), world.laws.topic), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    v = math.sqrt(((table - expected) ** 2 / expected).sum() / table.sum() / 29)
    assert v > 0.35
    assert set(items["item_brand"]) == set(range(100))


def test_any_schema_will_do() -> None:
    schema = tiny(20, 30) + tt.Schema([
        tt.ColumnSchema("vector", [Tags.ITEM, Tags.EMBEDDING], "float32", dims=((0, None), (3, 3))),
        tt.create_categorical_column("pair", 5, "int32", tags=[Tags.ITEM], min_value_count=2, max_value_count=2),
        tt.ColumnSchema("height", [Tags.USER, Tags.CONTINUOUS], "float64", properties={"domain": {"min": 140, "max": 210}}),
        tt.ColumnSchema("hour", [Tags.CONTEXT, Tags.CATEGORICAL], "int64", properties={"domain": {"min": 0, "max": 23}}),
        tt.ColumnSchema("stars", [Tags.REGRESSION], "float32", properties={"domain": {"min": 1, "max": 5}}),
        tt.ColumnSchema("delight", [Tags.REGRESSION], "float32"),
    ])  # fmt: skip
    world = tt.generate_world(schema, 4000)
    batch = world.sets[0].batch()
    assert batch["vector"].shape == (4000, 3)
    assert batch["pair"].shape == (4000, 2)
    assert (batch["pair"][:, 0] <= 2).all()
    assert (batch["pair"][:, 1] >= 3).all()
    assert 140 < batch["height"].min() < batch["height"].max() < 210
    assert set(batch["hour"].tolist()) == set(range(24))
    assert set(batch["stars"].tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    taste = torch.from_numpy(world.laws.taste)[batch["u"] - 1, torch.from_numpy(world.laws.topic)[batch["i"]]]
    noise = batch["delight"] - taste
    assert abs(float(noise.mean())) < 5 * 0.5 / math.sqrt(4000)
    assert float(torch.corrcoef(torch.stack([batch["stars"], taste.float()]))[0, 1]) > 0.8


def test_one_seed_one_world() -> None:
    first, again = (tt.generate_world("testing", 300, (0.5, 0.5), seed=7) for _ in range(2))
    assert all(a.table.equals(b.table) for a, b in zip(first.sets, again.sets, strict=True))
    assert first.raw().items.equals(again.raw().items)
    other, longer = tt.generate_world("testing", 300, seed=8), tt.generate_world("testing", 900, seed=7)
    assert not other.items.table.equals(first.items.table)
    assert longer.items.table.equals(first.items.table)
    assert torch.equal(longer.probabilities([1, 9]), first.probabilities([1, 9]))
    data = tt.generate_data("testing", 300, (0.5, 0.5), seed=7)
    assert [part.table for part in data] == [part.table for part in first.sets]  # type: ignore[union-attr]
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    tt.generate_data("testing", 300)
    assert np.array_equal(state[0], np.random.get_state()[1])
    assert torch.equal(state[1], torch.get_rng_state())


def test_best_is_the_recall_of_the_true_ranking() -> None:
    """Against a slow loop over users."""
    world = tt.generate_world("testing", 3000, (0.7, 0.3), seed=5)
    train, test = (part.to_polars() for part in world.sets)
    recalls = {False: [], True: []}  # type: dict[bool, list[float]]
    for user in test["user_id"].unique().sort().to_list():
        order = sorted(range(100), key=np.negative(by_hand(world, user)).tolist().__getitem__)
        assert world.ranking([user], 5)[0].tolist() == order[:5]
        wanted, known = (set(frame.filter(user_id=user)["item_id"]) for frame in (test, train))
        recalls[False].append(len(wanted & set(order[:5])) / min(5, len(wanted)))
        fresh = wanted - known
        if fresh:
            top = [item for item in order if item not in known][:5]
            recalls[True].append(len(fresh & set(top)) / min(5, len(fresh)))
    assert world.best(world.sets[1], "recall_at_5")["recall_at_5"] == pytest.approx(np.mean(recalls[False]))
    with pytest.warns(UserWarning, match="were seen before"):
        found = world.best(world.sets[1], "recall_at_5", seen=world.sets[0])
    assert found["recall_at_5"] == pytest.approx(np.mean(recalls[True]))


def fitted(world: tt.World, query: tt.Encoder, candidate: tt.Encoder, train: tt.Dataset) -> tt.TwoTowerModelV2:
    model = tt.TwoTowerModelV2(query, candidate)
    model.compile(learning_rate=0.02)
    model.fit(train, batch_size=500, epochs=5, catalog=world.items, health_steps=0, verbose=False)
    return model


def test_a_model_comes_near_the_best_and_leaves_popularity_behind() -> None:
    world = tt.generate_world("testing", 15_000, (0.9, 0.1))
    train, test = world.sets
    best = world.best(test)["recall_at_10"]
    popular = Popularity(train, "user_id", "item_id", world.items).evaluate(test, metrics="recall_at_10")
    recall = fitted(world, *towers(train), train).evaluate(test, metrics="recall_at_10")["recall_at_10"]
    assert 0.9 * best < recall <= best + 0.02  # luck may lift a model over the best by a hair on one test set
    assert popular["recall_at_10"] < 0.8 * recall


def test_the_last_item_tells_more_than_the_bag_of_all() -> None:
    world = tt.generate_world("sequence-testing", 20_000, (0.9, 0.1))
    train, test = world.sets
    side = world.schema.select_by_tag(Tags.USER)
    _, candidate = towers(train)
    bag = fitted(world, tt.Encoder(side, tt.MLPBlock([32, 16], no_activation_last_layer=True)), candidate, train)
    cut = [tt.Dataset(p.to_polars().with_columns(pl.col("history").list.tail(1)), world.schema) for p in (train, test)]
    _, candidate = towers(train)
    last = fitted(world, tt.Encoder(side, tt.MLPBlock([32, 16], no_activation_last_layer=True)), candidate, cut[0])
    best = world.best(test, "ndcg_at_10")["ndcg_at_10"]
    of_bag, of_last = (m.evaluate(d, metrics="ndcg_at_10")["ndcg_at_10"] for m, d in [(bag, test), (last, cut[1])])
    assert of_bag + 0.03 < of_last <= best + 0.02


def test_raw_tables_are_the_same_world() -> None:
    world = tt.generate_world("e-commerce", 3000, (0.8, 0.2), cold_items=0.05)
    raw = world.raw(nulls=0.1)
    assert [len(events) for events in raw.events] == [2400, 600]
    assert raw.events[0].columns == ["user_id", "item_id", "timestamp", "click", "conversion"]
    ids = raw.events[1]["item_id"].str.strip_prefix("i").cast(pl.Int64)
    assert ids.to_list() == world.sets[1].to_polars()["item_id"].to_list()
    # one word for each category; a tenth of the rows has none: 1001 draws, five standard errors
    category, coded = raw.items["item_category"], world.items.to_polars()["item_category"]
    assert (
        pl.DataFrame([category, coded.alias("c")]).drop_nulls().unique().shape[0]
        == category.drop_nulls().n_unique()
        == 30
    )
    assert abs(category.null_count() - 100.1) < 5 * math.sqrt(1001 * 0.1 * 0.9)
    assert (raw.items["item_price"] > 0).all()
    assert raw.users["user_income"].to_list() == pytest.approx(
        (20 * world.users.to_polars()["user_income"].exp()).to_list(), abs=0.01
    )
    # the first word of a title names the topic
    words = raw.items["title"].str.split(" ").list.first()
    topics = pl.DataFrame({"w": words, "t": world.laws.topic}).drop_nulls().unique()
    assert topics["w"].is_unique().all()
    kinds = {
        "item_category": tt.Categorical(Tags.ITEM),
        "item_price": tt.Numeric(Tags.ITEM),
        "title": tt.Text(Tags.ITEM),
    }
    preprocessor = tt.Preprocessor({"item_id": tt.Categorical(Tags.ITEM_ID)} | kinds)
    encoded = preprocessor.fit(raw.items).transform(raw.items)
    assert len(encoded.batch()["title"].to_lists()[0]) >= 3 or raw.items["title"][0] is None  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"share of nulls of at least 0 and below 1, got 1\.5"):
        world.raw(nulls=1.5)


FIXED_HISTORY = tt.ColumnSchema("h", [Tags.ITEM_ID], "int64", is_list=True, is_ragged=False)
NO_DOMAIN = tt.ColumnSchema("u", [Tags.USER_ID])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "ecommerce"}, r"unknown world 'ecommerce': choose from 'e-commerce', .*Did you mean 'e-commerce'\?"),
        ({"input": tt.Schema([id_column("i", Tags.ITEM_ID, 4)])}, "one column tagged 'user_id', found \\[\\] among \\['i'\\]"),
        ({"input": tiny() + tt.Schema([tt.ColumnSchema("f", [Tags.ITEM], "int64")])}, "column 'f' .int64. cannot be made up"),
        ({"input": tiny() + tt.Schema([FIXED_HISTORY])}, "empty before a user's first"),
        ({"input": tt.Schema([NO_DOMAIN, id_column("i", Tags.ITEM_ID, 4)])}, "'u' needs an integer domain"),
        ({"num_rows": 0}, "at least 1, got 0"),
        ({"set_sizes": (0.5, 0.6)}, r"sum to 1, such as .*got \(0\.5, 0\.6\)"),
        ({"num_rows": 3, "set_sizes": (0.9, 0.1)}, r"leaves a set empty.*\[3, 0\]"),
        ({"cold_items": 0.1}, "with two set_sizes or more, got 1"),
        ({"taste": -1.0}, "taste must be a number of at least 0, got -1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_said(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tt.generate_world(**{"input": "testing", "num_rows": 100} | change)  # type: ignore[arg-type]


def test_what_is_not_of_this_world_is_said() -> None:
    world = tt.generate_world(tiny(), 20)
    with pytest.raises(ValueError, match=r"ids of 'u' go from 1 to 3 in this world, got \[0, 4\]"):
        world.probabilities([0, 2, 4])
    with pytest.raises(ValueError, match="'i' is no binary target of this world: expected one of .'click', 'buy'."):
        world.target_probabilities([1], "i")
    with pytest.raises(ValueError, match="1 <= k <= 7 items, got 8"):
        world.ranking([1], k=8)
    with pytest.raises(ValueError, match="integers .B,., got torch.float32"):
        world.probabilities(torch.tensor([0.5]))
