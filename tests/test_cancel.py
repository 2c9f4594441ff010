"""Cancelling in the middle of anything: what was asked for stops, and all else goes on.

Each case prints how long it took until the caller had control again and until the server saw no open call."""
import asyncio, functools, gc, json, os, queue, shutil, signal, subprocess, sys, threading, time
from concurrent.futures import Future
from pathlib import Path

import pytest

from rlm.events import Cell, End, InputError, Limits, Run, Subcall, Usage
from rlm.io import io_loop
from rlm.lm import LM
from rlm.model import RLM
from rlm.offline import Fault, serve, tool_call
from rlm.trajectory import Trajectory
from rlm.worker import descendants

linux = sys.platform == "linux"
SOON = 3.0 # seconds; what is meant is one, on a machine that is not busy with other things
sandbox = pytest.param("sandbox", marks=[pytest.mark.skipif(not shutil.which("bwrap"), reason="needs bubblewrap"), pytest.mark.long])
process_late = pytest.param("process", marks=pytest.mark.long)
homes = ["inprocess", process_late, sandbox]

def eventually(check, seconds=SOON):
    "Wait until `check()` holds; whether it does"
    until = time.monotonic() + seconds
    while not check() and time.monotonic() < until: time.sleep(.005)
    return check()

# ---- Places in which a run can be, each with the number of calls that are open then

# What nobody can stop in this process goes on in a thread of its own: it must not do so for the rest of all tests.
CODE = dict(
    spin="here()\nwhile True: pass",
    sleep="import time\nhere()\ntime.sleep(60)",
    stubborn="import time\nhere()\nend = time.monotonic() + 15\nwhile time.monotonic() < end:\n    try: time.sleep(9)\n    except BaseException: pass",
    shell="import threading\nthreading.Timer(.3, here).start()\n!sleep 60",
    thread="import threading\nhere()\nthreading.Event().wait()",
    awaits="import asyncio\nhere()\nawait asyncio.sleep(60)",
    call="wait()", # a function of the host that takes its time
    query="llm_query('hang')",
    batch="llm_query_batched([f'hang {i}' for i in range(64)])",
    abatch="await allm_query_batched([f'hang {i}' for i in range(64)])",
    half="llm_query_batched([f'{o} {i}' for o in ('say', 'hang') for i in range(32)])",
    child="rlm_query('hang', 'text')",
    childcell="rlm_query('AT spin', 'text')",
    childbatch="rlm_query('AT batch', 'text')",
    children="rlm_query_batched(['hang']*4, ['text']*4)",
    final="FINAL('x')")
OPEN = dict(root=1, query=1, batch=64, abatch=64, half=32, child=1, childbatch=64, children=4, verify=1)
cells = ["spin", "sleep", "stubborn", "shell", "thread", "awaits", "call"]
calls = ["query", "batch", "abatch", "half"]
children = ["child", "childcell", "childbatch", "children"]
verifying = ["verify", "verify_function", "verify_coroutine"]

def reply(messages, tools=None):
    "Depends on nothing but the request; `hang` never gets one"
    last = str(messages[-1]["content"])
    if "hang" in last or not tools and "ACCEPT" in last: return Fault("hang")
    asked = [k for k in CODE if f"AT {k}" in last]
    return tool_call(CODE[asked[-1]]) if asked else tool_call("FINAL(context)") if tools else "said"

def below(): return set(descendants(os.getpid())) if linux else set()

class Case:
    "An RLM with a server of its own, and a question that gets stuck at a place"
    def __init__(self, folder, place, home, srv, **kw):
        self.place, self.home, self.srv, self.log, self.at = place, home, srv, folder/"log.jsonl", threading.Event()
        self.release, self.before = threading.Event(), warm()
        self.below = below() # what other tests have left, such as a pool
        self.lm = LM("openai/m", base_url=srv.base_url, api_key="none", retries=0, max_concurrency=64)
        def here(): self.at.set()
        def wait():
            self.at.set()
            self.release.wait(20)
        def verify_function(question, answer, evidence): wait()
        async def verify_coroutine(question, answer, evidence):
            self.at.set()
            await asyncio.sleep(60)
        verify = dict(verify=self.lm, verify_function=verify_function, verify_coroutine=verify_coroutine).get(place)
        self.rlm = RLM(self.lm, shell=home, dialect="tools", limits=Limits(max_depth=2), tools=[here, wait], verify=verify, **kw)
        self.query = "hang" if place in ("root", "opened") else "AT final" if place in verifying else f"AT {place}"
        self.context = [self.document()] if place == "opening" else "text"

    def document(case):
        "A document that takes its time to be read"
        class Document:
            metadata = {}
            @property
            def page_content(self):
                case.at.set()
                case.release.wait(20)
                return "text"
        return Document()

    def wait(self):
        "Until the run is where it is to be cancelled"
        if self.place == "opened": return # at once
        if n := OPEN.get(self.place): assert eventually(lambda: self.srv.in_flight == n and self.hangs(), 30), self.srv.in_flight
        else: assert self.at.wait(30)
        if self.place == "half": # those that reply have done so, and were heard
            assert eventually(lambda: self.replies() == 32, 30), self.replies()

    def hangs(self):
        "Is the last request one that gets no reply?"
        last = str(self.srv.requests[-1]["body"]["messages"][-1]["content"])
        return "hang" in last or "ACCEPT" in last

    def replies(self): return sum(isinstance(e, Subcall) for e in Trajectory.load(self.log))

