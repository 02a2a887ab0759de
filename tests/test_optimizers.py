"""Row optimisers against PyTorch's dense ones and against slow loops."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

import twotower as tt
from tests.worlds import clubs, id_column, towers
from twotower import Tags
from twotower.optimizers import (
    TABLE_OPTIMIZERS,
    LazyAdam,
    RowAdagrad,
    RowAdam,
    RowSGD,
    RowwiseAdagrad,
    SplitOptimizer,
    clip_gradients,
    gradient_norm,
    make_optimizer,
)

ROWS, DIM, STEPS = 12, 3, 6


def batches(every_row: bool = False) -> list[Tensor]:
    """Ids with repeats; or all ids in every batch."""
    g = torch.Generator().manual_seed(4)
    drawn = [torch.randint(ROWS, (8,), generator=g) for _ in range(STEPS)]
    return [torch.cat([ids, torch.arange(ROWS)]) for ids in drawn] if every_row else drawn


def trained(make: object, sparse: bool, ids_of_steps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The table after some steps on a fixed target, and the dense gradient of each step."""
    table = tt.EmbeddingTable(DIM, id_column("x", Tags.ITEM_ID, ROWS - 1))
    with torch.no_grad():
        table.weight.copy_(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1)))
    table.row_gradients = sparse
    optimizer = make([table.weight])  # type: ignore[operator]
    gradients = []
    for ids in ids_of_steps:
        optimizer.zero_grad()
        (table(ids) - 1).square().sum().backward()
        assert table.weight.grad is not None
        assert table.weight.grad.is_sparse == sparse
        gradients.append(table.weight.grad.to_dense().clone())
        optimizer.step()
    return table.weight.detach(), gradients


@pytest.mark.parametrize(
    ("rows", "dense", "every_row"),
    [
        (lambda p: RowAdagrad(p, lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1), False),
        (lambda p: RowSGD(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1), False),
        (lambda p: LazyAdam(p, lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1), True),
        (lambda p: RowAdam(p, lr=0.1, beta2=0.9), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9)), False),
    ],
)
def test_row_optimizers_are_pytorchs_where_untouched_rows_stand_still_anyway(
    rows: object, dense: object, every_row: bool
) -> None:
    ids = batches(every_row)
    got, sparse_gradients = trained(rows, True, ids)
    expected, dense_gradients = trained(dense, False, ids)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sparse_gradients, dense_gradients, rtol=1e-5, atol=1e-6)


def test_rows_of_adam_go_over_to_row_adam() -> None:
    """A table that has grown large: its first steps are the dense optimiser's, and the same second moments go on."""
    weight = nn.Parameter(torch.ones(ROWS, DIM))
    expected = nn.Parameter(torch.ones(ROWS, DIM))
    first, whole = (torch.optim.Adam([w], lr=0.1, betas=(0.0, 0.9)) for w in (weight, expected))
    gradients = [torch.zeros(ROWS, DIM).index_fill_(0, ids.unique(), 1.0 + n) for n, ids in enumerate(batches())]
    for gradient in gradients[:3]:
        weight.grad = gradient.clone()
        first.step()
    then = RowAdam([weight], lr=0.1, beta2=0.9)
    state = first.state[weight]
    then.state[weight] = {**state, "step": int(state["step"])}
    for gradient in gradients[3:]:
        weight.grad = gradient.to_sparse(1)
        then.step()
    for gradient in gradients:
        expected.grad = gradient
        whole.step()
    torch.testing.assert_close(weight, expected)
    assert then.state[weight].keys() == {"step", "exp_avg_sq", "seen"}  # no momentum is kept


def test_the_state_of_another_optimizer_is_refused_in_words() -> None:
    weight, other = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(3))
    saved = SplitOptimizer([torch.optim.Adam([other]), LazyAdam([weight])]).state_dict()
    for optimizer in (SplitOptimizer([torch.optim.Adam([other]), RowAdam([weight])]), RowAdam([weight])):
        state = saved if isinstance(optimizer, SplitOptimizer) else LazyAdam([weight]).state_dict()
        with pytest.raises(
            ValueError, match=r"of another optimizer: its options .* lack \['beta2'\].*table_optimizer='lazy_adam'"
        ):
            optimizer.load_state_dict(state)


