"""Dense mechanism of `rlm.worker`, `rlm.launch` and `rlm.sandbox`: the same shell in another process, whatever dies.

Real processes in every home there is. What happens to the processes of a worker, to its frames and to its host is done
at random moments, seeded, and what holds is always the same: a request ends within bounded time with a result or a
`ShellError`, never with the result of another one, and the shell works again, with what it says is left."""
import asyncio, dataclasses, gc, hashlib, os, random, re, signal, subprocess, sys, tempfile, textwrap, threading, time, uuid, weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import date, datetime, time as clock, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from rlm import launch, sandbox
from rlm.cell import CellResult
from rlm.channel import LIVE, ProtocolError, check_prefix, to_frame, unpack
from rlm.core import advanced_toolloop
from rlm.events import ContextError, InputError, RLMError, SandboxUnavailable, ShellError
from rlm.launch import ShellLimits
from rlm.live import only_looks
from rlm.model import arun, run
from rlm.offline import ScriptedLM, tool_call
from rlm.sandbox import WorkerShell
from rlm.shell import Guarantees, Shell
from rlm.tools import make_run_repl, prep_shell
from rlm.worker import descendants

linux = sys.platform == "linux"
no_sandbox = launch.problem("sandbox")
in_sandbox = pytest.param("sandbox", marks=pytest.mark.skipif(bool(no_sandbox), reason=str(no_sandbox)))
others = ["process", in_sandbox]
homes = ["inprocess", *others]
# What a worker does is the same in each of them; where many cases show it, one home does for every day.
every_day = [others[0], *(pytest.param(*getattr(o, "values", (o,)), marks=[*getattr(o, "marks", ()), pytest.mark.long]) for o in others[1:])]
on_linux = pytest.mark.skipif(not linux, reason="snapshots, supervisors and /proc: only on Linux")
on_posix = pytest.mark.skipif(os.name != "posix", reason="signals, socket pairs and descriptors that are passed on")


# -- Shells, and a host that does not wait for ever

def bounded(seconds, f, *args, **kw):
    "`f(*args)`, or a failure when that takes longer"
    done = Future()
    def go():
        try: done.set_result(f(*args, **kw))
        except BaseException as e: done.set_exception(e)
    threading.Thread(target=go, daemon=True).start()
    try: return done.result(seconds)
    except TimeoutError:
        if done.done(): raise
        pytest.fail(f"the host was still waiting after {seconds} s", pytrace=False)

def eventually(f, seconds=8.):
    "The value of `f()` once it is true, or after that time"
    end = time.monotonic() + seconds
    while not (got := f()) and time.monotonic() < end: time.sleep(.02)
    return got

def named(name, f):
    f.__name__ = f.__qualname__ = name
    return f

def echo(x):
    "Give `x` back"
    return x

def fail(kind, text=""): raise dict(value=ValueError, key=KeyError, unicode=LookupError, exit=SystemExit, interrupt=KeyboardInterrupt,
                                    own=type("OfTheHost", (Exception,), {}))[kind](text)

async def aecho(x):
    await asyncio.sleep(.005)
    return x

def nap(seconds: float):
    time.sleep(seconds)
    return seconds

def numbers(n: int, scale: float = 1.) -> list: return [i*scale for i in range(n)]

def new(home, context="abc", model=None, tools=(echo, aecho, fail, nap, numbers), **limits):
    kw = {} if home == "inprocess" else dict(shell_limits=ShellLimits(**{"seconds": 20, **limits}))
    return prep_shell(context, model, tools=list(tools), shell=home, **kw)

class Kept:
    "Shells that tests share"
    def __init__(self): self.all = {}
    def __call__(self, home, **kw):
        key = home, repr(kw)
        if key not in self.all: self.all[key] = new(home, **kw)
        return self.all[key]

@pytest.fixture(scope="module")
def kept():
    k = Kept()
    yield k
    for sh in k.all.values(): sh.close()

@pytest.fixture
def make():
    "`new`, with all shells closed in the end"
    made = []
    def f(*args, **kw):
        made.append(new(*args, **kw))
        return made[-1]
    yield f
    for sh in made: bounded(20, sh.close)

def processes(sh): return [sh.worker.popen.pid, *descendants(sh.worker.popen.pid)]

def pythons(sh):
    "The supervisor, the live process and the snapshot, as far as they are there"
    def is_python(pid):
        with suppress(OSError): return b"bwrap" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    return [pid for pid in processes(sh) if is_python(pid)]

def end(sh):
    with suppress(ProcessLookupError): os.kill(sh.worker.popen.pid, signal.SIGKILL)

def with_token(token):
    "The processes that have `token` in their environment or command line"
    found = []
    for p in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if p.joinpath("stat").read_bytes().rpartition(b") ")[2][:1] == b"Z": continue
            if any(token.encode() in p.joinpath(o).read_bytes() for o in ("environ", "cmdline")): found.append(int(p.name))
    return found

def script(code, token="", **kw):
    "Start `code` in a Python of its own"
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(o for o in sys.path if o), LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", "") + f":/{token}")
    p = subprocess.Popen([sys.executable, "-u", "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, **kw)
    return p

def output(p, timeout=60):
    try: return p.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        p.kill()
        pytest.fail("the host did not end: " + p.communicate()[0][-2000:], pytrace=False)


# -- The same shell, in every home

@pytest.mark.parametrize("home", homes)
@pytest.mark.parametrize("code,result", [
    ("1 + 1", "2"), ("1 + 1;", None), ("(1,\n2);  # quiet", None), ("x = 1", None), ("None", None), ("", None), ("# only a comment", None), ("'a;'", "'a;'"),
    ("import re\nre.sub('a', 'b', 'aa')", "'bb'"), ("class A:\n    y = 3\nA.y", "3"), ("x = 1\nx += 1\nx", "2"),
    ("if __name__ == '__main__': ok = 'yes'\nok", "'yes'"), ("import asyncio\nawait asyncio.sleep(0, 'done')", "'done'"),
    ("import asyncio\nasync def f(): return 3\nasyncio.run(f())", "3"), ("names = !printf 'a\\nb\\n'\nnames[1]", "'b'"),
    ("%alias_magic tt time", None), ("get_ipython().user_ns is globals()", "True"), ("print('a\\r\\nb'); 'c\\r\\nd'", repr("c\r\nd")),
    ("'\\ud83d\\ude00', '\\ud800', '\\x00'", r"('\ud83d\ude00', '\ud800', '\x00')"),
    ("import dataclasses\n@dataclasses.dataclass\nclass C: n: int = 1\nC()", "C(n=1)"), ("from __future__ import annotations\n1", "1"),
    ("import inspect\ninspect.getsource(inspect.signature).startswith('def')", "True"), ("import os\nos.path.isdir(os.path.expanduser('~'))", "True"),
    ("import tempfile\nwith tempfile.NamedTemporaryFile('w+') as f: f.write('a')\n", None),
    ("import warnings\nwith warnings.catch_warnings(): pass", None), ("context", "'abc'"), ("len(context)", "3")])
def test_cell(kept, home, code, result):
    r = kept(home).run(code)
    assert r.error is None and r.result == result, r.text()

@pytest.mark.parametrize("home", homes)
@pytest.mark.parametrize("code,out,err", [
    ("print(1)\nprint(2, end='')", "1\n2", ""), ("import sys\nprint('e', file=sys.stderr)\nprint('o')", "o\n", "e\n"), ("!echo out; echo err >&2", "out\n", "err\n"),
    ("%%bash\necho out\necho err >&2", "out\n", "err\n"), ("print('\\ud800')", "\ud800\n", ""), ("import sys\nsys.stdout.buffer.write(b'a\\xff');", "a\\xff", ""),
    ("import threading\nt = threading.Thread(target=print, args=(7,))\nt.start(); t.join()", "7\n", ""), ("!cat", "", ""),
    ("import asyncio\nawait asyncio.to_thread(print, 5)", "5\n", ""), ("print('\\x00\\x1b[31m\\u2028\\U0001F600')", "\x00\x1b[31m\u2028\U0001F600\n", ""),
    ("print(get_ipython().run('print(1)\\n2').result)", "2\n", "")])
def test_output(kept, home, code, out, err):
    r = kept(home).run(code)
    assert r.error is None and (r.stdout, r.stderr) == (out, err), r.text()

@pytest.mark.parametrize("home", others)
@on_linux
def test_output_past_python(kept, home):
    "What is written to the descriptors, by subprocesses and by C, belongs to its cell too"
    sh = kept(home)
    r = sh.run("import os, subprocess, sys\nprint('a')\nos.write(1, b'b\\n')\nos.write(2, b'c\\xff\\n')\nsubprocess.run(['echo', 'd'])\n"
        "subprocess.run('echo e >&2', shell=True);")
    assert r.error is None and r.stdout == "a\nb\nd\n" and r.stderr == "c\\xff\ne\n"
    assert sh.run("print(1)").stdout == "1\n"
    r = sh.run("import os\nfor i in range(30): os.write(1, b'x'*100_000);")
    assert len(r.stdout) < 1_100_000 and r.elided > 1_900_000

@pytest.mark.parametrize("home", homes)
def test_tracebacks(kept, home):
    sh = kept(home)
    n = int(re.search(r"Cell (\d+)", sh.run("def inner(d):\n    return d['missing']\n1/0").text())[1])
    r = sh.run("inner({})")
    lines = [l for l in r.error.traceback.splitlines() if "~" not in l]
    assert lines == ["Traceback (most recent call last):", f"  Cell {n+1}, line 1", "    inner({})", f"  Cell {n}, line 2, in inner",
        "    return d['missing']", "KeyError: 'missing'"]
    assert (r.error.name, r.error.value) == ("KeyError", "'missing'")
    for code, text in [("x = [1,\ny = 2", "SyntaxError"), ("%no_such_magic", "UsageError: Line magic function `%no_such_magic` not found."),
            ("import json\njson.loads('{')", 'File "json/decoder.py"'), ("input('?')", "keyboard"), ("exit()", "FINAL"), ("fail('value', 'of the host')", "ValueError: of the host")]:
        said = sh.run(code).text()
        assert text in said and not any(o in said for o in ("site-packages", "rlm/", "IPython/", "worker.py")), said
    assert len(sh.run("def down(n): return down(n+1)\ndown(0)").text().splitlines()) < 60
    assert "ValueError: a" in sh.run("raise ExceptionGroup('two', [ValueError('a'), KeyError('b')])").text()

@pytest.mark.parametrize("home", homes)
@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "exit()", "raise SystemExit", "raise KeyboardInterrupt", "raise GeneratorExit", "input('name? ')",
    "import getpass; getpass.getpass()", "import sys; sys.stdin.read()", "breakpoint()", "%edit", "help()", "import asyncio\nawait asyncio.sleep(0)\nimport sys; sys.exit()"])
def test_never_waits_never_ends(kept, home, code):
    sh = kept(home)
    r = bounded(30, sh.run, code)
    assert r.error and r.error.name != "ProcessDied" and not r.ended
    assert sh.run("1+1").result == "2"

@pytest.mark.parametrize("home", homes)
@pytest.mark.parametrize("code,final", [
    ("FINAL(0)", 0), ("FINAL('')", ""), ("FINAL(None)", None), ("FINAL([])", []), ("FINAL(1)\nFINAL(2)", 1), ("try: FINAL(1)\nexcept BaseException: pass", 1),
    ("try: FINAL(1)\nexcept BaseException as e: raise ValueError from e", 1), ("x = [5]\nFINAL_VAR(x)", [5]), ("x = 5\nFINAL_VAR(' \"x\" ')", 5),
    ("answer['content'] = 3; answer['ready'] = True", 3), ("answer = dict(content=3, ready=True)", 3), ("answer = {'ready': True}", None),
    ("import asyncio\nasync def f(): FINAL(6)\nawait asyncio.create_task(f())", 6), ("import asyncio\nasync def f(): FINAL(6)\nasyncio.run(f())", 6),
    ("import threading\nt = threading.Thread(target=FINAL, args=(7,))\nt.start(); t.join()", 7),
    ("from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor() as ex: list(ex.map(FINAL, [8]))", 8), ("class A:\n    def __repr__(self): FINAL(9)\nA()", 9)])
def test_final(kept, home, code, final):
    sh = kept(home)
    r = sh.run(code)
    assert r.ended and r.final == final and type(r.final) is type(final) and (r.error is None or "ValueError" in code), r.text()
    assert not sh.run("1").ended

