"""The Rust core: MPI at run time, broadcasts, the node store. Its source is in `rust/src`."""

from typing import Any, final

__version__: str

def abi_constants(abi: str) -> dict[str, int | str]:
    """Return the constants of an ABI (`mpich`, `openmpi` or `mpiabi`) by their names in mpi.h.

    A handle that is the address of an exported object is that object's name.
    """

def abort(status: int, grace_s: float) -> None:
    """Abort the job with `status` when the interpreter ends, or after `grace_s` if it has not by then; 0: now."""

def broadcast(data: bytes | None, what: str) -> bytes:
    """Give every rank the root's bytes. Collective; `what` says in messages what is waited for."""

def broadcast_shared(parts: list[bytes] | None, what: str) -> memoryview:
    """Give every host the root's bytes, in parts, in memory that its ranks share until they end. Collective."""

def connect(
    libraries: list[str],
    *,
    make_global: bool,
    launcher: str | None,
    thread_level: int,
    timeout_s: float,
    verbose: bool,
) -> dict[str, Any]:
    """Join the other ranks over MPI. Collective.

    `libraries` are files, names for the dynamic loader, or `needed-by:FILE`; the first that works is used. Return
    `rank`, `size`, `local_rank`, `local_size`, `thread_level` (0 to 3), `host`, `library`, `library_version`, `abi`,
    and `seconds`, a dict: `find_libmpi`, `start_mpi`. Raises OSError where no library works, RuntimeError where MPI or
    the wait for the others fails.
    """

def find_libmpi(
    libraries: list[str], *, launcher: str | None
) -> tuple[tuple[str | None, str, str, str] | None, list[tuple[str, str]]]:
    """Open the library that `connect` would use, and start nothing.

    Return ((the candidate that led to it or None if it was loaded already, file, ABI, version) or None, [(candidate,
    why it was refused)]). What was refused stays loaded: this is for a process that does not connect.
    """

def flags_with_site(flags: Any) -> Any:
    """Return a copy of `sys.flags` with `no_site` 0: what plain Python has, and what its children inherit."""

def gather(data: bytes, what: str) -> list[bytes] | None:
    """Collect equally many bytes of each rank on the root, which gets a list; others get None. Collective."""

def is_active() -> bool:
    """Return whether MPI may be spoken: connected, not in a forked child, and MPI_Finalize has not begun."""

def is_first_on_host() -> bool:
    """Return whether this is the first to ask of the ranks on this host: the one to say what all of them could."""

def needed(path: str) -> tuple[list[str], list[str]]:
    """Return the names in DT_NEEDED of an ELF file, and the folders of its DT_RUNPATH or DT_RPATH."""

def store_claim(key: str, timeout_s: float) -> Any:
    """Wait until `key` is answered, or ours to answer.

    Return the answer as bytes, True if it is ours, None after `timeout_s` or where there is no node store.
    """

def store_open(folders: list[str]) -> tuple[str | None, str | None]:
    """Make this host's node store in the first usable of these folders. Collective. Return its path, or why not."""

def store_problem(folder: str) -> str | None:
    """Return why no node store can be made in this folder, or None."""

def store_put(key: str, answer: bytes | None) -> None:
    """Put the answer that was claimed, or give up the claim with None."""

def closures(
    files: list[str], library_path: list[str], system: list[str], known: Modules | None = None
) -> list[list[tuple[str, str | None]]]:
    """Return the libraries that each of these files needs, as (path, soname or None), each after its own needs.

    `library_path` is LD_LIBRARY_PATH; libraries below the folders in `system` are left out. What `known` has looked
    into is not read again.
    """

def compress(code: bytes) -> bytes:
    """Return marshalled code as it travels: compressed."""

def crc32(data: bytes, before: int = 0) -> int:
    """Return the CRC-32 of bytes, or of what `before` is the CRC-32 of with these bytes after it."""

def decompress(compressed: bytes) -> bytes:
    """Return the marshalled code that was compressed. Raises RuntimeError for what is damaged."""

def deliver_files(
    paths: list[str], links: list[str], bundle: tuple[Bundle, list[tuple[int, int, int]]] | None, what: str
) -> list[bool]:
    """Copy files of the root to the node store of each host: for each, whether this host has it. Collective.

    `links` are made beside the copies; a host that has no room for them has no copies. The root may have the files in
    a bundle, each at an (offset, size in bytes, CRC-32).
    """

