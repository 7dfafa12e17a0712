"""The handoff to mpi4py: it finds MPI running, on the library that we use, and may still initialise it itself."""

import _imp
import sys
from _frozen_importlib_external import ExtensionFileLoader

from mpiimport import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from mpiimport.answers import Answer
    from mpiimport.finder import Finder
    from mpiimport.native import Native
    from site_mpi.boot import Place


def prepare(finder: "Finder", spec: "ModuleSpec | None", path: "Sequence[str] | None") -> "ModuleSpec | None":
    """Return the spec of `mpi4py.MPI`: of this finder, else of the finders after it (mpi4py has one of its own)."""
    place = finder.session.place
    if place is None:
        return spec
    abi: Any = sys.modules.get("mpi4py._mpiabi")
    if hasattr(abi, "LIBMPI"):
        if abi.LIBMPI is None:
            abi.LIBMPI = place["library"]
    else:
        import os

        os.environ.setdefault("MPI4PY_LIBMPI", place["library"])
    if spec is None:
        after = sys.meta_path[sys.meta_path.index(finder) + 1 :] if finder.is_installed() else ()
        for other in after:
            spec = other.find_spec("mpi4py.MPI", path, None)
            if spec is not None:
                break
        else:
            return None
        if type(spec.loader) is ExtensionFileLoader:
            spec.loader = finder.extension_loader("mpi4py.MPI", spec.loader.path)
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        del loader.exec_module  # a loader can be pickled and compared
        refuse_other_library(spec.origin, finder.session.native, place)
        execute(module)
        check_world(module, place)
        let_initialise(module)

    loader.exec_module = exec_module
    return spec


def variants(missing: "Iterable[tuple[str, Answer]]", place: "Place") -> "list[str]":
    """List the files that mpi4py's own finder may choose for this MPI, if its module is among those not found."""
    found = [
        "%s/MPI.%s%s" % (folder, place["abi"], suffix)
        for fullname, answer in missing
        for folder in answer.path
        for suffix in _imp.extension_suffixes()
        if fullname == "mpi4py.MPI"
    ]
    return [path for path, state in zip(found, _core.states(found)) if state is not None]


def refuse_other_library(origin: "str | None", native: "Native", place: "Place") -> None:
    """Raise ImportError if this extension module is linked to another MPI library than the one in use."""
    if origin is None or ".mpich." in origin or ".openmpi." in origin:
        return  # the wheels' modules bind to what is loaded
    needed, _ = _core.needed(native.copy_of(origin))
    loaded = place["library"].rpartition("/")[2]
    linked = [name for name in needed if name.startswith("libmpi") and ".so" in name]
    if linked and not any(loaded == name or loaded.startswith(name + ".") for name in linked):
        raise ImportError(
            "`%s` is linked to %s, but rank %d runs on `%s`. Set MPIIMPORT_LIBMPI to the file of %s."
            % (origin, ", ".join(linked), place["rank"], place["library"], linked[0]),
            name="mpi4py.MPI",
            path=origin,
        )


def check_world(module: "Any", place: "Place") -> None:
    """Raise ImportError if mpi4py does not see the world that we see: it would be on another library."""
    if not module.Is_initialized() or (not module.Is_finalized() and module.COMM_WORLD.Get_size() != place["size"]):
        raise ImportError(
            "mpi4py does not use the MPI library `%s` that started this job. Set MPI4PY_LIBMPI and MPIIMPORT_LIBMPI "
            "to the same file." % place["library"],
            name="mpi4py.MPI",
            path=module.__file__,
        )


def let_initialise(module: "Any") -> None:
    """Let a program that set `mpi4py.rc.initialize = False` call MPI.Init once: MPI runs already."""
    rc = sys.modules.get("mpi4py.rc") or sys.modules["mpi4py"].rc
    if rc.initialize:
        return
    init, init_thread = module.Init, module.Init_thread

    def restore() -> None:
        module.Init, module.Init_thread = init, init_thread

    def first_init() -> None:
        """Initialize the MPI execution environment."""
        restore()

    def first_init_thread(required: int = module.THREAD_MULTIPLE) -> int:  # noqa: ARG001
        """Initialize the MPI execution environment, and return the level of thread support."""
        restore()
        return int(module.Query_thread())

    module.Init, module.Init_thread = first_init, first_init_thread
