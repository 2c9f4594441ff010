"Every way to ask, from everywhere: scripts, threads, event loops, Jupyter; one at a time, over and over, and 64 at once"
import asyncio, gc, json, os, shutil, subprocess, sys, tempfile, textwrap, threading, time
from pathlib import Path

import pytest

from rlm.events import Limits, Subcall
from rlm.io import io_loop
from rlm.lm import LM
from rlm.model import RLM
from rlm.offline import ScriptedLM, serve, tool_call
from rlm.worker import descendants

linux = sys.platform == "linux"
sandbox = pytest.param("sandbox", marks=pytest.mark.skipif(not shutil.which("bwrap"), reason="needs bubblewrap"))
homes = ["inprocess", "process", sandbox]

def eventually(check, seconds=10):
    "Wait until `check()` holds; what it said last"
    until = time.monotonic() + seconds
    while not (res := check()) and time.monotonic() < until: time.sleep(.02)
    return res

# ---- A model whose replies depend on nothing but the request

CODE = dict(
    sub="print('seen', context)\nFINAL(llm_query('echo ' + context))",
    child="print('seen', context)\nFINAL(rlm_query('ask sub', context + '/child'))",
    batch="print('seen', context)\nFINAL('+'.join(llm_query_batched([f'echo {context}/{i}' for i in range(3)])))",
    awaited="print('seen', context)\nFINAL(await allm_query('echo ' + context))",
    kept="seen = globals().get('seen', 0) + 1\nFINAL(f'{context} {seen}')")

def reply(messages, tools=None):
    first = next(m["content"] for m in messages if m["role"] == "user")
    if first.startswith("echo "): return first.removeprefix("echo ")
    last = str(messages[-1]["content"])
    if messages[-1]["role"] == "tool": return tool_call(f"FINAL({last!r})") # a cell that should have ended the run
    asked = [k for k in CODE if f"ask {k}" in last]
    return tool_call(CODE[asked[-1]]) if asked else f"FINAL(nothing to do with {last})"

# ---- Every public way, as source that runs anywhere; each check is of an answer that only this way could give

