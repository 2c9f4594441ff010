"What a person who calls `RLM` relies on: typed answers, children, sessions, checks, streams and results, with real shells"
import asyncio, base64, json, pickle, re, time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import pytest

from rlm import RLM, Limits, run
from rlm.cache import Cache
from rlm.events import (Cell, CellOutput, CellStart, Citation, End, Final, InputError, LMError, Reply, ReplyDelta, Run,
    Subcall, SubcallStart, Summary)
from rlm.lm import LM
from rlm.model import arun
from rlm.offline import Fault, ScriptedLM, Slow, serve, tool_call, tool_calls
from rlm.trajectory import Trajectory

TEXT = "The depot in Bergen closed in 1987.\nThe depot in Oslo is open.\n" * 20

def make(replies, subs=None, **kw):
    "An `RLM` with scripted models; `replies` in plain text that is code are native calls"
    subs = [ScriptedLM(o) for o in subs] if isinstance(subs, tuple) else subs if subs is None or isinstance(subs, LM) else ScriptedLM(subs)
    return RLM(ScriptedLM([tool_call(o[3:], id=f"c{i}") if isinstance(o, str) and o.startswith(">>>") else o for i,o in enumerate(replies)]), subs, **kw)

def ask(replies, subs=None, context=TEXT, response_format=None, **kw):
    with make(replies, subs, **kw) as m: return m.completion("Which?", context, response_format)

def sent(m, i=-1): return m.models[0].requests[i]["messages"]
def last(m, i=-1): return sent(m, i)[-1]["content"]
def of(r, cls): return [e for e in r.trajectory if isinstance(e, cls)]

# ---- typed answers

from pydantic import BaseModel, Field

class City(BaseModel):
    name: str
    year: int = Field(ge=0)

@dataclass
class Town:
    name: str
    year: int

class Place(TypedDict):
    name: str
    year: int

SCHEMA = dict(type="object", properties=dict(name=dict(type="string"), year=dict(type="integer")), required=["name", "year"])
GOOD = dict(name="Bergen", year=1987)

@pytest.mark.parametrize("how", [
    f">>>FINAL({GOOD!r})", f">>>x = {GOOD!r}\nFINAL_VAR('x')", f">>>answer = dict(content={GOOD!r}, ready=True)", f"FINAL({json.dumps(GOOD)})",
    f"FINAL(```json\n{json.dumps(GOOD)}\n```)"])
@pytest.mark.parametrize("kind", [City, Town, Place, SCHEMA], ids=["model", "dataclass", "typeddict", "schema"])
def test_typed_from_everywhere(how, kind):
    r = ask([how], response_format=kind)
    assert r.parsed == (kind(**GOOD) if isinstance(kind, type) else GOOD) and r.status == "done"

@pytest.mark.parametrize("kind,how,value", [
    (int, "FINAL(1987)", 1987), (int, ">>>FINAL(1987)", 1987), (int, ">>>import numpy\nFINAL(numpy.int64(1987))", 1987),
    (list[str], ">>>FINAL(['a', 'b'])", ["a", "b"]), (list[str], 'FINAL(["a", "b"])', ["a", "b"]), (list[str], ">>>FINAL({'a'})", ["a"]),
    (str, "FINAL(it is Bergen)", "it is Bergen"), (bool, ">>>FINAL(True)", True), (float, "FINAL(3.5)", 3.5),
    (list[Place], f">>>import pandas\nFINAL(pandas.DataFrame([{GOOD!r}]))", [GOOD]),
    (list[City], f">>>import pandas\nFINAL(pandas.DataFrame([{GOOD!r}]))", [City(**GOOD)]),
    (int | None, "FINAL(null)", None), (int | None, ">>>FINAL(None)", None)])
def test_typed_simple(kind, how, value):
    r = ask([how], response_format=kind)
    assert r.parsed == value and type(r.parsed) is type(value) and r.status == "done" and r.steps == 1

@pytest.mark.parametrize("shell", ["inprocess", "process", "sandbox"])
def test_typed_wrong_then_right(shell):
    "FINAL itself refuses, in the cell, so that code may go on"
    m = make([">>>FINAL(dict(name='Bergen', year='in the eighties'))", f">>>try: FINAL('x')\nexcept Exception as e: print('refused:', type(e).__name__)\nFINAL({GOOD!r})"], shell=shell)
    with m: r = m.completion("Which?", TEXT, City)
    assert r.parsed == City(**GOOD) and r.steps == 2 and "year" in last(m)
    assert r.trajectory.cells[0].error and len(of(r, Final)) == 1
    assert r.trajectory.run.answer_type["properties"].keys() == {"name", "year"}

@pytest.mark.parametrize("wrong", [">>>x = ['a']\nFINAL_VAR('x')", ">>>answer = dict(content='nineteen', ready=True)", ">>>FINAL([1] * 10**6)", ">>>FINAL(object())", ">>>FINAL(True)",
    ">>>FINAL()", "FINAL()", "FINAL_VAR(context)"])
@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_typed_wrong_in_any_way_is_told(wrong, shell):
    m = make([wrong, ">>>FINAL(1987)"], shell=shell)
    with m: r = m.completion("When?", TEXT, int)
    assert r.parsed == r.answer == 1987 and r.steps == 2 and r.status == "done" and 20 < len(last(m)) < 3000

MADE = ["import pandas\nx = pandas.DataFrame([G])", "from pydantic import BaseModel\nclass C(BaseModel):\n    name: str\n    year: int\nx = [C(**G)]",
    "from dataclasses import dataclass\n@dataclass\nclass C:\n    name: str\n    year: int\nx = (C(**G),)", "import numpy\nx = numpy.array([G])", "x = [dict(G, when=__import__('datetime').date(2020, 1, 1))]"]

@pytest.mark.parametrize("code", MADE, ids=["frame", "pydantic", "dataclass", "numpy", "date"])
@pytest.mark.parametrize("end", ["\nFINAL(x)", ""])
def test_typed_objects_from_a_worker(code, end):
    "Objects of the shell are taken as they are, wherever it runs"
    r = ask([">>>" + code.replace("G", repr(GOOD)) + end, "FINAL_VAR(x)"], response_format=list[City], shell="process")
    assert r.parsed == [City(**GOOD)] and r.steps == 2 - bool(end)

def test_typed_text_in_code_is_no_number():
    "Code gives objects: a string of JSON is refused, and the reason is told"
    m = make([">>>FINAL('1987')", ">>>FINAL(1987)"])
    with m: r = m.completion("When?", TEXT, int)
    assert r.parsed == 1987 and r.steps == 2 and "int" in last(m)

def test_typed_wrong_as_text_is_told():
    m = make(["FINAL(nineteen)", "FINAL_VAR(context)", "FINAL(1987)"])
    with m: r = m.completion("When?", TEXT, int)
    assert r.parsed == 1987 and r.steps == 3 and "not accepted" in last(m) and "int" in last(m, 1)

@pytest.mark.parametrize("replies", [["FINAL(nineteen)"]*3, [">>>FINAL('nineteen')"]*2 + ["FINAL(nineteen)"], ["No idea."]*3])
def test_typed_never_right(replies):
    r = ask(replies, response_format=int, limits=Limits(max_steps=3))
    assert r.parsed is None and r.status in ("limit", "fallback") and r.answer in ("nineteen", "No idea.")

def test_typed_on_the_last_step():
    r = ask([">>>x = 1987", "The answer: FINAL_VAR\nFINAL_VAR(x)"], response_format=int, limits=Limits(max_steps=2))
    assert r.parsed == 1987 and r.limit == "max_steps"

def test_typed_fallback_is_read_anyway():
    r = ask(["Let me think.", "1987"], response_format=int)
    assert r.parsed == 1987 and r.status == "fallback"

