"""FuxiCTR's own layers on given weights; see `peer_layers`."""

from fuxictr.pytorch.layers import (
    BilinearInteractionV2,
    CompressedInteractionNet,
    CrossNet,
    CrossNetMix,
    CrossNetV2,
    InnerProductInteraction,
    SqueezeExcitation,
)
from peer_layers import answer, fill
from torch import nn


def build(weights, dtype):
    fields, dim = weights("embeddings").shape[1:]
    width = fields * dim

    depth = int(weights("depth"))
    crossnet = CrossNetV2(width, num_layers=depth).to(dtype)
    first = CrossNet(width, num_layers=depth).to(dtype)
    for index in range(depth):
        fill(crossnet.cross_layers[index].weight, weights(f"crossnet.layers.{index}.weight"))
        fill(crossnet.cross_layers[index].bias, weights(f"crossnet.layers.{index}.bias"))
        fill(first.cross_net[index].weight.weight, weights("crossnet-v1.weight")[index])
        fill(first.cross_net[index].bias, weights("crossnet-v1.bias")[index])

    experts, _, rank = weights("crossnet-mix.down.0").shape
    mix = CrossNetMix(width, layer_num=depth, low_rank=rank, num_experts=experts).to(dtype)
    for index in range(depth):
        fill(mix.V_list[index], weights(f"crossnet-mix.down.{index}"))
        fill(mix.C_list[index], weights(f"crossnet-mix.inner.{index}").transpose(1, 2))
        fill(mix.U_list[index], weights(f"crossnet-mix.up.{index}").transpose(1, 2))
        fill(mix.bias[index], weights(f"crossnet-mix.bias.{index}"))
    for index, gate in enumerate(mix.gating):
        fill(gate.weight, weights("crossnet-mix.gate.weight")[index])

    units = [int(unit) for unit in weights("units")]
    cin = CompressedInteractionNet(fields, units, output_dim=1).to(dtype)
    for index in range(len(units)):
        fill(cin.cin_layer[f"layer_{index + 1}"].weight, weights(f"cin.layers.{index}.weight"))
        fill(cin.cin_layer[f"layer_{index + 1}"].bias, weights(f"cin.layers.{index}.bias"))
    cin.fc = nn.Identity()

    senet = SqueezeExcitation(fields, reduction_ratio=3).to(dtype)
    fill(senet.excitation[0].weight, weights("senet.squeeze.weight"))
    fill(senet.excitation[2].weight, weights("senet.excite.weight"))

    pairs = InnerProductInteraction(fields, output="inner_product")
    layers = {
        "crossnet": lambda x: crossnet(x.flatten(1)),
        "crossnet-v1": lambda x: first(x.flatten(1)),
        "crossnet-mix": lambda x: mix(x.flatten(1)),
        "cin": cin,
        "fm.pairs": pairs,
        "fm.bi-interaction": InnerProductInteraction(fields, output="bi_interaction"),
        "fm.scalar": InnerProductInteraction(fields, output="product_sum"),
        "fwfm": lambda x: pairs(x) * weights("fwfm.pairs.weight"),
        "senet": senet,
    }
    for kind in ("field-interaction", "field-each", "field-all"):
        layer = BilinearInteractionV2(fields, dim, bilinear_type=kind.replace("-", "_")).to(dtype)
        # Of one matrix a field, that of the last is read by no pair.
        value = weights(f"bilinear.{kind}")
        layer.bilinear_W.data.view(-1, dim, dim)[: len(value)] = value
        layers[f"bilinear.{kind}"] = layer
    matrices = BilinearInteractionV2(fields, dim, bilinear_type="field_interaction").to(dtype)
    fill(matrices.bilinear_W, weights("fmfm.pairs.weight"))
    layers["fmfm"] = lambda x: matrices(x).sum(dim=2)
    return layers


answer(build)