@functools.cache
def warm():
    "The number of tasks that are always there, once LiteLLM has made its own"
    with serve("warm") as srv: LM("openai/m", base_url=srv.base_url, api_key="none").complete("up")
    return _tasks()

async def _all(): return len([o for o in asyncio.all_tasks() if o is not asyncio.current_task()])
def _tasks(): return asyncio.run_coroutine_threadsafe(_all(), io_loop()).result(SOON)

@pytest.fixture
def case(tmp_path):
    "Makes a `Case`, and sees to it that its end is the end of everything"
    made = []
    def make(place, home="inprocess", **kw):
        made.append(Case(tmp_path, place, home, serve(reply), **kw))
        return made[-1]
    yield make
    for o in made:
        o.release.set()
        o.rlm.close()
        o.srv.close()

# ---- What must hold after a cancellation

def check_stopped(case, took, start):
    "Calls are closed, tasks gone, the log is whole and stays as it is, and the next question is answered"
    closed = eventually(lambda: case.srv.in_flight == 0)
    print(f"{case.place}, {case.home}: back after {took:.2f} s, calls closed after {time.monotonic()-start:.2f} s")
    assert closed and took < SOON, (took, case.srv.in_flight)
    assert eventually(lambda: _tasks() <= case.before), "tasks are left on the I/O loop"
    log = check_log(case)
    start, case.rlm.verify = time.monotonic(), None
    assert case.rlm.completion("How long?", "next").answer == "next" # while what was stopped may still be winding up
    assert time.monotonic() - start < 20
    case.release.set()
    if log: assert log == case.log.read_text(), "something was written after the end"

def check_log(case):
    if not case.log.exists(): # it begins when the context has been read
        assert case.place in ("opening", "opened")
        return None
    t = Trajectory.load(case.log)
    assert isinstance(t[0], Run) and (t[-1].status, t[-1].run) == ("cancelled", t[0].id), list(map(repr, t[-3:]))
    assert t.status == "cancelled" and not t.torn
    runs, ends = [e.id for e in t if isinstance(e, Run)], [e.run for e in t if isinstance(e, End)]
    assert sorted(runs) == sorted(ends), "each run has one end"
    messages = t.messages()
    asked = [o["id"] for m in messages for o in m.get("tool_calls") or []]
    open_calls = len(asked) - sum(m["role"] == "tool" for m in messages)
    assert open_calls in ((0, 1) if case.place == "opened" else (0,)), "each call has its result, if it has begun"
    done = [e for e in t if isinstance(e, Subcall) and not e.error]
    if case.place == "half": assert len(done) == 32
    assert sum((e.usage for e in done), Usage()).calls == len(done)
    sent = sum(case.srv.usage.values(), Usage())
    assert (t.usage.prompt_tokens, t.usage.completion_tokens) == (sent.prompt_tokens, sent.completion_tokens)
    return case.log.read_text()

def gone(case):
    "Once its RLM is closed, no process is left"
    case.rlm.close()
    assert eventually(lambda: below() <= case.below, 10), below() - case.below

# ---- Cancelling the task

async def cancelled(case, coro=None):
    "Seconds it took to cancel a task, by default one of `acompletion`, and the time when it began"
    task = asyncio.create_task(coro or case.rlm.acompletion(case.query, case.context, log=case.log))
    await asyncio.sleep(0)
    await asyncio.to_thread(case.wait)
    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError): await task
    return time.monotonic() - start, start

