"""Runs FuxiCTR's own layers on given weights, in an environment of its own: python THIS inputs.npz outputs.npz."""

import sys

import numpy as np
import torch
from fuxictr.pytorch.layers import CompressedInteractionNet, CrossNetV2, InnerProductInteraction


def load(arrays, prefix, modules, dtype):
    """Copies `prefix.index.weight` (with the trailing axis of a convolution if there is one) and bias."""
    for index, module in enumerate(modules):
        weight = torch.tensor(arrays[f"{prefix}.{index}.weight"], dtype=dtype)
        module.weight.data = weight.reshape(module.weight.shape)
        module.bias.data = torch.tensor(arrays[f"{prefix}.{index}.bias"], dtype=dtype)


def main(source, target):
    arrays = np.load(source)
    answers = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        embeddings = torch.tensor(arrays["embeddings"], dtype=dtype)
        fields, dim = embeddings.shape[1:]

        crossnet = CrossNetV2(fields * dim, num_layers=int(arrays["crossnet.layers"])).to(dtype)
        load(arrays, "crossnet", crossnet.cross_layers, dtype)
        cin = CompressedInteractionNet(fields, arrays["cin.units"].tolist(), output_dim=1).to(dtype)
        load(arrays, "cin", [cin.cin_layer[f"layer_{k + 1}"] for k in range(len(arrays["cin.units"]))], dtype)
        cin.fc = torch.nn.Identity()
        layers = {
            "crossnet": lambda x, net=crossnet: net(x.flatten(1)),
            "cin": cin,
            "fm.pairs": InnerProductInteraction(fields, output="inner_product"),
            "fm.bi-interaction": InnerProductInteraction(fields, output="bi_interaction"),
            "fm.scalar": InnerProductInteraction(fields, output="product_sum"),
        }
        for layer_name, layer in layers.items():
            leaf = embeddings.clone().requires_grad_()
            output = layer(leaf)
            output.square().sum().backward()
            answers[f"{layer_name}.{name}"] = output.detach().numpy()
            answers[f"{layer_name}.{name}.gradient"] = leaf.grad.numpy()
    np.savez(target, **answers)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
