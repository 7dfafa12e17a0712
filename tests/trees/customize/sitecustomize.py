import builtins
import sys

if not hasattr(sys, "customised"):
    sys.customised = []
sys.customised.append(
    {
        "name": __name__,
        "argv": list(sys.argv),
        "orig_argv": list(getattr(sys, "orig_argv", ())),
        "path": list(sys.path),
        "flags": repr(sys.flags),
        "exit": hasattr(builtins, "exit"),
        "main": sorted(vars(sys.modules["__main__"])),
        "spec": [__spec__.name, __spec__.origin, __file__],
    }
)
