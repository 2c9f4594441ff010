"Logs in a list: the summary says what loading would say, whatever is wrong with one file, and however many there are."
import json, os, time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from rlm.events import Cell, End, Final, InputError, Reply, Resume, Run, Subcall, Summary, Usage
from rlm.logs import find_log, list_logs, log_summary, new_log
from rlm.trajectory import Trajectory
from rlm.view import LogList

price = Usage(1000, 50, calls=1, cost=0.25)
hostile = '"usage": {"calls": 9}} "cached": true\n{"kind": "end", "id": 1, "run": 1}\u202e\x1b[2J</td><script>'

def log(path, *events):
    t = Trajectory(path)
    for e in events: t.append(e)
    t.close()
    return path

def a_run(path, **end):
    return log(path, Run(query="Who? "+hostile, model="openai/gpt-5", time=1e9), Reply(run=1, step=1, message=dict(content=hostile), usage=price),
        Cell(run=1, step=1, code=hostile, output=hostile), Subcall(run=1, prompt=hostile, usage=price), Final(run=1, answer=dict(usage={}, kind="end")), End(run=1, seconds=2, **end))

# The same as loading

kinds = st.sampled_from(["run", "child", "reply", "cell", "sub", "cached", "resume", "end", "final", "summary"])

def build(path, names):
    "A log of events of these kinds, each in the youngest run that it may belong to"
    t,top,child = Trajectory(path),None,None
    for name in names:
        if name == "run": top,child = t.append(Run(query="q")).id,None
        if top is None: continue
        run = child if child and name not in ("child", "resume") else top
        made = dict(child=lambda: Run(run=top), reply=lambda: Reply(run=run, step=1, usage=price, message=dict(content=hostile)), cell=lambda: Cell(run=run, code="1", output=hostile),
            sub=lambda: Subcall(run=run, usage=price), cached=lambda: Subcall(run=run, cached=True), resume=lambda: Resume(run=top, after=top),
            end=lambda: End(run=run, status="limit", limit="max_cost", seconds=1), final=lambda: Final(run=run, answer=hostile), summary=lambda: Summary(run=run, text=hostile)).get(name)
        if made is None: continue
        e = t.append(made())
        if name == "child": child = e.id
        if name == "end": child = None
    t.close()

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(kinds, max_size=25))
def test_a_summary_says_what_loading_says(tmp_path, names):
    path = tmp_path/"run.jsonl"
    path.unlink(missing_ok=True)
    build(path, ["run", *names])
    s,t = log_summary(path),Trajectory.load(path)
    n = t.counts()
    assert (s.steps, s.sub_calls, s.usage, s.problem) == (n["steps"], n["sub_calls"], t.usage, None)
    assert (s.questions, s.query) == (len(t.runs) - len(t.children), "q")
    last = [e for e in t.kept() if isinstance(e, Run)][-1].id
    ends = [e for e in t.kept() if isinstance(e, End) and e.run == last]
    assert s.status == (ends[-1].status if ends else "unfinished")

# Whatever is in the file

damaged = {"binary": b"\x89PNG\r\n\x1a\n\0\0\n\xff\xfe\n", "empty": b"", "foreign": b'{"messages": []}\n', "no run": b'{"kind": "reply", "id": 1, "run": 1}\n',
    "a list": b"[]\n", "half a line": b'{"version": 2, "kind": "run", "id": 1, "run": nu', "deep": b"["*100_000 + b"\n",
    "wrong types": b'{"version": 2, "kind": "run", "id": 1, "run": null, "query": "q", "model": "m", "time": "noon"}\n'}

