"""What code in a cell can do to the machine it runs on: attacks, each run in every home there is.

The process home is no security boundary, and the suite says so: what an attack gets there is what its row in
`attacks` promises, mostly success, which also proves that the attack works. In the sandbox none may succeed. Where a
limit cannot be enforced, `guarantees()` has to say that. The suite attacks nothing but what it lays out itself: files,
a process, listeners on loopback."""
import ctypes, io, json, os, platform, re, secrets, select, shutil, signal, socket, subprocess, sys, tempfile, threading, time
from concurrent.futures import Future
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest

import attacks as data
from attacks import attacks, table
from rlm import launch
from rlm.budget import Budget
from rlm.cell import clipped_repr
from rlm.events import Limits
from rlm.offline import ScriptedLM
from rlm.tools import prep_shell
from rlm.trajectory import Trajectory

here = Path(__file__).resolve().parent
linux = sys.platform == "linux"
image = os.environ.get("RLM_TEST_IMAGE")
homes = ["process", "sandbox", f"podman:{image}" if image else "podman"]
small = dict(memory=300_000_000, processes=32, file_size=10_000_000, open_files=64, output=100_000)
slack = 10. # seconds by which a cell may be over its limit: interrupts, then a kill, then another process
key = "canary-" + secrets.token_hex(16) # the host's secret


# -- What the host has to lose

bystander_code = """
import ctypes, os, sys
s = ctypes.create_string_buffer(os.environ["OPENAI_API_KEY"].encode())
f = open(os.environ["SECRET_FILE"], "rb")
print(ctypes.addressof(s), f.fileno(), flush=True)
sys.stdin.read()
"""

def libc(name, *args): return getattr(ctypes.CDLL(None, use_errno=True), name)(*args)

