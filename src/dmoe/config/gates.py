"""The kinds of gate and their losses of balance; apart from `gate`, so that a configuration needs no torch."""

from typing import Literal

GateKind = Literal["softmax", "top-k", "noisy-top-k", "per-unit"]
Balance = Literal["importance", "importance-load", "switch"]

# Which losses of balance each kind of gate can have.
BALANCES: dict[GateKind, tuple[Balance, ...]] = {
    "softmax": ("importance",),
    "top-k": ("importance", "switch"),
    "noisy-top-k": ("importance", "importance-load", "switch"),
    "per-unit": (),
}

# One expert kept has the weight 1 whatever the logits: only these still give the logits a gradient.
TRAINS_TOP_1: tuple[Balance, ...] = ("importance-load", "switch")
TOP_1 = "k 1 gives every row the weight 1, so nothing would train the gate; choose k 2 or more, or balance switch"