@pytest.mark.parametrize("name", damaged)
def test_what_is_no_log_is_named_and_hides_nothing(tmp_path, name):
    (tmp_path/"x.jsonl").write_bytes(damaged[name])
    a_run(tmp_path/"good.jsonl")
    (tmp_path/"folder.jsonl").mkdir()
    found = {o.path.name: o for o in list_logs(tmp_path)}
    assert set(found) == {"x.jsonl", "good.jsonl"} and found["x.jsonl"].status == "damaged" and found["x.jsonl"].problem
    assert found["good.jsonl"].status == "done" and len(repr(LogList(found.values())).splitlines()) == 3
    assert find_log("last", tmp_path).name == "good.jsonl"

@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2500), junk=st.binary(max_size=60))
def test_damage_anywhere_is_no_error(tmp_path, cut, junk):
    data = a_run(tmp_path/"whole.jsonl").read_bytes() if not (tmp_path/"whole.jsonl").exists() else (tmp_path/"whole.jsonl").read_bytes()
    (tmp_path/"x.jsonl").write_bytes(data[:cut] + junk + data[cut+len(junk):])
    repr(LogList([log_summary(tmp_path/"x.jsonl")]))

def test_interleaved_and_huge_lines(tmp_path):
    path = a_run(tmp_path/"x.jsonl", status="limit", limit="max_steps")
    with path.open("a") as f: f.write('{"kind": "cell", "id": 9, "run": 1, "output": "' + "x"*5_000_000 + '"}\n' + '{"kind": "rep{"kind": "end"}\n')
    s = log_summary(path)
    assert (s.status, s.limit, s.steps, s.sub_calls, s.usage.cost) == ("limit", "max_steps", 1, 1, 0.5) and s.problem == "line 8 is no event of a run"

def test_who_writes_is_running_and_who_is_dead_is_not(tmp_path):
    t = Trajectory(tmp_path/"x.jsonl")
    t.append(Run(query="q"))
    assert log_summary(t.path).status == "running"
    t.append(Reply(run=1)) # looking at it took nothing away
    t.close()
    assert log_summary(t.path).status == "unfinished"

def test_nothing_in_a_table_acts(tmp_path):
    a_run(tmp_path/"e\x1b[2Jvil<b>.jsonl")
    found = LogList(list_logs(tmp_path))
    assert not {"\x1b", "\u202e", "\r"} & set(repr(found) + found._repr_html_()) and "<script" not in found._repr_html_() and "<b>" not in found._repr_html_()

# However many

def test_thousands(tmp_path):
    data = a_run(tmp_path/"0.jsonl").read_bytes()
    for i in range(3000): (tmp_path/f"{i}.jsonl").write_bytes(data)
    start = time.perf_counter()
    assert len(list_logs(tmp_path, 20)) == 20
    assert time.perf_counter() - start < 1

def test_a_long_log_is_read_faster_than_loaded(tmp_path):
    cell = dict(kind="cell", id=2, run=1, parent=None, time=0.0, output="x"*2000)
    with a_run(tmp_path/"x.jsonl").open("a") as f:
        for i in range(20_000): f.write(json.dumps(cell) + "\n")
    start = time.perf_counter()
    assert log_summary(tmp_path/"x.jsonl").problem is None
    assert time.perf_counter() - start < 1

# Found again

def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path) # names may be paths from here
    a,b = a_run(tmp_path/"20261121T090000Z-who-comes-0a1b2c3d.jsonl"),a_run(tmp_path/"20261121T090000Z-who-comes-0a1b2c3e.jsonl")
    assert find_log("0a1b2c3d", tmp_path) == a and find_log(str(b)) == b and find_log(b.stem, tmp_path) == b
    for name,words in {"who": "2 logs", "": "no such file", "../x": "no such file", "*": "no such file", "nobody": "no such file"}.items():
        with pytest.raises(InputError, match=words): find_log(name, tmp_path)
    with pytest.raises(InputError, match="no log of a run here yet"): find_log("last", tmp_path/"nowhere")

def test_a_name_may_be_a_part_of_another(tmp_path):
    a_run(tmp_path/"run.jsonl")
    a_run(tmp_path/"run-2.jsonl")
    assert find_log("run", tmp_path).name == "run.jsonl"