@pytest.mark.parametrize("bad", [5, "int", [int], dict(type="nothing"), object()])
def test_bad_response_format_is_told_at_once(bad):
    m = make(["FINAL(1)"])
    with pytest.raises(InputError): m.completion("When?", TEXT, bad)
    assert not m.models[0].requests

def test_the_prompt_says_what_is_wanted():
    m = make([f"FINAL({json.dumps(GOOD)})"])
    m.completion("Which?", TEXT, City)
    assert "year" in last(m) and "name" in last(m)

# ---- typed sub-calls

@pytest.mark.parametrize("shell", ["inprocess", "process", "sandbox"])
def test_typed_sub_calls(shell):
    code = """>>>from dataclasses import dataclass
from typing import TypedDict
@dataclass
class T:
    name: str
    year: int
class D(TypedDict):
    name: str
a = llm_query('int', response_format=int)
b = llm_query_batched(['list', 'list'], response_format=list[str])
c = llm_query('data', response_format=T)
d = llm_query('data', response_format=D | None) if False else llm_query('name', response_format=D)
e = llm_query('schema', response_format=dict(type='array', items=dict(type='integer')))
print(type(c).__name__, isinstance(c, T))
FINAL([a, b, c.name, c.year, d['name'], e])"""
    replies = dict(int="7", list='["x"]', data='{"name": "B", "year": 5}', name='```json\n{"name": "B"}\n```', schema="[1, 2]")
    def sub(messages, tools): return replies[messages[-1]["content"].split("\n")[0]]
    r = ask([code], sub, shell=shell)
    assert r.answer == [7, [["x"], ["x"]], "B", 5, "B", [1, 2]], of(r, Cell)[0].output

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_typed_sub_call_asks_again_and_gives_up(shell):
    n = []
    def sub(messages, tools):
        n.append(messages)
        return "no number" if "bad" in messages[0]["content"] or len(messages) < 3 else "7"
    code = """>>>print(llm_query('good', response_format=int))
out = llm_query_batched(['good', 'bad'], response_format=int)
try: llm_query('bad', response_format=int)
except Exception as e: print('raised', type(e).__name__)
FINAL([out[0], str(out[1])[:6], isinstance(out[1], str)])"""
    r = ask([code], sub, shell=shell)
    assert r.answer == [7, "ERROR:", True] and "raised AnswerError" in of(r, Cell)[0].output
    assert [len(o) for o in n[:2]] == [1, 3] and max(map(len, n)) == 5
    assert r.sub_calls == len(n)

# ---- recursion

def tree(reply, **kw):
    "An `RLM` whose every model answers with `reply(depth, question, messages)`; depths by model name"
    def at(d):
        def f(messages, tools):
            question = next((m["content"] for m in messages if m["role"] == "user"), "")
            return reply(d, question.partition("\n")[0].removeprefix("Question: "), messages)
        return ScriptedLM(f, model=f"scripted/d{d}")
    kw.setdefault("limits", Limits(max_depth=2))
    return RLM(at(0), [at(i) for i in range(1, 4)], **kw)

@pytest.mark.parametrize("depth,shell", [(1, "inprocess"), (2, "inprocess"), (3, "inprocess"), (1, "process"), (3, "process"), (2, "sandbox")])
def test_depths(depth, shell):
    "Every level asks the next one, the last one a bare model; one log tells who asked whom"
    def reply(d, q, messages):
        tools = messages[0]["role"] == "system"
        return tool_call(f"FINAL('{d}' + str(rlm_query('deeper', context[:10])))", id=f"c{d}") if tools else f"leaf{d}"
    with tree(reply, shell=shell, limits=Limits(max_depth=depth)) as m: r = m.completion("Go", TEXT)
    assert r.answer == "".join(map(str, range(depth))) + f"leaf{depth}" and r.status == "done"
    runs = r.trajectory.runs
    assert [o.depth for o in runs] == list(range(depth)) and [o.model for o in runs] == [f"scripted/d{i}" for i in range(depth)]
    for above,o in zip(runs, runs[1:]):
        assert o.run == above.id and o.query == "deeper"
        cell = next(e for e in r.trajectory if isinstance(e, Cell) and e.id == o.parent)
        assert cell.run == above.id and "rlm_query" in cell.code
        own = r.trajectory.of(o.id)
        assert own.run.id == o.id and own.status == "done" and own.answer.endswith(f"leaf{depth}") and len(own.steps) == 1
    assert {k: u.calls for k,u in r.usage_by_depth.items()} == {(i, f"scripted/d{i}"): 1 for i in range(depth+1)}
    assert r.steps == 1 and r.sub_calls == depth and r.usage.calls == depth + 1 and m.usage == r.usage
    assert all(len(o.messages()) == 4 for o in map(r.trajectory.of, [e.id for e in runs]))

def test_the_prompt_tells_of_children_only_where_there_are_some():
    for depth in (1, 2):
        m = make(["FINAL(1)"], limits=Limits(max_depth=depth))
        m.completion("Which?", TEXT)
        assert ("rlm_query(" in sent(m)[0]["content"]) == (depth == 2)

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_children_in_a_batch(shell):
    "In order, in parallel, at most `max_children` at once, with contexts of their own and types"
    now,most = [0],[0]
    async def child(messages, tools):
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0.1)
        now[0] -= 1
        return tool_call("FINAL(len(context))", id="c")
    code = """>>>got = rlm_query_batched([f'How long is {i}?' for i in range(6)], ['x'*i for i in range(6)], response_format=int)
FINAL(got)"""
    r = ask([code], child, limits=Limits(max_depth=2), max_children=2, shell=shell)
    assert r.answer == list(range(6)) and most[0] == 2 and len(r.trajectory.children) == 6
    assert {o.query for o in r.trajectory.children} == {f"How long is {i}?" for i in range(6)}
    batch = [o.parent for o in r.trajectory.children]
    assert set(batch) == {r.trajectory.cells[0].id} and all(o.context["chars"] == int(o.query[-2]) for o in r.trajectory.children if o.query[-2] != "0")

@pytest.mark.parametrize("what,told,status", [
    (Fault(400, "no such luck"), "no such luck", "error"),
    (RuntimeError("a bug"), "a bug", "error"),
    ("limit", "stopped at max_steps", "limit"),
    ("idle", "no idea", "fallback"),
    ("typed", "stopped at max_steps", "limit")])
@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_failing_children(what, told, status, shell):
    "The parent is told and goes on; the others of the batch are not disturbed"
    def child(messages, tools):
        if "good" in messages[1]["content"]: return tool_call("FINAL('fine')", id="g")
        return tool_call("1", id=f"c{len(messages)}") if what == "limit" else "no idea" if what == "idle" else \
            "FINAL(no number)" if what == "typed" else what
    kw = ", response_format=int" if what == "typed" else ""
    code = f">>>one = rlm_query('bad'{kw})\nmany = rlm_query_batched(['good', 'bad'])\nprint([type(o).__name__ for o in [one, *many]])\nFINAL([str(one), *many])"
    with make([code], child, limits=Limits(max_depth=2, max_steps=4), shell=shell) as m:
        r = m.completion("Which?", "text")
    assert r.status == "done" and told in r.answer[0] and r.answer[1] == "fine" and (r.answer[0].startswith("ERROR:") or what == "idle")
    assert r.trajectory.of(r.trajectory.children[0].id).status == status
    assert all(r.trajectory.of(o.id).status for o in r.trajectory.children)