def read_own(path: str) -> bytes:
    """Read a file that only this user can have written.

    Raises OSError, or ValueError with the rest of a sentence that begins with the file.
    """

def states(paths: list[str]) -> list[tuple[int, int] | None]:
    """Return (time of modification in ns, size in bytes) of files and folders, None for what is not there."""

def filesystem_types(paths: list[str]) -> list[int | None]:
    """Return the types of the filesystems that files are on, as `statfs` has them; None where that cannot be said."""

def preload(path: str, soname: str | None, flags: int) -> None:
    """Load a library for good, unless one with its soname is loaded. Raises OSError with what the loader says."""

def store_copy(paths: list[str]) -> list[bool]:
    """Copy files to this host's node store, where they are not there yet: for each, whether it is there."""

def store_link(originals: list[str]) -> None:
    """Make links to files in this host's node store, beside the copies of their siblings."""

def is_truncated(path: str) -> bool:
    """Return whether a file is an ELF file that ends before its last segment does: loading it would end in a signal."""

def release_memory() -> None:
    """Give memory that is free back to the system."""

def show_progress() -> None:
    """From now on, show the steps of the start that take long."""

def next_step(what: str, *, modules: int | None = None, size_bytes: int | None = None) -> None:
    """Show this step: what rank 0 does, with so many modules or bytes, 0 if nobody knows."""

def hide_progress() -> None:
    """Show nothing any more."""

def note(question: bytes) -> None:
    """Take note of a question, a line of fields separated by tabs, if this process takes notes."""

def take_notes(path: str | None, header: bytes, earlier: bytes, *, speaks: bool) -> None:
    """From now on, take note of questions; the root keeps those of all ranks in the file `path` when MPI ends.

    `header` stands before the questions in the file; `earlier` are the lines of earlier runs. If `speaks`, the
    user is told that the file cannot be written. Collective; ranks other than the root pass None.
    """

@final
class Bundle:
    """A bundle whose table of contents was read: docs/reference/bundle.md."""

    def __new__(cls, path: str, owners: tuple[int, ...]) -> Bundle:
        """Open it, if only these users can have written it.

        Raises OSError, or ValueError with the rest of a sentence that begins with the file; so does `read`.
        """

    @property
    def table(self) -> bytes: ...
    @property
    def start(self) -> int:
        """Where the sections begin, in bytes."""

    @property
    def size_bytes(self) -> int: ...
    def read(self, offset: int, size_bytes: int, checksum: int) -> bytes:
        """Read a section."""

@final
class Finding:
    """The answers to questions, which are found by threads. Those have ended when the answers are there."""

    def is_done(self) -> bool:
        """Whether waiting takes no time."""

    def wait(self) -> tuple[list[tuple[Any, ...] | None], bytes]:
        """Return (answers, code), once: the answers name after name. Raises RuntimeError if it is asked again.

        An answer is (kind, origin, locations, (where its compressed code begins in `code`, and ends), (the source's
        time of modification in ns, size in bytes)), or None where `importlib` has to be asked.
        """

@final
class Modules:
    """Finds and reads modules as `importlib` would, many at once."""

    def __new__(
        cls, extension_suffixes: list[str], magic: bytes, bytecode_suffix: str, pycache_prefix: str | None
    ) -> Modules:
        """Say how this Python names and marks files; `bytecode_suffix` follows a module's name: `.cpython-311.pyc`."""

    def find(self, questions: list[tuple[list[str], list[str], bool]], *, beside: bool = False) -> Finding:
        """Begin to answer questions, each some folders, some last parts of names, whether to look into native code.

        Unless it is to be done `beside` what the caller does, they are answered when this returns.
        """

    def folders(self) -> dict[str, tuple[int | None, frozenset[str]]]:
        """Return each folder that was looked at: (time of modification in ns or None, its names up to a dot)."""

    def names_in(self, origin: str) -> list[str]:
        """Return dotted names among the constants of an extension module that was looked into."""

    def list(self, folders: list[str]) -> None:
        """List folders that no question has led to."""

def report_record(row: bytes, sums: list[float]) -> None:
    """Record a row for the report, and what the sums of this process are with it."""

def report_start(sums: int, command: list[str] | None, header: bytes) -> None:
    """From now on, record for the report: rows, and so many sums.

    On the root, `command` makes the report when the process ends, of `header` and of what was recorded.
    """
