"How long it takes until one can begin."
import subprocess, sys
from importlib.util import find_spec

from benchmarks.measure import ROOT, Row, interleaved, ms, seconds


def started(*args):
    "Runs Python with these arguments to its end"
    def go(): subprocess.run([sys.executable, *args], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    go()
    return lambda: seconds(go)


def rows(rounds=15):
    python,package = started("-c", "pass"),started("-c", "import rlm")
    a,b = map(ms, interleaved(rounds, package, python))
    res = [Row("import rlm, over bare Python", a, b, compare="over", target=100)]
    if not find_spec("rlm.cli"): return res + [Row("rlm --help", [], note="no rlm.cli here")]
    a,b = map(ms, interleaved(rounds, started("-m", "rlm", "--help"), python))
    return res + [Row("rlm --help", a, b, compare="value", target=300)]
