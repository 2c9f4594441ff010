"Another run from a step: what was before is free, and the new log stands for itself"
import asyncio, threading
from functools import partial

import pytest

from rlm import Limits
from rlm.events import Cell, InputError, LMServerError, Reply, Run, Subcall
from rlm.lm import LM
from rlm.model import RLM
from rlm.offline import ScriptedLM, serve, tool_call
from rlm.replay import Replay, ReplayError
from rlm.revisit import resume
from rlm.trajectory import LogWarning, Trajectory

def first(tmp_path=None, **kw):
    "Three steps, with sub-calls, a child and a citation"
    root = ScriptedLM([tool_call("a = llm_query_batched(['x' + o for o in context.split()])"),
        tool_call("b = rlm_query('how long?', context[:3])\ncite('beta')"), tool_call("FINAL([a, b])")])
    child = ScriptedLM(lambda messages, tools: tool_call("FINAL(llm_query(context))") if messages[0]["role"] == "system" else messages[0]["content"].upper())
    log = tmp_path and tmp_path/"first.jsonl"
    return RLM(root, child, limits=Limits(max_depth=2), **kw).completion("What is it?", "alpha beta", log=log)

def test_the_shell_as_a_step_has_found_it():
    t = first().trajectory
    for step,names in ((1, []), (2, ["a"]), (3, ["a", "b"]), (None, ["a", "b"])):
        sh = t.at(step)
        assert sorted(sh.variables()) == names
        if names: assert sh.resolve("a") == ["XALPHA", "XBETA"]
        sh.close()
    sh = t.at(3)
    assert sh.resolve("b") == "ALP"
    assert sh.run("llm_query('xalpha')").result == "'XALPHA'" # from the log
    assert "ReplayError" in sh.run("llm_query('new')").error.name
    sh.close()
    with pytest.raises(InputError, match="step must be from 1 to 3"): t.at(4)

def test_a_fork_costs_what_is_new(tmp_path):
    t = first().trajectory
    lm = ScriptedLM([tool_call("FINAL(b + '!')")])
    r = t.fork(3, model=lm, sub_model=ScriptedLM([]), log=tmp_path/"fork.jsonl")
    assert (r.answer, len(lm.requests), r.usage.calls) == ("ALP!", 1, 1)
    assert lm.requests[0]["messages"] == [m for m in t.messages()][:len(lm.requests[0]["messages"])]
    new = Trajectory.load(tmp_path/"fork.jsonl")
    assert new.run.origin == dict(log=None, run=t.run.id, step=3, limits=t.run.limits)
    assert [e.cached for e in new if isinstance(e, (Reply, Subcall))] == [True]*6 + [False]
    assert len(new.children) == 1 and new.of(new.children[0].id).answer == "ALP"
    assert [o.quote for o in new.citations] == ["beta"]
    assert new.cost == r.cost and new.status == "done"
    assert min(e.time - e.seconds for e in new if isinstance(e, (Reply, Cell, Subcall))) >= new.run.time # nothing was done before it began
    assert RLM(Replay(new), limits=Limits(max_depth=2)).completion("What is it?", "alpha beta").answer == "ALP!"
    again = new.fork(2, "FINAL(a)", context="alpha beta", model=ScriptedLM([]), sub_model=ScriptedLM([]))
    assert (again.answer, again.usage.calls) == (["XALPHA", "XBETA"], 0)
    assert again.trajectory.run.origin["log"] == r.trajectory.fork(2, "FINAL(a)", model=ScriptedLM([]),
        sub_model=ScriptedLM([])).trajectory.run.origin["log"] == str(tmp_path/"fork.jsonl")
    with pytest.raises(InputError, match="there is such a file already"): t.fork(3, log=tmp_path/"fork.jsonl", model=lm, sub_model=lm)

