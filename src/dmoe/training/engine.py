"""One training step: forward, loss, backward, clip, update.

Each table of embeddings has an optimiser of its own (`dmoe.optim`); everything else is torch's fused Adam.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmoe.config.run import OptimiserConfig
from dmoe.distributed.exchange import Request
from dmoe.distributed.lane import Lane
from dmoe.distributed.layout import RowLayout
from dmoe.distributed.world import World
from dmoe.errors import DataError, NonFiniteLossError
from dmoe.kernels.row_parallel import HALF_DTYPES
from dmoe.machine.device import matrix_products, on_device
from dmoe.nn.gate import Gate
from dmoe.nn.mlp import BatchNorm
from dmoe.nn.model import DMoE
from dmoe.nn.objective import Losses, Objective
from dmoe.nn.tables.bank import Bank
from dmoe.nn.tables.lookup import BatchRows, TableRows, copied
from dmoe.nn.tables.table import MultiTableEmbedding
from dmoe.nn.task_losses import RowLabels
from dmoe.optim import EmbeddingOptimiser, Numbering, RowClip, make_embedding_optimiser
from dmoe.shards.batch import Batch
from dmoe.training.step_values import Asked, StepLoss


@dataclass(frozen=True, slots=True)
class RowGradient:
    """The gradient of the loss at the distinct rows U of one table."""

    rows_U: Tensor
    gradient_US: Tensor


class Engine:
    """Owns the optimisers of `model` and steps them.

    Args:
        clip_norm: bound on the global L2 norm of the whole gradient, embedding L2 over the full tables included.
        autocast: dtype of matrix products, or None for the weights' own.
        tf32: whether float32 products take TF32 inputs on a CUDA device.
        l2_scales: for each table of rows, the factor of each row's L2; by default 1.
        host_tables: the model's tables are in host memory (`MultiTableEmbedding.keep_rows_on_host`): the rows of each
            batch are copied to `device` and their gradients back, in exact order.
        world: the processes that train together, which the model was built for; each is given its share of each batch.
            The objective is that of the whole batch on each of them (`Objective.process_group`).
    """

    def __init__(
        self,
        model: DMoE,
        objective: Objective,
        config: OptimiserConfig,
        *,
        clip_norm: float | None,
        device: torch.device,
        autocast: torch.dtype | None = None,
        tf32: bool = False,
        l2_scales: Sequence[Tensor] | None = None,
        host_tables: bool = False,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        # What this process asks for at the next step, and what any of them asked for at the last one.
        self.asks = self.asked = Asked()
        self.model, self.objective, self.device, self.clip_norm = model, objective, device, clip_norm
        self.autocast, self.tf32, self.host_tables = autocast, tf32, host_tables
        # Tables on the host: rows of other processes come there, by the host's own work.
        self._lane = Lane(torch.device("cpu") if host_tables else device)
        # Reading a value costs nothing on the CPU; elsewhere it would wait for all that was asked for so far.
        self.at_once = device.type == "cpu"
        # The next batch, its rows and what they are asked for with, where the host works ahead.
        self._ahead: tuple[Batch, list[BatchRows], list[Request] | None] | None = None
        self.tables = list(model.embedding.row_tables())
        scales: Sequence[Tensor | None] = l2_scales or [None] * len(self.tables)
        banks = [bank for bank in model.embedding.each_bank() if isinstance(bank.tables, MultiTableEmbedding)]
        self.embeddings = [
            make_embedding_optimiser(
                "dense" if table.num_rows <= config.dense_rows else config.embedding,
                table.weight,
                lr=config.lr,
                l2=config.embedding_l2,
                l2_scale_V=_scales_held(scale_V, table.layout),
                clip=_row_clip(config, model, bank),
                numbering=_numbering(table.layout),
            )
            for table, scale_V, bank in zip(self.tables, scales, banks, strict=True)
        ]
        self._share_batches(self.world.group)
        rows = {id(table.weight) for table in self.tables}
        named = [(name, value) for name, value in model.named_parameters() if id(value) not in rows]
        self.objective.to(device)
        # What the objective learns is no weight of the model: its gradient is bounded by itself.
        self.of_objective = {f"objective.{name}": value for name, value in objective.named_parameters()}
        self.of_model = [value for _, value in named]
        named += self.of_objective.items()
        self.names = [name for name, _ in named]
        self.dense = [value for _, value in named]
        # Squared norms of the parts of tables that other processes hold.
        self._elsewhere: list[float | Tensor] = [0.0] * len(self.tables)
        # (λ/2)‖W‖² belongs to the loss, so its gradient λW counts in the clipped norm.
        self.decay = [self._decay_of(name, value, config) for name, value in named]
        self.adam = torch.optim.Adam(self.dense, lr=config.lr, fused=device.type in ("cpu", "cuda"))

    def _share_batches(self, group: dist.ProcessGroup | None) -> None:
        """Whose rows modules take for a batch that look at more than a row: of all processes of a group."""
        for module in self.model.modules():
            if isinstance(module, Gate | BatchNorm):
                module.process_group = group

    @staticmethod
    def _decay_of(name: str, parameter: nn.Parameter, config: OptimiserConfig) -> float:
        if name.startswith("embedding.") and (".numeric_weight" in name or ".numeric." in name):
            return config.embedding_l2
        return config.network_l2 if parameter.ndim > 1 else 0.0

    def step(self, batch: Batch, step: int, following: Batch | None = None) -> Tensor:
        """Trains on one batch, or its share of one, on the CPU or already on the device; `step` counts from 0.

        `following`: the next batch, if it is known: tables on the host work on its rows while the device computes.

        Returns what `StepLoss.read` reads: on a device nothing waits for the values, which are there when the step is
        done. What is not finite, or an id out of range, shows in them then; on the CPU it is raised before anything is
        updated.

        Raises: NonFiniteLossError, DataError for ids out of range.
        """
        with on_device(self.device), matrix_products(tf32=self.tf32):
            return self._step(batch, step, following)

    @property
    def takes_host_batches(self) -> bool:
        """Whether rows are found where ids are, on the host, and not on the device."""
        return self.host_tables or (self.world.several and not self.at_once)

    def _step(self, batch: Batch, step: int, following: Batch | None) -> Tensor:
        bad_id = torch.full((3,), -1, device=self.device)
        if batch.ids_BC.device.type == "cpu":
            self.model.embedding.check_ids(batch.ids_BC)
        else:
            ids_BC, bad_id = self.model.embedding.in_range(batch.ids_BC)
            batch = replace(batch, ids_BC=ids_BC)
        ahead = following if self.takes_host_batches else None
        if ahead is not None:  # whose rows are written to, or asked for, before its own step
            try:
                self.model.embedding.check_ids(ahead.ids_BC)
            except DataError as error:
                raise DataError(f"the batch after it, {error}") from None
        moved = batch.to(self.device)
        looked_up, requests = self._looked_up(batch if self.takes_host_batches else moved)
        batch = moved
        if requests is not None and not self.host_tables:
            requests = [one.placed_on(self.device) for one in requests]
        rows = self._rows(looked_up, requests)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            output = self.model(batch.ids_BC, batch.numeric_BN, rows)
            labels = RowLabels(batch.labels_BT, batch.known_BT, batch.weights_B, output.domain)
            losses = self.objective(output, labels, step)
        if self.at_once and not self.world.several:
            StepLoss.read([_values(losses)])[0].check_numbers()
        losses.total.backward()
        if ahead is not None:  # the device computes what it was asked for so far
            self._work_ahead(ahead)
        try:
            gradients = self._gradients(looked_up, rows, requests)
            values = self._of_all(_values(losses))
            norm = self._update(gradients())
        finally:
            self.adam.zero_grad(set_to_none=True)
        return torch.cat([values, norm.unsqueeze(0), bad_id.double()])

    def _looked_up(self, batch: Batch) -> tuple[list[BatchRows], list[Request] | None]:
        """The rows that a batch reads, and what they are asked for with; known of one that was worked ahead on."""
        if self._ahead is not None and self._ahead[0] is batch:
            return self._ahead[1:]
        looked_up = self.model.embedding.batch_rows(batch.ids_BC)
        return looked_up, self._requests(looked_up)

    def _requests(self, looked_up: Sequence[BatchRows]) -> list[Request] | None:
        """What the rows of this share of a batch are asked for with, where other processes hold some."""
        exchange = self.model.embedding.exchange
        if exchange is None:
            return None
        counts = [
            None if store.clip is None else one.counts_U()
            for one, store in zip(looked_up, self.embeddings, strict=True)
        ]
        return exchange.request([one.rows_U for one in looked_up], counts)

    def _rows(self, looked_up: Sequence[BatchRows], requests: list[Request] | None) -> list[TableRows]:
        exchange = self.model.embedding.exchange
        if exchange is None or requests is None:
            return [self._read(one, store) for one, store in zip(looked_up, self.embeddings, strict=True)]
        held = [store.read(one.rows_L) for one, store in zip(requests, self.embeddings, strict=True)]
        came = self._lane.start([*held, *_tensors(requests)], lambda: exchange.fetch(requests, held))
        placed = [one.placed_on(self.device) for one in looked_up] if self.takes_host_batches else looked_up
        values = [copied(values_US, self.device) for values_US in came()] if self.host_tables else came()
        return [TableRows(one, values_US.requires_grad_()) for one, values_US in zip(placed, values, strict=True)]

    def _gradients(
        self, looked_up: Sequence[BatchRows], rows: Sequence[TableRows], requests: list[Request] | None
    ) -> Callable[[], list[RowGradient]]:
        """What gives what the backward pass left at the rows that are held here, as `_gradient`.

        Those that other processes hold are on their way to them from the call on.
        """
        exchange = self.model.embedding.exchange
        if exchange is None or requests is None:
            return lambda: [
                self._gradient(one, read, store)
                for one, read, store in zip(looked_up, rows, self.embeddings, strict=True)
            ]
        given = [self._where_tables_are(read.gradient_US) for read in rows]
        came = self._lane.start([*given, *_tensors(requests)], lambda: exchange.give_back(requests, given))
        return lambda: [
            RowGradient(one.rows_L, store.clipped(one.rows_L, gradient_LS, one.counts_L))
            for one, gradient_LS, store in zip(requests, came(), self.embeddings, strict=True)
        ]

    def _of_all(self, values: Tensor) -> Tensor:
        """Takes the mean of all processes' gradients of everything but tables; the losses of the whole batch.

        One sum for gradients, losses and requests, always laid out alike, so that equal input gives equal bits.

        Raises: NonFiniteLossError on all of them if one has a loss that is not finite.
        """
        world = self.world
        if not world.several:
            self.asked = self.asks
            return values
        if not self.at_once:
            return self._of_all_unread(values)
        like = self.dense[0]
        weights = self._weight_norms()
        bad = not bool(values.isfinite().all())
        # What no loss of this share of the batch reaches has a gradient if another's does.
        reached = [float(one.grad is not None) for one in self.dense]
        own = [float(bad), *self.asks.numbers(), *values.tolist(), *weights, *reached]
        gradients = [
            torch.zeros(one.numel(), dtype=like.dtype) if one.grad is None else one.grad.reshape(-1)
            for one in self.dense
        ]
        flat = world.total(torch.cat([torch.tensor(own, dtype=like.dtype), *gradients]))
        found = iter(flat[: len(own)].double().tolist())
        if next(found):
            where = [rank for rank, one in enumerate(world.gather(bad)) if one]
            raise NonFiniteLossError(f"the loss of rank {', '.join(map(str, where))} is not finite (of {world.size})")
        self.asked = Asked.read([next(found), next(found)])
        losses = torch.tensor([next(found) for _ in values], dtype=torch.float64) / world.size
        self._elsewhere = [next(found) - here for here in weights]
        summed = torch.split(flat[len(own) :].div_(world.size), [one.numel() for one in self.dense])
        for parameter, gradient, ranks in zip(self.dense, summed, found, strict=True):
            if ranks:
                parameter.grad = gradient.view_as(parameter)
        return losses

    def _weight_norms(self) -> list[float | Tensor]:
        """Squared norms of the parts of tables that are held here, where the gradient is bounded: its L2 counts."""
        return [store.weight_norm_squared() if self.clip_norm is not None else 0.0 for store in self.embeddings]

    def _of_all_unread(self, values: Tensor) -> Tensor:
        """As `_of_all` on devices, where no value is read: only what the hosts know goes from host to host."""
        world, like = self.world, self.dense[0]
        reached = [float(one.grad is not None) for one in self.dense]
        told = world.total(torch.tensor([*self.asks.numbers(), *reached], dtype=torch.float64)).tolist()
        self.asked = Asked.read(told[:2])
        weights = self._on_device(self._weight_norms())
        parts = [values, weights, *(torch.zeros_like(one) if one.grad is None else one.grad for one in self.dense)]
        flat = world.total(torch.cat([one.reshape(-1).to(like.dtype) for one in parts]))
        losses, others, *summed = torch.split(flat, [one.numel() for one in parts])
        elsewhere = others.double() - weights
        self._elsewhere = elsewhere.tolist() if self.host_tables else list(elsewhere)
        for parameter, gradient, ranks in zip(self.dense, summed, told[2:], strict=True):
            if ranks:
                parameter.grad = gradient.div_(world.size).view_as(parameter)
        return losses.double() / world.size

    def _read(self, batch_rows: BatchRows, store: EmbeddingOptimiser) -> TableRows:
        if not self.host_tables:
            return TableRows.read(batch_rows, store)
        values_US = copied(store.read(batch_rows.rows_U), self.device)
        return TableRows(batch_rows.placed_on(self.device), values_US.requires_grad_())

    def _gradient(self, batch_rows: BatchRows, read: TableRows, store: EmbeddingOptimiser) -> RowGradient:
        """What the backward pass left at the rows that were read, where their table is, bounded if the store bounds."""
        gradient_US = self._where_tables_are(read.gradient_US)
        if store.clip is not None:
            gradient_US = store.clipped(batch_rows.rows_U, gradient_US, batch_rows.counts_U())
        return RowGradient(batch_rows.rows_U, gradient_US)

    def _where_tables_are(self, gradient_US: Tensor) -> Tensor:
        return gradient_US.to("cpu", copy=True) if self.host_tables else gradient_US

    def _work_ahead(self, batch: Batch) -> None:
        """Finds the rows of a batch to come; those of tables on the host take the steps so far: one is left then."""
        looked_up, requests = self._looked_up(batch)
        self._ahead = batch, looked_up, requests
        if not self.host_tables:
            return
        rows = [one.rows_U for one in looked_up] if requests is None else [one.rows_L for one in requests]
        for table, rows_U, store in zip(self.tables, rows, self.embeddings, strict=True):
            if table.weight.dtype not in HALF_DTYPES:  # which each write rounds once more
                store.catch_up(rows_U)

    def _update(self, rows: Sequence[RowGradient]) -> Tensor:
        """Clips and steps; the norm of the gradient."""
        for parameter, decay in zip(self.dense, self.decay, strict=True):
            if decay and parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=decay)
        norm = torch.zeros((), dtype=torch.float64, device=self.device)
        clip: float | Tensor = 1.0
        if self.clip_norm is not None:
            whole = self.gradient_norm(rows)
            if isinstance(whole, Tensor):
                norm = whole
                clip = (self.clip_norm / (whole + 1e-6)).clamp(max=1.0)
            else:
                StepLoss(0.0, 0.0, 0.0, whole).check_numbers()
                norm.fill_(whole)
                clip = min(1.0, self.clip_norm / (whole + 1e-6))
            nn.utils.clip_grad_norm_(self.of_objective.values(), self.clip_norm)
        if isinstance(clip, Tensor) or clip < 1.0:
            gradients = [parameter.grad for parameter in self.of_model if parameter.grad is not None]
            torch._foreach_mul_(gradients, clip)
        self.adam.step()
        if self.host_tables and isinstance(clip, Tensor):
            clip = clip.cpu()  # where the rows are; the gradients beside it were waited for already
        for optimiser, one in zip(self.embeddings, rows, strict=True):
            optimiser.write(one.rows_U, one.gradient_US, clip)
        return norm

    def gradient_norm(self, rows: Sequence[RowGradient]) -> float | Tensor:
        """L2 norm of the gradient of the whole loss, as dense training would have it; off the CPU a tensor."""
        gradients = [parameter.grad for parameter in self.of_model if parameter.grad is not None]
        dense = torch.nn.utils.get_total_norm(gradients)
        tables = [
            optimiser.grad_norm_squared(one.rows_U, one.gradient_US, self.clip_norm, elsewhere)
            for optimiser, one, elsewhere in zip(self.embeddings, rows, self._elsewhere, strict=True)
        ]
        if not self.at_once:
            of_tables = self.world.total(self._on_device(tables))
            return (dense.double() ** 2 + sum(of_tables)).sqrt()
        if self.world.several:
            tables = list(self.world.total(torch.tensor(list(map(float, tables)), dtype=torch.float64)))
        return math.sqrt(dense.item() ** 2 + sum(map(float, tables)))

    def _on_device(self, numbers: Sequence[float | Tensor]) -> Tensor:
        """The numbers in float64 on the device, where some may be; nothing is waited for."""
        found = torch.zeros(len(numbers), dtype=torch.float64, device=self.device)
        for place, one in enumerate(numbers):
            found[place : place + 1].fill_(one)
        return found

    def flush(self) -> None:
        """Brings every embedding row up to date with the steps taken."""
        for optimiser in self.embeddings:
            optimiser.flush()

    def release(self) -> None:
        """Ends training: all rows are brought up to date, and the memory of the optimisers is given back."""
        self.flush()
        self._share_batches(None)
        self.embeddings.clear()
        self.adam.state.clear()

    def set_lr(self, lr: float) -> None:
        self.adam.param_groups[0]["lr"] = lr
        for optimiser in self.embeddings:
            optimiser.set_lr(lr)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name; not flushed."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {name: value.detach() for name, value in self.of_objective.items()}
        for name, parameter in zip(self.names, self.dense, strict=True):
            for key, value in self.adam.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        for number, optimiser in enumerate(self.embeddings):
            state = optimiser.state_dict(flush=False)
            tensors |= {f"embedding.{number}.{key}": value for key, value in state.items()}
        return tensors

    def row_layouts(self) -> dict[str, RowLayout]:
        """The tensors of `state` that have an entry for each row of a table that is held here."""
        found = {}
        for name, bank in zip(self.model.embedding.table_names(), self.model.embedding.each_bank(), strict=True):
            if isinstance(bank.tables, MultiTableEmbedding):
                found[f"model.embedding.{name}"] = bank.tables.layout
        for number, (optimiser, table) in enumerate(zip(self.embeddings, self.tables, strict=True)):
            found |= {f"embedding.{number}.{key}": table.layout for key in optimiser.by_row}
        return found

    def part_sums(self) -> list[str]:
        """The tensors of `state` that are sums over the rows held here, -1 where they are to be made anew."""
        return [
            f"embedding.{number}.{key}"
            for number, optimiser in enumerate(self.embeddings)
            for key in sorted(optimiser.over_rows)
        ]

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`. Raises: LookupError, RuntimeError, ValueError or DataError for that of another."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "objective": {}, "adam": {}, "embedding": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        for module, part in ((self.model, "model"), (self.objective, "objective")):
            for name, own in module.state_dict().items():
                if name in parts[part] and parts[part][name].dtype != own.dtype:
                    raise ValueError(f"{name} is of {parts[part][name].dtype}, not of {own.dtype}")
            module.load_state_dict(parts[part])
        for key, value in parts["adam"].items():
            kind, _, name = key.partition(".")
            parameter = self.dense[self.names.index(name)]
            if value.dtype != parameter.dtype and kind != "step":
                raise ValueError(f"the optimiser's {kind} of {name} is of {value.dtype}, not of {parameter.dtype}")
            # The step counter of fused Adam lives on the parameter's device, in float32, like the moments.
            self.adam.state[parameter][kind] = value.to(parameter.device)
        for number, optimiser in enumerate(self.embeddings):
            own = f"{number}."
            state = {key.removeprefix(own): value for key, value in parts["embedding"].items() if key.startswith(own)}
            optimiser.load_state_dict(state)


def _tensors(requests: Sequence[Request]) -> list[Tensor]:
    return [tensor for one in requests for tensor in one.tensors()]


def _values(losses: Losses) -> Tensor:
    return torch.stack([losses.total, losses.logloss, losses.decorrelation]).detach().double()


def _numbering(layout: RowLayout) -> Numbering:
    return Numbering() if layout.size == 1 else Numbering(layout.first, layout.per_way, layout.ways)


def _scales_held(scale_V: Tensor | None, layout: RowLayout) -> Tensor | None:
    """Those of the rows that are held here, 1 where there is none."""
    if scale_V is None or layout.size == 1:
        return scale_V
    rows_L = torch.from_numpy(layout.rows_held())
    return torch.where(rows_L < layout.rows, scale_V[rows_L.clamp(max=layout.rows - 1)], 1.0)


def _row_clip(config: OptimiserConfig, model: DMoE, bank: Bank) -> RowClip | None:
    """What bounds the rows of a bank: each table apart, and a first-order one, no embedding, not at all."""
    if config.embedding_clip is None or not isinstance(bank.tables, MultiTableEmbedding):
        return None
    clipped = [table != model.first_order_reads for table in bank.of]
    return RowClip(config.embedding_clip.r, config.embedding_clip.zeta, bank.tables.widths, clipped)
