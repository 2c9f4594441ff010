"`rlm doctor`: what it finds on machines of every kind, that it never waits for long, and that it gives no key away."
import json, os, re, socket, subprocess, sys, threading, time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pexpect, pytest

from rlm.cli import run_command
from rlm.doctor import PROVIDERS, diagnose
from rlm.launch import problem, strongest
from rlm.lm import litellm_module
from rlm.offline import serve
from rlm.tools import prep_shell

no_sandbox = problem("sandbox")
in_sandbox = pytest.mark.skipif(bool(no_sandbox), reason=str(no_sandbox))
on_posix = pytest.mark.skipif(os.name != "posix", reason="needs programs that are shell scripts")
no_programs = str(Path(sys.executable).parent) # as PATH: no bwrap, no docker, no podman
offline = ("-m", "offline/extractive")

def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as s: return s.getsockname()[1]

@pytest.fixture(autouse=True)
def machine(monkeypatch):
    "No provider and no Ollama but on loopback, where nothing answers"
    nowhere = f"http://127.0.0.1:{closed_port()}"
    for o in ("ollama", *PROVIDERS): monkeypatch.setenv(f"{o.upper()}_API_BASE", nowhere)
    return nowhere

@pytest.fixture
def rlm(capfd):
    "Run the command in this process: exit code, standard output, standard error"
    def f(*args):
        code = run_command(["doctor", *map(str, args)])
        return code,*capfd.readouterr()
    return f

@pytest.fixture
def found(rlm):
    "What `--json` says, which has to go with the exit code"
    def f(*args):
        code,out,err = rlm("--json", *args)
        assert err == "" and out.count("\n") == 1
        d = json.loads(out)
        assert code == (0 if d["possible"] else 1)
        return d
    return f

def process(*args, **env):
    r = subprocess.run([sys.executable, "-m", "rlm", "doctor", *args], capture_output=True, text=True, env=dict(os.environ, **env), timeout=60)
    return r.returncode,r.stdout,r.stderr

@contextmanager
def web(status=200, body=b"{}", wait=None):
    "A web server that always says the same"
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if wait: wait.wait(30)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args): pass
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as srv:
        srv.daemon_threads,srv.block_on_close = True,False
        threading.Thread(target=srv.serve_forever, daemon=True).start()
        try: yield f"http://127.0.0.1:{srv.server_port}/v1"
        finally:
            if wait: wait.set()
            srv.shutdown()

# One screen

def home(d, name): return next(o for o in d["homes"] if o["home"].partition(":")[0] == name)

def test_one_screen_without_colour_in_a_pipe():
    code,out,err = process()
    lines = out.splitlines()
    assert (code, err) == (1, "") and "\x1b" not in out
    assert len(lines) <= 24 and max(map(len, lines)) <= 100 and not any(o != o.rstrip() for o in lines)
    for o in ("rlm ", "Python ", "litellm ", "ipython ", "inprocess", "process", "sandbox", "docker:IMAGE", "podman:IMAGE", "auto takes this one", "ollama"): assert o in out
    assert "✗ none" in out and "rlm demo" in "".join(lines[-2:])

def test_one_screen_with_everything_there_is(monkeypatch):
    for keys,_ in PROVIDERS.values(): monkeypatch.setenv(keys[0], "is-not-shown")
    code,out,err = process(*offline, "--base-url", "http://nobody.invalid/v1", PATH=no_programs)
    lines = out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100 and lines[-1]
    code,out,err = process("-m", "nvidia_nim/x")
    assert "\n  nvidia_nim " in out and "\n  openai " in out # the one that matters comes first
    assert "OPENAI_API_KEY" in out and "more (rlm doctor --json): " in out and "is-not-shown" not in out

def test_without_unicode():
    out = process(PYTHONIOENCODING="ascii", PYTHONUTF8="0")[1]
    assert out.isascii() and "limits:   + enforced   ~ best effort   x none" in out and "\\u" not in out

def terminal(**env):
    p = pexpect.spawn(sys.executable, ["-m", "rlm", "doctor"], dimensions=(24, 80), encoding="utf-8", timeout=30, env=dict(os.environ, TERM="xterm-256color") | env)
    shown = p.read()
    p.close()
    assert p.exitstatus == 1
    return shown

def test_in_colour_on_a_terminal():
    shown = terminal()
    assert "\x1b[31m" in shown and "\x1b[1;33m" in shown
    assert "\x1b[31m" not in terminal(NO_COLOR="1")
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown).replace("\r\n", "\n").split("rlm 0", 1)[1]
    assert plain.count("\n") <= 24 and max(map(len, plain.split("\n"))) <= 80

