"""Reading and writing a few rows of a table, where it is.

On a CUDA device with Triton the rows of a batch have spare places, -1, which read as zeros and are not written
(`dmoe.kernels.row_triton`); elsewhere there are none.

Shape suffixes: V table rows, S its width, U rows of a batch.
"""

from importlib.util import find_spec

from torch import Tensor

HAS_TRITON = find_spec("triton") is not None


def kernels_serve(tensor: Tensor) -> bool:
    """Whether `dmoe.kernels.row_triton` works on what is where `tensor` is."""
    return HAS_TRITON and tensor.device.type == "cuda"


def rows_of(table_VS: Tensor, rows_U: Tensor) -> Tensor:
    """A copy (U, S) of rows, zeros in spare places."""
    if kernels_serve(table_VS):
        from dmoe.kernels import row_triton  # triton is there on Linux alone

        return row_triton.take_rows(table_VS, rows_U)
    return table_VS.index_select(0, rows_U)


def set_rows(table_VS: Tensor, rows_U: Tensor, values_US: Tensor) -> None:
    """Writes rows, each of which stands in `rows_U` at most once."""
    if kernels_serve(table_VS):
        from dmoe.kernels import row_triton

        row_triton.put_rows(table_VS, rows_U, values_US)
    else:
        table_VS[rows_U] = values_US


def add_to_rows(table_VS: Tensor, rows_U: Tensor, values_US: Tensor, factor: float) -> None:
    """Adds factor · values to rows, each of which stands in `rows_U` at most once."""
    if kernels_serve(table_VS):
        set_rows(table_VS, rows_U, rows_of(table_VS, rows_U).add_(values_US, alpha=factor))
    else:
        # The rows are distinct, so the order of these additions does not matter.
        table_VS.index_add_(0, rows_U, values_US, alpha=factor)
