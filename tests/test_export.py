"""What is made of a run for other tools: notebooks and scripts that run again, chats, the log of another package."""
import asyncio, json, os, random, re, subprocess, sys
from pathlib import Path

import pytest

from rlm.events import Cell, End, Final, InputError, Limits, Reply, Resume, RLMError, Run, Subcall
from rlm.export import Answers, chats, from_rlms, record
from rlm.model import RLM
from rlm.offline import Fault, ScriptedLM, serve, tool_call
from rlm.subcalls import digest
from rlm.trajectory import LogWarning, Trajectory

root = Path(__file__).resolve().parent.parent
filler = "Nothing happened on this day. " * 40
context = {f"{name}.txt": f"{name} was {how}.\n{filler}" for name,how in (("Acme", "late"), ("Bolt", "early"), ("Cord", "late"))}

def _sub(messages, tools):
    text = messages[0]["content"]
    if "How many days" in text: return "some" if len(messages) == 1 else "12"
    if "down" in text: return Fault(400, "not today")
    return "yes" if "late" in text else "no"

_cells = [
    tool_call("%%capture shown\nprint('quiet')", "I look first."),
    tool_call("ask = [f'Late? {o}' for o in context.values()]\nreplies = await allm_query_batched(ask)\nprint(shown.stdout, replies)"),
    tool_call("days = llm_query('How many days?', response_format=int)\ndays + 1"),
    tool_call("llm_query_batched(['Is it down?', 'Late?'])"),
    tool_call("undefined_name", "This will fail."),
    tool_call("child = rlm_query('Who is first?', list(context))\nchild"),
    tool_call("print(search('early')[0]['source'], cite('Bolt was early')['found'], find('late', k=1)[0].source)"),
    tool_call("text = '''a\n  b'''\nsix = 6\nSHOW_VARS()"),
    tool_call("if six == 6: FINAL(f'{replies.count(\"yes\")} after {days} days, {child}')\nprint('never')")]

def _model(messages, tools):
    if not tools: return _sub(messages, tools)
    if "Who is first?" in messages[1]["content"]: return tool_call("FINAL(context[0])", "A child.")
    return _cells[sum(m["role"] == "assistant" for m in messages)]

@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    log = tmp_path_factory.mktemp("export")/"run.jsonl"
    with RLM(ScriptedLM(_model, retries=0), limits=Limits(max_depth=2)) as rlm: r = rlm.completion("How many were late?", context, log=log)
    assert (r.status, r.answer) == ("done", "2 after 12 days, Acme.txt"), [e.output for e in r.trajectory.cells]
    return Trajectory.load(log)

# -- Notebooks

def _executed(path, folder):
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    NotebookClient(nb, timeout=60, resources=dict(metadata=dict(path=str(folder)))).execute()
    return nb

def _texts(cell):
    "What a person reads below a cell"
    def text(o): return o.get("text") or o.get("data", {}).get("text/plain") or "\n".join(o.get("traceback", ()))
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(map(text, cell.outputs))).strip()

def test_a_notebook_runs_again(rich, tmp_path):
    import nbformat
    path = rich.to_notebook(tmp_path/"a"/"run.ipynb", context)
    before,after = nbformat.read(path, 4),_executed(path, tmp_path)
    ran = [(a, b) for a,b in zip(before.cells, after.cells) if a.cell_type == "code" and a.execution_count]
    assert len(ran) == len(_cells) == len(rich.cells)
    for (a,b),e in zip(ran, rich.cells):
        assert a.source == e.code
        if e.error: assert e.error in _texts(b)
        elif "SHOW_VARS" not in e.code and "FINAL" not in e.code: assert _texts(a) == _texts(b), e.code
    assert _texts(ran[-1][1]) == rich.answer

def test_a_notebook_reads_its_context_from_a_path(rich, tmp_path):
    folder = tmp_path/"letters"
    folder.mkdir()
    for k,v in context.items(): (folder/k).write_text(v)
    nb = _executed(rich.to_notebook(tmp_path/"run.ipynb", folder), tmp_path)
    assert _texts(nb.cells[-2]) == rich.answer

def test_a_notebook_without_its_context_says_what_is_missing(rich, tmp_path):
    from nbclient.exceptions import CellExecutionError
    with pytest.raises(CellExecutionError, match="Give `context` its value first"):
        _executed(rich.to_notebook(tmp_path/"run.ipynb"), tmp_path)

