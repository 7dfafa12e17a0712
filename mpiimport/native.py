"""Native code: extension modules and the libraries that they need, opened from this host's node store.

The store mirrors the tree that the originals are in, so that what they search relative to `$ORIGIN` is there. What a
library needs is loaded before it, in the order that the dynamic loader would take; then names suffice. Whatever cannot
be had from the store is opened where it lies, and fails there, if it does, with the message that it always has.
"""

import _imp
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader

from mpiimport import _core
from mpiimport.loader import after_execution
from site_mpi import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType
    from typing import Any, Optional

    from mpiimport.bundle import Bundle

    Library = tuple[str, Optional[str]]
    Plan = tuple[list[str], list[str], dict[str, list[Library]], dict[str, bool], int]
    """The files that travel, the links to their siblings, the libraries of each extension module, which folders hold
    what travels, and the size of the files in bytes."""
    Copied = tuple[list[str], list[Library], int]
    """The files that are in the node store, the libraries of the extension module, and how many bytes were copied."""

SYSTEM = ["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec"]
"""Libraries below these folders are each host's own."""


class Native:
    """What this host's node store has of native code, and what may be put there."""

    def __init__(self, wanted: str, limit_bytes: int) -> None:
        self.wanted = wanted
        self.limit_bytes = limit_bytes
        self.folder: str | None = None
        self.present: set[str] = set()
        self.libraries: dict[str, list[Library]] = {}
        self.used_bytes = 0
        self.folders: dict[str, bool] = {}
        self.library_path = [
            folder for folder in posix.environ.get(b"LD_LIBRARY_PATH", b"").decode().split(":") if folder[:1] == "/"
        ]

    def travels(self, path: str) -> bool:
        """Whether this file is to be copied to each host."""
        if self.wanted != "auto":
            return self.wanted == "always"
        folder = path.rpartition("/")[0]
        if folder not in self.folders:
            self.look([folder])
        return self.folders[folder]

    def look(self, folders: "Iterable[str]") -> None:
        """Find out which of these folders hold what travels."""
        if self.wanted == "auto":
            unknown = list(set(folders) - self.folders.keys())
            self.folders.update(zip(unknown, boot.are_on_shared_filesystems(unknown)))

    def plan(self, certain: "Iterable[str]", possible: "Iterable[str]", known: "_core.Modules") -> "Plan":
        """Choose, on the root, what travels, of extension modules that will be imported and that may be.

        Beyond the size limit, the largest files stay where they lie. What `known` has looked into is not read again.
        """
        certain = list(certain)
        self.look(path.rpartition("/")[0] for path in [*possible, *certain])
        origins = [origin for origin in certain if self.travels(origin)]
        found = _core.closures(origins, self.library_path, SYSTEM, known)
        libraries = dict(zip(origins, found))
        files = dict.fromkeys([path for needed in found for path, _ in needed if self.travels(path)] + origins)
        # What is gone since it was found is not there: who imports it will say so.
        sizes = {path: state[1] for path, state in zip(files, _core.states(list(files))) if state is not None}
        total = self.fit(sizes)
        links = siblings({path for needed in found for path, _ in needed}, sizes)
        return list(sizes), links, libraries, self.folders, total

    def fit(self, sizes: "dict[str, int]") -> int:
        """Leave out the largest files, beyond the size limit. Return the size of the rest in bytes."""
        total = sum(sizes.values())
        for path in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if total <= self.limit_bytes:
                break
            total -= sizes.pop(path)
        return total

    def deliver(self, plan: "Plan", *, bundle: "Bundle | None" = None) -> None:
        """Put what was planned into the node store of each host. Collective.

        The root reads it where it lies, or in a bundle.
        """
        files, links, libraries, folders, total = plan
        self.folders.update(folders)
        self.used_bytes += total
        if not files:
            return
        _core.next_step("sends native code to the hosts", size_bytes=total)
        source = None if bundle is None else (bundle.opened, [bundle.native[path] for path in files])
        arrived = _core.deliver_files(files, links, source, "rank 0 to read the native libraries")
        self.present.update(path for path, is_there in zip(files, arrived) if is_there)
        self.libraries.update(libraries)

    def copy_here(self, origin: str) -> "Copied":
        """Copy an extension module that no opening brought to this host, with its libraries; say what there is then."""
        libraries = _core.closures([origin], self.library_path, SYSTEM)[0]
        files = [path for path, _ in libraries if self.travels(path)] + [origin]
        try:
            total = sum(posix.stat(path).st_size for path in files if path not in self.present)
            if self.used_bytes + total > self.limit_bytes:
                return [], libraries, 0
            _core.store_link(siblings({path for path, _ in libraries}, files))
        except OSError:
            return [], libraries, 0  # gone since it was found, or no room
        arrived = _core.store_copy(files)
        return [path for path, is_there in zip(files, arrived) if is_there], libraries, total

    def learn(self, copied: "Copied", origin: str) -> None:
        """Take note of what a rank of this host has copied."""
        files, self.libraries[origin], total = copied
        self.present.update(files)
        self.used_bytes += total

    def refuse_truncated(self, fullname: str, origin: str) -> None:
        """Raise ImportError where loading a damaged file would end the process with a signal."""
        for path in (origin, *(path for path, _ in self.libraries.get(origin, ()))):
            if path in self.present and _core.is_truncated(self.copy_of(path)):
                raise ImportError("%s: file too short" % path, name=fullname, path=origin)

    def copy_of(self, path: str) -> str:
        """Return where a file is to be opened: its copy on this host, or itself."""
        return "%s/root%s" % (self.folder, path) if path in self.present else path


