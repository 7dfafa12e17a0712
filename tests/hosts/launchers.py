"""The command lines by which each MPI's launcher starts ranks on several hosts, through a stand-in for ssh."""

RSH = "/run/cluster/rsh"

# For Open MPI, the search for other networks takes a second. Without it, `prterun` is a little less sure to end after a
# killed rank: on a busy machine, one of 25 stayed, though no rank was left.
NETWORK = {
    "mpich": {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"},
    "openmpi": {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp"},
    "impi": {},
}
"""What ranks get of the environment to reach ranks of other simulated hosts."""


def command(mpi, hosts, ranks_per_host, env):
    """Return an MPI's command line, to be followed by the program.

    :param mpi: one of `mpi.ALL`.
    :param env: what every rank gets of the environment.
    """
    launcher = mpi.prefix / "bin" / "mpiexec"
    ranks = ["-n", ranks_per_host * len(hosts)]
    return [launcher, *_LAUNCHERS[mpi.name](hosts, ranks_per_host, {**NETWORK[mpi.name], **env}), *ranks]


def _mpich(hosts, ranks_per_host, env):
    place = ["-hosts", ",".join(hosts), "-ppn", ranks_per_host]
    return ["-launcher", "ssh", "-launcher-exec", RSH, *place, *_each("-genv", env)]


def _impi(hosts, ranks_per_host, env):
    place = ["-hosts", ",".join(hosts), "-ppn", ranks_per_host]
    return ["-bootstrap", "ssh", "-bootstrap-exec", RSH, *place, *_each("-genv", env)]


def _openmpi(hosts, ranks_per_host, env):
    slots = ",".join("%s:%d" % (host, ranks_per_host) for host in hosts)
    # Without yielding, ranks that outnumber the cores take ten times as long for a broadcast.
    few_cores = ["--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
    ssh = ["--prtemca", "plm_ssh_agent", RSH, "--prtemca", "plm_ssh_no_tree_spawn", "1"]
    settings = [word for name, value in env.items() for word in ("-x", "%s=%s" % (name, value))]
    return ["--allow-run-as-root", *ssh, "-H", slots, *few_cores, *settings]


def _each(option, env):
    return [word for name, value in env.items() for word in (option, name, value)]


_LAUNCHERS = {"mpich": _mpich, "openmpi": _openmpi, "impi": _impi}