# -- Scripts

def _run(path, *args): return subprocess.run([sys.executable, path, *args], capture_output=True, text=True, cwd=path.parent, timeout=60)

def test_a_script_runs_again(rich, tmp_path):
    path = rich.to_script(tmp_path/"run.py", context)
    compile(path.read_text(), path, "exec")
    r = _run(path)
    assert r.returncode == 0, r.stderr
    assert r.stdout.splitlines()[-1] == rich.answer and "NameError" in r.stdout and "never" not in r.stdout
    assert "['yes', 'no', 'yes']" in r.stdout and "Bolt.txt True Acme.txt" in r.stdout

def test_plain_code_stands_in_a_script_as_it_was_written(rich):
    script = rich.to_script(context=context)
    assert "\ntext = '''a\n  b'''\nsix = 6\nSHOW_VARS()\n" in script and script.endswith(f"{_cells and rich.cells[-1].code}\n\n# Answer: {rich.answer}\n")

def test_several_questions_with_another_context(tmp_path):
    root = ScriptedLM([tool_call("FINAL(len(context))"), tool_call("FINAL(len(notes) + len(context))"), "FINAL(done)"])
    with RLM(root) as rlm, rlm.session("abc", tmp_path/"log.jsonl") as s:
        s.completion("How long?")
        s.add("defgh", "notes")
        s.completion("And both?")
        s.completion("Thanks")
    t = Trajectory.load(tmp_path/"log.jsonl")
    r = _run(t.to_script(tmp_path/"run.py", "abc", notes="defgh"))
    assert (r.returncode, r.stdout.splitlines()[-1]) == (0, "8"), r
    nb = _executed(t.to_notebook(tmp_path/"run.ipynb", "abc", notes="defgh"), tmp_path)
    assert [_texts(c) for c in nb.cells if c.cell_type == "code"][-2:] == ["3", "8"]
    assert sum("## Question" in c.source for c in nb.cells) == 3
    assert [m["role"] for m in t.to_chats()[0]["messages"]].count("user") == 3

# -- What a model may have written

_nasty = ["<script>alert(1)</script>", "![x](http://tracker.example/x.png)", "[a](javascript:alert(1))", "[a]: http://tracker.example",
    "\x1b]0;title\x07\x1b[2J", "\u202egnp.exe", "$\\href{javascript:alert(1)}{x}$", "```\n</textarea><img src=x onerror=alert(1)>\n````\n<b>",
    "line\rimport os\x0bimport os\x85import os\u2028import os", "'''\nimport os\n'''", '"""\\', "\ud800", "\0", "# -*- coding: utf-7 -*-", "&#106;avascript:x"]

def _hostile():
    t = Trajectory()
    for i,text in enumerate(_nasty):
        run = t.append(Run(query=text, model=text, tools=["run_repl"], context=dict(type="str", lines=1, chars=3, fingerprint="")))
        reply = t.append(Reply(run=run.id, step=1, message=dict(role="assistant", content=text)))
        cell = Cell(id=t.new_id(), run=run.id, parent=reply.id, step=1, tool="run_repl", code=f"x = {i} # {text}", output=text,
            displays=[{"data": {"text/html": text, "application/javascript": text, "image/svg+xml": text, "image/png": "aGk="}}])
        t.append(Subcall(run=run.id, parent=cell.id, prompt=text, prompt_chars=len(text), prompt_hash=digest(text), reply=text))
        t.append(cell)
        t.append(Cell(run=run.id, parent=reply.id, step=1, output=text))
        t.append(Final(run=run.id, answer=text))
        t.append(End(run=run.id, status="error", error=text))
    return t

def test_text_of_a_model_stays_text(tmp_path):
    import ast, nbformat
    t = _hostile()
    nb = nbformat.read(t.to_notebook(tmp_path/"run.ipynb", "abc"), 4)
    nbformat.validate(nb)
    shown = str([c.outputs for c in nb.cells if c.cell_type == "code"])
    assert "text/html" not in shown and "javascript'" not in shown and "svg" not in shown and "\x1b" not in shown
    for c in [c for c in nb.cells if c.cell_type == "markdown"]:
        outside = re.sub(r"(?ms)^(`{3,})[^\n]*\n.*?^\1$", "", c.source)
        assert not re.search(r"<[a-z/]|!\[|\]\(|javascript|\x1b|\u202e", outside), c.source
    script = t.to_script(tmp_path/"run.py", "abc").read_text("utf-8")
    imports = [ast.unparse(o) for o in ast.walk(ast.parse(script)) if isinstance(o, (ast.Import, ast.ImportFrom))]
    assert imports == ["from rlm.export import Answers"]
    assert "\u202e" not in script and "\x1b" not in script
    for o in t.to_chats(), chats([t], tmp_path/"chats.jsonl", keep=lambda o: True): json.dumps(o, default=str)
    assert from_rlms(t.to_rlms(tmp_path/"log.jsonl")).answer == _nasty[-1]

