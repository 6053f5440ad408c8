"""LightGBM's model text, checked before LightGBM reads it: it follows the numbers of a file wherever they lead.

N nodes and N + 1 leaves of a tree.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise

_END = "end of trees\n"
_HEAD = frozenset(
    {
        "version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective",
        "feature_names", "feature_infos", "tree_sizes",
    }
)  # fmt: skip
_OF_NODES = (
    "split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child", "internal_value",
    "internal_weight", "internal_count",
)  # fmt: skip
_OF_LEAVES = ("leaf_value", "leaf_weight", "leaf_count")
_OF_CATEGORIES = ("cat_boundaries", "cat_threshold")
_SINGLE = ("Tree", "num_leaves", "num_cat", "is_linear", "shrinkage")
_BY_CATEGORY = 1  # the bit of decision_type

_WHOLE = re.compile(r"-?[0-9]{1,10}", re.ASCII)


def checked_trees(text: str, features: int) -> str:
    """The part of the text that holds the trees, each of which ends in leaves and reads no column beyond `features`.

    Raises: ValueError saying what is wrong.
    """
    if not text.isascii() or _END not in text:
        raise ValueError("it has no end of trees")
    head, found, rest = text[: text.index(_END)].partition("\nTree=")
    trees = f"Tree={rest}" if found else ""
    values = _keys(head.removeprefix("tree\n"))
    if not head.startswith("tree\n") or values.keys() != _HEAD:
        raise ValueError("its head is not that of `dmoe baseline`")
    wanted = {"num_class": "1", "num_tree_per_iteration": "1", "max_feature_idx": str(features - 1)}
    for key, value in wanted.items():
        if values[key] != value:
            raise ValueError(f"{key} is not {value}")
    if values["objective"] != "binary sigmoid:1":
        raise ValueError("its objective is not binary")
    for key in ("feature_names", "feature_infos"):
        if len(values[key].split(" ")) != features:
            raise ValueError(f"{key} are not {features}")
    sizes = _wholes(values["tree_sizes"]) if values["tree_sizes"] else []
    if sum(sizes) != len(trees) or min(sizes, default=1) < 1:
        raise ValueError("tree_sizes are not those of its trees")
    start = 0
    for number, size in enumerate(sizes):
        _check_tree(trees[start : start + size], number, features)
        start += size
    return text[: text.index(_END) + len(_END)]


def _check_tree(block: str, number: int, features: int) -> None:
    if not block.startswith(f"Tree={number}\n") or not block.endswith("\n\n"):
        raise ValueError(f"tree {number} is not where tree_sizes say")
    values = _keys(block)
    leaves, categories = (_whole(values.get(key, "")) for key in ("num_leaves", "num_cat"))
    lengths = {
        **dict.fromkeys(_OF_NODES, leaves - 1),
        **dict.fromkeys(_OF_LEAVES, leaves),
        **dict.fromkeys(_SINGLE, 1),
    }
    arrays = {key: value.split() for key, value in values.items()}
    if categories:
        lengths |= {"cat_boundaries": categories + 1, "cat_threshold": len(arrays.get("cat_threshold", ()))}
    if leaves == 1:  # of which LightGBM writes no weight
        lengths["leaf_weight"] = 0
    if values.keys() != lengths.keys() or any(len(arrays[key]) != length for key, length in lengths.items()):
        raise ValueError(f"tree {number} lacks numbers, or has some besides")
    if not all(math.isfinite(float(one)) for numbers in arrays.values() for one in numbers):
        raise ValueError(f"tree {number} holds a number that is not finite")
    if values.get("is_linear") != "0":
        raise ValueError(f"tree {number} has linear leaves")
    if leaves > 1:
        _check_nodes(arrays, number, leaves, categories, features)


def _check_nodes(arrays: dict[str, list[str]], number: int, leaves: int, categories: int, features: int) -> None:
    for key, stop in (("split_feature", features), ("decision_type", 256)):
        if not all(0 <= _whole(one) < stop for one in arrays[key]):
            raise ValueError(f"tree {number} has a {key} that there is not")
    for key in ("left_child", "right_child"):
        for node, child in enumerate(map(_whole, arrays[key])):
            # Nodes are numbered as they are made: no path comes back.
            if not (node < child < leaves - 1 or 0 <= ~child < leaves):
                raise ValueError(f"tree {number} does not end in leaves")
    by_category = [_whole(one) & _BY_CATEGORY for one in arrays["decision_type"]]
    for threshold, by in zip(arrays["threshold"], by_category, strict=True):
        if by and not 0 <= _whole(threshold) < categories:
            raise ValueError(f"tree {number} has a threshold that there is not")
    if categories:
        bounds = _wholes(" ".join(arrays["cat_boundaries"]))
        rising = all(low < high for low, high in pairwise(bounds))
        if bounds[0] != 0 or not rising or bounds[-1] != len(arrays["cat_threshold"]):
            raise ValueError(f"tree {number} has cat_boundaries that are not those of its categories")


def _keys(text: str) -> dict[str, str]:
    pairs = [line.split("=", 1) for line in text.split("\n") if line]
    if any(len(pair) < 2 for pair in pairs) or len({pair[0] for pair in pairs}) < len(pairs):
        raise ValueError("it has a line without a key, or a key twice")
    return {key: value for key, value in pairs}  # noqa: C416 (of lists of two)


def _wholes(text: str) -> Sequence[int]:
    return [_whole(one) for one in text.split(" ")]


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError("a whole number is expected")
    return int(text)
