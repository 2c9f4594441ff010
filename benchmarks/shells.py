"What it costs to run cells in another process, or in a sandbox."
import os, socket, subprocess, sys, tempfile, time
from contextlib import closing, contextmanager

from benchmarks.measure import LINE, MODEL, Row, interleaved, model_server, ms, seconds
from rlm.core import run
from rlm.launch import problem, strongest
from rlm.lm import LM
from rlm.offline import tool_call
from rlm.tools import prep_shell

MB = 1_000_000
CALLS = 64
ECHO = """import json, socket, sys
f = socket.socket(fileno=int(sys.argv[1])).makefile("rw")
for line in f:
    f.write(json.dumps(json.loads(line)) + "\\n")
    f.flush()"""
MAP = """import mmap, socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
s.send(b"here")
s.recv(10)
with mmap.mmap(int(sys.argv[2]), 0, access=mmap.ACCESS_READ) as m: text = str(m, "utf-8")
s.send(b"%d" % len(text))"""
ASK = {"llm_query_batched": "FINAL(llm_query_batched(prompts))",
       "llm_query in threads": "from concurrent.futures import ThreadPoolExecutor\n"
                               "with ThreadPoolExecutor(len(prompts)) as p: replies = list(p.map(llm_query, prompts))\nFINAL(replies)",
       "gathered allm_query": "import asyncio\nFINAL(await asyncio.gather(*map(allm_query, prompts)))"}


def homes(): return ["process"] + ["sandbox"]*(problem("sandbox") is None)


@contextmanager
def child(program, *fds):
    "A socket to a Python process"
    ours,theirs = socket.socketpair()
    fds = [theirs.fileno(), *fds]
    p = subprocess.Popen([sys.executable, "-I", "-c", program, *map(str, fds)], pass_fds=fds)
    theirs.close()
    with ours: yield ours
    p.wait(10)


def cell_rows(rounds, n=8):
    "A cell that shows something and one that sets something, without and with the pauses that a model makes"
    def repeated(f, pause):
        def one():
            time.sleep(pause)
            return seconds(f)
        return lambda: [one() for _ in range(n)]
    line = '{"op":"run","code":"1+1"}\n'
    where = {o: prep_shell("", shell=o) for o in ("inprocess", *homes())}
    with child(ECHO) as s, s.makefile("rw") as f:
        def echo():
            f.write(line)
            f.flush()
            assert f.readline()
        for pause,when in ((0, "back to back"), (.02, "20 ms apart")):
            for code in ("1+1", "x = 1"):
                if pause == 0 and code != "1+1": continue # no model is that fast: the next cell waits for the snapshot
                cells = [repeated(lambda sh=sh: sh.run(code), pause) for sh in where.values()]
                *ours,floor = map(ms, interleaved(rounds, *cells, repeated(echo, pause)))
                for home,o in zip(where, ours):
                    target = None if home == "inprocess" else 1
                    yield Row(f"cell {code}, {when}, {home}, over an echoed line", o, floor, compare="value", target=target)
    for sh in where.values(): sh.close()


def start_rows(rounds):
    "A run of one step, whose worker starts while the model is asked"
    def one(url, home):
        t = run("What is x?", "abc"*300, MODEL, base_url=url, shell=home)
        assert t.answer == "done"
    with model_server(tool_call("FINAL('done')"), .3) as url:
        places = ["inprocess", *homes()]
        for o in places: one(url, o)
        floor,*ours = map(ms, interleaved(rounds, *(lambda o=o: seconds(one, url, o) for o in places)))
    return [Row(f"run of one step of 300 ms, {o}, over inprocess", a, floor, target=1.05) for o,a in zip(homes(), ours)]


def first_cell(context, home):
    "Seconds from a context to the answer of the first cell"
    start = time.perf_counter()
    with closing(prep_shell(context, shell=home)) as sh:
        assert sh.run("len(context)").result == str(len(context))
        return time.perf_counter() - start


