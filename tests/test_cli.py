"The command: what a script gets from it, what a person at a terminal sees, and how it fails."
import json, os, re, signal, subprocess, sys, time
from pathlib import Path

import pexpect, pytest

from rlm.cli import DEMO, as_json, run_command, where
from rlm.launch import problem, strongest
from rlm.logs import new_log
from rlm.offline import Fault, serve, tool_call
from rlm.trajectory import Trajectory

offline = ("-m", "offline/extractive")
no_sandbox = problem("sandbox") # why this machine has none
in_sandbox = pytest.mark.skipif(bool(no_sandbox), reason=str(no_sandbox))

@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    "A folder of its own, with something to read; logs go to its `logs`"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLM_LOG_DIR", str(tmp_path/"logs"))
    (tmp_path/"notes").mkdir()
    (tmp_path/"notes"/"monday.txt").write_text("Anna comes at nine.\nBen comes at ten.\n")
    (tmp_path/"notes"/"tuesday.txt").write_text("Ben is ill.\n")
    return tmp_path

@pytest.fixture
def rlm(capfd):
    "Run the command in this process: exit code, standard output, standard error"
    def f(*args):
        code = run_command([str(o) for o in args])
        return code,*capfd.readouterr()
    return f

@pytest.fixture
def scripted():
    "Servers that reply as told; gives the options which send the command there"
    servers = []
    def f(replies, **kw):
        servers.append(serve(replies, **kw))
        return ("-m", "openai/gpt-4o-mini", "--base-url", servers[-1].base_url)
    yield f
    for o in servers: o.close()

