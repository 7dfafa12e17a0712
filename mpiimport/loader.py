"""The loader of delivered source modules: a `SourceFileLoader` whose code is there already."""

import _imp
import marshal
from _frozen_importlib_external import SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType


class DeliveredLoader(SourceFileLoader):
    """Load a source module from the code that the root, or another rank of this host, has read.

    Only `get_code` is overridden, so that no frame of ours is in a traceback. The delivered code is used once: who
    asks again, `importlib.reload` for one, gets what is in the file by then.
    """

    def __init__(self, fullname: str, path: str, code: "bytes | memoryview") -> None:
        super().__init__(fullname, path)
        self.delivered: bytes | memoryview | None = code

    def get_code(self, fullname: str) -> "CodeType | None":
        """Return the module's code."""
        delivered = self.delivered
        if delivered is None:
            return super().get_code(fullname)
        self.delivered = None
        code: CodeType = marshal.loads(delivered)
        _imp._fix_co_filename(code, self.path)  # type: ignore[attr-defined]
        return code

    def __getstate__(self) -> "dict[str, object]":
        return {**self.__dict__, "delivered": None}
