"""Inner-product network.

Shape suffixes: B rows, F fields, D embedding width, P = F(F-1)/2 pairs, H width of a hidden layer.
"""

from collections.abc import Sequence

from torch import Tensor

from dmoe.nn.experts.base import register
from dmoe.nn.experts.pairs import PairProducts
from dmoe.nn.experts.product_network import PNNOutput, ProductNetwork


@register("ipnn")
class IPNN(ProductNetwork):
    """`MLP([x_0 ; (<x_i, x_j>)_{i<j}])` (Qu et al., ICDM 2016).

    The products enter as they are, as in public code, where the paper has a factorised product layer.

    Args:
        output: "hidden", the last hidden layer, or "raw", the concatenation that the MLP would read.
        hidden_units: width of each hidden layer; not used with "raw".
        dropout: share of hidden units dropped while training.
        batch_norm: normalise before each ReLU.

    Intermediates: each hidden layer, after ReLU and before dropout.

    Shape: (B, F, D) to (B, ``hidden_units[-1]``); raw: (B, F * D + P).
    Raises: ValueError naming the argument; fewer than two fields make no pair.
    """

    def __init__(
        self,
        num_fields: int,
        embedding_dim: int,
        *,
        output: PNNOutput = "hidden",
        hidden_units: Sequence[int] = (500, 500, 500),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(num_fields, embedding_dim)
        self.pairs = PairProducts(num_fields, diagonal=False, with_embeddings=True)
        width = num_fields * embedding_dim + self.pairs.num_pairs
        self._put_behind(width, output, hidden_units, dropout=dropout, batch_norm=batch_norm)

    def products(self, embeddings_BFD: Tensor) -> Tensor:
        products_BW: Tensor = self.pairs(embeddings_BFD)
        return products_BW