def process(*args, **kw): return subprocess.Popen([sys.executable, "-m", "rlm", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)
def at_work(err):
    "What is on standard error after the line that says where code runs"
    first,_,rest = err.partition("\n")
    assert first == f"rlm: {where(strongest())}", err
    return rest
def one_sentence(err): return err.startswith("rlm: ") and err.count("\n") == 1 and "Traceback" not in err

# Wrong usage and bad input

def write(name, data):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(data)
    return name

bad_input = {
    "empty question": (lambda: [" ", "notes", *offline], "The question is empty"),
    "missing file": (lambda: ["q", "nowhere.txt", *offline], "nowhere.txt: no such file"),
    "binary file": (lambda: ["q", write("x.png", b"\x89PNG\0"), *offline], "x.png: binary, not text"),
    "only binary files": (lambda: ["q", os.path.dirname(write("bin/x", b"\0")), *offline], "bin: no text here"),
    "empty folder": (lambda: [os.mkdir("empty") or "q", "empty", *offline], "empty: no file in this folder"),
    "pattern without files": (lambda: ["q", "notes/*.md", *offline], "notes/*.md: no file matches"),
    "wrong encoding": (lambda: ["q", write("latin.txt", b"caf\xe9!"), *offline], "offset 3 is not utf-8"),
    "log folder is a file": (lambda: ["q", "notes", "--log-dir", "notes/monday.txt", *offline], "no log can be written here (file exists)"),
    "log folder below a file": (lambda: ["q", "notes", "--log-dir", "notes/monday.txt/x", *offline], "(not a directory)"),
    "no question": (lambda: [], "QUESTION"),
    "unknown option": (lambda: ["q", "--speed"], "--speed"),
    "no steps": (lambda: ["q", "notes", "--max-steps", "0"], "--max-steps"),
    "steps that are no number": (lambda: ["q", "notes", "--max-steps", "many"], "--max-steps"),
    "file name with an escape": (lambda: ["q", "\x1bcx", *offline], "cx: no such file")}

@pytest.mark.parametrize("case", bad_input)
def test_bad_input_is_one_sentence(rlm, case):
    args,words = bad_input[case]
    code,out,err = rlm("ask", *args())
    assert (code, out) == (2, "")
    assert one_sentence(err) and words in err and "\x1b" not in err, err

def test_advice_fits_a_command_line(rlm):
    assert "iconv -f cp1252" in rlm("ask", "q", write("latin.txt", b"caf\xe9!"), *offline)[2]

def test_no_model_lists_what_to_set(rlm):
    code,out,err = rlm("ask", "q", "notes")
    assert (code, out) == (2, "") and err.startswith("rlm: No model is named")
    for o in ("-m", "RLM_MODEL", "OPENAI_API_KEY", "ollama_chat/", "--base-url", "offline/extractive"): assert o in err

@pytest.mark.parametrize("args", [[], ["--help"], ["ask", "--help"], ["demo", "-h"], ["doctor", "--help"], ["runs", "--help"],
    ["view", "-h"], ["resume", "--help"], ["export", "--help"], ["--version"]])
def test_help(rlm, args):
    code,out,err = rlm(*args)
    assert code == (0 if args else 2)
    assert "Usage:" in out + err or out.startswith("rlm ")
    assert max(map(len, (out+err).splitlines())) <= 80
    if args == ["ask", "--help"]: assert all(o in out for o in ("RLM_MODEL", "RLM_SUB_MODEL", "RLM_BASE_URL", "RLM_SHELL", "RLM_LOG_DIR", "default: 30", "Exit codes"))

def test_help_loads_little():
    code = "import sys; sys.argv = ['rlm', '--help']\nfrom rlm.cli import run_command\nrun_command()\nprint(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert not loaded & {"litellm", "IPython", "rich.console", "fastcore", "pydantic", "rlm.events", "rlm.trajectory", "rlm.lm"}

# Failures of the model

def test_unknown_provider(rlm):
    code,out,err = rlm("ask", "q", "notes", "-m", "nosuch/model")
    assert (code, out) == (1, "") and one_sentence(at_work(err)) and "nosuch/model" in err and "--base-url" in err

def test_unknown_model(rlm, scripted):
    code,out,err = rlm("ask", "q", "notes", *scripted(["x"], models=["another"]))
    assert (code, out) == (1, "") and one_sentence(at_work(err)) and "does not exist" in err

def test_wrong_key(rlm, scripted, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-wrong-wrong")
    code,out,err = rlm("ask", "q", "notes", *scripted(["x"], api_key="right"))
    assert (code, out) == (1, "") and one_sentence(at_work(err)) and "key" in err
    assert "wrong-wrong" not in err + "".join(o.read_text() for o in Path("logs").iterdir())

def test_failing_after_a_draft(rlm, scripted):
    replies = [tool_call("answer['content'] = 'about ten'"), Fault(400, "no credit left")]
    code,out,err = rlm("ask", "q", "notes", *scripted(replies))
    assert (code, out) == (1, "")
    assert "rlm: The best answer so far: about ten\n" in err and "no credit left" in err.splitlines()[-1]

def test_json_after_a_failure(rlm, scripted):
    replies = [tool_call("answer['content'] = 'about ten'"), Fault(400, "no credit left")]
    code,out,err = rlm("ask", "q", "notes", "--json", "-q", *scripted(replies))
    o = json.loads(out)
    assert code == 1 and one_sentence(err)
    assert (o["answer"], o["status"], o["how"], o["steps"]) == ("about ten", "error", "fallback", 1) and "no credit left" in o["error"]
    code,out,err = rlm("ask", "q", "nowhere.txt", "--json", *offline)
    assert code == 2 and one_sentence(err) and "nowhere.txt" in json.loads(out)["error"]

def test_a_bug_is_one_sentence_too(rlm, monkeypatch):
    def bug(*args, **kw): raise KeyError("oops")
    monkeypatch.setattr("rlm.model.RLM", bug)
    code,out,err = rlm("ask", "q", "notes", *offline)
    assert (code, out) == (1, "") and one_sentence(at_work(err)) and "KeyError: 'oops' (set RLM_DEBUG=1" in err
    monkeypatch.setenv("RLM_DEBUG", "1")
    assert "Traceback" in rlm("ask", "q", "notes", *offline)[2]

# Answers

def test_answer_alone_on_stdout(rlm):
    code,out,err = rlm("ask", "Who is ill?", "notes", *offline)
    assert (code, out) == (0, "Ben is ill.\n")
    assert at_work(err).startswith("offline/extractive on 2 texts, 50 characters\nstep 1: 1 cell, ")
    log = Path(re.search("^log: (.*)$", err, re.M)[1])
    assert log.parent == Path(os.environ["RLM_LOG_DIR"]) and Trajectory.load(log).answer == "Ben is ill."

def test_nothing_of_the_libraries_is_said(scripted):
    p = process("ask", "q", "notes", "-q", *scripted([tool_call("FINAL(1)")]))
    assert p.communicate(timeout=60) == ("1\n", "") and p.returncode == 0

def test_quiet(rlm): assert rlm("ask", "Who is ill?", "notes", "-q", *offline) == (0, "Ben is ill.\n", "")

def test_settings_from_the_environment(rlm, scripted, monkeypatch):
    _,model,_,url = scripted([tool_call("FINAL(llm_query('?'))"), "pong"])
    for k,v in dict(RLM_MODEL=model, RLM_BASE_URL=url, RLM_SUB_MODEL="openai/gpt-4o", RLM_LOG_DIR="").items(): monkeypatch.setenv(k, v)
    code,out,err = rlm("ask", "q", "notes", "--json", "--no-log")
    o = json.loads(out)
    assert code == 0 and (o["answer"], o["model"], o["sub_model"], o["sub_calls"], o["log"]) == ("pong", model, "openai/gpt-4o", 1, None)
    assert set(o["usage_by_model"]) == {model, "openai/gpt-4o"} and o["usage"]["calls"] == 2
    assert o["cost"] == o["usage"]["cost"] > 0 and not Path("logs").exists()

def test_stopped_at_a_limit(rlm, scripted):
    code,out,err = rlm("ask", "q", "notes", "--max-steps", "2", *scripted([tool_call("1"), "FINAL(two, perhaps)"]))
    assert (code, out) == (3, "two, perhaps\n") and "Stopped at max_steps: this is the best there was by then." in err

def test_no_proper_end(rlm, scripted):
    code,out,err = rlm("ask", "q", "notes", "-q", *scripted(["It is ten.", "I said: ten."]))
    assert (code, out) == (0, "I said: ten.\n") and one_sentence(err) and "never said that it was done" in err

@pytest.mark.parametrize("code,out", [("FINAL(0)", "0\n"), ("FINAL('')", "\n"), ("FINAL([1, 'ä'])", '[\n  1,\n  "ä"\n]\n'), ("FINAL('\\x1b[1mraw')", "\x1b[1mraw\n")])
def test_answers_go_out_as_they_are(rlm, scripted, code, out):
    assert rlm("ask", "q", "notes", "-q", *scripted([tool_call(code)]))[:2] == (0, out)

def test_json_of_answers_that_json_lacks():
    from rlm.events import End, Final, Run
    for answer in (float("nan"), {(1, 2): 3}, {1, 2}, b"x"):
        t = Trajectory(events=[Run(), Final(answer=answer), End()])
        assert "NaN" not in as_json(t) and json.loads(as_json(t))["answer"] == str(answer)

def test_files_left_out_are_named(rlm):
    write("notes/logo.png", b"\x89PNG\0")
    err = rlm("ask", "Who is ill?", "notes", "-q", *offline)[2]
    assert one_sentence(err) and "left out" in err and "logo.png" in err

def test_log_names_are_new(tmp_path):
    names = {new_log("Who? "*100, tmp_path).name for _ in range(20)}
    assert len(names) == 20 and all(len(o) < 70 for o in names)
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}\.jsonl", new_log("谁?", tmp_path).name)

# Where code runs

tell_all = "import os\nFINAL([os.environ.get('OPENAI_API_KEY'), os.path.exists(%r)])"
no_programs = str(Path(sys.executable).parent) # as PATH: no bwrap, no podman

@pytest.fixture
def seen(rlm, scripted, monkeypatch):
    "Where code ran by the outcome, whether it saw the host's key and a file of the host's, and what was said"
    def f(*args, **env):
        key,secret = "sk-recognisable-key-of-this-test",os.path.abspath("notes/monday.txt")
        with monkeypatch.context() as m:
            for k,v in dict(env, OPENAI_API_KEY=key).items(): m.setenv(k, v)
            code,out,err = rlm("ask", "q", "notes", "--json", *args, *scripted([tool_call(tell_all % secret)]))
        assert code == 0 and key not in err, err
        o = json.loads(out)
        return o["shell"],o["answer"][0] == key,o["answer"][1],err
    return f

@in_sandbox
def test_auto_takes_the_sandbox(seen):
    home,key,file,err = seen()
    assert (home, key, file) == ("sandbox", False, False)
    assert err.startswith("rlm: code runs in the sandbox (bubblewrap)\n") and err.count("code runs in") == 1

def test_auto_takes_a_process_where_there_is_no_sandbox_and_says_so(seen):
    home,key,file,err = seen(PATH=no_programs)
    assert (home, key, file) == ("process", False, True)
    assert err.startswith("rlm: code runs in a process of its own, with your rights; ")
    if sys.platform.startswith("linux"): assert "install bubblewrap for a sandbox\n" in err

def test_the_home_is_an_option_and_a_setting(seen):
    home,key,file,err = seen("--shell", "inprocess", RLM_SHELL="process")
    assert (home, key, file) == ("inprocess", True, True) and err.startswith("rlm: code runs in this process, with your rights\n")
    home,key,file,err = seen(RLM_SHELL="process")
    assert (home, key) == ("process", False) and err.startswith("rlm: code runs in a process of its own, with your rights\n")
    assert seen(RLM_SHELL="")[0] == strongest()

@pytest.mark.parametrize("home,words", [("attic", "--shell must be 'inprocess'"), ("docker:", "--shell must be"), ("sandbox", "needs bubblewrap"),
    ("podman:x", "podman is not installed")])
def test_a_home_that_is_not_there_is_one_sentence(home, words):
    if home == "sandbox" and not sys.platform.startswith("linux"): words = "needs Linux"
    p = process("ask", "q", "notes", "--shell", home, "--json", *offline, env=dict(os.environ, PATH=no_programs))
    out,err = p.communicate(timeout=60)
    assert p.returncode == 2 and one_sentence(err) and words in err and "shell=" not in err
    assert words in json.loads(out)["error"] and not Path("logs").exists()

def test_limits_of_a_cell(rlm, scripted):
    hog = tool_call("try: x = bytearray(400_000_000)\nexcept MemoryError: FINAL('no memory')\nFINAL('much')")
    assert rlm("ask", "q", "notes", "-q", *scripted([hog]))[:2] == (0, "much\n")
    if sys.platform.startswith("linux"): assert rlm("ask", "q", "notes", "-q", "--cell-memory", ".2", *scripted([hog]))[:2] == (0, "no memory\n")
    start = time.monotonic()
    replies = [tool_call("import time\ntime.sleep(60)"), tool_call("FINAL(context['monday.txt'][:4])")]
    code,out,err = rlm("ask", "q", "notes", "--cell-seconds", ".5", *scripted(replies))
    assert (code, out) == (0, "Anna\n") and "1 cell (TimeoutError)" in err and time.monotonic()-start < 20

def test_limits_that_cannot_be_had(rlm):
    code,out,err = rlm("ask", "q", "notes", "-q", "--shell", "inprocess", "--cell-seconds", "9", *offline)
    assert (code, out) == (2, "") and one_sentence(err) and "--cell-seconds and --cell-memory go with --shell process" in err
    for option in ("--cell-seconds", "--cell-memory"):
        code,out,err = rlm("ask", "q", "notes", option, "0", *offline)
        assert (code, out) == (2, "") and one_sentence(err) and option in err

# The process, and what code in it can do

mischief = """import os, subprocess, sys, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
os.system("echo system")
subprocess.run(["echo", "subprocess"])
sys.__stdout__.write("dunder\\n")
os.write(1, b"write\\n")
print(os.read(0, 10))
FINAL("clean")"""

@pytest.mark.parametrize("home", ["inprocess", "process", pytest.param("sandbox", marks=in_sandbox)])
def test_stdout_is_pure_whatever_code_does_and_the_process_ends(scripted, home):
    p = process("ask", "q", "-", "notes/monday.txt", "--shell", home, *scripted([tool_call(mischief)]), stdin=subprocess.PIPE)
    out,err = p.communicate("from a pipe", timeout=40)
    assert (p.returncode, out) == (0, "clean\n"), err
    if home == "inprocess":
        for o in ("system", "subprocess", "dunder", "write"): assert f"{o}\n" in err

def test_a_reader_who_went_away(scripted, monkeypatch, capfd):
    r,w = os.pipe()
    os.close(r)
    kept = os.dup(1)
    with open(w, "w") as gone:
        monkeypatch.setattr("sys.stdout", gone)
        assert run_command(["ask", "q", "notes", "-q", *scripted(["FINAL(x)"])]) == 141
        os.dup2(1, w)
    os.dup2(kept, 1)
    os.close(kept)
    assert capfd.readouterr() == ("", "")

def test_stdin(rlm, monkeypatch, scripted):
    import io
    def stdin(data): monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    stdin(b"Anna is here.\nCleo is ill.\n")
    assert rlm("ask", "Who is ill?", "-q", *offline)[:2] == (0, "Cleo is ill.\n")
    stdin(b"Anna is here.\nCleo is ill.\n")
    out = rlm("ask", "Where is Cleo?", "-", "notes/monday.txt", "--json", *scripted([tool_call("FINAL(sorted(context))")]))[1]
    assert json.loads(out)["answer"] == ["-", "notes/monday.txt"]
    for data,words in {b"": "standard input is empty", b" \n": "standard input is empty", b"\xff\xfe": "standard input"}.items():
        stdin(data)
        code,out,err = rlm("ask", "q", *offline)
        assert (code, out) == (2, "") and one_sentence(err) and words in err

# What was asked before

first_log = {} # of one run, by its name: who wants one gets a copy

@pytest.fixture
def asked(rlm):
    "A run in the logs: its short name"
    if not first_log:
        assert rlm("ask", "Who is ill?", "notes", "-q", *offline)[0] == 0
        [log] = Path("logs").iterdir()
        first_log[log.name] = log.read_bytes()
    [name] = first_log
    write(f"logs/{name}", first_log[name])
    return Path(name).stem[-8:]

def test_runs(rlm, asked):
    assert rlm("ask", "Who \x1b[2Jcomes at nine?", "notes", "-q", *offline)[0] == 0
    Path("logs/chats.jsonl").write_text('{"messages": []}\n')
    code,out,err = rlm("runs")
    lines = out.splitlines()
    assert code == 0 and err == "" and len(lines) == 4 and "\x1b" not in out
    assert "chats" in lines[1] and "damaged" in lines[1] and "comes at nine?" in lines[2] and lines[3].startswith(asked) and "done" in lines[3]
    code,out,err = rlm("runs", "--json", "-n", "2")
    _,first = map(json.loads, out.splitlines())
    assert (first["query"], first["status"], first["cost"]) == ("Who \x1b[2Jcomes at nine?", "done", 0) and Path(first["log"]).exists()

def test_no_runs(rlm): assert rlm("runs") == (0, "", f"rlm: no logs in {Path('logs').absolute()}\n")

def test_view(rlm, asked):
    for name in (asked, "last", "who-is-ill"):
        code,out,err = rlm("view", name)
        assert code == 0 and err == ""
        for o in ("Who is ill?", "── step 1 ──", "┃ ", "─ answer ─", "Ben is ill.", "done · 5 steps", f"{asked}.jsonl"): assert o in out, o

def test_view_of_a_run_that_was_killed(rlm, asked):
    [log] = Path("logs").iterdir()
    lines = log.read_text().splitlines(True)
    log.write_text("".join(lines[:5]) + lines[5][:20])
    code,out,err = rlm("view", "last")
    assert code == 0 and "Unfinished: there is no answer." in out and "unfinished" in rlm("runs")[1]

def test_view_as_a_page(rlm, asked):
    code,out,err = rlm("view", "last", "--html", "run.html")
    assert (code, out, err) == (0, "run.html\n", "") and "Who is ill?" in Path("run.html").read_text()
    assert rlm("view", "last", "--html", "nowhere/run.html")[0] == 2

damage = {"binary": lambda b: b"\x89PNG\0\n" + os.urandom(200) + b"\n", "empty": lambda b: b"", "foreign": lambda b: b'{"messages": []}\n' * 3, "no run": lambda b: b.split(b"\n", 1)[1],
    "newer": lambda b: b.replace(b'"version": 2', b'"version": 99', 1), "twice": lambda b: b + b, "cut": lambda b: b[:len(b)//2], "junk": lambda b: b[:900] + b"\xff\n\0" + b[900:],
    "wrong types": lambda b: b.replace(b'"usage": {', b'"usage": {"calls": "x"}, "was": {').replace(b'"message": {', b'"message": "x", "was": {')}

@pytest.mark.parametrize("name", damage)
@pytest.mark.parametrize("args", [["runs"], ["view", "last"], ["view", "logs/x.jsonl"], ["view", "logs/x.jsonl", "--html", "x.html"], ["resume", "logs/x.jsonl"],
    ["export", "logs/x.jsonl", "--to", "script"], ["export", "logs/x.jsonl", "--to", "rlms"]], ids=" ".join)
def test_damaged_logs_are_one_sentence(rlm, asked, name, args):
    [log] = Path("logs").iterdir()
    Path("logs/x.jsonl").write_bytes(damage[name](log.read_bytes()))
    code,out,err = rlm(*args)
    assert code in (0, 1, 2) and "Traceback" not in err and "should not have happened" not in err, err
    assert code == 0 or one_sentence(err.splitlines(True)[-1])
    assert code == 0 if args in (["runs"], ["view", "last"]) else True

def test_a_line_that_was_cut_is_said(rlm, asked):
    [log] = Path("logs").iterdir()
    lines = log.read_bytes().splitlines(True)
    log.write_bytes(b"".join(lines)[:-20])
    code,out,err = rlm("view", "last")
    assert code == 0 and "Unfinished" in out and one_sentence(err) and f"left out line {len(lines)}, which was cut" in err

@pytest.mark.parametrize("args,words", [(["view", "nobody"], "no such file"), (["view", "jsonl"], "2 logs"), (["resume", "nobody"], "no such file"), (["export", "nobody", "--to", "script"], "no such file"),
    (["export", "last", "--to", "novel"], "--to must be"), (["export", "last", "--to", "script", "-o", "nowhere/x.py"], "nowhere/x.py: no such file")])
def test_what_cannot_be_had_is_one_sentence(rlm, asked, args, words):
    write("logs/other.jsonl", *first_log.values())
    code,out,err = rlm(*args)
    assert (code, out) == (2, "") and one_sentence(err) and words in err

def test_export(rlm, asked):
    for to,sign in dict(notebook='"nbformat"', script="# %% Step 1", chats='"messages"', rlms='"iteration"').items():
        code,out,err = rlm("export", asked, "--to", to)
        assert (code, err) == (0, "") and sign in out
        assert rlm("export", asked, "--to", to, "-o", f"x.{to}") == (0, "", f"rlm: wrote x.{to}\n") and Path(f"x.{to}").read_text() == out
    assert subprocess.run([sys.executable, "x.script"], capture_output=True, text=True).stdout.endswith("Ben is ill.\n")

def test_names_for_the_tab_key(asked):
    env = dict(os.environ, _RLM_COMPLETE="complete_bash", COMP_WORDS="rlm view ", COMP_CWORD="2")
    assert subprocess.run([sys.executable, "-m", "rlm"], env=env, capture_output=True, text=True).stdout.split() == ["last", asked]

# Going on

def test_a_run_that_was_stopped_at_a_limit_goes_on(rlm, scripted, monkeypatch):
    model = scripted([tool_call("n = len(context)"), "FINAL(two, perhaps)", tool_call("FINAL(n)")])
    assert rlm("ask", "How many?", "notes", "--max-steps", "2", *model)[0] == 3
    monkeypatch.chdir("/") # where the text was read from is in the log
    code,out,err = rlm("resume", "last")
    assert (code, out) == (2, "") and "max_steps" in err and one_sentence(at_work(err)), err
    code,out,err = rlm("resume", "last", "--max-steps", "5")
    assert (code, out) == (0, "2\n") and "resumed after step 1" in err and "step 2: 1 cell" in err and "done: " in err, err
    assert rlm("runs")[1].count("done") == 1

def test_a_run_that_is_done_gives_its_answer_again(rlm, asked):
    code,out,err = rlm("resume", asked)
    assert (code, out) == (0, "Ben is ill.\n")
    assert json.loads(rlm("resume", asked, "--json", "-q")[1])["answer"] == "Ben is ill."

def test_nothing_is_read_for_a_run_that_is_over(rlm, monkeypatch):
    import io
    def pipe(data): monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    pipe(b"Ben is ill.")
    assert rlm("ask", "Who is ill?", "-q", *offline)[0] == 0
    pipe(b"")
    over = "rlm: there is nothing to go on with: this run is over, and has given its answer\n"
    assert rlm("resume", "last") == rlm("resume", "last", "nowhere.txt", "--max-steps", "90") == (0, "Ben is ill.\n", over)
    assert rlm("resume", "last", "-q") == (0, "Ben is ill.\n", "")
    code,out,err = rlm("resume", "last", "--json")
    assert (code, json.loads(out)["status"], err) == (0, "done", over)

def test_another_text_is_refused_unless_one_insists(rlm, scripted):
    model = scripted([tool_call("n = len(context)"), "FINAL(two, perhaps)", tool_call("FINAL(n)")])
    assert rlm("ask", "How many?", "notes", "--max-steps", "2", *model)[0] == 3
    write("notes/wednesday.txt", b"Cleo is here.")
    code,out,err = rlm("resume", "last", "--max-steps", "5")
    assert (code, out) == (2, "") and one_sentence(at_work(err)) and "--insist" in err, err
    assert rlm("resume", "last", "notes/monday.txt", "notes/tuesday.txt", "--max-steps", "5")[0] == 2
    assert rlm("resume", "last", "--max-steps", "5", "--insist", "-q")[:2] == (0, "3\n")

def test_a_text_from_a_pipe_has_to_be_piped_again(rlm, scripted, monkeypatch):
    import io
    model = scripted([tool_call("n = len(context)"), "FINAL(two, perhaps)", tool_call("FINAL(n)")])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"12345")))
    assert rlm("ask", "How many?", "--max-steps", "2", *model)[0] == 3
    code,out,err = rlm("resume", "last", "--max-steps", "5")
    assert (code, out) == (2, "") and "standard input" in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"12345")))
    assert rlm("resume", "last", "--max-steps", "5", "-q")[:2] == (0, "5\n")

