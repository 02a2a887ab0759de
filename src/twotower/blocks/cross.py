"""CrossBlock: explicit feature crosses (DCN-v2)."""

from jaxtyping import Float
from torch import Tensor, nn

from twotower.blocks.initializers import Initializer, initializer
from twotower.errors import explain_options


class CrossBlock(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, depth times.

    Wang et al., "DCN V2: Improved Deep & Cross Network", WWW 2021. With `low_rank_dim`, W = V U of that rank.

    Args:
        depth: the number of layers; each raises the degree of the crosses by one.
        low_rank_dim: rank of W; None for full rank.
        use_bias: add b.
        kernel_initializer, bias_initializer: names or functions.

    Raises:
        ValueError: depth or low_rank_dim below 1.

    Example:
        >>> CrossBlock(depth=2)(torch.ones(3, 5)).shape
        torch.Size([3, 5])
    """

    @explain_options
    def __init__(
        self,
        depth: int = 1,
        low_rank_dim: int | None = None,
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "truncated_normal",
        bias_initializer: str | Initializer = "zeros",
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"CrossBlock needs depth >= 1, got {depth}.")
        if low_rank_dim is not None and low_rank_dim < 1:
            raise ValueError(f"CrossBlock needs low_rank_dim >= 1, or None for full rank; got {low_rank_dim}.")
        self.depth = depth
        self.low_rank_dim = low_rank_dim
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.layers = nn.ModuleList(LazyCross(self) for _ in range(depth))

    def forward(self, inputs: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        """(B, W) to (B, W)."""
        x = inputs
        for layer in self.layers:
            x = inputs * layer(x) + x
        return x


class LazyCross(nn.modules.lazy.LazyModuleMixin, nn.Module):
    """W x + b with W square, its width read from the first batch."""

    def __init__(self, block: CrossBlock) -> None:
        super().__init__()
        self._rank, self._use_bias = block.low_rank_dim, block.use_bias
        self._fill = (initializer(block.kernel_initializer), initializer(block.bias_initializer))
        self.down = nn.UninitializedParameter() if block.low_rank_dim else None
        self.weight = nn.UninitializedParameter()
        self.bias = nn.UninitializedParameter() if block.use_bias else None

    def initialize_parameters(self, x: Tensor) -> None:
        """Make W and b as wide as x; PyTorch calls this before the first forward."""
        if not self.has_uninitialized_params():
            return
        width = x.shape[-1]
        if self.down is not None:
            self.down.materialize((self._rank or width, width))
            self._fill[0](self.down)
        self.weight.materialize((width, self._rank or width))
        self._fill[0](self.weight)
        if self.bias is not None:
            self.bias.materialize((width,))
            self._fill[1](self.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.down is None else nn.functional.linear(x, self.down)
        return nn.functional.linear(hidden, self.weight, self.bias)
