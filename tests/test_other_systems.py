"""Where Python and the system have less than on Linux, as on Windows: dmoe imports and trains, or says what lacks."""

import subprocess
import sys
from pathlib import Path

import pytest

from dmoe.errors import UserError
from dmoe.serving.server import check_system

# What is taken away after other libraries have been imported, which have other code for other systems.
AS_ELSEWHERE = """
import importlib, os, pkgutil, signal, sys
from pathlib import Path
import dmoe

def every():
    for module in pkgutil.walk_packages(dmoe.__path__, "dmoe."):
        if not module.name.endswith("__main__"):
            yield module.name

for name in every():
    importlib.import_module(name)

class Absent:
    names = {"resource", "fcntl", "pwd", "grp", "termios", "triton"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in {"dmoe", *Absent.names}]:
    del sys.modules[name]
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in Absent.names else real(name, package)
sys.meta_path.insert(0, Absent())
for module, names in (
    (os, ("register_at_fork", "sched_getaffinity", "sysconf", "sysconf_names", "fork", "getuid", "statvfs", "fchmod")),
    (signal, ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "pthread_sigmask")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

needs_triton = []
for name in every():
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name.partition(".")[0] == "triton", (name, error)
        needs_triton.append(name)
print(*needs_triton)

from dmoe.machine.limits import peak_memory_bytes
from dmoe.training.loop import train
from tests.small_runs import small_config

assert peak_memory_bytes() is None
train(small_config("training.epochs=1"), Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow  # everything is imported twice
def test_it_imports_and_trains_without_what_linux_alone_has(small_data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_ELSEWHERE, str(small_data), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all("triton" in name or name == "dmoe.optim.deferred_device" for name in done.stdout.split())
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_the_server_says_that_it_needs_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    check_system()
    monkeypatch.delattr("signal.SIGHUP")
    with pytest.raises(UserError, match=r"dmoe serve .* needs Linux or macOS") as error:
        check_system()
    assert "\n" not in str(error.value)