def siblings(libraries: "set[str]", copied: "Iterable[str]") -> "list[str]":
    """List the libraries that stay beside those that travel: one may open another when it runs.

    Their variants for some processors are among them.
    """
    copied = set(copied)
    found = []
    folders = sorted({path.rpartition("/")[0] for path in libraries})
    for folder in folders:
        try:
            names = posix.listdir(folder)
            if "glibc-hwcaps" in names:
                variants = folder + "/glibc-hwcaps"
                folders += [variants + "/" + level for level in posix.listdir(variants)]
        except OSError:
            continue  # gone since it was found
        found += [folder + "/" + name for name in names if ".so" in name and folder + "/" + name not in copied]
    return found


def redirect_ctypes(spec: ModuleSpec, native: Native) -> None:
    """Have `ctypes` open the copy that extension modules use of a library: it must not be loaded twice."""

    def change(module: "Any") -> None:
        from os.path import normpath

        dlopen = module.dlopen

        def dlopen_copy(name: "Any", *flags: "Any") -> "Any":
            """Load a library, or its copy on this host."""
            if type(name) is str and name[:1] == "/":
                copy = native.copy_of(normpath(name))
                if copy != name:
                    try:
                        return dlopen(copy, *flags)
                    except OSError:
                        pass  # the original says what is wrong, if it is wrong as well
            return dlopen(name, *flags)

        module.dlopen = dlopen_copy

    after_execution(spec, change)


class DeliveredExtensionLoader(ExtensionFileLoader):
    """Load an extension module from the node store; its `__file__` and its spec are the original's."""

    def __init__(self, fullname: str, path: str, native: Native) -> None:
        super().__init__(fullname, path)
        self.native: Native | None = native

    def create_module(self, spec: ModuleSpec) -> "ModuleType":
        """Create the module, after the libraries that it needs."""
        native, self.native = self.native, None
        if native is not None and spec.name == self.name:
            native.refuse_truncated(spec.name, self.path)
            try:
                for path, soname in native.libraries.get(self.path, ()):
                    _core.preload(native.copy_of(path), soname, sys.getdlopenflags())
                copy = ModuleSpec(spec.name, self, origin=native.copy_of(self.path))
                module: ModuleType = _imp.create_dynamic(copy)
            except (ImportError, OSError):
                pass  # the original says what is wrong, if it is wrong as well
            else:
                if getattr(module, "__file__", None) is not None:
                    module.__file__ = self.path
                return module
        return super().create_module(spec)

    def __getstate__(self) -> "dict[str, object]":
        return {**self.__dict__, "native": None}
