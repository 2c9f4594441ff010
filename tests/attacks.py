"""Attacks on the host by code in a cell, as data: what each tries, the cell that tries it, and what comes of it in each home.

A cell starts with `prelude` and a dict `HOST`: what the attacker is told of the host, so that no attack fails for not
knowing where to look. It says `[breach] …` when it got what it wanted, `[held] …` when it was refused; a cell that says
neither must end in one of the errors of its row. Whatever a cell says, the host looks for its secret in what came
back, and at everything it had laid out: files, listeners, a process. All attacks bound themselves: they would not
harm a machine whose sandbox fails."""
from dataclasses import dataclass
from textwrap import dedent

prelude = r"""
import contextlib, ctypes, errno, glob, io, os, platform, re, signal, socket, stat, struct, subprocess, sys, threading, time
secret = re.compile(rb"canary-[0-9a-f]{32}")
libc = ctypes.CDLL(None, use_errno=True)
numbers = dict(pivot_root=(155, 41), init_module=(175, 105), kexec_load=(246, 104), add_key=(248, 217), keyctl=(250, 219),
    reboot=(169, 142), pidfd_send_signal=(424, 424), open_tree=(428, 428), fsopen=(430, 430), pidfd_open=(434, 434),
    pidfd_getfd=(438, 438))

def breach(*what): print("[breach]", *what)
def held(*what): print("[held]", *what)
def show(what, data):
    for found in set(secret.findall(data)): breach(what, found.decode())
def checked(res):
    if res == -1: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return res
def call(name, *args): return checked(getattr(libc, name)(*args))
def syscall(name, *args):
    return checked(libc.syscall(numbers[name][platform.machine() not in ("x86_64", "AMD64")], *args))
def attempt(what, f, *args, **kw):
    try: res = f(*args, **kw)
    except Exception as e: return held(what, type(e).__name__, str(e)[:200])
    breach(what, repr(res)[:100])
    return res
def refused(what, f, *args):
    "An attempt with senseless arguments: a breach unless the kernel refuses for want of rights"
    try: f(*args)
    except OSError as e:
        if e.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS): return held(what, e.strerror)
        return breach(what, "is allowed:", e.strerror)
    breach(what)
def read(path, n=1_000_000):
    with open(path, "rb") as f: return f.read(n)
def look(path, **kw):
    "Read what may hold the secret"
    try: data = read(path, **kw)
    except Exception as e: return held(path, type(e).__name__, e)
    show(path, data)
    held(path, "holds no secret") if not secret.search(data) else None
def in_child(f, *args):
    "Call `f` in a forked child, and say here what it said there"
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            said = []
            global print
            print = lambda *a, **kw: said.append(" ".join(map(str, a)))
            try: f(*args)
            except BaseException as e: held(type(e).__name__, e)
            os.write(w, "\n".join(said).encode())
        os._exit(0)
    os.close(w)
    data = b"".join(iter(lambda: os.read(r, 65536), b""))
    os.close(r)
    with contextlib.suppress(OSError): os.waitpid(pid, 0)
    sys.stdout.write(data.decode() + "\n")
def of_the_host(pid): return pid == HOST["pid"] and os.readlink("/proc/self/ns/pid") == HOST["ns"].get("pid")
def parent():
    "The process above this one, unless it is the host itself"
    pid = os.getppid()
    if pid == HOST["pid"]: raise RuntimeError("the parent is the host")
    return pid
def scan(pid, most=300_000_000):
    "The secrets in the memory of a process"
    found = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            m = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw.. \S+ 00:00 0", line)
            if not m or most <= 0: continue
            start, stop = int(m[1], 16), int(m[2], 16)
            most -= stop - start
            with contextlib.suppress(OSError, ValueError):
                mem.seek(start)
                for _ in range(start, stop, 1 << 22): found.update(secret.findall(mem.read(min(1 << 22, stop - mem.tell()))))
    return found
def sockets():
    "The sockets of this process"
    for fd in range(3, 1024):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode): yield fd
def send(data, fds=None, seconds=.5):
    "Write to all sockets, without waiting for ever"
    n = 0
    for fd in [*sockets()] if fds is None else fds:
        end, rest = time.time() + seconds, memoryview(data)
        while rest and time.time() < end:
            try: rest = rest[os.write(fd, rest[:65536]):]
            except BlockingIOError: time.sleep(.01)
            except OSError: break
        n += len(data) - len(rest)
    return n
def frame(header, blob=b"", kind=b"l"): return kind + struct.pack("!II", len(header), len(blob)) + header + blob
def message(kind=b"l", **fields):
    "A frame of the worker, as it should be"
    import json
    return frame(json.dumps(dict(o=fields)).encode(), kind=kind)
def request():
    "The number of the request that this cell carries out"
    frame = sys._getframe()
    while frame:
        m = frame.f_locals.get("message")
        if isinstance(m, dict) and "id" in m: return m["id"]
        frame = frame.f_back
class Evil:
    "Unpickled, it leaves its mark on the host"
    def __reduce__(self): return io.open, (HOST["marker"], "w")
"""


@dataclass(frozen=True)
class Attack:
    "One attack: a cell, and what comes of it"
    group: str
    name: str
    aim: str # in a few words
    code: str
    process: str = "succeeds" # in the process home; "rights": whatever the user's own rights allow; None: not tried there
    ends: tuple = () # names of errors in which the cell may end
    seconds: float = 6. # time limit of the cell
    fresh: bool = False # needs a shell of its own
    keeps: bool = False # variables of earlier cells must be there afterwards
    spoils: bool = False # changes Python itself in its process: later cells may fail, but must end
    limit: str|None = None # the guarantee without which it may succeed in the sandbox too: "memory" or "processes"
    needs: str|None = None # a key of HOST without which it cannot be tried
    portable: bool = False # can be tried on systems other than Linux
    then: str = "" # a second cell, which must end as `ends` says
    ways: int = 1 # how many times to run it, with HOST["way"] counting

    def cell(self, host): return f"HOST = {host!r}\n{prelude}\n{self.code}"


attacks, _group = [], ""

def group(name):
    global _group
    _group = name

def add(name, aim, code, **kw): attacks.append(Attack(_group, name, aim, dedent(code).strip() + "\n", **kw))

died, late = ("ProcessDied",), ("TimeoutError",)


group("Secrets")

add("read_environment", "read an API key from the environment", r"""
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
    i, own = 0, []
    while environ and environ[i]: i, own = i + 1, own + [environ[i]]
    show("environ", b"\n".join(own))
    show("os.environ", repr(dict(os.environ)).encode())
    if "OPENAI_API_KEY" in os.environ: breach("OPENAI_API_KEY", os.environ["OPENAI_API_KEY"][:3])
    if os.path.exists("/proc/self"): look("/proc/self/environ")
    held("no key")
    """, process="fails", portable=True)

add("read_environment_of_processes", "read the environment of the host and of every other process", r"""
    named = [f"/proc/{o}/environ" for o in (1, os.getppid(), HOST["pid"], HOST["bystander"])]
    for path in {*named, *glob.glob("/proc/[0-9]*/environ")}: look(path)
    """, process="rights")

add("read_own_memory", "find an API key in memory that came from the host", r"""
    for o in scan("self"): breach(o.decode())
    held("scanned")
    """, process="fails", fresh=True)

add("read_parent_memory", "find an API key in the memory of the parent", r"""
    try:
        for o in scan(parent()): breach(o.decode())
        held("scanned")
    except OSError as e: held(e)
    """, process="fails", fresh=True)

