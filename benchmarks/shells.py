"What it costs to run cells in another process, or in a sandbox; on Linux."
import socket, subprocess, sys, tempfile, time
from contextlib import closing, contextmanager

from benchmarks.measure import LINE, MODEL, Row, interleaved, model_server, ms, seconds
from rlm.launch import problem
from rlm.lm import LM
from rlm.model import run
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
with mmap.mmap(int(sys.argv[2]), 0, access=mmap.ACCESS_READ) as m: text = str(m, "utf-8", "surrogatepass")
s.send(str(len(text)).encode())"""

THREADS = """from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(len(prompts)) as pool: replies = list(pool.map(llm_query, prompts))
FINAL(replies)"""
ASKED = {"llm_query_batched": "FINAL(llm_query_batched(prompts))", "llm_query in threads": THREADS,
         "allm_query, gathered": "import asyncio\nFINAL(await asyncio.gather(*map(allm_query, prompts)))"}


def workers():
    "The kinds of shells there are in which cells run elsewhere"
    return ["process"] + ["sandbox"]*(problem("sandbox") is None)


@contextmanager
def child(program, *fds):
    "A socket to a bare Python process that runs `program`"
    ours,theirs = socket.socketpair()
    fds = [theirs.fileno(), *fds]
    p = subprocess.Popen([sys.executable, "-I", "-c", program, *map(str, fds)], pass_fds=fds)
    theirs.close()
    with ours: yield ours
    p.wait(10)


def cell_rows(rounds):
    "A cell that shows something and one that sets something, at once and after pauses such as a model makes"
    where = {o: prep_shell("", shell=o) for o in ("inprocess", *workers())}
    for sh in where.values(): sh.run("x = 1")
    def paused(f, pause, n):
        def one():
            time.sleep(pause)
            return seconds(f)
        return lambda: [one() for _ in range(n)]
    with child(ECHO) as s, s.makefile("rw") as f:
        def echo():
            f.write('{"op": "run", "code": "1+1"}\n')
            f.flush()
            assert f.readline()
        for pause,when,n in ((0, "at once", 20), (.02, "20 ms later", 8)):
            for code in ("1+1", "x = 1"):
                cells = [paused(lambda sh=sh: sh.run(code), pause, n) for sh in where.values()]
                *ours,floor = map(ms, interleaved(rounds, *cells, paused(echo, pause, n)))
                for home,o in zip(where, ours):
                    target = None if home == "inprocess" else 1
                    yield Row(f"{code}, {when}, {home}", o, floor, compare="value", target=target)
    for sh in where.values(): sh.close()


def start_rows(rounds):
    "A run of one step, whose worker starts while the model is asked"
    def one(url, home): assert run("What is x?", "abc"*300, MODEL, base_url=url, shell=home).answer == "done"
    homes = ["inprocess", *workers()]
    with model_server(tool_call("FINAL('done')"), .3) as url:
        for o in homes: one(url, o)
        floor,*ours = map(ms, interleaved(rounds, *(lambda o=o: seconds(one, url, o) for o in homes)))
    return [Row(f"run of one step of 300 ms, {o}, over inprocess", a, floor, target=1.05)
            for o,a in zip(homes[1:], ours)]


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
        for i in range(0, len(text), MB): f.write(text[i:i+MB].encode("utf-8", "surrogatepass"))
        f.flush()
        s.send(b"read it")
        assert int(s.recv(20)) == len(text)
        return time.perf_counter() - start


def peak_growth(f, *args):
    "By how many MB the memory of this process grows at most during a call"
    def peak():
        with open("/proc/self/status") as s: return next(int(o.split()[1]) for o in s if o.startswith("VmHWM"))*1024/MB
    with open("/proc/self/clear_refs", "w") as s: s.write("5") # from now on, the peak is that of now
    before = peak()
    f(*args)
    return peak() - before


def context_rows(rounds, text):
    "A long context, until the first cell has seen it"
    for home in workers():
        grown = [peak_growth(first_cell, text, home)]
        yield Row(f"growth of the host's peak memory by 500 MB, {home}", grown, unit="MB", compare="value", target=40)
    def more(home): return lambda: first_cell(text, home) - first_cell("", home)
    floor,*ours = map(ms, interleaved(rounds, lambda: mapped(text), *map(more, workers())))
    for home,o in zip(workers(), ours):
        yield Row(f"500 MB to the first cell, {home}, over file and mmap", o, floor, target=1.5)


def killed(sh):
    "Seconds from the death of a cell's process to the answer of the next cell"
    sh.run("import os\nx = 1")
    time.sleep(.1) # as a model would
    start = time.perf_counter()
    assert sh.run("os.kill(os.getpid(), 9)").error.name == "ProcessDied"
    assert sh.run("x").result == "1"
    return time.perf_counter() - start


def received(sh, code):
    "MB that a cell sends to the host"
    channel,sizes = sh.worker.channel,[]
    def receive(receive=channel.receive):
        kind,head,blob = receive()
        sizes.append(len(head) + len(blob))
        return kind,head,blob
    channel.receive = receive
    sh.run("1") # a thread is waiting in the old one
    sizes.clear()
    sh.run(code)
    return sum(sizes)/MB


def large_rows(rounds, text):
    "Killed cells, without and with a long context, and a long print"
    for home in workers():
        with closing(prep_shell("", shell=home)) as small, closing(prep_shell(text, shell=home)) as large:
            a,b = map(ms, interleaved(rounds, lambda: killed(small), lambda: killed(large)))
            yield Row(f"killed to ready, {home}", a, compare="value", target=50)
            yield Row(f"killed to ready, {home} with 500 MB", b, compare="value", target=50)
            whole,empty = (lambda code=code: seconds(large.run, code) for code in ("print(context)", "print()"))
            a,b = map(ms, interleaved(rounds, whole, empty))
            yield Row(f"print of 500 MB, {home}, over print()", a, b, compare="over", target=20)
            crossed = [received(large, "print(context)")]
            yield Row(f"received by the host for it, {home}", crossed, unit="MB", compare="value", target=.05)


def call_rows(rounds):
    "Calls of `llm_query` and its like, many at once"
    def asked(sh, code): assert sh.run(code).final == CALLS*["ok"]
    homes = [workers()[-1], "inprocess"]
    with model_server("ok", .3) as url:
        where = [prep_shell("", LM(MODEL, base_url=url, max_concurrency=CALLS), shell=o) for o in homes]
        for sh in where: sh.run(f"prompts = [f'Question {{i}}' for i in range({CALLS})]")
        for what,code in ASKED.items():
            for sh in where: asked(sh, code)
            a,b = map(ms, interleaved(rounds, *(lambda sh=sh: seconds(asked, sh, code) for sh in where)))
            yield Row(f"{CALLS} × {what}, {homes[0]}, over inprocess", a, b, target=1.1)
        for sh in where: sh.close()


def rows(rounds=4):
    "Cells, starts, long contexts, deaths, long prints and many calls"
    if sys.platform != "linux": return []
    text = LINE*(500*MB//len(LINE))
    res = [*cell_rows(2*rounds), *start_rows(2*rounds), *context_rows(rounds, text)]
    return res + [*large_rows(rounds, text), *call_rows(rounds)]
