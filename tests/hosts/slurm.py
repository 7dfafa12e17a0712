"""A real Slurm on simulated hosts: Debian's packages, unpacked below `target`, laid over what the machine has.

    with Slurm.on(new_cluster, hosts=4) as slurm:
        result = slurm.srun(MPICH, ranks_per_host=2, "python-mpi", folder / "program.py")

The login node has the controller, each host a slurmd, and each of them a munged.
"""

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

import mpi as mpis
from hosts.cluster import LOGIN, within

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "libpmi2-0", "libpmix2")
FOLDER = mpis.ROOT / "target" / "slurm"
PATH = mpis.clean_environment()["PATH"] + ":/usr/sbin"
CPUS = 4

CONFIGURATION = """\
ClusterName=simulated
SlurmctldHost=login
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/run/slurmctld
SlurmdSpoolDir=/run/slurmd
SlurmctldLogFile=/run/slurmctld.log
SlurmdLogFile=/run/slurmd.log
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
# The machine has not the processors that its hosts pretend to have.
SlurmdParameters=config_overrides
SelectType=select/linear
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
ReturnToService=2
KillWait=2
NodeName={hosts} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
