"""Checks of the project; `nox -s lint types tests` is what continuous integration runs.

The sessions run in the environment that nox runs in: torch makes every environment about 6 GB, so one is enough.
"""

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"  # the first with dependency groups
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]
PYPROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    """Install the project, editable, with dependency groups."""
    packages = nox.project.dependency_groups(PYPROJECT, *groups)
    session.run("python", "-m", "pip", "install", "--quiet", "--editable", ".", *packages, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, imports and the direction between packages."""
    install(session, "lint")
    session.run("ruff", "check", ".", external=True)
    session.run("ruff", "format", "--check", ".", external=True)
    session.run("lint-imports", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session, "types")
    session.run("mypy", *session.posargs, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and doctests; real servers are started by the tests that need them."""
    install(session, "test")
    # One process more than cores, for some tests wait for servers; one thread in each, for more of them would wait for
    # each other. Files come in their order: xdist would leave those with few and long tests to the end, where the other
    # cores wait for one.
    spread = ["-n", str((os.cpu_count() or 1) + 1), "--dist", "loadfile", "--no-loadscope-reorder"]
    words = ["-m", "not slow", *spread, *session.posargs]
    session.run("python", "-m", "pytest", *words, env={"OMP_NUM_THREADS": "1"}, external=True)


@nox.session(default=False)
def slow(session: nox.Session) -> None:
    """Run the proofs that take long, in full counts."""
    install(session, "test")
    session.run("python", "-m", "pytest", "-m", "slow", *session.posargs, external=True)


@nox.session(default=False, venv_backend="venv")
def minimums(session: nox.Session) -> None:
    """Run the tests against the oldest versions that pyproject.toml allows (needs `uv`; an environment of its own)."""
    session.install("uv")
    packages = nox.project.dependency_groups(PYPROJECT, "test")
    session.run("uv", "pip", "install", "--resolution", "lowest-direct", "--editable", ".", *packages)
    session.run("python", "-m", "pytest", "-m", "not slow and not services", *session.posargs)


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities; a package that could not be looked up fails too."""
    session.run("python", "-m", "pip", "install", "--quiet", "pip-audit", external=True)
    session.run("pip-audit", "--strict", "--skip-editable", *session.posargs, external=True)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks; figures mean something on an otherwise idle machine only."""
    install(session, "test")
    for script in sorted(Path("benchmarks").glob("*.py")):
        session.run("python", str(script), *session.posargs, external=True)
