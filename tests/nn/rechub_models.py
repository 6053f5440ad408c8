"""torch-rechub's models of several tasks on given weights: python SCRIPT inputs.npz settings.json outputs.npz.

Batch normalisation is set to the identity: eval mode, mean 0, variance 1 - eps.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import ESMM, MMOE, PLE, SharedBottom

arrays = np.load(sys.argv[1])
answers = {}


def weight(name):
    return torch.tensor(arrays[name])


def layers_of(case, prefix):
    """Our layers of a dense stack, by depth: those of an MLP, then the one that aligns an expert."""
    names = [f"{case}/{prefix}.interaction.mlp.linears.{depth}" for depth in range(9)]
    names = [*names, f"{case}/{prefix}.align"] if f"{case}/{prefix}.align.weight" in arrays else None
    if names is None:
        names = [f"{case}/{prefix}.linears.{depth}" for depth in range(9)]
    return [(weight(f"{one}.weight"), weight(f"{one}.bias")) for one in names if f"{one}.weight" in arrays]


def fill(mlp, layers):
    theirs = [module for module in mlp.mlp if isinstance(module, torch.nn.Linear)]
    assert len(theirs) == len(layers), (len(theirs), len(layers))
    for module, (matrix, bias) in zip(theirs, layers, strict=True):
        assert module.weight.shape == matrix.shape, (module.weight.shape, matrix.shape)
        module.weight.data, module.bias.data = matrix, bias


def gate(case, name, order):
    """Ours mixes experts by number; `order` has these numbers as the peer puts them."""
    place = {expert: row for row, expert in enumerate(sorted(order))}
    rows = [place[expert] for expert in order]
    return [(weight(f"{case}/{name}.output.weight")[rows], weight(f"{case}/{name}.output.bias")[rows])]


def tower(case, task):
    output = (weight(f"{case}/outputs.{task}.weight"), weight(f"{case}/outputs.{task}.bias"))
    return [*layers_of(case, f"towers.{task}"), output]


for case, said in json.loads(Path(sys.argv[2]).read_text()).items():
    fields = [SparseFeature(f"f{n}", size, embed_dim=said["dim"]) for n, size in enumerate(said["sizes"])]
    experts = {"dims": said["expert"]}
    towers = [{"dims": said["tower"]}] * said["tasks"]
    types = ["classification"] * said["tasks"]
    if said["model"] == "ple":
        model = PLE(fields, types, said["levels"], said["owned"], said["shared"], experts, towers)
    elif said["model"] == "mmoe":
        model = MMOE(fields, types, said["shared"], experts, towers)
    elif said["model"] == "shared-bottom":
        model = SharedBottom(fields, types, experts, towers)
    else:
        dims = {"dims": [*said["expert"], *said["tower"]]}
        model = ESMM(fields[:2], fields[2:], dims, dims)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_var.fill_(1 - module.eps)
    start = 0
    table = weight(f"{case}/embedding.banks.0.tables.weight")
    for field, size in zip(fields, said["sizes"], strict=True):
        model.embedding.embed_dict[field.name].weight.data = table[start : start + size].clone()
        start += size
    if said["model"] == "ple":
        shared, owned, tasks = said["shared"], said["owned"], said["tasks"]
        own = [[shared + owned * task + n for n in range(owned)] for task in range(tasks)]
        for level, cgc in enumerate(model.cgc_layers):
            name = "" if level == 0 else f"levels.{level - 1}."
            for number in range(shared + owned * tasks):
                theirs = cgc.experts_shared[number] if number < shared else cgc.experts_specific[number - shared]
                fill(theirs, layers_of(case, f"{name}experts.{number}"))
            for task in range(tasks):
                fill(cgc.gates_specific[task], gate(case, f"{name}gates.{task}", [*own[task], *range(shared)]))
            if level + 1 < said["levels"]:
                order = [*(one for each in own for one in each), *range(shared)]
                fill(cgc.gate_shared, gate(case, f"{name}gates.{tasks}", order))
    elif said["model"] == "mmoe":
        for number in range(said["shared"]):
            fill(model.experts[number], layers_of(case, f"experts.{number}"))
        for task in range(said["tasks"]):
            fill(model.gates[task], gate(case, f"gates.{task}", list(range(said["shared"]))))
    elif said["model"] == "shared-bottom":
        fill(model.bottom_mlp, layers_of(case, "experts.0"))
    else:
        fill(model.tower_ctr, [*layers_of(case, "experts.0"), *tower(case, 0)])
        fill(model.tower_cvr, [*layers_of(case, "experts.1"), *tower(case, 1)])
    if said["model"] != "esmm":
        for task in range(said["tasks"]):
            fill(model.towers[task], tower(case, task))
    ids = arrays["ids"]
    found = model({field.name: torch.from_numpy(ids[:, n]) for n, field in enumerate(fields)})
    (found * torch.tensor(arrays["wanted"][: found.shape[1]]).T).sum().backward()
    answers[case] = found.detach().numpy()
    grads = [model.embedding.embed_dict[field.name].weight.grad.numpy() for field in fields]
    answers[f"{case}/gradient"] = np.concatenate(grads)
np.savez(sys.argv[3], **answers)
