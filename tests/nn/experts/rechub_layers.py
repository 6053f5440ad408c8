"""torch-rechub's own layers on given weights; see `peer_layers`."""

import torch
from peer_layers import answer, fill
from torch_rechub.basic.layers import FFM, InteractingLayer


def build(weights, dtype):
    fields, dim = weights("embeddings").shape[1:]

    def with_own(x):
        """It reads a vector for a field's own as well, and makes nothing of it."""
        vectors = x.unflatten(2, (fields - 1, -1))
        zero = torch.zeros_like(vectors[:, :1, :1])
        rows = [torch.cat([vectors[:, i : i + 1, :i], zero, vectors[:, i : i + 1, i:]], dim=2) for i in range(fields)]
        return torch.cat(rows, dim=1)

    attention = InteractingLayer(dim, num_heads=2).to(dtype)
    for theirs, ours in (("W_Q", "query"), ("W_K", "key"), ("W_V", "value")):
        fill(getattr(attention, theirs).weight, weights(f"autoint.scaled.layers.0.{ours}.weight"))
    fill(attention.W_Res.weight, torch.eye(dim, dtype=dtype))
    return {"ffm": lambda x: FFM(fields)(with_own(x)), "autoint.scaled": attention}


answer(build)