@pytest.mark.parametrize("home", homes)
def test_not_final(kept, home):
    sh = kept(home)
    for code in ("FINAL_VAR('nowhere')", "answer = 'ready'", "answer['ready'] = 0", "del answer", "FINAL", "class R(dict):\n    def get(self, k, *a): raise RuntimeError\nanswer = R()"):
        assert not sh.run(code).ended
    assert sh.run("FINAL_VAR('nowhere')").error.name == "NameError"

@pytest.mark.parametrize("home", homes)
def test_names(make, home):
    sh = make(home)
    assert set(sh.run("context = 1\ndel llm_query\nFINAL = None\nanswer = 3").restored) == {"context", "llm_query", "FINAL"}
    assert sh.run("context").result == "'abc'" and sh.run("echo(5)").result == "5" and sh.run("1").restored == ()
    sh.run("%reset -f")
    assert sh.run("context, echo(1)").result == "('abc', 1)" and sh.run("FINAL(1)").final == 1
    sh.run("import re, os.path\nfrom collections import Counter\n_x = 1\nnames = ['a']*3\n!true\n2+2\ndef f(): pass")
    assert sh.variables() == {"Counter": "type", "_x": "int", "names": "list of 3", "f": "function"}
    assert "names: list of 3" in sh.run("SHOW_VARS()").text()
    sh.protect(later=[1, 2], shout=named("shout", lambda x: x.upper()))
    r = sh.run("shout('a'), later")
    assert r.result == "('A', [1, 2])"
    assert sh.run("later = 1").restored == ("later",) and sh.run("later").result == "[1, 2]"
    with pytest.raises(NameError, match="names"): sh.resolve("nowhere")
    assert isinstance(sh, Shell) and isinstance(sh.guarantees(), Guarantees) and sh.home == home

@pytest.mark.parametrize("home", homes)
def test_odd_names_in_the_namespace(make, home):
    sh = make(home)
    sh.run("keep = 1")
    assert sh.run("globals()[5] = 1").error is None
    assert sh.run("globals()['a b'] = 1").error is None
    assert sh.run("keep").result == "1" and "keep" in sh.variables() and sh.run("SHOW_VARS()").error is None

@pytest.mark.parametrize("home", homes)
def test_nothing_longer_than_asked(kept, home):
    sh = kept(home)
    for code in ("print('x'*10**6)", "'x'*10**6", "list(range(10**5))", "raise ValueError('x'*10**6)", "import sys; sys.stderr.write('x'*10**6)", "display('x'*10**6)"):
        r = sh.run(code)
        for n in (0, 10, 1000, 5000): assert len(r.text(n)) <= n
        assert "elided" in r.text() or "of 1,000,000" in r.text()
    r = sh.run("for i in range(50): print('x'*10**6)")
    assert r.elided > 48_000_000 and len(r.stdout) < 1_000_100

@pytest.mark.parametrize("home", homes)
def test_displays(kept, home):
    code = """
        class Pic:
            def _repr_png_(self): return b'\\x89PNG'
            def __repr__(self): return 'a picture'
        print('first')
        display(Pic())
        h = display('one', display_id=True)
        h.update('two')
        display({'a/b': {'deep': [1, None]}, 'text/plain': 'raw'}, raw=True)
        Pic()"""
    r = kept(home).run(textwrap.dedent(code))
    kinds = [(d["output_type"], sorted(d["data"])) for d in r.displays]
    assert kinds == [("display_data", ["image/png", "text/plain"]), ("display_data", ["text/plain"]), ("display_data", ["a/b", "text/plain"]),
        ("execute_result", ["image/png", "text/plain"])]
    assert r.displays[0]["data"]["image/png"] == "iVBORw==" and r.displays[1]["data"]["text/plain"] == "'two'"
    assert r.text() == "first\na picture\n'two'\nraw\na picture" and "<img" in r._repr_html_()

@pytest.mark.parametrize("home", homes)
def test_matplotlib(make, home):
    pytest.importorskip("matplotlib")
    sh = make(home)
    r = sh.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nfig, ax = plt.subplots()")
    assert r.error is None and [d["output_type"] for d in r.displays if "image/png" in d["data"]] == ["display_data"]*2, r.text()
    assert sh.run("1").displays == []


# -- Contexts, exactly

@dataclasses.dataclass
class Here: n: int = 1

texts = ["", "a\r\nb\rc\n", "\ud800", "\ud83d\ude00", "\U0001F600", "\x00", "é\u2028\ufeff", "x"*999_999 + "\ud83d\ude00\r\n", "\U0010ffff"*1001, "\ufffe\uffff"]
values = [b"", b"\x00\xff\r\n"*1000, [], [1, "a", None, [b"b"]], {1: "a", (2, 3): {"x"}, None: 1.5, b"k": -1}, {"a": {}}, 5, 2**100, float("inf"), True, None, (1, (2,)),
    {1, 2}, frozenset("a"), date(2024, 2, 29), datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=5))), clock(1, 2, 3), timedelta(1, 2, 3), Decimal("1.10"), 1 + 2j, range(5),
    bytearray(b"ab"), ["\ud800", "\ud83d\ude00", "a\r\n"], Path("a/b").parts, uuid.UUID(int=5)]

def same(a, b): return type(a) is type(b) and (a == b) and repr(a) == repr(b)

@pytest.mark.parametrize("home", others)
def test_contexts(home):
    "Those that a pipe, JSON or a codec would change"
    sh,named = WorkerShell(home),{f"context_{i}": v for i,v in enumerate((*texts, *values))}
    sh.protect(**named)
    def one(name, value):
        got = sh.run(f"type({name}).__name__, len({name}.encode('utf-8', 'surrogatepass')) if isinstance({name}, str) else repr({name})")
        assert got.error is None, got.text()
        want = type(value).__name__, len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else repr(value)
        if not isinstance(value, (set, frozenset)) and len(repr(want)) < 5000: assert got.result.replace("\n", "").replace(" ", "") == repr(want).replace(" ", ""), got.text()
        back = sh.resolve(name)
        if isinstance(value, (range, uuid.UUID)): assert back == (repr(value))
        elif isinstance(value, bytearray): assert back == value
        else: assert same(back, value), (value, back)
    try:
        for o in named.items(): one(*o)
    finally: sh.close()

@pytest.mark.parametrize("home", others)
def test_a_large_context(home):
    "20 MB in, and out again; a good part of it that stands between pieces"
    text = ("\U0001F600é\r\n\ud800" + "x"*93)*204_000
    sh = WorkerShell(home)
    sh.protect(context=text)
    start = time.perf_counter()
    got = sh.run("import hashlib\nhashlib.sha256(context.encode('utf-8', 'surrogatepass')).hexdigest(), len(context)")
    assert got.result == repr((hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), len(text)))
    assert sh.resolve("context") == text
    assert sh.run("echo = 1\ncontext = context[::-1]\n").restored == ("context",)
    sh.close()
    assert time.perf_counter() - start < 30

def test_contexts_of_packages(kept, make):
    pd, np = pytest.importorskip("pandas"), pytest.importorskip("numpy")
    frame = pd.DataFrame({"a": [1, 2, None], "d": pd.to_datetime(["2024-01-01"]*3), "s": ["x", "é", "\x00"]})
    for home in ("process", *(["sandbox"] if not no_sandbox else [])):
        sh = make(home, context=frame)
        assert sh.run("context.a.sum(), context.s[1], context.shape").result.replace("np.float64(3.0)", "3.0") == "(3.0, 'é', (3, 3))"
        assert "a" in sh.resolve("context") and type(sh.resolve("context")) is str
        sh = make(home, context=np.arange(6).reshape(2, 3))
        assert sh.run("int(context.sum()), context.shape").result == "(15, (2, 3))"

@pytest.mark.parametrize("home", every_day)
def test_objects_of_modules(home):
    "A dataclass of a module that both sides can import arrives; one of this file is a clear error"
    from IPython.core.inputtransformer2 import TransformerManager
    from rlm.cell import CellError
    def with_context(value):
        sh = WorkerShell(home)
        sh.protect(context=value)
        try: return sh.run("context")
        finally: sh.close()
    assert with_context(CellError("a", "b", "c")).result == "CellError(name='a', value='b', traceback='c')"
    for bad in (Here(), [Here()], Here):
        with pytest.raises(ShellError) as e: with_context(bad)
        assert "test_sandbox" in str(e.value) and "Module" in str(e.value) and len(str(e.value)) < 1000
    with pytest.raises(ShellError, match="__main__|Made"): with_context(made_in_main())

def made_in_main():
    cls = type("Made", (), dict(__module__="__main__", __qualname__="Made"))
    sys.modules["__main__"].Made = cls
    return cls()

@pytest.mark.parametrize("home", every_day)
@pytest.mark.parametrize("what", ["lambda", "lock", "generator", "file", "local", "deep", "raising"])
def test_what_cannot_be_sent_is_told_at_once(home, what):
    class Local: pass
    class Raising:
        def __reduce__(self): raise RuntimeError("no")
    deep = []
    for _ in range(100_000): deep = [deep]
    value = dict(lambda_=lambda: 1, lock=threading.Lock(), generator=(i for i in ()), file=sys.__stderr__, local=Local(), deep=deep, raising=Raising())[what.replace("lambda", "lambda_")]
    fds = open_fds()
    start = time.monotonic()
    with pytest.raises((ContextError,) if what != "raising" else (ContextError, RuntimeError)): prep_shell({"k": value} if what != "deep" else deep, shell=home)
    assert time.monotonic() - start < 5 and eventually(lambda: open_fds() <= fds)
    while deep: deep = deep.pop()

def test_a_value_that_cannot_be_sent_spoils_nothing(make):
    sh = make("process")
    assert sh.run("x = 1\ncontext").result == "'abc'"
    with pytest.raises(ContextError): sh.protect(lock=threading.Lock())
    assert sh.run("x").result == "1"
    end(sh)
    eventually(lambda: sh.worker is None or not sh.worker.inbox.empty())
    assert sh.run("context").result == "'abc'"