WAYS = '''
import asyncio, os, sys
from rlm import LM, RLM, Replay, advanced_toolloop, make_run_repl, prep_shell, run
from rlm.events import Limits
from rlm.model import arun
from rlm.prompts import REPL_SYSTEM_PROMPT

def same(a, b): assert a == b, (a, b)

class Ways:
    def __init__(self, lm, shell):
        self.lm, self.kw = lm, dict(shell=shell, dialect="tools", limits=Limits(max_depth=2))
        self.rlm = RLM(lm, **self.kw)

    def completion(self, x):
        for how, end in dict(sub=x, child=x + "/child", batch=f"{x}/0+{x}/1+{x}/2", awaited=x).items():
            same(self.rlm.completion(f"ask {how}", x).answer, end)
    def stream(self, x):
        with self.rlm.stream("ask sub", x) as st: names = [type(e).__name__ for e in st]
        same((st.result.answer, names[0], names[-1]), (x, "Run", "End"))
    def session(self, x):
        with self.rlm.session(x) as s: same([s.completion("ask kept").answer for _ in range(3)], [f"{x} {i}" for i in (1, 2, 3)])
    def run(self, x): same(run("ask child", x, self.lm, **self.kw).answer, x + "/child")
    def complete(self, x):
        same(self.lm.complete("echo " + x).text, x)
        same([o.text for o in self.lm.batch([f"echo {x}{i}" for i in range(5)])], [f"{x}{i}" for i in range(5)])
        same("".join(self.lm.stream("echo " + x)), x)
    def shell(self, x):
        sh = prep_shell(x, self.lm, shell=self.kw["shell"])
        repl = make_run_repl(sh)
        repl("y = llm_query('echo ' + context)")
        same(repl("y[::-1][::-1]").strip().strip("'"), x)
        *_, last = advanced_toolloop("ask sub", REPL_SYSTEM_PROMPT, [repl], sh, dialect="tools")
        same(last["answer"], x)
        sh.close()
    def batch(self, x):
        same([o.answer for o in self.rlm.batch([("ask sub", f"{x}{i}") for i in range(3)], progress=False)], [f"{x}{i}" for i in range(3)])
    def again(self, x):
        t = self.rlm.completion("ask sub", x).trajectory
        same(RLM(Replay(t), **self.kw).completion("ask sub", x).answer, x)
        same(self.rlm.resume(t, x).answer, x)
        same(t.fork(1, "FINAL(context + '!')", context=x, model=self.lm, sub_model=self.lm).answer, x + "!")
        sh = t.at(1, x)
        same(sh.run("context").result, repr(x))
        sh.close()

    async def acompletion(self, x):
        for how, end in dict(sub=x, child=x + "/child", awaited=x).items():
            same((await self.rlm.acompletion(f"ask {how}", x)).answer, end)
    async def astream(self, x):
        st = self.rlm.astream("ask batch", x)
        names = [type(e).__name__ async for e in st]
        same((st.result.answer, names[0], names[-1]), (f"{x}/0+{x}/1+{x}/2", "Run", "End"))
    async def asession(self, x):
        with self.rlm.session(x) as s: same([(await s.acompletion("ask kept")).answer for _ in range(3)], [f"{x} {i}" for i in (1, 2, 3)])
    async def arun(self, x): same((await arun("ask child", x, self.lm, **self.kw)).answer, x + "/child")
    async def acomplete(self, x):
        same((await self.lm.acomplete("echo " + x)).text, x)
        same([o.text for o in await self.lm.abatch([f"echo {x}{i}" for i in range(5)])], [f"{x}{i}" for i in range(5)])
    async def ashell(self, x):
        sh = prep_shell(x, self.lm, shell=self.kw["shell"])
        same((await sh.arun("await allm_query('echo ' + context)")).result, repr(x))
        sh.close()
    async def abatch(self, x):
        res = await self.rlm.abatch([("ask sub", f"{x}{i}") for i in range(3)], progress=False)
        same([o.answer for o in res], [f"{x}{i}" for i in range(3)])
    async def aagain(self, x):
        t = (await self.rlm.acompletion("ask sub", x)).trajectory
        same((await RLM(Replay(t), **self.kw).acompletion("ask sub", x)).answer, x)
        same((await self.rlm.aresume(t, x)).answer, x)
        same((await t.afork(1, "FINAL(context + '!')", context=x, model=self.lm, sub_model=self.lm)).answer, x + "!")

    def ways(self): return [self.completion, self.stream, self.session, self.run, self.complete, self.shell, self.batch, self.again]
    def aways(self):
        return [self.acompletion, self.astream, self.asession, self.arun, self.acomplete, self.ashell, self.abatch, self.aagain]
    def all(self, x):
        for way in self.ways(): way(x)
    async def aall(self, x):
        for way in self.aways(): await way(x)
    async def together(self, x): await asyncio.gather(*(way(f"{x}{i}") for i, way in enumerate(self.aways())))
'''
exec(WAYS)

def http(srv): return LM("openai/m", base_url=srv.base_url, api_key="none")

@pytest.fixture(params=["http", "scripted"])
def lm(request):
    if request.param == "scripted": yield ScriptedLM(reply)
    else:
        with serve(reply, record=False) as srv: yield http(srv)

@pytest.fixture
def srv():
    with serve(reply, record=False) as srv: yield srv

def sh_params(*fast):
    "In process always, the others as told"
    return pytest.mark.parametrize("shell", [o if o in fast else pytest.param(*getattr(o, "values", [o]),
        marks=[pytest.mark.long, *getattr(o, "marks", [])]) for o in homes])

# ---- Places to ask from

@sh_params("inprocess")
def test_in_the_main_thread(lm, shell):
    with (ways := Ways(lm, shell)).rlm:
        for i in range(2): ways.all(f"main{i}")

