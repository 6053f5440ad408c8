"""Deep network of equal layers on the concatenated embeddings.

Shape suffixes: B rows, F fields, D embedding width, H width of a hidden layer.
"""

from dmoe.nn import arguments
from dmoe.nn.experts.base import register
from dmoe.nn.experts.dnn import DNN


@register("flatdnn")
class FlatDNN(DNN):
    """`h_l = ReLU(W_l h_{l-1} + b_l)`, all layers of one width (named in arXiv 2505.17925, section 5).

    The D-MoE paper (section 5) names FlatDNN among its production experts without defining it, with at most 8
    layers and up to 2,028 units in each; this is `dnn` with depth and width as two numbers.

    Args:
        layers: number of hidden layers.
        units: width of each.
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    Intermediates: each hidden layer, after ReLU and before dropout.

    Shape: (B, F, D) to (B, ``units``).
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        layers: int = 4,
        units: int = 1000,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        hidden = [arguments.integer("units", units)] * arguments.integer("layers", layers)
        super().__init__(num_fields, embedding_dim, hidden_units=hidden, dropout=dropout, batch_norm=batch_norm)
