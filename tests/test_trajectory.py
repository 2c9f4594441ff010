"The log: what is read back is what was there, whatever happened and whoever wrote into the file"
import json, os, random, signal, subprocess, sys, textwrap, threading, time, warnings
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from rlm import RLM, Limits
from rlm.events import (Cell, CellOutput, CellStart, Citation, End, Event, event_from_json, event_to_json, Final,
    InputError, passing, Reply, ReplyDelta, Resume, Run, Subcall, Summary, Usage, VERSION)
from rlm.offline import Fault, ScriptedLM, tool_call
from rlm.replay import Replay
from rlm.trajectory import LogWarning, to_messages, Trajectory

logs = Path(__file__).parent/"logs"
few = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# ---- what is computed of a trajectory

def folds(t):
    "All that a trajectory says of itself, as data"
    def step(o): return dict(number=o.number, code=o.code, kept=o.kept, usage=vars(o.usage), seconds=o.seconds, cells=[e.id for e in o.cells],
        sub_calls=[e.id for e in o.sub_calls], children=[[e.id for e in c] for c in o.children], said=repr(o))
    def ids(events): return [e.id for e in events]
    return dict(events=[json.loads(event_to_json(e)) for e in t], own=ids(t.own()), kept=ids(t.kept()), runs=ids(t.runs), children=ids(t.children), replies=ids(t.replies),
        cells=ids(t.cells), sub_calls=ids(t.sub_calls), citations=ids(t.citations), steps=[step(o) for o in t.steps], counts=t.counts(),
        usage=vars(t.usage), by_model={k: vars(u) for k,u in t.usage_by_model.items()}, by_depth=[[d, m, vars(u)] for (d,m),u in t.usage_by_depth.items()],
        end=[t.answer, t.how, t.status, t.error, t.limit, t.seconds], messages=t.messages(), of={str(r.id): ids(t.of(r.id)) for r in t.runs},
        found=ids(t.find("a")), shown=repr(t))

def load(path, **kw):
    "The trajectory in a file, without a word about what was left out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)
        return Trajectory.load(path, **kw)

# ---- any sequence of events

texts = st.text(st.characters(blacklist_categories=()), max_size=12) # lone surrogates as well
data = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats(allow_nan=False) | texts, lambda o: st.lists(o, max_size=3) | st.dictionaries(texts, o, max_size=3), max_leaves=6)
kinds = "run child reply reply cell cell told sub sub final end citation summary resume delta start output reload".split()
ops = st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 99), st.integers(0, 99), texts, data), max_size=40)

def event(kind, run, ahead, earlier, a, b, text, value):
    "An event of a run; `earlier`: what of it there is already, by class"
    def last(cls): return earlier[cls][b % len(earlier[cls])].id if earlier[cls] else None
    usage = Usage(a, b, calls=b%2, cost=None if b%7 == 0 else b/8)
    call = dict(id=f"c{b}", type="function", function=dict(name="run_repl", arguments=text))
    message = dict(role="assistant", content=text) | (dict(tool_calls=[call]) if b%2 else {})
    own = dict(run=run.id)
    match kind:
        case "child": return Run(**own, parent=ahead, depth=run.depth+1, query=text, model="m1", prompt=text)
        case "reply": return Reply(**own, parent=run.id, step=b, model=f"m{a%2}", message=message, usage=usage, cached=not b%2)
        case "cell": return Cell(**own, id=ahead, parent=last(Reply), step=b, call_id=f"c{b}", tool="run_repl", code=text, output=text, displays=[{"text/plain": text}]*(b%2), seconds=b/8)
        case "told": return Cell(**own, parent=last(Reply), step=b, output=text)
        case "sub": return Subcall(**own, parent=ahead if b%4 else last(Cell), batch=b%4, index=b, model="m1", prompt=text, reply=text, usage=usage, cached=not b%3, read=[["context", None, 0, b]])
        case "final": return Final(**own, answer=value)
        case "end": return End(**own, status=["done", "limit", "cancelled"][b%3], limit="max_steps", seconds=b/8)
        case "citation": return Citation(**own, quote=text, source=value, start=b)
        case "summary": return Summary(**own, text=text, tokens=b)
        case "resume": return Resume(**own, after=last(Event), limits=dict(max_steps=b))
        case "delta": return ReplyDelta(**own, text=text)
        case "start": return CellStart(**own, id=ahead, code=text)
        case "output": return CellOutput(**own, parent=ahead, text=text)

