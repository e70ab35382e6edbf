"""`nox` runs what must hold on every commit: lint, types, tests."""

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

ROOTS = (".", "kernels", "studies", "cli")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, and that imports run one way only."""
    session.install("ruff>=0.14", "import-linter>=2")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": ":".join(ROOTS)})


@nox.session
def types(session: nox.Session) -> None:
    """Static types of everything that ships."""
    session.install(".", "mypy>=1.15")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite; arguments after -- go to pytest."""
    session.install(".[dev,slurm,ray,trackers,docs]")
    arguments = session.posargs or [
        "-n",
        "2",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        "--durations=15",
    ]
    session.run("pytest", *arguments, env={"OMP_NUM_THREADS": "1"})


@nox.session
def site(session: nox.Session) -> None:
    """The documentation as a site, in site/; the tests build it too, and fail at a broken link."""
    session.install(".[docs]")
    session.run("mkdocs", "build", "--strict")


@nox.session(python=["3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """The test suite on later Pythons, where their interpreters are: `nox -s pythons`. 3.11 is what is promised."""
    tests(session)