def test_a_killed_process_goes_on_from_where_it_was(rlm):
    with serve([tool_call("n = len(context)"), Fault("hang"), tool_call("FINAL(n)")]) as server:
        p = process("ask", "How many?", "notes", "-m", "openai/gpt-4o-mini", "--base-url", server.base_url)
        while len(server.requests) < 2: time.sleep(.05)
        p.kill()
        p.communicate()
        assert "unfinished" in rlm("runs")[1]
        code,out,err = rlm("resume", "last")
        assert (code, out) == (0, "2\n") and "resumed after step 1" in err and len(server.requests) == 3, err

# On a terminal

def terminal(*args, width=80, **env):
    return pexpect.spawn(sys.executable, ["-m", "rlm", *args], dimensions=(40, width), encoding="utf-8", timeout=30,
                         env=dict(os.environ, TERM="xterm-256color", **env))
def plain(text): return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text).replace("\r\n", "\n")

def test_on_a_terminal_steps_and_answer_are_shown(scripted):
    ask = tool_call("notes = llm_query_batched(['a', 'b'])\nnotes", content="I ask *twice*.")
    p = terminal("ask", "When \x1b[2Jdoes Ben come?", "notes", *scripted([ask, "at ten", "at ten", "FINAL(at ten \x1b]0;evil\x07)"]), width=60)
    shown = plain(p.read())
    p.close()
    assert p.exitstatus == 0
    for o in ("waiting for openai/gpt-4o-mini", "── step 1 ──", "I ask *twice*.", "┃ notes = llm_query_batched", "↳ 2 sub-calls", "│ ['at ten', 'at ten']", "─ answer ─",
              "\n at ten ␛]0;evil␇", "\nlog "): assert o in shown, shown
    assert "\x1b]0" not in shown and max(len(o) for o in shown.split("─ answer")[0].splitlines() if o.startswith("──")) <= 60