@on_linux
def test_a_large_context_is_shared_by_fork():
    "The supervisor holds it; the live process and the snapshot have no copy of their own"
    sh = WorkerShell("process")
    sh.protect(context="x"*100_000_000)
    sh.run("n = context.count('y')")
    eventually(lambda: len(pythons(sh)) == 3)
    def own(pid): return sum(int(n) for n in re.findall(r"Private_\w+:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text()))*1024
    zygote, *rest = pythons(sh)
    assert len(rest) == 2 and all(own(pid) < 30_000_000 for pid in rest), [own(p) for p in (zygote, *rest)]
    start = time.monotonic()
    sh.run("import os\nos.kill(os.getpid(), 9)")
    assert sh.run("n, len(context)").result == "(0, 100000000)" and time.monotonic() - start < 3
    sh.close()

def open_fds():
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if linux else 0


# -- Values back

sendable = ["None", "True", "False", "0", "-2**63", "2**64", "-10**3000", "1.5", "float('inf')", "-0.0", "''", "'a\\r\\n'", "'\\ud83d\\ude00'", "'\\U0001F600'*600", "'\\x00'*5000", "b''", "b'\\xff'*2000",
    "[]", "[[], [[]], {}]", "()", "(1, (2, [3]))", "{1, 2, 'a'}", "frozenset({1})", "{}", "{'a': 1, 'o': {}, 'str': [0, 1]}", "{1: 2, None: 3, (1, 2): 4, b'b': 5, 1.5: 6}", "{'k'*2000: 1}",
    "date(2024, 2, 29)", "datetime(2024, 1, 1, 1, 2, 3, 4, timezone.utc)", "time(1, 2, 3, 4)", "timedelta(-1, 5, 7)", "Decimal('1E+5')", "1-2j", "list(range(10_000))", "{'d': [[1, 2]]}", "{'int': '0x'}",
    "[{'a': i} for i in range(1000)]", "'x'*3_000_000"]

@pytest.mark.parametrize("home", every_day)
def test_values_back(kept, home):
    sh = kept(home)
    env = dict(date=date, datetime=datetime, time=clock, timedelta=timedelta, timezone=timezone, Decimal=Decimal)
    sh.run("from datetime import date, datetime, time, timedelta, timezone\nfrom decimal import Decimal")
    for code in sendable:
        want = eval(code, env)
        assert sh.run(f"v = {code}").error is None
        assert same(got := sh.resolve("v"), want) or isinstance(want, set) and got == want, code
        assert (r := sh.run("FINAL(v)")).ended and type(r.final) is type(want) and r.final == want, code
        assert sh.run("echo(v) == v").result == "True", code
    r = sh.run("FINAL(float('nan'))")
    assert r.final != r.final

@pytest.mark.parametrize("home", others)
def test_subclasses_come_back_as_what_they_are_made_of(kept, home):
    sh = kept(home)
    code = """
        import collections, enum
        class S(str):
            def __len__(self): return 0
            def __str__(self): return 'liar'
        class I(int): pass
        class E(enum.IntEnum): A = 3
        P = collections.namedtuple('P', 'x y')
        v = [S('abc'), I(5), E.A, P(1, 2), collections.OrderedDict(a=1), collections.Counter('aab'), collections.defaultdict(list, k=[1]), {S('k'): 1}]"""
    assert sh.run(textwrap.dedent(code)).error is None
    got = sh.resolve("v")
    assert got == ["abc", 5, 3, (1, 2), {"a": 1}, {"a": 2, "b": 1}, {"k": [1]}, {"k": 1}] and [type(o) for o in got] == [str, int, int, tuple, dict, dict, dict, dict]
    assert type(next(iter(got[-1]))) is str

@pytest.mark.parametrize("home", others)
def test_numpy_and_pandas_values(kept, home):
    pytest.importorskip("numpy"), pytest.importorskip("pandas")
    sh = kept(home)
    sh.run("import numpy as np, pandas as pd")
    for code, want in [("np.int64(5)", 5), ("np.float64(1.5)", 1.5), ("np.float32(.5)", .5), ("np.bool_(True)", True), ("np.str_('a')", "a"), ("np.array(7)", 7), ("np.complex64(1j)", 1j),
            ("[np.int8(1), {'k': np.uint64(2)}]", [1, {"k": 2}]), ("{np.int64(1): np.int64(2)}", {1: 2}), ("pd.Timestamp('2024-01-01')", datetime(2024, 1, 1)), ("pd.Series([1]).sum()", 1)]:
        r = sh.run(f"FINAL({code})")
        assert r.ended and r.final == want and type(r.final) is type(want), (code, r)
    for code in ("np.arange(3)", "pd.DataFrame({'a': [1]})", "pd.Series([1, 2])", "np.longdouble(1)", "np.clongdouble(1)", "np.dtype('int8')", "pd.NA"):
        r = sh.run(f"FINAL({code})")
        assert r.ended and type(r.final) is str and "RecursionError" not in r.final, (code, r)
        sh.run(f"v = {code}")
        assert type(sh.resolve("v")) is str
    assert sh.run("FINAL(pd.NaT)").final != datetime(1, 1, 1)

@pytest.mark.parametrize("home", others)
def test_what_cannot_be_sent_back_comes_as_text(kept, home):
    sh = kept(home)
    assert sh.run("kept = 1\nclass A:\n    def __repr__(self): return 'an A'\nclass B:\n    def __repr__(self): 1/0\nclass C:\n    def __repr__(self): raise SystemExit").error is None
    for code, has in [("A()", "an A"), ("[A(), 1]", ["an A", 1]), ("{'k': A()}", {"k": "an A"}), ("{A(): 1}", {"an A": 1}), ("B()", "ZeroDivisionError"), ("C()", "SystemExit"), ("lambda: 1", "function"), ("A", "A"),
            ("type", "type"), ("(i for i in ())", "generator"), ("iter([])", "iterator"), ("open('/dev/null')", "TextIOWrapper"), ("range(3)", "range(0, 3)"), ("{}.keys()", "dict_keys"), ("print", "print"),
            ("...", "Ellipsis"), ("NotImplemented", "NotImplemented"), ("__import__('os')", "module")]:
        r = sh.run(f"FINAL({code})")
        assert r.ended and (r.final == has or has in r.final), (code, r)
        sh.run(f"v = {code}")
        assert type(sh.resolve("v")) is type(r.final)
    assert sh.run("kept").result == "1"

hostile = dict(
    dict_iter="class X(dict):\n    def __iter__(self): 1/0\n    def keys(self): 1/0\nv = X(a=1)",
    dict_items="class X(dict):\n    def items(self): 1/0\nv = X(a=1)",
    list_len="class X(list):\n    def __len__(self): 1/0\nv = X([1])",
    list_iter="class X(list):\n    def __iter__(self): raise SystemExit\nv = X([1])",
    list_endless="class X(list):\n    def __iter__(self): return __import__('itertools').count()\nv = X([1])",
    float_="class X(float):\n    def __float__(self): raise RuntimeError\nv = X(1)",
    int_="class X(int):\n    def __gt__(self, o): 1/0\n    def __lt__(self, o): 1/0\n    def __int__(self): 1/0\nv = X(1)",
    str_="class X(str):\n    def __str__(self): 1/0\n    def encode(self, *a): 1/0\nv = X('a')",
    date_="import datetime\nclass X(datetime.datetime):\n    def isoformat(self, *a): 1/0\nv = X(2024, 1, 1)",
    class_="class X:\n    @property\n    def __class__(self): 1/0\nv = X()",
    liar="class X:\n    __class__ = dict\nv = X()",
    mock="from unittest.mock import MagicMock\nv = MagicMock(spec=dict)",
    hash_="class X(str):\n    def __hash__(self): return 1\n    def __eq__(self, o): 1/0\nv = {X('a'): 1}",
    cyclic="v = []\nv.append(v)", cyclic_dict="v = {}\nv['v'] = v", deep="v = []\nfor _ in range(5000): v = [v]", wide="v = list(range(600_000))", many_keys="v = {i: i for i in range(20_000)}",
    big="v = 'x'*150_000_000", huge_int="v = 1 << 10_000_000")

@pytest.mark.parametrize("home", every_day)
@pytest.mark.parametrize("what", hostile)
def test_hostile_values(make, home, what):
    "No object of the model's keeps a cell from giving its result, and what was there before stays"
    sh = make(home, seconds=1.5 if what == "list_endless" else 6)
    sh.run("kept = 1")
    r = sh.run(hostile[what])
    assert r.error is None or r.error.name == "MemoryError", r.text()
    r = bounded(30, sh.run, "print('said')\nFINAL(v)")
    if what not in ("list_endless",): assert r.stdout == "said\n" and r.ended and r.error is None, r
    with suppress(Exception): bounded(30, sh.resolve, "v")
    assert sh.run("kept").result == "1"

@pytest.mark.parametrize("home", others)
def test_what_is_too_much_to_resolve_comes_as_text_too(kept, home):
    "As from FINAL: `resolve` gives the text of an object that cannot be sent"
    sh = kept(home)
    sh.run("a = []\na.append(a)\nb = list(range(600_000))")
    assert sh.resolve("a") == "[[...]]" and str(sh.resolve("b")).startswith("[0,")


# -- Calls to the host

@pytest.mark.parametrize("home", others)
def test_calls(kept, home):
    sh = kept(home)
    assert sh.run("echo('a\\ud800'), echo(x=b'b'), echo({'k': (1, None)})").result == "('a\\ud800', b'b', {'k': (1, None)})"
    assert sh.run("await aecho(1)").result == "1" and sh.run("numbers(3, scale='0.5')").result == "[0.0, 0.5, 1.0]"
    assert sh.run("f = lambda n: 0 if n == 0 else echo(n) + f(n-1)\nf(20)").result == "210"
    assert sh.run("import inspect\nstr(inspect.signature(numbers)), echo.__doc__, echo.__name__").result == "('(n: int, scale: float = 1.0)', 'Give `x` back', 'echo')"
    assert "Give `x` back" in sh.run("echo?").text() + sh.run("help(echo)").text()
    assert sh.run("len(echo('x'*5_000_000))").result == "5000000"
    assert sh.run("sorted(map(echo, [3, 1, 2]))").result == "[1, 2, 3]"
    for code, name in [("echo()", "TypeError"), ("echo(1, 2)", "TypeError"), ("echo(y=1)", "TypeError"), ("numbers('many')", "InputError"), ("echo(object())", "TypeError"), ("fail('value')", "ValueError"),
            ("fail('key', 'k')", "KeyError"), ("fail('own', 'o')", "OfTheHost"), ("fail('exit')", "RuntimeError"), ("fail('interrupt')", "RuntimeError"), ("llm_query('q')", "InputError"), ("llm_query(5)", "InputError"),
            ("x = []\nx.append(x)\necho(x)", "TooMuch"), ("await fail('value')", "ValueError")]:
        r = sh.run(code)
        assert r.error and r.error.name == name and r.error.traceback.count("Cell") >= 1, (code, r)
    assert sh.run("try: fail('value', 'seen')\nexcept ValueError as e: print(e)").stdout == "seen\n"
    assert sh.run("try: fail('own')\nexcept Exception as e: print(type(e).__name__, isinstance(e, RuntimeError))").stdout == "OfTheHost True\n"

@pytest.mark.parametrize("home", others)
def test_what_a_function_of_the_host_may_not_give(make, home):
    cyclic = []
    cyclic.append(cyclic)
    class Bad(dict):
        def __iter__(self): raise ZeroDivisionError
        def keys(self): raise ZeroDivisionError
    class Silent(Exception):
        def __str__(self): raise RuntimeError
    def silent(): raise Silent
    gives = dict(obj=object(), cyclic=cyclic, long="x"*100_000_001, bad=Bad(a=1), many=list(range(600_000)))
    sh = make(home, tools=[named("give", lambda k: gives[k]), echo, silent], seconds=5)
    for k in gives:
        r = bounded(20, sh.run, f"kept = give({k!r})")
        assert r.error and r.error.name not in ("TimeoutError", "ProcessDied"), (k, r.error)
    r = bounded(20, sh.run, "silent()")
    assert r.error and r.error.name not in ("TimeoutError", "ProcessDied"), r.error
    assert sh.run("echo(1)").result == "1"

@pytest.mark.parametrize("home", others)
def test_calls_from_everywhere(make, home):
    lm = ScriptedLM(lambda messages, *a: "re: " + messages[-1]["content"])
    sh = make(home, model=lm, processes=200)
    assert sh.run("llm_query('a'), llm_query_batched(['b', 'c'])").result == "('re: a', ['re: b', 're: c'])"
    r = sh.run("import asyncio\ngot = await asyncio.gather(*[allm_query(str(i)) for i in range(100)])\ngot == [f're: {i}' for i in range(100)]")
    assert r.result == "True", r.text()
    r = sh.run("from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(64) as ex: got = list(ex.map(lambda i: echo([i, llm_query(str(i))]), range(128)))\ngot == [[i, f're: {i}'] for i in range(128)]")
    assert r.result == "True", r.text()
    r = sh.run("async def deep(n): return await allm_query('end') if n == 0 else (await asyncio.gather(deep(n-1), aecho(n)))[0]\nawait deep(30), await allm_query_batched(['x'])")
    assert r.result == "('re: end', ['re: x'])", r.text()
    r = sh.run("async def main(): return await asyncio.gather(*[asyncio.to_thread(llm_query, str(i)) for i in range(50)])\nlen(set(asyncio.run(main())))")
    assert r.result == "50", r.text()
    assert len(sh.sub.trajectory.events if hasattr(sh.sub.trajectory, "events") else list(sh.sub.trajectory)) == 3 + 100 + 128 + 2 + 50

@pytest.mark.parametrize("home", every_day)
def test_calls_after_the_cell_has_ended(make, home):
    "By threads that go on, between cells and during others; nothing is mixed up"
    sh = make(home)
    sh.run("import threading, time\ngot, stop = [], threading.Event()\ndef work():\n    while not stop.is_set(): got.append(echo(len(got))); time.sleep(.001)\nt = threading.Thread(target=work); t.start()")
    for i in range(60):
        time.sleep(.005 if i % 3 else .03)
        r = sh.run(f"print(echo({i}), end='')")
        assert r.stdout == str(i) and r.error is None, r
    assert sh.resolve("got") and sh.variables()["t"]
    r = sh.run("stop.set(); t.join(5); t.is_alive(), got == list(range(len(got))), len(got) > 50")
    assert r.result == "(False, True, True)", r.text()
    sh.run("import asyncio\nasync def later():\n    global told\n    told = await aecho('told')\ntask = asyncio.create_task(later())\nawait asyncio.sleep(0)")
    time.sleep(.1)
    assert sh.run("await task\ntold").result == "'told'"

@pytest.mark.parametrize("home", every_day)
def test_single_calls_between_cells(make, home):
    "The thread that waits for the next cell and the one that reads replies never read from one channel"
    sh = make(home)
    sh.run("import threading\ngo, got = threading.Semaphore(0), []\ndef work():\n    while True: go.acquire(); got.append(echo(len(got)))\nthreading.Thread(target=work, daemon=True).start()")
    for i in range(60):
        assert bounded(30, sh.run, f"x = {i}\nthreading.Timer(.002, go.release).start()").error is None
        time.sleep(.004)
    r = bounded(30, sh.run, "import time\ntime.sleep(.1)\ngot == list(range(60))")
    assert r.result == "True", r.text()

@pytest.mark.parametrize("home", every_day)
def test_waiting_for_the_host_is_not_the_cells_time(make, home):
    sh = make(home, seconds=.6)
    assert sh.run("nap(1)").result == "1.0" and sh.run("await aecho(1)\nnap(.5); nap(.5)").result == "0.5"
    start = time.monotonic()
    r = sh.run("nap(.5)\nx = 1\nwhile True: pass")
    assert r.error.name == "TimeoutError" and 1 <= time.monotonic() - start < 4 and sh.run("x").result == "1"
    r = sh.run("import time\ntime.sleep(5)")
    assert r.error.name == "TimeoutError" and "Cell" in r.error.traceback and "0.6 s" in r.error.value

@pytest.mark.parametrize("home", every_day)
def test_a_call_left_behind_is_not_waited_for(make, home):
    "A function that the host still carries out for a cell which was stopped gives no time to the next one"
    sh = make(home, seconds=1)
    threading.Timer(.3, sh.interrupt).start()
    with pytest.raises(KeyboardInterrupt): sh.run("nap(8)")
    start = time.monotonic()
    assert bounded(30, sh.run, "while True: pass").error.name == "TimeoutError" and time.monotonic() - start < 5
    sh.run("import threading\nthreading.Thread(target=nap, args=(6,), daemon=True).start()\nimport os\nos._exit(1)")
    start = time.monotonic()
    assert bounded(30, sh.run, "while True: pass").error.name == "TimeoutError" and time.monotonic() - start < 5

def test_a_late_reply_goes_nowhere(make):
    "The descriptor of a worker that is gone belongs to somebody else by now"
    go = threading.Event()
    sh = make("process", tools=[named("late", lambda: go.wait(20) and "LATE"*10)])
    sh.run("1")
    w = sh.worker
    threading.Timer(.2, end, [sh]).start()
    assert sh.run("late()").error.name == "ProcessDied"
    w.thread.join(5)
    files = [tempfile.TemporaryFile() for _ in range(30)]
    go.set()
    time.sleep(.4)
    assert [os.fstat(f.fileno()).st_size for f in files] == [0]*30
    for f in files: f.close()

@pytest.mark.parametrize("home", others)
def test_a_function_that_uses_its_own_shell(home):
    "It is told that this cannot be, whichever way it tries, instead of waiting for itself"
    shells = []
    def again(): return shells[0].run("1").result
    def looked(): return shells[0].variables()
    async def aagain(): return (await shells[0].arun("1")).result
    shells.append(sh := new(home, tools=[again, looked, aagain], seconds=3))
    for code in ("again()", "looked()", "await aagain()"):
        r = bounded(15, sh.run, code)
        assert r.error.name == "RuntimeError" and "running" in r.error.value, r
    bounded(10, sh.close)

def test_functions_that_use_another_shell(make):
    "They wait for their turn"
    inner = make("process")
    sh = make("process", tools=[named("ask", lambda i: inner.run(f"import time\ntime.sleep(.02)\n{i}").result)])
    r = sh.run("from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as ex: got = list(ex.map(ask, range(20)))\ngot == [str(i) for i in range(20)]")
    assert r.result == "True", r.text()

@pytest.mark.long
@pytest.mark.parametrize("home", others)
def test_waiting_calls_hold_bounded_memory(home):
    "Code cannot fill the host with what it asks"
    code = f"""
        import asyncio, resource, threading
        from rlm.tools import prep_shell
        from rlm.launch import ShellLimits
        async def slow(x): await asyncio.sleep(2)
        sh = prep_shell("abc", shell={home!r}, tools=[slow], shell_limits=ShellLimits(seconds=20))
        r = sh.run("import asyncio\\ns = 'x'*20_000_000\\nr = await asyncio.gather(*[slow(s) for _ in range(100)], return_exceptions=True)\\nlen(r)")
        print(r.text(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1000)
        sh.close()
        """
    told = output(script(code)).split()
    assert told[0] == "100" and int(told[-1]) < 1200, told


# -- Deaths

deadly = dict(killed="import os, signal; os.kill(os.getpid(), 9)", exited="import os; os._exit(3)", segfault="import ctypes; ctypes.string_at(0)", aborted="import os; os.abort()",
    closed="import os; os.closerange(3, 200)", unraisable="import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", stopped="import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    ignoring="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", swallowing="while True:\n    try:\n        while True: pass\n    except BaseException: pass", c="sum(range(10**12))")
told = dict(exited="code 3", segfault="segmentation fault", aborted="aborted", killed="was killed")

@pytest.mark.parametrize("home", every_day)
@pytest.mark.parametrize("how", deadly)
@on_linux
def test_variables_survive(make, home, how):
    "Those of all earlier cells; what the dead cell had set and printed is told, or gone"
    sh = make(home, seconds=.5)
    for i in range(3): sh.run(f"v{i} = [{i}]*{i}")
    sh.run("def f(): return v2")
    r = bounded(30, sh.run, "print('last words')\nlost = 1\nv0 = 'changed'\n" + deadly[how])
    assert r.error.name in ("ProcessDied", "TimeoutError") and not r.ended and told.get(how, "") in r.error.value, r
    if how == "swallowing" and "is kept" in r.error.value: return # two interrupts in a row have ended it
    assert "last words" in r.stdout and "as they were before" in r.error.traceback
    assert sh.run("v0, v1, f()").result == "([], [1], [2, 2])" and sh.run("lost").error.name == "NameError"
    assert sh.run("context, echo(1)").result == "('abc', 1)" and sh.variables().keys() == {"v0", "v1", "v2", "f"}

@pytest.mark.parametrize("home", every_day)
@on_linux
def test_many_deaths_in_a_row(make, home):
    "Each leaves the next one a snapshot and no descriptors"
    sh = make(home, open_files=64)
    sh.run("import asyncio\nawait asyncio.sleep(0)\nx = [1]")
    fds, before = "import os\nlen(os.listdir('/proc/self/fd'))", None
    for i in range(120):
        r = sh.run(f"y = {i}\nimport os\nos._exit(1)")
        assert r.error.name == "ProcessDied" and "as they were before" in r.error.value, (i, r)
        if i == 5: before = int(sh.run(fds).result)
    assert sh.run("x").result == "[1]" and int(sh.run(fds).result) <= before + 3

@pytest.mark.parametrize("home", every_day)
@on_linux
def test_a_snapshot_after_every_cell_that_called_the_host(make, home):
    sh = make(home)
    for i in range(60):
        sh.run(f"v{i} = echo({i})")
        r = sh.run("import os\nos._exit(1)")
        assert "as they were before" in r.error.value, (i, r)

@pytest.mark.parametrize("home", others)
@on_linux
def test_what_is_lost_is_told(make, home):
    "With threads there are no snapshots"
    sh = make(home)
    sh.run("a = 1")
    sh.run("import threading\nstop = threading.Event()\nt = threading.Thread(target=stop.wait); t.start()")
    for i in range(105): sh.run(f"b{i} = 1")
    r = sh.run("import os\nos._exit(1)")
    assert re.search(r"some cells ago\. Lost: stop, t, b0, b1, .*b104\.", r.error.value), r.error.value
    assert sh.run("a").result == "1" and sh.variables() == {"a": "int"}
    sh.run("a = 2")
    r = sh.run("import os\nos._exit(1)")
    assert "as they were before" in r.error.value and sh.run("a").result == "2"
    sh.run("c = 1")
    sh.run("import threading\nstop = threading.Event()\nthreading.Thread(target=stop.wait).start()")
    sh.run("stop.set()\nimport time\ntime.sleep(.05)\nd = 1")
    assert "as they were before" in sh.run("import os\nos._exit(1)").error.value and sh.run("c, d").result == "(1, 1)"

@pytest.mark.parametrize("home", others)
@on_linux
def test_threads_in_the_first_cell(make, home):
    sh = make(home)
    sh.run("import threading\nstop, x = threading.Event(), 1\nthreading.Thread(target=stop.wait).start()")
    r = sh.run("import os\nos._exit(1)")
    assert "The variables are lost: stop, x. The context and the functions are there." in r.error.traceback
    assert sh.run("context, echo(2)").result == "('abc', 2)" and sh.variables() == {}

@pytest.mark.parametrize("home", others)
@on_linux
def test_deaths_after_final_and_between_cells(make, home):
    sh = make(home)
    sh.run("x = 5")
    assert sh.run("FINAL(x)").final == 5
    assert not (r := sh.run("import os\nos._exit(1)")).ended and r.error.name == "ProcessDied"
    assert sh.run("FINAL_VAR('x')").final == 5
    sh.protect(late={"k": 1}, shout=named("shout", lambda x: x.upper()))
    for _ in range(3):
        assert eventually(lambda: len(pythons(sh)) == 3)
        time.sleep(.05)
        os.kill(pythons(sh)[1], signal.SIGKILL)
        assert eventually(lambda: not sh.worker.inbox.empty())
        r = sh.run("print(x, late, shout('a'))")
        assert r.stdout == "5 {'k': 1} A\n" and r.error is None and "has ended since the last cell" in r.stderr and "as they were before" in r.stderr
        assert sh.run("1").stderr == ""
    assert sh.resolve("x") == 5
    end(sh)
    assert eventually(lambda: not sh.worker.inbox.empty())
    r = sh.run("context, late, shout('b')")
    assert r.result == "('abc', {'k': 1}, 'B')" and "The variables are lost: x." in r.stderr

class Ledger:
    "Cells that set one variable each, and what should be there after all that has happened"
    def __init__(self, sh): self.sh, self.have, self.n, self.died = sh, [], 0, 0

    def step(self, what):
        n = self.n = self.n + 1
        before, code = list(self.have), what.format(n=n)
        try: r = bounded(40, self.sh.run, f"print('begin {n}')\nv{n} = {n}\n{code}\nprint('end {n}')")
        except ShellError: return self.lose("are lost", before)
        if not r.error:
            assert f"begin {n}\n" in r.stdout and f"end {n}\n" in r.stdout, (n, r.stdout[-200:], r)
            self.note(r.stderr)
            return self.have.append(f"v{n}")
        assert r.error.name in ("ProcessDied", "TimeoutError"), r
        assert not re.search(r"(begin|end) \d", r.stdout) or f"begin {n}\n" in r.stdout, r
        self.died += 1
        self.note(r.stderr)
        if r.error.name == "TimeoutError" and "is kept" in r.error.value: return self.have.append(f"v{n}") if "begin" in r.stdout else None
        self.lose(r.error.value, list(self.have))

    def note(self, stderr):
        if "since the last cell" in stderr:
            self.died += 1
            self.lose(stderr, list(self.have))

    def lose(self, said, had):
        if "as they were before" in said: return
        if m := re.search(r"some cells ago\. Lost: (.*?)\.", said): gone = m[1].split(", ")
        else:
            assert "are lost" in said or "no variables yet" in said, said
            gone = had
        self.have = [k for k in had if k not in gone]

    def check(self):
        r = bounded(40, self.sh.run, "print(*[k for k in globals() if k[0] == 'v' and k[1:].isdigit()])")
        if r.error or "since the last cell" in r.stderr: return self.lose(r.error.value if r.error else r.stderr, list(self.have))
        there = r.stdout.split()
        assert [k for k in self.have if k not in there] == [], "said to be there"
        extra = [k for k in there if k not in self.have]
        assert len(extra) <= 1, ("said to be lost", extra)
        self.have = there

cells = ["", "import time; time.sleep(.03)", "for i in range(200): print(echo(i))", "print('x'*2_000_000)", "for i in range(20000): print(i)", "await __import__('asyncio').gather(*[aecho(i) for i in range(30)])",
    "nap(.02)", "y = [0]*1_000_000", "import subprocess; subprocess.run('echo out', shell=True);", "big = echo('z'*1_000_000)"]

def chaos(home, rounds, seed, stops, seconds=3.):
    rng, sh = random.Random(seed), new(home, seconds=seconds)
    led, hits = Ledger(sh), 0
    def hit(after):
        nonlocal hits
        time.sleep(after)
        with suppress(Exception):
            there = [rng.choice(pythons(sh))] if rng.random() < .8 else processes(sh) if rng.random() < .5 else [rng.choice(processes(sh))]
            how = signal.SIGSTOP if rng.random() < stops else signal.SIGKILL
            for pid in there: os.kill(pid, how)
            hits += 1
    try:
        sh.run("1")
        for i in range(rounds):
            t = threading.Thread(target=hit, args=(rng.choice([0, .001, .005, .02, .04])*rng.random(),))
            t.start()
            for _ in range(rng.randrange(1, 4)): led.step(rng.choice(cells))
            t.join()
            if rng.random() < .5: led.step(rng.choice(cells))
            else: time.sleep(.01*rng.random())
            led.check()
            assert open_fds() < 200
    finally: bounded(30, sh.close)
    assert hits > rounds//2 and led.died > rounds//8, (hits, led.died)

@pytest.mark.parametrize("home", others)
@pytest.mark.parametrize("seed", [1])
@on_linux
def test_kills_at_random_moments(home, seed): chaos(home, 12, seed, 0)

@pytest.mark.long
@pytest.mark.parametrize("home", others)
@pytest.mark.parametrize("seed", range(6))
@on_linux
def test_several_hundred_kills(home, seed): chaos(home, 120, seed + 100, .0)

@pytest.mark.long
@pytest.mark.parametrize("home", others)
@pytest.mark.parametrize("seed", range(3))
@on_linux
def test_kills_and_stops(home, seed): chaos(home, 25, seed + 200, .3, seconds=1.)

@pytest.mark.parametrize("home", others)
@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
@on_linux
def test_a_process_that_is_stopped(make, home, who):
    "The live one is killed, and back; without the supervisor all is lost, in bounded time; the snapshot is not missed"
    sh = make(home, seconds=.5)
    sh.run("x = 1")
    eventually(lambda: len(pythons(sh)) == 3)
    os.kill(pythons(sh)[who], signal.SIGSTOP)
    r = bounded(40, sh.run, "print(5)")
    if who == 2: assert r.stdout == "5\n" and bounded(40, sh.run, "import os\nos._exit(1)").error
    else: assert r.error.name == "TimeoutError" and ("as they were before" if who else "lost: x") in r.error.value, r
    r = bounded(40, sh.run, "2")
    assert r.result == "2" or who == 2 and bounded(40, sh.run, "2").result == "2"

@pytest.mark.parametrize("home", others)
@on_linux
def test_a_death_that_is_not_known_yet(make, home):
    "The cell that is sent to a process which is just dying is not run in its place, nor is its result another's"
    sh = make(home)
    sh.run("x = 1")
    for i in range(80):
        os.kill(pythons(sh)[1], signal.SIGKILL)
        time.sleep((0, .0005, .002, .004)[i % 4])
        r = sh.run(f"import time; time.sleep(.01); print({i})")
        assert r.error and r.stdout == "" or r.stdout == f"{i}\n", (i, r)
        assert sh.run(f"print('b{i}')").stdout == f"b{i}\n", (i, r)


# -- Nothing is left behind

@pytest.mark.parametrize("home", others)
@on_linux
def test_many_cells_leak_nothing(make, home):
    "Descriptors, threads and classes of the live process, processes, descriptors of the supervisor and of the host"
    sh = make(home)
    codes = ["x = {i}", "echo({i})", "1/0", "print('y'*100_000)", "!true", "await aecho({i})", "display({i})", "import os; os._exit(1)",
             "llm_query('q')", "FINAL({i})"]
    look = "import os, threading\nFINAL([len(os.listdir('/proc/self/fd')), threading.active_count(), len(echo.__class__.__mro__)])"
    def now(): return [*sh.run(look).final, len(processes(sh)), len(os.listdir(f"/proc/{pythons(sh)[0]}/fd")), open_fds()]
    for i in range(20): sh.run(codes[i % len(codes)].format(i=i))
    for i in range(4): sh.run("echo(1)")
    before = now()
    for i in range(200): sh.run(codes[i % len(codes)].format(i=i))
    for i in range(4): sh.run("echo(1)")
    assert eventually(lambda: all(a <= b for a, b in zip(now(), before))), (before, now())

@pytest.mark.parametrize("home", others)
@on_linux
def test_shells_leak_nothing(home, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path)) # other tests have shells, too
    def one(i, **kw):
        sh = WorkerShell(home, **kw)
        sh.protect(context={"k": i}, text="t", echo=echo)
        sh.run("echo(context)\n!sleep 100 &\nimport subprocess\np = subprocess.Popen(['sleep', '100'], start_new_session=True)")
        if i % 4 == 1: end(sh)
        if i % 4 == 2: sh.run("import os\nos._exit(1)")
        if i % 4: sh.close()
    def state(): return open_fds(), sum(t.name not in ("rlm-call", "rlm-spawner") for t in threading.enumerate()), len(descendants(os.getpid())), len(list(Path(tempfile.gettempdir()).glob("rlm-*")))
    one(1)
    before = eventually(lambda: state())
    time.sleep(.3)
    before = state()
    for i in range(4): one(i)
    for i in range(2): one(i + 1, direct=True)
    gc.collect()
    assert eventually(lambda: all(a <= b for a, b in zip(state(), before))), (before, state())

@pytest.mark.parametrize("home", others)
def test_failed_starts_leak_nothing(home):
    "Values that the worker cannot read, in this home and without a supervisor"
    fds = open_fds()
    for direct in (False, True):
        sh = WorkerShell(home, direct=direct)
        sh.protect(a=[1], here=Here(), b=[2], c=[3])
        for _ in range(3):
            with pytest.raises(ShellError): sh.run("1")
        sh.close()
    sh = WorkerShell(home)
    sh.protect(a=[1], lock=threading.Lock())
    with pytest.raises(ContextError): sh.start()
    assert eventually(lambda: open_fds() <= fds)

HOST = """
import os, sys, threading, time
from rlm.launch import ShellLimits
from rlm.tools import prep_shell
def nap(seconds): time.sleep(seconds)
sh = prep_shell(["abc"], shell={home!r}, tools=[nap], shell_limits=ShellLimits(seconds=60))
"""
def host(home, code, **kw): return HOST.format(home=home) + textwrap.dedent(code.format(home=home, **kw) if kw else code)

RUNS = """
    print(sh.run("import subprocess\\nq = [subprocess.Popen(['sleep', '100'], start_new_session=n == 1) for n in range(2)]\\n1").text())
    other = prep_shell("x", shell={home!r})
    print("ready", flush=True)
    """

@pytest.mark.parametrize("home", others)
@pytest.mark.parametrize("how", ["sys.exit(3)", "os._exit(0)", "1/0", "os.kill(os.getpid(), 9)", "threading.Thread(target=sh.run, args=['while True: pass'], daemon=True).start(); time.sleep(.1)",
    "threading.Thread(target=os._exit, args=[0]).start(); sh.run('while True: pass')", "threading.Thread(target=sh.run, args=['nap(30)'], daemon=True).start(); time.sleep(.1); sys.exit()",
    "sh.run('import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)'); sys.exit()", "os.execv('/bin/true', ['true'])", "import faulthandler; faulthandler._sigsegv()"])
@on_linux
def test_a_host_that_ends(home, how):
    token = uuid.uuid4().hex
    p = script(host(home, RUNS, x=0) + how, token)
    output(p)
    assert eventually(lambda: not with_token(token)), with_token(token)

@pytest.mark.parametrize("home", others)
@on_linux
def test_a_host_that_is_killed_at_random_moments(home):
    rng = random.Random(7)
    work = "while True: sh.run('import subprocess\\np = subprocess.Popen([\"sleep\", \"99\"])\\nnap(.001)\\nx = 1')"
    hosts = []
    for i in range(8):
        token = uuid.uuid4().hex
        p = script(host(home, work), token)
        time.sleep(rng.choice([.2, .3, .4, .5, .7])*rng.uniform(.8, 1.2))
        p.kill()
        p.wait()
        p.stdout.close()
        hosts.append(token)
    assert eventually(lambda: not any(map(with_token, hosts))), [with_token(t) for t in hosts]

@pytest.mark.parametrize("home", others)
@on_linux
def test_a_shell_that_a_short_lived_thread_has_started(home):
    "What dies with its parent dies with the thread that started it"
    with ThreadPoolExecutor(1) as ex: sh = ex.submit(new, home).result()
    made = []
    t = threading.Thread(target=lambda: made.append(new(home)))
    t.start()
    t.join()
    time.sleep(.2)
    for s in (sh, *made):
        assert s.run("x = 1").error is None and s.run("x").result == "1"
        s.close()

FORKING = """
    sh.run("x = 1")
    pid = os.fork()
    if not pid: {child}
    os.waitpid(pid, 0)
    print(sh.run("x").text())
    print(sh.run("import os\\nos._exit(1)").error.name, sh.run("x").text(), flush=True)
    sh.close()
    """

@pytest.mark.parametrize("home", others)
@pytest.mark.parametrize("child", ["sys.exit(0)", "os._exit(0)", "del sh; import gc; gc.collect(); os._exit(0)", "sh.close(); os._exit(0)", "sh.interrupt(); os._exit(0)",
    "import atexit; atexit._run_exitfuncs(); os._exit(0)", "print(5); os.kill(os.getpid(), 9)"])
@on_linux
def test_a_fork_of_the_host(home, child):
    "Has nothing to do with the worker of its parent"
    told = output(script(host(home, FORKING, child=child)))
    assert "1\nProcessDied 1\n" in told, told

@pytest.mark.parametrize("home", others)
@on_linux
def test_multiprocessing_in_the_host(home):
    "A forked child may have shells of its own, and keeps no worker of a parent that has died"
    code = """
    import multiprocessing, signal
    def child(q):
        signal.alarm(30)
        try: sh.run("x = 2")
        except RuntimeError as e: q.put("refused")
        else: q.put("ran")
        own = prep_shell("def", shell={home!r})
        q.put(own.run("context").result)
        own.close()
        print("ready", flush=True)
        time.sleep(20)
    signal.alarm(40)
    sh.run("x = 1")
    ctx = multiprocessing.get_context("fork")
    q = ctx.Queue()
    p = ctx.Process(target=child, args=[q], daemon=True)
    p.start()
    print(q.get(timeout=20), q.get(timeout=20), sh.run("x").text(), flush=True)
    print(p.pid, "goes on", flush=True)
    os.kill(os.getpid(), 9)
    """
    token = uuid.uuid4().hex
    p = script(host(home, code, x=0), token)
    lines, child = [], 0
    try:
        until = time.monotonic() + 40
        for line in p.stdout:
            lines.append(line)
            if "goes on" in line:
                child = int(line.split()[0])
                break
        p.wait(20)
        assert "refused 'def' 1\n" in lines, lines
        assert eventually(lambda: with_token(token) == [child]), (with_token(token), child)
    finally:
        for pid in with_token(token): os.kill(pid, signal.SIGKILL)
        p.stdout.close()

@pytest.mark.parametrize("home", homes)
def test_closing(home):
    sh = new(home)
    sh.run("x = 1")
    sh.close(), sh.close()
    for f in (lambda: sh.run("1"), lambda: asyncio.run(sh.arun("1"))):
        with pytest.raises(RuntimeError, match="closed"): f()
    if home == "inprocess": return
    for f in (sh.variables, lambda: sh.resolve("x"), sh.guarantees, sh.start):
        with pytest.raises(RuntimeError, match="closed"): f()
    sh.interrupt()
    never = WorkerShell(home)
    never.close()
    with pytest.raises(RuntimeError, match="closed"): never.run("1")

@pytest.mark.parametrize("home", others)
@on_linux
def test_closing_while_a_cell_runs(home):
    sh = new(home)
    sh.run("1")
    pids = processes(sh)
    with ThreadPoolExecutor(1) as ex:
        f = ex.submit(sh.run, "print('a', flush=True)\nwhile True: pass")
        time.sleep(.15)
        bounded(10, sh.close)
        assert bounded(10, f.result).error.name == "ProcessDied"
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))

