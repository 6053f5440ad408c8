"""What the scripts share that run a peer's layers on given weights: python SCRIPT inputs.npz outputs.npz."""

import sys

import numpy as np
import torch


def answer(build):
    """Runs every layer of `build(weights, dtype)`, name to callable, on the embeddings, in both precisions.

    `weights(name)` is the array of that name; the answers are each layer's output, flattened, and the gradient of
    its sum of squares for the embeddings.
    """
    arrays = np.load(sys.argv[1])
    answers = {}
    for dtype in (torch.float32, torch.float64):

        def weights(name, dtype=dtype):
            return torch.tensor(arrays[name], dtype=dtype)

        for name, layer in build(weights, dtype).items():
            leaf = weights(f"{name}.embeddings" if f"{name}.embeddings" in arrays else "embeddings").requires_grad_()
            output = layer(leaf).flatten(1)
            output.square().sum().backward()
            key = f"{name}.{str(dtype).removeprefix('torch.')}"
            answers[key], answers[f"{key}.gradient"] = output.detach().numpy(), leaf.grad.numpy()
    np.savez(sys.argv[2], **answers)


def fill(parameter, value):
    """Copies a value; its shape may differ by axes of length one."""
    assert parameter.numel() == value.numel(), (parameter.shape, value.shape)
    parameter.data = value.reshape(parameter.shape).clone()
