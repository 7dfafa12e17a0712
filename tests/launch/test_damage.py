"""Whatever happened to a bundle or a profile, it is refused in a sentence, or means what it meant.

Openings are no such files: they come from rank 0 over MPI, as the program's own messages do, and are believed.
"""

import marshal
import random

import mpi as mpis
import pytest

from mpiimport import command, profile

PROGRAM = (
    "import _struct, json, sys, wave\nprint(sys.mpiimport.stats()['rank'], wave.Wave_read, _struct.calcsize('i'))\n"
)
HEAD_BYTES = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A program, its bundle and its profile."""
    folder = tmp_path_factory.mktemp("made")
    program, kept, bundle = (folder / name for name in ("program.py", "kept.profile", "whole.mpib"))
    program.write_text(PROGRAM)
    for argv in ((program,), ("--write-bundle", bundle, program)):
        ranks = 1 if bundle in argv else 2
        result = mpis.MPICH.run(ranks, "python-mpi", "--profile", kept, *argv)
        assert result.returncode == 0, result
    return program, kept, bundle


@pytest.fixture
def show(capsys):
    """Say what is in a file: (what the command printed, what it complained of)."""

    def show(kind, file):
        status = command.main([kind, "show", "-v", str(file)])
        said = capsys.readouterr()
        assert status == (said.err != ""), said
        if status:
            assert said.out == ""
            assert said.err.startswith("mpiimport: ")
            assert said.err.count("\n") == 1
            assert str(file) in said.err
        return said.out, said.err

    return show


def damages(data, *, dense, count):
    """Yield damaged versions: each of the first bytes another, random ones others, cut off, and longer by much."""
    chosen = random.Random(1)
    places = [*range(min(dense, len(data))), *(chosen.randrange(len(data)) for _ in range(count))]
    for place in places:
        for value in {data[place] ^ 1, data[place] ^ 0x80, 0x0A} - {data[place]}:
            yield data[:place] + bytes([value]) + data[place + 1 :]
        yield data[:place]
    for _ in range(count):
        start, end = sorted((chosen.randrange(len(data)), chosen.randrange(len(data))))
        yield data[:start] + data[end:]
        yield data[:start] + 5000 * data[start : start + 1] + data[start:]
    yield from (data + more for more in (b"\0", b"\n", data[:1], data))


def sections(data):
    """Return (name, offset, size in bytes) of what a bundle consists of."""
    start = data.index(b"\n") + 13
    at = start + int.from_bytes(data[start - 12 : start - 4], "little")
    for name, size_bytes, _ in marshal.loads(data[start:])["sections"]:
        yield name, at, size_bytes
        at += size_bytes


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.nightly)])
def test_a_damaged_bundle_is_refused_or_is_shown_as_it_was(made, show, tmp_path, count):
    whole = made[2].read_bytes()
    file = tmp_path / "damaged.mpib"
    file.write_bytes(whole)
    expected = show("bundle", file)
    native = max(at + size_bytes for name, at, size_bytes in sections(whole) if name[0] != "/")
    assert native < len(whole)
    refused = 0
    for damaged in damages(whole, dense=HEAD_BYTES, count=count):
        file.write_bytes(damaged)
        shown = show("bundle", file)
        refused += shown != expected
        assert damaged[:native] != whole[:native] or len(damaged) != len(whole) or shown == expected
        assert shown in (expected, ("", shown[1]))
    assert refused > 2 * HEAD_BYTES


def test_a_bundle_with_damage_anywhere_ends_no_program_and_changes_none(made, tmp_path):
    program, _, bundle = made
    whole = bundle.read_bytes()
    file = tmp_path / "damaged.mpib"
    for name, at, size_bytes in [("no", 0, 0), *sections(whole)]:
        damaged = bytearray(whole)
        if size_bytes:
            damaged[at + size_bytes // 2] ^= 0x10
        file.write_bytes(damaged)
        options = ["--bundle", file, "--validate", "none", "--store", "always"]
        result = mpis.MPICH.run(2, "python-mpi", *options, program)
        assert (result.returncode, sorted(result.stdout.splitlines())) == (0, answers_of_both()), (name, result)
        assert result.stderr.count("\n") == result.stderr.count("is damaged") <= 1, (name, result)


def answers_of_both():
    return ["%d <class 'wave.Wave_read'> 4" % rank for rank in range(2)]


@pytest.mark.parametrize("count", [120, pytest.param(4000, marks=pytest.mark.nightly)])
def test_a_damaged_profile_is_refused_or_is_of_other_questions(made, show, tmp_path, count):
    whole = made[1].read_bytes()
    file = tmp_path / "damaged.profile"
    head = whole.index(b"\n\n") + 2
    read = profile.Profile(str(file), "script", "any", ["/"])
    used = 0
    for damaged in damages(whole, dense=count, count=count):
        file.write_bytes(damaged)
        show("profile", file)
        read.path, read.header, read.earlier = str(file), whole[: head - 1], b""
        why = read.read()
        assert (why is None) == (read.earlier != b"" or damaged == whole[:head]), why
        asked = [one for kind in ("module", "file", "folder", "link") for one in read.asked(kind)]
        assert len(asked) <= damaged.count(b"\n")
        used += why is None
    assert used > count


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 30))])
def test_questions_that_nobody_asked_change_no_program(made, tmp_path, seed):
    program, kept, _ = made
    chosen = random.Random(seed)
    head, _, body = kept.read_bytes().partition(b"\n\n")
    lines = [bytearray(line) for line in body.splitlines()]
    for line in lines:
        for _ in range(chosen.randrange(4)):
            line[chosen.randrange(2, len(line))] = chosen.choice(b"\0\t./~ \x80\xff%ab")
    file = tmp_path / "damaged.profile"
    file.write_bytes(head + b"\n\n" + b"".join(bytes(line) + b"\n" for line in lines))
    result = mpis.MPICH.run(2, "python-mpi", "--profile", file, program)
    assert (result.returncode, result.stderr) == (0, ""), result
    assert sorted(result.stdout.splitlines()) == answers_of_both()
