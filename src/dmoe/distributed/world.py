"""The processes of one training: what they sum, agree on and do one after the other.

With one process nothing here communicates or changes a bit. Several talk through torch.distributed: by gloo of what is
in host memory, by NCCL of what is on CUDA devices, one for each process.
Where one of them fails it says so in the store that all can see before it ends, so that the others, which find its
connection closed, can name it and its cause instead of their own trouble.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dmoe.distributed.failures import Told, error_from, of_rank, told_of
from dmoe.errors import ConfigError, DmoeError, Interrupted

T = TypeVar("T")

TIMEOUT_S = 600.0
# Where torchrun says how often it has started the processes anew.
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
# How long a process waits for the others to say what they know of a failure.
_GRACE_S = 6.0
_BEAT_S = 1.0
_RESUME = "--resume continues from the last checkpoint"


class World:
    """Process `rank` of `size`; by default the only one.

    Args:
        group: of torch.distributed, None for one process.
        store: what all processes see, as torch.distributed's.
        rows_group: for rows on devices, so that they travel beside what else is summed there; by default `group`.
        timeout_s: after so long without an answer another process counts as gone.
        lent: the group is another's, who ends it.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        group: dist.ProcessGroup | None = None,
        store: Store | None = None,
        timeout_s: float = TIMEOUT_S,
        rows_group: dist.ProcessGroup | None = None,
        *,
        lent: bool = False,
    ) -> None:
        self.lent = lent
        self.rank, self.size, self.group, self.store, self.timeout_s = rank, size, group, store, timeout_s
        self._rows_group = rows_group or group
        self._waits = 0  # how often this process has waited for the first one
        self._parent = os.getppid()
        self.sent_bytes = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    @property
    def was_restarted(self) -> bool:
        """Whether its launcher started this process anew after one of them had failed."""
        return _restarts() != "0"

    @property
    def orphaned(self) -> bool:
        """Whether the process that started this one has ended."""
        return self.several and os.getppid() != self._parent

    def seed_of(self, seed: int) -> int:
        """A seed for what each process draws for itself; with one process `seed`."""
        if not self.several:
            return seed
        return int(np.random.SeedSequence([seed, self.size, self.rank]).generate_state(1, np.uint64)[0] >> 1)

    def share(self, total: int) -> range:
        """The part of `total` things that falls to this process: ranges, as equal as can be."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def total(self, values: Tensor) -> Tensor:
        """Sums over processes, in place: the same bits everywhere."""
        if self.several:
            dist.all_reduce(values, group=self.group)
            self.sent_bytes += 2 * values.numel() * values.element_size()
        return values

    def exchange(self, sent: Tensor, counts: Sequence[int], received_counts: Sequence[int]) -> Tensor:
        """Sends `counts[k]` entries of `sent` (N, ...) to each process k; what all sent here, in their order."""
        if not self.several:
            return sent
        received = sent.new_empty(sum(received_counts), *sent.shape[1:])
        group = self.group if sent.device.type == "cpu" else self._rows_group
        dist.all_to_all_single(received, sent, list(received_counts), list(counts), group=group)
        own = counts[self.rank]
        self.sent_bytes += (len(sent) - own) * (sent.element_size() * (sent[0].numel() if len(sent) else 0))
        return received

    def gather(self, value: Any) -> list[Any]:
        """What can be said in JSON, of every process, at every process."""
        if not self.several:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(own)
        self.total(lengths)
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded, group=self.group)
        return [
            json.loads(bytes(one[:length].numpy()).decode())
            for one, length in zip(found, lengths.tolist(), strict=True)
        ]

    def gather_arrays(self, own: Tensor) -> list[Tensor]:
        """At the first process the tensors (N, ...) of all, N of any size; elsewhere none."""
        if not self.several:
            return [own]
        counts = self.gather(len(own))
        here = counts if self.is_first else [0] * self.size
        received = self.exchange(own.contiguous(), [len(own), *[0] * (self.size - 1)], here)
        return list(torch.split(received, counts)) if self.is_first else []

    def end(self) -> None:
        """Parts from the other processes; what follows is this process's own."""
        if self.several:
            self.barrier()
            if not self.lent:
                dist.destroy_process_group()

    def barrier(self) -> None:
        if self.several:
            self.total(torch.zeros(1))

    def first(self, work: Callable[[], T]) -> T | None:
        """Has the first process do something, however long it takes, while the others wait; its result there.

        Raises: elsewhere what it raised there.
        """
        if not self.several:
            return work()
        assert self.store is not None
        key = f"first/{self._waits}"
        self._waits += 1
        if self.is_first:
            with self._beating():
                try:
                    done = work()
                except BaseException as error:
                    self.store.set(key, json.dumps(told_of(self.rank, error)))
                    raise
            self.store.set(key, "null")
            return done
        said = json.loads(self._wait_for(key))
        if said is not None:
            raise error_from(said)
        return None

    def say(self, key: str, value: Any) -> None:
        """Leaves something, as JSON, for `hear`."""
        assert self.store is not None
        self.store.set(key, json.dumps(value))

    def hear(self, key: str) -> Any:
        """Waits for what the first process says under `key`, as long as it is alive."""
        return json.loads(self._wait_for(key))

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Inside, the first process is known to be alive by those that `hear`."""
        if self.several and self.is_first:
            with self._beating():
                yield
        else:
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work of all processes: where one fails, all end with one error that names it and its cause.

        Raises: the process's own error with its rank; elsewhere the same, marked as told (`Told`).
        """
        if not self.several:
            yield
            return
        assert self.store is not None
        ends = threading.Event()
        watch = threading.Thread(target=self._watch, args=(ends,), name="dmoe-watch", daemon=True)
        watch.start()
        try:
            yield
        except BaseException as error:
            ends.set()
            raise self._explained(error) from error
        finally:
            ends.set()
            # A thread inside the store's library when the interpreter ends would abort the process.
            watch.join(_GRACE_S)

    def _watch(self, ends: threading.Event) -> None:
        """Ends this process where another one has failed and this one waits for a third, which does not know yet."""
        store = self.store
        assert store is not None
        while not ends.wait(_BEAT_S):
            patience_s = _GRACE_S / 3
            try:
                alarm = store.check(["alarm"])
            except RuntimeError:
                # Who keeps the store is gone. If that is a launcher, all processes stop in good order.
                alarm, patience_s = True, self.timeout_s
            if alarm:
                if ends.wait(patience_s):
                    return
                error = self._explained(ConnectionError("Connection closed by peer"))
                if not getattr(error, "quiet", False):
                    sys.stderr.write(f"dmoe: {error}\n")
                    sys.stderr.flush()
                os._exit(getattr(error, "exit_code", 1))

    def _explained(self, error: BaseException) -> BaseException:
        """What to raise for `error`: itself if it arose here, the cause elsewhere if it is only an echo of that."""
        store, agent = self.store, os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        assert store is not None
        others = [rank for rank in range(self.size) if rank != self.rank]
        if isinstance(error, Told) or not _is_echo(error):
            found, awaited = self._as_own(error, store), others
        else:
            found, awaited = self._as_echo(error, store)
        if self.rank == 0 and not agent:  # which keeps the store: the others read it first
            until = time.monotonic() + _GRACE_S
            while time.monotonic() < until and not all(self._has(store, f"done/{rank}") for rank in awaited):
                time.sleep(0.05)
        else:
            with suppress(RuntimeError):
                store.set(f"done/{self.rank}", "")
        return found

    def _as_own(self, error: BaseException, store: Store) -> BaseException:
        if isinstance(error, Told):
            return error
        own = json.dumps(told_of(self.rank, error))
        try:
            # Of several that fail alike, the first one to say so says it to the user.
            said = store.compare_set("failed", "", own).decode()
            store.set("alarm", "")
        except RuntimeError:  # the store is gone with the launcher: a stop, on which all agreed, is said by the first
            return (
                Told(str(error), quiet=True, exit_code=130) if isinstance(error, Interrupted) and self.rank else error
            )
        return of_rank(self.rank, error) if said == own else error_from(json.loads(said))

    def _as_echo(self, error: BaseException, store: Store) -> tuple[BaseException, list[int]]:
        """The cause that another process gives; else who says nothing. And which processes have still to read that."""
        late = "timed out" in str(error).lower()
        try:
            store.set(f"waits/{self.rank}", "late" if late else "closed")
            store.set("alarm", "")
            until = time.monotonic() + _GRACE_S
            waiting: dict[int, str] = {}
            while len(waiting) < self.size and time.monotonic() < until:
                if self._has(store, "failed"):
                    said = json.loads(store.get("failed"))
                    return error_from(said), [rank for rank in range(1, self.size) if rank != said["rank"]]
                for rank in range(self.size):
                    if rank not in waiting and self._has(store, f"waits/{rank}"):
                        waiting[rank] = store.get(f"waits/{rank}").decode()
                time.sleep(0.05)
        except RuntimeError:
            text = "rank 0 or its launcher ended without a word (killed, or its machine is gone)"
            return Told(f"{text}; {_RESUME}", quiet=self.rank != 1), []
        silent = ", ".join(str(rank) for rank in range(self.size) if rank not in waiting)
        what = (
            f"did not answer within {self.timeout_s:g} s (it hangs, or cannot be reached)"
            if "late" in waiting.values()
            else "ended without a word (killed, or its machine is gone)"
        )
        told = Told(f"rank {silent or '?'} {what}; {_RESUME}", quiet=self.rank != min(waiting))
        return told, [rank for rank in waiting if rank != 0]

    def _has(self, store: Store, name: str) -> bool:
        return bool(store.check([name]))

    def _wait_for(self, key: str) -> bytes:
        assert self.store is not None
        beat, since = None, time.monotonic()
        while True:
            try:
                self.store.wait([key], timedelta(seconds=_BEAT_S))
                return bytes(self.store.get(key))
            except dist.DistStoreError:
                pass
            except dist.DistError as error:
                raise RuntimeError(f"store closed: {error}") from None
            now = self.store.add("beat", 0)
            if now != beat:
                beat, since = now, time.monotonic()
            elif time.monotonic() - since > self.timeout_s:
                raise Told(
                    f"rank 0 did not answer within {self.timeout_s:g} s (it hangs, or cannot be reached); {_RESUME}",
                    quiet=self.rank != 1,
                )
            if self.orphaned:
                raise Told("the launcher of the processes has ended; --resume continues", quiet=self.rank != 1)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        store, key = self.store, "beat"
        assert store is not None
        done = threading.Event()

        def beat() -> None:
            while not done.wait(_BEAT_S):
                with suppress(Exception):
                    store.add(key, 1)

        thread = threading.Thread(target=beat, name="dmoe-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _restarts() -> str:
    """How often their launcher has started the processes anew."""
    return os.environ.get(RESTARTS, "0")


def _is_echo(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other end is gone or silent."""
    if isinstance(error, dist.DistError | ConnectionError):
        return True
    text = str(error)
    signs = (
        "Connection closed by peer",
        "Timed out waiting",
        "Connection reset",
        "Broken pipe",
        "gloo",
        "store closed",
    )
    return isinstance(error, RuntimeError) and not isinstance(error, DmoeError) and any(sign in text for sign in signs)


def world_from_environment(timeout_s: float = TIMEOUT_S) -> World:
    """The world that torchrun, or `dmoe train --processes`, started this process in; alone if it did not.

    Raises: ConfigError if the variables of the environment do not fit together.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError:
        raise ConfigError("RANK and WORLD_SIZE must be whole numbers, as torchrun sets them") from None
    if not 0 <= rank < size:
        raise ConfigError(f"RANK must be from 0 to WORLD_SIZE - 1, got {rank} of {size}")
    if size == 1:
        return World()
    if dist.is_initialized():  # by Ray Train, which also ends it
        store = PrefixStore("dmoe", dist.distributed_c10d._get_default_store())
        return World(rank, size, dist.group.WORLD, store, timeout_s, lent=True)
    timeout = timedelta(seconds=timeout_s)
    found, _, _ = next(iter(rendezvous("env://", rank, size, timeout=timeout)))
    # An agent of torchrun keeps its store when it starts processes anew: what the earlier ones left there, their
    # addresses too, is not to be found.
    store = PrefixStore(f"dmoe-{_restarts()}-{size}", found)
    devices = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if devices else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    rows_group = dist.new_group(timeout=timeout) if devices else None
    return World(rank, size, dist.group.WORLD, store, timeout_s, rows_group)


def local_rank(world: World) -> int:
    """The number of this process among those of its machine, which is that of its device."""
    return int(os.environ.get("LOCAL_RANK", world.rank))
