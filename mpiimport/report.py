"""The report's files, of what the ranks recorded: HTML, JSON, or text. A program of its own, run by the core.

    python -I -S report.py < what the core gathered

docs/reference/report.md says what is in the JSON, which the HTML page holds, too. Nothing here knows MPI or imports
mpiimport.
"""

import json
import marshal
import os
import struct
import sys
import time
from collections import Counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Report = dict[str, Any]

VERSION = 1
"""Of the JSON: raised when a key goes or changes its meaning."""

MODULE_COLUMNS = ("name", "origin", "kind")
RECORD_COLUMNS = (
    "module",
    "parent",
    "is_import",
    "answer",
    "begin_us",
    "end_us",
    "find_us",
    "wait_us",
    "read_us",
    "unmarshal_us",
    "dlopen_us",
    "execute_us",
    "other_us",
    "bytes",
    "missed",
    "error",
    "thread",
)
PHASES = ("find", "wait", "read", "unmarshal", "dlopen", "execute", "other")
SLOWEST = 30
"""So many modules and ranks are listed as the slowest."""

RANKS_ON_PAGE = 1000
"""So many ranks are on a page: those in detail, and the slowest."""

COUNTED = (
    "An estimate of what the ranks other than 0 did not ask of the filesystem, by the answers that came to them: a look"
    " at each folder up to the one that has the module, and two operations for the first in each folder; for a source"
    " module 4 (a package: 7): looks at the file's possible names, the source's state, and the bytecode opened; for an"
    " extension module 1, and 2 for it and for each of its libraries that the node store has; for a namespace package"
    " one for each portion. What ld.so, `site` and the packages themselves would look at is not counted."
)