def test_settings_of_a_log_are_not_trusted():
    bad = "x = 1; import os #"
    t = Trajectory()
    t.append(Run(query="Q", context=dict(type="str\nimport os"), added={bad: dict(type="str")}, settings=dict(tools=[bad, 3, "ok"], paths=[3])))
    for o in t.to_script(), *(c["source"] for c in json.loads(t.to_notebook())["cells"]):
        assert bad not in o and "\nimport os" not in o
    assert "ok" in t.to_script()
    t.run.settings.update(tools=3, paths="abc", folder=3)
    t.run.context = dict(lines="many")
    assert "context = ..." in t.to_script()

# -- Records

def test_what_a_resume_left_behind_is_not_in_a_record():
    t = Trajectory()
    run = t.append(Run(query="Q", prompt="Q"))
    reply = t.append(Reply(run=run.id, step=1, message=dict(role="assistant", content="hm")))
    for text in ("old", "new"):
        if text == "new": t.append(Resume(run=run.id, after=reply.id))
        cell = Cell(id=t.new_id(), run=run.id, parent=reply.id, step=1, tool="run_repl", code=f"llm_query({text!r})")
        t.append(Subcall(run=run.id, parent=cell.id, prompt=text, prompt_chars=3, prompt_hash=digest(text), reply=text))
        t.append(cell)
    assert [json.loads(o)[1] for o in record(t)] == [digest("new")]
    assert "'old'" not in t.to_notebook() and "llm_query('new')" in t.to_notebook()

_pieces = ["x = [llm_query(f'{o}?') for o in 'aab']\nx", "llm_query_batched(['a?', 'b?', 'a?', 'down'])", "1/0", "y = llm_query('n?', response_format=int)\ny",
    "rlm_query('Who?', 'abc')", "print(rlm_query_batched(['Who?', 'Why?', 'Who?'], ['x', 'y', 'z']))", "llm_query('down')", "allm = await allm_query('b?')\nallm",
    "z = 'ä\u4e2d'\nprint(z)", "if True:\n\tprint('tab')", "!echo shell", "%timeit -n1 -r1 -q None", "FINAL_VAR('nothing')", "check_answer(3)", "llm_query(3)"]

@pytest.mark.parametrize("seed", range(3))
def test_random_runs_run_again(seed, tmp_path):
    "In a shell, in order, every cell prints what it printed; and so does the script"
    rand = random.Random(seed)
    codes = [rand.choice(_pieces) for _ in range(10)]
    def model(messages, tools):
        if not tools: return Fault(400, "no") if "down" in messages[0]["content"] else f"{rand.randrange(1000)}" + "?"*(rand.random() < .3)
        if "Wh" in messages[1]["content"]: return tool_call(f"FINAL({rand.randrange(1000)})")
        n = sum(m["role"] == "assistant" for m in messages)
        return tool_call(codes[n]) if n < len(codes) else tool_call("FINAL('the end')")
    with RLM(ScriptedLM(model, retries=0), limits=Limits(max_depth=2), cache=False) as rlm: t = rlm.completion("How?", "abc").trajectory
    assert t.answer == "the end"
    sh = Answers(record(t)).into(dict(context="abc"))
    for e in t.cells: assert sh.run(e.code).text() == e.output.rpartition("\n")[0] or e.error, e.code
    r = _run(t.to_script(tmp_path/"run.py", "abc"))
    assert (r.returncode, r.stdout.splitlines()[-1]) == (0, "the end"), r.stderr

# -- Chats

def test_long_prompts_come_up_whole_with_the_context(rich):
    with pytest.warns(LogWarning, match="3 of 5 sub-calls are left out"): short = rich.to_chats("sub_calls")
    whole = rich.to_chats("sub_calls", context)
    assert len(short) == 2 and [o["messages"][0]["content"] for o in whole[:3]] == [f"Late? {o}" for o in context.values()]
    typed = next(o["messages"] for o in whole if "How many days" in o["messages"][0]["content"])
    assert "JSON" in typed[0]["content"] and typed[1]["content"] == "12"