def play(ops, t, path):
    "Let a trajectory hear of events, some of them too late, and be read from its file in between"
    going = {} # ids of cells are known before they end
    for kind,a,b,text,value in ops:
        if kind == "reload":
            t.close()
            loaded = Trajectory.load(path) if path.exists() else Trajectory(path)
            assert loaded.events == t.events and folds(loaded) == folds(t)
            t = loaded
            continue
        if kind == "run" or not t.runs:
            t.append(Run(query=text, model=f"m{b%2}", system=text*(b%2), prompt=text, context=dict(facts=value)))
            continue
        run = t.runs[a % len(t.runs)]
        ahead = going.setdefault((run.id, b%3), t.new_id())
        mine = [o for o in t if run.id in (o.run, o.id)]
        t.append(event(kind, run, ahead, {cls: [o for o in mine if isinstance(o, cls)] for cls in (Reply, Cell, Event)}, a, b, text, value))
        if kind == "cell": del going[run.id, b%3]
    return t

def plain_folds(t):
    "Some of it, as simply as it can be said"
    runs = {e.id: e for e in t if isinstance(e, Run)}
    def whose(e): return e.id if isinstance(e, Run) else e.run
    def top(run): return run not in runs or runs[run].run not in runs
    def root(run):
        "The child of a topmost run that a run belongs to"
        while not top(runs[run].run): run = runs[run].run
        return run
    own,kept = [e for e in t if top(whose(e))],[]
    for e in own:
        if not isinstance(e, Resume): kept.append(e)
        elif any(o.id == e.after and whose(o) == e.run for o in kept):
            at = [o.id for o in kept].index(e.after) + 1
            kept = kept[:at] + [o for o in kept[at:] if whose(o) != e.run]
    steps = []
    for r in own:
        if not isinstance(r, Reply): continue
        cells = [e for e in own if isinstance(e, Cell) and e.parent == r.id]
        ids = [r.id, *(e.id for e in cells)]
        subs = [e.id for i in ids for e in own if isinstance(e, Subcall) and e.parent == i]
        firsts = [e for i in ids for e in t if isinstance(e, Run) and not top(e.id) and top(e.run) and e.parent == i]
        steps.append([r.id, [e.id for e in cells], subs, [[e.id for e in t if not top(whose(e)) and root(whose(e)) == o.id] for o in firsts], r in kept])
    paid = Usage()
    for e in t: paid = paid + getattr(e, "usage", Usage())
    asked = [e.id for e in kept if isinstance(e, Run)]
    return dict(own=[e.id for e in own], kept=[e.id for e in kept], steps=steps, tokens=paid.total_tokens, calls=paid.calls,
        answer=next((e.answer for e in reversed(kept) if isinstance(e, Final) and (not asked or e.run in (None, asked[-1]))), None),
        messages=to_messages(kept))

@few
@given(ops=ops)
def test_a_log_is_the_trajectory(ops, tmp_path_factory):
    path = tmp_path_factory.mktemp("log")/"run.jsonl"
    heard,live = [],Trajectory(path)
    t = play([o for o in ops if o[0] != "reload"], live.listen(heard.append), path)
    t.close()
    assert [e for e in heard if not isinstance(e, passing)] == t.events and len({e.id for e in t}) == len(t)
    loaded = Trajectory.load(path) if len(t) else Trajectory(path)
    assert loaded.events == t.events and not loaded.torn and folds(loaded) == folds(t)
    assert (loaded._parents, loaded._ended) == (t._parents, t._ended) and loaded.new_id() > max((e.id for e in t), default=0)
    f,p = folds(t),plain_folds(t)
    assert [[o.reply.id, s["cells"], s["sub_calls"], s["children"], s["kept"]] for o,s in zip(t.steps, f["steps"])] == p["steps"]
    assert (f["own"], f["kept"], f["end"][0], f["messages"], t.usage.total_tokens, t.usage.calls) == tuple(p[k] for k in "own kept answer messages tokens calls".split())