def test_a_fit_does_not_go_on_from_another_optimizers_state() -> None:
    data = clubs(rows=200)
    old, new = (tt.TwoTowerModelV2(*towers(data)) for _ in range(2))
    old.compile(table_optimizer="lazy_adam")
    old.fit(data, batch_size=100, verbose=False)
    new.compile(table_optimizer="row_adam")
    new.optimizer_state = old.optimizer_state
    with pytest.raises(ValueError, match="the optimizer's state is of another optimizer"):
        new.fit(data, batch_size=100, verbose=False)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_scaled_gradients_are_clipped_unscaled(name: str) -> None:
    """Lightning unscales for all optimisers but those that say that they do it themselves, whose gradients it would not clip."""
    weights = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        layer = nn.Linear(4, 2)
        optimizer, scaler = make_optimizer(layer, name, 0.1), torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(layer(torch.ones(3, 4)).square().sum()).backward()
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        clip_gradients(layer.parameters(), 1e-6, "norm")  # so small that epsilon counts
        scaler.step(optimizer)
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=0)


def test_lazy_adam_by_a_slow_loop() -> None:
    got, gradients = trained(lambda p: LazyAdam(p, lr=0.1), True, batches())
    weight = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1)).tolist()
    m, v = [[0.0] * DIM for _ in range(ROWS)], [[0.0] * DIM for _ in range(ROWS)]
    for t, (ids, gradient) in enumerate(zip(batches(), gradients, strict=True), start=1):
        for row in set(ids.tolist()):
            for d in range(DIM):
                g = gradient[row, d].item()
                m[row][d] = 0.9 * m[row][d] + 0.1 * g
                v[row][d] = 0.999 * v[row][d] + 0.001 * g * g
                step = (m[row][d] / (1 - 0.9**t)) / (math.sqrt(v[row][d] / (1 - 0.999**t)) + 1e-8)
                weight[row][d] -= 0.1 * step
    torch.testing.assert_close(got, torch.tensor(weight), rtol=1e-4, atol=1e-5)


def test_rowwise_adagrad_by_a_slow_loop() -> None:
    got, gradients = trained(lambda p: RowwiseAdagrad(p, lr=0.1), True, batches())
    weight = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1)).tolist()
    total = [0.0] * ROWS
    for ids, gradient in zip(batches(), gradients, strict=True):
        for row in set(ids.tolist()):
            g = gradient[row].tolist()
            total[row] += sum(x * x for x in g) / DIM
            for d in range(DIM):
                weight[row][d] -= 0.1 * g[d] / (math.sqrt(total[row]) + 1e-8)
    torch.testing.assert_close(got, torch.tensor(weight), rtol=1e-5, atol=1e-6)


def test_rows_that_were_not_looked_up_keep_their_bits() -> None:
    ids = [torch.tensor([1, 1, 4])] * STEPS
    for made in TABLE_OPTIMIZERS.values():
        if made is None:
            continue
        after, _ = trained(lambda p, kind=made[0]: kind(p, lr=0.1), True, ids)
        before = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
        changed = (after != before).any(1).nonzero().flatten().tolist()
        assert changed == [1, 4]