add("read_process_memory", "read the memory of another process through /proc/PID/mem", r"""
    def mem(pid):
        with open(f"/proc/{pid}/mem", "rb", 0) as f:
            f.seek(HOST["address"])
            return f.read(39)
    pids = {HOST["bystander"], *(int(o) for o in os.listdir("/proc") if o.isdigit() and HOST["bystander"] not in HOST["visible"])}
    for pid in pids:
        try: data = mem(pid)
        except (OSError, OverflowError) as e: held(pid, e)
        else: show(f"memory of {pid}", data) or held(pid, "read")
    """, process="rights")

add("read_host_memory", "find an API key in the memory of the host", r"""
    try:
        for o in scan(HOST["pid"], 400_000_000): breach(o.decode())
        held("scanned")
    except OSError as e: held(e)
    """, process="rights", fresh=True)

add("process_vm_readv", "read another process with process_vm_readv", r"""
    class Part(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    def readv():
        data = ctypes.create_string_buffer(39)
        n = ctypes.c_ulong(1)
        here, there = Part(ctypes.addressof(data), 39), Part(HOST["address"], 39)
        call("process_vm_readv", HOST["bystander"], ctypes.byref(here), n, ctypes.byref(there), n, ctypes.c_ulong(0))
        return data.raw
    attempt("process_vm_readv", readv)
    """, process="rights")

add("process_vm_writev", "write to another process with process_vm_writev", r"""
    class Part(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
    def writev():
        data = ctypes.create_string_buffer(b"x"*39)
        n = ctypes.c_ulong(1)
        here, there = Part(ctypes.addressof(data), 1), Part(HOST["address"], 1)
        return call("process_vm_writev", HOST["bystander"], ctypes.byref(here), n, ctypes.byref(there), n, ctypes.c_ulong(0))
    attempt("process_vm_writev", writev)
    """, process="rights")

add("session_keyring", "read a key from the kernel's keyring of the session", r"""
    def read_key():
        ring = -3 # KEY_SPEC_SESSION_KEYRING
        key, data = syscall("keyctl", 10, ring, b"user", HOST["key"].encode(), 0), ctypes.create_string_buffer(64)
        syscall("keyctl", 11, key, data, 64)
        return data.value
    attempt("keyctl", read_key)
    """, process="fails", needs="key")

add("shared_memory", "read System V shared memory of the host", r"""
    def read_shm():
        libc.shmat.restype = ctypes.c_void_p
        libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        at = libc.shmat(call("shmget", HOST["shm"], 39, 0), None, 0o10000)
        if at in (None, ctypes.c_void_p(-1).value): raise OSError(ctypes.get_errno(), "shmat")
        return ctypes.string_at(at, 39)
    attempt("shmat", read_shm)
    """, needs="shm")


group("Files")

add("read_file", "read a file of the host in its directory for temporary files", r"""
    look(HOST["secret_file"])
    """, portable=True)

add("read_home", "read a file in the home directory", r"""
    look(HOST["home_file"])
    """, needs="home_file", portable=True)

add("read_system_files", "read /etc/shadow, keys, logs and settings of the host", r"""
    for path in ("/etc/shadow", "/etc/passwd", "/etc/hostname", "/etc/ssh", "/var/log", "/var/lib", "/home", "/root/.ssh", "/run",
                 "/boot", "/sys", "/proc/kcore", "/etc/machine-id"):
        if os.path.isdir(path): attempt(path, os.listdir, path)
        else: attempt(path, read, path, 100)
    """)

add("read_project", "read the project that the host works on", r"""
    attempt("attacks.py", read, HOST["tests"])
    attempt("its directory", os.listdir, os.path.dirname(HOST["tests"]))
    """, portable=True)

add("proc_root", "reach the host's files through /proc/PID/root and cwd", r"""
    inside = HOST["secret_file"].lstrip("/")
    for pid in {1, os.getppid(), HOST["pid"], HOST["bystander"], "self", "thread-self"}:
        for at in ("root", "cwd", "cwd/../../../../..", "root/../.."): look(f"/proc/{pid}/{at}/{inside}")
    """)

add("dot_dot", "climb above the root directory, by chroot and without", r"""
    inside = HOST["secret_file"].lstrip("/")
    for top in ("../"*30, "/../../", "/oldroot/", "/newroot/", "/.oldroot/"): look(top + inside)
    def escape():
        os.makedirs("/tmp/jail", exist_ok=True)
        here = os.open("/", os.O_RDONLY)
        os.chroot("/tmp/jail")
        os.fchdir(here)
        for _ in range(30): os.chdir("..")
        os.chroot(".")
        look("/" + inside)
    in_child(escape)
    """)

add("open_descriptors", "reopen descriptors that were inherited", r"""
    for fd in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{fd}"
        try: at, mode = os.readlink(path), os.stat(path).st_mode
        except OSError: continue
        if stat.S_ISDIR(mode) and at != "/proc/%d/fd" % os.getpid():
            look(f"{path}/../../../../../../{HOST['secret_file']}")
        elif stat.S_ISREG(mode):
            show(at, read(path))
            if at.startswith(HOST["folder"]): attempt(f"reopen {at}", open, path, "ab", 0)
    held("searched")
    """, process="fails")

add("descriptors_of_processes", "reopen the descriptors of other processes", r"""
    for path in glob.glob("/proc/[0-9]*/fd/*"):
        try: at, mode = os.readlink(path), os.stat(path).st_mode
        except OSError as e: continue
        if not stat.S_ISREG(mode) or not at.startswith(HOST["folder"]): continue
        look(path)
        attempt(f"reopen {at}", open, path, "ab", 0)
    held("searched")
    """, process="rights")

add("pidfd_getfd", "take a descriptor out of another process", r"""
    attempt("pidfd_getfd", lambda: os.read(syscall("pidfd_getfd", syscall("pidfd_open", HOST["bystander"], 0), HOST["held_fd"], 0), 39))
    """, process="rights")

add("write_file", "overwrite a file of the host", r"""
    def write():
        with open(HOST["victim"], "a") as f: f.write("overwritten")
    attempt("append", write)
    attempt("truncate", os.truncate, HOST["victim"], 0)
    attempt("mode", os.chmod, HOST["victim"], 0o666)
    attempt("unlink", os.unlink, HOST["victim"])
    """, portable=True)

add("write_outside_tmp", "create files outside the private /tmp", r"""
    dirs = ["/", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/etc", "/var/tmp", "/proc", "/dev", "/run", "/sys", "/home", "/lib64",
            *(o for o in HOST["folders"] if not o.startswith("/tmp/"))] # below /tmp the sandbox has a tree of its own
    for o in dirs:
        path = os.path.join(o, HOST["mark"])
        def create():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
            os.unlink(path)
        attempt(o, create)
    """)

add("poison_packages", "write to the code of the host, its packages and their caches", r"""
    for name, module in [*sys.modules.items()]:
        at = getattr(module, "__file__", None)
        if not at or not os.path.exists(at): continue
        for path in (at, getattr(module, "__cached__", None)):
            try: os.close(os.open(path or at, os.O_WRONLY))
            except OSError: pass
            else: breach(path)
    def create(o):
        path = os.path.join(o, HOST["mark"])
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
        os.unlink(path)
    for o in {*sys.path, *(os.path.dirname(o) + "/__pycache__" for o in (os.__file__, contextlib.__file__))}:
        if os.path.isdir(o) and not o.startswith("/tmp"): attempt(o, create, o)
    held("tried all modules")
    """, process="rights")