def test_a_reader_who_went_away():
    p = subprocess.Popen([sys.executable, "-m", "rlm", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdout.close()
    assert p.stderr.read() == b"" and p.wait(30) in (1, 141)

def test_wrong_usage_is_one_sentence(rlm):
    for args,words in ((("--shell", "attic"), "--shell must be"), (("--shell", "docker:"), "--shell must be"), (("--base-url", "me:secret-word"), "must be a URL")):
        code,out,err = rlm(*args)
        assert (code, out) == (2, "") and err.startswith("rlm: ") and err.count("\n") == 1 and words in err

def test_litellm_is_not_imported_for_nothing():
    code = "import sys\nfrom rlm.cli import run_command\nrun_command(['doctor'])\nprint('litellm' in sys.modules, file=sys.stderr)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "False\n"

# Homes

def test_guarantees_are_those_of_the_shells(found):
    d = found()
    assert d["auto"] == d["shell"] == strongest()
    for name in ("inprocess", "process", *(() if no_sandbox else ["sandbox"])):
        sh = prep_shell("", shell=name)
        levels = {k: o["level"] for k,o in home(d, name)["guarantees"].items()}
        assert home(d, name)["available"] and levels == sh.guarantees().levels()
        sh.close()

@in_sandbox
def test_the_sandbox_is_found(found):
    g = home(found(), "sandbox")["guarantees"]
    assert g["network"]["level"] == g["files"]["level"] == g["kill"]["level"] == "enforced"

def test_without_programs_there_is_advice():
    code,out,err = process(*offline, "--json", PATH=no_programs)
    d = json.loads(out)
    assert code == 0 and d["possible"] and d["auto"] == d["shell"] == "process"
    for name in ("sandbox", "docker", "podman"): assert not home(d, name)["available"] and home(d, name)["guarantees"] is None
    assert "docs.docker.com" in home(d, "docker")["missing"]
    if sys.platform.startswith("linux"): assert "apt install bubblewrap" in home(d, "sandbox")["missing"]
    code,out,err = process("--shell", "sandbox", "--json", PATH=no_programs)
    d = json.loads(out)
    assert code == 1 and not d["possible"] and d["advice"] == home(d, "sandbox")["missing"]

def engine(folder, script):
    "A PATH with a `docker` that does as told"
    folder.mkdir(exist_ok=True)
    (folder/"docker").write_text(f"#!/bin/sh\n{script}\n")
    (folder/"docker").chmod(0o755)
    return f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"

@on_posix
def test_an_engine_that_hangs_is_not_waited_for(tmp_path):
    start = time.monotonic()
    code,out,err = process("--json", PATH=engine(tmp_path/"bin", "exec sleep 60"))
    assert home(json.loads(out), "docker")["missing"] == "docker did not answer in time." and time.monotonic()-start < 15

@on_posix
def test_an_image_that_is_not_there_is_not_fetched(tmp_path):
    path = engine(tmp_path/"bin", f'echo "$1 $2" >> {tmp_path}/asked\n[ "$1" = version ]')
    d = json.loads(process(*offline, "--shell", "docker:nosuch:1", "--json", PATH=path)[1])
    assert not d["possible"] and d["shell"] == "docker:nosuch:1" and d["advice"].endswith("docker pull nosuch:1")
    assert set((tmp_path/"asked").read_text().split("\n")) <= {"version --format", "image inspect", ""}

# Models and servers

def server(d, i=0): return d["servers"][i]

def test_offline_needs_nothing(found):
    d = found(*offline)
    assert d["possible"] and d["model"] == dict(name="offline/extractive", provider="offline", tools=True, problem=None)

def test_a_server_of_ones_own(found, monkeypatch):
    with serve("pong", models=["small"]) as srv:
        monkeypatch.setenv("RLM_BASE_URL", srv.base_url)
        d = found()
        assert d["possible"] and server(d)["models"] == ["small"] and d["advice"].endswith("-m openai/small --base-url URL")
        for name in ("small", "openai/small", "openai/another"): assert found("-m", name)["possible"] # some take any name
    d = found("-m", "small")
    assert not d["possible"] and "cannot be reached (connection refused)" in d["advice"]

def test_another_model_is_doubted(rlm):
    with serve("pong", models=["small"]) as srv:
        out = rlm("-m", "openai/another", "--base-url", srv.base_url)[1]
        assert "its server lists other models" in " ".join(out.split())

def test_no_key_is_sent(found, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-recognisable-key")
    with serve("pong", api_key="sk-recognisable-key") as srv:
        d = found("-m", "openai/gpt-5", "--base-url", srv.base_url.replace("//", "//me:recognisable@"))
        assert d["possible"] and not d["servers"][0]["models"]
        [(path, headers, body)] = srv._raw
    assert path.endswith("/models") and "authorization" not in {o.lower() for o in headers} and "recognisable" not in repr(headers)

def test_a_server_that_wants_a_key(found):
    with serve("pong", api_key="right") as srv: d = found("-m", "openai/gpt-5", "--base-url", srv.base_url)
    assert not d["possible"] and "wants a key: set OPENAI_API_KEY" in d["advice"]

@pytest.mark.parametrize("status,words", [(404, "often ends in /v1"), (503, "fails with 503")])
def test_a_server_that_does_not_work(found, status, words):
    with web(status) as url: d = found("-m", "openai/gpt-5", "--base-url", url)
    assert not d["possible"] and words in d["advice"]

@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": 3}', b'{"data": [{"name": "x"}]}', b"\xff\xfe", b"<html>"])
def test_a_server_that_answers_nonsense(found, body):
    with web(200, body) as url: assert server(found("-m", "openai/gpt-5", "--base-url", url))["models"] == []

def test_names_of_models_cannot_play_tricks(rlm, found):
    with web(200, json.dumps(dict(data=[dict(id="\x1b[2Jevil")])).encode()) as url: out = rlm("--base-url", url)[1]
    assert "\x1b" not in out and "evil" in out

def test_a_server_that_hangs_is_not_waited_for():
    start = time.monotonic()
    with web(wait=threading.Event()) as url: code,out,err = process("--base-url", url, "--json")
    assert code == 1 and "no answer in" in server(json.loads(out))["said"] and time.monotonic()-start < 20

def test_a_look_up_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kw: time.sleep(30))
    start = time.monotonic()
    d = diagnose(base_url="http://nobody.invalid/v1", seconds=1)
    assert "no answer in 1 s" in d.servers[0].said and time.monotonic()-start < 15

def test_a_name_that_is_not_known(found):
    assert "cannot be reached" in server(found("--base-url", "http://nobody.invalid/v1"))["said"]

def test_ollama(found, monkeypatch):
    with serve("pong", models=["qwen3:latest"]) as srv:
        monkeypatch.setenv("OLLAMA_API_BASE", srv.base_url.removesuffix("/v1"))
        d = found()
        assert d["possible"] and d["advice"].endswith("-m ollama_chat/qwen3:latest")
        assert found("-m", "ollama_chat/qwen3")["possible"] and found("-m", "ollama/qwen3:latest")["possible"]
        assert found("-m", "ollama_chat/gemma3")["advice"].startswith("ollama_chat/gemma3 cannot be used. Ollama does not have it: ollama pull gemma3")
    assert "cannot be reached" in found("-m", "ollama_chat/qwen3")["advice"]

def test_what_a_model_lacks(found, monkeypatch):
    assert "set OPENAI_API_KEY." in found("-m", "openai/gpt-5")["advice"]
    assert "set GOOGLE_API_KEY or GEMINI_API_KEY." in found("-m", "gemini/gemini-2.5-flash")["advice"]
    assert "No provider is known" in found("-m", "nosuch/model")["advice"]
    assert found("-m", "openai/gpt-5")["model"]["tools"] and not found("-m", "nosuch/model")["model"]["tools"]
    with web(401) as url:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-recognisable-key")
        monkeypatch.setenv("OPENAI_API_BASE", url)
        d = found("-m", "openai/gpt-5")
        assert d["possible"] and server(d)["key"] == "OPENAI_API_KEY" and "gpt-5 can be asked" in d["advice"]
        assert found()["advice"] == "Name a model: rlm ask QUESTION PATH -m openai/gpt-5-mini"

def test_keys_and_addresses_are_litellms():
    llm = litellm_module()
    for provider,(keys,url) in PROVIDERS.items():
        assert {*keys} <= {*llm.validate_environment(f"{provider}/x")["missing_keys"]}
        os.environ.pop(f"{provider.upper()}_API_BASE", None)
        known = llm.get_llm_provider(f"{provider}/x")[3]
        assert not known or known.split("/")[2] == url.split("/")[2]

# Keys

@pytest.mark.parametrize("args", [[], ["--json"], ["-m", "openai/gpt-5"], ["-m", "groq/x", "--json"], ["--base-url", "URL"],
    ["--base-url", "URL", "--json", "-m", "small"], ["--base-url", "ftp URL"]])
def test_no_key_is_given_away(args, machine):
    keys = {k: f"{k[:3].lower()}-Recognisable-{os.urandom(8).hex()}" for names,_ in PROVIDERS.values() for k in names}
    url = machine.replace("//", "//me:Recognisable-password@") + "/v1?key=Recognisable-query"
    args = [o.replace("URL", url).replace("ftp http", "ftp") for o in args]
    code,out,err = process(*args, **keys, RLM_DEBUG="1")
    assert "Recognisable" not in out + err and not any(v[-8:] in out + err for v in keys.values())
    if "--json" in args: assert {o["key"] for o in json.loads(out)["servers"]} >= {names[0] for names,_ in PROVIDERS.values()}

def test_no_key_is_given_away_by_a_server_that_repeats_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-Recognisable-key-of-mine")
    body = b'{"data": [{"id": "sk-Recognisable-key-of-mine"}]}'
    with web(200, body) as url: d = diagnose(base_url=url)
    assert "Recognisable" not in repr(d) and "Recognisable" not in json.dumps(d.as_dict())
