"""The `lockstep` policy: every question is collective, as in the first mpiimport and in MPI_Import's blocks.

Safe only where all ranks import the same modules in the same order: with fixed hash seeds and without imports that
depend on the rank. What is asked is compared, so a difference is an error here and never a wrong module; a rank that
does not come at all is named by those that wait.
"""

import _imp
import marshal

from mpiimport import _core, answers
from mpiimport.answers import Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpiimport.session import Session

ADVICE = (
    "In lock-step, all ranks import the same modules in the same order: set PYTHONHASHSEED=0 and let no import depend "
    "on the rank, or use the policy `opening` (docs/how-to/rank-dependent-imports.md)"
)


def ask(session: "Session", fullname: str, path: "Sequence[str] | None") -> Answer:
    """Have the root find the answer for all. Collective. Raises ImportError where ranks ask different questions."""
    name = fullname.encode("utf-8", "surrogatepass")
    what = "every rank to import `%s` (lockstep). %s" % (name.decode("utf-8", "replace"), ADVICE)
    mine = _imp.source_hash(0, name) + name[:120].ljust(120)
    everyone = session.together(_core.gather, mine, what)
    message = None
    if everyone is not None:
        differing = [rank for rank, one in enumerate(everyone) if one != mine]
        if differing:
            names = sorted({one[8:].decode("utf-8", "replace").strip() for one in everyone})
            message = marshal.dumps((False, names[:4], differing[:8]))
        else:
            found = session.misses.ask_here(fullname, path)
            code = None if found.code is None else bytes(found.code)
            message = marshal.dumps((True, found.path, found.kind, found.origin, found.locations, code))
    message = session.together(_core.broadcast, message, what)
    session.broadcast_bytes += len(message)
    agreed, *fields = marshal.loads(message)
    if not agreed:
        names, ranks = fields
        raise ImportError(
            "lockstep: the ranks import different modules at the same time (`%s`; rank %s not as rank 0). %s."
            % ("`, `".join(names), ", ".join(map(str, ranks)), ADVICE),
            name=fullname,
        )
    folders, *fields = fields
    if folders != list(answers.searched(path)):
        return session.misses.ask_here(fullname, path)  # this rank searches other folders than the root
    return Answer(folders, *fields)