@few
@given(ops=ops)
def test_a_trajectory_read_in_between_goes_on_as_if_it_had_not(ops, tmp_path_factory):
    place = tmp_path_factory.mktemp("logs")
    one = play(ops, Trajectory(place/"one.jsonl"), place/"one.jsonl")
    if not len(one): return
    assert Trajectory.load(place/"one.jsonl").events == one.events
    for run in one.runs: # nothing comes after the end of a run but what was paid for, or takes it up again
        seen = [e for e in one if e.run == run.id]
        for e,before in zip(seen[1:], seen):
            if isinstance(before, End): assert isinstance(e, Resume) or getattr(e, "usage", None) and e.usage.calls or isinstance(e, End)

@few
@given(answer=st.recursive(st.one_of(st.floats(), st.binary(), st.sets(st.integers()), st.complex_numbers(), st.dates(), st.integers()), lambda o: st.lists(o) | st.dictionaries(st.integers() | st.tuples(st.integers()), o), max_leaves=5))
def test_any_answer_is_written(answer, tmp_path_factory):
    path = tmp_path_factory.mktemp("log")/"run.jsonl"
    t = Trajectory(path)
    t.append(Run())
    t.append(Final(run=1, answer=answer))
    t.close()
    again = Trajectory.load(path)
    line = event_to_json(again[1])
    assert line == event_to_json(event_from_json(line)) == path.read_text().splitlines()[1]

def deep(n): return [deep(n-1)] if n else []

@pytest.mark.parametrize("answer", [10**5000, {"a": -10**5000}, deep(400), {1: {(1, 2): 3}}, float("inf"), lambda: 5, Event, {"\udc80": "\x00"}], ids=lambda o: type(o).__name__)
def test_odd_answers_are_written(answer, tmp_path):
    t = Trajectory(tmp_path/"l.jsonl")
    t.append(Run())
    t.append(Final(run=1, answer=answer))
    t.append(End(run=1))
    assert load(t.path).status == "done" and load(t.path).answer is not None

# ---- what a live run knows of itself

cells = ["print(len(context))", "print(llm_query('a'), llm_query_batched(['a', 'b']))", "1/0", "print(rlm_query('child?', 'part'))", "print('word ' * 900)", "cite('some text')", "llm_query('fail')"]

@settings(few, max_examples=12)
@given(plans=st.lists(st.lists(st.sampled_from(cells), max_size=4), min_size=1, max_size=3), steps=st.integers(2, 6), dialect=st.sampled_from(["tools", "fenced"]), verify=st.booleans(), compact=st.booleans())
def test_a_log_is_what_the_live_run_was(plans, steps, dialect, verify, compact, tmp_path_factory):
    "Messages as they were sent, accounts as the budget kept them, answers as they were returned"
    log,todo = tmp_path_factory.mktemp("log")/"run.jsonl",[]
    def root(messages, tools):
        if "nearly too long for you" in str(messages[-1]["content"]): return "So far nothing."
        code = todo.pop(0) if todo and "no more code" not in str(messages[-1]["content"]) else "FINAL('yes')"
        return tool_call(code, id=f"c{len(messages)}") if dialect == "tools" else f"```repl\n{code}\n```"
    def sub(messages, tools):
        if messages[0]["role"] == "system": return tool_call("FINAL(llm_query('from the child'))", id="s") if tools else "```repl\nFINAL(llm_query('from the child'))\n```"
        return Fault(400, "refused") if "fail" in str(messages[-1]["content"]) else "ACCEPT"
    lm = ScriptedLM(root, model="openai/gpt-4o", tools=dialect == "tools", window=4000 if compact else None)
    m = RLM(lm, ScriptedLM(sub, model="openai/gpt-4o-mini"), limits=Limits(max_depth=2, max_steps=steps), compact=0.8 if compact else False, dialect=dialect,
            verify=ScriptedLM(sub, model="openai/gpt-4o-mini") if verify else None)
    with m.session("some text", log) as s:
        for i,plan in enumerate(plans):
            todo[:] = plan
            r = s.completion(f"Which {i}?")
            t = Trajectory.load(log)
            mine = t.of([o.id for o in t.runs if o.run is None][i])
            assert t.events == s.trajectory.events and t.messages() == s.trajectory.messages()
            assert (mine.answer, mine.how, mine.status, mine.limit) == (r.answer, r.how, r.status, r.limit) and mine.usage == r.usage
            assert (mine.usage.total_tokens, mine.usage.calls) == (s.budget.usage.total_tokens, s.budget.usage.calls) and mine.counts()["sub_calls"] == r.sub_calls
        sent = [o["messages"] for o in lm.requests if "nearly too long for you" not in str(o["messages"][-1]["content"])]
        if not any(isinstance(e, Summary) for e in t): assert t.messages()[:len(sent[-1])] == [{k: v for k,v in o.items() if k in ("role", "content", "tool_calls", "tool_call_id")} for o in sent[-1]]