@pytest.mark.parametrize("home", others)
@on_linux
def test_dropping_the_last_reference(home):
    sh = new(home, tools=[echo])
    sh.run("echo(1)\nimport subprocess\np = subprocess.Popen(['sleep', '100'], start_new_session=True)")
    pids, ref = processes(sh), weakref.ref(sh)
    del sh
    gc.collect()
    assert ref() is None and eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


# -- Interrupts

@pytest.mark.parametrize("home", others)
@pytest.mark.parametrize("code,kept_", [("while True: pass", True), ("import time; time.sleep(30)", True), ("import asyncio; await asyncio.sleep(30)", True), ("import threading; threading.Event().wait(30)", True),
    ("!sleep 30", True), ("nap(30)", True), ("await aecho(nap(30))", True), ("import re; re.match('(a+)+b', 'a'*40)", True), ("import asyncio; await asyncio.gather(*[asyncio.to_thread(nap, 3) for _ in range(3)])", True),
    ("while True: print(echo(1))", True), ("try: nap(30)\nfinally: x = 2", True)])
def test_interrupt_from_another_thread(kept, home, code, kept_):
    sh = kept(home, seconds=60)
    threading.Timer(.15, sh.interrupt).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as e: bounded(20, sh.run, "x = 1\nprint('begun')\n" + code)
    r = e.value.cell_result
    assert r.error.name == "KeyboardInterrupt" and r.stdout.startswith("begun\n") and time.monotonic() - start < 5
    assert sh.run("x").result in "12"

