"""What the product networks share: an MLP behind embeddings and products of pairs of them."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from dmoe.nn import arguments
from dmoe.nn.experts.base import Expert
from dmoe.nn.mlp import MLP

PNNOutput = Literal["hidden", "raw"]
PNN_OUTPUTS = ("hidden", "raw")


def product_mlp(width: int, output: PNNOutput, hidden_units: Sequence[int], *, dropout: float, batch_norm: bool) -> MLP:
    """What stands behind `width` products of a row: an MLP, or nothing for output "raw".

    Raises: ValueError naming the argument.
    """
    arguments.choice("output", output, PNN_OUTPUTS)
    hidden = arguments.widths("hidden_units", hidden_units)
    return MLP(width, hidden if output == "hidden" else (), dropout=dropout, batch_norm=batch_norm)


class ProductNetwork(Expert):
    """`MLP(products(embeddings))`: a subclass gives `products` and says with `_put_behind` what reads them.

    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    def __init__(self, num_fields: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_fields = arguments.integer("num_fields", num_fields, minimum=2)
        self.embedding_dim = arguments.integer("embedding_dim", embedding_dim)

    def _put_behind(
        self, width: int, output: PNNOutput, hidden_units: Sequence[int], *, dropout: float, batch_norm: bool
    ) -> None:
        """The MLP behind `width` columns: made last, so that it draws its weights after those of the products."""
        self.mlp = product_mlp(width, output, hidden_units, dropout=dropout, batch_norm=batch_norm)
        self.out_features = self.mlp.out_features

    def products(self, embeddings_BFD: Tensor) -> Tensor:
        """What the MLP reads, (B, width): the embeddings and their products."""
        raise NotImplementedError

    def forward_with_intermediates(self, embeddings_BFD: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.mlp.forward_with_layers(self.products(embeddings_BFD))
