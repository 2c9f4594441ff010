"""What a cell prints while it runs, and how fast it can be stopped, in every home, for many shells at once."""
import asyncio, gc, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlm import launch
from rlm.launch import ShellLimits
from rlm.sandbox import WorkerShell
from rlm.shell import InProcessShell

no_sandbox = launch.problem("sandbox")
in_sandbox = pytest.param("sandbox", marks=pytest.mark.skipif(bool(no_sandbox), reason=str(no_sandbox)))
direct = pytest.param("direct", marks=pytest.mark.skipif(os.name != "posix", reason="POSIX only"))
homes = ["inprocess", "process", in_sandbox]

def new(home, **limits):
    if home == "inprocess": return InProcessShell()
    return WorkerShell("process" if home == "direct" else home, ShellLimits(**{"seconds": 30} | limits), direct=True if home == "direct" else None)

@pytest.fixture
def make():
    made = []
    def f(*args, **kw):
        made.append(new(*args, **kw))
        return made[-1]
    yield f
    for sh in made: sh.close()

class Heard(list):
    "A listener that can be waited for"
    def __init__(self):
        super().__init__()
        self.news = threading.Condition()
    def __call__(self, stream, text):
        with self.news:
            self.append((stream, text))
            self.news.notify_all()
    def text(self, stream="stdout"): return "".join(t for s, t in self if s == stream)
    def wait_for(self, text, seconds=20):
        with self.news: assert self.news.wait_for(lambda: text in self.text(), seconds), self

# -- Output as it comes

@pytest.mark.parametrize("home", [*homes, direct])
def test_output_comes_while_the_cell_runs(make, home):
    sh, heard, go = make(home), Heard(), threading.Event()
    sh.protect(wait=lambda: go.wait(20))
    sh.on_output = heard
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(sh.run, "import sys\nprint('begun')\nwait()\nprint('warned', file=sys.stderr)\nprint('done')")
        heard.wait_for("begun\n")
        assert not done.done()
        go.set()
        r = done.result(20)
    assert (r.stdout, r.stderr) == ("begun\ndone\n", "warned\n") == (heard.text(), heard.text("stderr"))
    assert "".join(t for _, t in heard) == "begun\nwarned\ndone\n" # in order
    n = len(heard)
    sh.on_output = None
    assert sh.run("print('unheard')").stdout == "unheard\n" and len(heard) == n

@pytest.mark.parametrize("home", homes)
def test_all_kinds_of_output(make, home):
    sh, heard = make(home), Heard()
    sh.on_output = heard
    code = "\n".join(["import threading, asyncio", "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()",
        "!echo program", "async def f(): print('task')", "await asyncio.gather(f(), f())", "print('ä€😀', flush=True)", "6*7"])
    r = sh.run(code)
    assert r.stdout == heard.text() == "thread\nprogram\ntask\ntask\nä€😀\n" and r.result == "42"
    heard.clear()
    if home != "inprocess":
        assert sh.run("import os; os.system('echo past the shell'); print('x')").stdout == heard.text()

@pytest.mark.parametrize("home", homes)
def test_a_listener_that_fails(make, home, capsys):
    sh, n = make(home), []
    def bad(stream, text):
        n.append(text)
        print("the listener's own")
        raise ValueError("no")
    sh.on_output = bad
    r = sh.run("for i in range(5): print(i)\n'end'")
    assert (r.stdout, r.stderr, r.result, r.error) == ("0\n1\n2\n3\n4\n", "", "'end'", None)
    assert "".join(n) == r.stdout and "the listener's own" in capsys.readouterr().out

@pytest.mark.parametrize("home", homes)
def test_a_flood_is_bounded(make, home):
    sh, heard = make(home, output=50_000), Heard()
    sh.on_output = heard
    if home == "inprocess": sh.keep = 50_000
    r = sh.run("for i in range(20_000): print('line', i)\nprint('y'*10**6)")
    assert r.error is None and len(heard.text()) == 50_000 and heard.text().startswith("line 0\nline 1\n")
    if home != "inprocess": assert len(heard) < 20*r.seconds + 3
    assert sh.run("print('next')").stdout == "next\n" and heard.text().endswith("next\n")

