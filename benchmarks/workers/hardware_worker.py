"""What the machine can do: matrix products at the model's own shapes, copies, and gathers of random rows."""

import torch

from benchmarks.workers.serve import Job, Step, serve

COPY_FLOATS = 1 << 26  # 256 MiB, beyond any cache


def prepare(job: Job) -> tuple[dict[str, Step], int]:
    torch.manual_seed(job["seed"])
    # Layers of one shape share buffers: the inputs, the output's gradient and the weight of one.
    layers = {
        shape: (torch.randn(shape[0], shape[1]), torch.randn(shape[0], shape[2]), torch.randn(shape[2], shape[1]))
        for shape in {tuple(shape) for shape in job["products"]}
    }
    source, target = torch.ones(COPY_FLOATS), torch.zeros(COPY_FLOATS)
    # Made row by row of ones: pages that were never written would all be one page of zeros.
    table = torch.ones(job["gather"]["table_rows"], job["gather"]["width"])
    rows = torch.randint(len(table), (job["gather"]["rows"],))
    gathered = torch.empty(len(rows), table.shape[1])

    def products() -> int:
        for shape in job["products"]:
            inputs, gradient, weight = layers[tuple(shape)]
            torch.mm(inputs, weight.T)
            torch.mm(gradient, weight)
            torch.mm(gradient.T, inputs)
        return 1

    def copy() -> int:
        target.copy_(source)
        return 1

    def gather() -> int:
        torch.index_select(table, 0, rows, out=gathered)
        return 1

    return {"products": products, "copy": copy, "gather": gather}, 0


if __name__ == "__main__":
    serve(prepare, ())