def mapped(text):
    "Seconds in which a text gets into a bare Python process, by way of a file"
    with tempfile.TemporaryFile() as f, child(MAP, f.fileno()) as s:
        s.recv(10)
        start = time.perf_counter()
        for i in range(0, len(text), MB): f.write(text[i:i+MB].encode())
        f.flush()
        s.send(b"map")
        assert int(s.recv(20)) == len(text)
        return time.perf_counter() - start


def peak_growth(f, *args):
    "By how many MB the memory of this process grows at most during a call"
    def peak():
        with open("/proc/self/status") as s: return next(int(o.split()[1]) for o in s if o.startswith("VmHWM"))*1024/MB
    with open("/proc/self/clear_refs", "w") as s: s.write("5") # the peak is what there is now
    before = peak()
    f(*args)
    return peak() - before


def context_rows(rounds, text):
    "A long context, delivered"
    def delivered(home): return lambda: first_cell(text, home) - first_cell("", home)
    floor,*ours = map(ms, interleaved(rounds, lambda: mapped(text), *map(delivered, homes())))
    for home,o in zip(homes(), ours): yield Row(f"500 MB to the first cell, {home}, over a file and mmap", o, floor, target=1.5)
    for home in homes():
        grown = [peak_growth(first_cell, text, home)]
        yield Row(f"growth of the host's peak memory by it, {home}", grown, unit="MB", compare="value", target=40)


def shell_rows(rounds, text):
    "A killed cell, and a huge print"
    def killed(sh):
        sh.run("import os\nx = 1")
        time.sleep(.1) # as a model would
        start = time.perf_counter()
        assert sh.run("os.kill(os.getpid(), 9)").error.name == "ProcessDied"
        assert sh.run("x").result == "1"
        return time.perf_counter() - start
    for home in homes():
        with closing(prep_shell("", shell=home)) as small, closing(prep_shell(text, shell=home)) as large:
            a,b = map(ms, interleaved(rounds, lambda: killed(small), lambda: killed(large)))
            yield Row(f"killed to next answer, {home}", a, compare="value", target=50)
            yield Row(f"killed to next answer, 500 MB, {home}", b, compare="value", target=50)
            a,b = map(ms, interleaved(rounds, lambda: seconds(large.run, "print(context)"), lambda: seconds(large.run, "print()")))
            yield Row(f"print of 500 MB, {home}, over print()", a, b, compare="over", target=20)
            yield Row(f"received by the host for it, {home}", [received(large, "print(context)")/1000], unit="KB", compare="value")


def received(sh, code):
    "Bytes that a cell sends to the host"
    channel,sizes = sh.worker.channel,[]
    def receive(receive=channel.receive):
        frame = receive()
        sizes.append(9 + len(frame[1]) + len(frame[2]))
        return frame
    channel.receive = receive
    sh.run("1") # the thread is already waiting in the old one
    sizes.clear()
    sh.run(code)
    return sum(sizes)


def call_rows(rounds):
    "Calls to the host's functions, at once"
    def asked(sh, code):
        r = sh.run(code)
        assert r.final == CALLS*["ok"], r
    with model_server("ok", .3) as url:
        where = [prep_shell("", LM(MODEL, base_url=url, max_concurrency=CALLS), shell=o) for o in (strongest(), "inprocess")]
        for sh in where: sh.run(f"prompts = ['Question ' + str(i) for i in range({CALLS})]")
        for what,code in ASK.items():
            for sh in where: asked(sh, code)
            a,b = map(ms, interleaved(rounds, *(lambda sh=sh: seconds(asked, sh, code) for sh in where)))
            yield Row(f"{CALLS} calls of 300 ms, {what}, {where[0].home}, over inprocess", a, b, target=1.1)
        for sh in where: sh.close()


def rows(rounds=5):
    "Cells, the start, long contexts, kills, prints and calls; on Linux"
    if sys.platform != "linux": return []
    text = LINE*(500*MB//len(LINE))
    res = []
    for f,*args in ((cell_rows, 2*rounds), (start_rows, 2*rounds), (context_rows, rounds, text), (shell_rows, rounds, text), (call_rows, rounds)):
        t = time.perf_counter()
        res += f(*args)
        print(f.__name__, time.perf_counter()-t, file=sys.stderr)
    return res
