"""A real Slurm on simulated hosts: Debian's packages, unpacked below `target`, laid over what each node has of Debian.

    with Slurm(new_cluster, hosts=4) as slurm:
        result = slurm.srun(MPICH, 2, "python-mpi", folder / "program.py")

The controller runs on the login node, a slurmd on each host, and munged, by which they know each other, on all.
"""

import secrets
import tempfile
from pathlib import Path

import mpi as mpis
from hosts import launchers
from hosts.cluster import LOGIN, within

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "libpmix2")
FOLDER = mpis.ROOT / "target" / "slurm"
FETCH_LIMIT_S, START_LIMIT_S = 300, 30
CPUS = 4

CONFIGURATION = """\
ClusterName=simulated
SlurmctldHost={login}
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/run/slurmctld
SlurmdSpoolDir=/run/slurmd
SlurmctldLogFile=/run/slurmctld.log
SlurmdLogFile=/run/slurmd.log
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
MailProg=/bin/true
# The machine has fewer processors than its hosts together.
SlurmdParameters=config_overrides
NodeName={hosts} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
# What has no control groups, no accounts and no processors to bind to.
SelectType=select/linear
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
ReturnToService=2
# Soon: the next job, the end of a job whose rank failed, the kill after a cancellation.
SchedulerParameters=sched_interval=1
KillWait=2
"""

START = """
mkdir -p /run/munge /run/slurmctld /run/slurmd
munged --log-file=/run/munge/log --seed-file=/run/munge/seed --pid-file=/run/munge/pid
exec {daemon}
"""

SPEAKS = {"mpich": "pmi2", "openmpi": "pmix", "impi": "pmi2"}
"""What each MPI understands of `srun --mpi=`."""

# Debian's PMIx offers munge first, which the one of Open MPI's wheel does not know and says in ten lines for each rank.
QUIET = {"PMIX_MCA_psec": "native"}


def unavailable():
    """Fetch Slurm, if it is not there. Return None, or why it cannot be had."""
    path = mpis.clean_environment()["PATH"] + ":/usr/sbin:/sbin"
    script = mpis.ROOT / "tests" / "debian_packages.sh"
    fetched = mpis.run(["bash", script, FOLDER, *PACKAGES], env={"PATH": path}, timeout_s=FETCH_LIMIT_S)
    return fetched.stderr.strip() or repr(fetched) if fetched.returncode else None


class Slurm:
    """A cluster that runs Slurm; a context manager.

    :param new_cluster: starts a cluster, as the fixture of that name does.
    :param settings: of the cluster.
    """

    def __init__(self, new_cluster, **settings):
        self._own = tempfile.TemporaryDirectory(prefix="slurm-")
        self._starts = lambda layers: new_cluster(layers=layers, **settings)

    def __enter__(self):
        own = Path(self._own.name)
        self.cluster = self._starts([own, FOLDER])
        self._configure(own)
        self.cluster.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.cluster.__exit__()
        self._own.cleanup()

    def _configure(self, own):
        """Make what Debian's packages make when they are installed, and the configuration."""
        for program in (FOLDER / "usr" / "sbin").glob("*-wlm"):
            link(own, "usr/sbin/" + program.name[: -len("-wlm")], program.name)
        # Slurm's plugin looks for a name that only comes with PMIx's headers.
        for layer in (FOLDER, Path("/")):
            for library in layer.glob("usr/lib/*/pmix2/lib/libpmix.so.2"):
                link(own, library.relative_to(layer).with_suffix(""), library.name)
        (own / "etc" / "slurm").mkdir(parents=True)
        text = CONFIGURATION.format(login=LOGIN, hosts=",".join(self.cluster.hosts), cpus=CPUS)
        (own / "etc" / "slurm" / "slurm.conf").write_text(text)
        (own / "etc" / "munge").mkdir()
        key = own / "etc" / "munge" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def _start(self):
        for node in (LOGIN, *self.cluster.hosts):
            daemon = "slurmctld" if node == LOGIN else "slurmd"
            started = self.run(["sh", "-ec", START.format(daemon=daemon)], on=node, timeout_s=START_LIMIT_S)
            if started.returncode:
                log = self.cluster.seen_from_here("run/%s.log" % daemon, on=node)
                said = log.read_text() if log.exists() else started.stderr
                raise RuntimeError("%s of Slurm did not start on %s:\n%s" % (daemon, node, said))
        if not within(START_LIMIT_S, self.is_idle):
            raise RuntimeError("Slurm did not start: %s" % self.run(["sinfo", "--list-reasons"]))

    def is_idle(self):
        """Whether all hosts are up and have no job."""
        states = self.run(["sinfo", "--noheader", "--format=%T %D"]).stdout.split()
        return states == ["idle", str(len(self.cluster.hosts))]

    def run(self, argv, *, env=None, **keywords):
        """Run a program on the login node, or another, to its end; see `Cluster.run`."""
        return self.cluster.run(argv, env=environment(env), **keywords)

    def srun(self, mpi, ranks_per_host, *program, options=(), env=None, **keywords):
        """Run a program on all hosts by `srun`, with an MPI."""
        argv = self.srun_command(mpi, ranks_per_host, *options)
        return self.run([*argv, *program], env={**settings(mpi), **(env or {})}, **keywords)

    def start_srun(self, mpi, ranks_per_host, *program, options=(), **keywords):
        """Start a program on all hosts by `srun`, with an MPI; return the `Popen`."""
        argv = self.srun_command(mpi, ranks_per_host, *options)
        return self.cluster.start([*argv, *program], env=environment(settings(mpi)), **keywords)

    def srun_command(self, mpi, ranks_per_host, *options):
        """Return the command line of `srun`, to be followed by the program."""
        hosts = len(self.cluster.hosts)
        how = ["--mpi=" + SPEAKS[mpi.name], "--nodes=%d" % hosts, "--ntasks=%d" % (hosts * ranks_per_host)]
        return ["srun", "--quiet", *how, *options]


def settings(mpi):
    """Return what the environment of a job with this MPI has, as by a site's modules."""
    # Ranks outnumber the cores.
    openmpi = {**QUIET, "OMPI_MCA_mpi_yield_when_idle": "1"} if mpi is mpis.OPENMPI else {}
    return {**mpi.env, **launchers.NETWORK[mpi.name], **openmpi}


def environment(env):
    """Return a node's environment with Slurm's programs on PATH."""
    return {"PATH": mpis.clean_environment()["PATH"] + ":/usr/sbin:/sbin", **(env or {})}


def link(folder, path, target):
    """Make a symbolic link, and the folders above it."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    if not (folder / path).is_symlink():
        (folder / path).symlink_to(target)
