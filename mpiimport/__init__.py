"""Start Python on many MPI ranks: the root finds and reads the modules, all ranks receive them.

Most programs need nothing of this: `mpiexec -n 4096 python-mpi script.py` does all. The functions here are for
programs that are started by plain Python, and for imports that only some ranks do, or do late. The module is also
`sys.mpiimport` while it is installed, so that programs can use it if it is there.
"""

import sys

from mpiimport import session as _sessions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "after_import",
    "collective",
    "deliver",
    "disjoint",
    "install",
    "resume",
    "stats",
    "stop",
    "uninstall",
]


def install(**settings: object) -> None:
    """Join the other ranks and take `PathFinder`'s place, in a program that plain Python started.

    Collective. What the program's file may import is foreseen and delivered. Settings are those of `python-mpi
    --help`, with underscores; without one, its `MPIIMPORT_*` variable holds. Without an MPI launcher, nothing happens.

    Raises ValueError for a setting that makes no sense, RuntimeError where MPI is there and does not work.
    """
    from site_mpi import boot

    if _sessions.current is not None:
        _sessions.current.finder.install()
        sys.mpiimport = sys.modules[__name__]  # type: ignore[attr-defined]
        return
    try:
        boot.install(settings)
    except boot.UsageError as cause:
        raise ValueError(str(cause)) from None


def uninstall() -> None:
    """Give `PathFinder` its place back. What was imported stays. Not collective."""
    if _sessions.current is not None:
        _sessions.current.finder.uninstall()
        if getattr(sys, "mpiimport", None) is sys.modules[__name__]:
            del sys.mpiimport  # type: ignore[attr-defined]


def stop() -> None:
    """Make the imports of this rank local until `resume`. Not collective."""
    if _sessions.current is not None:
        _sessions.current.stopped = True


def resume() -> None:
    """Undo `stop`. Not collective."""
    if _sessions.current is not None:
        _sessions.current.stopped = False


class _Policy:
    """A context manager in which this thread imports by another policy; it can be used with and without a call."""

    def __init__(self, policy: str) -> None:
        self._policy = policy

    def __call__(self) -> "_Policy":
        """Return the context manager itself."""
        return self

    def __enter__(self) -> "_Policy":
        """Begin the block."""
        session = _sessions.current
        if session is not None:
            override = session.override
            override.__dict__.setdefault("outer", []).append(getattr(override, "policy", None))
            override.policy = self._policy
        return self

    def __exit__(self, *_: object) -> None:
        """End the block; after the outermost collective one, what `after_import` was given runs."""
        session = _sessions.current
        if session is None:
            return
        session.override.policy = session.override.__dict__["outer"].pop()
        if self._policy == "lockstep" and session.current_policy() != "lockstep":
            waiting = session.override.__dict__.pop("after", [])
            for function in waiting:
                function()


disjoint = _Policy("local")
"""`with mpiimport.disjoint:` imports what only some ranks need, each rank for itself. Not collective."""

collective = _Policy("lockstep")
"""`with mpiimport.collective:` has all ranks import the same modules in the same order. Collective."""


def after_import(function: "Callable[[], object]") -> None:
    """Call `function()` when the `collective` block around this is left, or now if there is none."""
    session = _sessions.current
    if session is not None and session.current_policy() == "lockstep":
        session.override.__dict__.setdefault("after", []).append(function)
    else:
        function()


def deliver(*names: str) -> None:
    """Have the root find and read these modules, and what they may import, for all ranks. Collective.

    Afterwards any rank may import them, in any order. Raises ImportError, on every rank, for a name that is not found.
    """
    session = _sessions.current
    if session is None or not session.is_connected():
        return
    session.deliver(names)


def stats() -> "dict[str, Any]":
    """Return what this rank did so far, as a dict. Not collective.

    `rank`, `size`, `host`, `policy`, `library`: this rank's place. `modules`: how many were answered by an `opening`,
    are `missing`, came from another rank of the `node`, from a `lockstep` broadcast, or were found `local`ly.
    `missed`: the names that no opening foresaw. `extensions`: how many extension modules this rank opened, and
    `sources_read`: how many source modules it read itself.
    `foreseen`: how many answers were delivered. `broadcast_bytes`: how much this rank received. `seconds`:
    how long it took to `find_libmpi`, to `start_mpi` and join the others, and for the root's `forecast`.
    """
    if _sessions.current is None:
        return {}
    return _sessions.current.stats()