def test_one_optimizer_over_two_is_both_and_resumes() -> None:
    """Dense and row parts step together, schedulers reach both, and the state goes through state_dict."""

    def make(a: nn.Parameter, b: nn.Parameter) -> SplitOptimizer:
        return SplitOptimizer([torch.optim.Adam([a], lr=0.1), LazyAdam([b], lr=0.1)])

    def run(optimizer: SplitOptimizer, a: nn.Parameter, b: nn.Parameter, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (a.square().sum() + b.square().sum()).backward()
            optimizer.step()

    start = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = make(a, b)
    run(optimizer, a, b, 3)
    torch.testing.assert_close(a, b)  # the same loss, and LazyAdam with all rows is Adam
    c, d = nn.Parameter(a.detach().clone()), nn.Parameter(b.detach().clone())
    resumed = make(c, d)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, a, b, 2)
    run(resumed, c, d, 2)
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    schedule = torch.optim.lr_scheduler.StepLR(resumed, step_size=1, gamma=0.0)
    run(resumed, c, d, 1)
    schedule.step()
    before = c.detach().clone(), d.detach().clone()
    run(resumed, c, d, 1)
    assert torch.equal(before[0], c)
    assert torch.equal(before[1], d)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_counts_sparse_rows_as_dense_ones(algorithm: str) -> None:
    ids = torch.tensor([1, 1, 4])
    results = []
    for sparse in (True, False):
        table = tt.EmbeddingTable(DIM, id_column("x", Tags.ITEM_ID, ROWS - 1), embeddings_initializer="ones")
        table.row_gradients = sparse
        other = nn.Parameter(torch.ones(2))
        for _ in range(2):  # accumulated over two batches: the sparse gradient comes in two pieces
            (table(ids).square().sum() + other.sum()).backward()
        norm = clip_gradients([table.weight, other], 0.5, algorithm)
        assert table.weight.grad is not None
        assert other.grad is not None
        results.append((norm, table.weight.grad.to_dense(), other.grad))
        clipped = gradient_norm([table.weight.grad, other.grad])
        assert algorithm == "value" or clipped == pytest.approx(0.5, rel=1e-4)
    by_hand = math.sqrt(3 * (2 * 2 * 2) ** 2 + 3 * (2 * 2) ** 2 + 2 * 2**2)  # 2 x, twice for id 1, over two batches
    assert results[0][0] == pytest.approx(results[1][0]) == pytest.approx(by_hand)
    torch.testing.assert_close(results[0][1:], results[1][1:])


@pytest.mark.parametrize("name", ["adagrad", "sgd"])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.05}])
def test_fit_with_rows_is_fit_with_dense_tables(name: str, options: dict[str, object]) -> None:
    """For optimisers that leave untouched rows alone, also with accumulation and with clipping."""
    data = clubs(rows=800)
    weights = []
    for table_optimizer in (name, "dense"):
        torch.manual_seed(3)
        model = tt.TwoTowerModelV2(*towers(data), logits_temperature=0.3)
        model.compile(optimizer=name, learning_rate=0.1, table_optimizer=table_optimizer)
        model.fit(data, batch_size=100, epochs=2, verbose=False, trainer_options=options)
        weights.append(model.state_dict())
    for key, value in weights[0].items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-5)


def test_large_tables_are_updated_by_rows_and_small_ones_densely() -> None:
    small, large = (tt.EmbeddingTable(2, id_column(n, Tags.ITEM_ID, last)) for n, last in (("s", 99), ("l", 9_999)))
    both = nn.ModuleList([small, large])
    optimizer = make_optimizer(both, "adam")
    assert isinstance(optimizer, SplitOptimizer)
    assert [type(part) for part in optimizer.parts] == [torch.optim.Adam, RowAdam]
    assert [small.row_gradients, large.row_gradients] == [False, True]
    assert isinstance(make_optimizer(both, "adam", table_optimizer="rowwise_adagrad"), RowwiseAdagrad)
    assert small.row_gradients
    assert isinstance(make_optimizer(both, "adamw"), torch.optim.AdamW)
    assert isinstance(make_optimizer(both, lambda p: torch.optim.RMSprop(p)), torch.optim.RMSprop)
    assert not large.row_gradients
    rates = make_optimizer(both, "sgd", 0.5, "rowwise_adagrad", 0.25).param_groups
    assert [group["lr"] for group in rates] == [0.25]


def test_after_fit_the_tables_take_any_optimizer_again() -> None:
    data = clubs(rows=200)
    model = tt.TwoTowerModelV2(*towers(data))
    model.compile(table_optimizer="rowwise_adagrad", table_learning_rate=0.1)
    model.fit(data, batch_size=100, verbose=False)
    model.loss(tt.sample_batch(data, 50)).backward()
    torch.optim.Adam(model.parameters()).step()
    with pytest.raises(ValueError, match="unknown table_optimizer 'lazyadam'.*Did you mean 'lazy_adam'"):
        model.compile(table_optimizer="lazyadam")
    with pytest.raises(ValueError, match="table_learning_rate=0.1 needs a table_optimizer"):
        model.compile(table_learning_rate=0.1)