@pytest.mark.parametrize("home", homes)
@pytest.mark.parametrize("place", ["root", "opening", "opened", *cells, *calls, *children, *verifying])
def test_cancel_a_task(case, place, home):
    if home != "inprocess" and place.startswith("verify_"): pytest.skip("does not depend on where code runs")
    o = case(place, home)
    check_stopped(o, *asyncio.run(cancelled(o)))
    gone(o)

@pytest.mark.parametrize("home", homes)
def test_the_shell_goes_on(case, home):
    "In a session, after each kind of cell was stopped: variables are there, and the next question is answered"
    o = case("spin", home)
    async def main():
        with o.rlm.session("text", log=o.log) as s:
            s.open()
            s.shell.run("kept = 1")
            for place in (*cells, "query", "batch", "child"):
                o.at.clear()
                o.place = place
                task = asyncio.create_task(s.acompletion(f"AT {place}"))
                await asyncio.sleep(0)
                await asyncio.to_thread(o.wait)
                start = time.monotonic()
                task.cancel()
                with pytest.raises(asyncio.CancelledError): await task
                print(f"{place}, {home}: back after {time.monotonic()-start:.2f} s")
                assert time.monotonic() - start < SOON
                assert eventually(lambda: s.result is not None and s.result.status == "cancelled") # the wait is bounded, on a busy machine
                assert s.result.trajectory.cells[-1].error
                o.release.set()
                assert (await s.acompletion("How long?")).answer == "text"
                assert (await s.shell.arun("kept")).result == "1", place
                o.release.clear()
    asyncio.run(main())
    t = Trajectory.load(o.log)
    assert [e.status for e in t if isinstance(e, End) and e.run in {r.id for r in t.runs if r.run is None}] == ["cancelled", "done"]*(len(cells)+3)

@pytest.mark.long
def test_timeouts_cancel(case):
    "`asyncio.timeout` and task groups, over and over on one RLM"
    o = case("batch")
    async def main():
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(.3): await o.rlm.acompletion("AT batch", "text")
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for _ in range(8): group.create_task(o.rlm.acompletion("AT batch", "text"))
                await asyncio.sleep(.3)
                raise KeyError("another task fails")
    asyncio.run(main())
    assert eventually(lambda: o.srv.in_flight == 0 and _tasks() <= o.before)
    assert o.rlm.completion("How long?", "next").answer == "next"

@pytest.mark.parametrize("home", homes)
def test_cancel_one_of_many(case, home):
    "The others do not notice"
    o = case("spin", home)
    async def main():
        stuck = asyncio.create_task(o.rlm.acompletion("AT spin", "text", log=o.log))
        await asyncio.to_thread(o.at.wait, 30)
        others = [asyncio.create_task(o.rlm.acompletion("Which?", f"c{i}")) for i in range(8)]
        await asyncio.sleep(0)
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError): await stuck
        return [(await task).answer for task in others]
    assert asyncio.run(main()) == [f"c{i}" for i in range(8)]

def test_cancel_twice(case):
    "Impatience does not make it worse"
    o = case("stubborn")
    async def main():
        task = asyncio.create_task(o.rlm.acompletion(o.query, o.context, log=o.log))
        await asyncio.to_thread(o.wait)
        start = time.monotonic()
        while not task.done():
            task.cancel()
            await asyncio.sleep(.02)
        return time.monotonic() - start, start
    check_stopped(o, *asyncio.run(main()))

def test_the_loop_is_not_held_up(case):
    "A context that takes its worker seconds to load does not keep other runs waiting when its run is cancelled"
    o = case("root", "process")
    o.context = {i: "x"*100 for i in range(3_000_000)}
    worst, over = [0.], threading.Event()
    def watch():
        while not over.is_set():
            start = time.monotonic()
            _tasks()
            worst[0] = max(worst[0], time.monotonic() - start)
            time.sleep(.005)
    async def main():
        task = asyncio.create_task(o.rlm.acompletion("hang", o.context))
        await asyncio.to_thread(o.wait)
        watcher = threading.Thread(target=watch)
        watcher.start()
        task.cancel()
        try:
            with pytest.raises(asyncio.CancelledError): await task
        finally:
            over.set()
            watcher.join()
    asyncio.run(main())
    print(f"the I/O loop was held up for {worst[0]:.3f} s at most")
    assert worst[0] < 2