def test_an_interrupt_between_cells_is_forgotten(kept):
    sh = kept("process", seconds=60)
    sh.run("1")
    for _ in range(3): sh.interrupt()
    assert sh.run("import time; time.sleep(.3); 5").result == "5"

@pytest.mark.parametrize("home", others)
def test_hundreds_of_interrupts(make, home):
    "At random moments of cells that make calls: no deadlock, no mixture, and what is set stays"
    sh, rng, n = make(home, seconds=30), random.Random(3), 0
    sh.run("count = 0")
    code = "for i in range({k}): count = echo(count) + 0; await aecho(i) if i % 7 == 3 else print(i)\nprint('end {i}')"
    for i in range(150):
        timer = threading.Timer(rng.random()*.02, sh.interrupt)
        timer.start()
        try: r = bounded(20, sh.run, code.format(k=rng.choice([3, 30, 300]), i=i))
        except KeyboardInterrupt as e: r, n = e.cell_result, n + 1
        timer.join()
        assert r.stdout.endswith(f"end {i}\n") or r.error.name == "KeyboardInterrupt", (i, r)
        assert sh.run(f"count, {i}").result == f"(0, {i})" if i % 10 == 0 else True
    assert n > 20 and "count" in sh.variables()
    time.sleep(.05)
    assert sh.run("await aecho(echo(5))").result == "5"

