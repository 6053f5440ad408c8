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