@pytest.mark.parametrize("home", ["process", sandbox])
def test_closed_while_it_opens(case, home):
    "A shell that is not wanted any more is not opened, or is closed at once"
    o = case("opening", home)
    asyncio.run(cancelled(o))
    o.rlm.close()
    o.release.set()
    gc.disable() # which would find it, some time
    try:
        _appears(lambda: below() - o.below, 1) # it may start, but
        assert eventually(lambda: below() <= o.below) and eventually(lambda: not any(t.name == "rlm-worker" for t in threading.enumerate()))
    finally: gc.enable()

def _appears(check, seconds):
    until = time.monotonic() + seconds
    while not check() and time.monotonic() < until: time.sleep(.02)
    return check()

# ---- Streams

def closed(o):
    with o.rlm.stream(o.query, o.context, log=o.log) as st:
        o.wait()
        start = time.monotonic()
        st.close()
        return time.monotonic() - start, start

def left(o):
    "Leave the loop at the last event before it is stuck"
    start = None
    for e in o.rlm.stream(o.query, o.context, log=o.log):
        if type(e).__name__ == ("Run" if o.place == "root" else "SubcallStart" if o.place in OPEN else "CellStart"):
            o.wait()
            start = time.monotonic()
            break
    return time.monotonic() - start, start

async def aleft(o):
    async for e in (st := o.rlm.astream(o.query, o.context, log=o.log)):
        if type(e).__name__ == ("Run" if o.place == "root" else "SubcallStart" if o.place in OPEN else "CellStart"):
            await asyncio.to_thread(o.wait)
            start = time.monotonic()
            break
    await asyncio.to_thread(eventually, lambda: st._job.done())
    return time.monotonic() - start, start

async def atask(o):
    "Cancel the task that iterates, while it waits for the next event"
    async def follow():
        async for e in o.rlm.astream(o.query, o.context, log=o.log): pass
    return await cancelled(o, follow())

def run_it(fn): return lambda o: asyncio.run(fn(o))

@pytest.mark.parametrize("how", [closed, left, run_it(aleft), run_it(atask)], ids=["close", "leave", "aleave", "task"])
@pytest.mark.parametrize("place,home", [("root", "inprocess"), ("spin", "inprocess"), ("batch", "inprocess"), pytest.param("stubborn", "process", marks=pytest.mark.long),
    pytest.param("batch", "process", marks=pytest.mark.long), pytest.param("spin", "sandbox", marks=sandbox.marks)])
def test_leave_a_stream(case, place, home, how):
    o = case(place, home)
    check_stopped(o, *how(o))
    gone(o)

def test_a_stream_that_nobody_reads(case):
    "It runs; closing the RLM's server, or leaving it alone, harms nobody"
    o = case("root")
    st = o.rlm.stream("Which?", "text", log=o.log)
    assert eventually(lambda: st.result is not None, 20) and st.result.answer == "text"
    st.close()
    assert [type(e).__name__ for e in st][-1] == "End" and list(st) == []

# ---- Ctrl-C in a script

SCRIPT = '''
import asyncio, json, sys, threading, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_cancel as t
home, places, folder = sys.argv[2], sys.argv[3].split(","), Path(sys.argv[4])

def ask(o, how):
    if how == "completion": return o.rlm.completion(o.query, o.context, log=o.log)
    if how == "stream": return list(o.rlm.stream(o.query, o.context, log=o.log))
    return asyncio.run(o.rlm.acompletion(o.query, o.context, log=o.log))

for i, at in enumerate(places):
    place, how = at.split(":")
    (folder/str(i)).mkdir()
    srv = t.serve(t.reply)
    o = t.Case(folder/str(i), place, home, srv)
    def ready():
        o.wait()
        print("ready", flush=True)
    threading.Thread(target=ready).start()
    try: print("not stopped", ask(o, how))
    except KeyboardInterrupt: print("back", flush=True)
    if i == len(places) - 1: # and now one that nobody catches
        o.at.clear()
        threading.Thread(target=ready).start()
        ask(o, how)
    sys.stdin.readline()
    t.check_stopped(o, 0, time.monotonic())
    t.gone(o)
    srv.close()
    print("well", flush=True)
'''

class Script:
    "A script in a process group of its own, as a terminal has it"
    def __init__(self, *args):
        self.p = subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.lines = queue.SimpleQueue()
        threading.Thread(target=lambda: [self.lines.put(o.strip()) for o in self.p.stdout] and None, daemon=True).start()

    def read(self, until, seconds):
        seen, end = [], time.monotonic() + seconds
        while not seen or seen[-1] != until:
            try: seen.append(self.lines.get(timeout=max(0, end - time.monotonic())))
            except queue.Empty:
                os.killpg(self.p.pid, signal.SIGKILL)
                raise AssertionError(f"no {until!r} but {seen}; {self.p.stderr.read()[-3000:]}") from None

    def interrupt(self):
        start = time.monotonic()
        os.killpg(self.p.pid, signal.SIGINT)
        return start