# ---- files that are not what they should be

RUN,REPLY,CELL = (event_to_json(o) for o in (Run(id=1, query="q", prompt="p"), Reply(id=2, run=1, parent=1, step=1, message=dict(role="assistant", content="c")), Cell(id=3, run=1, parent=2, output="o")))
END = event_to_json(End(id=4, run=1))

def but(line, **kw): return json.dumps(json.loads(line) | kw)

bad_lines = dict(text="GET /index.html 200", empty="", number="5", null="null", array="[1, 2]", no_kind='{"id": 9}', no_id='{"kind": "Pod", "metadata": {}}', kind_is_a_list=but(CELL, kind=["cell"]),
    half=CELL[:40], glued=CELL[:30] + REPLY, twice=CELL + CELL, deep="["*100_000, deep_answer='{"kind": "final", "id": 9, "answer": ' + "["*5000 + "]"*5000 + "}", digits='{"kind": "final", "id": 9, "answer": ' + "1"*5000 + "}",
    same_id=but(CELL, id=2), id_is_text=but(CELL, id="3"), id_is_none=but(CELL, id=None), id_is_float=but(CELL, id=3.0), id_is_negative=but(CELL, id=-3), run_is_a_list=but(CELL, run=[1]), parent_is_a_dict=but(CELL, parent={}),
    output=but(CELL, output=None), code=but(CELL, code=5), displays=but(CELL, displays="none"), message=but(REPLY, id=9, message="text"), said_a_number=but(REPLY, id=9, message=dict(content=5)),
    said_a_list=but(REPLY, id=9, message=dict(content=[dict(type="text", text="c")])),
    calls=but(REPLY, id=9, message=dict(content="x", tool_calls=[5])), usage=but(REPLY, id=9, usage=5), tokens=but(REPLY, id=9, usage=dict(prompt_tokens="many")), no_tokens=but(REPLY, id=9, usage=dict(calls=None)), model=but(REPLY, id=9, model=["m"]), own_child=but(RUN, id=9, run=9), orphan=but(RUN, id=9, run=77),
    too_late=but(RUN, id=1), binary=b"\x80\x04\x95\xff\x00\x01PNG\r", utf16=CELL.encode("utf-16-le").replace(b"\n", b""), huge=b"x"*3_000_000)

@pytest.mark.parametrize("name", bad_lines)
def test_a_bad_line_is_named_and_may_be_left_out(name, tmp_path):
    line,path = bad_lines[name],tmp_path/"l.jsonl"
    path.write_bytes(b"\n".join(o if isinstance(o, bytes) else o.encode() for o in (RUN, REPLY, line, CELL, END, "")))
    with pytest.raises(InputError, match="line 3: ") as e: Trajectory.load(path)
    assert len(str(e.value)) < 300 + len(str(path)) and str(e.value).isprintable()
    with pytest.warns(LogWarning, match="line 3: "): t = Trajectory.load(path, skip=True)
    left = [e.id for e in t]
    assert left == [1, 2, 3, 4] or name == "same_id" and left == [1, 2, 3, 4]
    assert folds(t)["end"][2] == "done"

