"""Delivered code is used once; then the loader is one that reads the file."""

import marshal
import os
import pickle

from mpiimport import _core
from mpiimport.loader import DeliveredLoader


def test_delivered_code_is_used_once(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("value = 'in the file'\n")
    delivered = compile("value = 'delivered'\n\ndef function():\n    pass\n", "/elsewhere/module.py", "exec")
    loader = DeliveredLoader("module", str(file), memoryview(_core.compress(marshal.dumps(delivered))))
    first, second = loader.get_code("module"), loader.get_code("module")
    assert "delivered" in first.co_consts
    assert "in the file" in second.co_consts
    function = next(one for one in first.co_consts if type(one) is type(first))
    assert first.co_filename == function.co_filename == str(file)


def test_source_is_read_from_the_file(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("value = 'in the file'\n")
    loader = DeliveredLoader("module", str(file), _core.compress(marshal.dumps(compile("", "", "exec"))))
    assert loader.get_source("module") == "value = 'in the file'\n"
    assert loader.get_filename("module") == str(file)
    assert not loader.is_package("module")


def test_a_pickled_loader_carries_no_code(tmp_path):
    code = _core.compress(marshal.dumps(compile("value = %r" % os.urandom(10000), "", "exec")))
    loader = DeliveredLoader("module", str(tmp_path / "module.py"), memoryview(code))
    pickled = pickle.dumps(loader)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).path == loader.path
    assert loader.delivered is not None