SIGNALS = """
    import signal
    n = [0, 0]
    sh.run("x = 1")
    main = threading.main_thread().ident
    stop = threading.Event()
    def pester():
        import random
        rng = random.Random(5)
        while not stop.wait(.03*rng.random()): signal.pthread_kill(main, signal.SIGINT)
    t = threading.Thread(target=pester)
    bad, i, until = [], 0, time.monotonic() + {seconds}
    t.start()
    while time.monotonic() < until:
        try:
            i += 1
            r = sh.run(f"nap(.001)\\nfor k in range(500): y = k\\nprint('cell {{i}}')")
            n[0] += 1
            if r.stdout != f"cell {{i}}\\n" and not (r.error and "cell" not in r.stdout): bad.append((i, repr(r)))
        except KeyboardInterrupt as e:
            n[1] += 1
            r = getattr(e, "cell_result", None)
            if r and not f"cell {{i}}\\n".startswith(r.stdout): bad.append((i, repr(r))) # a second one kills at once
        except Exception as e: bad.append((i, repr(e)))
    while t.is_alive():
        try:
            stop.set()
            t.join()
        except KeyboardInterrupt: pass
    while True:
        try:
            time.sleep(.2)
            print(n[0] > 5, n[1] > 5, bad[:3], sh.run("print('last')").stdout.strip(), sh.run("context").text(), flush=True)
            break
        except KeyboardInterrupt: pass
    sh.close()
    """

@pytest.mark.parametrize("home", others)
@on_posix
def test_sigints_of_the_host(home):
    "At every moment of a request: it is passed on, and no later cell gets what belongs to an earlier one"
    told = output(script(host(home, SIGNALS, seconds=4)), 60)
    assert told.strip().splitlines()[-1] == "True True [] last ['abc']", told[-3000:]

@pytest.mark.parametrize("home", others)
@pytest.mark.parametrize("code", ["while True: pass", "nap(30)", "import asyncio; await asyncio.sleep(30)"])
@on_posix
def test_sigint_of_the_host(home, code):
    told = output(script(host(home, f"""
    threading.Timer(.8, os.kill, (os.getpid(), 2)).start()
    try: sh.run("x = 1\\nprint('begun')\\n" + {code!r})
    except KeyboardInterrupt as e: print("interrupted", e.cell_result.stdout.strip(), e.cell_result.error.name)
    print(sh.run("x").text())
    sh.close()
    """)))
    assert told == "interrupted begun KeyboardInterrupt\n1\n", told

def test_sigint_while_a_value_is_fetched():
    told = output(script(host("process", """
    sh.run("class A:\\n    def __repr__(self):\\n        import time; time.sleep(1); return 'A'\\na = A()")
    threading.Timer(.3, os.kill, (os.getpid(), 2)).start()
    try: print(sh.resolve("a"))
    except KeyboardInterrupt: print("interrupted")
    print(sh.run("1").text())
    sh.close()
    """)))
    assert told == "interrupted\n1\n", told

@pytest.mark.parametrize("home", others)
def test_arun(make, home):
    sh = make(home)
    async def main():
        ticks, out = 0, []
        async def tick():
            nonlocal ticks
            while True: ticks += 1; await asyncio.sleep(.01)
        ticker = asyncio.create_task(tick())
        r = await sh.arun("import time\ntime.sleep(.2)\nprint('hi')\nx = await aecho(1)")
        assert r.stdout == "hi\n" and ticks > 5
        rs = await asyncio.gather(*(sh.arun(f"print({i})") for i in range(8)))
        assert [r.stdout for r in rs] == [f"{i}\n" for i in range(8)]
        for wait in (0, 0, .001, .003, .02, .2):
            task = asyncio.create_task(sh.arun("print('begun', flush=True)\nkept = 1\nwhile True: pass"))
            await asyncio.sleep(0)
            if wait: await asyncio.sleep(wait)
            task.cancel()
            start = time.monotonic()
            with pytest.raises(asyncio.CancelledError) as e: await task
            assert time.monotonic() - start < 3
            if wait == .2: assert e.value.cell_result.stdout == "begun\n" and e.value.cell_result.error.name == "KeyboardInterrupt"
        assert (await sh.arun("kept, x")).result == "(1, 1)"
        ticker.cancel()
    asyncio.run(main())

@pytest.mark.parametrize("home", others)
def test_cancelling_one_that_waits_does_not_end_the_one_that_runs(make, home):
    sh = make(home)
    sh.run("1")
    async def main():
        a = asyncio.create_task(sh.arun("import time\nfor i in range(10): time.sleep(.05)\n'a done'"))
        await asyncio.sleep(.2)
        b = asyncio.create_task(sh.arun("b = 1"))
        await asyncio.sleep(.1)
        b.cancel()
        with pytest.raises(asyncio.CancelledError): await b
        return await a
    assert asyncio.run(main()).result == "'a done'" and "b" not in sh.variables()


# -- Many at once

@pytest.mark.parametrize("home", others)
def test_sixteen_shells(home):
    "Their outputs and their calls never mix"
    def work(i):
        sh = new(home, context=f"context {i}", tools=[named("who", lambda x: f"{i}:{x}")])
        try:
            for n in range(12):
                r = sh.run(f"print('{i}.{n}'); import os; os.write(1, b'{i}.{n}\\n')\nv = who({n})\nv, context")
                assert r.stdout.split() == [f"{i}.{n}"]*2 and r.result == repr((f"{i}:{n}", f"context {i}")), r
                if n == 5: sh.run("import os\nos._exit(1)")
            return True
        finally: sh.close()
    with ThreadPoolExecutor(16) as ex: assert all(ex.map(work, range(16)))

def test_one_shell_many_threads(make):
    "They wait for each other"
    sh = make("process")
    with ThreadPoolExecutor(16) as ex: got = list(ex.map(lambda i: sh.run(f"print({i})\n{i}") if i % 3 else sh.variables(), range(60)))
    assert all(r == {} if not i % 3 else (r.stdout, r.result) == (f"{i}\n", str(i)) for i, r in enumerate(got))


# -- Limits

def test_limits_are_checked():
    for bad in (dict(seconds=0), dict(seconds=-1), dict(memory=None), dict(output=None), dict(memory="2"), dict(processes=True), dict(open_files=0)):
        with pytest.raises(InputError): ShellLimits(**bad)
    with pytest.raises(InputError): ShellLimits(seconds=float("nan"))
    with pytest.raises(InputError): prep_shell("a", shell_limits=ShellLimits())
    for bad in ("nowhere", "docker:", "docker", "", None, 5, "ssh:x"):
        with pytest.raises(InputError): prep_shell("a", shell=bad)

@pytest.mark.parametrize("home", others)
def test_limits_in_floating_point(make, home):
    "As people write them: `memory=2e9`"
    sh = make(home, memory=5e8, processes=40., file_size=1e7, open_files=100., output=1e5)
    assert bounded(20, sh.run, "1 + 1").result == "2"
    assert bounded(20, sh.run, "x = bytearray(2_000_000_000)").error

@pytest.mark.parametrize("home", others)
@on_linux
def test_limits(make, home):
    sh = make(home, memory=300_000_000, file_size=5_000_000, open_files=50, processes=20, output=10_000, seconds=10)
    sh.run("kept = 1")
    r = bounded(30, sh.run, "x = bytearray(1_000_000_000)")
    assert r.error.name in ("MemoryError", "ProcessDied")
    r = bounded(30, sh.run, "x = []\nwhile True: x.append(bytes(1_000_000))")
    assert r.error.name in ("MemoryError", "ProcessDied") and sh.run("kept").result == "1"
    r = sh.run("x = None\nimport tempfile\nwith tempfile.TemporaryFile() as f:\n    for i in range(20): f.write(b'x'*1_000_000)")
    assert r.error and r.error.name == "OSError"
    r = sh.run("import os\nfs = []\nfor i in range(100): fs.append(open(os.devnull))")
    assert r.error.name == "OSError" and "Too many open files" in r.error.value
    sh.run("for f in fs: f.close()")
    r = sh.run("print('x'*50_000)")
    assert len(r.stdout) < 10_100 and r.elided == 40_001
    if sh.guarantees().levels()["processes"] == "none" or not sh.worker.group.places and os.getuid() == 0: return
    r = bounded(30, sh.run, "import threading\nstop = threading.Event()\nfor i in range(60): threading.Thread(target=stop.wait).start()")
    assert r.error and "thread" in r.error.value, r
    sh.run("stop.set()")
    assert bounded(30, sh.run, "kept").result == "1"

def test_no_time_limit(make):
    sh = make("process", seconds=None)
    assert sh.run("import time\ntime.sleep(.2)\n1").result == "1"
    threading.Timer(.2, sh.interrupt).start()
    with pytest.raises(KeyboardInterrupt): bounded(10, sh.run, "while True: pass")
    assert "after  s" not in sh.run("import os\nos._exit(1)").text()


# -- Without a supervisor, and over pipes

@on_posix
def test_direct():
    "As on macOS and Windows: interrupts work, and a process that is killed takes the variables with it"
    sh = WorkerShell("process", ShellLimits(seconds=.5), direct=True)
    sh.protect(context=["\ud800", 1], echo=echo, aecho=aecho, nap=nap)
    assert sh.run("x = 1\ncontext, echo(2), await aecho(3)").result == "(['\\ud800', 1], 2, 3)" and sh.resolve("x") == 1 and sh.variables() == {"x": "int"}
    sh.protect(late=(1,), more=named("more", lambda: "more"))
    assert sh.run("late, more()").result == "((1,), 'more')" and sh.run("late = 2").restored == ("late",)
    assert (r := sh.run("print('a')\nwhile True: pass")).error.name == "TimeoutError" and r.stdout == "a\n" and sh.run("x").result == "1"
    assert sh.run("FINAL([x])").final == [1] and sh.run("import os\nos.write(1, b'out');").stdout == "out"
    r = bounded(30, sh.run, "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass")
    assert r.error.name == "TimeoutError" and "lost: x" in r.error.value
    assert sh.run("context, late, more(), echo(1)").result == "(['\\ud800', 1], (1,), 'more', 1)" and sh.variables() == {}
    assert bounded(30, sh.run, "x = 1\nimport os\nos._exit(1)").error.name == "ProcessDied"
    threading.Timer(.2, sh.interrupt).start()
    with pytest.raises(KeyboardInterrupt): sh.run("nap(30)")
    assert sh.run("x = 5").error is None
    levels = sh.guarantees().levels()
    assert levels["kill"] == "enforced" and "lost" in sh.guarantees().kill[1]
    pids = processes(sh)
    sh.close()
    if linux: assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))