@pytest.mark.parametrize("dialect", ["tools", "fenced"])
def test_code_and_a_message(dialect):
    def say(code): return tool_call(code) if dialect == "tools" else f"```repl\n{code}\n```"
    t = RLM(ScriptedLM([say("n = 1"), say("n = 2"), say("FINAL(n)")]), dialect=dialect).completion("How many?", "x").trajectory
    lm = ScriptedLM([say("FINAL(n)")])
    r = t.fork(2, "n = '```'", "Now answer.", model=lm)
    assert r.answer == "```"
    assert [e.cached for e in r.trajectory.replies] == [True, True, False]
    assert lm.requests[0]["messages"][-1] == dict(role="user", content="Now answer.") or "Now answer." in lm.requests[0]["messages"][-1]["content"]
    lm = ScriptedLM([say("FINAL(0)")])
    assert t.fork(1, message="Say none.", model=lm).answer == 0
    assert "Say none." in lm.requests[0]["messages"][-1]["content"]
    assert t.fork(2, "FINAL(n + 10)", model=ScriptedLM([])).answer == 11

def test_a_fork_that_fails_goes_on(tmp_path):
    t = first().trajectory
    subs = ScriptedLM([])
    with pytest.raises(LMServerError): t.fork(2, "c = len(a)", "And now?", model=ScriptedLM([LMServerError("down")]), sub_model=subs, log=tmp_path/"f.jsonl")
    lm = ScriptedLM([tool_call("FINAL(c)")])
    r = resume(tmp_path/"f.jsonl", "alpha beta", lm, sub_model=subs)
    assert (r.answer, len(lm.requests)) == (2, 1)
    assert "And now?" in str(lm.requests[0]["messages"][-1]["content"])

def test_a_fork_that_cannot_begin_leaves_no_log(tmp_path):
    t,log = first().trajectory,tmp_path/"f.jsonl"
    given = dict(model=ScriptedLM([tool_call("FINAL(b)")]), sub_model=ScriptedLM([]), log=log)
    with pytest.raises(InputError, match="another context"): t.fork(3, context="beta", **given)
    with pytest.raises(InputError, match="another context"): asyncio.run(t.afork(3, context="beta", **given))
    assert not log.exists() and t.fork(3, context="alpha beta", **given).answer == "ALP"
    assert Trajectory.load(log).answer == "ALP"

def test_a_shell_is_handed_back():
    t = first().trajectory
    sh = t.at(3)
    sh.run("b = 'by hand'")
    r = t.fork(3, shell=sh, model=ScriptedLM([tool_call("FINAL(b + llm_query('?'))")]), sub_model=ScriptedLM([" and asked"]))
    assert r.answer == "by hand and asked"
    assert r.ns["a"] == ["XALPHA", "XBETA"]
    sh = t.at(3)
    sh.close()
    with pytest.raises(InputError, match="open"): t.fork(3, "FINAL(b)", shell=sh, model=ScriptedLM([]), sub_model=ScriptedLM([]))

@pytest.mark.parametrize("step", [True, "2", 1.0])
def test_a_step_is_a_number(step):
    t = first().trajectory
    for way in (t.at, partial(t.fork, model=ScriptedLM([]), sub_model=ScriptedLM([]))):
        with pytest.raises(InputError, match="step must be"): way(step)

def test_another_root_model_leaves_the_sub_model_as_it_was():
    with serve(lambda m, tools: tool_call("FINAL(llm_query('who?'))") if tools else "by " + str(len(m))) as old, serve(lambda m, tools: tool_call("FINAL(llm_query('you?'))")) as new:
        t = RLM("openai/gpt-5-mini", base_url=old.base_url, api_key="none").completion("Which?", "text").trajectory
        r = t.fork(1, model=LM("openai/gpt-5", base_url=new.base_url, api_key="none"), api_key="none")
        assert (r.answer, len(new.requests), len(old.requests)) == ("by 1", 1, 3)
        assert (r.trajectory.run.model, r.trajectory.run.sub_model) == ("openai/gpt-5", "openai/gpt-5-mini")

