"Each notebook is a test: nbdev runs it from top to bottom, in a process of its own."
import json, subprocess, sys, tempfile
from pathlib import Path

import pytest

nbs = Path(__file__).resolve().parent.parent/"nbs"
names = [p for p in sorted(o.relative_to(nbs) for o in nbs.rglob("*.ipynb")) if not any(o[0] in "._" for o in p.parts)]

# What takes seconds to import is imported once, before the forks.
SERVER = """
import json, os, signal, sys
from nbdev.test import nbdev_test
from rlm.lm import litellm_module
litellm_module()
for line in sys.stdin:
    path,out = json.loads(line)
    if pid := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    signal.alarm(600)
    os.dup2(os.open(out, os.O_WRONLY), 1)
    os.dup2(1, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    nbdev_test.__wrapped__(path, n_workers=0)
    break
"""

@pytest.fixture(scope="module")
def server():
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=nbs) as p: yield p

@pytest.mark.parametrize("name", names, ids=lambda o: o.with_suffix("").as_posix())
def test_notebook(server, name):
    with tempfile.NamedTemporaryFile("r", errors="replace") as out:
        print(json.dumps([str(nbs/name), out.name]), file=server.stdin, flush=True)
        code,said = server.stdout.readline().strip(),out.read()
    assert code == "0" and "Success." in said, f"{code}: {said[-12_000:]}"