def test_on_a_terminal_a_run_is_shown_a_page_at_a_time(rlm, scripted):
    assert rlm("ask", "When?", "notes", "-q", *scripted([tool_call("print('x\\x1b]0;evil\\x07')"), tool_call("FINAL('at ten')")]))[0] == 0
    p = terminal("view", "last", PAGER="cat")
    shown = p.read()
    p.close()
    assert p.exitstatus == 0 and "\x1b]0" not in shown and "\x1b[" in shown and " at ten" in plain(shown)
    p = terminal("runs", width=50)
    assert max(map(len, plain(p.read()).splitlines())) <= 50

def test_on_a_terminal_without_anything_to_read():
    p = terminal("ask", "q", *offline)
    shown = p.read()
    p.close()
    assert p.exitstatus == 2 and shown.startswith("rlm: Nothing to read: name files")

def test_ctrl_c_ends_at_once_with_what_there_is(scripted):
    p = terminal("ask", "q", "notes", *scripted([tool_call("answer['content'] = 'about ten'"), tool_call("import time\nprint('it begins')\ntime.sleep(60)")]))
    p.expect("step 2 · running code")
    start = time.monotonic()
    p.sendintr()
    shown = plain(p.read())
    p.close()
    assert p.exitstatus == 130 and time.monotonic() - start < 3
    for o in ("│ it begins", "│ interrupted", "draft · interrupted", "\n about ten ", "\nlog "): assert o in shown, shown
    assert "Traceback" not in shown
    [log] = Path("logs").iterdir()
    assert (Trajectory.load(log).status, Trajectory.load(log).answer) == ("cancelled", "about ten")