@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("home", homes)
def test_ctrl_c(home, tmp_path):
    ways = ["root:completion", "opening:completion", "spin:completion", "stubborn:stream", "batch:completion", "batch:acompletion", "child:stream",
            "childcell:completion", "verify_function:completion", "spin:acompletion"]
    if home != "inprocess": ways = ["spin:completion", "batch:completion", "childcell:completion", "stubborn:acompletion"]
    s = Script(Path(__file__).parent, home, ",".join(ways), tmp_path)
    for i, way in enumerate(ways):
        s.read("ready", 60)
        start = s.interrupt()
        s.read("back", 10)
        took = time.monotonic() - start
        print(f"{way}, {home}: back after {took:.2f} s")
        assert took < SOON, way
        if i < len(ways) - 1:
            s.p.stdin.write("go on\n")
            s.p.stdin.flush()
            s.read("well", 30)
    s.read("ready", 60) # and without anybody who catches it
    below = descendants(s.p.pid)
    start = s.interrupt()
    s.p.wait(20)
    took = time.monotonic() - start
    print(f"the script is gone after {took:.2f} s")
    assert took < SOON + 5 and s.p.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    said = s.p.stderr.read()
    assert said.rstrip().endswith("KeyboardInterrupt") and "was destroyed" not in said and "never awaited" not in said, said
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))

# ---- The interrupt button of Jupyter

@pytest.mark.parametrize("home", ["inprocess", pytest.param("process", marks=pytest.mark.long)])
def test_interrupt_in_jupyter(home, tmp_path):
    pytest.importorskip("ipykernel")
    manager = pytest.importorskip("jupyter_client.manager")
    km, kc = manager.start_new_kernel(kernel_name="python3")
    def execute(code, at="", seconds=60):
        "Run a cell, interrupting it as soon as it has printed `at`; its text, the name of its error, and seconds since the interrupt"
        kc.execute(code)
        text, error, start = "", None, None
        while True:
            m = kc.get_iopub_msg(timeout=seconds)
            if m["msg_type"] == "stream": text += m["content"]["text"]
            if m["msg_type"] == "error": error = m["content"]["ename"]
            if at and start is None and at in text:
                start = time.monotonic()
                km.interrupt_kernel()
            if m["msg_type"] == "status" and m["content"]["execution_state"] == "idle": break
        kc.get_shell_msg(timeout=10)
        return text, error, start and time.monotonic() - start
    try:
        setup = f"import sys, threading, asyncio, time\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_cancel as t\nfrom pathlib import Path"
        assert execute(setup)[1] is None
        # The kernel does not interrupt an `await`; there a task is cancelled by hand.
        ask = dict(sync="o.rlm.completion(o.query, o.context, log=o.log)", stream="for e in o.rlm.stream(o.query, o.context, log=o.log): pass",
                   task="took, _ = await t.cancelled(o)\nassert took < t.SOON", atask="took, _ = await t.atask(o)\nassert took < t.SOON")
        for i, (place, how) in enumerate([("root", "sync"), ("spin", "sync"), ("batch", "sync"), ("childcell", "stream"), ("stubborn", "stream"),
                                          ("batch", "task"), ("spin", "atask")]):
            folder = tmp_path/str(i)
            folder.mkdir()
            begin = f"o = t.Case(Path({str(folder)!r}), {place!r}, {home!r}, t.serve(t.reply))\n"
            if how in ("task", "atask"): assert execute(begin + ask[how])[1] is None, (place, how)
            else:
                begin += "say = print\ndef ready():\n    o.wait()\n    say('ready', flush=True)\nthreading.Thread(target=ready).start()\n"
                text, error, took = execute(begin + ask[how], at="ready")
                print(f"{place}, {how}, {home}: back after {took:.2f} s, {error}")
                assert error == "KeyboardInterrupt" and took < SOON, (place, how, error, took)
            text, error, _ = execute("t.check_stopped(o, 0, time.monotonic())\nt.gone(o)\no.srv.close()\nprint('well')")
            assert error is None and text.endswith("well\n"), (place, how, text, error)
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)