def test_chats_of_root_and_children(rich):
    chat, = rich.to_chats()
    child, = rich.to_chats("children")
    assert chat["messages"][-1]["role"] == child["messages"][-1]["role"] == "assistant" and child["messages"][-1]["content"] == "A child."
    calls = {c["id"] for m in chat["messages"] for c in m.get("tool_calls", ())}
    assert {m["tool_call_id"] for m in chat["messages"] if m["role"] == "tool"} < calls
    assert {k for m in chat["messages"] for k in m} == {"role", "content", "tool_calls", "tool_call_id"}
    assert chat["tools"][0]["function"]["name"] == "run_repl"

def test_chats_of_many_logs(rich, tmp_path):
    path = chats([rich.path, rich], tmp_path/"all.jsonl")
    assert [json.loads(o) for o in path.read_text().splitlines()] == rich.to_chats() * 2
    for odd in (rich, [None]):
        with pytest.raises(InputError, match="Chats are made of several runs"): chats(odd)
    for odd in ("doen", "", ("done", "finished"), None, 5, [["done"]]):
        with pytest.raises(InputError, match="keep is one or several of done, fallback, limit, error, cancelled, or a function, not"): chats([rich], keep=odd)
    assert chats([rich], keep="limit") == [] and len(chats([rich], keep=lambda t: "12 days" in t.answer)) == 1

def test_a_fenced_run_has_no_tools():
    with RLM(ScriptedLM(["```repl\nprint(1)\n```", "FINAL(one)"], tools=False)) as rlm: t = rlm.completion("Q", "c").trajectory
    chat, = t.to_chats()
    assert "tools" not in chat and [m["role"] for m in chat["messages"]] == ["system", "user", "assistant", "user", "assistant"]

def test_a_run_that_asked_the_model_directly():
    with RLM(ScriptedLM(["Acme"]), direct_below=1000) as rlm: t = rlm.completion("Who?", "Acme was late.").trajectory
    asked,said = t.to_chats(context="Acme was late.")[0]["messages"]
    assert asked["content"].startswith("Acme was late.\n\n") and said["content"] == "Acme"
    with pytest.warns(LogWarning, match="sent whole"): assert Trajectory(events=t.events).to_chats() == []
    assert "Acme" in t.to_notebook() and "# Answer: Acme" in t.to_script()

# -- The log of rlms

def test_there_and_back(rich, tmp_path):
    t = from_rlms(rich.to_rlms(tmp_path/"log.jsonl"))
    assert (t.run.query, t.run.model, t.answer, t.status) == (rich.run.query, rich.run.model, rich.answer, "done")
    assert [e.code for e in t.cells] == [e.code for e in rich.cells] and [e.error for e in t.cells] == [e.error for e in rich.cells]
    def calls(t): return [(e.model, e.reply, e.error, e.usage, e.prompt) for e in t.sub_calls]
    assert calls(t) == calls(rich) and t.usage_by_model == rich.usage_by_model
    assert [o.query for o in t.children] == ["Who is first?"] and t.of(t.children[0].id).answer == "Acme.txt"
    assert [len(s.sub_calls) for s in t.steps] == [len(s.sub_calls) for s in rich.steps]
    assert from_rlms(t.to_rlms(tmp_path/"again.jsonl")).usage == t.usage

_theirs = [dict(type="metadata", timestamp="2026-01-02T03:04:05.000006", root_model="gpt-5", max_depth=1, max_iterations=30, backend="openai",
        backend_kwargs=dict(model_name="gpt-5"), environment_type="local", environment_kwargs={}, other_backends=None),
    dict(type="iteration", iteration=1, timestamp="2026-01-02T03:04:09.5", prompt=[dict(role="system", content="You are an RLM."),
        dict(role="user", content="Answer the following: Who was late?\n\nYour context is a str of 20 total characters."),
        dict(role="user", content="Turn 1/30:")], response="I look.\n```repl\nprint(llm_query('Who?'))\n```", code_blocks=[dict(
        code="print(llm_query('Who?'))", result=dict(stdout="Acme\n", stderr="", locals=dict(x=1), execution_time=1.5, rlm_calls=[dict(
        root_model="gpt-5-mini", prompt="Who?", response="Acme", usage_summary=dict(model_usage_summaries={"gpt-5-mini": dict(
        total_calls=1, total_input_tokens=5, total_output_tokens=2)}), execution_time=1.2)], final_answer="Acme"))],
    final_answer="Acme", iteration_time=4.0)]