def test_a_child_given_nonsense():
    "What hostile code passes is refused with a sentence, and nothing is started"
    code = """>>>got = []
for args, kw in [((5,), {}), ((['q'],), {}), (('q',), dict(response_format='nonsense')), (('',), {}), (('q', None, int, 4), {})]:
    try: got.append(rlm_query(*args, **kw))
    except Exception as e: got.append(type(e).__name__)
for args in [('q',), (['q'], ['a', 'b']), (5,), ([7],)]:
    try: got.append(rlm_query_batched(*args))
    except Exception as e: got.append(type(e).__name__)
FINAL([str(o) for o in got])"""
    for shell in ("inprocess", "process"):
        r = ask([code], ["unused"], limits=Limits(max_depth=2), shell=shell)
        assert r.status == "done" and not r.trajectory.children and len(r.answer) == 9, r.answer
        assert all("Error" in o or o.startswith("ERROR") for o in r.answer)

def test_children_have_their_own_tools():
    def shout(text: str) -> str:
        "In capitals"
        return text.upper()
    r = ask([">>>FINAL([shout('a'), rlm_query('q', 'c')])"], [tool_call("FINAL('shout' in globals())")], tools=[shout], sub_tools=[], limits=Limits(max_depth=2))
    assert r.answer == ["A", False]
    r = ask([">>>FINAL([shout('a'), rlm_query('q', 'c')])"], [tool_call("FINAL(shout('b'))")], tools=[shout], limits=Limits(max_depth=2), shell="process")
    assert r.answer == ["A", "B"]

def test_a_long_question_to_a_child_becomes_its_context():
    r = ask([">>>FINAL(rlm_query('word ' * 2000))"], [tool_call("FINAL(len(context))")], limits=Limits(max_depth=2))
    assert r.answer == 10000
    assert len(r.trajectory.children[0].query) < 200

# ---- cache

BATCH = ">>>FINAL(llm_query_batched(['a', 'a', 'b']) + [llm_query('a')])"

@pytest.mark.parametrize("cache,calls,again", [(None, 2, 2), (False, 4, 4), ("path", 2, 0), (Cache(), 2, 0)], ids=["run", "off", "disk", "object"])
@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_cache(cache, calls, again, shell, tmp_path):
    "Within a question, across questions, on disk; hits are counted apart and are free"
    if cache == "path": cache = tmp_path/"deep"/"calls.sqlite"
    elif isinstance(cache, Cache): cache = Cache()
    n = []
    sub = ScriptedLM(lambda messages, tools: n.append(messages) or messages[0]["content"].upper())
    for made in (calls, again):
        n.clear()
        with make([BATCH], sub, cache=cache, shell=shell) as m: r = m.completion("Which?", TEXT)
        assert r.answer == ["A", "A", "B", "A"] and (len(n), r.sub_calls, r.cache_hits) == (made, made, 4-made)
        assert r.usage.calls == made + 1 and [e.cached for e in of(r, Subcall)].count(True) == 4-made

def test_cache_on_the_default_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sub = ScriptedLM(lambda m, t: "x")
    for hits in (2, 4): assert ask([BATCH], sub, cache=True).cache_hits == hits
    assert list(tmp_path.rglob("calls.sqlite"))

def test_cache_knows_who_was_asked():
    "Two stand-ins are two models, whatever they are called"
    r = ask([">>>FINAL([llm_query('a'), llm_query('a', model='other'), llm_query('a')])"], lambda m, t: "one", choices=dict(other=ScriptedLM(lambda m, t: "two")))
    assert r.answer == ["one", "two", "one"] and r.cache_hits == 1

def test_cache_knows_what_was_asked():
    "Another model, another type, an image: not the same call"
    cache,n = Cache(),[]
    def sub(messages, tools): return n.append(messages) or "7"
    png = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
    code = f">>>FINAL([llm_query('a'), llm_query('a', response_format=int), llm_query('a', images=[{png!r}]), llm_query('a')])"
    r = ask([code], sub, cache=cache)
    assert r.answer == ["7", 7, "7", "7"] and len(n) == 3
    r = make([code], None, cache=cache)
    m = RLM(r.models[0], ScriptedLM(sub, model="scripted/other"), cache=cache)
    assert m.completion("Which?", TEXT).sub_calls == 3

def test_failures_are_not_cached():
    n = []
    def sub(messages, tools): return Fault(400, "no") if n.append(1) or len(n) < 3 else "fine"
    r = ask([">>>FINAL([*llm_query_batched(['a']), *llm_query_batched(['a']), *llm_query_batched(['a']), llm_query('a')])"], sub)
    assert [o[:5] for o in r.answer] == ["ERROR", "ERROR", "fine", "fine"] and r.sub_calls == 3

def test_children_share_the_cache_of_the_question():
    n = []
    def sub(messages, tools): return tool_call("FINAL(llm_query('same'))", id="c") if messages[0]["role"] == "system" else n.append(1) or "once"
    r = ask([">>>FINAL(rlm_query_batched(['a', 'b'], ['c', 'd']) + [llm_query('same')])"], sub, limits=Limits(max_depth=2))
    assert r.answer == ["once"]*3 and len(n) == 1

# ---- sessions

@pytest.mark.parametrize("shell", ["inprocess", "process", "sandbox"])
@pytest.mark.parametrize("tools", [True, False])
def test_session(shell, tools, tmp_path):
    "Variables stay; what was asked before is not sent anew but continued; the log has it all"
    code = (lambda s: tool_call(s, id=f"c{len(s)}")) if tools else lambda s: f"```repl\n{s}\n```"
    lm = ScriptedLM([code("n = len(context)\nFINAL(n)"), code("FINAL(n + len(more))"), "FINAL(third)"], tools=tools)
    with RLM(lm, shell=shell).session(TEXT, log=tmp_path/"log.jsonl") as s:
        assert s.completion("How long?").answer == len(TEXT)
        assert s.add("xyz", "more") == "more" and s.add(["a"]) == "context_2"
        r = s.completion("And together?")
        assert r.answer == len(TEXT) + 3 and r.query == "And together?" and r.steps == 1 and r.ns["n"] == len(TEXT)
        assert s.completion("And?").answer == "third" and len(s.trajectory.runs) == 3
    told = lm.requests[1]["messages"][-1]["content"]
    assert "And together?" in told and "`more` is of type str" in told and "context_2" in told and "`more`" not in lm.requests[2]["messages"][-1]["content"]
    for a,b in zip(lm.requests, lm.requests[1:]): assert b["messages"][:len(a["messages"])] == a["messages"]
    log = Trajectory.load(tmp_path/"log.jsonl")
    assert log.messages()[:-1] == lm.requests[-1]["messages"] == s.trajectory.messages()[:-1] and len(log.runs) == 3
    assert [log.of(o.id).answer for o in log.runs] == [len(TEXT), len(TEXT)+3, "third"] and log.answer == "third"

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_session_from_a_log(shell, tmp_path):
    "The code of a log runs again, nobody is asked twice, and the conversation goes on where it was"
    log,asked = tmp_path/"l.jsonl",[]
    def sub(messages, tools): return asked.append(1) or "one"
    code = tool_call("x = llm_query('a') + llm_query_batched(['b'])[0]\ny = rlm_query('q', 'c')\nFINAL(x)", id="a")
    def child(messages, tools): return tool_call("FINAL('child')", id="k") if messages[0]["role"] == "system" else sub(messages, tools)
    with RLM(lm := ScriptedLM([code]), ScriptedLM(child), limits=Limits(max_depth=2), shell=shell).session(TEXT, log) as s: s.completion("One?")
    n = len(log.read_text().splitlines())
    with RLM(again := ScriptedLM([tool_call("FINAL(x + y)", id="b")]), ScriptedLM(child), limits=Limits(max_depth=2), shell=shell).session(TEXT, log) as s:
        assert s.completion("Two?").answer == "oneonechild" and len(asked) == 2
    assert again.requests[0]["messages"][:len(lm.requests[0]["messages"])] == lm.requests[0]["messages"] and len(again.requests[0]["messages"]) == 5
    assert len(Trajectory.load(log).runs) == 3 and len(log.read_text().splitlines()) > n
    with RLM(ScriptedLM([]), shell=shell).session("another text", log) as s:
        with pytest.raises(InputError, match="another context"): s.completion("Three?")

