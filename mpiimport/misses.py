"""Misses: questions that no opening answers are asked once per host, and shared through the node store."""

import _imp
import marshal

from mpiimport import _core, answers
from mpiimport.answers import Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CLAIM_TIMEOUT_S = 10.0
"""A rank that finds something takes milliseconds; after this long another finds it for itself."""


class Misses:
    """Asks the real machinery, on one rank of this host where the answer may serve others."""

    def __init__(self, stable: "tuple[str, ...]", *, shares: bool, writes_bytecode: bool) -> None:
        self.stable = stable
        self.shares = shares
        self.writes_bytecode = writes_bytecode

    def ask_here(self, fullname: str, path: "Sequence[str] | None") -> Answer:
        """Ask on this rank."""
        return answers.ask(fullname, path, self.stable, writes_bytecode=self.writes_bytecode)[0]

    def ask(self, fullname: str, path: "Sequence[str] | None") -> "tuple[Answer, bool]":
        """Ask once per host. Return (answer, whether another rank of this host gave it)."""
        if not self.shares:
            return self.ask_here(fullname, path), False
        question = (fullname, list(answers.searched(path)))
        key = _imp.source_hash(0, repr(question).encode("utf-8", "surrogatepass")).hex()
        try:
            claimed = _core.store_claim(key, CLAIM_TIMEOUT_S)
        except OSError:
            claimed = None  # the store is full or gone: every rank for itself
        if claimed is None:
            return self.ask_here(fullname, path), False
        if claimed is not True:
            stored, *fields = marshal.loads(claimed)
            if stored == question:
                answer = Answer(question[1], *fields)
                if answers.holds(answer, fullname):
                    return answer, True
            return self.ask_here(fullname, path), False
        message = None
        try:
            answer = self.ask_here(fullname, path)
            code = None if answer.code is None else bytes(answer.code)
            fields = (answer.kind, answer.origin, answer.locations, code, answer.witnesses)
            message = marshal.dumps((question, *fields))  # type: ignore[arg-type]
        finally:
            try:
                _core.store_put(key, message)
            except OSError:
                self.shares = False  # no room: the others read for themselves
        return answer, False