add("symbolic_link", "write to a file of the host through a symbolic link", r"""
    def write(path):
        with open(path, "a") as f: f.write("overwritten")
    link = f"/tmp/{HOST['mark']}-link"
    with contextlib.suppress(OSError): os.unlink(link)
    os.symlink(HOST["victim"], link)
    attempt("link", write, link)
    os.unlink(link)
    os.symlink(HOST["folder"], link)
    attempt("link to the directory", write, link + "/victim")
    os.unlink(link)
    """)

add("hard_link", "write to a file of the host through a hard link", r"""
    def write(path):
        with open(path, "a") as f: f.write("overwritten")
    for source in (HOST["victim"], "/usr/bin/env", os.__file__):
        link = f"/tmp/{HOST['mark']}-hard"
        with contextlib.suppress(OSError): os.unlink(link)
        try: os.link(source, link)
        except OSError as e: held(source, e)
        else:
            if source == HOST["victim"]: attempt(source, write, link)
            elif os.access(link, os.W_OK): breach("could write to", source)
            os.unlink(link)
    """)

add("set_kernel_variables", "write to /proc/sys, /proc/sysrq-trigger, /sys and control groups", r"""
    paths = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches",
             "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/binfmt_misc/register",
             "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/1/oom_score_adj", "/sys/kernel/uevent_helper",
             "/sys/power/state", *glob.glob("/sys/fs/cgroup/*/cgroup.procs"), *glob.glob("/sys/fs/cgroup/cgroup.procs")]
    for path in paths: attempt(path, lambda: os.close(os.open(path, os.O_WRONLY))) # opened, never written to
    """, process="rights")


group("Network")

add("tcp", "connect to a server on the host", r"""
    for where in ("127.0.0.1", "localhost", "0.0.0.0", *HOST["addresses"]):
        def connect():
            with socket.create_connection((where, HOST["tcp"]), 1) as s: s.sendall(b"got out")
        attempt(where, connect)
    """, portable=True)

add("udp", "send a datagram to the host", r"""
    for where in ("127.0.0.1", *HOST["addresses"]):
        def sendto():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: return s.sendto(b"got out", (where, HOST["udp"]))
        try: held(where, sendto(), "bytes sent to the loopback of this home")
        except OSError as e: held(where, e)
    """, portable=True)

add("unix_socket", "connect to a Unix socket of the host", r"""
    def connect():
        with socket.socket(socket.AF_UNIX) as s: s.connect(HOST["unix"])
    attempt("path", connect)
    """, portable=True)

add("abstract_socket", "connect to an abstract Unix socket of the host", r"""
    def connect():
        with socket.socket(socket.AF_UNIX) as s: s.connect("\0" + HOST["abstract"])
    attempt("abstract", connect)
    """)

add("internet", "reach other machines: names, addresses, a routed interface", r"""
    attempt("name", socket.getaddrinfo, "example.com", 80)
    for family, where in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        def connect():
            with socket.socket(family) as s:
                s.settimeout(1)
                s.connect((where, 9))
        try: connect()
        except TimeoutError: breach(where, "there is a route")
        except OSError as e: held(where, e)
        else: breach(where)
    def sendto():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b"\0"*12, ("192.0.2.1", 53))
    attempt("datagram", sendto)
    """, process=None)

add("raw_sockets", "open raw and packet sockets", r"""
    for what in ((socket.AF_PACKET, socket.SOCK_RAW, 3), (socket.AF_INET, socket.SOCK_RAW, 1), (socket.AF_INET6, socket.SOCK_RAW, 58)):
        attempt(what, lambda: socket.socket(*what).close())
    """, process="rights")

add("vsock", "connect to a vsock listener of this machine", r"""
    def connect():
        with socket.socket(socket.AF_VSOCK) as s:
            s.settimeout(1)
            s.connect((1, HOST["vsock"]))
    attempt("vsock", connect)
    """, needs="vsock")

add("services", "connect to any socket that lies in the file system", r"""
    for top in ("/run", "/var/run", "/tmp", "/dev", "/home", "/root", "/var/lib"):
        for at, dirs, files in os.walk(top):
            for o in files:
                path = os.path.join(at, o)
                with contextlib.suppress(OSError):
                    if stat.S_ISSOCK(os.stat(path).st_mode): breach(path)
    held("searched")
    """, process=None)


group("Processes")

add("same_namespaces", "be in a namespace of the host", r"""
    for name in ("pid", "net", "ipc", "uts", "mnt", "user"):
        try: own = os.readlink(f"/proc/self/ns/{name}")
        except OSError as e: held(e)
        else: (breach if own == HOST["ns"][name] else held)(name, own)
    """)

add("see_processes", "see processes of the host and their command lines", r"""
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if HOST["mark"].encode() in (data := read(path)): breach(path, data[:80])
    held("searched")
    """)

add("signal_process", "signal a process of the host", r"""
    for sig in (0, signal.SIGUSR1, signal.SIGTERM): attempt(sig, os.kill, HOST["bystander"], sig)
    """)

add("signal_host", "signal the host itself", r"""
    attempt("signal 0", os.kill, HOST["pid"], 0)
    """, portable=True)

add("signal_pidfd", "signal a process through a pidfd", r"""
    attempt("pidfd_send_signal", lambda: syscall("pidfd_send_signal", syscall("pidfd_open", HOST["bystander"], 0), 15, None, 0))
    """)

add("ptrace", "trace a process of the host", r"""
    def trace():
        attempt("attach", call, "ptrace", 16, HOST["bystander"], None, None)
        libc.ptrace(17, HOST["bystander"], None, None)
    in_child(trace)
    """, process="rights")

add("raise_limits", "raise the limits that were set", r"""
    import resource
    for name in ("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_MEMLOCK"):
        which = getattr(resource, name)
        soft, hard = resource.getrlimit(which)
        if hard == resource.RLIM_INFINITY:
            held(name, "is not limited")
            continue
        def more(): resource.setrlimit(which, (soft, hard + 1))
        in_child(attempt, name, more)
    in_child(attempt, "nice", os.nice, -5)
    in_child(attempt, "real time", os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
    """, process="rights")

add("take_privileges", "become another user or get capabilities", r"""
    in_child(attempt, "setgroups", os.setgroups, [0])
    for name in ("setuid", "seteuid", "setgid", "setegid"): in_child(attempt, name, getattr(os, name), 0)
    for line in open("/proc/self/status"):
        if line.startswith("Cap") and not line.startswith("CapBnd") and int(line.split()[1], 16): breach(line.strip())
    held("looked")
    """, process="rights")

add("setuid_programs", "gain rights by setuid programs", r"""
    import shutil
    found = [o for o in glob.glob("/usr/bin/*") + glob.glob("/usr/sbin/*") if os.path.isfile(o) and os.stat(o).st_mode & stat.S_ISUID]
    gain = "NoNewPrivs:\t0" in read("/proc/self/status").decode()
    for o in found: (breach if gain else held)(o, "may give rights" if gain else "gives no rights")
    with contextlib.suppress(OSError): os.unlink("/tmp/rlm-setuid")
    shutil.copy("/usr/bin/id", "/tmp/rlm-setuid")
    os.chmod("/tmp/rlm-setuid", 0o4755)
    said = subprocess.run(["/tmp/rlm-setuid", "-u"], capture_output=True, text=True)
    os.unlink("/tmp/rlm-setuid")
    (breach if said.stdout.strip() == "0" else held)("id says", said)
    """, process="rights")


group("Kernel")