def test_ctrl_c_twice_ends_code_that_swallows_it():
    code = """from rlm.cli import interrupts
import time
with interrupts():
    while True:
        try: print("in", flush=True) or time.sleep(60)
        except BaseException: pass"""
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for _ in range(2):
        assert p.stdout.readline() == "in\n"
        p.send_signal(signal.SIGINT)
    assert p.wait(5) == 130

def test_ctrl_c_in_a_pipe(scripted):
    p = process("ask", "q", "notes", *scripted([tool_call("answer['content'] = 'about ten'"), Fault("hang")]))
    while not p.stderr.readline().startswith("step 1"): pass
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=5)
    assert (p.returncode, out) == (130, "")
    assert "interrupted: 1 step" in err and "log: " in err and "The best answer so far: about ten" in err and "Traceback" not in err

# The demonstration

def test_demo(rlm):
    from pydoc_data.topics import topics
    code,out,err = rlm("demo", "--no-log")
    assert code == 0 and at_work(err) == "" # once for both runs
    assert "no neural network" in out and out.count("─ answer ─") == 2 and "── step 5 ──" in out
    for _,question,expected in [o for o in DEMO if o[0] in topics][:2]: assert question in out and expected in out

def test_demo_fails_when_an_answer_is_wrong(rlm, monkeypatch):
    monkeypatch.setattr("rlm.cli.DEMO", [("assert", "What does the assert statement do?", "makes coffee")])
    code,out,err = rlm("demo", "--no-log")
    assert code == 1 and one_sentence(at_work(err)) and "makes coffee" in err