@sh_params("inprocess")
def test_in_a_thread(lm, shell):
    failed = []
    with (ways := Ways(lm, shell)).rlm:
        def work(x):
            try:
                ways.all(x)
                asyncio.run(ways.aall(x))
            except BaseException as e: failed.append(e)
        for group in (["one"], ["two", "three"]):
            threads = [threading.Thread(target=work, args=(x,)) for x in group]
            for o in threads: o.start()
            for o in threads: o.join(120)
            assert not failed and not any(o.is_alive() for o in threads), failed

@sh_params("inprocess")
def test_in_one_event_loop_after_the_other(lm, shell):
    with (ways := Ways(lm, shell)).rlm:
        for i in range(2): asyncio.run(ways.aall(f"fresh{i}"))
        asyncio.run(ways.together("together"))
        async def blocking(): ways.all("sync")
        asyncio.run(blocking()) # holds up this loop, and nothing else
        ways.all("after")

@sh_params("inprocess")
def test_two_event_loops_at_once(lm, shell):
    with (ways := Ways(lm, shell)).rlm:
        got = []
        def work(x): got.append(asyncio.run(ways.together(x)))
        threads = [threading.Thread(target=work, args=(x,)) for x in ("left", "right")]
        for o in threads: o.start()
        for o in threads: o.join(60)
        assert got == [None, None]

SCRIPT = WAYS + '''
lm = LM("openai/m", base_url=sys.argv[1], api_key="none")
ways = Ways(lm, sys.argv[2])
ways.all("plain")
asyncio.run(ways.aall("loop"))
asyncio.run(ways.together("again"))
print("all well")
'''

@sh_params("inprocess")
@pytest.mark.parametrize("dev", [False, pytest.param(True, marks=pytest.mark.long)])
def test_in_a_script(srv, shell, dev, tmp_path):
    "Nothing is closed by hand: the end of the script is not held up, quiet, and leaves nothing behind"
    command = [sys.executable, *["-X", "dev"]*dev, "-c", SCRIPT, srv.base_url, shell]
    r = subprocess.run(command, capture_output=True, text=True, timeout=100, env=os.environ | dict(TMPDIR=str(tmp_path)), cwd=tmp_path)
    assert (r.returncode, r.stdout) == (0, "all well\n"), r.stderr
    if dev: assert not any(o in r.stderr for o in ("never awaited", "was destroyed", "Traceback", "unclosed")), r.stderr
    else: assert r.stderr == ""
    assert eventually(lambda: not list(tmp_path.iterdir())), list(tmp_path.iterdir())

CELLS = [WAYS, '''
lm = LM("openai/m", base_url=URL, api_key="none")
ways = Ways(lm, SHELL)
ways.all("cell")
''', 'await ways.aall("awaited")', 'await ways.together("gathered")', 'ways.all("again")', '''
import threading
t = threading.Thread(target=ways.all, args=("thread",))
t.start()
t.join()
_ = await asyncio.gather(asyncio.to_thread(ways.all, "t1"), ways.aall("t2"))
''', 'r = ways.rlm.completion("ask sub", "shown")\nr', 'ways.rlm.close()\nprint("all well")']

