"""The finder that stands in `PathFinder`'s place in `sys.meta_path`: from a question to a spec."""

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import (  # type: ignore[attr-defined]
    ExtensionFileLoader,
    PathFinder,
    SourceFileLoader,
    _NamespacePath,
    spec_from_file_location,
)
from _thread import get_ident

from mpiimport import answers, handoff, lockstep
from mpiimport.answers import EXTENSION, LOCAL, MISSING, NAMESPACE, SOURCE, Answer
from mpiimport.loader import DeliveredLoader
from mpiimport.native import DeliveredExtensionLoader, redirect_ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType
    from typing import Any

    from mpiimport.answers import Witness
    from mpiimport.opening import Received
    from mpiimport.session import Session


class Finder(type):
    """A meta-path finder that knows the answers to most questions already.

    An answer comes from an opening, else from another rank of this host, else from the real machinery. It never
    waits for a rank of another host, the policy `lockstep` aside.

    A finder is a class named `PathFinder` and equal to the original: as that, programs look for it in `sys.meta_path`.
    """

    def __new__(cls, session: "Session") -> "Finder":  # noqa: ARG004
        """Return a class that looks like the original."""
        # By the module, `importlib_metadata` knows whose distributions it finds now.
        namespace = {"__module__": PathFinder.__module__, "__doc__": PathFinder.__doc__}
        return super().__new__(cls, PathFinder.__name__, (), namespace)

    def __init__(self, session: "Session") -> None:
        super().__init__(PathFinder.__name__, (), {})
        self.session = session
        self.openings: list[Received] = []
        self.unchanged: set[Witness] = set()  # since the last import statement that is not the environment's
        self.path_hooks: list[Any] | None = None
        self.confirms_missing = False
        self.recorded: dict[str, Answer] | None = None
        self.busy: set[int] = set()
        self.counts = {"opening": 0, "missing": 0, "node": 0, "lockstep": 0, "local": 0}
        self.missed: list[str] = []
        self.extensions = 0
        self.sources_read = 0

    def __eq__(self, other: object) -> bool:
        return other is self or other is PathFinder

    def __hash__(self) -> int:
        return hash(PathFinder)

    def is_installed(self) -> bool:
        """Whether it stands in `PathFinder`'s place."""
        return any(finder is self for finder in sys.meta_path)

    def install(self) -> None:
        """Take `PathFinder`'s place."""
        if not self.is_installed():
            where = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
            sys.meta_path[where : where + 1] = [self]

    def uninstall(self) -> None:
        """Give `PathFinder` its place back."""
        sys.meta_path[:] = [PathFinder if finder is self else finder for finder in sys.meta_path]

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the spec of a module, as `PathFinder.find_spec` would, or None."""
        policy = self.session.current_policy()
        ident = get_ident()
        # `importlib.reload` has a target: it wants what is in the file now. And code that runs while this thread is
        # in here already, a finaliser for one, must not wait for what the thread itself is about to give.
        if target is not None or policy == "local" or ident in self.busy:
            self.tell(fullname, "local", None)
            spec = PathFinder.find_spec(fullname, path, target)
            return handoff.prepare(self, spec, path) if fullname == "mpi4py.MPI" and target is None else spec
        self.busy.add(ident)
        try:
            answer, how = self.ask(fullname, path, policy)
        finally:
            self.busy.discard(ident)
        self.tell(fullname, how, answer)
        spec = self.spec(fullname, path, answer)
        if fullname == "mpi4py.MPI":
            return handoff.prepare(self, spec, path)
        if fullname == "_ctypes" and spec is not None and self.session.native.folder is not None:
            redirect_ctypes(spec, self.session.native)
        if spec is not None:
            self.session.files.prepare(spec)
        return spec

    def ask(self, fullname: str, path: "Sequence[str] | None", policy: str) -> "tuple[Answer, str]":
        """Return (answer, how it was found)."""
        session = self.session
        hooked = self.path_hooks is not None and sys.path_hooks != self.path_hooks
        uses_bytecode = True
        if not hooked:
            folders = answers.searched(path)
            if type(folders) is not list:
                folders = list(folders)
            session.note("module", fullname, *folders)
            if self.unchanged and not is_asked_while_importing(session.stable):
                self.unchanged.clear()
            for opening in self.openings:
                answer = opening.answer(fullname, folders, self.unchanged)
                if answer is not None and not (self.confirms_missing and answer.kind is MISSING):
                    return answer, "opening"
            # What changed since the forecast compiled it may have the second and the size of the old one.
            uses_bytecode = not any(opening.foresaw(fullname, folders) for opening in self.openings)
        if session.place is None and uses_bytecode and self.recorded is None:
            return Answer([], LOCAL), "local"  # there is nobody to share it with
        if policy == "lockstep" and session.is_connected():
            return lockstep.ask(session, fullname, path), "lockstep"
        if hooked or self.confirms_missing:
            answer, shared = session.misses.ask_here(fullname, path, uses_bytecode=uses_bytecode), False
        else:
            answer, shared = session.misses.ask(fullname, path, uses_bytecode=uses_bytecode)
        if answer.kind == SOURCE and not shared:
            self.sources_read += 1
        if self.recorded is not None:
            self.recorded[fullname] = answer
        return answer, "node" if shared else "local"

    def spec(self, fullname: str, path: "Sequence[str] | None", answer: "Answer") -> "ModuleSpec | None":
        """Return the spec that the answer stands for."""
        kind, origin, locations = answer.kind, answer.origin, answer.locations
        if kind == MISSING:
            return None
        if kind == SOURCE and origin is not None:
            code = answer.code
            loader = DeliveredLoader(fullname, origin, code) if code is not None else SourceFileLoader(fullname, origin)
            return spec_from_file_location(
                fullname,
                origin,
                loader=loader,
                submodule_search_locations=None if locations is None else list(locations),
            )
        if kind == EXTENSION and origin is not None:
            return spec_from_file_location(
                fullname,
                origin,
                loader=self.extension_loader(fullname, origin),
                submodule_search_locations=None if locations is None else list(locations),
            )
        if kind == NAMESPACE:
            spec = ModuleSpec(fullname, None, is_package=True)
            portions = list(answer.locations or ())
            spec.submodule_search_locations = _NamespacePath(fullname, portions, PathFinder._get_spec)  # type: ignore[attr-defined]
            return spec
        assert kind == LOCAL, kind
        return PathFinder.find_spec(fullname, path)

    def extension_loader(self, fullname: str, origin: str) -> ExtensionFileLoader:
        """Return the loader of an extension module: from this host's node store, where it is or can be there."""
        self.extensions += 1
        native = self.session.native
        if self.session.current_policy() == "opening":
            self.session.misses.copy_native(origin)
        if origin in native.present:
            return DeliveredExtensionLoader(fullname, origin, native)
        return ExtensionFileLoader(fullname, origin)

    def tell(self, fullname: str, how: str, answer: "Answer | None") -> None:
        """Count how a module was found, and say it if asked to."""
        if answer is not None and answer.kind == MISSING:
            self.counts["missing"] += 1
        else:
            self.counts[how] += 1
        if how in ("local", "node") and self.session.opens and self.recorded is None:
            self.missed.append(fullname)
        if self.session.verbose:
            size = len(answer.code) if answer is not None and answer.code is not None else None
            self.session.say(
                "%s: %s%s%s"
                % (
                    fullname,
                    how,
                    "" if answer is None else ", " + answer.kind,
                    "" if size is None else ", %d bytes" % size,
                )
            )

    def invalidate_caches(self) -> None:
        """From now on, what an opening does not have is looked for."""
        self.confirms_missing = True
        self.unchanged.clear()
        PathFinder.invalidate_caches()

    @property
    def find_distributions(self) -> "Callable[..., Iterable[Any]]":
        """Find the metadata of installed distributions, for `importlib.metadata`."""
        return PathFinder.find_distributions

    @find_distributions.deleter
    def find_distributions(self) -> None:
        """Leave that to another finder: `importlib_metadata` brings one along, and asks `PathFinder` to stop."""
        del PathFinder.find_distributions


def is_asked_while_importing(stable: "tuple[str, ...]") -> bool:
    """Whether the import statement that asks belongs to a module of the environment that is itself being imported.

    `stable` is the environment's folders. Called for `Finder.ask`, whom `find_spec` has called for importlib.
    """
    frame = sys._getframe(2).f_back
    while frame is not None and frame.f_code.co_filename.startswith("<frozen importlib."):
        frame = frame.f_back
    if frame is None or frame.f_code.co_name != "<module>":
        return False
    spec = frame.f_globals.get("__spec__")
    if type(spec) is not ModuleSpec or not getattr(spec, "_initializing", False):
        return False
    return type(spec.origin) is str and spec.origin.startswith(stable)