def test_a_log_of_theirs(tmp_path):
    path = tmp_path/"theirs.jsonl"
    path.write_text("".join(f"{json.dumps(o)}\n" for o in _theirs))
    t = from_rlms(path)
    assert (t.run.query, t.run.system, t.answer, t.status) == ("Who was late?", "You are an RLM.", "Acme", "done")
    sub, = t.sub_calls
    assert (sub.reply, sub.usage.prompt_tokens, sub.parent) == ("Acme", 5, t.cells[0].id) and t.replies[0].seconds == 2.5
    assert "print(llm_query('Who?'))" in t.to_notebook() and len(t.to_chats()) == 1

def test_how_a_run_of_theirs_ended(tmp_path):
    "What they ask for after the last turn is no proper end; a log without an answer does not say why"
    about,turn = _theirs
    silent = turn | dict(response="I look.", final_answer=None)
    asked = turn | dict(iteration=2, response="Acme, I think.", code_blocks=[], final_answer="Acme, I think.", iteration_time=None)
    text = asked | dict(response="FINAL(Acme)", final_answer="Acme")
    for turns,status,how,kept in (([turn], "done", "code", 1), ([silent, asked], "fallback", "fallback", 0), ([silent, text], "done", "text", 1),
                                  ([silent], None, None, 0), ([], None, None, 0)):
        path = tmp_path/"theirs.jsonl"
        path.write_text("".join(f"{json.dumps(o)}\n" for o in (about, *turns)))
        t = from_rlms(path)
        assert (t.status, t.how, len(chats([t]))) == (status, how, kept), turns
    for odd in ("done", dict(status="over"), dict(status=["done"]), [1], dict()): # of anybody
        path.write_text("".join(f"{json.dumps(o)}\n" for o in (about | dict(ended=odd), silent, asked)))
        assert from_rlms(path).status == "fallback"

def _stopped(messages, tools):
    said = sum(m["role"] == "assistant" for m in messages)
    return tool_call("n = len(context)") if not said else "Three, perhaps."

def _goes_down(messages, tools): return tool_call("1") if len(messages) == 2 else Fault(400, "not today")

@pytest.mark.parametrize("model,limits,status,limit,how", [(_stopped, dict(max_steps=2), "limit", "max_steps", "fallback"), (_stopped, {}, "fallback", None, "fallback"),
    (lambda m, tools: "FINAL(three)" if len(m) > 2 else tool_call("1"), dict(max_steps=2), None, None, "text"), (_goes_down, {}, "error", None, None)])
def test_how_a_run_of_ours_ended_is_known_again(model, limits, status, limit, how, tmp_path):
    log = tmp_path/"run.jsonl"
    with RLM(ScriptedLM(model, retries=0), limits=Limits(**limits)) as rlm:
        try: rlm.completion("How many?", "abc", log=log)
        except RLMError: assert status == "error"
    t = Trajectory.load(log)
    assert status is None or (t.status, t.limit) == (status, limit), t
    back = from_rlms(t.to_rlms(tmp_path/"theirs.jsonl"))
    assert (back.status, back.limit, back.error, back.how, back.answer) == (t.status, t.limit, t.error, how if t.how else None, t.answer)
    assert chats([back]) == [] or t.status == "done"

def test_a_log_of_theirs_in_utf_8(tmp_path):
    "What parts lines elsewhere does not part those of JSON"
    path = tmp_path/"theirs.jsonl"
    lines = [json.dumps(o | dict(note="a\u2028b\x85c"), ensure_ascii=False) for o in _theirs]
    path.write_text("\n".join(lines), "utf-8")
    assert from_rlms(path).answer == "Acme"

@pytest.mark.parametrize("text,match", [("", "first line"), ("{}", "line 1"), (json.dumps(_theirs[1]), "first line"), ("\0\xff", "line 1"),
    (json.dumps(_theirs[0]) + "\n[1]", "line 2"), (json.dumps(_theirs[0]) + '\n{"type": "iteration", "prompt": [], "code_blocks": [3]}', "line 2"),
    (json.dumps(_theirs[0]) + '\n{"type": "iteration", "prompt": [3]}', "not a log"), ("[" * 100_000, "line 1"),
    (json.dumps(_theirs[0]) + '\n{"type": "iteration", "prompt": "", "iteration_time": "long"}', "not a log")])
