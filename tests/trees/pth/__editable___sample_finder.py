"""As setuptools writes them for editable installs: a package by a mapping, and a namespace package by a path hook."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location

HERE = __file__.rpartition("/")[0]
MAPPING = {"sample_editable": HERE + "/editable/sample_editable"}
NAMESPACES = {"sample_namespace": [HERE + "/editable/sample_namespace"]}
PATH_PLACEHOLDER = "__editable__.sample-1.0.finder.__path_hook__"


class _EditableFinder:
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname in MAPPING:
            return spec_from_file_location(fullname, MAPPING[fullname] + "/__init__.py")
        return None


class _EditableNamespaceFinder:
    @classmethod
    def _path_hook(cls, path):
        if path == PATH_PLACEHOLDER:
            return cls
        raise ImportError

    @classmethod
    def find_spec(cls, fullname, target=None):
        if fullname in NAMESPACES:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = NAMESPACES[fullname]
            return spec
        return None


def install():
    sys.meta_path.append(_EditableFinder)
    sys.path_hooks.append(_EditableNamespaceFinder._path_hook)
    sys.path.append(PATH_PLACEHOLDER)
