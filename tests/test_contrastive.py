"""The contrastive loss against full softmax, and against loops over rows and candidates."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

import twotower as tt
from tests.worlds import clubs, id_column, towers
from twotower import Tags
from twotower.candidates import Candidates, Step

ITEMS, USERS, DIM, TEMPERATURE = 12, 5, 3, 0.7
SCHEMA = tt.Schema([id_column("item_id", Tags.ITEM_ID, ITEMS - 1)])


class World:
    """Vectors of all users and items, and a law of which user takes which item."""

    def __init__(self, seed: int = 0) -> None:
        self.g = torch.Generator().manual_seed(seed)
        self.users = torch.randn(USERS, DIM, generator=self.g, dtype=torch.float64).requires_grad_()
        self.items = torch.randn(ITEMS, DIM, generator=self.g, dtype=torch.float64).requires_grad_()
        self.law = torch.rand(USERS, ITEMS, generator=self.g, dtype=torch.float64) ** 3
        self.law /= self.law.sum()
        self.counts = (self.law.sum(0) * 1e6).round().long()  # of items; a pool drawn by them follows their shares

    def draw_rows(self, rows: int) -> tuple[Tensor, Tensor]:
        cell = torch.multinomial(self.law.flatten(), rows, replacement=True, generator=self.g)
        return cell // ITEMS, cell % ITEMS

    def step(self, user: Tensor, item: Tensor, **columns: Tensor | tt.Ragged) -> Step:
        """Distinct users and items once, as a model makes it."""
        users, user_row = user.unique(return_inverse=True)
        items, item_row, counts = item.unique(return_inverse=True, return_counts=True)
        batch = {"item_id": item, **columns}
        return Step(
            batch,
            self.users[users],
            Candidates(items, self.items[items], counts),
            self.encode,
            user_row,
            item_row,
            users,
        )

    def encode(self, ids: Tensor) -> Tensor:
        return self.items[ids]

    def gradients(self, loss: Tensor) -> Tensor:
        self.users.grad = self.items.grad = None
        loss.backward()
        return torch.cat([self.users.grad.flatten(), self.items.grad.flatten()])  # type: ignore[attr-defined]

    def full_softmax(self, user: Tensor, item: Tensor, weight: Tensor) -> Tensor:
        logits = self.users[user] @ self.items.T / TEMPERATURE
        return ((logits.logsumexp(1) - logits.gather(1, item[:, None])[:, 0]) * weight).sum() / weight.sum()


def output(samplers: object = "in-batch", **options: object) -> tt.ContrastiveOutput:
    return tt.ContrastiveOutput(
        tt.DotProduct(), samplers, schema=SCHEMA, logits_temperature=TEMPERATURE, sample_weight="weight", **options
    )


# ---- towards full softmax

CORRECTED = {"logq_sampling_correction": "corrected"}
UNMASKED = {"logq_sampling_correction": "logq", "downscore_false_negatives": False}
UNCORRECTED = {"logq_sampling_correction": False}


def distance(sampler: str, size: int, options: dict[str, object], world: World) -> float:
    """How far the gradient with a pool of about `size` is from that of full softmax, relative to it."""
    drawn = tt.PopularitySampler(size, unique=False, seed=size)
    samplers = {"drawn": drawn, "in-batch": "in-batch", "both": ["in-batch", drawn]}[sampler]
    user, item = world.draw_rows(40 if sampler == "drawn" else size)
    weight = torch.rand(len(user), generator=world.g, dtype=torch.float64)
    out = output(samplers, **options)
    out.adapt(torch.arange(ITEMS).repeat_interleave(world.counts), torch.arange(ITEMS))
    got = world.gradients(out(world.step(user, item, weight=weight)))
    full = world.gradients(world.full_softmax(user, item, weight))
    return float((got - full).norm() / full.norm())


@pytest.mark.parametrize("sampler", ["drawn", "in-batch", "both"])
@pytest.mark.parametrize("options", [CORRECTED, UNMASKED], ids=["corrected", "logq"])
def test_the_corrected_gradient_converges_to_full_softmax(sampler: str, options: dict[str, object]) -> None:
    """With weights, T != 1, repeated users and items: a pool of 400 times the size is about 20 times as close."""
    world = World()
    small = [distance(sampler, 100, options, world) for _ in range(20)]
    large = [distance(sampler, 40_000, options, world) for _ in range(3)]
    ratio = (sum(small) / 20) / (sum(large) / 3)
    assert max(large) < 0.03
    assert 8 < ratio < 60


@pytest.mark.parametrize("sampler", ["drawn", "in-batch", "both"])
def test_without_correction_it_converges_to_something_else(sampler: str) -> None:
    world = World()
    assert all(distance(sampler, 40_000, UNCORRECTED, world) > 0.1 for _ in range(3))


@pytest.mark.parametrize("samplers", ["catalog", tt.UniformSampler(ITEMS)])
def test_a_pool_of_the_whole_catalogue_is_full_softmax(samplers: object) -> None:
    world = World()
    user, item = world.draw_rows(30)
    weight = torch.rand(30, generator=world.g, dtype=torch.float64)
    out = output(samplers)
    out.adapt(torch.arange(ITEMS), torch.arange(ITEMS))
    torch.testing.assert_close(
        world.gradients(out(world.step(user, item, weight=weight))),
        world.gradients(world.full_softmax(user, item, weight)),
        rtol=1e-10, atol=1e-12,
    )  # fmt: skip


# ---- against loops

USER = torch.tensor([0, 0, 1, 2, 1, 3, 0])
ITEM = torch.tensor([4, 5, 5, 4, 6, 7, 4])
WEIGHT = torch.tensor([1.0, 2, 0.5, 1, 3, 0, 1], dtype=torch.float64)
COUNTED_ITEMS, COUNTED_USERS = Counter({4: 5, 5: 2, 6: 1, 7: 8}), Counter({0: 6, 1: 3, 2: 4, 3: 3})
ROWS = range(len(USER))


def log_share(counted: Counter[int], one: Tensor, rows: int) -> float:
    return math.log(rows * counted[int(one)] / counted.total())


def row_loss(positive: Tensor, negatives: list[Tensor]) -> Tensor:
    return torch.stack([positive, *negatives]).logsumexp(0) - positive


def by_loop(world: World, width: int, known: set[tuple[int, int]], own: list[list[int]]) -> Tensor:
    """In-batch softmax with logq on vectors cut to a width, row after row."""
    total = torch.zeros((), dtype=torch.float64)
    for i in ROWS:

        def score(item: int | Tensor, i: int = i) -> Tensor:
            return world.users[USER[i], :width] @ world.items[item, :width] / TEMPERATURE

        hidden = {int(ITEM[i])} | {item for row, item in known if row == i}
        negatives = [
            score(ITEM[j]) - log_share(COUNTED_ITEMS, ITEM[j], len(ROWS)) for j in ROWS if int(ITEM[j]) not in hidden
        ]
        negatives += [score(item) for item in own[i] if item not in hidden]
        total = total + WEIGHT[i] * row_loss(score(ITEM[i]) - log_share(COUNTED_ITEMS, ITEM[i], len(ROWS)), negatives)
    return total / WEIGHT.sum()


def turned_by_loop(world: World, correction: str | bool) -> Tensor:
    """For each row's item, its user against the batch's other users."""
    total = torch.zeros((), dtype=torch.float64)
    pairs = set(zip(USER.tolist(), ITEM.tolist(), strict=True))
    for i in ROWS:

        def score(j: int, rows: int, i: int = i) -> Tensor:
            raw = world.users[USER[j]] @ world.items[ITEM[i]] / TEMPERATURE
            return raw - (log_share(COUNTED_USERS, USER[j], rows) if rows else 0.0)

        in_pool = {"logq": len(ROWS), "corrected": len(ROWS) - 1, False: 0}[correction]
        of_positive = len(ROWS) if correction == "logq" else 0
        negatives = [score(j, in_pool) for j in ROWS if (int(USER[j]), int(ITEM[i])) not in pairs]
        total = total + WEIGHT[i] * row_loss(score(i, of_positive), negatives)
    return total / WEIGHT.sum()


def adapted(samplers: object = "in-batch", **options: object) -> tt.ContrastiveOutput:
    out = output(samplers, **options)
    out.adapt(
        torch.tensor(list(COUNTED_ITEMS.elements())), torch.arange(ITEMS), torch.tensor(list(COUNTED_USERS.elements()))
    )
    return out


def agree(world: World, got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(world.gradients(got), world.gradients(expected), rtol=1e-9, atol=1e-12)


NO_OWN: list[list[int]] = [[] for _ in ROWS]


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("correction", ["logq", "corrected", False])
def test_two_directions_by_loop(correction: str | bool, share: float) -> None:
    world = World()
    out = adapted(two_directional=share, logq_sampling_correction=correction)
    one_way = adapted(logq_sampling_correction=correction)
    step = world.step(USER, ITEM, weight=WEIGHT)
    expected = (1 - share) * one_way(step) + share * turned_by_loop(world, correction)
    agree(world, out(world.step(USER, ITEM, weight=WEIGHT)), expected)


def test_two_directions_need_to_know_the_queries() -> None:
    world = World()
    step = world.step(USER, ITEM, weight=WEIGHT)
    nameless = Step(step.batch, step.query, step.candidate, step.encode, step.query_row, step.candidate_row)
    with pytest.raises(ValueError, match="no column that tells them apart: tag one USER_ID"):
        adapted(two_directional=0.5)(nameless)
    with pytest.raises(ValueError, match="a share of the loss, 0 to 1; got 2"):
        adapted(two_directional=2)


def test_matryoshka_prefixes_by_loop() -> None:
    world = World()
    expected = torch.stack([by_loop(world, width, set(), NO_OWN) for width in (1, 2, DIM)]).mean()
    agree(world, adapted(prefixes=(1, 2))(world.step(USER, ITEM, weight=WEIGHT)), expected)


HISTORY = [[6, 6], [], [4, 11], [7], [], [4, 4, 5], [10]]
IN_BATCH_PAIRS = {(i, int(ITEM[j])) for i in ROWS for j in ROWS if USER[i] == USER[j]}
HISTORY_PAIRS = {(i, item) for i in ROWS for item in HISTORY[i]}
SHOWN = [[1, 4], [2], [4, 9], [], [1, 1, 2], [5], [10, 3]]


@pytest.mark.parametrize(
    ("sources", "known"),
    [
        ((), set()),
        ("in-batch", IN_BATCH_PAIRS),
        ("history", HISTORY_PAIRS),
        (("in-batch", "history"), IN_BATCH_PAIRS | HISTORY_PAIRS),
    ],
)
@pytest.mark.parametrize("shown", [False, True])
def test_known_positives_and_rows_own_negatives_by_loop(
    sources: str | tuple[str, ...], known: set[tuple[int, int]], shown: bool
) -> None:
    world = World()
    samplers = ["in-batch", tt.ColumnSampler("shown")] if shown else "in-batch"
    out = adapted(samplers, known_positives=sources)
    assert set(out.columns()) == {
        "weight",
        *({"history"} if "history" in sources else ()),
        *(("shown",) if shown else ()),
    }
    columns = {"history": tt.Ragged.from_lists(HISTORY), "shown": tt.Ragged.from_lists(SHOWN)}
    expected = by_loop(world, DIM, known, SHOWN if shown else NO_OWN)
    agree(world, out(world.step(USER, ITEM, weight=WEIGHT, **columns)), expected)
    positive, negative = out.logits(world.step(USER, ITEM, weight=WEIGHT, **columns))
    plain = (tt.losses.softmax(positive, negative) * WEIGHT).sum() / WEIGHT.sum()
    torch.testing.assert_close(plain, expected.detach(), rtol=1e-10, atol=1e-12)


def test_known_positives_from_a_column_of_fixed_lists_or_of_none() -> None:
    world = World()
    out = adapted(known_positives="history")
    fixed = torch.tensor([[6, 7]] * len(ROWS))
    expected = by_loop(world, DIM, {(i, item) for i in ROWS for item in (6, 7)}, NO_OWN)
    agree(world, out(world.step(USER, ITEM, weight=WEIGHT, history=fixed)), expected)
    with pytest.raises(ValueError, match="column 'history' holds one value a row; expected lists"):
        out(world.step(USER, ITEM, weight=WEIGHT, history=ITEM))
    with pytest.raises(ValueError, match="known_positives masks more than the row's own positive"):
        adapted(known_positives="in-batch", downscore_false_negatives=False)


# ---- targets


def test_refused_candidates_stay_negatives() -> None:
    """Zero vectors: the loss is the log of how many contend, so each refused candidate of the query adds one."""
    user, item = torch.tensor([0, 0, 0, 1]), torch.tensor([4, 5, 6, 7])
    batch = {"weight": torch.ones(4), "click": torch.tensor([1, 0, 1, 1])}
    step = Step(
        batch, torch.zeros(2, 2), Candidates(item, torch.zeros(4, 2)), lambda ids: torch.zeros(len(ids), 2),
        user, torch.arange(4), torch.tensor([0, 1]),
    )  # fmt: skip
    for options, contenders in (
        ({}, (4, 4, 4)),
        ({"known_positives": "in-batch"}, (3, 3, 4)),  # of the three of user 0, the other that was clicked is none
    ):
        out = output(logq_sampling_correction=False, target="click", **options)
        assert out(step).item() == pytest.approx(sum(math.log(n) for n in contenders) / 3, rel=1e-6)
    turned = output(logq_sampling_correction=False, target="click", two_directional=1.0)
    same = Step(
        {"weight": torch.ones(3), "click": torch.tensor([1, 0, 1])}, torch.zeros(3, 2),
        Candidates(torch.tensor([4]), torch.zeros(1, 2)), lambda ids: torch.zeros(len(ids), 2),
        torch.arange(3), torch.zeros(3, dtype=torch.int64), torch.arange(3),
    )  # fmt: skip
    # item 4 was taken by users 0 and 2 and refused by 1, who stays in the sum of both
    assert turned(same).item() == pytest.approx(math.log(2), rel=1e-6)


# ---- which losses are corrected


@pytest.mark.parametrize("name", ["bpr", "psl", "ccl", "bce"])
def test_losses_without_a_sum_over_the_catalogue_are_corrected_on_demand_only(name: str) -> None:
    world = World()
    values = {}
    for correction in (True, False, "logq"):
        out = adapted(logq_sampling_correction=correction)
        values[correction] = out(world.step(USER, ITEM, weight=WEIGHT), name).item()
    assert values[True] == values[False] != values["logq"]
    softmax = [
        adapted(logq_sampling_correction=c)(world.step(USER, ITEM, weight=WEIGHT)).item() for c in (True, "logq", False)
    ]
    assert softmax[0] == softmax[1] != softmax[2]


@pytest.mark.parametrize("name", ["bpr", "slatk"])
def test_blocks_of_rows_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    results = []
    for elements in (2**26, 1, 30):
        monkeypatch.setattr("twotower.outputs.contest.BLOCK_ELEMENTS", elements)
        columns = {"history": tt.Ragged.from_lists(HISTORY), "shown": tt.Ragged.from_lists(SHOWN)}
        out = adapted(["in-batch", tt.ColumnSampler("shown")], known_positives=["in-batch", "history"])
        value = out(world.step(USER, ITEM, weight=WEIGHT, **columns), name)
        results.append((value.detach(), world.gradients(value)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-14)


# ---- temperature


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prefixes": (0,)}, r"widths of at least 1, such as \(16, 32\); got \(0,\)"),
        ({"logits_temperature": math.inf}, "above 0 and finite, or a LearnedTemperature.*got inf"),
        ({"negative_samplers": ["in-batch", "in-batch"]}, "'in-batch' is in the list twice"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        tt.ContrastiveOutput(tt.DotProduct(), schema=SCHEMA, **options)
    with pytest.raises(ValueError, match="are wider than the towers' 3 numbers"):
        world = World()
        adapted(prefixes=(99,))(world.step(USER, ITEM, weight=WEIGHT))


def test_a_learnt_temperature_has_its_gradient_and_stays_within_its_bounds() -> None:
    world = World()
    temperature = tt.LearnedTemperature(0.3, minimum=0.05, maximum=0.8).double()
    out = tt.ContrastiveOutput(tt.DotProduct(), schema=SCHEMA, logits_temperature=temperature)
    out.adapt(torch.tensor(list(COUNTED_ITEMS.elements())))
    step = world.step(USER, ITEM)

    def value(shift: float) -> float:
        with torch.no_grad():
            temperature.position += shift
            loss = out(step).item()
            temperature.position -= shift
        return loss

    out(step).backward()
    assert temperature.position.grad is not None
    assert temperature.position.grad.item() == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-6)
    for far, bound in ((50.0, 0.8), (-50.0, 0.05)):
        with torch.no_grad():
            temperature.position.fill_(far)
        assert temperature().item() == pytest.approx(bound)
    with pytest.raises(ValueError, match="0 < minimum < initial < maximum, got 0.01, 2 and 1.0"):
        tt.LearnedTemperature(2)


def test_fit_learns_the_temperature() -> None:
    data = clubs()
    torch.manual_seed(0)
    temperature = tt.LearnedTemperature(0.5)
    query, candidate = towers(data)
    query.post, candidate.post = tt.L2Norm(), tt.L2Norm()  # cosines alone cannot tell 40 items apart
    model = tt.TwoTowerModelV2(query, candidate, logits_temperature=temperature)
    model.compile(learning_rate=0.01)
    model.fit(data, batch_size=256, epochs=3, verbose=False)
    assert 0.01 < temperature().item() < 0.4  # sharper than at the start, within the bounds