@sh_params("inprocess")
def test_in_jupyter(srv, shell, tmp_path):
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cells = [f"URL, SHELL = {srv.base_url!r}, {shell!r}", *CELLS]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(nb, timeout=90, resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    outputs = [o for c in nb.cells[:-2] for o in c.outputs] # what cells of a model print is not the notebook's
    assert outputs and all(o.output_type == "display_data" and "rlm-run" in o.data["text/html"] for o in outputs)
    assert "shown" in nb.cells[-2].outputs[-1].data["text/html"] and nb.cells[-1].outputs[0].text == "all well\n"

# ---- Code that asks in ways of its own

def test_tools_and_verifiers_may_ask(lm):
    "A tool, a verifier and a listener that ask a model or another RLM themselves"
    inner, heard = RLM(lm, dialect="tools"), []
    def nested(x: str): return inner.completion("ask sub", x).answer
    async def verify(question, answer, evidence):
        if (await inner.acompletion("ask sub", answer)).answer != answer: return "no"
    def script(messages, tools=None):
        return tool_call("FINAL(nested(context))") if "ask nested" in str(messages[-1]["content"]) else reply(messages, tools)
    rlm = RLM(ScriptedLM(script), dialect="tools", tools=[nested], verify=verify, on_event=lambda e: heard.append(e))
    with inner, rlm:
        assert [rlm.completion("ask nested", f"n{i}").answer for i in range(3)] == ["n0", "n1", "n2"]
        assert rlm.last.verified and heard

def test_many_verifiers_ask_at_once():
    "Functions that wait for models do not take away what these models need to go on"
    inner = RLM(ScriptedLM(reply), dialect="tools")
    def verify(question, answer, evidence): return inner.completion("ask sub", answer).answer == answer
    async def many():
        with inner, RLM(ScriptedLM(reply), dialect="tools", verify=verify) as rlm:
            return await asyncio.wait_for(asyncio.gather(*(rlm.acompletion("ask sub", f"v{i}") for i in range(48))), 60)
    assert [r.answer for r in asyncio.run(many())] == [f"v{i}" for i in range(48)]

def test_a_slow_context_holds_up_nobody():
    "Contexts that are being read do not keep other runs from being opened"
    release = threading.Event()
    class Document:
        metadata = {}
        @property
        def page_content(self):
            release.wait(30)
            return "slow"
    async def main(rlm):
        slow = [asyncio.create_task(rlm.acompletion("ask kept", [Document()])) for _ in range(48)]
        await asyncio.sleep(0)
        try: quick = await asyncio.wait_for(rlm.acompletion("ask kept", "quick"), 10)
        finally: release.set()
        return quick.answer, {(await o).status for o in slow}
    with RLM(ScriptedLM(reply), dialect="tools") as rlm: assert asyncio.run(main(rlm)) == ("quick 1", {"done"})

# ---- 64 at once

def state(folder):
    "What could be leaked: threads, processes, descriptors, temporary files, tasks"
    gc.collect()
    # Threads that wait for calls of a worker stay for some seconds; those of the I/O loop and the one that starts processes for good.
    threads = [t.name for t in threading.enumerate() if not t.name.startswith(("rlm-call", "rlm-spawner", "rlm-io"))]
    tasks = asyncio.run_coroutine_threadsafe(_tasks(), io_loop()).result(5)
    fds = len(os.listdir("/proc/self/fd")) if linux else 0
    return dict(threads=len(threads), processes=len(descendants(os.getpid())) if linux else 0, fds=fds, tasks=tasks,
                files=len(list(folder.rglob("*"))))

async def _tasks(): return len([o for o in asyncio.all_tasks() if o is not asyncio.current_task()])

@pytest.fixture
def no_leak(tmp_path, monkeypatch):
    "Called with a function that does something again, after which nothing may be there that was not before"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    def check(work, rounds=3):
        "What leaks grows every time, while a pool may have more connections in use by chance"
        was = [state(tmp_path)]
        for _ in range(rounds):
            work()
            if eventually(lambda: all(now[k] <= v for now in [state(tmp_path)] for k, v in was[-1].items()), 5): return
            was.append(state(tmp_path))
        pytest.fail(f"more each time: {was}")
    return check

def in_threads(rlm, n):
    got = [None]*n
    start = threading.Barrier(n)
    def work(i):
        start.wait()
        try: got[i] = rlm.completion(f"ask {list(CODE)[i % 4]}", f"<{i}>")
        except BaseException as e: got[i] = e
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for o in threads: o.start()
    for o in threads: o.join(300)
    return got

def in_one_loop(rlm, n):
    async def main(): return await asyncio.gather(*(rlm.acompletion(f"ask {list(CODE)[i % 4]}", f"<{i}>") for i in range(n)), return_exceptions=True)
    return asyncio.run(main())

def right(i): return [f"<{i}>", f"<{i}>/child", f"<{i}>/0+<{i}>/1+<{i}>/2", f"<{i}>"][i % 4]

def check(got):
    "Every answer, every output, every call in the log is that of its own question"
    wrong = {i: r for i, r in enumerate(got) if isinstance(r, BaseException) or r.answer != right(i)}
    assert not wrong, wrong
    for i, r in enumerate(got):
        runs = {o.id: f"<{i}>/child" if o.run else f"<{i}>" for o in r.trajectory.runs}
        assert len(runs) == 1 + (i % 4 == 1)
        cells = [e for e in r.trajectory if type(e).__name__ == "Cell"]
        assert sorted(c.output.split("\n")[0] for c in cells) == sorted(f"seen {o}" for o in runs.values())
        calls = [e for e in r.trajectory if isinstance(e, Subcall)]
        assert len(calls) == (3 if i % 4 == 2 else 1) and all(e.prompt == f"echo {e.reply}" and f"<{i}>" in e.prompt for e in calls)
    assert len({r.trajectory.run.query + str(i) for i, r in enumerate(got)}) == len(got)

# Worker processes are heavy: eight at once in the quick tier, 64 in the slow one.
counts = [("inprocess", 64), ("process", 8), pytest.param("sandbox", 8, marks=sandbox.marks),
    pytest.param("process", 64, marks=pytest.mark.long), pytest.param("sandbox", 64, marks=[pytest.mark.long, *sandbox.marks])]

@pytest.mark.parametrize("shell,n", counts)
def test_many_at_once(srv, shell, n, no_leak, capfd):
    "In threads, and in one event loop"
    with RLM(http(srv), shell=shell, dialect="tools", limits=Limits(max_depth=2)) as rlm:
        for how in (in_threads, in_one_loop): check(how(rlm, n)) # fills the pools of threads and connections
        rlm.reset()
        def again():
            for how in (in_threads, in_one_loop): check(how(rlm, n))
            assert rlm.cost_summary()["runs"] == 2*n
            rlm.reset()
        no_leak(again)
    assert capfd.readouterr().out == "" # what cells print is theirs

def test_results_outlive_nothing(srv, no_leak):
    "Results that are kept hold no shell open once its RLM is closed, and RLMs that are forgotten close theirs"
    kept = []
    def work():
        for shell in ("inprocess", "process"):
            with RLM(http(srv), shell=shell, dialect="tools") as rlm: kept.append(rlm.completion("ask sub", "x"))
            RLM(http(srv), shell=shell, dialect="tools").completion("ask sub", "x") # never closed
    work()
    no_leak(work)
    assert {r.answer for r in kept} == {"x"}

def test_failures_leak_nothing(srv, no_leak, tmp_path):
    "Questions that fail: no context, no model, no question, broken code, limits"
    def work():
        for shell in ("inprocess", "process"):
            with RLM(http(srv), shell=shell, dialect="tools", limits=Limits(max_steps=2)) as rlm:
                for query, context in [("", "x"), ("ask sub", tmp_path/"missing.txt"), ("ask sub", [threading.Lock()]), ("ask nothing", "x")]:
                    try: rlm.completion(query, context)
                    except Exception as e: assert type(e).__name__ in ("InputError", "ContextError"), e
                    for _ in range(2):
                        try: list(rlm.stream(query, context))
                        except Exception as e: assert type(e).__name__ in ("InputError", "ContextError"), e
            with RLM(LM("openai/m", base_url="http://127.0.0.1:9/v1", retries=0), shell=shell) as rlm:
                with pytest.raises(Exception, match="failed"): rlm.completion("ask sub", "x")
    work()
    no_leak(work)
