"""Misses: questions that no opening answers are asked once per host, and shared through the node store."""

import _imp
import marshal

from mpiimport import _core, answers
from mpiimport.answers import Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from mpiimport.native import Native

CLAIM_TIMEOUT_S = 10.0
"""A rank that finds something takes milliseconds; after this long another finds it for itself."""


class Misses:
    """Asks the real machinery, on one rank of this host where the answer may serve others."""

    def __init__(self, native: "Native", *, writes_bytecode: bool) -> None:
        self.stable: tuple[str, ...] = ()
        self.native = native
        self.shares = False
        self.writes_bytecode = writes_bytecode

    def ask_here(self, fullname: str, path: "Sequence[str] | None", *, uses_bytecode: bool = True) -> Answer:
        """Ask on this rank."""
        return answers.ask(
            fullname, path, self.stable, writes_bytecode=self.writes_bytecode, uses_bytecode=uses_bytecode
        )[0]

    def ask(self, fullname: str, path: "Sequence[str] | None", *, uses_bytecode: bool = True) -> "tuple[Answer, bool]":
        """Ask once per host. Return (answer, whether another rank of this host gave it)."""
        question = (fullname, list(answers.searched(path)))

        def find() -> "tuple[Answer, Any]":
            answer = self.ask_here(fullname, path, uses_bytecode=uses_bytecode)
            code = None if answer.code is None else bytes(answer.code)
            return answer, (answer.kind, answer.origin, answer.locations, code, answer.witnesses)

        answer, fields = self.once(question, find)
        if answer is not None:
            return answer, False
        if fields is not None:
            shared = Answer(question[1], *fields)
            if answers.holds(shared, fullname):
                return shared, True
        return self.ask_here(fullname, path, uses_bytecode=uses_bytecode), False

    def copy_native(self, origin: str) -> None:
        """Have an extension module that no opening brought in this host's node store, with its libraries."""
        native = self.native
        if native.folder is None or origin in native.present or not self.shares or not native.travels(origin):
            return

        def copy() -> "tuple[Any, Any]":
            copied = native.copy_here(origin)
            return copied, copied

        mine, others = self.once(("native", origin), copy)
        copied = mine or others
        if copied is not None:
            native.learn(copied, origin)

    def claim(self, key: str) -> "Any":
        """Wait until a question is answered, or this rank's to answer: see `_core.store_claim`."""
        return _core.store_claim(key, CLAIM_TIMEOUT_S)

    def once(self, question: "tuple[Any, ...]", find: "Callable[[], tuple[Any, Any]]") -> "tuple[Any, Any]":
        """Have one rank of this host find something, and the others take it from the node store.

        `find` returns what it found, and the same as what `marshal` can carry. Return (what this rank found, None),
        or (None, what another rank found), or (None, None) where every rank has to find for itself.
        """
        if not self.shares:
            return None, None
        key = _imp.source_hash(0, repr(question).encode("utf-8", "surrogatepass")).hex()
        try:
            claimed = self.claim(key)
        except OSError:
            return None, None  # the store is full or gone
        if claimed is None:
            return None, None
        if claimed is not True:
            asked, fields = marshal.loads(claimed)
            return None, fields if asked == question else None
        message = None
        try:
            found, fields = find()
            message = marshal.dumps((question, fields))
        finally:
            try:
                _core.store_put(key, message)
            except OSError:
                self.shares = False  # no room: from now on this rank reads for itself
        return found, None