def test_sessions_and_types():
    with RLM(ScriptedLM([tool_call("n = 3\nFINAL(n)"), tool_call("m = n + 1"), tool_call("FINAL(m)")])).session("abc") as s:
        s.add("other", "notes")
        s.completion("How long?", int)
        second = s.completion("And one more?", int)
        t = s.trajectory
        r = t.fork(2, model=ScriptedLM([tool_call("FINAL('many')"), tool_call("FINAL(n + m + len(notes))")]))
        assert (r.parsed, r.query, r.steps) == (12, "And one more?", 3)
        assert [o.query for o in r.trajectory.runs] == ["And one more?"]
        with pytest.raises(InputError, match="was not the first of its session"): second.trajectory.fork(1)
        assert t.of(t.runs[0].id).fork(1, "FINAL(5)", model=ScriptedLM([])).parsed == 5

def test_what_cannot_be_forked():
    t = first().trajectory
    with pytest.raises(InputError, match="This is a child"): t.of(t.children[0].id).fork(1)
    with pytest.raises(InputError, match="step must be a number"): t.fork(None)
    with pytest.raises(InputError, match="step must be from 1 to 3, not '2'"): t.at("2")
    with pytest.raises(InputError, match="code must be a str, not 3"): t.fork(2, code=3, model=ScriptedLM([]))
    with pytest.raises(InputError, match="message must be a str, not 3"): t.fork(2, message=3, model=ScriptedLM([]))
    with pytest.raises(InputError, match="shell must be one that `at` has given"): t.fork(2, shell="process", model=ScriptedLM([]))
    with pytest.raises(InputError, match="The model of this run was a ScriptedLM"): t.fork(2)
    with pytest.raises(InputError, match="another context"): t.fork(2, context="beta", model=ScriptedLM([]), sub_model=ScriptedLM([]))
    with pytest.raises(InputError, match="steps have been taken"): t.fork(3, model=ScriptedLM([]), sub_model=ScriptedLM([]), limits=Limits(max_steps=2, max_depth=2))
    direct = RLM(ScriptedLM(["a"]), direct_below=100).completion("What?", "x").trajectory
    with pytest.raises(InputError, match="answered without code"): direct.fork(1)
    with pytest.raises(InputError, match="no run"): Trajectory().fork(1)

def test_await():
    t = first().trajectory
    r = asyncio.run(t.afork(3, model=ScriptedLM([tool_call("FINAL(1)")]), sub_model=ScriptedLM([])))
    assert r.answer == 1

def test_in_another_process():
    t = first(shell="process").trajectory
    sh = t.at(3)
    sh.run("a = a[:1]")
    assert t.fork(3, "FINAL(a)", shell=sh, model=ScriptedLM([]), sub_model=ScriptedLM([])).answer == ["XALPHA"]
    assert t.fork(3, "FINAL(a)", model=ScriptedLM([]), sub_model=ScriptedLM([])).answer == ["XALPHA", "XBETA"]

# ---- from any step

from hypothesis import HealthCheck, given, settings, strategies as st
from test_replay import models, programs

@given(programs(), st.data())
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_same_model_goes_the_same_way(program, data):
    "A fork from any step, with models that say the same, has the same answer, and pays only for what comes then"
    root,child,how,seed = program
    def given_(): return dict(model=ScriptedLM(models(*program)[0], model="root"), choices=dict(strong=ScriptedLM(models(*program)[2], model="strong")),
        sub_model=[ScriptedLM(o, model=name) for o,name in zip(models(*program)[1:], ("middle", "leaf"))],
        verify=ScriptedLM(models(*program)[0], model="judge") if how["verify"] else None)
    with RLM(**given_(), limits=how["limits"], dialect=how["dialect"], cache=how["cache"]) as m:
        first = m.completion("What is it?", "alpha beta gamma", how["typed"])
        t = first.trajectory
        k = data.draw(st.integers(1, len(t.replies)))
        r = t.fork(k, **given_())
    assert (r.answer, r.status, r.steps) == (first.answer, first.status, first.steps)
    assert [e.cached for e in r.trajectory.replies] == [True]*(k-1) + [False]*(first.steps-k+1)
    saved = sum(o.usage.calls for o in t.steps[:k-1]) # what checks of answers had cost is apart
    if not first.limit and not how["verify"]: assert r.usage.calls == first.usage.calls - saved