@pytest.mark.parametrize("home", [o for o in homes if o != "inprocess"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_forks_of_a_cell_send_nothing(make, home):
    sh, heard = make(home), Heard()
    sh.on_output = heard
    r = sh.run("import os, warnings; warnings.simplefilter('ignore')\nprint('before')\nif not (pid := os.fork()):\n    print('child'*1000)\n    os._exit(0)\nos.waitpid(pid, 0)\nprint('after')")
    assert r.stdout == heard.text() == "before\nafter\n", (r, heard)
    sh.run("import os\nprint('x')\nif not (pid := os.fork()): pass\nelse: os.waitpid(pid, 0)") # a child that comes out of the cell
    assert sh.run("print('alive')").stdout == "alive\n" and heard.text().endswith("alive\n")

@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_output_of_signal_handlers(make):
    sh, heard = make("process"), Heard()
    sh.on_output = heard
    code = """import signal, time
n = [0]
def tick(*args):
    n[0] += 1
    print('tick', flush=True)
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, .001, .001)
until = time.monotonic() + 1
while time.monotonic() < until: print('tock')
signal.setitimer(signal.ITIMER_REAL, 0)
n[0] > 100"""
    r = sh.run(code)
    assert r.result == "True" and sorted(heard.text().split()) == sorted(r.stdout.split()) or "elided" in r.stdout

@pytest.mark.skipif(sys.platform != "linux", reason="snapshots: only on Linux")
def test_listening_leaves_no_thread_and_keeps_snapshots(make):
    sh, heard = make("process"), Heard()
    sh.on_output = heard
    sh.run("x = 1\nprint('x')")
    assert sh.run("import os; print('last words', flush=True); import time; time.sleep(.2); os._exit(3)").error.name == "ProcessDied"
    assert heard.text() == "x\nlast words\n" and sh.run("x").result == "1"

# -- Stopping

# What nobody can stop in this process goes on in a thread of its own: it must not do so for the rest of all tests.
stubborn = dict(
    swallows="end = time.monotonic() + 15\nwhile time.monotonic() < end:\n    try: time.sleep(9)\n    except BaseException: pass",
    c_code="time.sleep(30)", busy="while True: pass", host_call="wait()", regex="import re; re.match('(a+)+b', 'a'*60)",
    awaits="import asyncio\nend = time.monotonic() + 15\nwhile time.monotonic() < end:\n    try: await asyncio.sleep(30)\n    except BaseException: pass",
    thread="import threading; threading.Event().wait(30)", program="!sleep 30")

async def cancelled(sh, code, heard):
    "Cancel a cell once it has begun; what there is of it, and the seconds that took"
    task = asyncio.create_task(sh.arun("import time\nprint('begun')\n" + code))
    await asyncio.to_thread(heard.wait_for, "begun")
    await asyncio.sleep(.05)
    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as e: await task
    return e.value.cell_result, time.monotonic() - start

@pytest.mark.parametrize("home", homes)
@pytest.mark.parametrize("code", stubborn)
def test_stopped_within_a_second(make, home, code):
    if (home, code) == ("inprocess", "regex"): pytest.skip("holds the interpreter's lock")
    sh, heard, go = make(home), Heard(), threading.Event()
    sh.protect(wait=lambda: go.wait(20))
    sh.run("kept = 1")
    sh.on_output = heard
    r, took = asyncio.run(cancelled(sh, stubborn[code], heard))
    go.set()
    assert took < 1 and (not r.error or r.error.name == "KeyboardInterrupt"), (took, r)
    sh.on_output = None
    start = time.monotonic()
    assert sh.run("kept").result == "1" and time.monotonic() - start < 8

def test_a_cell_left_behind_gives_no_answer(make):
    sh, heard, go = make("inprocess"), Heard(), threading.Event()
    sh.protect(wait=lambda: go.wait(20))
    sh.on_output = heard
    gone = threading.Event()
    sh.protect(gone=gone)
    asyncio.run(cancelled(sh, "try: wait()\nexcept BaseException: pass\ntry: FINAL('too late')\nfinally: gone.set()", heard))
    sh.protect(go=go)
    r = sh.run("go.set()\ngone.wait(20)")
    assert r.error is None and not r.ended
    assert sh.run("FINAL('in time')").final == "in time"

def test_a_cell_that_waits_for_one_left_behind(make):
    "is not left behind with it"
    sh, heard, go = make("inprocess"), Heard(), threading.Event()
    sh.protect(wait=lambda: go.wait(20))
    sh.on_output = heard
    async def main():
        first = asyncio.create_task(sh.arun("print('begun')\nwait()"))
        await asyncio.to_thread(heard.wait_for, "begun")
        second = asyncio.create_task(sh.arun("5"))
        await asyncio.sleep(.05)
        first.cancel()
        with pytest.raises(asyncio.CancelledError): await first
        return await asyncio.wait_for(second, 10)
    assert asyncio.run(main()).result == "5"
    go.set()

def test_calls_of_a_stopped_cell_are_not_begun(make):
    sh, heard, go, begun = make("process"), Heard(), threading.Event(), []
    def ask(n):
        begun.append(n)
        go.wait(20)
    sh.protect(ask=ask)
    sh.on_output = heard
    code = "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(400) as pool: list(pool.map(ask, range(400)))"
    _, took = asyncio.run(cancelled(sh, code, heard))
    n = len(begun)
    go.set()
    assert took < 1 and n < 400
    assert sh.run("6*7").result == "42" and len(begun) <= n + 1

@pytest.mark.parametrize("home", ["process", in_sandbox])
def test_cancelled_while_it_starts(make, home):
    sh = make(home)
    sh.protect(context="x"*30_000_000)
    async def main():
        task = asyncio.create_task(sh.arun("ran = True"))
        await asyncio.sleep(.01)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        return time.monotonic() - start
    assert asyncio.run(main()) < 1
    assert sh.run("'ran' in globals()").result == "False"

# -- Many at once

def held(): return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

@pytest.mark.parametrize("home,n", [("inprocess", 64), pytest.param("process", 64, marks=pytest.mark.long)])
def test_many_shells_at_once(home, n):
    "Each has its own output, variables and answers; cancelled together they stop together; nothing is left"
    async def one(i, sh, heard):
        sh.protect(context=f"text {i}", ask=lambda x: x*10)
        sh.on_output = heard
        await sh.arun(f"mine = {i}")
        r = await sh.arun("import asyncio\nfor j in range(3):\n    print(mine, j, flush=True)\n    await asyncio.sleep(.01)\nask(mine), context, find('text')[0].end")
        assert r.stdout == heard.text() == "".join(f"{i} {j}\n" for j in range(3)) and r.result == f"({i*10}, 'text {i}', 4)", (r, heard)
        return (await sh.arun("FINAL(mine)")).final
    async def main(shells):
        heard = [Heard() for _ in shells]
        assert await asyncio.gather(*(one(i, *o) for i, o in enumerate(zip(shells, heard)))) == list(range(n))
        tasks = [asyncio.create_task(sh.arun("print('begun')\nimport time; time.sleep(4)")) for sh in shells]
        for h in heard: await asyncio.to_thread(h.wait_for, "begun")
        start = time.monotonic()
        for t in tasks: t.cancel()
        assert all(isinstance(o, asyncio.CancelledError) for o in await asyncio.gather(*tasks, return_exceptions=True))
        return time.monotonic() - start
    new(home).close()
    gc.collect()
    fds, threads = held(), threading.active_count()
    shells = [new(home, seconds=60) for _ in range(n)]
    try: assert asyncio.run(main(shells)) < 1.5
    finally:
        with ThreadPoolExecutor(8) as pool: list(pool.map(lambda sh: sh.close(), shells))
    del shells
    gc.collect()
    until = time.monotonic() + 30
    while (held() > fds + 3 or threading.active_count() > threads + 3) and time.monotonic() < until: time.sleep(.1)
    assert held() <= fds + 3 and threading.active_count() <= threads + 3, (fds, held(), threads, threading.enumerate())
