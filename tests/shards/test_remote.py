"""Data sets at addresses that fsspec reads."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from dmoe.cli.main import main
from dmoe.errors import ConfigError, DataError, MissingExtraError
from dmoe.evaluation.evaluate import evaluate_run
from dmoe.shards import remote
from dmoe.shards.files import HeldData, digest_of
from dmoe.shards.reader import SplitReader
from dmoe.training.loop import train
from tests.small_runs import SMALL, small_config, write_data

ROWS = {"train": 300, "valid": 120, "test": 110}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data", ROWS)


@pytest.fixture
def address(data: Path) -> Iterator[str]:
    """The same in the memory of this process."""
    system = fsspec.filesystem("memory")
    system.put(str(data), "/bucket/log", recursive=True)
    yield "memory://bucket/log"
    system.rm("/bucket", recursive=True)
    remote.remove_folders()


def test_training_is_that_of_the_folder_to_the_bit(data: Path, address: str, tmp_path: Path) -> None:
    config = small_config("training.device=cpu", "training.epochs=1", "training.unseen={site: 0.2}")
    there = train(config, remote.folder_of(address), tmp_path / "there")
    here = train(config, data, tmp_path / "here")
    assert there.weights.read_bytes() == here.weights.read_bytes()
    assert there.environment["data"] == address
    remote.remove_folders()
    found = evaluate_run(there, device="cpu")  # at the address that the run remembers
    assert found == evaluate_run(here, device="cpu")


def test_the_command_takes_an_address(data: Path, tmp_path: Path) -> None:
    words = [*SMALL, "training.device=cpu", "training.epochs=1", "--no-baseline", "--output", str(tmp_path / "run")]
    main_ends(["train", *words, "--data", f"file://{data}"], 0)
    assert (tmp_path / "run" / "metrics.json").is_file()


def main_ends(words: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as found:
        main(words)
    assert found.value.code == code


def test_shards_are_streamed_and_never_copied(address: str) -> None:
    folder = remote.folder_of(address)
    assert {path.stat().st_size for path in folder.glob("*/part-*.parquet")} == {0}
    assert sum(len(batch) for batch in SplitReader(folder, "train", batch_size=64).batches()) == ROWS["train"]
    assert remote.folder_of(address) == folder


def test_another_shard_in_its_place_is_noticed(data: Path, address: str) -> None:
    folder = remote.folder_of(address)
    held, digest = HeldData.of(folder), digest_of(folder)
    held.check()
    fsspec.filesystem("memory").put_file(
        str(data / "valid" / "part-00000.parquet"), "/bucket/log/train/part-00000.parquet"
    )
    with pytest.raises(DataError, match="was replaced or changed"):
        held.check()
    assert digest_of(folder) != digest


def test_errors_name_the_address(address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/log/train/part-00000.parquet", b"PAR1 harmed")
    main_ends(["train", *SMALL, "training.device=cpu", "--output", str(tmp_path / "run"), "--data", address], 2)
    assert f"{address}/train/part-00000.parquet: not readable as Parquet" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"memory://bucket/none: no data set of `dmoe prepare` is there"):
        remote.folder_of("memory://bucket/none")


@pytest.mark.parametrize("place", ["nothing://user:secret@host/log", "sftp://user:secret@host/log?X-Signature=secret"])
def test_what_cannot_be_read_is_said_without_secrets(place: str) -> None:
    with pytest.raises((ConfigError, DataError)) as found:
        remote.folder_of(place)
    assert "secret" not in str(found.value)
    assert "host/log" in str(found.value)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(remote, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"dmoe\[remote\]"):
        remote.folder_of("s3://bucket/log")