add("new_namespaces", "make or enter namespaces", r"""
    flags = dict(user=0x10000000, mnt=0x20000, net=0x40000000, pid=0x20000000, ipc=0x8000000, uts=0x4000000, cgroup=0x2000000)
    for name, flag in flags.items(): in_child(attempt, f"unshare {name}", call, "unshare", flag)
    in_child(attempt, "unshare user and mnt", call, "unshare", 0x10020000)
    def enter(pid, name):
        fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        call("setns", fd, 0)
    for pid in (1, HOST["pid"]):
        for name in flags: in_child(attempt, f"enter {name} of {pid}", enter, pid, name)
    """, process="rights")

add("mounts", "mount, remount and unmount", r"""
    paths = ["/", "/usr", "/proc", "/dev", "/tmp"]
    for o in paths: refused(f"mount on {o}", call, "mount", b"none", o.encode(), b"nosuchtype", 0, None) # a type that there is not
    refused("unmount", call, "umount2", b"/usr/bin", 0) # not a mount
    refused("pivot_root", syscall, "pivot_root", b".", b".")
    refused("open_tree", syscall, "open_tree", -100, b"/", 1) # a clone
    refused("fsopen", syscall, "fsopen", b"nosuchtype", 0)
    in_child(attempt, "chroot", os.chroot, "/tmp")
    """, process="rights")

add("devices", "make and open devices", r"""
    for name, mode, number in (("disk", stat.S_IFBLK, (8, 0)), ("mem", stat.S_IFCHR, (1, 1)), ("kmsg", stat.S_IFCHR, (1, 11))):
        path = f"/tmp/{HOST['mark']}-{name}"
        def make():
            os.mknod(path, mode | 0o600, os.makedev(*number))
            os.unlink(path)
        attempt(f"mknod {name}", make)
    known = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/ptmx", "/dev/pts/ptmx"}
    wanted = ["/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/vda", "/dev/sda", "/dev/vsock", "/dev/loop-control",
              "/dev/tty", "/dev/console", "/dev/ttyS0"]
    for path in wanted: attempt(path, lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)))
    for at, dirs, files in os.walk("/dev"):
        for o in files:
            path = os.path.join(at, o)
            if path in known or path in wanted: continue
            with contextlib.suppress(OSError):
                if stat.S_ISBLK(mode := os.lstat(path).st_mode) or stat.S_ISCHR(mode): breach(path)
    """, process="rights")

add("kernel_calls", "use system calls of an administrator", r"""
    # each with arguments that do nothing
    refused("reboot", syscall, "reboot", 0, 0, 0, None)
    refused("init_module", syscall, "init_module", None, 0, None)
    refused("kexec_load", syscall, "kexec_load", None, 0, None, 0xffff)
    refused("swapon", call, "swapon", None, 0)
    refused("acct", call, "acct", b"")
    refused("sethostname", call, "sethostname", None, ctypes.c_size_t(-1))
    refused("open_by_handle_at", call, "open_by_handle_at", os.open("/", os.O_RDONLY), ctypes.create_string_buffer(b"\x08\0\0\0\1\0\0\0" + b"\0"*64), 0)
    """, process="rights")


group("Terminal")

add("write_to_terminal", "write to a terminal of the user, and type into it", r"""
    import fcntl, termios
    def write():
        fd = os.open(HOST["tty"], os.O_RDWR | os.O_NOCTTY)
        os.write(fd, b"\x1b]0;owned\x07")
        return fd
    if (fd := attempt(HOST["tty"], write)) is not None:
        attempt("TIOCSTI", fcntl.ioctl, fd, termios.TIOCSTI, b"x")
        os.close(fd)
    """, process="rights", needs="tty")

add("type_into_terminal", "type into whatever terminal the process can reach", r"""
    import fcntl, termios
    attempt("/dev/tty", lambda: os.close(os.open("/dev/tty", os.O_RDWR)))
    for fd in range(64):
        try: fcntl.ioctl(fd, termios.TIOCSTI, b"x")
        except OSError as e: held(fd, e)
        else: breach("typed into", fd)
        if os.isatty(fd): breach(fd, os.ttyname(fd))
    """, process="fails")


group("Bombs")

add("fork_bomb", "start more processes than the limit", r"""
    made = []
    try:
        for _ in range(3*HOST["processes"]):
            pid = os.fork()
            if not pid:
                time.sleep(2)
                os._exit(0)
            made.append(pid)
    except OSError as e: held(e)
    if len(made) > HOST["processes"] + 8: breach(len(made), "processes")
    else: held(len(made), "processes")
    for pid in made: os.kill(pid, 9)
    for pid in made: os.waitpid(pid, 0)
    """, process="rights", limit="processes", fresh=True)

add("background_processes", "leave processes behind that ignore all signals", r"""
    for _ in range(5):
        if not os.fork():
            if os.fork(): os._exit(0)
            os.setsid()
            for sig in range(1, 32):
                with contextlib.suppress(OSError, ValueError): signal.signal(sig, signal.SIG_IGN)
            if not os.fork():
                time.sleep(20)
            os._exit(0)
        os.wait()
    held("left")
    """, process="fails", fresh=True)

add("background_sockets", "leave processes behind that hold the channel open and write to it", r"""
    if not os.fork():
        os.setsid()
        end = time.time() + 10
        while time.time() < end:
            send(b"\xff"*1000, seconds=.01)
            time.sleep(.01)
        os._exit(0)
    held("left")
    """, process="fails", fresh=True, spoils=True, ends=died + late)

add("thread_bomb", "start more threads than the limit", r"""
    stop, made = threading.Event(), []
    threading.stack_size(65536)
    try:
        for _ in range(3*HOST["processes"]):
            t = threading.Thread(target=stop.wait, args=(2,), daemon=True)
            t.start()
            made.append(t)
    except (RuntimeError, MemoryError) as e: held(e)
    if len(made) > HOST["processes"] + 8: breach(len(made), "threads")
    else: held(len(made), "threads")
    stop.set()
    for t in made: t.join(2)
    """, process="rights", limit="processes", fresh=True, ends=died)

add("thread_leftovers", "leave threads behind that print and write to the channel", r"""
    def go():
        end = time.time() + 4
        while time.time() < end:
            print("x"*1000)
            send(b"\xff"*100, seconds=.01)
            time.sleep(.001)
    for _ in range(4): threading.Thread(target=go, daemon=True).start()
    held("left")
    """, process="fails", fresh=True, spoils=True, ends=died + late)

add("memory_bomb", "use more memory than the limit", r"""
    hoard = []
    try:
        for _ in range(HOST["memory"]*3 >> 25): hoard.append(b"x"*(1 << 25))
        breach(len(hoard) << 25, "bytes")
    except MemoryError as e: held("MemoryError after", len(hoard) << 25)
    hoard = None
    """, process="fails", ends=("MemoryError",) + died, keeps=True)

add("memory_of_children", "use more memory than the limit in several processes together", r"""
    made = []
    for _ in range(12):
        r, w = os.pipe()
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                mine = b"x"*(HOST["memory"]//3)
                os.write(w, b"1")
                time.sleep(4)
            os._exit(0)
        os.close(w)
        made.append((pid, r))
    time.sleep(1.5)
    n = 0
    for pid, r in made:
        os.set_blocking(r, False)
        with contextlib.suppress(OSError): n += os.waitpid(pid, os.WNOHANG)[0] == 0 and os.read(r, 1) == b"1"
        os.close(r)
    for pid, _ in made:
        with contextlib.suppress(OSError): os.kill(pid, 9)
    for pid, _ in made:
        with contextlib.suppress(OSError): os.waitpid(pid, 0)
    (breach if n > 8 else held)(n, "of 12 children have a third of the memory each at the same time")
    """, process="rights", limit="memory", ends=died, fresh=True)