def test_tied_tables_are_updated_once() -> None:
    column = id_column("x", Tags.ITEM_ID, ROWS - 1)
    one, other = (tt.EmbeddingTable(DIM, column, embeddings_initializer="zeros") for _ in range(2))
    other.weight = one.weight
    optimizer = make_optimizer(nn.ModuleList([one, other]), "sgd", 0.1, table_optimizer="sgd")
    one(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert one.weight[1].tolist() == pytest.approx([-0.1] * DIM)


def test_split_optimizers_can_be_copied_and_refuse_what_would_never_step() -> None:
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = SplitOptimizer([torch.optim.SGD([a], lr=0.1), RowSGD([b], lr=0.1)])
    twin = copy.deepcopy(optimizer)
    [theirs, rows] = [group["params"][0] for group in twin.param_groups]
    (theirs.sum() + rows.sum()).backward()
    twin.step()
    assert theirs.tolist() == rows.tolist() == [[pytest.approx(0.9)] * 2] * 2
    assert a.tolist() == b.tolist() == [[1.0, 1.0]] * 2
    with pytest.raises(ValueError, match="takes no more parameter groups"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


class Rates(Callback):
    """The learning rate of each part at each step, as a multiple of the one chosen."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        [optimizer] = trainer.optimizers
        self.seen.append([round(part.param_groups[0]["lr"] / 0.02, 6) for part in optimizer.parts])


COURSES = {
    ("linear", 0.0): [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
    ("linear", 0.2): [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    ("cosine", 0.0): [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)],
    ("constant", 0.4): [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize(("schedule", "warmup"), COURSES)
def test_a_schedule_is_of_tables_and_the_rest_alike(schedule: str, warmup: float) -> None:
    """Two epochs of five steps, each of two batches that are accumulated; and again in a second fit."""
    data = clubs(rows=100)
    model = tt.TwoTowerModelV2(*towers(data))
    model.compile(learning_rate=0.02, table_optimizer="lazy_adam", schedule=schedule, warmup=warmup)
    for _ in range(2):
        rates = Rates()
        options = {"callbacks": rates, "trainer_options": {"accumulate_grad_batches": 2}, "verbose": False}
        model.fit(data, batch_size=10, epochs=2, health_steps=0, **options)
        assert (
            rates.seen[::2]
            == rates.seen[1::2]
            == [[pytest.approx(rate, abs=1e-6)] * 2 for rate in COURSES[schedule, warmup]]
        )


def test_a_schedule_changes_what_is_learnt_as_its_rates_say() -> None:
    """Plain SGD at the rates of a course by hand: the same weights, of the tables and of the layers."""
    data, made = clubs(rows=50), []
    for schedule in ("linear", "constant"):
        torch.manual_seed(0)
        model = tt.TwoTowerModelV2(*towers(data))
        model.compile(optimizer="sgd", learning_rate=0.1, table_optimizer="sgd", schedule=schedule)
        if schedule == "linear":
            model.fit(data, batch_size=10, health_steps=0, verbose=False)
        else:
            model.adapt(data)  # by hand
            model.train()
            optimizer = model.compiled.make_optimizer(model)
            for step, batch in enumerate(tt.Loader(data, 10, schema=model.input_schema)):
                for group in optimizer.param_groups:
                    group["lr"] = 0.1 * (1 - step / 5)
                optimizer.zero_grad()
                model.loss(batch).backward()
                optimizer.step()
        made.append(model.state_dict())
    for name, value in made[0].items():
        torch.testing.assert_close(value, made[1][name], msg=name)


def test_a_schedule_is_saved_and_a_wrong_one_named(tmp_path: Path) -> None:
    model = tt.TwoTowerModelV2(*towers(clubs(rows=20)))
    model.compile(schedule="cosine", warmup=0.1)
    model.save(tmp_path / "model")
    again = tt.RetrievalModelV2.load(tmp_path / "model").compiled
    assert (again.schedule, again.warmup) == ("cosine", 0.1)
    with pytest.raises(ValueError, match="unknown schedule 'cosin'.*Did you mean 'cosine'"):
        model.compile(schedule="cosin")
    for warmup in (1.0, -0.1):
        with pytest.raises(ValueError, match=f"warmup={warmup}: expected a share of the fit's steps"):
            model.compile(warmup=warmup)
