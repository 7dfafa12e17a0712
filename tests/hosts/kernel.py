"""Namespaces and mounts: the system calls that Python has no function for."""

import ctypes
import os

CLONE_NEWNS = 0x20000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags):
    """Leave namespaces for new ones; those of processes (`CLONE_NEWPID`) with the next child."""
    _check(_libc.unshare(flags), "unshare")


def keep_mounts_private():
    """Let nobody outside see what is mounted from now on."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def mount(source, target, *, kind=None, flags=0, options=""):
    """Mount a filesystem of a kind, or do what the flags say."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(options)), "mount at %s" % target)


def bind(source, target, *, read_only=False):
    """Show one place of the tree at another."""
    mount(source, target, flags=MS_BIND)
    if read_only:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def pivot_root(path):
    """Make a mounted folder the root, and forget all that was mounted before."""
    os.chdir(path)
    os.mkdir(".before")
    _check(_libc.pivot_root(b".", b".before"), "pivot_root")
    os.chdir("/")
    _check(_libc.umount2(b"/.before", MNT_DETACH), "umount")
    os.rmdir("/.before")


def _check(result, what):
    if result:
        error = ctypes.get_errno()
        raise OSError(error, "%s: %s" % (what, os.strerror(error)))