add("memory_in_files", "use more memory than the limit in files that exist in memory only", r"""
    fds, total = [], 0
    try:
        for _ in range(40):
            fds.append(os.memfd_create("bomb"))
            for _ in range(20): total += os.write(fds[-1], b"x"*(1 << 20))
            if total > 2*HOST["memory"]: break
    except OSError as e: held(e)
    try:
        for i in range(40):
            with open(f"/dev/shm/{HOST['mark']}{i}", "wb") as f:
                for _ in range(9): total += f.write(b"x"*(1 << 20))
    except OSError as e: held(e)
    for o in glob.glob(f"/dev/shm/{HOST['mark']}*"): os.unlink(o)
    for fd in fds: os.close(fd)
    (breach if total > 2*HOST["memory"] else held)(total, "bytes")
    """, process="rights", limit="memory", ends=died + ("OSError",))

add("big_file", "write a file larger than the limit", r"""
    path, n = f"/tmp/{HOST['mark']}-big", 0
    try:
        with open(path, "wb", 0) as f:
            for _ in range(HOST["file_size"]*2 >> 20): n += f.write(b"x"*(1 << 20))
    except OSError as e: held(e)
    (breach if n > HOST["file_size"] else held)(n, "bytes")
    os.unlink(path)
    said = subprocess.run(["sh", "-c", f"head -c {2*HOST['file_size']} /dev/zero > {path}; wc -c < {path}"], capture_output=True, text=True)
    if int(said.stdout or 0) > HOST["file_size"]: breach(said.stdout, "bytes by a program")
    with contextlib.suppress(OSError): os.unlink(path)
    """, process="fails", portable=True)

add("many_files", "fill the disk with many files", r"""
    made, n = [], 0
    try:
        for i in range(400_000_000//HOST["file_size"]):
            made.append(f"/tmp/{HOST['mark']}-{i}")
            with open(made[-1], "wb") as f: n += f.write(b"x"*HOST["file_size"])
    except (OSError, MemoryError) as e: held(e)
    for o in made:
        with contextlib.suppress(OSError): os.unlink(o)
    (breach if n > 320_000_000 else held)(n, "bytes")
    """, ends=died)

add("descriptor_bomb", "use up all descriptors, and keep them", r"""
    many = []
    try:
        while len(many) < 4*HOST["open_files"]: many.append(os.open("/dev/null", os.O_RDONLY))
        breach(len(many))
    except OSError as e: held(len(many), e)
    """, process="fails", portable=True, fresh=True)

add("zip_bomb", "decompress a small text to a huge one", r"""
    import zlib
    c = zlib.compressobj(wbits=-15)
    block = c.compress(bytes(1 << 20)) + c.flush(zlib.Z_FULL_FLUSH)
    try: breach(len(zlib.decompressobj(wbits=-15).decompress(block*(HOST["memory"]*3 >> 20))))
    except MemoryError as e: held("MemoryError")
    """, process="fails", ends=("MemoryError",) + died, keeps=True)

add("zip_file_bomb", "unpack a small archive to a huge file", r"""
    import io, zipfile
    path, n = f"/tmp/{HOST['mark']}-zip", 0
    with zipfile.ZipFile(data := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as z: z.writestr("zeros", bytes(2*HOST["file_size"]))
    try: n = os.path.getsize(zipfile.ZipFile(data).extract("zeros", path))
    except OSError as e: held(e)
    if n > HOST["file_size"]: breach(n)
    import shutil
    shutil.rmtree(path, ignore_errors=True)
    """, process="fails", portable=True)

add("billion_numbers", "make a number with a billion digits", r"""
    n = 10**(10**9)
    breach(n.bit_length())
    """, process="fails", ends=("MemoryError", "OverflowError") + died + late, seconds=1, keeps=True)

add("deep_recursion", "overflow the stack", r"""
    import ast
    deep = []
    for _ in range(200_000): deep = [deep]
    for f in (repr, lambda o: ast.literal_eval("["*100_000), lambda o: eval("-"*200_000 + "1")):
        try: f(deep)
        except (RecursionError, MemoryError, SyntaxError, ValueError) as e: held(type(e).__name__)
    sys.setrecursionlimit(10**9)
    def down(n): return n and down(n - 1)
    down(10**7)
    """, process="fails", ends=("MemoryError", "RecursionError", "SystemError") + died + late, keeps=True, seconds=1)

add("endless_output", "print for ever", r"""
    while True: print("x"*1000)
    """, process="fails", ends=late, seconds=1, keeps=True, portable=True)

add("endless_output_to_descriptor", "write to descriptor 1 for ever", r"""
    while True: os.write(1, b"x"*65536)
    """, process="fails", ends=late + ("OSError",), seconds=1, keeps=True, portable=True)

add("endless_output_of_program", "run a program that prints for ever", r"""
    try: subprocess.run(["yes"], timeout=10)
    except OSError as e: held(e)
    held("ended")
    """, process="fails", ends=late, seconds=1, keeps=True)

add("endless_command", "run `!yes`", r"""
    get_ipython().system("yes")
    held("ended")
    """, process="fails", ends=late, seconds=1, keeps=True)

add("endless_displays", "display for ever", r"""
    from IPython.display import display
    while True: display("x"*1000)
    """, process="fails", ends=late, seconds=1, portable=True)

add("huge_error", "raise an error with a huge message", r"""
    raise ValueError("x"*50_000_000)
    """, process="fails", ends=("ValueError", "MemoryError"), portable=True)

add("huge_result", "end with a huge expression", r"""
    held("huge")
    ["x"*50_000_000]*1_000_000
    """, process="fails", ends=late, seconds=2, portable=True)


group("Ends and hangs")

ends = [
    ("sys_exit", "call sys.exit", "import sys\nheld('exit')\nsys.exit(3)", ("SystemExit",)),
    ("os_exit", "call os._exit", "os._exit(0)", died),
    ("segfault", "crash the interpreter", "ctypes.string_at(0)", died),
    ("abort", "abort the interpreter", "os.abort()", died),
    ("kill_self", "kill its own process", "os.kill(os.getpid(), 9)", died),
    ("terminate_self", "terminate its own process", "os.kill(os.getpid(), 15)\ntime.sleep(10)", died + late),
    ("exit_in_thread", "call os._exit in a thread", "threading.Thread(target=os._exit, args=(1,)).start()\ntime.sleep(5)", died),
    ("stop_self", "stop its own process", "os.kill(os.getpid(), signal.SIGSTOP)", died + late),
    ("interrupt_self", "interrupt its own process", "os.kill(os.getpid(), 2)\ntime.sleep(5)", ("KeyboardInterrupt",) + died + late)]
for name, aim, code, how in ends: add(name, aim, code, process="fails", ends=how, keeps=True, portable=True, seconds=1.5)

add("kill_group", "kill its process group", """
    if os.getpgrp() == HOST["group"] and os.readlink("/proc/self/ns/pid") == HOST["ns"]["pid"]: breach("in the group of the host")
    else: os.killpg(0, 9)
    """, process="fails", ends=died)

add("kill_all", "kill every process that there is", """
    if os.readlink("/proc/self/ns/pid") == HOST["ns"]["pid"]: breach("would reach the host")
    else: os.kill(-1, 9)
    time.sleep(5)
    """, process=None, ends=died + late)

add("kill_parent", "kill the process that watches it", "os.kill(parent(), 9)\ntime.sleep(5)", process="fails", ends=died + late)
add("stop_parent", "stop the process that watches it", "os.kill(parent(), signal.SIGSTOP)\ntime.sleep(1)\nheld('stopped')", process=None,
    ends=died + late, seconds=1)

