"""What can go wrong before training fails at once, by name, with the choices."""

import pytest
import torch

import twotower as tt
from tests.worlds import clubs, id_column, towers
from twotower import Tags

DATA = clubs(rows=200)
USER, ITEM = DATA.schema.select_by_tag(Tags.USER), DATA.schema.select_by_tag(Tags.ITEM)


def test_towers_of_different_widths() -> None:
    with pytest.raises(
        ValueError,
        match=r"query tower \(user_id, user_height\) gives 8 and the candidate tower \(item_id, item_club\) gives 6",
    ):
        tt.TwoTowerModelV2(tt.Encoder(USER, tt.MLPBlock([8])), tt.Encoder(ITEM, tt.MLPBlock([6])))


def test_unknown_options_list_the_choices() -> None:
    query, candidate = towers(DATA)
    with pytest.raises(
        TypeError, match=r"TwoTowerModelV2: unknown option 'temperature': choose from .*'logits_temperature'"
    ):
        tt.TwoTowerModelV2(query, candidate, temperature=0.1)  # type: ignore[call-arg]
    model = tt.TwoTowerModelV2(query, candidate)
    with pytest.raises(TypeError, match=r"RetrievalModelV2.fit: unknown option 'epoch'.*Did you mean 'epochs'"):
        model.fit(DATA, epoch=3)
    with pytest.raises(
        TypeError,
        match=r"RetrievalModelV2.compile: unknown option 'fullgraph'.*'optimizer'.*use torch.compile\(model\)",
    ):
        model.compile(fullgraph=True)  # PyTorch's own option
    with pytest.raises(ValueError, match="unknown optimizer 'adamm'.*Did you mean 'adam'"):
        model.compile(optimizer="adamm")
    with pytest.raises(ValueError, match="unknown loss for contrastive_output 'mse'"):
        model.compile(loss="mse")
    with pytest.raises(ValueError, match="unknown output 'click'"):
        model.compile(loss={"click": "mse"})
    with pytest.raises(ValueError, match="unknown output 'x': choose from 'contrastive_output'"):
        model.compile(loss_weights={"x": 1.0})
    with pytest.raises(ValueError, match="unknown metric 'recal'"):
        model.compile(metrics=["recal"])
    with pytest.raises(ValueError, match="learning_rate=0.1 needs an optimizer by name"):
        model.compile(optimizer=torch.optim.SGD, learning_rate=0.1)
    with pytest.raises(ValueError, match="unknown option of Lightning's Trainer 'presicion'.*Did you mean 'precision'"):
        model.fit(DATA, batch_size=50, trainer_options={"presicion": "bf16-mixed"})
    with pytest.raises(ValueError, match="'callbacks' is set by fit's own arguments"):
        model.fit(DATA, batch_size=50, trainer_options={"callbacks": []})


def test_outputs_and_the_options_of_the_default_output_conflict() -> None:
    query, candidate = towers(DATA)
    output = tt.ContrastiveOutput(tt.DotProduct(), schema=ITEM)
    with pytest.raises(
        ValueError, match="outputs= brings its own settings, so logits_temperature, negative_samplers would be ignored"
    ):
        tt.TwoTowerModelV2(query, candidate, outputs=output, logits_temperature=0.1, negative_samplers=["in-batch"])
    with pytest.raises(ValueError, match="at least one output, and each a name of its own; got"):
        tt.TwoTowerModelV2(query, candidate, outputs=[output, tt.ContrastiveOutput(tt.DotProduct(), schema=ITEM)])
    with pytest.raises(ValueError, match="at least one output"):
        tt.TwoTowerModelV2(query, candidate, outputs=[])
    several = tt.TwoTowerModelV2(query, candidate, outputs=[tt.BinaryOutput("like"), tt.RegressionOutput("stars")])
    with pytest.raises(ValueError, match="several outputs; give loss as a dict"):
        several.compile(loss="bce")


