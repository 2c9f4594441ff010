"Each notebook is a test: `nbdev-test` runs it from top to bottom, in a process of its own."
import subprocess, sys
from pathlib import Path

import pytest

nbs = Path(__file__).resolve().parent.parent/"nbs"
names = [p for p in sorted(o.relative_to(nbs) for o in nbs.rglob("*.ipynb")) if not any(o[0] in "._" for o in p.parts)]

@pytest.mark.parametrize("name", names, ids=lambda o: o.with_suffix("").as_posix())
def test_notebook(name):
    code = f"from nbdev.test import nbdev_test; nbdev_test.__wrapped__({str(nbs/name)!r}, n_workers=0)"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=600, cwd=nbs)
    assert r.returncode == 0 and "Success." in r.stdout, f"{r.stdout[-4000:]}\n{r.stderr[-8000:]}"
