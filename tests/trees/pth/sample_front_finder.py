"""A finder before all others, as setuptools has one for distutils."""

import sys
from importlib.util import spec_from_loader


class FrontFinder:
    def find_spec(self, fullname, path=None, target=None):
        return spec_from_loader(fullname, self) if fullname == "sample_front" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__file__ = "in front"


sys.meta_path.insert(0, FrontFinder())
