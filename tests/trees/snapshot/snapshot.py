"""Write what this process looks like to a file, as JSON, before it imports anything that is not there already.

The variable SNAPSHOT_TO names the folder; the file is named for the rank. SNAPSHOT_IMPORTS are modules to import
afterwards; with SNAPSHOT_CHILDREN the processes that this one starts tell what they are like.
"""

import sys

MODULES = sorted(sys.modules)

SEEN_BY_CHILD = """{
    "flags": repr(sys.flags),
    "path": sys.path,
    "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix],
    "meta_path": [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path],
    "customised": [one["name"] for one in getattr(sys, "customised", [])],
    "site": [site.PREFIXES, site.ENABLE_USER_SITE, site.USER_SITE, repr(exit)],
    "environ": {name: value for name, value in os.environ.items() if name != "SNAPSHOT_TO"},
    "orig_argv": [word for word in getattr(sys, "orig_argv", []) if "=" not in word],
}"""


def name_of(thing):
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return "%s.%s" % (kind.__module__, kind.__qualname__)


def attributes(thing):
    return {
        name: getattr(thing, name)
        for name in dir(thing)
        if not name.startswith("_") and not callable(getattr(thing, name))
    }


def spec_of(module):
    spec = module.__spec__
    if spec is None:
        return None
    path = getattr(module, "__path__", None)
    return {
        "file": getattr(module, "__file__", None),
        "cached": getattr(module, "__cached__", None),
        "package": getattr(module, "__package__", None),
        "path": None if path is None else [type(path).__name__, *path],
        "spec": [spec.name, spec.origin, spec.cached, spec.parent, spec.has_location],
        "locations": None if spec.submodule_search_locations is None else list(spec.submodule_search_locations),
    }


def process():
    import builtins
    import os
    import site

    return {
        "modules": MODULES,
        "sys": {
            name: getattr(sys, name, None)
            for name in (
                "argv base_exec_prefix base_prefix dont_write_bytecode exec_prefix executable orig_argv path platlibdir "
                "prefix pycache_prefix warnoptions _base_executable _home _xoptions pth_lines"
            ).split()
        },
        "names in sys": sorted(vars(sys)),
        "flags": [repr(sys.flags), attributes(sys.flags), list(sys.flags), type(sys.flags).__name__],
        "excepthook": sys.excepthook is sys.__excepthook__,
        "interactivehook": name_of(sys.__interactivehook__) if hasattr(sys, "__interactivehook__") else None,
        "lazy": [str(getattr(sys, name)()) for name in ("get_lazy_imports", "get_lazy_imports_filter") if hasattr(sys, name)],
        "meta_path": [name_of(finder) for finder in sys.meta_path],
        "path_hooks": [name_of(hook) for hook in sys.path_hooks],
        "site": {name: getattr(site, name) for name in ("PREFIXES", "ENABLE_USER_SITE", "USER_SITE", "USER_BASE")},
        "names in site": sorted(vars(site)),
        "modules in site": sorted(name_of(value) for value in vars(site).values() if isinstance(value, type(sys))),
        "site and os": [spec_of(site), spec_of(os)],
        "builtins": {name: name_of(value) for name, value in vars(builtins).items() if name != "_"},
        "texts": [repr(vars(builtins).get(name)) for name in ("exit", "quit", "copyright", "credits", "license", "help")],
        "license": license._Printer__filenames if hasattr(builtins, "license") else None,
        "main": {
            name: value if isinstance(value, str) and name != "__doc__" else name_of(value)
            for name, value in globals().items()
            if name.startswith("__")
        },
        "main's spec": spec_of(sys.modules["__main__"]),
        "environ": {name: value for name, value in os.environ.items() if name != "SNAPSHOT_TO"},
        "folder": os.getcwd(),
        "customised": getattr(sys, "customised", None),
    }


def children():
    import json
    import multiprocessing
    import subprocess

    expression = "__import__('json').dumps(eval(%r, {'sys': __import__('sys'), 'os': __import__('os'), 'site': __import__('site')}))"
    expression %= SEEN_BY_CHILD
    seen = {"arguments": subprocess._args_from_interpreter_flags()}
    done = subprocess.run([sys.executable, "-c", "print(%s)" % expression], stdout=subprocess.PIPE, check=True)
    seen["subprocess"] = json.loads(done.stdout)
    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            seen[method] = json.loads(pool.apply(eval, (expression,)))
        seen[method].pop("orig_argv")
    return seen


def main():
    snapshot = process()
    import importlib
    import json
    import os

    snapshot["imported"] = {}
    for fullname in os.environ.get("SNAPSHOT_IMPORTS", "").split():
        try:
            snapshot["imported"][fullname] = spec_of(importlib.import_module(fullname))
        except ImportError as cause:
            snapshot["imported"][fullname] = "%s: %s" % (type(cause).__name__, cause)
    if os.environ.get("SNAPSHOT_CHILDREN"):
        snapshot["children"] = children()
    with open("%s/%s.json" % (os.environ["SNAPSHOT_TO"], os.environ["PMI_RANK"]), "w") as file:
        json.dump(snapshot, file)


if __name__ == "__main__":
    main()