DOCKER = """#!/bin/sh
[ "$1" = run ] || exit 0
echo "$@" >> {log}
while [ "$1" != image ]; do shift; done
exec {python} -I -c "$4" {package} stdio "$7" ""
"""

@pytest.fixture
def docker(tmp_path, monkeypatch):
    "An engine whose containers are processes"
    path = tmp_path/"docker"
    path.write_text(DOCKER.format(log=tmp_path/"log", python=sys.executable, package=launch.package_folder()))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    yield tmp_path/"log"

@on_linux
def test_a_container_engine(docker, make):
    "The worker over its standard streams"
    text = "\ud83d\ude00\r\n"*500_000
    sh = make("docker:image", context={"t": text, 1: b"\xff"}, seconds=1)
    sh.protect(text=text)
    assert sh.run("x = echo(1)\nlen(context['t']), context[1], text == context['t'], await aecho(2)").result == "(2000000, b'\\xff', True, 2)".replace("2000000", str(len(text)))
    assert sh.resolve("text") == text
    assert sh.run("print(5)\nimport os\nos.write(1, b'6')\n!echo 7").stdout == "5\n7\n6"
    assert sh.run("import sys\nsys.__stdout__.write('x'); sys.__stdout__.flush();").error is None
    r = sh.run("import os\nos._exit(1)")
    assert "as they were before" in r.error.value and sh.run("x").result == "1"
    assert sh.run("while True: pass").error.name == "TimeoutError"
    end(sh)
    r = bounded(20, sh.run, "1")
    assert r.error or r.stderr
    assert bounded(20, sh.run, "len(text), echo(3)").result == f"({len(text)}, 3)"
    words = docker.read_text()
    assert "--network=none" in words and "--cap-drop=ALL" in words and "--read-only" in words and "--memory=" in words
    pids = processes(sh)
    sh.close()
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))

@on_linux
def test_an_engine_that_fails(docker, make):
    script_ = docker.parent/"docker"
    script_.write_text("#!/bin/sh\necho 'permission denied' >&2\nexit 1\n")
    with pytest.raises(SandboxUnavailable, match="permission denied"): prep_shell("a", shell="docker:image")
    script_.write_text("#!/bin/sh\n[ $1 = run ] || exit 0\necho 'Unable to find image' >&2\nexit 125\n")
    with pytest.raises(ShellError, match="Unable to find image") as e: bounded(30, make("docker:image").run, "1")
    assert "docker:image" in str(e.value)

def test_a_home_that_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for home, has in (("docker:x", "not installed"), ("podman:x", "not installed"), ("sandbox", "bubblewrap" if linux else "Linux")):
        with pytest.raises(SandboxUnavailable, match=has): prep_shell("a", shell=home)
    assert launch.strongest() == "process"

# -- A worker that does not keep to the rules

FAKE = r"""
import json, os, signal, socket, struct, sys, threading, time
s = socket.socket(fileno=int(sys.argv[1]))
def get(n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more: os._exit(0)
        data += more
    return data
def receive():
    kind, head, blob = struct.unpack("!cII", get(9))
    return kind, json.loads(get(head).decode("utf-8", "surrogatepass")), get(blob)
def wait():
    while True: get(1)
def P(v):
    if isinstance(v, list): return [P(o) for o in v]
    return dict(o={k: P(o) for k, o in v.items()}) if isinstance(v, dict) else v
def raw(kind, head, blob=b"", n=None): s.sendall(struct.pack("!cII", kind, len(head) if n is None else n, len(blob)) + head + blob)
def send(kind, m, blob=b""): raw(kind, json.dumps(P(m)).encode(), blob)
def done(asked={}, **kw): send(b"l", dict(op="done", cells=1, stdout="", stderr="", result=None, error=None, elided=0, restored=[], names=[], ended=False, displays=[], final=None, **{k: v for k, v in asked.items() if k in ("id", "n")}) | kw)
def value(asked={}, **kw): send(b"l", dict(op="value", cells=1, value=1, **{k: v for k, v in asked.items() if k in ("id", "n")}) | kw)
def rest():
    while True:
        kind, m, blob = receive()
        if kind == b"l" and m["o"]["op"] == "run": done(m["o"])
"""
START = """
while receive()[1]["o"]["op"] != "start": pass
send(b"z", dict(op="ready"))
kind, m, _ = receive()
m = m["o"]
"""
forged = dict(
    nothing="wait()", ends="os._exit(3)", garbage="s.sendall(b'hello, this is no frame')\nwait()", half="s.sendall(b'l\\x00\\x00')\nwait()", huge_head="raw(b'l', b'', n=2**31)\nwait()",
    huge_blob="s.sendall(struct.pack('!cII', b'l', 10, 2**32-1))\nwait()", not_json="raw(b'l', b'{')\nwait()", deep="raw(b'l', b'['*8_000_000)\nwait()", deep_objects="raw(b'l', b'{\"o\":'*500_000)\nwait()",
    deep_value="raw(b'l', b'[['*400 + b']]'*400)\nwait()", two_tags="raw(b'l', b'{\"o\": {}, \"d\": []}')\nwait()", no_tag="raw(b'l', b'{}')\nwait()", a_list="raw(b'l', b'[1]')\nwait()",
    a_number="raw(b'l', b'5')\nwait()", no_op="send(b'l', {})\nwait()", unknown_op="send(b'l', dict(op='format'))\nwait()", odd_op="send(b'l', dict(op=[1]))\nwait()", long_op="send(b'l', dict(op='x'*10**6))\nwait()",
    outside="raw(b'l', b'{\"o\": {\"op\": \"done\", \"stdout\": {\"str\": [0, 50]}}}', b'abc')\nwait()", bad_utf8="raw(b'l', b'\\xff\\xfe')\nwait()", huge_int="raw(b'l', b'9'*1_000_000)\nwait()",
    nan="raw(b'l', b'{\"o\": {\"op\": NaN}}')\nwait()", odd_tag="raw(b'l', b'{\"object\": \"os.system\"}')\nwait()", snapshot="send(b's', dict(pid=1, cells=1))\nwait()",
    reply="send(b'l', dict(op='reply', id=[0, 0], value=1))\nwait()", value_for_done="value(m)\nrest()", done_without="send(b'l', dict(op='done', id=m.get('id'), n=m.get('n')))\nwait()",
    output_unasked="for i in range(100): send(b'l', dict(op='output', id=m['id'], parts=[['stdout', 'x']]))\ndone(m)\nrest()", output_empty="for i in range(5000): send(b'l', dict(op='output', id=m['id'], parts=[]))\ndone(m)\nrest()",
    output_flood="for i in range(300): send(b'l', dict(op='output', id=m['id'], parts=[['stdout', 'x'*10**5]]))\ndone(m)\nrest()", output_odd="send(b'l', dict(op='output', id=m['id'], parts=[['stdin', 'x'], [['stdout'], 5], 3]))\nwait()", output_none="send(b'l', dict(op='output'))\nwait()",
    kept_int="done(m, kept=5)\nrest()", kept_name="done(m, kept='context')\nrest()", kept_long="done(m, kept='_result_' + '9'*10**6)\nrest()", kept_lines="done(m, kept='_result_1\\n')\nrest()", kept="done(m, kept='_result_999999999', kept_chars=9)\nrest()",
    kept_chars_none="done(m, kept='_result_1')\nrest()", kept_chars_text="done(m, kept='_result_1', kept_chars='9')\nrest()", kept_chars_huge="done(m, kept='_result_1', kept_chars=10**5000)\nrest()",
    names_of_other_types="done(m, names=5)\nrest()", cells_list="done(m, cells=[1])\nrest()", cells_text="done(m, cells='5')\nrest()", cells_huge="done(m, cells=2**62)\nrest()", error_int="done(m, error=5)\nrest()",
    error_two="done(m, error=['a', 'b'])\nrest()", error_types="done(m, error=[1, 2, 3])\nrest()", error_empty="done(m, error='')\nrest()", stdout_list="done(m, stdout=['a'])\nrest()", stdout_none="done(m, stdout=None)\nrest()", displays_int="done(m, displays=5)\nrest()",
    displays_odd="done(m, displays=[dict(data=5)])\nrest()", displays_meta="done(m, displays=[dict(data={}, metadata='abc')])\nrest()", displays_meta_list="done(m, displays=[dict(data={}, metadata=[1])])\nrest()", displays_list="done(m, displays=[[1]])\nrest()",
    displays_many="done(m, displays=[dict(data={'text/plain': 'x'})]*50_000)\nrest()", displays_at="done(m, displays=[dict(data={'text/plain': 'x'}, at=-5)])\nrest()", restored="done(m, restored=[1])\nrest()", restored_many="done(m, restored=['x'*1000]*100_000)\nrest()",
    elided="done(m, elided=-1)\nrest()", result_int="done(m, result=5)\nrest()", big_output="raw(b'l', json.dumps(P(dict(op='done', id=m.get('id'), n=m.get('n'), cells=1, stderr='', result=None, error=None, elided=0, restored=[], names=[], ended=False, displays=[], final=None))).encode()[:-2] + b', \"stdout\": {\"str\": [0, 90000000]}}}', b'x'*90_000_000)\nrest()",
    ended_text="done(m, ended='yes', final=dict(a=1))\nrest()", twice="done(m)\ndone(m)\nrest()", before="for i in range(5): done(m, stdout='early')\nrest()",
    flood="for i in range(3000): done(m, stdout='flood '*100)\nrest()", flood_big="b = b'x'*50_000_000\nh = json.dumps(P(dict(op='done', id=m.get('id'), n=m.get('n'), cells=1, stdout='', stderr='', result=None, error=None, elided=0, restored=[], names=[], ended=False, displays=[], final=None))).encode()[:-2] + b', \"x\": {\"bytes\": [0, 50000000]}}}'\nfor i in range(60): raw(b'l', h, b)\nrest()",
    calls_unknown="send(b'l', dict(op='call', id=[0, 1], name='rm', args=[], kwargs={}))\ndone(m)\nrest()", calls_odd="send(b'l', dict(op='call', id=[0, 1], name=5, args=[], kwargs={}))\nwait()",
    calls_noid="for i in range(300): send(b'l', dict(op='call', name='echo', args=[1], kwargs={}))\ndone(m)\nrest()", calls_deep_id="d = []\nfor _ in range(150): d = [d]\nfor i in range(300): send(b'l', dict(op='call', id=d, name='echo', args=[1], kwargs={}))\ndone(m)\nrest()",
    calls_many="for i in range(30_000): send(b'l', dict(op='call', id=[0, i], name='nap', args=[.2], kwargs={}))\nwait()", calls_args="send(b'l', dict(op='call', id=[0, 1], name='echo', args={}, kwargs=[]))\nwait()",
    calls_wrong="send(b'l', dict(op='call', id=[0, 1], name='echo', args=[1, 2, 3], kwargs=dict(a=1)))\ndone(m)\nrest()", died="send(b'z', dict(op='died', status=9, cells=1, sizes=[0, 0, 0]))\nrest()", died_odd="send(b'z', dict(op='died', status='x', cells=[], sizes=5))\nrest()",
    died_sizes="send(b'z', dict(op='died', status=-1, cells=None, sizes=[10**9, -5]), b'abc')\nrest()", died_flood="for i in range(5000): send(b'z', dict(op='died', status=9, cells=0, sizes=[]), b'x'*1000)\nrest()", failed="send(b'z', dict(op='failed', error='x'*10**6))\nwait()",
    failed_odd="send(b'z', dict(op='failed'))\nwait()", ready_again="for i in range(100): send(b'z', dict(op='ready'))\ndone(m)\nrest()", probed="send(b'z', dict(op='probed', found='{'))\ndone(m)\nrest()", probed_flood="for i in range(5000): send(b'z', dict(op='probed', found='x'*1000))\ndone(m)\nrest()",
    deaf="s.shutdown(socket.SHUT_RD)\ntime.sleep(100)", mute="s.shutdown(socket.SHUT_WR)\nwait()", both_closed="s.close()\ntime.sleep(100)", stubborn="signal.signal(signal.SIGTERM, signal.SIG_IGN)\ns.close()\nwhile True: pass")

