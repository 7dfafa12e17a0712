"""How many file operations the imports of a program are for one rank: counted as `strace` would, without running it.

Counted are system calls that take a path, and `fstat`, that importlib makes to search folders and to find and read
modules, and the dynamic loader to open extension modules and the libraries that they need. Not counted are the start of
the interpreter and of MPI, which cost the same with mpiimport, what packages look at themselves, and what ld.so tries
on its way to a library. docs/explanation/operations.md has what was measured.
"""

import os
from _frozen_importlib_external import EXTENSION_SUFFIXES
from collections import Counter
from functools import cache

from mpiimport import _core, answers
from mpiimport.native import SYSTEM
from site_mpi import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mpiimport.answers import Answer
    from mpiimport.native import Native

    Operations = Counter[tuple[str, str]]

START = 14
"""What mpiimport's start costs a rank that is not rank 0, measured."""
READ_SOURCE = 5
"""One `stat` by the finder and one by the loader; one `open` and two `fstat` to read the bytecode."""
LIST_FOLDER = 3
"""To see that it is a folder, to open it and to list it."""
OPEN_NATIVE = 2
"""What the dynamic loader does with a file: `open` and `fstat`."""

is_folder = cache(boot.is_folder)


def of(found: "list[Answer]", native: "Native", *, is_shared: "Callable[[str], bool]") -> "dict[str, Any]":
    """Estimate for the modules that a program imports, with what is searched and not there.

    Return the number of `modules` and of `native_files`, and the `operations` of a rank of `plain` Python and of
    `python_mpi`, if all is foreseen and the rank is not rank 0: for the `start` of mpiimport, to search `folders`, to
    find and read `modules`, to open `libraries`; `all`, and of all those on `shared` filesystems.
    """
    extensions = [answer.origin for answer in found if answer.kind == answers.EXTENSION and answer.origin]
    closures = _core.closures(extensions, native.library_path, SYSTEM)
    native_files = {*extensions, *(path for needed in closures for path, _ in needed)}
    plain: Operations = Counter()
    ours: Operations = Counter({("start", boot.own_folder()): START})
    for answer in found:
        add_module(plain, answer)
    for path in native_files:
        plain["libraries", os.path.dirname(path)] += OPEN_NATIVE
        if not native.travels(path):
            ours["libraries", os.path.dirname(path)] += OPEN_NATIVE
    return {
        "modules": sum(answer.kind in (answers.SOURCE, answers.EXTENSION) for answer in found),
        "native_files": len(native_files),
        "operations": {"plain": summed(plain, is_shared), "python_mpi": summed(ours, is_shared)},
    }


def add_module(counted: "Operations", answer: "Answer") -> None:
    """Count what importlib does to find and read one module, or to see that it is not there."""
    place = os.path.dirname(answer.origin) if answer.origin else None
    if place is not None and answer.locations is not None:
        place = os.path.dirname(place)
    for folder in answer.path:
        if is_folder(folder):
            counted["folders", folder] += 1 if ("folders", folder) in counted else 1 + LIST_FOLDER
        if folder == place:
            break
    if place is not None:
        counted["modules", place] += 1 if answer.kind == answers.EXTENSION else READ_SOURCE
    for package in answer.locations or ():  # `__init__` is looked for as an extension module first
        counted["modules", os.path.dirname(package)] += len(EXTENSION_SUFFIXES)


def summed(counted: "Operations", is_shared: "Callable[[str], bool]") -> "dict[str, int]":
    """Return the counts by what they are for, their sum, and the sum of those on shared filesystems."""
    sums = dict.fromkeys(("start", "folders", "modules", "libraries", "all", "shared"), 0)
    for (what, folder), count in counted.items():
        sums[what] += count
        sums["all"] += count
        sums["shared"] += count if is_shared(folder) else 0
    return sums
