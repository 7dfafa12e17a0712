"""The loader of delivered source modules: a `SourceFileLoader` whose code is there already."""

import _imp
import marshal
import posix
from _frozen_importlib_external import SourceFileLoader

from mpiimport import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import CodeType
    from typing import Any, ClassVar

    from mpiimport.files import Files


def after_execution(spec: "ModuleSpec", change: "Callable[[Any], None]") -> None:
    """Have a module changed as soon as it is executed."""
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: "Any") -> None:
        del loader.exec_module  # a loader can be pickled and compared
        execute(module)
        change(module)

    loader.exec_module = exec_module


class DeliveredLoader(SourceFileLoader):
    """Load a source module from the code, compressed, that the root, or another rank of this host, has read.

    `exec_module` is not overridden, so that no frame of ours is in a traceback. The delivered code is used once: who
    asks again, `importlib.reload` for one, gets what is in the file by then.
    """

    files: "ClassVar[Files | None]" = None  # of this process: loaders can be pickled and compared

    def __init__(self, fullname: str, path: str, code: "bytes | memoryview") -> None:
        super().__init__(fullname, path)
        self.delivered: bytes | memoryview | None = code

    def get_code(self, fullname: str) -> "CodeType | None":
        """Return the module's code."""
        delivered = self.delivered
        if delivered is None:
            return super().get_code(fullname)
        self.delivered = None
        code: CodeType = marshal.loads(_core.decompress(bytes(delivered)))
        _imp._fix_co_filename(code, self.path)  # type: ignore[attr-defined]
        return code

    def get_data(self, path: str) -> bytes:
        """Return what is in a file: a data file of the package, source or bytecode."""
        if self.files is None or path == self.path or not isinstance(path, str) or path.endswith(".pyc"):
            return super().get_data(path)
        data = self.files.read(path)
        if isinstance(data, int):
            raise OSError(data, posix.strerror(data), path)
        return super().get_data(path) if data is None else data

    def __getstate__(self) -> "dict[str, object]":
        return {**self.__dict__, "delivered": None}