@pytest.mark.parametrize("name", ["FINAL", "llm_query", "search", "not a name", "", "class", "context", "find", "_x", "answer", 5])
def test_bad_names_of_contexts(name):
    with make([]).session(TEXT) as s:
        with pytest.raises(InputError): s.add("x", name or "1")

def test_session_typed_then_untyped():
    with make([">>>FINAL('x')", ">>>FINAL(7)", ">>>FINAL('text now')", f">>>FINAL({GOOD!r})"]).session(TEXT) as s:
        r = s.completion("One?", int)
        assert r.parsed == 7 and r.steps == 2
        r = s.completion("Two?")
        assert r.answer == r.parsed == "text now" and r.steps == 1
        assert s.completion("Three?", City).parsed == City(**GOOD)

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_session_after_a_cancelled_run(shell):
    "The half-done run is in the log, its open call is answered, variables are kept, and the next question works"
    lm = ScriptedLM([tool_call("kept = 5\nprint('go')\nimport time\ntime.sleep(30)", id="a"), tool_call("FINAL(kept)", id="b"), "FINAL(lost)"])
    async def main(s):
        seen = asyncio.Event()
        loop = asyncio.get_running_loop()
        s.trajectory.listen(lambda e: isinstance(e, CellStart) and loop.call_soon_threadsafe(seen.set))
        task = asyncio.create_task(s.acompletion("Slow?"))
        await seen.wait()
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        assert s.result.status == "cancelled"
        return await s.acompletion("Then?")
    with RLM(lm, shell=shell).session(TEXT) as s:
        r = asyncio.run(main(s))
        assert r.status == "done" and (r.answer == 5 or shell == "process" and r.answer == "lost") # a worker that does not stop in time is replaced
        first,second = lm.requests[0]["messages"],lm.requests[1]["messages"]
        assert second[:len(first)] == first and [o["role"] for o in second[len(first):]] == ["assistant", "tool", "user"]

def test_session_after_limits_errors_and_refusals():
    lm = ScriptedLM([tool_call("x = 1", id="a"), tool_call("y = 2", id="b"), Fault(400, "no"), tool_call("FINAL(x)", id="c")])
    with RLM(lm, limits=Limits(max_steps=2)).session(TEXT) as s:
        assert s.completion("One?").limit == "max_steps"
        with pytest.raises(LMError) as e: s.completion("Two?")
        assert e.value.trajectory is s.trajectory and s.result.status == "error"
        assert s.completion("Three?").answer == 1
    for a,b in [(0, 1), (1, 3)]: # what followed the one that failed begins with all that was answered
        a,b = lm.requests[a],lm.requests[b]
        assert b["messages"][:len(a["messages"])] == a["messages"]
    answered = {m["tool_call_id"] for m in lm.requests[-1]["messages"] if m["role"] == "tool"}
    assert answered >= {"a", "b"}

def test_session_is_not_used_twice_at_once():
    async def slow(messages, tools): return await asyncio.sleep(0.3) or "FINAL(1)"
    async def main():
        with RLM(ScriptedLM(slow)).session(TEXT) as s:
            first = asyncio.create_task(s.acompletion("One?"))
            await asyncio.sleep(0.1)
            with pytest.raises(InputError, match="answering"): await s.acompletion("Two?")
            return (await first).answer,(await s.acompletion("Three?")).answer
    assert asyncio.run(main()) == ("1", "1")

@pytest.mark.parametrize("q", ["", "  \n", None, 5, b"x"])
def test_no_question(q):
    with make([]).session(TEXT) as s:
        with pytest.raises(InputError): s.completion(q)
    with pytest.raises(InputError, match="empty" if isinstance(q, str) else "must be a string"): make([]).completion(q, TEXT)

def test_messages_as_a_question():
    chat = [dict(role="system", content="Be brief."), dict(role="user", content="Hello"), dict(role="assistant", content="Hi"), dict(role="user", content="And now?")]
    m = make([">>>FINAL([type(context).__name__, len(context)])"])
    assert m.completion(chat).answer == ["list", 3] and "And now?" in last(m) and "chat messages" in last(m)
    m = make([">>>FINAL(len(context))"])
    assert m.completion(chat[-1:], "abc").answer == 3
    m = make([">>>FINAL(len(context))"])
    assert m.completion(chat, "abc").answer == 3 and "system: Be brief." in last(m) and "And now?" in last(m)
    with pytest.raises(InputError, match="Beside a context"): m.completion([dict(role="user", content="word "*2000)], "abc")
    with pytest.raises(InputError): m.completion([])
    with pytest.raises(InputError): m.completion(["text"])
    m = make([">>>FINAL(len(context[-1]['content']))"])
    assert m.completion([dict(role="user", content="word "*2000)]).answer == 10000

# ---- verify