add("kill_siblings", "kill the snapshots that would replace it", r"""
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, rest = int(path.split("/")[2]), read(path).rpartition(b") ")[2].split()
            if int(rest[1]) in (parent(), os.getpid()) and pid not in (os.getpid(), parent(), HOST["pid"]): os.kill(pid, 9)
    os._exit(1)
    """, process="fails", ends=died)

hangs = [
    ("loop", "loop for ever", "while True: pass"),
    ("sleep", "sleep for ever", "time.sleep(10**6)"),
    ("c_loop", "loop for ever in C", "sum(range(10**12))"),
    ("ignore_interrupts", "ignore interrupts", "signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"),
    ("catch_everything", "catch every exception", "while True:\n    try:\n        while True: time.sleep(.01)\n    except BaseException: pass"),
    ("endless_del", "loop for ever in __del__", "class Endless:\n    def __del__(self):\n        while True: pass\nx = Endless()\ndel x"),
    ("regex", "match a pattern that takes for ever", "re.match('(a+)+$', 'a'*60 + 'b')"),
    ("wait_for_child", "wait for a child that never ends", "subprocess.run(['sleep', '30'])"),
    ("join_thread", "wait for a thread that never ends",
        "t = threading.Thread(target=time.sleep, args=(20,), daemon=True)\nt.start()\nt.join()"),
    ("endless_await", "await for ever", "import asyncio\nawait asyncio.sleep(10**6)")]
for name, aim, code in hangs:
    add(name, aim, code, process="fails", ends=late, keeps=True, portable=True, seconds=1, fresh=name == "join_thread")

add("catch_the_answer", "catch the end that FINAL makes, and loop on", """
    try: FINAL("done")
    except BaseException: pass
    while True: pass
    """, process="fails", ends=late + ("KeyboardInterrupt",), seconds=1, portable=True)

add("alarm", "raise errors at any time from a signal handler", """
    def no(*args): raise RuntimeError("from the handler")
    for sig in (signal.SIGALRM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1): signal.signal(sig, no)
    signal.setitimer(signal.ITIMER_REAL, .02, .02)
    held("set")
    time.sleep(1)
    """, process="fails", ends=("RuntimeError",) + died + late, fresh=True, seconds=2)

add("trace_functions", "raise errors at any time from trace and profile functions", """
    def no(*args): raise RuntimeError("from the tracer")
    import gc
    gc.callbacks.append(no)
    threading.setprofile(no)
    held("set")
    sys.setprofile(no)
    sys.settrace(no)
    """, process="fails", ends=("RuntimeError",) + died + late, fresh=True, spoils=True, seconds=1.5, portable=True)


group("Channel")

add("close_descriptors", "close the descriptors of the channel", "os.closerange(3, 1000)\nheld('closed')", process="fails",
    ends=("OSError",) + died + late, seconds=2, portable=True)
add("close_all_descriptors", "close all descriptors", "os.closerange(0, 1000)\nheld('closed')", process="fails",
    ends=("OSError",) + died + late, seconds=2, portable=True)

add("replace_descriptors", "put other files in place of all descriptors", r"""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(1000):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            os.dup2(null, fd)
    held("replaced")
    """, process="fails", ends=("OSError",) + died + late, seconds=2)

add("replace_by_sockets", "put sockets of its own in place of the channel", r"""
    a, b = socket.socketpair()
    for fd in [*sockets()]:
        if fd not in (a.fileno(), b.fileno()): os.dup2(a.fileno(), fd)
    held("replaced")
    """, process="fails", ends=("OSError",) + died + late, seconds=2)

add("flood_descriptors", "flood every descriptor with garbage", r"""
    for fd in range(64):
        with contextlib.suppress(OSError): os.set_blocking(fd, False)
    for _ in range(20): send(os.urandom(65536), range(64), .05)
    held("flooded")
    """, process="fails", ends=("OSError", "ProtocolError") + died + late, fresh=True, seconds=3)

forged = [
    ("garbage", "write garbage to the channel", 'send(os.urandom(65536))'),
    ("zeros", "write empty frames to the channel", 'send(bytes(65536))'),
    ("huge_lengths", "claim that a frame has 8 GB", 'for kind in kinds: send(kind + b"\\xff"*8 + b"x"*1000)'),
    ("large_lengths", "claim that frames have a megabyte, and send little", 'for kind in kinds: send(kind + struct.pack("!II", 1, 1 << 20) + b"{}")'),
    ("half_frame", "begin a frame and never end it", 'send(b"l" + struct.pack("!II", 1000, 1000) + b"{")'),
    ("no_json", "send frames that are not JSON", 'for kind in kinds: send(frame(b"\\xff{{", kind=kind) + frame(b"", kind=kind))'),
    ("odd_json", "send frames that are other JSON",
        'for o in (b"1", b"[]", b"null", b\'"x"\', b"{}", b"NaN", b\'{"o":1}\', b\'{"x":1}\', b\'{"o":{},"d":[]}\'):\n'
        '    for kind in kinds: send(frame(o, kind=kind))'),
    ("deep_json", "send JSON of great depth", 'for kind in kinds: send(frame(b"["*100_000, kind=kind) + frame(b\'{"o":\'*100_000, kind=kind))'),
    ("wide_json", "send JSON of millions of values", 'for kind in kinds: send(frame(b"[" + b"{},"*3_000_000 + b"1]", kind=kind), seconds=1)'),
    ("huge_numbers", "send huge numbers",
        'for o in (b"1"*100_000, b"1e999", b"-Infinity"):\n'
        '    for k in (b"op", b"id", b"pid", b"cells", b"elided", b"stdout"): send(frame(b\'{"o":{"op":"done","%s":%s}}\' % (k, o)))'),
    ("colliding_keys", "send keys that all have the same hash",
        'send(frame(b\'{"d":[\' + b",".join(b"[%d,0]" % (i*(2**61 - 1)) for i in range(200_000)) + b"]}"), seconds=1)'),
    ("decimals", "send numbers whose arithmetic takes for ever", 'send(frame(b\'{"o":{"op":"done","final":{"decimal":"1e999999999"}}}\'))'),
    ("pickles", "send pickles",
        'import pickle\np = pickle.dumps(Evil())\nfor kind in kinds: send(frame(p, p, kind) + frame(b"{}", p, kind))\n'
        'send(p)\nsend(struct.pack("!i", len(p)) + p)'),
    ("results", "send results with wrong types", r"""
for o in (1, None, [1], {"o": {}}, "x"): send(message(op="done", id=request(), cells=1, stdout=o, stderr=o, result=o, error=o, elided=o, restored=o, names=o, ended=o,
    displays=o, final=o))
for o in ("x", [1], [{"o": {}}], [{"o": {"output_type": 5, "data": 6}}]): send(message(op="done", id=request(), cells=1, stdout="", stderr="", result=None, error=None, elided=-5,
    restored=[], names=[], ended=False, displays=o, final=None))
"""),
    ("missing_fields", "send messages without their fields",
        'for op in ("done", "value", "call", "ready", "died", "failed", "probed", "reply", "none", "__class__"):\n'
        '    for kind in kinds: send(message(kind, op=op))'),
    ("answers", "send many results for one cell", r"""
one = message(op="done", id=request(), cells=1, stdout="[held] forged", stderr="", result=None, error=None, elided=0, restored=[], names=[], ended=False, displays=[], final=None)
send(one*1000)
"""),
    ("calls", "call functions of the host that are none of its business", r"""
names = ("os.system", "system", "eval", "exec", "open", "__init__", "__class__", "__import__", "run", "close", "protect", "sub", "_batch", "attach",
    "echo.__globals__", "llm_query.__self__", "budget", "", "x"*10_000)
for i, name in enumerate(names):
    for args in ([], ["touch " + HOST["marker"]], [HOST["marker"], "w"]):
        send(message(op="call", id=[0, 100_000 + i], name=name, args=args, kwargs={"o": {}}))
"""),
    ("arguments", "call functions of the host with odd arguments", r"""
for args, kwargs in ((5, {"o": {}}), ("text", {"o": {}}), ([], []), ([], {"d": [[1, 2]]}), ([], {"o": {"self": 1}}), ([1]*1000, {"o": {}}), ([], {"o": {"": 1}})):
    for name in ("echo", "llm_query", "llm_query_batched", ["echo"], {"o": {}}, None):
        for n in ([0, 1], 5, None, [[]], {"o": {}}): send(message(op="call", id=n, name=name, args=args, kwargs=kwargs))
"""),
    ("supervisor", "speak as the supervisor",
        'send(message(b"z", op="ready", pid=1) + message(b"z", op="died", status=0, cells=10**9, sizes=[10**9]*3) + message(b"z", op="failed", error="x"))'),
    ("snapshots", "announce snapshots that there are not",
        'for pid in (1, -1, 0, 2**31, os.getpid(), os.getppid(), "x", None): send(message(b"s", pid=pid, cells=1))')]
