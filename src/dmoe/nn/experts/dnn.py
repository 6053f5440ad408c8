"""Plain deep network on the concatenated embeddings.

Shape suffixes: B rows, F fields, D embedding width, H width of a hidden layer.
"""

from collections.abc import Sequence

from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert, register
from dmoe.nn.mlp import MLP


@register("dnn")
class DNN(Expert):
    """`h_l = ReLU(W_l h_{l-1} + b_l)` from the concatenated embeddings (Covington et al., RecSys 2016).

    Args:
        hidden_units: width of each hidden layer; any depth, with none x_0 itself.
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    Intermediates: each hidden layer, after ReLU and before dropout.

    Shape: (B, F, D) to (B, ``hidden_units[-1]``), without hidden layers (B, F * D).
    Raises: ValueError naming the argument.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        hidden_units: Sequence[int] = (500, 500, 500),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)
        hidden = arguments.widths("hidden_units", hidden_units, empty=True)
        self.mlp = MLP(num_fields * embedding_dim, hidden, dropout=dropout, batch_norm=batch_norm)
        self.out_features = self.mlp.out_features

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.mlp.forward_with_layers(embeddings_BFD.flatten(1))
