"""Write what this process looks like to a file, as JSON, before it imports anything that is not there already.

The variable SNAPSHOT_TO names the folder; the file is named for the rank. SNAPSHOT_IMPORTS are modules to import
afterwards; with SNAPSHOT_CHILDREN the processes that this one starts tell what they are like, with SNAPSHOT_MODULES
every module tells, too: a program may begin with `import snapshot` and end with `snapshot.main()`.
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


def described(module):
    """Return what a program can see of a module, wherever that came from."""
    spec = getattr(module, "__spec__", None)
    facts = {name: text(getattr(module, name, None)) for name in ("__name__", "__file__", "__cached__", "__package__")}
    facts["__path__"] = text(getattr(module, "__path__", None))
    facts["__loader__"] = loader_of(module, getattr(module, "__loader__", None))
    if isinstance(spec, type(sys.__spec__)):
        facts["__spec__"] = {name: text(getattr(spec, name)) for name in (*vars(spec), "cached", "parent", "has_location")}
        facts["__spec__"]["loader"] = loader_of(module, spec.loader)
    else:
        facts["__spec__"] = text(spec)
    return facts


def contents(module):
    """Return a module's names, in order, and where its functions were compiled from."""
    functions = {name: one.__code__ for name, one in vars(module).items() if isinstance(one, type(contents))}
    return {
        "type": name_of(type(module)),
        "names": list(map(text, vars(module))),
        "functions": {name: [code.co_filename, code.co_firstlineno] for name, code in functions.items()},
    }


def is_class(kind):
    """Whether this is a class that objects can be asked about: protocols cannot, in older Pythons."""
    return isinstance(kind, type) and not getattr(kind, "_is_protocol", False)


def loader_of(module, loader):
    """Return what importlib's classes and a loader's methods say of it."""
    import importlib.abc
    import importlib.machinery

    if loader is None:
        return None
    classes = {**vars(importlib.abc), **vars(importlib.machinery)}
    facts = {
        "type": text(loader),
        "is": sorted(name for name, kind in classes.items() if is_class(kind) and isinstance(loader, kind)),
        "methods": [name for name in dir(loader) if callable(getattr(loader, name)) and not name.startswith("_")],
    }
    for name in ("is_package", "get_filename", "get_resource_reader"):
        try:
            facts[name] = text(getattr(loader, name)(module.__name__))
        except Exception as cause:
            facts[name] = "%s: %s" % (type(cause).__name__, cause)
    return {**facts, "name": text(getattr(loader, "name", None)), "path": text(getattr(loader, "path", None))}


def text(value):
    """Return a value so that it can be compared with that of another process. A class of ours is known by its base."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if type(value).__name__ in ("list", "tuple", "_NamespacePath"):
        return [type(value).__name__, *map(text, value)]
    if isinstance(value, type):
        return name_of(value)
    return name_of(next(kind for kind in type(value).__mro__ if not kind.__module__.startswith("mpiimport.")))


def effects():
    """Return what importing modules did to this process."""
    import logging
    import signal
    import threading
    import warnings

    return {
        "warnings": [[text(part) for part in one] for one in warnings.filters] + [name_of(warnings.showwarning)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "logging": [sorted(logging.root.manager.loggerDict), list(map(name_of, logging.root.handlers))],
        "signals": [text(signal.getsignal(one)) for one in sorted(signal.valid_signals())],
        "limits": [sys.getrecursionlimit(), sys.getswitchinterval()],
        "hooks": [name_of(hook) for hook in (sys.displayhook, sys.unraisablehook, sys.breakpointhook, __import__)],
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
        "site and os": [described(site), described(os)],
        "builtins": {name: name_of(value) for name, value in vars(builtins).items() if name != "_"},
        "texts": [repr(vars(builtins).get(name)) for name in ("exit", "quit", "copyright", "credits", "license", "help")],
        "license": license._Printer__filenames if hasattr(builtins, "license") else None,
        "main": {
            name: value if isinstance(value, str) and name != "__doc__" else name_of(value)
            for name, value in vars(sys.modules["__main__"]).items()
            if name.startswith("__")
        },
        "main's spec": described(sys.modules["__main__"]),
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
    imported = list(sys.modules.items())
    snapshot = process()
    import importlib
    import json
    import os

    snapshot["imported"] = {}
    for fullname in os.environ.get("SNAPSHOT_IMPORTS", "").split():
        try:
            snapshot["imported"][fullname] = described(importlib.import_module(fullname))
        except ImportError as cause:
            snapshot["imported"][fullname] = "%s: %s" % (type(cause).__name__, cause)
    if os.environ.get("SNAPSHOT_MODULES"):
        snapshot["order"] = [name for name, _ in imported if name not in MODULES]
        snapshot["described"] = {name: described(module) for name, module in imported}
        snapshot["contents"] = {name: contents(module) for name, module in imported if name != "sys"}
        snapshot["effects"] = effects()
    if os.environ.get("SNAPSHOT_CHILDREN"):
        snapshot["children"] = children()
    with open("%s/%s.json" % (os.environ["SNAPSHOT_TO"], os.environ["PMI_RANK"]), "w") as file:
        json.dump(snapshot, file)


if __name__ == "__main__":
    main()
