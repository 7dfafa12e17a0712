"""One rank's use of mpiimport: its settings, its place in the job, its finder, and what it has received."""

import sys
from _thread import _local
from time import perf_counter

from mpiimport import _core, handoff, opening
from mpiimport.files import Files, foresee
from mpiimport.finder import Finder
from mpiimport.loader import DeliveredLoader
from mpiimport.misses import Misses
from mpiimport.native import Native
from site_mpi import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from mpiimport.bundle import Bundle, Bundled
    from mpiimport.forecast import Forecast
    from site_mpi.boot import Place, Settings

    T = TypeVar("T")

PATH0 = "."
"""In a profile, the folder that is in `sys.path` for the program's sake."""

current: "Session | None" = None
"""The session of this process, or None."""


class Session:
    """What one rank knows. `place` is what `site_mpi.boot.connect` returned: a dict, or None for a single process.

    A single process that `opens_alone` has openings all the same, made of a profile or out of a bundle.
    """

    def __init__(self, settings: "Settings", place: "Place | None", *, alone: bool = False) -> None:
        self.settings = settings
        self.place = place
        self.opens = place is not None or alone
        self.policy = "opening" if self.opens or settings.write_bundle is not None else "local"
        self.override = _local()
        self.stopped = False
        self.broadcast_bytes = 0
        self.takes_notes = False
        self.path0: str | None = None
        self.bundle: Bundle | None = None
        self.made: list[Any] = []
        self.seconds: dict[str, float] = dict(place["seconds"]) if place is not None else {}
        self.verbose = settings.verbose > 1 or (settings.verbose > 0 and self.is_root())
        self.files = DeliveredLoader.files = Files(self)
        wanted = "always" if settings.write_bundle is not None else "never" if alone else settings.store
        self.native = Native(wanted, int(settings.store_limit_mb * 1e6))
        self.finder = Finder(self)
        self.misses = Misses(self.native, writes_bytecode=self.is_root())
        self.stable: tuple[str, ...] = ()
        if self.is_root() and place is not None and not sys.flags.quiet:
            _core.show_progress()

    def is_root(self) -> bool:
        """Whether this rank finds and reads for all."""
        return self.place is None or self.place["rank"] == 0

    def is_connected(self) -> bool:
        """Whether MPI may be spoken."""
        return self.place is not None and _core.is_active()

    def current_policy(self) -> str:
        """Return the policy that holds in this thread."""
        return "local" if self.stopped else getattr(self.override, "policy", None) or self.policy

    def forecasts(self) -> bool:
        """Whether openings are made of what will be imported."""
        return (self.opens or self.serves_others()) and self.settings.policy in ("opening", "locate")

    def serves_others(self) -> bool:
        """Whether what this process finds serves others: ranks, or who reads a bundle."""
        return self.place is not None or self.settings.write_bundle is not None

    def begin_program(self, received: "opening.Received") -> None:
        """From now on the program imports: by the policy that the user chose.

        Where nothing is to be gained, because the modules are on a disk of this host, it imports as plain Python.
        """
        if self.opens:
            self.policy = self.settings.policy
            if self.policy == "opening" and not received.is_wanted():
                self.policy = "local"
                if self.verbose:
                    self.say("the modules are on a disk of this host; each rank imports them by itself")
        self.finder.path_hooks = list(sys.path_hooks)
        if self.is_root():
            _core.hide_progress()  # no thread of ours runs beside the program
            if received.records:
                _core.release_memory()  # what the forecast has read: 20 MB for scipy

    def note(self, kind: str, *fields: str) -> None:
        """Take note of a question, for the profile."""
        if not self.takes_notes:
            return
        line = "\t".join((kind, *[PATH0 if field == self.path0 else field for field in fields]))
        if line.count("\t") > len(fields) or "\n" in line:
            return  # the profile has no word for it
        try:
            _core.note(line.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            return  # nor for this

    def set_stable(self, folders: "Iterable[str]") -> None:
        """Set the folders whose modules do not change during a run, and with them how misses are asked."""
        chosen = [folder for folder in self.settings.stable.split(":") if folder]
        self.stable = tuple(
            sorted({folder.rstrip("/") + "/" for folder in [*folders, *chosen] if folder[:1] == "/" and folder != "/"})
        )
        self.misses.stable = self.stable

    def new_opening(self) -> "opening.Opening":
        """Return an empty opening."""
        return opening.Opening(self.stable, shares_misses=boot.is_far(self.settings))

    def forecast(self, made: "opening.Opening", follow: "Callable[[Forecast], object]") -> "Forecast":
        """Add to an opening what `follow`, called with a `Forecast`, leads to. Return the forecast."""
        chosen = getattr(self.override, "policy", None)
        self.override.policy = "local"  # only the root imports this, and `opcode` with it
        try:
            from mpiimport.forecast import Forecast
        finally:
            self.override.policy = chosen
        _core.next_step("finds and reads modules")
        known = set(sys.path_importer_cache)
        forecast = Forecast(made, self.settings.timeout_s / 4)
        follow(forecast)
        forecast.finish()
        for entry in set(sys.path_importer_cache) - known - set(sys.path):
            del sys.path_importer_cache[entry]  # a hook that the program adds may want it
        kept = {getattr(importer, "archive", None) for importer in sys.path_importer_cache.values()}
        directories = getattr(sys.modules.get("zipimport"), "_zip_directory_cache", {})
        for archive in set(directories) - kept:
            del directories[archive]  # or what the program makes of it by then would not be seen
        certain = forecast.certain()
        if self.place is not None:
            certain += handoff.variants(forecast.missing, self.place)
        made.native = self.native.plan(certain, made.extensions(), forecast.modules)
        seconds = perf_counter() - forecast.began
        self.seconds["forecast"] = self.seconds.get("forecast", 0.0) + seconds
        if forecast.stopped:
            boot.say(
                "the forecast was stopped after %.0f s; each host searches for the modules it did not come to. A "
                "larger --timeout delivers them." % seconds
            )
        return forecast

    def foresee(
        self, made: "opening.Opening", kind: str, target: str, scan: "Callable[[Forecast], object]"
    ) -> "Forecast | None":
        """Add to an opening, on the root, what the program is expected to ask: by its profile, else by a scan.

        Return the forecast, if there is one.
        """
        from mpiimport.profile import Profile

        far = made.shares_misses = boot.is_far(self.settings)  # by now `sys.path` has the program's folder
        profile = None
        if self.settings.profile != "off" and (self.settings.profile != "auto" or far):
            profile = Profile(self.settings.profile, kind, target, sys.path, self.path0)
            problem = profile.read()
            if problem is not None and self.speaks_of_profile():
                boot.say(problem + ".")
            made.profile = profile if profile.path is not None else None
        included = [name for name in self.settings.include.split(",") if name]
        if profile is not None and profile.earlier:
            modules = profile.modules()
            if self.settings.policy == "opening":
                for question in ("file", "folder", "link"):
                    for path, _ in profile.asked(question):
                        foresee(made, question, path)

            def follow(forecast: "Forecast") -> None:
                forecast.follow_questions(modules)
                forecast.follow_roots(included)
        elif self.settings.scan == "always" or (self.settings.scan == "auto" and far and self.serves_others()):

            def follow(forecast: "Forecast") -> None:
                scan(forecast)
                forecast.follow_roots(included)
        else:
            return None
        return self.forecast(made, follow)

    def speaks_of_profile(self) -> bool:
        """Whether the user wants to know what is wrong with the profile."""
        return self.verbose or self.settings.profile not in ("auto", "always")

    def open_bundle(self, opened: "_core.Bundle | None") -> None:
        """Take, on the root, the openings out of the bundle that the user chose, if they still hold."""
        if opened is None:
            return
        from mpiimport import bundle

        try:
            found = bundle.Bundle(opened)
            if self.settings.validate == "stat":
                found.check()
        except ValueError as cause:
            boot.say("the bundle `%s` %s. Going on without it." % (self.settings.bundle, cause))
            return
        wanted = self.native.wanted
        found.limit(self.native, wanted=wanted == "always" or (wanted == "auto" and boot.is_far(self.settings)))
        self.bundle = found

    def broadcast_opening(self, made: "opening.Opening | Bundled | None", what: str) -> "opening.Received":
        """Give every rank the opening that the root made; the root passes it, the others None. Collective.

        Return the opening. Raises RuntimeError with the root's message if the root could not make it.
        """
        message = made.pack(with_code=self.settings.policy != "locate") if made is not None else None
        if self.place is None:
            assert message is not None, "a process without other ranks is its own root"
            shared: bytes | memoryview = b"".join(message)
            if not self.opens:
                self.made.append(made)
                return opening.Received(shared)
        else:
            if message is not None:
                _core.next_step("sends modules to the hosts", size_bytes=sum(map(len, message)))
            shared = _core.broadcast_shared(message, what)
            self.broadcast_bytes += len(shared)
        received = opening.Received(shared)  # on the root too: what it has read itself is not needed any more
        self.finder.openings.insert(0, received)
        self.misses.shares = self.misses.shares and received.shares_misses
        if received.takes_notes:
            profile = made.profile if made is not None else None
            if profile is not None:
                _core.take_notes(profile.path, profile.header, profile.earlier, speaks=self.speaks_of_profile())
            else:
                _core.take_notes(None, b"", b"", speaks=False)
            self.takes_notes = True
        if self.settings.policy == "opening":
            self.native.deliver(received.native, bundle=self.bundle)
        return received

    def deliver(self, names: "tuple[str, ...]") -> None:
        """Do what `mpiimport.deliver` does. Collective."""
        shown = "`, `".join(names).encode("utf-8", "replace").decode()
        what = "rank 0 to find and read `%s`" % shown
        made = self.together(self.deliver_here, names, what)
        if self.place is not None:
            self.policy = self.settings.policy
        if made.extra:
            raise ModuleNotFoundError("No module named %r" % made.extra[0], name=made.extra[0])

    def deliver_here(self, names: "tuple[str, ...]", what: str) -> "opening.Received":
        """Make the opening on the root, and give it to every rank. Collective."""
        made = None
        if self.is_root():
            made = self.new_opening()
            forecast = self.forecast(made, lambda forecast: forecast.follow_roots(names))
            made.extra = [name for name in names if not forecast.exists(name)]
        return self.broadcast_opening(made, what)

    def together(self, step: "Callable[..., T]", *arguments: object) -> "T":
        """Do one collective step while the program runs. If it fails here, the job ends.

        The program may catch what is raised, but the others wait for this rank, and MPI may still own the buffers.
        """
        try:
            return step(*arguments)
        except BaseException as cause:
            boot.say("%s. Ending the job." % (str(cause).rstrip(".") or type(cause).__name__))
            _core.abort(130 if isinstance(cause, KeyboardInterrupt) else 1, 0)
            raise

    def say(self, message: str) -> None:
        """Write a line to standard error, with the rank and host where several ranks speak."""
        where = ""
        if self.place is not None and self.settings.verbose > 1:
            where = "rank %d on %s: " % (self.place["rank"], self.place["host"])
        sys.stderr.write("mpiimport: %s%s\n" % (where, message))

    def stats(self) -> "dict[str, Any]":
        """Return what this rank did so far; see `mpiimport.stats`."""
        finder = self.finder
        return {
            "rank": self.place["rank"] if self.place else 0,
            "size": self.place["size"] if self.place else 1,
            "host": self.place["host"] if self.place else None,
            "policy": self.policy,
            "library": self.place["library"] if self.place else None,
            "modules": dict(finder.counts),
            "missed": list(finder.missed),
            "extensions": finder.extensions,
            "sources_read": finder.sources_read,
            "foreseen": sum(len(one) for opened in finder.openings for one in opened.records.values()),
            "broadcast_bytes": self.broadcast_bytes,
            "seconds": dict(self.seconds),
        }