def read(message: bytes) -> "tuple[dict[str, Any], list[float], dict[int, list[Any]]]":
    """Return the header, the sums of all ranks one after another, and the rows of some ranks."""
    view = memoryview(message)

    def number() -> int:
        nonlocal view
        found: int = struct.unpack_from("<Q", view)[0]
        view = view[8:]
        return found

    def part() -> memoryview:
        nonlocal view
        size = number()
        found, view = view[:size], view[size:]
        return found

    header: dict[str, Any] = marshal.loads(part())
    data = part()
    sums = list(struct.unpack("<%dd" % (len(data) // 8), data))
    details = {}
    while view:
        rank = number()
        details[rank] = unmarshalled(part())
    return header, sums, details


def unmarshalled(data: memoryview) -> "list[Any]":
    """Return the objects that were marshalled one after another."""
    import io

    file = io.BytesIO(data)
    rows = []
    while file.tell() < len(data):
        rows.append(marshal.load(file))
    return rows


def made(header: "dict[str, Any]", numbers: "list[float]", details: "dict[int, list[Any]]") -> "Report":
    """Return the report as what JSON can carry."""
    columns = header["sums"]
    hosts = header["host_of_rank"]
    ranks = []
    for rank, host in enumerate(hosts):
        row = numbers[rank * len(columns) : (rank + 1) * len(columns)]
        ranks.append(
            [rank, host, *(round(one, 6) if name.endswith("_s") else int(one) for name, one in zip(columns, row))]
        )
    modules: dict[tuple[Any, ...], int] = {}
    detailed = [detail(rank, hosts[rank], rows, modules) for rank, rows in sorted(details.items())]
    totals = {name: round(sum(row[at + 2] for row in ranks), 6) for at, name in enumerate(columns)}
    report = {
        "format": "mpiimport report",
        "version": VERSION,
        "mpiimport": header["mpiimport"],
        "python": header["python"],
        "arguments": header["arguments"],
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(header["began"])),
        "policy": header["policy"],
        "launcher": header["launcher"],
        "library": header["library"],
        "size": len(hosts),
        "hosts": header["hosts"],
        "totals": totals,
        "ranks": {"columns": ["rank", "host", *columns], "rows": ranks},
        "modules": {"columns": list(MODULE_COLUMNS), "rows": [list(module) for module in modules]},
        "details": detailed,
        "operations": {"avoided": totals["operations_avoided"], "counted": COUNTED},
    }
    report["slowest_modules"] = slowest_modules(report)
    report["missed"] = missed(details)
    return report


def detail(rank: int, host: str, rows: "list[Any]", modules: "dict[tuple[Any, ...], int]") -> "dict[str, Any]":
    """Return what one rank did, with its records in the order in which they began."""
    stages = [
        {"name": stage(name, is_root=rank == 0), "begin_us": begin, "end_us": end}
        for _, name, begin, end in (row for row in rows if row[0] == "stage")
    ]
    found = sorted((row[1:] for row in rows if row[0] == "module"), key=lambda row: row[0])
    place = {row[0]: at for at, row in enumerate(found)}
    records = []
    for _, parent, name, is_import, answer, kind, origin, begin, end, spent, size, is_missed, _, error, thread in found:
        module = modules.setdefault((name, origin, kind), len(modules))
        records.append(
            [
                module,
                place.get(parent),
                int(is_import),
                answer,
                begin,
                end,
                *spent,
                size,
                int(is_missed),
                error,
                thread,
            ]
        )
    return {"rank": rank, "host": host, "stages": stages, "records": {"columns": list(RECORD_COLUMNS), "rows": records}}


def stage(name: str, *, is_root: bool) -> str:
    """Return what a rank does in a stage of the start, for which others wait for rank 0."""
    if not name.startswith("rank 0 to "):
        return name
    return "deliver: " + name[len("rank 0 to ") :] if is_root else "wait for " + name


def own_us(row: "list[Any]") -> int:
    """Return the time of a record without that of the imports inside it."""
    first = RECORD_COLUMNS.index("find_us")
    return sum(row[first : first + len(PHASES)])


def median(numbers: "list[float]") -> float:
    """Return the middle one of these numbers, which are not none."""
    return sorted(numbers)[len(numbers) // 2]


def slowest_modules(report: "Report") -> "list[dict[str, Any]]":
    """Return the modules that took longest on one rank, imports inside them left out."""
    times: dict[str, dict[int, int]] = {}
    for one in report["details"]:
        for row in one["records"]["rows"]:
            of_rank = times.setdefault(report["modules"]["rows"][row[0]][0], {})
            of_rank[one["rank"]] = of_rank.get(one["rank"], 0) + own_us(row)
    found: list[dict[str, Any]] = []
    for name, of_rank in times.items():
        worst = max(of_rank, key=lambda rank: of_rank[rank])
        middle = median(list(of_rank.values()))
        found.append(
            {"name": name, "rank": worst, "worst_us": of_rank[worst], "median_us": middle, "ranks": len(of_rank)}
        )
    return sorted(found, key=lambda one: -one["worst_us"])[:SLOWEST]


def missed(details: "dict[int, list[Any]]") -> "list[dict[str, Any]]":
    """Return what no opening foresaw, by the ranks that are reported in detail."""
    found: dict[str, dict[str, Any]] = {}
    for rank, rows in sorted(details.items()):
        for row in rows:
            if row[0] == "module" and row[12]:
                one = found.setdefault(
                    row[3], {"name": row[3], "ranks": [], "answers": [], "us": 0, "in_next_opening": False}
                )
                one["ranks"].append(rank)
                one["answers"].append(row[5])
                one["us"] = max(one["us"], sum(row[10]))
                one["in_next_opening"] = one["in_next_opening"] or row[13]
    return sorted(found.values(), key=lambda one: -one["us"])


# Text


def seconds(number: float) -> str:
    """Return a time in s as a few characters."""
    return "%.2f s" % number if number >= 1 else "%.1f ms" % (number * 1e3)


def megabytes(number: float) -> str:
    """Return a size in bytes as a few characters."""
    return "%.1f MB" % (number / 1e6) if number >= 1e5 else "%.1f kB" % (number / 1e3)


def shortened(text: str, width: int) -> str:
    """Return a text of at most so many characters, its end kept, that does no harm to a terminal."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= width else "…" + text[1 - width :]


def table(head: "list[str]", rows: "list[list[str]]") -> "list[str]":
    """Return lines with columns; the first is flush left."""
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    return [
        (
            "  "
            + row[0].ljust(widths[0])
            + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))
        ).rstrip()
        for row in [head, *rows]
    ]


def as_text(report: "Report") -> str:
    """Return the report as lines of at most 100 characters."""
    columns, ranks, totals = report["ranks"]["columns"], report["ranks"]["rows"], report["totals"]
    at = {name: number for number, name in enumerate(columns)}
    lines = [
        "mpiimport %s, Python %s, %s" % (report["mpiimport"], report["python"], report["began"]),
        shortened(" ".join(report["arguments"]), 100),
        "%d rank%s on %d host%s, policy %s"
        % (report["size"], "s"[: report["size"] != 1], report["hosts"], "s"[: report["hosts"] != 1], report["policy"])
        + (", %s" % shortened(report["library"], 60) if report["library"] else ""),
        "",
        "Where the time went, per rank",
    ]
    names = [("connect_s", "join the others"), ("forecast_s", "forecast"), ("opening_s", "receive openings")]
    names += [("ready_s", "start of the program after"), ("import_s", "all imports, of which")]
    names += [(phase + "_s", "  " + phase) for phase in PHASES]
    rows = []
    for name, title in names:
        of_ranks = [row[at[name]] for row in ranks]
        rows.append([title, *map(seconds, (of_ranks[0], min(of_ranks), median(of_ranks), max(of_ranks)))])
    lines += table(["", "rank 0", "least", "median", "most"], rows)

    lines += ["", "How questions were answered, per rank"]
    names = [("opening", "by an opening"), ("missing", "as missing"), ("node", "by another rank of the host")]
    names += [("lockstep", "in lockstep"), ("local", "by the rank itself"), ("built_in", "built-in and frozen")]
    names += [("failed", "imports that raised"), ("missed", "not foreseen")]
    rows = []
    for name, title in names:
        of_ranks = [row[at[name]] for row in ranks]
        rows.append([title, *("%d" % one for one in (of_ranks[0], min(of_ranks), median(of_ranks), max(of_ranks)))])
    lines += table(["", "rank 0", "least", "median", "most"], rows)

    lines += ["", "Slowest ranks"]
    slow = sorted(ranks, key=lambda row: -row[at["import_s"]])[:5]
    lines += table(
        ["rank", "host", "imports", "execute", "dlopen", "wait", "missed", "delivered"],
        [
            [
                "%d" % row[0],
                shortened(row[1], 24),
                *(seconds(row[at[name]]) for name in ("import_s", "execute_s", "dlopen_s", "wait_s")),
            ]
            + ["%d" % row[at["missed"]], megabytes(row[at["broadcast_bytes"]])]
            for row in slow
        ],
    )
    lines += ["", "Slowest modules, imports inside them left out"]
    rows = [
        [
            shortened(one["name"], 52),
            seconds(one["worst_us"] / 1e6),
            "%d" % one["rank"],
            seconds(one["median_us"] / 1e6),
        ]
        for one in report["slowest_modules"][:15]
    ]
    lines += table(["module", "most", "on rank", "median"], rows)
    if report["missed"]:
        lines += ["", "Not foreseen" + " (of the ranks in detail)" * (len(report["details"]) < report["size"])]
        rows = [
            [
                shortened(one["name"], 44),
                ", ".join("%d %s" % (count, how) for how, count in sorted(Counter(one["answers"]).items())),
                seconds(one["us"] / 1e6),
                "yes" if one["in_next_opening"] else "no",
            ]
            for one in report["missed"][:15]
        ]
        lines += table(["module", "ranks", "most", "in the next opening"], rows)
        if len(report["missed"]) > 15:
            lines.append("  and %d more" % (len(report["missed"]) - 15))
    lines += ["", "Operations on the shared filesystem that were avoided, estimated: %d" % totals["operations_avoided"]]
    shown = ", ".join("%d" % one["rank"] for one in report["details"])
    lines += ["In detail: rank%s %s" % ("s"[: len(report["details"]) != 1], shown)]
    return "\n".join(lines) + "\n"


# Pages


def as_json(report: "Report") -> str:
    """Return the report as JSON."""
    return json.dumps(report, separators=(",", ":")) + "\n"


def as_html(report: "Report") -> str:
    """Return the report as a page that needs no other file."""
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page")

    def text(name: str) -> str:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return file.read()

    told = {one["rank"] for one in report["details"]}
    columns, rows = report["ranks"]["columns"], report["ranks"]["rows"]
    seconds_at = columns.index("import_s")
    slow = sorted(rows, key=lambda row: (row[0] not in told, -row[seconds_at]))[:RANKS_ON_PAGE]
    report = {**report, "ranks": {"columns": columns, "rows": sorted(slow)}}
    # In a script, `<` could begin `</script>` or `<!--`; JSON has it in strings only. What is not ASCII is escaped.
    data = json.dumps(report, separators=(",", ":")).replace("<", "\\u003c")
    page = text("report.html")
    for name in ("report.css", "echarts.min.js", "report.js"):
        page = page.replace("/* %s */" % name, text(name))
    return page.replace("/* data */", data)


def write(path: str, text: str) -> None:
    """Write a file so that others see all of it or nothing."""
    path = os.path.realpath(path)
    trial = "%s.%d" % (path, os.getpid())
    try:
        with open(trial, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(trial, path)
    except BaseException:
        if os.path.exists(trial):
            os.unlink(trial)
        raise


def main() -> None:
    """Make the file that the header names."""
    header, numbers, details = read(sys.stdin.buffer.read())
    report = made(header, numbers, details)
    path = header["path"]
    text = {"html": as_html, "json": as_json, "txt": as_text}[path.rpartition(".")[2]](report)
    try:
        write(path, text)
    except OSError as cause:
        shown = path.encode("utf-8", "backslashreplace").decode()
        sys.exit("mpiimport: cannot write the report `%s`: %s." % (shown, cause.strerror))


if __name__ == "__main__":
    main()