class World:
    "Files, listeners and a process, for code in cells to attack"
    def __init__(self, folder):
        self.folder, self.mark = folder, f"rlm-attack-{secrets.token_hex(4)}"
        self.victim, self.secret, self.marker = folder/"victim", folder/"secret", folder/"marker"
        self.secret.write_text(key)
        self.home = self._home()
        self.tcp, self.udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.setblocking(False)
        self.unix = self._unix(str(folder/"socket"))
        self.abstract = self._unix("\0" + self.mark) if linux else None
        self.vsock, self.key, self.shm, self.tty, self.bystander = self._vsock(), self._key(), self._shm(), self._tty(), None
        self.log = open(folder/"log", "wb") # a descriptor that is left open to children, by mistake
        os.set_inheritable(self.log.fileno(), True)
        self.reset()

    def _home(self):
        with suppress(OSError):
            fd, path = tempfile.mkstemp(prefix=".rlm-attack-", dir=Path.home())
            os.write(fd, key.encode())
            os.close(fd)
            return path

    def _unix(self, path):
        s = socket.socket(socket.AF_UNIX)
        s.bind(path)
        s.listen()
        return s

    def _vsock(self):
        "A listener on this machine's own vsock, where that has a loopback"
        if not hasattr(socket, "AF_VSOCK"): return
        with suppress(OSError):
            s = socket.socket(socket.AF_VSOCK)
            try:
                s.bind((0xffffffff, 0xffffffff))
                s.listen()
                with socket.socket(socket.AF_VSOCK) as probe:
                    probe.settimeout(.3)
                    probe.connect((1, s.getsockname()[1]))
                s.accept()[0].close()
                return s
            except OSError: s.close()

    def _keyctl(self, name, *args):
        n = dict(add_key=(248, 217), keyctl=(250, 219))[name][platform.machine() not in ("x86_64", "AMD64")]
        return libc("syscall", n, *args)

    def _key(self):
        if not linux: return
        n = self._keyctl("add_key", b"user", self.mark.encode(), key.encode(), len(key), -3)
        return n if n > 0 else None

    def _shm(self):
        if not linux: return
        n = libc("shmget", at := secrets.randbits(30) + 1, 64, 0o1600)
        if n == -1: return
        attach = ctypes.CDLL(None).shmat
        attach.restype, attach.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        address = attach(n, None, 0)
        ctypes.memmove(address, key.encode(), len(key))
        libc("shmdt", ctypes.c_void_p(address))
        return at, n

    def _tty(self):
        with suppress(ImportError, OSError):
            import pty
            return pty.openpty()

    def reset(self):
        "Lay everything out as it was"
        self.victim.write_text("untouched")
        self.victim.chmod(0o644)
        self.log.truncate(0)
        with suppress(OSError): self.marker.unlink()
        for s in filter(None, (self.tcp, self.unix, self.abstract, self.vsock)):
            while select.select([s], [], [], 0)[0]: s.accept()[0].close()
        with suppress(OSError):
            while True: self.udp.recv(1000)
        while self.tty and select.select([self.tty[0]], [], [], 0)[0]: os.read(self.tty[0], 1000)
        if self.bystander is None or self.bystander.poll() is not None: self._new_bystander()

    def _new_bystander(self):
        env = dict(os.environ, OPENAI_API_KEY=key, SECRET_FILE=str(self.secret))
        self.end_bystander()
        self.bystander = subprocess.Popen([sys.executable, "-S", "-c", bystander_code, self.mark], env=env, stdin=subprocess.PIPE,
                                          stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.address, self.held_fd = map(int, self.bystander.stdout.readline().split())

    def end_bystander(self):
        if self.bystander is None: return
        self.bystander.kill()
        self.bystander.wait()
        for f in (self.bystander.stdin, self.bystander.stdout): f.close()

    def damage(self) -> list:
        "What code has reached, in words"
        listeners = dict(tcp=self.tcp, udp=self.udp, unix=self.unix, abstract=self.abstract, vsock=self.vsock)
        found = [f"{k} was reached" for k, s in listeners.items() if s and select.select([s], [], [], 0)[0]]
        if self.tty and select.select([self.tty[0]], [], [], 0)[0]: found.append("the terminal was written to")
        try:
            if self.victim.read_text() != "untouched": found.append("the victim was written to")
            if self.victim.stat().st_mode & 0o777 != 0o644: found.append("the victim's mode was changed")
        except OSError as e: found.append(f"the victim is gone: {e}")
        if self.secret.read_text() != key: found.append("the secret was written to")
        if self.marker.exists(): found.append("code ran on the host")
        if (self.folder/"log").stat().st_size: found.append("the log was written to")
        if self.bystander.poll() is not None: found.append("the bystander was killed")
        if odd := {p.name for p in self.folder.iterdir()} - {"victim", "secret", "socket", "log"}: found.append(f"there are {odd}")
        return found

    def facts(self, home, way):
        "What an attacker is told"
        import rlm
        ns = {k: os.readlink(f"/proc/self/ns/{k}") for k in ("pid", "net", "ipc", "uts", "mnt", "user")} if linux else {}
        return dict(pid=os.getpid(), group=os.getpgrp(), bystander=self.bystander.pid, address=self.address, held_fd=self.held_fd,
            folder=str(self.folder), victim=str(self.victim), secret_file=str(self.secret), home_file=self.home, marker=str(self.marker),
            mark=self.mark, tests=str(here/"attacks.py"), folders=[str(self.folder), str(Path.home()), os.getcwd(),
                str(Path(rlm.__file__).parent), sys.prefix, sys.base_prefix],
            tcp=self.tcp.getsockname()[1], udp=self.udp.getsockname()[1], unix=str(self.folder/"socket"), abstract=self.mark,
            addresses=[], vsock=self.vsock and self.vsock.getsockname()[1], key=self.mark if self.key else None,
            shm=self.shm and self.shm[0], tty=self.tty and os.ttyname(self.tty[1]), ns=ns, way=way, home=home, **small)

    def close(self):
        self.end_bystander()
        for s in filter(None, (self.tcp, self.udp, self.unix, self.abstract, self.vsock, self.log)): s.close()
        if self.home: os.unlink(self.home)
        if self.key: self._keyctl("keyctl", 3, self.key) # revoke
        if self.shm: libc("shmctl", self.shm[1], 0, None) # remove
        for fd in self.tty or (): os.close(fd)

@pytest.fixture(scope="module")
def world():
    folder = Path(tempfile.mkdtemp(prefix="rlm-attacks-")).resolve()
    folder.chmod(0o755)
    before = os.environ.get("OPENAI_API_KEY")
    os.environ["OPENAI_API_KEY"] = key
    w = World(folder)
    yield w
    w.close()
    if before is None: del os.environ["OPENAI_API_KEY"]
    else: os.environ["OPENAI_API_KEY"] = before
    shutil.rmtree(folder)


# -- Shells, each with a model and two functions

calls = [] # of `echo`

def echo(x):
    "Give `x` back"
    calls.append(x)
    return x

def large(n: int) -> str:
    "A long text"
    return "x"*min(n, 20_000_000)

def pause(seconds: float) -> str:
    "Wait on the host"
    time.sleep(min(seconds, .25))
    return "done"

def new_shell(home, seconds=6., context="the context", model=None, **limits):
    sh = prep_shell(context, model or ScriptedLM(lambda *a, **kw: "a reply"), shell=home, tools=[echo, large, pause],
                    shell_limits=launch.ShellLimits(**{**small, "seconds": seconds, **limits}))
    if model is None: sh.sub.attach(Trajectory(), Budget(Limits(max_sub_calls=5)))
    return sh

def bounded(seconds, f, *args):
    "`f(*args)`, or a failure when the host waits for longer than that"
    done = Future()
    def go():
        try: done.set_result(f(*args))
        except BaseException as e: done.set_exception(e)
    threading.Thread(target=go, daemon=True).start()
    try: return done.result(seconds)
    except TimeoutError:
        if done.done(): raise
        pytest.fail(f"the host was still waiting after {seconds:.0f} s", pytrace=False)

def skip_unless(home):
    if home == "podman": pytest.skip("no image is named: set RLM_TEST_IMAGE")
    try: launch.available(home)
    except launch.SandboxUnavailable as e: pytest.skip(f"{home}: {e}")

class Shells:
    "One shell for each home and time limit, replaced when a test may have spoilt it"
    def __init__(self): self.all = {}
    def get(self, home, seconds):
        if (home, seconds) not in self.all: self.all[home, seconds] = new_shell(home, seconds)
        return self.all[home, seconds]
    def drop(self, home, seconds):
        if sh := self.all.pop((home, seconds), None): bounded(10, sh.close)
    def close(self):
        for o in [*self.all]: self.drop(*o)

def tree(root):
    "The processes below `root`, each with its start"
    found = {}
    if not linux: return found
    for p in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            rest = p.read_bytes().rpartition(b") ")[2].split()
            found[int(p.parent.name)] = int(rest[1]), int(rest[19])
    below, todo = {}, [root]
    while todo:
        pid = todo.pop()
        for child, (parent, born) in found.items():
            if parent == pid and child not in below:
                below[child] = born
                todo.append(child)
    return below

def alive(processes):
    "Those that are still there; the dead count when it is for this process to collect them"
    left = {}
    for pid, born in processes.items():
        with suppress(OSError, IndexError):
            state, parent, *rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
            if int(rest[17]) == born and (state != b"Z" or int(parent) == os.getpid()): left[pid] = born
    return left

def descriptors():
    found = {}
    for fd in os.listdir("/proc/self/fd") if linux else ():
        with suppress(OSError): found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
    return found

def eventually(f, seconds=5.):
    "The value of `f()` once it is empty, or after that time"
    end = time.monotonic() + seconds
    while (left := f()) and time.monotonic() < end: time.sleep(.05)
    return left

@pytest.fixture(scope="module")
def shells(world):
    "The shells of this module; after the last test, that the host is as it was before"
    ScriptedLM(["warm"]).batch(["up"])
    with suppress(launch.SandboxUnavailable):
        for home in ("process", "sandbox"):
            sh = new_shell(home)
            sh.run("1")
            sh.close()
    fds, threads, processes = descriptors(), {*threading.enumerate()}, tree(os.getpid())
    s = Shells()
    yield s
    s.close()
    world.reset()
    ours = {world.bystander.pid}
    def left():
        more = [t.name for t in threading.enumerate() if t not in threads and t.is_alive() and t.name != "rlm-call"] # end after ten seconds
        new = [pid for pid in tree(os.getpid()) if pid not in processes and pid not in ours]
        open_fds = [at for fd, at in descriptors().items() if fds.get(fd) != at and at != f"/proc/{os.getpid()}/fd"
                    and not any(at == f"pipe:[{os.fstat(f.fileno()).st_ino}]" for f in (world.bystander.stdin, world.bystander.stdout))]
        return {k: v for k, v in dict(threads=more, processes=new, descriptors=open_fds).items() if v}
    changed = eventually(left)
    assert not changed, "the host is not as it was before"


# -- The attacks

def peak_memory():
    "The most memory that this process has had since the last call, in bytes; 0 where nobody can say"
    with suppress(OSError, AttributeError, IndexError):
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        Path("/proc/self/clear_refs").write_text("5")
        return int(found[1])*1024
    return 0

def everything(r):
    "All that a cell sent back, as one text"
    return "\n".join(map(str, (r.stdout, r.stderr, r.result, r.displays, r.error, r.text(100_000), clipped_repr(r.final, 100_000))))

def breaches(r, world):
    "What a cell got, in words"
    told = [o for o in (r.stdout or "").splitlines() if o.startswith("[breach]")]
    return told + ["the secret came out"]*(key in everything(r)) + world.damage()

def ways_to_end(attack, r):
    "Did the cell say that it was refused, or end as its row says?"
    if r.error: return r.error.name in attack.ends
    return "[held]" in r.stdout or "[breach]" in r.stdout

def check_result(r):
    "That what came back is what the rest of the package may rely on"
    text, html, short = r.text(5000), r._repr_html_(), repr(r)
    kinds = isinstance(r.stdout, str) and isinstance(r.stderr, str) and isinstance(r.displays, list) and isinstance(r.result, str | None)
    sizes = dict(output=len(r.stdout) + len(r.stderr) <= 3*small["output"], text=len(text) <= 5000, html=len(html) < 1_000_000, repr=len(short) < 1_000_000)
    assert kinds, "a result of the wrong types"
    assert all(sizes.values()), f"too large: {[k for k, v in sizes.items() if not v]}"
    harmless = script_free(html)
    assert harmless, f"this can act in a notebook: {html[:1000]}"

def enforced(sh, what): return sh.guarantees().levels()[what] == "enforced"

def expected(attack, sh):
    "What should come of an attack: `fails`, `succeeds`, or `rights` where both may be"
    if sh.home == "process": return attack.process
    return "rights" if attack.limit and not enforced(sh, attack.limit) else "fails"

def skip_attack(attack, home, facts):
    if home == "process" and attack.process is None: pytest.skip("not tried without a sandbox")
    if not attack.portable and not linux: pytest.skip("Linux only")
    if attack.needs and not facts[attack.needs]: pytest.skip(f"this machine lets the test make no {attack.needs}")

def run_attack(attack, sh, world):
    "Run the cells of an attack; gives what it got in words"
    got = []
    for way in range(attack.ways):
        peak_memory()
        before, start = peak_memory(), time.monotonic()
        facts = world.facts(sh.home, way) | dict(visible=[world.bystander.pid] if sh.home == "process" else [])
        for code in [attack.cell(facts), *filter(None, [attack.then])]:
            r = bounded(attack.seconds + slack + 10, sh.run, code)
            check_result(r)
            got += breaches(r, world)
            went_right = bool(ways_to_end(attack, r) or got)
            assert went_right, f"the attack went wrong: {r.text(3000)}"
        assert time.monotonic() - start < (attack.seconds + slack)*(1 + bool(attack.then)), "it took too long"
        assert peak_memory() - before < 400_000_000, "the host needed too much memory"
    return got

def check_health(attack, sh):
    "That the shell goes on, with its functions, and with what earlier cells had made"
    kept = bounded(20, sh.run, "kept + 1").result == "42" if attack.keeps and linux else True
    assert kept, "variables of earlier cells are lost"
    with suppress(Exception): bounded(attack.seconds + slack, sh.resolve, "hostile")
    with suppress(Exception): bounded(attack.seconds + slack, sh.variables)
    if attack.spoils: return check_result(bounded(attack.seconds + slack, sh.run, "1 + 1"))
    start, r = time.monotonic(), bounded(20, sh.run, "1 + 1")
    if attack.group == "Channel" and r.error and r.error.name in ("ProcessDied", "TimeoutError"): # found out late
        start, r = time.monotonic(), bounded(20, sh.run, "1 + 1")
    told = None if r.result == "2" and r.error is None else r.text(2000)
    assert told is None, f"the next cell does not run, or gets the answer of another: {told}"
    assert time.monotonic() - start < 3, "the next cell is slow"
    r = bounded(20, sh.run, "echo('back')")
    told = None if r.result == "'back'" else r.text(2000)
    assert told is None, f"its functions are lost: {told}"

cases = [pytest.param(home, a, id=f"{home}-{a.name}") for home in homes for a in attacks]

@pytest.mark.parametrize("home,attack", cases)
def test_attack(home, attack, world, shells):
    skip_unless(home)
    world.reset()
    skip_attack(attack, home, world.facts(home, 0))
    if attack.fresh: shells.drop(home, attack.seconds)
    before, spoilt = tree(os.getpid()), True
    try:
        sh = shells.get(home, attack.seconds)
        assert bounded(20, sh.run, "kept = 41\nkept").result == "41"
        got, wanted = run_attack(attack, sh, world), expected(attack, sh)
        check_health(attack, sh)
        if wanted == "fails": assert not got, "the attack succeeded: " + "; ".join(got[:10])
        if wanted == "succeeds": assert got, "it should succeed here, else it proves nothing in the sandbox"
        spoilt = attack.fresh
    finally:
        below = {k: v for k, v in tree(os.getpid()).items() if k not in before}
        if spoilt: shells.drop(home, attack.seconds)
        world.reset()
    if spoilt:
        left = eventually(lambda: {k: v for k, v in alive(below).items() if k not in tree(os.getpid())}) # the others' are there
        assert not left, f"processes outlive their shell: {left}"

def orphans():
    "Sandboxes of this package that have lost their host"
    import rlm
    package, found = str(Path(rlm.__file__).resolve().parent).encode(), set()
    for p in Path("/proc").glob("[0-9]*") if linux else ():
        with suppress(OSError, IndexError):
            command = (p/"cmdline").read_bytes().split(b"\0")
            if command[0] != b"bwrap" or package not in command: continue
            if (p/"stat").read_bytes().rpartition(b") ")[2].split()[1] == b"1": found.add(int(p.name))
    return found

@pytest.mark.parametrize("home", homes[:2])
def test_a_shell_that_is_closed_while_it_starts_leaves_nothing(home, shells):
    skip_unless(home)
    def left():
        threads = [t.name for t in threading.enumerate() if t not in before and t.is_alive()]
        sockets = [at for at in descriptors().values() if at.startswith("socket:") and at not in open_before]
        return {k: v for k, v in dict(threads=threads, sockets=sockets, processes=[o for o in tree(os.getpid()) if o not in known],
                                       orphans=orphans() - lost_before).items() if v}
    known, before, open_before, lost_before = tree(os.getpid()).keys(), {*threading.enumerate()}, {*descriptors().values()}, orphans()
    for i in range(12):
        sh = new_shell(home)
        time.sleep((0, 0, .005, .02)[i % 4])
        sh.close()
    lost = eventually(left)
    assert not lost, f"there are still {lost}"

def test_the_table_names_every_attack():
    lines = table().splitlines()
    assert len(lines) == len(attacks) + 2 and {o.count("|") for o in lines} == {5}
    assert len({a.name for a in attacks}) == len(attacks)

def test_the_page_has_the_table():
    "nbs/explanations/attacks.ipynb shows what `table()` gives: put it there when it has changed"
    cells = json.loads((Path(__file__).parents[1]/"nbs/explanations/attacks.ipynb").read_text(encoding="utf-8"))["cells"]
    assert table().strip() in "".join(cells[0]["source"])

def test_the_sandbox_says_that_it_holds():
    skip_unless("sandbox")
    sh = new_shell("sandbox")
    levels = sh.guarantees().levels()
    sh.close()
    assert levels["network"] == levels["files"] == levels["kill"] == "enforced"

def test_the_process_home_does_not_say_so():
    skip_unless("process")
    sh = new_shell("process")
    levels = sh.guarantees().levels()
    sh.close()
    assert levels["network"] == levels["files"] == "none"


# -- Budgets and functions of the host

def spend(home, code, n=5, seconds=6., reply=lambda *a, **kw: "a reply"):
    "Run `code` with a budget of `n` sub-calls; gives the result and the calls that the model had"
    skip_unless(home)
    lm = ScriptedLM(reply)
    sh = new_shell(home, seconds, model=lm)
    try:
        sh.sub.attach(Trajectory(), Budget(Limits(max_sub_calls=n)))
        r = bounded(seconds + slack + 5, sh.run, f"HOST = dict(marker='', pid={os.getpid()}, ns={{}})\n{data.prelude}\n{code}")
        check_result(r)
        after = bounded(20, sh.run, "1 + 1")
        assert after.result == "2", f"the next cell does not run: {after.text()}"
        return r, lm.requests, sh.sub.trajectory
    finally: bounded(10, sh.close)

many = "got = 0\nfor _ in range(50):\n    try: got += llm_query('x') == 'a reply'\n    except Exception as e: said = e\nprint(got, said)"
spending = dict(
    loop=many,
    batch="llm_query_batched(['x']*1000)",
    batches="for _ in range(20):\n    try: llm_query_batched(['x']*3)\n    except Exception as e: print(e)",
    threads="from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(20) as ex: list(ex.map(lambda i: llm_query('x'), range(40)))",
    awaited="import asyncio\nprint(await asyncio.gather(*(allm_query('x') for _ in range(40)), return_exceptions=True))",
    processes="for _ in range(4): os.fork()\nfor _ in range(10):\n    with contextlib.suppress(Exception): llm_query('x')",
    overwritten="real = llm_query\nllm_query = lambda p: real(p)\n" + many,
    patched="""
for name, module in [*sys.modules.items()]:
    if not name.startswith("rlm"): continue
    for k in [*vars(module)]:
        if k.lower() in ("limits", "budget", "check", "reserve", "max_sub_calls", "proceed"): setattr(module, k, lambda *a, **kw: None)
for o in (llm_query, llm_query_batched):
    for c in getattr(o, "__closure__", None) or ():
        with contextlib.suppress(Exception): vars(c.cell_contents).update(limits=None, budget=None, max_sub_calls=10**9)
""" + many,
    forged="for i in range(50): send(message(op='call', id=[0, i], name='llm_query', args=['x'], kwargs=dict(o={})))\ntime.sleep(1)")

@pytest.mark.parametrize("way", spending)
@pytest.mark.parametrize("home", homes[:2])
def test_budgets_hold(home, way, shells):
    r, requests, trajectory = spend(home, spending[way], seconds=2)
    assert len(requests) <= 5 and len(trajectory.sub_calls) <= 5
    if way in ("loop", "overwritten", "patched"): assert len(requests) == 5 and "max_sub_calls" in r.stdout, r.text()

@pytest.mark.parametrize("home", homes[:2])
def test_a_forged_reply_is_not_recorded(home, shells):
    r, requests, trajectory = spend(home, "llm_query = lambda p: 'forged'\nllm_query('x')")
    assert requests == [] and trajectory.sub_calls == [] and "llm_query" in r.restored

@pytest.mark.parametrize("home", homes[:2])
def test_waiting_for_the_host_is_no_way_to_run_for_ever(home, shells):
    "Calls stop the clock; a thread that makes them all the time must not stop it for the others"
    code = ("def go():\n    for _ in range(100): pause(.25)\nthreading.Thread(target=go, daemon=True).start()\nend = time.time() + 15\n"
            "while time.time() < end: pass\nprint('breach')")
    start = time.monotonic()
    r, *_ = spend(home, code, seconds=1)
    assert "breach" not in r.stdout and time.monotonic() - start < 1.5 + slack

hostile_arguments = ["'\\ud800'", "float('nan')", "10**10_000", "__import__('functools').reduce(lambda a, _: [a], range(50_000), 1)",
    "'x'*150_000_000", "{1: 2, None: 3}", "{float('nan'): 1}", "object()", "(lambda a: (a.append(a), a)[1])([])", "[0]*2_000_000", "b'x'*1000",
    "type('S', (str,), {'__reduce__': lambda s: (open, ('x', 'w'))})('x')", "Evil()", "echo", "globals()"]

@pytest.mark.parametrize("home", homes[:2])
def test_functions_of_the_host_are_given_plain_values(home, world, shells):
    skip_unless(home)
    sh = new_shell(home)
    allowed = (str, int, float, bool, bytes, type(None), list, tuple, dict, set, frozenset, complex)
    try:
        for code in hostile_arguments:
            calls.clear()
            r = bounded(20, sh.run, f"HOST = dict(marker={str(world.marker)!r})\n{data.prelude}\necho({code})\nNone")
            check_result(r)
            todo, seen = list(calls), 0
            while todo and seen < 100_000:
                seen += 1
                assert type(v := todo.pop()) in allowed
                todo += v if isinstance(v, (list, tuple)) else [*v, *v.values()] if isinstance(v, dict) else []
            assert bounded(20, sh.run, "1 + 1").result == "2", code
        assert not world.damage()
    finally: bounded(10, sh.close)


# -- What a person sees of it

class Tags(HTMLParser):
    "The tags and attributes of a text"
    def __init__(self):
        super().__init__()
        self.found = []
    def handle_starttag(self, tag, attrs): self.found.append((tag, dict(attrs)))
    def handle_decl(self, decl): self.found.append((decl, {}))
    handle_pi = unknown_decl = handle_decl

def script_free(html):
    "Is there nothing in `html` but plain text, folds and pictures?"
    p = Tags()
    p.feed(html)
    p.close()
    def fine(tag, attrs):
        if tag in ("pre", "details", "summary"): return not attrs
        return tag == "img" and set(attrs) == {"src"} and attrs["src"].startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
    return all(fine(*o) for o in p.found)

script = "</pre></details><script>alert(1)</script><img src=x onerror=alert(2)><svg/onload=alert(3)>"
scripts = dict(
    display="from IPython.display import HTML, Javascript, Markdown, display\nfor o in (HTML(s), Javascript('alert(1)'), Markdown(s)): display(o)",
    printed="import sys\nprint(s)\nprint(s, file=sys.stderr)", result="s", html="from IPython.display import HTML\nHTML(s)",
    error="raise ValueError(s)", error_name="raise type(s, (Exception,), {})(s)", answer="FINAL(s)", variable="globals()[s] = 1\nSHOW_VARS()",
    picture="from IPython.display import display\ndisplay({'image/png': '\"><script>alert(1)</script>', 'text/plain': s}, raw=True)",
    picture_kinds="from IPython.display import display\n"
        "for v in (s, [s], {s: s}, 5, None, b'x'): display({'image/png': v, 'image/jpeg': v, s: s}, raw=True)",
    metadata="from IPython.display import display\ndisplay({'text/plain': s}, metadata={s: s}, raw=True)",
    reprs="class X:\n    def _repr_html_(self): return s\n    def _repr_png_(self): return s\n"
        "    def _repr_mimebundle_(self, **kw): return {s: s, 'text/plain': s}\nX()",
    forged="send(message(op='done', id=request(), cells=1, stdout=s, stderr=s, result=s, error=[s, s, s], elided=0, restored=[s], names=[s], ended=True, "
        "displays=[{'o': dict(output_type='display_data', data={'o': {'image/png': s, 'text/html': s}}, metadata={'o': {}})}], final={'o': {s: s}}))")

@pytest.mark.parametrize("home", homes[:2])
def test_no_script_reaches_a_notebook(home, shells):
    skip_unless(home)
    sh = shells.get(home, 6.)
    for name, code in scripts.items():
        r = bounded(20, sh.run, f"HOST = {{}}\n{data.prelude}\ns = {script!r}\n{code}")
        assert script_free(r._repr_html_()), name
        check_result(r)
    shells.drop(home, 6.)

escapes = "\x1b]0;owned\x07\x1b[2J\x1b[1;1H\x9b31m\x1b]52;c;b3duZWQ=\x07\x1bP+q\x1b\\\x1b]8;;http://x\x1b\\link\r\b\x00\u202e\x1b[c\x05"
acts = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\x1b(?!\\[[\\d;]*m)")

@pytest.mark.parametrize("home", homes[:2])
def test_no_output_acts_on_the_terminal(home, shells):
    "What is printed, echoed, raised, displayed and answered, through `TerminalView`"
    skip_unless(home)
    from rich.console import Console
    from rlm.events import Cell, End, Final, Reply, Run
    from rlm.view import TerminalView
    sh = shells.get(home, 6.)
    pieces = ["print(s)", "import sys\nprint(s, file=sys.stderr)", "s", "raise ValueError(s)",
        "raise type(s.replace(chr(0), ''), (Exception,), {})(s)", "class X:\n    def __repr__(self): return s\nX()",
        "from IPython.display import display\ndisplay({'text/plain': s}, raw=True)", "!printf '\\033]0;owned\\007'",
        "import os\nos.write(1, s.encode())", "FINAL(s)", "FINAL({s: [s]})"]
    out = io.StringIO()
    view = TerminalView(Console(file=out, force_terminal=True, width=100, force_jupyter=False, color_system="truecolor", _environ={}))
    view(Run(query="?", model="m"))
    for code in pieces:
        r = bounded(20, sh.run, f"s = {escapes!r}\n{code}")
        view(Reply(step=1, model="m", message=dict(role="assistant", content=f"```repl\n{code}\n```")))
        view(Cell(step=1, code=code, output=r.text(), error=r.error and r.error.name, displays=r.displays))
        if r.ended: view(Final(answer=r.final))
    view(End())
    shown = out.getvalue()
    assert "owned" in shown and not acts.search(shown)

terminal_code = """
import os, sys
from rlm.launch import ShellLimits
from rlm.tools import prep_shell
sh = prep_shell("x", shell=sys.argv[1], shell_limits=ShellLimits(seconds=5))
r = sh.run('''
import fcntl, os, termios
for path in ("/dev/tty", *(f"/proc/self/fd/{i}" for i in range(10))):
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        if not os.isatty(fd): continue
        os.write(fd, b"reached")
        fcntl.ioctl(fd, termios.TIOCSTI, b"x")
    except OSError as e: pass
for fd in range(10):
    try: os.write(fd, b"reached") if os.isatty(fd) else None
    except OSError: pass
print(os.getsid(0) == %d, "done")
''' % os.getsid(0))
sh.close()
print("ended", r.stdout.split(), r.error)
"""

@pytest.mark.skipif(not linux, reason="Linux only")
@pytest.mark.parametrize("home", homes[:2])
def test_a_cell_has_no_controlling_terminal(home):
    "The host runs in a terminal of its own: nothing but what it prints itself may come out of that"
    skip_unless(home)
    import pty
    pid, fd = pty.fork()
    if not pid:
        env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        os.execve(sys.executable, [sys.executable, "-c", terminal_code, home], env)
    shown, end = b"", time.monotonic() + 30
    with suppress(OSError):
        while (left := end - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]: shown += os.read(fd, 10_000)
    os.close(fd)
    with suppress(OSError): os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert b"ended ['False', 'done'] None" in shown and b"reached" not in shown, shown.decode()


# -- As an ordinary user

by_rights = ("Secrets", "Files", "Network", "Processes", "Kernel", "Terminal")

def for_everybody(path):
    "May an ordinary user read `path`?"
    return all(p.stat().st_mode & 5 == 5 for p in [path, *path.parents])

def ordinary_python(folder):
    "A Python in `folder` that user 65534 can run, with the packages of this one; skips where there can be none"
    version = f"python3.{sys.version_info[1]}"
    candidates = [Path(o) for o in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}")]
    python = next((o for o in candidates if o.exists() and for_everybody(o.resolve())), None)
    if not python: pytest.skip(f"an ordinary user may run no {version} here")
    needed = [here.parent, Path(pytest.__file__).parent.parent]
    for o in needed:
        if not for_everybody(o): pytest.skip(f"an ordinary user may not read {o}")
    made = subprocess.run([python, "-m", "venv", "--without-pip", folder/"venv"], capture_output=True, text=True)
    if made.returncode: pytest.skip(f"{python} makes no virtual environment: {made.stderr[-200:]}")
    packages = next((folder/"venv").glob("lib/python*/site-packages"))
    (packages/"tests.pth").write_text("\n".join(map(str, needed)))
    return folder/"venv"/"bin"/"python"

@pytest.mark.skipif(not linux or os.getuid() != 0, reason="the suite runs as an ordinary user already")
def test_as_an_ordinary_user():
    "What depends on rights once more, for user 65534"
    skip_unless("sandbox")
    folder = Path(tempfile.mkdtemp(prefix="rlm-ordinary-"))
    try:
        folder.chmod(0o755)
        python = ordinary_python(folder)
        for o in (folder/"home", folder/"tmp"):
            o.mkdir()
            os.chown(o, 65534, 65534)
        env = dict(PATH=os.environ["PATH"], HOME=f"{folder}/home", TMPDIR=f"{folder}/tmp", PYTHONDONTWRITEBYTECODE="1", LANG="C.UTF-8")
        names = [a.name for a in attacks if a.group in by_rights or a.limit]
        args = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", f"sandbox and ({' or '.join(names)} or controlling or says)", "--tb=short"]
        r = subprocess.run([python, "-m", "pytest", *args, str(here/"test_security.py")], env=env, cwd=here.parent, user=65534, group=65534, extra_groups=[],
                           capture_output=True, text=True, timeout=300)
        passed = int((re.search(r"(\d+) passed", r.stdout) or [0, 0])[1])
        assert r.returncode == 0 and passed > len(names)*.8, r.stdout[-6000:] + r.stderr[-2000:]
    finally: shutil.rmtree(folder, ignore_errors=True)
