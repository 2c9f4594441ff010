"Time two things side by side, and show what came of it."
import json, os, platform, subprocess, sys, time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
MODEL = "openai/gpt-4o-mini" # only a name with a known price: all requests go to the loopback server
LINE = "2024-05-17 12:00:03 INFO a line of a log, of about a hundred characters, as they are found in any server.\n"


@dataclass
class Row:
    "One line of the table: ours beside its floor"
    what: str
    ours: list              # one sample a round
    floor: list = field(default_factory=list) # of the same rounds: what nothing can be better than
    unit: str = "ms"        # of the samples: "ms", "s", "KB", "MB"
    compare: str = "ratio"  # "ratio" (ours/floor), "over" (ours - floor) or "value" (ours alone)
    target: float|None = None # the most that `value` should be

    @property
    def value(self):
        "What is held against the target; rounds are compared one by one, as other work on the machine comes and goes"
        pairs = list(zip(self.ours, self.floor))
        each = dict(ratio=[a/b for a,b in pairs], over=[a-b for a,b in pairs], value=self.ours)[self.compare]
        return median(each)

    @property
    def met(self): return None if self.target is None else self.value <= self.target

    def amount(self, v):
        "A ratio, a difference or a value, as text"
        if self.compare == "ratio": return f"{v:.2f}×"
        return f"{v:{'+' if self.compare == 'over' else ''}.3g} {self.unit}"


def interleaved(rounds, *measures):
    "Call each of `measures` once a round, in alternating order; a sample a round of each, the median of several"
    res = [[] for _ in measures]
    for r in range(rounds):
        for i in range(len(measures))[::-1 if r%2 else 1]:
            got = measures[i]()
            res[i].append(median(got) if isinstance(got, list) else got)
    return res


def seconds(f, *args, **kwargs):
    "How long `f` takes"
    start = time.perf_counter()
    f(*args, **kwargs)
    return time.perf_counter() - start


def ms(samples): return [1000*o for o in samples]


@contextmanager
def model_server(reply, latency=0.0):
    "URL of a model server with one reply, in a process of its own so that it does not share our interpreter lock"
    cmd = [sys.executable, "-m", "benchmarks.server", json.dumps(reply), str(latency)]
    p = subprocess.Popen(cmd, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try: yield p.stdout.readline().strip()
    finally:
        p.stdin.close() # it ends when its standard input does
        p.wait(10)


def machine():
    "Where this was measured"
    return dict(python=platform.python_version(), system=platform.system(), machine=platform.machine(),
                cpus=os.cpu_count(), **{o: version(o) for o in ("litellm", "openai", "ipython")})


def show(results):
    "Print the rows of each benchmark"
    t = Table(caption=" · ".join(f"{k} {v}" for k,v in machine().items()), caption_justify="left")
    for o in ("", "what"): t.add_column(o)
    for o in ("ours", "floor", "measured", "target", ""): t.add_column(o, justify="right")
    marks = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}
    for name,rows in results.items():
        for i,r in enumerate(rows):
            ours,floor = [f"{median(o):.3g} {r.unit}" if o else "" for o in (r.ours, r.floor)]
            target = f"≤ {r.amount(r.target)}" if r.target else ""
            t.add_row("" if i else name, r.what, ours, floor, r.amount(r.value), target, marks[r.met])
        t.add_section()
    Console(width=None if sys.stdout.isatty() else 120).print(t)


def write_json(results, path):
    "All samples, for a machine to read"
    rows = {k: [dict(asdict(r), value=r.value, met=r.met) for r in v] for k,v in results.items()}
    Path(path).write_text(json.dumps(dict(machine=machine(), results=rows), indent=1))