def test_what_is_no_log_of_theirs_is_refused(tmp_path, text, match):
    path = tmp_path/"log.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=match): from_rlms(path)

_reads = """
import json, sys
from rlm.core.types import *
about,*turns = map(json.loads, open(sys.argv[1]))
RLMMetadata(**{k: about[k] for k in RLMMetadata.__dataclass_fields__})
keys = {"type", "iteration", "timestamp", *RLMIteration.__dataclass_fields__}
assert about["type"] == "metadata" and all(o["type"] == "iteration" and keys <= o.keys() for o in turns)
for o in turns:
    for b in o["code_blocks"]:
        r = dict(b["result"])
        r["rlm_calls"] = calls = [RLMChatCompletion.from_dict(c) for c in r["rlm_calls"]]
        assert CodeBlock(b["code"], REPLResult(**r)).to_dict()["result"].keys() == b["result"].keys()
        for c in calls: print(c.response, c.usage_summary.total_input_tokens, c.error, bool(c.metadata))
"""

@pytest.mark.skipif("TEST_RLMS" not in os.environ, reason="TEST_RLMS is no folder with the package rlms, whose name would hide ours")
def test_rlms_takes_it(rich, tmp_path):
    path = rich.to_rlms(tmp_path/"log.jsonl")
    r = subprocess.run([sys.executable, "-c", _reads, path], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=os.environ["TEST_RLMS"]), cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    assert len(r.stdout.splitlines()) == len(rich.sub_calls) + 1

# -- An environment of verifiers

_module = """
from rlm.environment import RLMEnv, taskset
letters = {"acme.txt": "Acme was late twice.", "bolt.txt": "Bolt was never late."}
def rows():
    yield dict(query="How many were late?", context=letters, response_format=int, expected=1)
    yield dict(query="How many letters?", context=letters, expected=3)
async def reward(row, result): return result.answer == row["expected"]
Suppliers = taskset(rows, reward)
__all__ = ["Suppliers", "RLMEnv"]
"""

def _policy(messages, tools):
    "A root that asks about each letter; and what it asks"
    if not tools: return "yes" if "twice" in messages[-1]["content"] else "no"
    if "How many letters?" in messages[1]["content"]: return tool_call("FINAL(len(context))")
    if len(messages) == 2: return tool_call("said = llm_query_batched(list(context.values()))")
    return tool_call("FINAL(said.count('yes'))")

async def _episodes(base_url, **agent):
    import verifiers.v1 as vf
    config = vf.resolve_env_config(dict(taskset=dict(id="suppliers_env"), agent=agent | dict(harness=dict(id="rlm.environment", shell="process", max_steps=5))))
    env = vf.load_environment(config)
    model = vf.ModelContext(model="policy", client=vf.EvalClientConfig(base_url=base_url, api_key_var="NO_KEY"))
    async with env.serving(): return [await env.run_slot(slot, model) for task in env.taskset for slot in env.slots(task)]

def test_an_environment_of_verifiers(tmp_path, monkeypatch):
    pytest.importorskip("verifiers.v1", reason="the extra `verifiers` is not installed")
    (tmp_path/"suppliers_env.py").write_text(_module)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NO_KEY", "none")
    with serve(ScriptedLM(_policy)) as server:
        right,wrong = asyncio.run(_episodes(server.base_url))
        stopped = asyncio.run(_episodes(server.base_url, max_turns=1))[0].traces[0]
    assert stopped.ok and (stopped.stop_condition, stopped.reward, stopped.metrics["answered"]) == ("max_turns", 0.0, 0.0)
    assert right.ok and wrong.ok, (right.errors, wrong.errors, [t.errors for t in right.traces])
    a,b = right.traces[0],wrong.traces[0]
    assert (a.reward, b.reward) == (1.0, 0.0) and (a.root_reply, b.root_reply) == ("1", "2")
    assert len(a.calls) == 4 and len(a.branches) == 3 and a.metrics["sub_calls"] == 2
    assert "twice" in str(a.branches) and "letters" not in a.task.data.model_dump_json().replace("How many letters", "")
    assert "Acme" not in a.task.model_dump_json()
