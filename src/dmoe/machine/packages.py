"""The packages that dmoe needs, and those of its extras: which are here, and in which version."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

# What each extra is for; those of development are not told.
EXTRAS = {
    "polars": "dmoe prepare --engine polars",
    "spark": "dmoe prepare --engine spark; Java 17 or newer too",
    "baselines": "boosted trees: dmoe baseline --kind lightgbm",
    "export": "dmoe export",
    "serve": "dmoe serve",
    "tune": "dmoe tune",
    "tensorboard": "curves of a training in TensorBoard: --track tensorboard",
    "mlflow": "curves of a training in MLflow: --track mlflow",
    "ray": "dmoe train by Ray: several processes, several machines",
    "remote": "data sets at addresses; and the storage's own package: s3fs, gcsfs, …",
    "gpu": "kernels for embedding tables on CUDA devices",
}
DEVELOPMENT = ("docs", "release", "test", "dev")


@dataclass(frozen=True, slots=True)
class Package:
    """`found` is the installed version, None if there is none; `wanted` the versions that fit, empty for any."""

    name: str
    wanted: str
    found: str | None
    fits: bool


@dataclass(frozen=True, slots=True)
class Extra:
    """An extra, what it is for, and its packages."""

    name: str
    purpose: str
    packages: list[Package]

    @property
    def install(self) -> str:
        return f"pip install 'dmoe[{self.name}]'"

    @property
    def complete(self) -> bool:
        return all(one.fits for one in self.packages)


def core_packages() -> list[Package]:
    """The packages without which dmoe does not work."""
    return [_package(one) for one in _requirements(None)]


def extras() -> list[Extra]:
    """The extras that the installed dmoe has, but for those of development."""
    known = [name for name in _names() if name not in DEVELOPMENT]
    return [Extra(name, EXTRAS.get(name, ""), [_package(one) for one in _requirements(name)]) for name in known]


def installed(name: str) -> str | None:
    """The installed version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _names() -> list[str]:
    marks = [Requirement(text).marker for text in _said()]
    found = [str(one).partition('extra == "')[2].partition('"')[0] for one in marks if one is not None]
    return [name for name in dict.fromkeys(found) if name]


def _requirements(extra: str | None) -> list[Requirement]:
    """Of an extra, or of all; those that are for other systems are left out."""
    found = []
    for text in _said():
        one = Requirement(text)
        core = one.marker is None or one.marker.evaluate({"extra": ""})
        wanted = (
            core if extra is None else not core and one.marker is not None and one.marker.evaluate({"extra": extra})
        )
        if wanted and one.name != "dmoe":
            found.append(one)
    return found


def _said() -> list[str]:
    try:
        return requires("dmoe") or []
    except PackageNotFoundError:
        return []


def _package(requirement: Requirement) -> Package:
    found, wanted = installed(requirement.name), requirement.specifier
    fits = found is not None and wanted.contains(found, prereleases=True)
    return Package(requirement.name, str(wanted), found, fits)
