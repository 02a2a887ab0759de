"""MLPBlock: dense layers."""

import copy
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from twotower.blocks.initializers import Initializer, initializer
from twotower.errors import choose, explain_options

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "selu": nn.SELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
}
NORMALIZATIONS: dict[str, Callable[[int], nn.Module]] = {"batch_norm": nn.BatchNorm1d, "layer_norm": nn.LayerNorm}


class LazyDense(nn.LazyLinear):
    """A dense layer that takes its input width from the first batch; Encoder shows it one when it is built.

    Args:
        width: output width.
        use_bias: add a bias.
        kernel_initializer, bias_initializer: names or functions, as in Keras.
    """

    def __init__(
        self, width: int, use_bias: bool, kernel_initializer: str | Initializer, bias_initializer: str | Initializer
    ) -> None:
        super().__init__(width, bias=use_bias)
        self._fill = (initializer(kernel_initializer), initializer(bias_initializer))

    def reset_parameters(self) -> None:
        """Fill weight and bias; PyTorch calls this once the input width is known."""
        if not self.has_uninitialized_params() and self.in_features:
            self._fill[0](self.weight)
            if self.bias is not None:
                self._fill[1](self.bias)


class MLPBlock(nn.Module):
    """Dense layers, each followed by activation, dropout and normalisation.

    Args:
        dimensions: the widths, input side first; the input's width is read from the first batch.
        activation: one name for all layers or a list with one for each: relu, gelu, selu, elu, silu, leaky_relu,
            tanh, sigmoid, linear. "selu" goes with alpha dropout.
        use_bias: add biases.
        kernel_initializer, bias_initializer: names as in Keras, or functions that fill a tensor.
        dropout: share of a layer's outputs to drop in training.
        normalization: "batch_norm", "layer_norm", or a module that is copied for each layer. Batch normalisation
            cannot train on a batch of one row: use drop_last=True with it.
        no_activation_last_layer: leave the last layer linear, and without dropout. The default keeps Merlin's
            meaning, where the last layer has the activation too; a tower with ReLU at its end emits no negative
            numbers, so retrieval towers do better with True.

    Raises:
        ValueError: no dimensions, a list of activations of another length, or an unknown name.

    Example:
        >>> MLPBlock([128, 64], no_activation_last_layer=True)(torch.ones(2, 10)).shape
        torch.Size([2, 64])
    """

    @explain_options
    def __init__(
        self,
        dimensions: Sequence[int],
        activation: str | Sequence[str] = "relu",
        use_bias: bool = True,
        kernel_initializer: str | Initializer = "glorot_uniform",
        bias_initializer: str | Initializer = "zeros",
        dropout: float | None = None,
        normalization: str | nn.Module | None = None,
        no_activation_last_layer: bool = False,
    ) -> None:
        super().__init__()
        names = [activation] * len(dimensions) if isinstance(activation, str) else list(activation)
        if not dimensions or len(names) != len(dimensions):
            raise ValueError(
                f"MLPBlock needs at least one width and one activation for each: got {len(dimensions)} dimensions and "
                f"{len(names)} activations."
            )
        self.dimensions = list(dimensions)
        self.activation = activation
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.dropout = dropout
        self.normalization = normalization
        self.no_activation_last_layer = no_activation_last_layer
        layers: list[nn.Module] = []
        for number, (width, name) in enumerate(zip(dimensions, names, strict=True)):
            linear_end = no_activation_last_layer and number + 1 == len(names)
            layers.append(LazyDense(width, use_bias, kernel_initializer, bias_initializer))
            layers += [] if linear_end else _activation(name, dropout)
            layers += _normalization(normalization, width)
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Float[Tensor, "B _"]) -> Float[Tensor, "B D"]:
        """(B, any width) to (B, D), D = dimensions[-1]."""
        return self.layers(inputs)


def _activation(name: str, dropout: float | None) -> list[nn.Module]:
    drop = nn.AlphaDropout if name == "selu" else nn.Dropout
    return [choose("activation", name, ACTIVATIONS)(), *([drop(dropout)] if dropout else [])]


def _normalization(normalization: str | nn.Module | None, width: int) -> list[nn.Module]:
    if normalization is None:
        return []
    if isinstance(normalization, str):
        return [choose("normalization", normalization, NORMALIZATIONS)(width)]
    return [copy.deepcopy(normalization)]