def test_runs_that_started_each_other_are_refused(tmp_path):
    (tmp_path/"l.jsonl").write_text(but(RUN, run=2) + "\n" + but(RUN, id=2, run=1) + "\n")
    with pytest.raises(InputError, match="line 1: this run was started by one .* up to line 2"): Trajectory.load(tmp_path/"l.jsonl")

def test_the_child_of_a_run_that_is_not_there_is_not_taken_for_it(tmp_path):
    (tmp_path/"l.jsonl").write_text("\n".join([REPLY, but(RUN, id=7, run=1), but(REPLY, id=8, run=7), ""]))
    with pytest.raises(InputError, match="line 2: this run was started by one that is not in the log"): Trajectory.load(tmp_path/"l.jsonl")
    with pytest.warns(LogWarning): assert Trajectory.load(tmp_path/"l.jsonl", skip=True).run is None

@pytest.mark.parametrize("content,match", [(b"%PDF-1.7\n\xff\xfe\n%%EOF", "line 1: not an event"), (b"\x00"*1000, "line 1: not an event"), (b"no line", "line 1: not an event"), (b'{"id": 1}\n', "line 1: "), (b"\n\n\n", "line 1: .*2 more, up to line 3"),
    (b'[{"kind": "run", "id": 1}]\n', "line 1: "), (json.dumps(dict(cells=[], nbformat=4), indent=1).encode(), "line 1: "), (but(RUN, version=VERSION+1).encode() + b"\n" + REPLY.encode() + b"\n", f"version {VERSION+1} of this format: update"),
    ("\u202e\x1b[31m".encode() + b"\n", "line 1: ")])