@pytest.fixture
def fake(monkeypatch):
    "A shell whose worker runs a script of ours"
    made = []
    def f(code, home="process", **limits):
        monkeypatch.setattr(sandbox, "python_command", lambda channel, mode, *a, **kw: [sys.executable, "-I", "-S", "-c", FAKE + code, channel])
        sh = WorkerShell(home, ShellLimits(**{"seconds": .5, **limits}))
        sh.protect(context="abc", echo=echo, nap=nap)
        made.append(sh)
        return sh
    yield f
    for sh in made: bounded(20, sh.close)

def rss(): return int(Path("/proc/self/statm").read_text().split()[1])*4096 if linux else 0

@pytest.mark.parametrize("what", forged)
@on_linux
def test_forged(fake, what, monkeypatch):
    "Each is answered with a result or a `ShellError`, in bounded time and memory, and the shell can be used again"
    sh, before, peak, stop = fake(START + forged[what], seconds=.3), rss(), [0], threading.Event()
    def watch():
        while not stop.wait(.01): peak[0] = max(peak[0], rss())
    threading.Thread(target=watch, daemon=True).start()
    start = time.monotonic()
    try:
        try: r = bounded(30, sh.run, "print(1)")
        except ShellError as e: assert len(str(e)) < 3000
        else:
            assert isinstance(r, CellResult) and all(isinstance(o, str) for o in (r.stdout, r.stderr)) and isinstance(r.result, str | None)
            assert len(r.stdout) <= 2_000_000 and len(r.stderr) <= 2_000_000 and len(r.displays) <= 200
            assert len(r.text(1000)) <= 1000 and len(repr(r)) < 100_000 and len(r._repr_html_()) < 10_000_000
            assert r.error is None or isinstance(r.error.name, str)
        time.sleep(.2)
        silent = what in ("nothing", "half", "stubborn", "deaf", "calls_many")
        for f in () if silent else (sh.variables, lambda: sh.run("3")):
            try: bounded(30, f)
            except RLMError: pass
            except Exception as e: assert type(e).__module__ in ("rlm.worker", "rlm.channel") or isinstance(e, (NameError, RuntimeError)), repr(e)
    finally: stop.set()
    assert time.monotonic() - start < 45 and peak[0] - before < 700_000_000, (time.monotonic() - start, peak[0] - before)
    monkeypatch.undo()
    end(sh) if sh.worker and sh.worker.popen else None
    eventually(lambda: sh.worker is None or not sh.worker.inbox.empty())
    with suppress(ShellError): bounded(30, sh.run, "0")
    for _ in range(3):
        if (r := bounded(30, sh.run, "echo(1)")).result == "1": break
    assert r.result == "1", r

forged_values = ["value=dict(a=[1])", "error=5", "error=['A']", "error=[]", "error=['KeyboardInterrupt', 'x']", "error=['SystemExit', 'x']", "error=['A\\x00', 'x']", "error=['StopIteration', 'x'*10**6]", "cells='a'", "cells=[1]",
    "error=['\\ud800', 'x']", "error={}", "error=[None, None]", "error=['__import__', 'x']"]

@pytest.mark.parametrize("what", forged_values)
@on_linux
def test_forged_values(fake, what):
    sh = fake(START + f"while True:\n    value(m, {what})\n    kind, m, _ = receive()\n    m = m['o']")
    for f in (sh.variables, lambda: sh.resolve("x")):
        try: bounded(30, f)
        except Exception as e: assert isinstance(e, (RLMError, RuntimeError, NameError, StopIteration)) and len(str(e)) < 20_000, repr(e)
    for _ in range(2):
        with suppress(ShellError): assert isinstance(bounded(30, sh.run, "1"), CellResult)

@pytest.mark.parametrize("code", ["os._exit(3)", "sys.stderr.write('why not'); sys.exit(1)", "1/0", "raw(b'z', b'{}')\nwait()", "send(b'l', dict(op='ready'))\nwait()", "send(b'z', dict(op='failed', error='it failed'))\nwait()"])
@on_linux
def test_a_worker_that_does_not_start(fake, code):
    sh = fake(code)
    for _ in range(2):
        with pytest.raises(ShellError) as e: bounded(30, sh.run, "1")
        assert "could not be started" in str(e.value) and len(str(e.value)) < 2000
    if "why not" in code: assert "why not" in str(e.value) and "1" in str(e.value)

@pytest.mark.parametrize("seed", range(3))
@on_linux
def test_random_bytes(fake, seed):
    "Frames with bytes changed at random"
    code = f"""
import random
rng = random.Random({seed})
for i in range(40):
    head = bytearray(json.dumps(P(dict(op="done", id=m.get("id"), n=m.get("n"), cells=1, stdout="a", stderr="", result=None, error=None, elided=0, restored=[], names=["x"], ended=False, displays=[], final=None))).encode())
    for _ in range(rng.randrange(1, 4)): head[rng.randrange(len(head))] = rng.choice(b'{{}}[]",:0123456789-eE.truefalsn\\x00\\xff')
    raw(b"l", bytes(head))
    kind, m, _ = receive()
    while kind != b"l": kind, m, _ = receive()
    m = m["o"]
"""
    sh = fake(START + code, seconds=.2)
    for i in range(12):
        try: assert isinstance(bounded(30, sh.run, "1"), CellResult)
        except ShellError: pass

def test_codec_fuzz():
    "What is packed is unpacked; what is not, is refused with one kind of error"
    rng = random.Random(1)
    def any_(depth=0):
        kinds = [lambda: rng.randrange(-2**70, 2**70), rng.random, lambda: "".join(chr(rng.choice([0, 65, 0xd83d, 0xde00, 0x1F600, 0x2028])) for _ in range(rng.choice([0, 3, 2000]))), lambda: None, lambda: bytes(rng.randrange(50)),
            lambda: rng.random() < .5, lambda: Decimal(rng.randrange(99)), lambda: timedelta(rng.randrange(9))]
        if depth < 4: kinds += [lambda: [any_(depth+1) for _ in range(rng.randrange(4))], lambda: {rng.choice(["a", "o", "str", 1, None, (1, 2)]): any_(depth+1) for _ in range(rng.randrange(4))}, lambda: tuple(any_(depth+1) for _ in range(2))]
        return rng.choice(kinds)()
    for _ in range(500):
        head, blob = to_frame(LIVE, message := dict(op="x", value=any_()))
        assert repr(unpack(head[9:], blob)) == repr(message)
        bad = bytearray(head[9:])
        for _ in range(3): bad[rng.randrange(len(bad))] = rng.randrange(256)
        with suppress(ProtocolError): unpack(bad, blob)
    for n in range(200):
        with suppress(ProtocolError): check_prefix(bytes(rng.randrange(256) for _ in range(9)))


# -- Whole runs

@pytest.mark.parametrize("home", homes)
def test_runs(home):
    kw = {} if home == "inprocess" else dict(shell_limits=ShellLimits(seconds=5))
    t = run("Which?", "alpha\nbeta", ScriptedLM([tool_call("import os\nx = llm_query('q')\nprint(x)"), "sub", tool_call("FINAL_VAR('x')")]), shell=home, **kw)
    assert (t.answer, t.how, t.status) == ("sub", "code", "done") and t.run.shell == home if hasattr(t, "run") else True
    t = run("Which?", {"a": ["\ud800"]}, ScriptedLM([tool_call("total = [context, echo(1)]"), "FINAL(total)"]), tools=[echo], shell=home, **kw)
    assert t.answer == [{"a": ["\ud800"]}, 1]
    t = asyncio.run(arun("Which?", "alpha", ScriptedLM([tool_call("1/0"), tool_call("FINAL(await aecho(len(context)))")]), tools=[aecho], shell=home, **kw))
    assert t.answer == 5 and "ZeroDivisionError" in t.trajectory.cells[0].output
    assert "beta" in str(run("Which city is the capital of Beta?", "The capital of Alpha is Ax.\nThe capital of Beta is beta city.", "offline/extractive", shell=home, **kw).answer).lower()

@pytest.mark.parametrize("home", others)
@on_linux
def test_a_run_whose_cells_die(home):
    codes = ["x = 1", "import os; os._exit(1)", "while True: pass", "FINAL(x)"]
    t = run("Which?", "alpha", ScriptedLM([tool_call(c) for c in codes]), shell=home, shell_limits=ShellLimits(seconds=.5))
    assert t.answer == 1 and "ProcessDied" in t.trajectory.cells[1].output and "TimeoutError" in t.trajectory.cells[2].output

@pytest.mark.parametrize("home", homes)
def test_advanced_toolloop(make, home):
    "As it is in the first notebook, with another shell"
    sh = make(home, context="alpha", model=ScriptedLM([tool_call("x = len(context)"), tool_call("FINAL_VAR('x')")]))
    *_, last = advanced_toolloop("How long?", "You are a model.", [make_run_repl(sh)], sh)
    assert last["type"] == "final" and last["answer"] == 5
    said = make_run_repl(sh)("print(x)\n1/0")
    assert "5" in said and "ZeroDivisionError" in said and isinstance(said.cell, CellResult)

def test_auto():
    sh = prep_shell("abc", shell="auto")
    assert sh.home == ("process" if no_sandbox else "sandbox") and sh.run("context").result == "'abc'"
    sh.close()

@pytest.mark.parametrize("code,looks", [("x", True), ("print(x[0], len(y))", True), ("f'{x}'", True), ("x + 1\n-y", True), ("", True), ("x = 1", False), ("f()", False), ("x.pop()", False), ("print(*f())", False), ("print(x, file=g)", False),
    ("[a for a in b]", False), ("x := 1", False), ("(x := 1)", False), ("%who", False), ("!ls", False), ("await x", False), ("x.y", False), ("lambda: 1", False), ("(", False), ("\x00", False)])
def test_only_looks(code, looks): assert only_looks(code) is looks


# -- Other systems

def what_every_system_has(home="process"):
    "A context that arrives exactly, calls, a time limit, and words on what was lost"
    sh = prep_shell("é\r\n\ud800"*1000, ScriptedLM(lambda *a, **kw: "a reply"), tools=[echo], shell=home,
                    shell_limits=ShellLimits(seconds=2))
    try:
        r = sh.run("x = 1\nprint(len(context), context[:4] == 'é\\r\\n\\ud800', echo(2), llm_query('?'))")
        assert (r.stdout, r.error) == ("4000 True 2 a reply\n", None)
        assert sh.run("while True: pass").error.name == "TimeoutError"
        died = sh.run("import os\nos._exit(1)").error
        assert died.name == "ProcessDied" and sh.run("echo(3)").result == "3"
        return died.value, sh.guarantees()
    finally: sh.close()

@on_posix
@pytest.mark.parametrize("home", others)
def test_a_python_that_was_named_from_here(monkeypatch, home, tmp_path):
    "The way to it, `../.venv/bin/python`, leads through a folder that the sandbox does not have"
    here,plain = tmp_path/os.path.relpath(sys.executable, tmp_path),os.path.dirname(sys.executable)
    monkeypatch.setattr(sys, "executable", str(here))
    sh = WorkerShell(home)
    try: assert sh.run("import os; os.environ['PATH'].split(':')[0]").result == repr(plain)
    finally: sh.close()

@pytest.mark.skipif(sys.platform != "darwin", reason="tells what macOS does not have")
def test_macos():
    said, known = what_every_system_has()
    assert "are lost: x" in said and known.kill[0] == "enforced" and "lost" in known.kill[1] and known.network[0] == "none"
    assert launch.strongest() == "process"
    with pytest.raises(SandboxUnavailable, match="needs Linux"): prep_shell("", shell="sandbox")

@pytest.mark.skipif(os.name != "nt", reason="tells what Windows does not have")
def test_windows():
    said, known = what_every_system_has()
    assert "are lost" in said and known.kill[0] == "enforced" and known.memory[0] == "none"
    with pytest.raises(SandboxUnavailable, match="needs Linux"): prep_shell("", shell="sandbox")

@on_linux
def test_linux():
    said, known = what_every_system_has()
    assert "as they were before" in said and "survive" in known.kill[1]
