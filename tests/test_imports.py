"""Every module of the package can be imported."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import rlrec

MODULES = sorted(module.name for module in pkgutil.walk_packages(rlrec.__path__, "rlrec."))
IMPORTS = """
import sys, warnings
from importlib import import_module
warnings.simplefilter("error")
for name in sys.argv[1:]:
    import_module(name)
"""


def test_every_module_is_imported_without_a_warning() -> None:
    modules = [name for name in MODULES if name.rpartition(".")[2] != "__main__"]
    done = subprocess.run([sys.executable, "-c", IMPORTS, *modules], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
