"""Cells in a container: real podman, and an image made of nothing but this system's own Python.

Skipped where podman is missing or may not run containers; `.ci/run` installs it."""
import os, re, shutil, subprocess, sys, tarfile, textwrap, time
from pathlib import Path

import pytest

from rlm.events import SandboxUnavailable, ShellError
from rlm.launch import ShellLimits, ipython_stack
from rlm.model import run
from rlm.offline import ScriptedLM, tool_call
from rlm.tools import prep_shell

system_python = Path("/usr/bin/python3")


def libraries(*programs):
    "The shared libraries that programs need"
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True).stdout
    return {o for o in re.findall(r"(/\S+) \(0x", said)}


def rootfs(file):
    "A tar file with Python, its standard library, and what they need"
    python = system_python.resolve()
    home = Path("/usr/lib")/python.name
    with tarfile.open(file, "w") as tar:
        for name in ("tmp", "dev", "proc", "sys", "etc", "run"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
        def plain(t): return None if "__pycache__" in t.name or "/test/" in t.name else t
        tar.add(home, filter=plain)
        for src in (python, *libraries(python, *home.glob("lib-dynload/*.so"))):
            with open(os.path.realpath(src), "rb") as f: tar.addfile(tar.gettarinfo(fileobj=f, arcname=str(src)), f)
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, python.name
        tar.addfile(link)


@pytest.fixture(scope="module", autouse=True)
def engine(tmp_path_factory):
    "podman as it runs in nested and unprivileged places as well: with runc where there is one, and modest limits"
    if not shutil.which("podman"): pytest.skip("podman is not installed")
    conf = tmp_path_factory.mktemp("podman")/"containers.conf"
    runtime = '[engine]\nruntime = "runc"\n' if shutil.which("runc") else ""
    conf.write_text(f'[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n{runtime}')
    before = os.environ.get("CONTAINERS_CONF")
    os.environ["CONTAINERS_CONF"] = str(conf)
    yield
    if before is None: del os.environ["CONTAINERS_CONF"]
    else: os.environ["CONTAINERS_CONF"] = before


@pytest.fixture(scope="module")
def image(engine, tmp_path_factory):
    if not system_python.exists(): pytest.skip("there is no /usr/bin/python3 to make an image of")
    file, name = tmp_path_factory.mktemp("image")/"root.tar", f"localhost/rlm-test:{os.getpid()}"
    rootfs(file)
    made = subprocess.run(["podman", "import", "-q", str(file), name], capture_output=True, text=True)
    if made.returncode: pytest.skip(f"podman cannot make an image here: {made.stderr[-300:]}")
    file.unlink()
    tried = subprocess.run(["podman", "run", "--rm", "--network=none", name, "python3", "-c", "print(1)"], capture_output=True, text=True)
    try:
        if tried.returncode: pytest.skip(f"podman cannot run containers here: {tried.stderr[-300:]}")
        yield f"podman:{name}"
    finally: subprocess.run(["podman", "rmi", "-f", name], capture_output=True)


def containers(): return subprocess.run(["podman", "ps", "-aq", "--filter=name=rlm-"], capture_output=True, text=True).stdout.split()


def none_left(seconds=10):
    until = time.monotonic() + seconds
    while containers() and time.monotonic() < until: time.sleep(.1)
    return containers() == []


@pytest.fixture
def sh(image):
    def add(a: int, b: int) -> int: return a + b
    s = prep_shell("é\r\n\ud83d\ude00"*1000, ScriptedLM(lambda *a, **k: "a reply"), tools=[add], shell=image,
                   shell_limits=ShellLimits(seconds=10, memory=500_000_000, processes=16))
    yield s
    s.close()


def test_a_cell_with_all_it_may_use(sh):
    r = sh.run("import sys\nprint(len(context), context[:5] == 'é\\r\\n\\ud83d\\ude00', llm_query('?'), add(2, b=3))\nFINAL({'n': 1})")
    assert (r.error, r.stdout, r.final) == (None, "5000 True a reply 5\n", {"n": 1})


def test_what_died_is_replaced_and_keeps_its_variables(sh):
    sh.run("x = [1, 2]")
    r = sh.run("import os\nprint('last words', flush=True)\nx.append(3)\nos.kill(os.getpid(), 9)")
    assert r.error.name == "ProcessDied" and r.stdout == "last words\n" and "as they were before" in r.error.value
    assert sh.run("x").result == "[1, 2]"


def test_nothing_of_the_host_is_there(sh, tmp_path):
    (tmp_path/"secret").write_text("secret")
    os.environ["RLM_SECRET"] = "secret"
    try: r = sh.run(textwrap.dedent(f"""
        import os, socket
        found = ["secret" in "".join(os.environ.values()), os.path.exists({str(tmp_path/'secret')!r})]
        for place in ("/x", "/rlm/x.py", "/usr/x", "/etc/x"):
            try: open(place, "w"); found.append(place)
            except OSError: pass
        try: socket.create_connection(("127.0.0.1", 22), timeout=1); found.append("net")
        except OSError: pass
        open("/tmp/mine", "w").write("ok")
        found, os.getuid(), os.cpu_count() > 0"""))
    finally: del os.environ["RLM_SECRET"]
    assert r.result == "([False, False], 65534, True)"


def test_limits(sh):
    assert sh.run("x = bytearray(1_000_000_000)").error.name == "MemoryError"
    sh.limits = ShellLimits(seconds=.5)
    assert sh.run("while True: pass").error.name == "TimeoutError"
    r = sh.run("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass")
    assert r.error.name == "TimeoutError" and "its process killed" in r.error.value
    assert sh.run("1+1").result == "2"


def test_guarantees(sh): assert set(sh.guarantees().levels().values()) == {"enforced"}


def test_a_run(image):
    t = run("How long?", "x"*12_345, ScriptedLM([tool_call("FINAL(len(context))")]), shell=image)
    t.shell.close()
    assert (t.answer, t.trajectory.run.shell) == (12345, image)


def test_closing_leaves_no_container(sh):
    sh.run("1")
    assert containers()
    sh.close()
    assert none_left()


def test_a_host_that_is_killed_leaves_no_container(image):
    code = f"""
        import os, signal, sys
        from rlm.tools import prep_shell
        sh = prep_shell("x", shell={image!r})
        sh.run("1")
        os.kill(os.getpid(), 9)"""
    p = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=60)
    assert p.returncode == -9, p.stderr
    assert none_left(20)


def test_an_image_that_is_not_there_is_an_error_in_the_engine_s_words(image):
    sh = prep_shell("x", shell="podman:localhost/no-such-image")
    with pytest.raises(ShellError, match="no-such-image"): sh.run("1")
    sh.close()


def test_an_engine_that_is_not_there():
    if shutil.which("docker") and not subprocess.run(["docker", "version"], capture_output=True).returncode: pytest.skip("docker works here")
    with pytest.raises(SandboxUnavailable, match="docker"): prep_shell("x", shell="docker:python:3.12")


def test_the_packages_that_are_mounted_are_pure_python():
    for o in map(Path, ipython_stack()):
        native = [f for f in (o.rglob("*.so") if o.is_dir() else ())]
        assert not native, f"{o} needs more than Python: {native}"
