"""L2Norm: vectors of length one."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class L2Norm(nn.Module):
    """Divide each row by its Euclidean length, so that the dot product is the cosine.

    Use it as `post=L2Norm()` of both towers together with a `logits_temperature` well below 1 (about 0.05 to 0.2):
    cosines lie in [-1, 1], and a softmax over many items cannot become sharp on them at temperature 1.

    Example:
        >>> L2Norm()(torch.tensor([[3.0, 4.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """

    def forward(self, inputs: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """(..., D) to (..., D); zeros stay zeros."""
        return F.normalize(inputs, dim=-1, eps=1e-12)