for name, aim, code in forged:
    add(f"forged_{name}", aim, f'kinds = (b"l", b"z", b"s")\n{code}\nheld("sent")', process="fails", ends=("OSError", "ProtocolError") + died + late,
        seconds=1)

odd_fields = [dict(cells=[]), dict(cells=-1), dict(cells=10**12), dict(cells=None), dict(cells="1"), dict(names=[["x"], 5, None]), dict(names="x"),
    dict(displays=[{"o": dict(output_type="display_data", data={"o": {}}, metadata="text")}]), dict(displays=[{"o": dict(data={"o": {}}, metadata=[1])}]),
    dict(displays=[{"o": dict(data={"o": {"text/plain": {"o": {}}}}, at="x")}]), dict(error=["E"]), dict(error=["E", "v", "t"], result="both"),
    dict(elided=10**18), dict(elided=-1), dict(stdout="LONG"), dict(result="LONG"), dict(error=["E", "LONG", "LONG"]),
    dict(displays="MANY"), dict(ended=True), dict(ended="no"), dict(stdout=None), dict(restored=["LONG"])]

add("forged_states", "send results with one odd field", f"""
    fields = {odd_fields!r}[HOST["way"]]
    usual = dict(op="done", id=request(), stdout="[held] sent", stderr="", result=None, error=None, elided=0, restored=[], names=[], ended=False, displays=[], final=None, cells=1)
    def grown(v):
        if v == "LONG": return "x"*1_000_000
        if v == "MANY": return [dict(o=dict(data=dict(o=dict(text="x"))))]*100_000
        return [*map(grown, v)] if isinstance(v, list) else v
    send(message(**dict((k, grown(v)) for k, v in (usual | fields).items())), seconds=1)
    time.sleep(.2)
    held("sent")
    """, process="fails", ends=("ProtocolError", "E") + died + late, seconds=1, ways=len(odd_fields))

add("forged_successor", "have a process of its choice taken for its successor, so that nobody stops the real one", r"""
    pid = os.fork()
    if not pid:
        time.sleep(20)
        os._exit(0)
    send(message(b"s", pid=pid, cells=1))
    os._exit(0)
    """, process="fails", ends=died + late, fresh=True, seconds=1.5, then="signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass")

add("pickled_values", "have the host unpickle an object of its making", """
    import pickle
    x = Evil()
    held("made")
    print(pickle.dumps(x))
    FINAL(x)
    """, process="fails", portable=True)

add("fork_without_exit", "let two processes go on from one cell", "pid = os.fork()\nheld('forked', bool(pid))", process="fails",
    ends=("OSError",) + died + late, fresh=True, seconds=3)

add("fork_and_answer", "let many processes answer in one cell", """
    for _ in range(3): os.fork()
    held("forked")
    FINAL(os.getpid())
    """, process="fails", ends=("OSError",) + died + late, fresh=True, seconds=3)

add("exec", "become another program that holds the channel", """
    for fd in range(3, 64):
        with contextlib.suppress(OSError): os.set_inheritable(fd, True)
    os.execv("/bin/sleep", ["sleep", "20"])
    """, process="fails", ends=died + late, seconds=1)

add("half_close", "shut one side of the channel", """
    for fd in [*sockets()]:
        with contextlib.suppress(OSError): socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_WR)
    held("shut")
    """, process="fails", ends=("OSError",) + died + late, seconds=2)

add("never_reads", "ask for much, and never read it", r"""
    def ask():
        for _ in range(10): large(20_000_000)
    for _ in range(4): threading.Thread(target=ask, daemon=True).start()
    time.sleep(.2)
    os.kill(os.getpid(), signal.SIGSTOP)
    """, process="fails", ends=died + late + ("MemoryError",), fresh=True, seconds=1)

add("steal_the_parents_socket", "take the parent's channel to the host, and write to it", r"""
    def steal():
        me, fds = syscall("pidfd_open", parent(), 0), []
        for fd in range(3, 64):
            with contextlib.suppress(OSError): fds.append(syscall("pidfd_getfd", me, fd, 0))
        fds = [o for o in fds if stat.S_ISSOCK(os.fstat(o).st_mode)]
        held(len(fds), "sockets of the parent")
        import pickle
        for data in (frame(pickle.dumps(Evil())), b"\xff"*100_000, frame(b"["*100_000), b"\0"*65536): send(data, fds)
    try: steal()
    except OSError as e: held(e)
    """, process="fails", ends=("ProtocolError",) + died + late, seconds=3)

add("corrupt_the_parent", "overwrite the memory of the process that watches it", r"""
    def corrupt():
        pid = parent()
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "r+b", 0) as mem:
            for line in maps:
                if "[heap]" not in line and "[stack]" not in line: continue
                start, stop = (int(o, 16) for o in line.split()[0].split("-"))
                mem.seek(start)
                mem.write(b"\xfe"*min(stop - start, 1 << 22))
        held("overwritten")
    try: corrupt()
    except OSError as e: held(e)
    """, process="fails", ends=died + late, seconds=3)

add("trace_the_parent", "hold the process that watches it with ptrace", r"""
    if libc.ptrace(16, parent(), None, None) == -1: held(os.strerror(ctypes.get_errno()))
    else: held("attached")
    """, process="fails", ends=died + late, fresh=True, seconds=1.5)

add("kill_tracer_and_parent", "kill everything above it, bottom up", r"""
    pid = parent()
    for _ in range(3):
        above = int(read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()[1])
        if pid in (0, HOST["pid"]) or of_the_host(pid): break
        with contextlib.suppress(OSError): os.kill(pid, 9)
        if above in (0, 1, HOST["pid"]): break
        pid = above
    time.sleep(5)
    """, process=None, ends=died + late, fresh=True)


group("Worker")

