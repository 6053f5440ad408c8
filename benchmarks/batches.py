"""The integer batches that every contestant trains on: Zipf-like ids over vocabularies shaped like Avazu's.

Shape suffixes: R rows, F fields.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Rows of each field's vocabulary in Avazu_x4_001 of the BARS benchmark, in its field order (hour, C1, banner_pos,
# site_id, site_domain, site_category, app_id, app_domain, app_category, device_id, device_ip, device_model,
# device_type, device_conn_type, C14 to C21, weekday, weekend): tokens seen twice or more, and one for the others.
AVAZU_SIZES = (
    *(25, 8, 8, 4050, 5460, 26, 6544, 399, 32, 820_508, 2_903_321, 7258, 6, 5),
    *(2555, 9, 10, 433, 5, 69, 172, 61, 8, 3),
)
AVAZU_ROWS = sum(AVAZU_SIZES)  # 3,750,975
AVAZU_FIELDS = len(AVAZU_SIZES)

# With this exponent a batch of 10,000 rows at Avazu's size holds about 20,600 distinct table rows.
ZIPF_EXPONENT = 1.047
CLICK_RATE = 0.17


def vocabulary_sizes(total: int, num_fields: int = AVAZU_FIELDS) -> list[int]:
    """Sizes of `num_fields` vocabularies in Avazu's proportions, repeated or cut, with `total` rows in all.

    Raises: ValueError if `total` leaves a field with fewer than the three rows missing, unknown and one token.
    """
    pattern = [AVAZU_SIZES[index % AVAZU_FIELDS] for index in range(num_fields)]
    scale = total / sum(pattern)
    sizes = [max(3, round(size * scale)) for size in pattern]
    largest = int(np.argmax(sizes))
    sizes[largest] += total - sum(sizes)
    if sizes[largest] < 3:
        raise ValueError(f"{total} vocabulary rows are too few for {num_fields} fields of at least 3")
    return sizes


def draw_ids(sizes: list[int], num_rows: int, seed: int) -> NDArray[np.int32]:
    """Ids (R, F) of known values: the k-th most frequent token of a field has id k + 1 and frequency ~ 1/k^a.

    Drawn by inverting the distribution function, field by field, so equal arguments give equal ids.
    """
    ids_RF = np.empty((num_rows, len(sizes)), dtype=np.int32)
    for field, size in enumerate(sizes):
        generator = np.random.default_rng([seed, field])
        cumulative = np.cumsum(np.arange(1, size - 1, dtype=np.float64) ** -ZIPF_EXPONENT)
        rank_R = np.searchsorted(cumulative, generator.random(num_rows) * cumulative[-1], side="right")
        ids_RF[:, field] = 2 + np.minimum(rank_R, size - 3)
    return ids_RF


def write_batches(path: Path, sizes: list[int], batch_size: int, num_batches: int, seed: int = 0) -> None:
    """`path`.npz with `ids` (R, F) int32 local to each field and `labels` (R,) uint8, R = batches * rows."""
    num_rows = batch_size * num_batches
    labels_R = np.random.default_rng([seed, len(sizes)]).random(num_rows) < CLICK_RATE
    np.savez(path, ids=draw_ids(sizes, num_rows, seed), labels=labels_R.astype(np.uint8))


def distinct_rows(ids_RF: NDArray[np.int32]) -> int:
    """Table rows that a batch touches."""
    return sum(len(np.unique(ids_RF[:, field])) for field in range(ids_RF.shape[1]))