def test_other_files_are_refused(content, match, tmp_path):
    (tmp_path/"l.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=match) as e: Trajectory.load(tmp_path/"l.jsonl")
    assert "\x1b" not in str(e.value) and "\u202e" not in str(e.value)

def test_no_file_no_folder_and_an_empty_file(tmp_path):
    for path in (tmp_path, tmp_path/"none.jsonl"):
        with pytest.raises(InputError, match="cannot be read"): Trajectory.load(path)
    (tmp_path/"empty.jsonl").touch()
    t = Trajectory.load(tmp_path/"empty.jsonl")
    assert not len(t) and folds(t)["end"] == [None, None, None, None, None, 0.0]
    t.append(Run())
    assert Trajectory.load(t.path).events == t.events

def test_a_later_version_may_be_looked_at(tmp_path):
    (tmp_path/"l.jsonl").write_text(but(RUN, version=99, novel=[1]) + "\n" + but(REPLY, usage=dict(calls=1, novel=2)) + '\n{"kind": "novelty", "id": 3, "run": 1, "x": 1}\n')
    with pytest.warns(LogWarning, match="version 99"): t = Trajectory.load(tmp_path/"l.jsonl", skip=True)
    assert [e.kind for e in t] == ["run", "reply", "event"] and t.usage.calls == 1 and folds(t)

@pytest.mark.parametrize("version", [1e999, "two", None, [3], -1])
def test_odd_versions(version, tmp_path):
    (tmp_path/"l.jsonl").write_text(but(RUN, version=version) + "\n")
    assert len(load(tmp_path/"l.jsonl", skip=True)) == 1

stored = {o.stem: o.read_bytes() for o in sorted(logs.glob("v*.jsonl"))}

def mangled(data, rng):
    "A log in which something went wrong"
    lines = data.split(b"\n")
    i,j = sorted(rng.choices(range(len(lines)), k=2))
    at,to = sorted(rng.choices(range(len(data)), k=2))
    def field():
        try: d = json.loads(lines[i])
        except ValueError: return lines[i]
        where = rng.choice([d, *[o for o in d.values() if isinstance(o, dict)]])
        if where: where[rng.choice([*where])] = rng.choice([None, 5, -1, 0, 1e999, "x", [1], {}, {"a": [None]}, True, 2**80, "\udc80", rng.randrange(60)])
        return json.dumps(d).encode()
    return [lambda: data[:at] + bytes(rng.choices(range(256), k=3)) + data[at+3:], lambda: data[:at] + data[to:], lambda: data[:to] + data[at:], lambda: data[:at], lambda: data[at:],
        lambda: b"\n".join(lines[:i] + lines[i:j][::-1] + lines[j:]), lambda: b"\n".join(lines[:i] + [lines[j]] + lines[i:]), lambda: data.replace(b"\n", b"\r\n"), lambda: data.replace(b"\n", b"\n\n"),
        *[lambda: b"\n".join([*lines[:i], field(), *lines[i+1:]])]*8][rng.randrange(17)]()

@pytest.mark.parametrize("name", stored)
def test_a_mangled_log_is_read_or_refused(name, tmp_path):
    path,rng,outcomes = tmp_path/"l.jsonl",random.Random(name),Counter()
    for _ in range(150):
        data = stored[name]
        for _ in range(rng.choice([1, 1, 3])): data = mangled(data, rng) or b"\n"
        path.write_bytes(data)
        for skip in (False, True):
            try: t = load(path, skip=skip)
            except InputError: outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                assert folds(t)
    assert min(outcomes.values()) > 50 and len(outcomes) == 2

# ---- the end of the file

def test_half_a_line_is_cut_and_a_whole_one_is_kept(tmp_path):
    path,whole = tmp_path/"l.jsonl","\n".join([RUN, REPLY, CELL])
    for n in range(len(whole)+1):
        path.write_text(whole[:n])
        kept = len([o for o in (RUN, f"{RUN}\n{REPLY}", whole) if n >= len(o)])
        if not kept: continue
        t = Trajectory.load(path)
        assert len(t) == kept
        t.append(End(run=1))
        t.close()
        again = Trajectory.load(path)
        assert again.events == t.events and not again.torn and path.read_text().count("\n") == kept + 1

def test_utf8_and_line_ends_of_other_tools(tmp_path):
    (tmp_path/"l.jsonl").write_bytes("\r\n".join([json.dumps(json.loads(RUN) | dict(query="größer? \u2028 漢字"), ensure_ascii=False), REPLY, ""]).encode())
    assert Trajectory.load(tmp_path/"l.jsonl").run.query == "größer? \u2028 漢字"

def test_a_file_that_was_changed_is_not_appended_to(tmp_path):
    path = tmp_path/"l.jsonl"
    one = Trajectory(path)
    one.append(Run())
    one.close()
    two,three = Trajectory.load(path),Trajectory(path)
    one.append(Reply(run=1))
    one.close()
    before = path.read_bytes()
    for t in (two, three):
        with pytest.raises(InputError, match="changed since it was read"): t.append(Cell(run=1))
    assert path.read_bytes() == before and not len(three) and len(two) == 1
    one.append(End(run=1))
    assert Trajectory.load(path).events == one.events

# ---- other processes

def process(code, *args):
    "A Python process that says when it is ready"
    p = subprocess.Popen([sys.executable, "-c", "import os, signal, sys, time\nfrom rlm.events import *\nfrom rlm.trajectory import *\n" + textwrap.dedent(code), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "ready\n", p.stderr.read()
    return p

@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_one_writer_at_a_time_and_a_killed_one_is_none(tmp_path):
    path = tmp_path/"l.jsonl"
    p = process("""
        t = Trajectory(sys.argv[1])
        t.append(Run())
        print("ready", flush=True)
        time.sleep(60)""", path)
    try:
        t = Trajectory.load(path)
        with pytest.raises(InputError, match="being written to by another process"): t.append(Reply(run=1))
        assert len(t) == 1 and len(path.read_bytes().splitlines()) == 1
        p.kill()
        p.wait()
        t.append(Reply(run=1))
        t.close()
        assert Trajectory.load(path).events == t.events and len(t) == 2
    finally: p.communicate(p.kill())

@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_what_was_appended_survives_a_kill(tmp_path):
    for i in range(5):
        path = tmp_path/f"{i}.jsonl"
        p = process("""
            t,n = Trajectory(sys.argv[1]),0
            t.append(Run())
            print("ready", flush=True)
            while True:
                e = t.append(Reply(run=1, step=n, message=dict(role="assistant", content="text " * (n % 1000))))
                print(e.id, flush=True)
                n += 1""", path)
        timer = threading.Timer(0.02*i, p.kill)
        timer.start()
        said = [int(o) for o in p.stdout.read().split("\n")[:-1]]
        p.communicate()
        t = Trajectory.load(path)
        assert [e.id for e in t] == list(range(1, len(t)+1)) and len(t) >= (said[-1] if said else 1)
        t.append(End(run=1))
        assert Trajectory.load(path).events == t.events

@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_full_disk_leaves_no_half_line(tmp_path):
    "A file that may grow to 2,000 bytes only, and later to more"
    code = textwrap.dedent("""
        import resource, signal, sys
        from rlm.events import *
        from rlm.trajectory import *
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        t,failed = Trajectory(sys.argv[1]),0
        t.append(Run())
        for i in range(20):
            try: t.append(Reply(run=1, step=i+1, message=dict(role="assistant", content="é"*20)))
            except OSError: failed += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        t.append(End(run=1))
        print(failed, len(t), Trajectory.load(sys.argv[1]).events == t.events, t.status)""")
    out = subprocess.run([sys.executable, "-c", code, tmp_path/"l.jsonl"], capture_output=True, text=True)
    failed,n,same,status = out.stdout.split()
    assert int(failed) > 10 and int(failed) + int(n) == 22 and (same, status) == ("True", "done"), out.stderr

def test_a_failed_write_changes_nothing(tmp_path):
    (tmp_path/"file").touch()
    t = Trajectory(tmp_path/"file"/"l.jsonl")
    for _ in range(2):
        with pytest.raises(InputError, match="no log can be written here"): t.append(Run())
    assert not len(t) and not t._parents
    t.path = tmp_path/"l.jsonl"
    t.append(Run(id=1))
    t.append(End(run=1))
    assert Trajectory.load(t.path).status == "done"

def test_threads_append_in_one_order(tmp_path):
    t,heard = Trajectory(tmp_path/"l.jsonl"),[]
    t.listen(lambda e: heard.append(e.id)).append(Run())
    def work(k):
        for i in range(50): t.append(Subcall(run=1, batch=k, index=i))
    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert Trajectory.load(t.path).events == t.events and heard == [e.id for e in t] == list(range(1, 402))

# ---- stored logs of each version

def rounded(o):
    "The same with floats as every Python adds them up"
    if isinstance(o, dict): return {k: rounded(v) for k,v in o.items()}
    return [rounded(v) for v in o] if isinstance(o, list) else round(o, 9) if isinstance(o, float) else o

def stored_folds(t):
    res = folds(t) | dict(steps=[{k: v for k,v in o.items() if k != "said"} for o in folds(t)["steps"]])
    return rounded(json.loads(json.dumps({k: v for k,v in res.items() if k not in ("events", "shown")})))

@pytest.mark.parametrize("name", stored)
def test_stored_logs(name):
    "A log of an older version says what it said when it was written, and can be looked at"
    t = Trajectory.load(logs/f"{name}.jsonl")
    for line,e in zip(stored[name].splitlines(), t, strict=True):
        was = json.loads(line)
        was.pop("version", None)
        assert was.items() <= json.loads(event_to_json(e)).items()
    assert stored_folds(t) == json.loads((logs/f"{name}.json").read_text())
    assert "1987" in t._repr_html_() and "When did they close?" in t.to_html()

@pytest.fixture
def make(monkeypatch):
    "The script that made them"
    monkeypatch.syspath_prepend(logs)
    made = __import__("make")
    made.root.asked = None
    return made

@pytest.mark.parametrize("name", stored)
def test_stored_logs_are_replayed(name, make):
    t = Trajectory.load(logs/f"{name}.jsonl")
    lm = Replay(t)
    with RLM(lm, compact=0.8, limits=Limits(max_depth=2), verify=lm.named("openai/gpt-4o-mini")).session(make.CONTEXT) as s: # two of the questions
        rs = [s.completion(o) for o in [*make.CELLS][:2]]
    was = [t.of(o.id) for o in t.runs if o.run is None]
    assert [(r.answer, r.status, len(r.trajectory.of(o.id).steps)) for r,o in zip(rs, [o for o in s.trajectory.runs if o.run is None])] == [(o.answer, o.status, len(o.steps)) for o in was[:2]]

@pytest.mark.parametrize("name", stored)
def test_stored_logs_are_resumed(name, make, tmp_path):
    path = tmp_path/"l.jsonl"
    lines = stored[name].splitlines(True)
    n = [b'"status": "limit"' in o for o in lines].index(True) + 1
    path.write_bytes(b"".join(lines[:n]))
    small = ScriptedLM(make.sub, model="openai/gpt-4o-mini")
    m = RLM(ScriptedLM(make.root, model="openai/gpt-4o", window=3000), small, compact=0.8, dialect="tools", limits=Limits(max_depth=2, max_steps=8), verify=small)
    r = m.resume(path, make.CONTEXT)
    t = Trajectory.load(path)
    assert (r.answer, r.status, t.answer) == ("no", "done", "no") and path.read_bytes().startswith(b"".join(lines[:n]))
    assert m.usage.calls == 5 and folds(t) # four steps and who verifies

def test_every_version_has_its_log():
    assert [*stored] == [f"v{o}" for o in range(1, VERSION+1)]
    assert {e.kind for name in stored for e in Trajectory.load(logs/f"{name}.jsonl")} >= set("run reply cell subcall final end citation summary".split())

# ---- how long it takes

def big(n, path=None):
    "A trajectory of about 10 `n` events: many steps, sub-calls, children, and a run taken up again many times"
    t,usage = Trajectory(path),Usage(100, 10, calls=1, cost=0.1)
    t.append(Run(prompt="p"))
    for i in range(n):
        r = t.append(Reply(run=1, parent=1, step=i+1, model="m", message=dict(role="assistant", content="x"), usage=usage))
        cell = t.new_id()
        for k in range(3): t.append(Subcall(run=1, parent=cell, model="s", index=k, usage=usage))
        child = t.append(Run(run=1, parent=cell, depth=1))
        t.append(Reply(run=child.id, parent=child.id, step=1, model="s", usage=usage))
        if i%2: t.append(End(run=child.id))
        t.append(Cell(id=cell, run=1, parent=r.id, step=i+1, code="x", output="y"))
        t.append(Final(run=1, answer=i))
        t.append(Resume(run=1, after=cell if i%10 else -1))
    t.append(End(run=1))
    return t

@pytest.mark.parametrize("name", "append load runs own kept steps counts messages usage usage_by_depth answer find __repr__".split())
def test_time_is_linear(name, tmp_path):
    "Eight times the events take about eight times as long, not 64 times"
    def once(n):
        if name == "append": f = lambda: big(n)
        elif name == "load":
            big(n, tmp_path/f"{n}.jsonl").close()
            f = lambda: Trajectory.load(tmp_path/f"{n}.jsonl")
        else:
            t = big(n)
            def f(): return getattr(t, name)("y") if name == "find" else getattr(t, name)() if callable(getattr(t, name)) else None
        best = 1e9
        for _ in range(3):
            start = time.thread_time()
            f()
            best = min(best, time.thread_time() - start)
            (tmp_path/"l.jsonl").unlink(missing_ok=True)
        return best
    few,many = once(150),once(1200)
    assert many < 28*few + 0.01, (few, many)

def test_what_the_last_question_of_a_session_came_to():
    "An earlier one has its own end"
    t = Trajectory()
    for e in (Run(id=1, query="One?"), Reply(run=1), Final(run=1, answer="first"), End(run=1, status="done"), Run(id=9, query="Two?"), Reply(run=9)):
        t.append(e)
    assert (t.answer, t.how, t.status, t.seconds) == (None, None, None, 0.)
    assert (t.of(1).answer, t.of(1).status) == ("first", "done")
    t.append(End(run=9, status="cancelled"))
    assert (t.answer, t.status) == (None, "cancelled")
