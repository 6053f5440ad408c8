"""DeepCTR-Torch's own layers on given weights; see `peer_layers`."""

import torch
from deepctr_torch.layers.interaction import (
    CIN,
    BilinearInteraction,
    CrossNet,
    CrossNetMix,
    InteractingLayer,
    OutterProductLayer,
    SENETLayer,
)
from peer_layers import answer, fill


def build(weights, dtype):
    fields, dim = weights("embeddings").shape[1:]
    width, depth = fields * dim, int(weights("depth"))
    layers = {}

    for name, form in (("crossnet", "matrix"), ("crossnet-v1", "vector")):
        net = CrossNet(width, layer_num=depth, parameterization=form).to(dtype)
        if name == "crossnet":
            fill(net.kernels, torch.stack([weights(f"crossnet.layers.{index}.weight") for index in range(depth)]))
            fill(net.bias, torch.stack([weights(f"crossnet.layers.{index}.bias") for index in range(depth)]))
        else:
            fill(net.kernels, weights("crossnet-v1.weight"))
            fill(net.bias, weights("crossnet-v1.bias"))
        layers[name] = lambda x, net=net: net(x.flatten(1))

    experts, _, rank = weights("crossnet-mix.down.0").shape
    mix = CrossNetMix(width, layer_num=depth, low_rank=rank, num_experts=experts).to(dtype)
    for name, parameter, turned in (("down", mix.V_list, 0), ("inner", mix.C_list, 1), ("up", mix.U_list, 1)):
        values = [weights(f"crossnet-mix.{name}.{index}") for index in range(depth)]
        fill(parameter, torch.stack([value.transpose(1, 2) if turned else value for value in values]))
    fill(mix.bias, torch.stack([weights(f"crossnet-mix.bias.{index}") for index in range(depth)]))
    for index, gate in enumerate(mix.gating):
        fill(gate.weight, weights("crossnet-mix.gate.weight")[index])
    layers["crossnet-mix"] = lambda x: mix(x.flatten(1))

    units = [int(unit) for unit in weights("units")]
    cin = CIN(fields, units, activation="relu", split_half=True).to(dtype)
    for index, conv in enumerate(cin.conv1ds):
        # It pairs a map with a field, and we a field with a map.
        weight = weights(f"cin.split.layers.{index}.weight").unflatten(1, (fields, -1)).transpose(1, 2)
        fill(conv.weight, weight)
        fill(conv.bias, weights(f"cin.split.layers.{index}.bias"))
    layers["cin.split"] = cin

    for kind in ("matrix", "vector", "number"):
        outer = OutterProductLayer(fields, dim, kernel_type={"matrix": "mat", "vector": "vec", "number": "num"}[kind])
        value = weights(f"opnn.{kind}.weight")
        fill(outer.to(dtype).kernel, value.permute(2, 0, 1) if kind == "matrix" else value)
        # It changes its inputs in place.
        layers[f"opnn.{kind}"] = lambda x, outer=outer: outer([one.clone() for one in x.split(1, dim=1)])

    senet = SENETLayer(fields, reduction_ratio=3).to(dtype)
    fill(senet.excitation[0].weight, weights("senet.squeeze.weight"))
    fill(senet.excitation[2].weight, weights("senet.excite.weight"))
    layers["senet"] = senet
    for kind in ("interaction", "each", "all"):
        bilinear = BilinearInteraction(fields, dim, bilinear_type=kind).to(dtype)
        linears = [bilinear.bilinear] if kind == "all" else bilinear.bilinear
        for linear, value in zip(linears, weights(f"bilinear.field-{kind}"), strict=False):
            fill(linear.weight, value.t())
        layers[f"bilinear.field-{kind}"] = bilinear

    for scaled in (True, False):
        name = "autoint.scaled" if scaled else "autoint"
        attention = InteractingLayer(dim, head_num=2, scaling=scaled).to(dtype)
        for theirs, ours in (("W_Query", "query"), ("W_key", "key"), ("W_Value", "value")):
            fill(getattr(attention, theirs), weights(f"{name}.layers.0.{ours}.weight").t())
        # It has a matrix on the residual even where the widths are equal.
        fill(attention.W_Res, torch.eye(dim, dtype=dtype))
        layers[name] = attention
    return layers


answer(build)