def test_wrong_towers_and_ids() -> None:
    query, _ = towers(DATA)
    with pytest.raises(TypeError, match="candidate_tower must be an Encoder, got Linear"):
        tt.TwoTowerModelV2(query, torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    content = tt.Encoder(ITEM[["item_club"]], tt.MLPBlock([16]))
    two = tt.Encoder(DATA.schema[["item_club", "user_height"]], tt.MLPBlock([16]))
    with pytest.raises(
        ValueError,
        match=r"no single column is tagged 'item_id': the candidate tower reads \['item_club', 'user_height'\]",
    ):
        tt.TwoTowerModelV2(query, two)
    assert tt.TwoTowerModelV2(query, content, schema=ITEM).candidate_id.name == "item_id"
    with pytest.raises(
        ValueError, match="a model without a candidate tower needs an output on the candidate id column"
    ):
        tt.RetrievalModelV2(query=query, output=tt.BinaryOutput("like"))
    made = tt.RetrievalModelV2(query=query, output=tt.ContrastiveOutput(ITEM["item_id"]))
    assert isinstance(made.candidate, tt.EmbeddingEncoder)
    assert made.candidate.dim == query.dim


def test_fit_errors() -> None:
    model = tt.TwoTowerModelV2(*towers(DATA))
    with pytest.raises(ValueError, match="fit needs a batch_size"):
        model.fit(DATA)
    short = DATA.select(["user_id", "item_id", "item_club"])
    with pytest.raises(ValueError, match="the data lacks a column. unknown column 'user_height'"):
        model.fit(short, batch_size=10, verbose=False)
    with pytest.raises(ValueError, match="evaluate ranks all candidates, but the model knows no catalogue yet"):
        model.evaluate(DATA)
    with pytest.raises(ValueError, match="frequencies are not known yet"):
        model.loss(DATA.batch())
    popular = tt.PopularityBasedSamplerV2(max_id=39)
    with pytest.raises(ValueError, match="a sampler that draws candidates by id needs their features"):
        tt.TwoTowerModelV2(*towers(DATA), negative_samplers=popular).loss(DATA.batch())


def test_a_content_tower_with_huge_raw_ids_trains() -> None:
    """An id that no table holds still tells candidates apart: it is masked, counted and returned as it is."""
    item = id_column("item_id", Tags.ITEM_ID, 1)
    raw = tt.ColumnSchema("raw", tags=[Tags.ITEM_ID], dtype="int64")
    frame = DATA.to_polars().with_columns(raw=DATA.to_polars()["item_id"] + 3_000_000_000)
    schema = DATA.schema.excluding_by_name(["item_id"]) + tt.Schema([raw])
    data = tt.Dataset(frame.drop("item_id"), schema)
    candidate = tt.Encoder(schema[["item_club"]], tt.MLPBlock([16]))
    model = tt.TwoTowerModelV2(towers(DATA)[0], candidate, schema=schema)
    model.fit(data, epochs=1, batch_size=50, verbose=False)
    assert model.catalog.ids.min().item() >= 3_000_000_000
    top = model.to_top_k_encoder(k=3).predict(data)
    assert (top.ids >= 3_000_000_000).all()
    assert item.name == "item_id"


def test_predict_gives_one_score_a_row() -> None:
    model = tt.TwoTowerModelV2(*towers(DATA)).adapt(DATA)
    scores = model.predict(DATA, batch_size=64)
    assert scores.shape == (200, 1)
    model.eval()
    batch = DATA.batch()
    with torch.no_grad():
        by_hand = (model.query(batch) * model.candidate(batch)).sum(1)
        assert model(batch).shape == (200, 1)
    torch.testing.assert_close(scores[:, 0], by_hand)
    frame = model.batch_predict(DATA, columns=["user_id"])
    assert frame.column_names == ["user_id", "contrastive_output"]
    torch.testing.assert_close(frame.batch()["contrastive_output"], by_hand)


def test_embeddings_of_queries_and_candidates() -> None:
    model = tt.TwoTowerModelV2(*towers(DATA, width=8)).adapt(DATA)
    queries = model.query_embeddings(DATA)
    assert (queries.num_rows, queries.column_names) == (200, ["user_id", *map(str, range(8))])
    candidates = model.candidate_embeddings()
    assert candidates.to_polars()["item_id"].to_list() == sorted(DATA.to_polars()["item_id"].unique())
    assert model.candidate_embeddings(DATA, index=Tags.ITEM_ID).num_rows == 200


def test_a_model_can_be_copied() -> None:
    import copy

    model = tt.TwoTowerModelV2(*towers(DATA)).adapt(DATA)
    torch.testing.assert_close(copy.deepcopy(model).predict(DATA), model.predict(DATA))


def test_repr_does_not_print_weights() -> None:
    assert len(repr(tt.TwoTowerModelV2(*towers(DATA)))) < 3000


def test_tables_are_read_with_the_models_own_schema() -> None:
    """Encoded tables need no Dataset around them: the towers know how to read their columns."""
    frame = DATA.to_polars()
    model = tt.TwoTowerModelV2(*towers(DATA))
    model.fit(frame, batch_size=50, verbose=False)
    torch.testing.assert_close(model.predict(frame), model.predict(DATA))
    assert model.evaluate(frame, metrics="recall_at_5") == model.evaluate(DATA, metrics=["recall_at_5"])
    with pytest.raises(ValueError, match="no Parquet file at 'train'"):
        model.fit("train", batch_size=50)
    with pytest.raises(ValueError, match="epochs and steps_per_epoch must be at least 1, got 0 and None"):
        model.fit(frame, batch_size=50, epochs=0)
    with pytest.raises(ValueError, match="give at least one metric"):
        model.evaluate(frame, metrics=[])
    with pytest.raises(ValueError, match=r"the data lacks the index column. unknown column 'usr'"):
        model.query_embeddings(DATA, index="usr")
