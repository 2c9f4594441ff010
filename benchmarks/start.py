"How long it takes until one can begin."
import subprocess, sys

from benchmarks.measure import ROOT, Row, interleaved, ms, seconds


def started(*args):
    "Runs Python with these arguments to its end"
    def go(): subprocess.run([sys.executable, *args], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    go()
    return lambda: seconds(go)


def rows(rounds=15):
    "Importing the package, and the command's help"
    python,package = started("-c", "pass"),started("-c", "import rlm")
    a,b = map(ms, interleaved(rounds, package, python))
    res = [Row("import rlm, over bare Python", a, b, compare="over", target=100)]
    a,b = map(ms, interleaved(rounds, started("-m", "rlm", "--help"), python))
    return res + [Row("rlm --help", a, b, compare="value", target=300)]