@pytest.mark.parametrize("verify", [
    lambda q, a, e: a == "good", lambda q, a, e: None if a == "good" else "too vague", lambda q, a, e: True if a == "good" else "too vague"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_verify_by_a_function(verify, asynchronous):
    "Refused twice with the reason, then accepted"
    async def later(q, a, e): return verify(q, a, e)
    m = make([">>>FINAL('bad')", "FINAL(worse)", ">>>FINAL('good')"], verify=later if asynchronous else verify)
    with m: r = m.completion("Which?", TEXT)
    assert r.answer == "good" and r.verified is True and r.steps == 3 and "not accepted" in last(m) and len(of(r, Final)) == 1
    assert "too vague" in last(m) or "does not hold" in last(m)

def test_verify_gives_up_in_the_end():
    r = ask(["FINAL(a)", "FINAL(b)", "FINAL(c)", "FINAL(d)"], verify=lambda q, a, e: False)
    assert r.answer == "c" and r.verified is False and r.status == "done" and r.steps == 3
    assert ask(["FINAL(a)"], verify=lambda q, a, e: False, max_refusals=0).verified is False

def test_verify_is_given_what_the_answer_stands_on():
    seen = []
    def verify(question, answer, evidence): return seen.append((question, answer, evidence))
    r = ask([">>>print('a look')\ncite('closed in 1987')\ncite('nowhere')", f">>>FINAL({GOOD!r})"], verify=verify, response_format=City)
    (question,answer,evidence), = seen
    assert question == "Which?" and answer == City(**GOOD) and r.verified
    assert [o.found for o in evidence.citations] == [True, False] and "a look" in evidence.outputs[0] and "»closed in 1987«" in str(evidence)

def test_verify_by_a_model():
    judge = ScriptedLM(["Hmm.\nREFUSE: say the year", "Fine.\n**ACCEPT**"])
    m = make(["FINAL(Bergen)", "FINAL(Bergen, 1987)"], verify=judge)
    with m: r = m.completion("Which?", TEXT)
    assert r.answer == "Bergen, 1987" and r.verified and "say the year" in last(m)
    asked = judge.requests[0]["messages"][-1]["content"]
    assert "Which?" in asked and "Bergen" in asked and [e.purpose for e in of(r, Subcall)] == ["verify"]*2 and r.usage.calls == 4

@pytest.mark.parametrize("verify", [ScriptedLM([Fault(400, "no")]), ScriptedLM(["No verdict at all."])], ids=["error", "unreadable"])
def test_a_verifying_model_that_fails_does_not_lose_the_answer(verify):
    r = ask(["FINAL(Bergen)"], verify=verify)
    assert r.answer == "Bergen" and r.verified is None # nobody has said that it holds

async def _slowly(q, a, e): await asyncio.sleep(60)

@pytest.mark.parametrize("verify", [ScriptedLM([Slow(60, "ACCEPT")]), _slowly, lambda q, a, e: time.sleep(6)], ids=["model", "coroutine", "function"])
def test_a_verifier_has_as_long_as_the_run(verify):
    start,m = time.monotonic(),make(["FINAL(Bergen)"], verify=verify, limits=Limits(max_seconds=1.5))
    with m: r = m.completion("Which?", TEXT)
    assert (r.answer, r.verified) == ("Bergen", None) and time.monotonic() - start < 5

def test_a_refusal_is_not_longer_than_an_output():
    m = make(["FINAL(a)", "FINAL(b)"], verify=lambda q, a, e: a == "b" or "because " + "x"*100_000)
    with m: assert m.completion("Which?", TEXT).verified and len(last(m)) < 6000

def test_a_verifying_function_that_fails():
    "The user's own bug is shown, with the log so far"
    def verify(q, a, e): raise ZeroDivisionError("oops")
    m = make(["FINAL(Bergen)"], verify=verify)
    with pytest.raises(ZeroDivisionError): m.completion("Which?", TEXT)
    assert m.last.status == "error" and "oops" in m.last.error

def test_children_are_not_verified():
    seen = []
    r = ask([">>>FINAL(rlm_query('q', 'c'))"], [tool_call("FINAL('child')")], verify=lambda q, a, e: seen.append(a), limits=Limits(max_depth=2))
    assert seen == ["child"] and r.answer == "child"

# ---- what the model is shown at once, or the whole of

def test_preview():
    m = make(["FINAL(1)"], preview=3000)
    m.completion("Which?", "".join(f"line {i} of many\n" for i in range(10_000)))
    told = last(m)
    assert "Some of it" in told and "line 0" in told and "line 99" in told and len(told) < 4000
    m = make(["FINAL(1)"])
    m.completion("Which?", "SECRET " * 1000)
    assert "SECRET" not in json.dumps(sent(m))

@pytest.mark.parametrize("context", [TEXT, dict(a="The depot in Bergen", b="closed in 1987"), ["The depot in Bergen", "closed in 1987"]])
def test_direct(context):
    "A short context goes straight to the model; the log does not have it"
    m = make(["1987, I think."], direct_below=1000)
    with m: r = m.completion("When?", context)
    assert r.answer == "1987, I think." and r.how == "direct" and r.status == "done" and r.steps == 1
    assert "closed in 1987" in last(m) and "When?" in last(m) and m.models[0].requests[0]["tools"] is None
    assert "Bergen" not in "".join(map(str, r.trajectory.events)).replace(str(r.trajectory.run.context), "") and r.trajectory.run.dialect == "direct"
    assert repr(r) and r._repr_markdown_() and r.history and r.citations == []
    with pytest.raises(InputError): r.ns["x"]

def test_direct_typed_and_verified():
    m = make(["In the eighties", "1986", "1987"], direct_below=1000, verify=lambda q, a, e: a == 1987)
    with m: r = m.completion("When?", TEXT, int)
    assert r.parsed == 1987 and r.verified is True and r.steps == 3 and "integer" in last(m, 1) and "int" in sent(m, 0)[-1]["content"]

def test_direct_never_right():
    r = ask(["No", "No", "No"], response_format=int, direct_below=1000)
    assert r.parsed is None and r.status == "fallback" and r.answer == "No"

def test_direct_within_limits():
    "What was said before a limit is the answer, as with a shell"
    r = ask(["1986", "1987"], direct_below=1000, limits=Limits(max_tokens=10))
    assert (r.answer, r.status, r.limit) == (None, "limit", "max_tokens")
    r = ask(["1986", Slow(60, "1987")], direct_below=1000, limits=Limits(max_seconds=1.5), verify=lambda q, a, e: a == "1987")
    assert (r.answer, r.status, r.limit) == ("1986", "limit", "max_seconds")
    r = ask(["1986", "1987"], direct_below=1000, limits=Limits(max_steps=1), verify=lambda q, a, e: a == "1987")
    assert (r.answer, r.status, r.limit) == ("1986", "limit", "max_steps")
    r = ask(list("abcdef"), direct_below=1000, verify=lambda q, a, e: a == "f", max_refusals=5)
    assert (r.answer, r.verified, r.steps) == ("f", True, 6)

def test_direct_only_with_half_of_the_window_free():
    for window,how in ((200, "code"), (2000, "direct")):
        with RLM(ScriptedLM([tool_call("FINAL(1)")] if how == "code" else ["1987"], window=window), direct_below=1000) as m:
            assert m.completion("When?", TEXT).how == how

def test_direct_only_where_it_fits():
    assert ask([">>>FINAL(1)"], direct_below=10).how == "code"
    assert ask([">>>FINAL(1)"], context=dict(a=5), direct_below=1000).how == "code"
    assert ask([">>>FINAL(1)"], context=b"\xff\xfe\x00", direct_below=1000).how == "code"

def test_direct_then_a_session_goes_on(tmp_path):
    m = make(["direct", ">>>FINAL(len(context))"], direct_below=1000)
    with m.session(TEXT, log=tmp_path/"l.jsonl") as s:
        assert s.completion("One?").answer == "direct"
        m.direct_below = 0
        assert s.completion("Two?").answer == len(TEXT)
    assert len(Trajectory.load(tmp_path/"l.jsonl").runs) == 2

# ---- long conversations

def compacting(replies, window=2000, **kw):
    return RLM(ScriptedLM(replies, window=window), **kw)

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_compaction(shell, tmp_path):
    "Near the window the conversation is summed up: what is sent is short, variables are named, the log has all"
    def root(messages, tools):
        if "nearly too long" in messages[-1]["content"]: return "SUMMARY: looked at everything"
        if any("SUMMARY" in str(o["content"]) for o in messages): return tool_call("FINAL(found)", id="f")
        n = len(messages)
        return tool_call(f"found = {n}\nprint('word ' * 300)", id=f"c{n}", content=f"step {n}")
    with compacting(root, shell=shell, compact=0.8) as m: r = m.completion("Which?", TEXT, log=tmp_path/"l.jsonl")
    summary, = of(r, Summary)
    assert r.status == "done" and isinstance(r.answer, int) and "SUMMARY: looked" in summary.text and "found" in summary.text and summary.tokens > 1500
    final = sent(m)
    assert [o["role"] for o in final] == ["system", "user", "user"] or [o["role"] for o in final] == ["system", "user"]
    assert "SUMMARY" in final[-1]["content"] and "word word" not in json.dumps(final) and "Which?" in json.dumps(final)
    assert len(r.trajectory.cells) >= 3 and [e.purpose for e in of(r, Subcall)] == ["summary"]
    assert m.models[0].requests[-2]["params"]["tool_choice"] == "none"
    loaded = Trajectory.load(tmp_path/"l.jsonl")
    assert loaded.messages() == r.history and r.history[:len(final)] == final

def test_the_server_says_when_it_is_too_much():
    "A context-length error brings on the summary, whatever was counted; without `compact` it is an error"
    def reply(messages, tools):
        text = json.dumps(messages)
        if "nearly too long" in text: return "SUMMARY"
        if "SUMMARY" in text: return "FINAL(done)"
        if len(messages) > 6: return Fault(400, "This model's maximum context length is 100 tokens")
        return tool_call(f"x{len(messages)} = 1", id=f"c{len(messages)}")
    with serve(reply) as srv:
        def lm(): return LM("any", base_url=srv.base_url, window=100_000)
        r = RLM(lm(), compact=True, dialect="tools").completion("Which?", TEXT)
        assert r.answer == "done" and len(of(r, Summary)) == 1 and len(r.trajectory.cells) == 3
        from rlm.events import LMContextLengthError
        with pytest.raises(LMContextLengthError) as e: RLM(lm(), dialect="tools").completion("Which?", TEXT)
        assert len(e.value.trajectory.cells) == 3

def test_compaction_that_fails_does_no_harm():
    def root(messages, tools):
        if "nearly too long" in messages[-1]["content"]: return Fault(400, "no")
        return "FINAL(done)" if len(messages) > 12 else tool_call(f"print('word '*300, {len(messages)})", id=f"c{len(messages)}")
    r = compacting(root, compact=0.8).completion("Which?", TEXT)
    assert r.answer == "done" and not of(r, Summary)

def test_an_empty_summary_is_not_asked_for_at_every_step():
    asked = []
    def root(messages, tools):
        if "nearly too long" in messages[-1]["content"]: return asked.append(len(messages)) or ""
        return "FINAL(done)" if len(messages) > 30 else tool_call(f"print('word '*100, {len(messages)})", id=f"c{len(messages)}")
    r = compacting(root, compact=0.8).completion("Which?", TEXT)
    assert r.answer == "done" and r.steps > 12 and 2 <= len(asked) <= 7

def test_a_summary_has_as_long_as_the_run():
    def root(messages, tools):
        return Slow(60, "late") if "nearly too long" in messages[-1]["content"] else tool_call(f"print('word '*300, {len(messages)})", id=f"c{len(messages)}")
    start = time.monotonic()
    r = compacting(root, compact=0.8, limits=Limits(max_seconds=2)).completion("Which?", TEXT)
    assert r.limit == "max_seconds" and time.monotonic() - start < 6

def test_compaction_in_a_session():
    def root(messages, tools):
        if "nearly too long" in messages[-1]["content"]: return "SUMMARY"
        asked = [o["content"] for o in messages if o["role"] == "user"][-1]
        if messages[-1]["role"] == "user" and "Q" in asked and "SUMMARY" not in asked: return tool_call("print('word '*400)", id=f"c{len(messages)}")
        return "FINAL(a)"
    with compacting(root, compact=0.8).session(TEXT) as s:
        for i in range(6): assert s.completion(f"Q{i}?").answer == "a"
        assert any(isinstance(e, Summary) for e in s.trajectory)
        counts = [s.rlm.models[0].count(o["messages"]) for o in s.rlm.models[0].requests]
        assert max(counts) < 3500

# ---- long outputs

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_offload(shell):
    m = make([">>>print('x' * 8000 + 'END')", ">>>FINAL(len(_result_1))"], shell=shell, offload=True)
    with m: r = m.completion("Which?", TEXT)
    assert r.answer in (8003, 8004) and "_result_1" in last(m) and of(r, Cell)[0].kept == "_result_1" and len(last(m)) < 6500
    assert of(ask([">>>print('x' * 8000)", "FINAL(1)"], shell=shell), Cell)[0].kept is None

# ---- citations

@pytest.mark.parametrize("shell", ["inprocess", "process"])
@pytest.mark.parametrize("context,quote,source,text", [
    (TEXT, "Bergen closed in 1987", None, "Bergen closed in 1987"), (TEXT, "bergen  CLOSED\nin 1987", None, "Bergen closed in 1987"),
    ("He said “don’t” — twice", "\"don't\" - twice", None, "don’t” — twice"), (dict(a="nothing", b="the depot in Oslo"), "depot in Oslo", "b", "depot in Oslo"),
    (["none", "some words"], "some words", 1, "some words"), ([dict(text="alpha"), dict(text="beta gamma")], "beta gamma", 1, "beta gamma")])
def test_citations(shell, context, quote, source, text):
    m = make([f">>>c = cite({quote!r})\nd = cite('nowhere at all')\nFINAL([c['found'], d['found']])"], shell=shell)
    with m: r = m.completion("Which?", context)
    assert r.answer == [True, False] and [o.found for o in r.citations] == [True, False]
    c = r.citations[0]
    assert c.source == source and f"»{text}«" in str(c)
    part = context if source is None else context[source]
    part = part["text"] if isinstance(part, dict) else part
    assert part[c.start:c.end] == text
    assert text in r._repr_markdown_() and "no such text" in r._repr_markdown_() and [e.start for e in of(r, Citation)] == [c.start, None]

def test_citations_of_added_contexts_and_of_children():
    with make([">>>FINAL(cite('in the second')['context'])", ">>>FINAL(rlm_query('q', 'child text'))"], [tool_call("cite('child text')\nFINAL('c')")], limits=Limits(max_depth=2)).session(TEXT) as s:
        s.add("what is in the second one", "more")
        r = s.completion("Which?")
        assert r.answer == "more" and r.citations[0].context == "more" and "»in the second«" in r.citations[0].text
        r = s.completion("And?")
        assert r.citations == [] and r.answer == "c" and len(of(r, Citation)) == 1

@pytest.mark.parametrize("context,change", [({"a": "Acme was late"}, "context.clear()"), ({"a": "Acme was late"}, "context['a'] = 'short'"),
    (["Acme was late"], "context.pop()"), (["Acme was late"], "context.insert(0, 'Of all the suppliers')"), ([dict(text="Acme was late")], "context[0] = 5")])
def test_citations_of_what_code_has_changed(context, change):
    "The answer stands, and no other text is shown as the source"
    seen = []
    r = ask([f">>>cite('late')\n{change}\nFINAL('Acme')"], context=context, verify=lambda q, a, e: seen.append(str(e)))
    c, = r.citations
    assert r.answer == "Acme" and (c.found, c.start, c.text) == (True, 9, "") and "characters 9 to 13: late" in str(c) and seen and r._repr_html_()

@pytest.mark.parametrize("quote", ["5", "''", "None", "['a']", "'x' * 50_000", "chr(0xd800)"])
def test_odd_quotes(quote):
    for shell in ("inprocess", "process"):
        r = ask([f">>>try: c = cite({quote})\nexcept Exception as e: c = dict(found=type(e).__name__)\nFINAL(c['found'])"], shell=shell)
        assert r.status == "done" and r.answer is not True and r._repr_markdown_(), r.answer

# ---- images

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")

@pytest.mark.parametrize("shell", ["inprocess", "process", "sandbox"])
def test_images_for_sub_models(shell):
    "The server receives the picture that the context is; what is none is refused in the cell"
    code = """a = llm_query('What is it?', images=[context])
b = llm_query_batched(['one', 'none'], images=[[context], []])
try: llm_query('bad', images=[b'no image'])
except Exception as e: print(type(e).__name__, e)
try: llm_query('bad', images=['/etc/passwd'])
except Exception as e: print(type(e).__name__, e)
FINAL([a, *b])"""
    def reply(messages, tools): return tool_call(code) if tools else f"{type(messages[0]['content']).__name__}"
    with serve(reply) as srv, RLM("any", base_url=srv.base_url, shell=shell, dialect="tools") as m: r = m.completion("Which?", PNG)
    assert r.answer == ["list", "list", "str"] and of(r, Cell)[0].output.count("InputError") == 2, of(r, Cell)[0].output
    part = srv.requests[1]["body"]["messages"][0]["content"]
    assert part[0] == dict(type="text", text="What is it?") and base64.b64decode(part[1]["image_url"]["url"].partition(",")[2]) == PNG
    assert [e.images for e in of(r, Subcall)] == [1, 1, 0] and "PNG" in srv.requests[0]["body"]["messages"][1]["content"]
    assert "iVBOR" not in "".join(map(str, r.trajectory.events))

# ---- streams

def kinds(events): return [type(e).__name__ for e in events]

@pytest.mark.parametrize("shell", ["inprocess", "process"])
@pytest.mark.parametrize("tools", [True, False])
def test_stream_tells_everything_in_order(shell, tools):
    code = """import time
for i in range(3): print('line', i, flush=True)
print(llm_query_batched(['a', 'b']))"""
    first = tool_call(code, content="I will look at it.", id="a") if tools else f"I will look at it.\n```repl\n{code}\n```"
    with RLM(ScriptedLM([first, "It is done.\nFINAL(yes it is)"], tools=tools), ScriptedLM(lambda m, t: "x"), shell=shell) as m:
        stream = m.stream("Which?", TEXT)
        events = list(stream)
    r = stream.result
    assert r.answer == "yes it is" and [e for e in events if e.id and not isinstance(e, (ReplyDelta, CellStart, CellOutput, SubcallStart))] == list(r.trajectory)
    order = [o for i,o in enumerate(kinds(events)) if i == 0 or kinds(events)[i-1] != o]
    i = order.index("Reply")
    assert order[:3] == ["Run", "ReplyDelta", "Reply"] and order[i+1] == "CellStart" and order[-4:] == ["ReplyDelta", "Reply", "Final", "End"]
    assert {"CellOutput", "SubcallStart", "Subcall", "Cell"} <= set(order) and order.index("SubcallStart") < order.index("Subcall") < order.index("Cell")
    for reply in r.trajectory.replies:
        assert "".join(e.text for e in events if isinstance(e, ReplyDelta) and e.step == reply.step) == reply.message["content"]
    start = next(e for e in events if isinstance(e, CellStart))
    cell = next(e for e in events if isinstance(e, Cell))
    assert start.id == cell.id and start.code == cell.code == (code if tools else code) and all(e.parent == cell.id for e in events if isinstance(e, (CellOutput, SubcallStart, Subcall)))
    assert "".join(e.text for e in events if isinstance(e, CellOutput)) == "line 0\nline 1\nline 2\n['x', 'x']\n"

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_output_is_told_as_it_is_printed(shell):
    m = make([">>>import time\nprint('early', flush=True)\ntime.sleep(1)\nprint('late')", "FINAL(1)"], shell=shell)
    seen = {}
    with m:
        for e in m.stream("Which?", TEXT):
            if isinstance(e, CellOutput): seen.setdefault(e.text.strip(), time.monotonic())
    assert 0.3 < seen["late"] - seen["early"] < 5

def test_stream_over_http_comes_in_pieces():
    with serve(lambda m, t: Slow(0.1, "one two three four five six\nFINAL(seven)", drip=True)) as srv:
        for _ in range(2): events = list(stream := RLM("any", base_url=srv.base_url).stream("Which?", TEXT)) # LiteLLM is slow the first time
        deltas = [e for e in events if isinstance(e, ReplyDelta)]
        assert len(deltas) > 5 and deltas[-1].time - deltas[0].time > 0.2 and stream.result.answer == "seven"
        u = sum(srv.usage.values(), type(stream.result.usage)())
        assert (u.prompt_tokens, u.completion_tokens) == (2*stream.result.usage.prompt_tokens, 2*stream.result.usage.completion_tokens)

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_leaving_the_loop_stops_the_run(shell):
    m = make([">>>import time\ntime.sleep(60)"], shell=shell)
    start,stream = time.monotonic(),m.stream("Which?", TEXT)
    for e in stream:
        if isinstance(e, CellStart): break
    stream.close()
    with m: pass
    assert time.monotonic() - start < 10 and stream.result is None
    deadline = time.monotonic() + 3
    while m.last is None and time.monotonic() < deadline: time.sleep(0.01)
    assert m.last.status == "cancelled" and len(m.models[0].requests) == 1

def test_a_stream_is_over_for_whoever_asks_again():
    "The end is there for every loop, in whatever way, and an error is raised by each"
    async def rest(stream): return [e async for e in stream]
    ok,failing = make(["FINAL(1)"]).stream("Which?", TEXT),make([Fault(400)]).stream("Which?", TEXT)
    assert len(list(ok)) > 2 and list(ok) == asyncio.run(asyncio.wait_for(rest(ok), 5)) == [] and ok.result.answer == "1"
    for _ in range(2):
        with pytest.raises(LMError): list(failing)

def test_a_stream_with_an_error():
    m = make(["no code", Fault(400, "bad day")])
    events = []
    with pytest.raises(LMError, match="bad day") as e:
        for o in m.stream("Which?", TEXT): events.append(o)
    assert isinstance(events[-1], End) and events[-1].status == "error" and e.value.trajectory.replies
    with pytest.raises(InputError): list(m.stream("", TEXT))
    with pytest.raises(InputError): list(m.stream("Which?", Path("/nowhere/at/all")))

def test_async_stream():
    async def main():
        m = make([">>>print(1)", "FINAL(done)"])
        stream = m.astream("Which?", TEXT)
        events = [e async for e in stream]
        m2 = make([">>>import time\ntime.sleep(60)"])
        async for e in m2.astream("Which?", TEXT):
            if isinstance(e, CellStart): break
        return kinds(events),stream.result.answer
    names,answer = asyncio.run(main())
    assert answer == "done" and names[0] == "Run" and names[-1] == "End" and "CellOutput" in names

def test_streams_of_children():
    "Events of children are told too, with their own run"
    m = make([">>>FINAL(rlm_query('q', 'c'))"], [tool_call("print('inside')\nFINAL(1)", content="child says")], limits=Limits(max_depth=2))
    events = list(m.stream("Which?", TEXT))
    child = next(e for e in events if isinstance(e, Run) and e.depth == 1)
    assert any(isinstance(e, Cell) and e.run == child.id for e in events) and [e.run for e in events if isinstance(e, End)] == [child.id, events[0].id]
    assert {e.run for e in events if isinstance(e, CellOutput)} == {child.id} and any(isinstance(e, ReplyDelta) and e.run == child.id for e in events)

def test_listeners_hear_of_everything_once():
    heard = []
    m = make([">>>FINAL(llm_query('a'))"]*2, lambda m, t: "x", on_event=heard.append)
    for _ in range(2): m.completion("Which?", TEXT)
    assert kinds(heard) == ["Run", "Reply", "CellStart", "SubcallStart", "Subcall", "Cell", "Final", "End"]*2
    assert m.cost_summary()["runs"] == 2 and m.usage.calls == 4

# ---- what is sent

def begins_with(m):
    for lm in m.models:
        for a,b in zip(lm.requests, lm.requests[1:]): assert b["messages"][:len(a["messages"])] == a["messages"]
    return True

@pytest.mark.parametrize("tools", [True, False])
def test_each_request_begins_with_the_one_before(tools):
    "Whatever is noted in between: errors, refusals, idle turns, unknown variables, calls left open, further questions, new contexts"
    code = (lambda s, **kw: tool_call(s, id=f"c{abs(hash(s))}", **kw)) if tools else lambda s, content="": f"{content}\n```repl\n{s}\n```"
    replies = [code("1/0"), "Just talk.", code("x = 1", content="both"), "FINAL_VAR(nothing)", code("FINAL('bad')"), "FINAL(good)",
               *([tool_calls(tool_call("a = 1", id="p"), tool_call("FINAL('good')", id="q"), tool_call("b = 2", id="r"))] if tools else ["```repl\nFINAL('good')\n```\n```repl\nb = 2\n```"]),
               code("y = 2"), "FINAL(bad)", code("FINAL('good')")]
    m = RLM(ScriptedLM(replies, tools=tools), verify=lambda q, a, e: a == "good", direct_below=0)
    with m.session(TEXT) as s:
        for q in ("One?", "Two?", "Three?"):
            assert s.completion(q).answer == "good"
            s.add("more")
        assert begins_with(m) and s.trajectory.messages()[:len(sent(m))] == sent(m)
    for o in m.models[0].requests:
        roles = [x["role"] for x in o["messages"]]
        assert roles[0] == "system" and all(a != b or a == "tool" for a,b in zip(roles, roles[1:])), roles

# ---- results

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_result(shell, tmp_path):
    m = make([">>>import re\nyears = re.findall(r'\\d{4}', context)\nn = {'a': [1, 2]}\ndef f(): return 1", "FINAL_VAR(years)"], shell=shell)
    r = m.completion("Which years?", TEXT, log=tmp_path/"l.jsonl")
    assert r.answer == r.parsed == ["1987"]*20 and r.ns["n"] == {"a": [1, 2]} and "years" in r.ns and set(r.ns) >= {"years", "n"} and len(r.ns) >= 2
    assert r.query == "Which years?" and r.history[0]["role"] == "system" and r.log == tmp_path/"l.jsonl" and r.steps == 2 and r.seconds > 0
    assert "1987" in repr(r) and "2 steps" in repr(r) and "<details" in r._repr_html_() and "years" in repr(r.ns)
    for name in ("nothing", "__import__('os')", ""):
        with pytest.raises(KeyError): r.ns[name]
        assert name not in r.ns and r.ns.get(name, 5) == 5
    again = pickle.loads(pickle.dumps(r))
    assert again.answer == r.answer and again.history == r.history and repr(again) == repr(r) and again.ns.shell is None
    m.close()
    with pytest.raises(InputError, match="closed"): r.ns["n"]
    assert repr(r.ns) == "Namespace(closed)" and r.answer and r._repr_markdown_()
    assert Trajectory.load(r.log).answer == r.answer

def markdown(text):
    from markdown_it import MarkdownIt
    return MarkdownIt().render(text)

def test_repr_of_long_answers():
    r = ask([">>>FINAL('x' * 3_000_000)"])
    assert len(r.answer) == 3_000_000 and len(repr(r)) < 6000 and len(r._repr_markdown_()) < 21_000 and "done" in repr(r)

def test_repr_of_hostile_answers():
    "Markup, fences and odd characters in answers and citations stay text"
    text = "```\n<script>alert(1)</script>\n<details>`"
    r = ask([f">>>cite({text[4:29]!r})\nFINAL({text!r})"], context=text)
    page = markdown(r._repr_markdown_())
    assert page.count("&lt;script&gt;") >= 2 and "<details>" not in page and "<script>" not in page + r._repr_html_()
    assert "alert(1)" in (top := page.partition("</code>")[0]) and "characters 4 to" not in top and "characters 4 to" in page
    for value in ("'x' * 10**6", "b'\\xff'", "float('nan')", "object()", "[1] * 10**5", "None", "'\\ud800'", "{1: {2}}"):
        r = ask([f">>>FINAL({value})"])
        shown = repr(r), r._repr_markdown_(), r._repr_html_(), r.trajectory.to_html()
        assert r.status == "done" and all(isinstance(o, str) for o in shown)
        pickle.dumps(r.trajectory[-1])

def test_an_rlm_may_be_pickled_and_keeps_few_shells(tmp_path):
    m = RLM("openai/gpt-5", api_key="secret-secret", limits=Limits(max_steps=3), log_dir=tmp_path)
    assert pickle.loads(pickle.dumps(m)).limits == m.limits and "secret" not in repr(m)
    m = make([">>>x = 1\nFINAL(x)"]*4, keep=2)
    rs = [m.completion("Which?", TEXT) for _ in range(4)]
    assert rs[3].ns["x"] == rs[2].ns["x"] == 1
    with pytest.raises(InputError): rs[1].ns["x"]

def test_run_and_arun_take_what_rlm_takes():
    kw = dict(response_format=int, limits=Limits(max_steps=2), shell="process", on_event=lambda e: None)
    a = run("When?", TEXT, ScriptedLM([tool_call("FINAL(1987)")]), **kw)
    b = asyncio.run(arun("When?", TEXT, ScriptedLM([tool_call("FINAL(1987)")]), **kw))
    assert a.parsed == b.parsed == 1987 and kinds(a.trajectory) == kinds(b.trajectory)

def test_many_at_once_do_not_mix():
    "One RLM, sixteen questions at once: each has its own shell, log and budget"
    def root(messages, tools):
        n = re.search(r"Number (\d+)", messages[1]["content"])[1]
        return tool_call(f"mine = int(context)\nFINAL([mine, llm_query('{n}')])", id="c")
    m = RLM(ScriptedLM(root), ScriptedLM(lambda m, t: m[0]["content"]), limits=Limits(max_sub_calls=1), keep=0)
    async def main(): return await asyncio.gather(*(m.acompletion(f"Number {i}", str(i)) for i in range(16)))
    rs = asyncio.run(main())
    assert [r.answer for r in rs] == [[i, str(i)] for i in range(16)] and m.usage.calls == 32 and all(len(r.trajectory) == 6 for r in rs)

def test_logs_in_a_folder(tmp_path):
    m = make(["FINAL(1)"]*2, log_dir=tmp_path/"logs")
    rs = [m.completion("Which one?", TEXT) for _ in range(2)]
    files = sorted((tmp_path/"logs").glob("*.jsonl"))
    assert sorted(r.log for r in rs) == files and "which-one" in files[0].name
    assert Trajectory.load(files[0]).run.query == "Which one?"

@pytest.mark.parametrize("kw", [dict(shell="nowhere"), dict(dialect="smoke"), dict(shell_limits=5), dict(verify=5), dict(keep="x"), dict(cache=5), dict(compact="x"), dict(nonsense_shell=1)])
def test_wrong_settings(kw):
    "Wrong settings are told as such, at once or with the first question, before anything is paid for"
    m = None
    try:
        m = make(["FINAL(1)"], **kw)
        m.completion("Which?", TEXT)
    except (InputError, TypeError): assert m is None or not m.models[0].requests
    else: assert "nonsense_shell" in kw # sent to models given by name

@pytest.mark.parametrize("kw,told", [(dict(patterns="DONE"), "patterns=?.*\\['DONE'\\]"), (dict(max_children=0), "max_children .* at least 1"),
    (dict(offload=-1), "offload"), (dict(offload="yes"), "offload"), (dict(compact="x"), "compact"), (dict(subs=5), "model name"),
    (dict(subs=[None]), "model is needed"), (dict(choices=dict(strong=5)), "model name")])
def test_settings_that_cannot_be_say_so_at_once(kw, told):
    with pytest.raises(InputError, match=told): RLM(ScriptedLM([]), kw.pop("subs", None), **kw)

def test_no_model():
    for model in (None, 5, len, ""):
        with pytest.raises(InputError, match="model"): RLM(model)

@pytest.mark.parametrize("kind", [Run, Reply, CellStart, SubcallStart, Subcall, Cell, Final, End])
def test_a_listener_that_fails(kind):
    "It hears no more, which is told; the answer that was paid for stands"
    def listener(e):
        if isinstance(e, kind): raise ZeroDivisionError("mine")
    with pytest.warns(UserWarning, match="mine"): r = ask([">>>FINAL(llm_query('q'))"], ["a"], on_event=listener)
    assert r.answer == "a" and r.status == "done" and kinds(r.trajectory) == ["Run", "Reply", "Subcall", "Cell", "Final", "End"]