sabotage = [
    ("builtins", "take Python's builtins away",
        "import builtins\nheld('gone')\nfor k in [*vars(builtins)]:\n    if k != 'delattr': delattr(builtins, k)"),
    ("json", "replace the JSON module", "import json\njson.dumps = json.loads = json.JSONEncoder = lambda *a, **kw: 1/0\nheld('replaced')"),
    ("socket", "replace what writes to sockets", "socket.socket.sendall = socket.socket.send = os.write = os.writev = lambda *a: None\nheld('replaced')"),
    ("fork", "replace os.fork and os._exit", "os.fork = lambda: 0\nos._exit = sys.exit = lambda *a: None\nheld('replaced')"),
    ("struct", "replace the struct module", "struct.pack = struct.Struct = struct.unpack = None\nheld('replaced')"),
    ("import", "replace __import__", "import builtins\ndef no(*a, **kw): raise ImportError\nbuiltins.__import__ = no\nheld('replaced')"),
    ("modules", "empty sys.modules", "held('emptied')\nsys.modules.clear()"),
    ("streams", "take the streams away", "held('gone')\nsys.stdout = sys.stderr = sys.__stdout__ = None"),
    ("shell", "break the shell object",
        "ip = get_ipython()\nheld('broken')\nfor k in ('run_cell', 'run_cell_async', '_begin', '_result', '_end'): setattr(type(ip), k, None)"),
    ("all_modules", "replace the functions of the worker's modules", r"""
held("replaced")
for name, module in [*sys.modules.items()]:
    if name.partition(".")[0] != "rlm" and "worker" not in name and name != "__main__": continue
    for k, v in [*vars(module).items()]:
        if callable(v) and not k.startswith("__"): setattr(module, k, lambda *a, **kw: None)
""")]
for name, aim, code in sabotage:
    add(f"sabotage_{name}", aim, code, process="fails", fresh=True, spoils=True, seconds=1.5,
        ends=("TypeError", "AttributeError", "NameError", "ImportError", "KeyError", "ZeroDivisionError", "OSError", "ProtocolError") + died + late)

add("overwrite_functions", "overwrite FINAL, llm_query and context", """
    for k in ("FINAL", "FINAL_VAR", "SHOW_VARS", "llm_query", "llm_query_batched", "context", "answer"): globals()[k] = lambda *a: "mine"
    held("overwritten")
    """, process="fails", portable=True, fresh=True)


group("Objects")

objects = [
    ("repr_raises", "class X:\n    def __repr__(self): raise RuntimeError('no repr')"),
    ("repr_exits", "class X:\n    def __repr__(self): raise SystemExit"),
    ("repr_interrupts", "class X:\n    def __repr__(self): raise KeyboardInterrupt"),
    ("repr_endless", "class X:\n    def __repr__(self):\n        while True: pass"),
    ("repr_huge", "class X:\n    def __repr__(self): return 'x'*50_000_000"),
    ("repr_no_text", "class X:\n    def __repr__(self): return 5"),
    ("repr_kills", "class X:\n    def __repr__(self): os.kill(os.getpid(), 9)"),
    ("class_lies", "class X:\n    @property\n    def __class__(self): return str"),
    ("class_raises", "class X:\n    @property\n    def __class__(self): raise RuntimeError('no class')"),
    ("len_raises", "class X:\n    def __len__(self): raise RuntimeError('no length')"),
    ("len_negative", "class X(list):\n    def __len__(self): return -1"),
    ("len_huge", "class X(dict):\n    def __len__(self): return 2**62"),
    ("attributes_raise", "class X:\n    def __getattribute__(self, name): raise BaseException(name)"),
    ("meta", "class M(type):\n    def __getattribute__(self, name): raise RuntimeError(name)\nclass X(metaclass=M): pass"),
    ("name_no_text", "X = type('X\\x1b[2J<script>' + 'x'*100_000, (), {})"),
    ("eq_raises", "class X:\n    __hash__ = None\n    def __eq__(self, o): raise RuntimeError('eq')\n    def __bool__(self): raise RuntimeError('bool')"),
    ("text_lies", "class X(str):\n    def __new__(cls): return str.__new__(cls, 'text')\n    def __len__(self): return 10**12\n"
        "    def encode(self, *a): raise RuntimeError('encode')\n    def __str__(self): return self\n    def __getitem__(self, i): return X()"),
    ("dict_lies", "class X(dict):\n    def __init__(self): super().__init__(a=1)\n    def items(self):\n        while True: yield 'a', self\n"
        "    keys = values = __iter__ = items"),
    ("list_lies", "class X(list):\n    def __iter__(self):\n        while True: yield self"),
    ("json_lies", "class X(dict):\n    def __init__(self): self['__reduce__'] = self['py/object'] = self['$ref'] = self['__class__'] = 'os.system'")]
for name, code in objects:
    late_ok = ("RuntimeError", "SystemExit", "KeyboardInterrupt", "TypeError", "ValueError", "BaseException", "RecursionError", "MemoryError",
               "NameError", "AttributeError")
    add(f"object_{name}", f"show, keep and answer with an object: {name.replace('_', ' ')}", f"""
{code}
held("made")
hostile = X()
try: print(SHOW_VARS())
except Exception as e: print("SHOW_VARS", type(e))
from IPython.display import display
if HOST["way"] == 0: display(hostile)
if HOST["way"] == 1: FINAL(hostile)
if HOST["way"] == 2: FINAL([hostile, dict(a=hostile)])
if HOST["way"] == 3: echo(hostile)
if HOST["way"] == 4: raise type("E", (Exception,), {{"__str__": lambda s: hostile}})(hostile)
hostile
""", process="fails", ends=late_ok + ("E", "InputError", "TooMuch") + died + late, seconds=.4, portable=True, ways=5)

values = [
    ("surrogates", "'\\ud800\\udfff\\x00'*100"), ("not_a_number", "[float('nan'), float('inf'), -float('inf')]"),
    ("circle", "(lambda a: (a.append(a), a)[1])([])"), ("deep", "__import__('functools').reduce(lambda a, _: [a], range(100_000), 1)"),
    ("deep_dict", "__import__('functools').reduce(lambda a, _: {'a': a}, range(5_000), 1)"),
    ("huge_number", "10**100_000"), ("odd_keys", "{1: 2, None: 3, (1, 2): 4, b'x': 5, '1': 6, float('nan'): 7}"),
    ("big_text", "'x'*30_000_000"), ("big_list", "[0]*3_000_000"), ("many_keys", "{str(i): i for i in range(300_000)}"),
    ("endless", "__import__('itertools').count()"), ("module", "os"), ("function", "lambda: 1/0"), ("bytes", "bytes(range(256))*1000"),
    ("script", "'<script>alert(1)</script>\\x1b]0;x\\x07'")]
for name, code in values:
    add(f"answer_{name}", f"answer with an odd value: {name.replace('_', ' ')}", f"held('made')\nhostile = {code}\nFINAL(hostile)", process="fails",
        ends=("ValueError", "TypeError", "RecursionError", "MemoryError", "OverflowError", "InputError", "LimitExceeded") + died + late, seconds=3,
        portable=True)

add("many_variables", "keep many variables with odd names", """
    globals().update({f"v{i}": i for i in range(50_000)})
    globals().update({"\\x1b[2J": 1, "<script>": 2, "\\ud800": 3, "": 4, "x"*100_000: 5})
    with contextlib.suppress(Exception): globals()[1] = 2
    print(len(SHOW_VARS()))
    held("made")
    """, process="fails", portable=True, fresh=True)


words = {"fails": "fails", "succeeds": "succeeds", "rights": "as your rights allow", None: "not tried"}

def table() -> str:
    "What comes of each attack in each home, as a Markdown table"
    lines = ["| | attack | `process` | `sandbox` |", "|---|---|---|---|"]
    last = None
    for o in attacks:
        limited = f"fails where {o.limit} is enforced" if o.limit else "fails"
        lines.append(f"| {o.group if o.group != last else ''} | {o.aim[0].upper() + o.aim[1:]} | {words[o.process]} | {limited} |")
        last = o.group
    return "\n".join(lines)
