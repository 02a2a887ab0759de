"""HistoryTransformer: causal self-attention over the history."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.blocks.history.base import HistoryEncoder
from twotower.blocks.history.groups import Groups, group_by_length
from twotower.data.ragged import Ragged
from twotower.errors import choose, explain_options

POSITIONS = ("learned", "rotary")
# of rotary positions, Su et al.
WAVELENGTH = 10_000.0

Turn = tuple[Tensor, Tensor]


class HistoryTransformer(HistoryEncoder):
    """Self-attention in which every item sees itself and earlier ones; the state at the last item.

    Kang and McAuley, "Self-Attentive Sequential Recommendation" (SASRec), ICDM 2018. Deviations: `pre_norm` normalises
    before both sub-layers and once at the end, as later transformers do; no padding item, lists of similar length are
    attended to together; rotary positions (Su et al., "RoFormer", arXiv 2104.09864) and none are possible. Item vectors are
    multiplied by sqrt(D), as in the authors' code.

    Args:
        dim: D, the width of the vectors and of the layers.
        layers: attention and feed-forward, so many times.
        heads: of the attention; they share D.
        dropout: of the input, the attention's weights and both sub-layers' results.
        attention_dropout: of the attention's weights alone; None for `dropout`. At 0 PyTorch's fused attention never writes the
            weights of all pairs of items, which saves time and memory on long lists.
        max_length: read the latest so many items.
        positions: "learned" adds a vector for each place, "rotary" turns queries and keys by their distance, None
            leaves only the order of what each item could see. Places are counted from the start of what is read, so that
            an item keeps its place when others follow, and each state is what the list up to there would give.
        pre_norm: layer normalisation before each sub-layer, or after its residual sum.
        hidden_dim: the feed-forward layer's hidden width; None for D, as in the paper.
        output_dim: the width of the states, by a linear layer; None leaves them D wide, without a layer.

    Raises:
        ValueError: heads that do not divide D, unknown positions, an odd width of the heads with rotary positions.

    Example:
        >>> lists = Ragged(torch.randn(3, 8), torch.tensor([0, 2, 2, 3]))
        >>> encoder = HistoryTransformer(dim=8, layers=1, heads=2)
        >>> encoder(lists).shape, encoder.states(lists).values.shape
        (torch.Size([3, 8]), torch.Size([3, 8]))
    """

    max_length: int

    @explain_options
    def __init__(
        self,
        dim: int,
        layers: int = 2,
        heads: int = 1,
        *,
        dropout: float = 0.0,
        attention_dropout: float | None = None,
        max_length: int = 50,
        positions: str | None = "learned",
        pre_norm: bool = True,
        hidden_dim: int | None = None,
        output_dim: int | None = None,
    ) -> None:
        super().__init__(dim, output_dim, max_length)
        of_attention = dropout if attention_dropout is None else attention_dropout
        shares = 0 <= dropout < 1 and 0 <= of_attention < 1
        if layers < 1 or heads < 1 or dim % heads or not shares or (hidden_dim or 1) < 1:
            raise ValueError(
                "HistoryTransformer needs layers >= 1, hidden_dim >= 1, heads that divide dim, and dropouts in [0, 1); got "
                f"layers={layers}, hidden_dim={hidden_dim}, heads={heads} with dim={dim}, dropout={dropout} and "
                f"attention_dropout={attention_dropout}."
            )
        if positions is not None:
            choose("positions", positions, dict.fromkeys(POSITIONS))
        if positions == "rotary" and dim // heads % 2:
            raise ValueError(f"rotary positions turn pairs of numbers: dim / heads must be even, got {dim // heads}.")
        self.layers = layers
        self.heads = heads
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.positions = positions
        self.pre_norm = pre_norm
        self.hidden_dim = hidden_dim
        self.place = nn.Embedding(max_length, dim) if positions == "learned" else None
        if self.place is not None:
            nn.init.normal_(self.place.weight, std=0.02)
        self.drop = nn.Dropout(dropout)
        width = hidden_dim or dim
        self.blocks = nn.ModuleList(_Layer(dim, heads, width, dropout, of_attention, pre_norm) for _ in range(layers))
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()
        self.project = nn.Identity() if output_dim is None else nn.Linear(dim, output_dim)

    def encode(self, vectors: Ragged, last: bool) -> Tensor:
        """As in HistoryEncoder."""
        groups = group_by_length(vectors)
        hidden = vectors.values.index_select(0, groups.source) * math.sqrt(self.dim)
        if self.place is not None:
            hidden = hidden + self.place(groups.position)
        hidden, turn = self.drop(hidden), self._turn(groups.position)
        for number, layer in enumerate(self.blocks, start=1):
            hidden = layer(hidden, groups, turn, last and number == self.layers)
        if last:
            back = torch.empty_like(groups.order)
            back[groups.order] = torch.arange(back.shape[0], device=back.device)
            return self.project(self.norm(hidden.index_select(0, back)))
        return self.project(self.norm(hidden.index_select(0, groups.slot)))

    def _turn(self, position: Tensor) -> Turn | None:
        """cos and sin of the angle of each slot and pair of numbers, (S, 1, D / heads / 2)."""
        if self.positions != "rotary":
            return None
        pairs = self.dim // self.heads // 2
        kind = torch.promote_types(self.empty.dtype, torch.float32)  # bfloat16 cannot count to 1,000
        speed = WAVELENGTH ** (-torch.arange(pairs, device=position.device, dtype=kind) / pairs)
        angle = position[:, None, None].to(kind) * speed
        return angle.cos(), angle.sin()


class _Layer(nn.Module):
    """Attention and feed-forward, each added to what came in."""

    def __init__(
        self, dim: int, heads: int, hidden_dim: int, dropout: float, attention_dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.pre_norm = pre_norm
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, hidden_dim)
        self.down = nn.Linear(hidden_dim, dim)
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_forward = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, groups: Groups, turn: Turn | None, last: bool) -> Tensor:
        """(S, D) to (S, D), or to (B, D) at the last slots of the rows in the groups' order."""
        read = self.norm_attention(hidden) if self.pre_norm else hidden
        asked = hidden.index_select(0, groups.last) if last else hidden
        asking = read.index_select(0, groups.last) if last else read
        seen = self.drop(self.out(self._attend(read, asking, groups, turn, last)))
        if self.pre_norm:
            asked = asked + seen
            return asked + self._feed_forward(self.norm_forward(asked))
        asked = self.norm_attention(asked + seen)
        return self.norm_forward(asked + self._feed_forward(asked))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        return self.drop(self.down(self.drop(F.relu(self.up(hidden)))))

    def _attend(self, read: Tensor, asking: Tensor, groups: Groups, turn: Turn | None, last: bool) -> Tensor:
        query = self.query(asking).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(read).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        if turn is not None:
            cos, sin = turn
            key = _turned(key, cos, sin)
            query = _turned(query, cos[groups.last], sin[groups.last]) if last else _turned(query, cos, sin)
        drop = self.attention_dropout if self.training else 0.0
        parts = zip(groups.split(key), groups.split(value), strict=True)
        if not last:
            pairs = zip(groups.split(query), parts, strict=True)
            return torch.cat([_attention(q, k, v, None, drop) for q, (k, v) in pairs])
        # the last item sees all of its row, and no slot beyond
        place, seen = groups.position[groups.last], []
        for q, at, (k, v) in zip(groups.split_rows(query), groups.split_rows(place), parts, strict=True):
            within = torch.arange(k.shape[1], device=k.device) <= at[:, None, None, None]
            seen.append(_attention(q[:, None], k, v, within, drop))
        return torch.cat(seen)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, drop: float) -> Tensor:
    """(rows, length, heads, width) three times to (rows * length, heads * width); causal without a mask."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    seen = F.scaled_dot_product_attention(query, key, value, mask, drop, is_causal=mask is None)
    return seen.transpose(1, 2).flatten(2).flatten(0, 1)


def _turned(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of numbers (x_i, x_(i + half)) turned by its angle."""
    one, other = vectors.chunk(2, dim=-1)
    cos, sin = cos.to(vectors.dtype), sin.to(vectors.dtype)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1)
