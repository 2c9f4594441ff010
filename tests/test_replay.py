"A log in place of the models gives the same run again, event by event, or says what is new"
import asyncio, copy, pickle, random, time
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from rlm import Limits
from rlm.core import advanced_toolloop
from rlm.events import (Cell, Final, InputError, LimitExceeded, LMContextLengthError, LMError, LMRequestError,
    LMServerError, Reply, Run, Subcall, Usage)
from rlm.model import RLM
from rlm.offline import Fault, ScriptedLM, Slow, tool_call, tool_calls
from rlm.replay import Replay, ReplayError
from rlm.tools import make_run_repl, prep_shell
from rlm.trajectory import Trajectory

# ---- runs of every kind, made by chance

def cell(draw, depth, kinds=("batch", "query", "typed", "set", "fail", "print", "child", "say", "cite", "choice")):
    "One turn of a root model: code, or words"
    kind = draw(st.sampled_from([o for o in kinds if o != "child" or depth == 0]))
    k = draw(st.integers(0, 3))
    return dict(batch=f"b = llm_query_batched(['ask {k} ' + o for o in context.split()])\nprint(b)", query=f"q = llm_query('one {k}')\nq",
        typed=f"n = llm_query('type {k}', response_format=int)\nprint(n)", set=f"x{k} = {k}", fail=f"x{k} = {k}\n1/0", print="print(context[:20])",
        child=f"c = rlm_query_batched(['sub'] * 2, ['{k} a', 'b b {k}'])\nprint(c)", cite="cite(context[:3])", choice="llm_query('strong?', model='strong')",
        say=None)[kind]

@st.composite
def programs(draw):
    "What the root says, what a child says, and how it is set up"
    root = [cell(draw, 0) for _ in range(draw(st.integers(0, 4)))]
    child = [cell(draw, 1) for _ in range(draw(st.integers(0, 2)))]
    how = dict(dialect=draw(st.sampled_from(["tools", "fenced"])), typed=draw(st.sampled_from([None, int])), verify=draw(st.booleans()),
        limits=Limits(max_depth=2, max_steps=draw(st.sampled_from([3, 30])), max_sub_calls=draw(st.sampled_from([None, 4])) if not any("rlm_query" in (o or "") for o in root) else None), # children race for what is left
         cache=draw(st.sampled_from([None, False])) if not any("rlm_query" in (o or "") for o in root) else False)
    return root,child,how,draw(st.integers(0, 9))

def said(code, i, dialect):
    if code is None: return f"Thinking {i}."
    return f"Look.\n```repl\n{code}\n```" if dialect == "fenced" else tool_call(code, id=f"call_{i}")

def models(root, child, how, seed):
    def at(cells):
        def reply(messages, tools):
            if "Decide whether" in str(messages[-1]["content"]): return "REFUSE: again" if seed % 2 and len(str(messages)) % 2 else "ACCEPT"
            done = sum(m["role"] == "assistant" for m in messages)
            if messages[0]["role"] != "system": return sub(messages)
            last = "7" if done < len(cells) + 2 else "8"
            return said(cells[done], done, how["dialect"]) if done < len(cells) else said(f"FINAL({last})", done, how["dialect"])
        return reply
    def sub(messages):
        text = messages[0]["content"]
        if "type" in text: return "no" if len(messages) == 1 and seed % 3 else "5"
        if "2" in text and seed % 4 == 0: return Fault(400, "too strange")
        return f"re {text[:30]}"
    return at(root),at(child),lambda messages, tools: sub(messages)

def setup(how): return dict(dialect=how["dialect"], limits=how["limits"], cache=how["cache"])

def plainly(t):
    "The events of a log without what is different each time; children in the order of what they were asked"
    def of(e):
        d = {f.name: getattr(e, f.name) for f in fields(e) if f.name not in ("id", "run", "parent", "time", "seconds", "settings", "batch")}
        if isinstance(e, Cell): d["output"] = d["output"].rpartition("\n[step")[0]
        return e.kind,str(d)
    tree = [(o.depth, o.query, str(o.context), [of(e) for e in t.of(o.id).own() if not isinstance(e, Subcall)],
             sorted(of(e) for e in t.of(o.id).own() if isinstance(e, Subcall))) for o in t.runs]
    return sorted(tree, key=str)

few = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

def same_again(program, strict):
    root,child,how,seed = program
    a,b,c = models(*program)
    verify = dict(verify=ScriptedLM(a, model="judge")) if how["verify"] else {}
    rlm = RLM(ScriptedLM(a, model="root"), [ScriptedLM(b, model="middle"), ScriptedLM(c, model="leaf")], choices=dict(strong=ScriptedLM(c, model="strong")), **setup(how), **verify)
    with rlm: first = rlm.completion("What is it?", "alpha beta gamma", how["typed"])
    tape = Replay(first.trajectory, strict)
    verify = dict(verify=tape.named("judge")) if how["verify"] else {}
    with RLM(tape, choices=dict(strong=tape.named("strong")), **setup(how), **verify) as rlm: again = rlm.completion("What is it?", "alpha beta gamma", how["typed"])
    assert (again.answer, again.status, again.limit, again.how, again.parsed) == (first.answer, first.status, first.limit, first.how, first.parsed)
    assert plainly(again.trajectory) == plainly(first.trajectory)
    assert again.usage == first.usage and again.usage_by_model == first.usage_by_model

@given(programs())
@few
def test_the_same_run_again(program): same_again(program, False)

@pytest.mark.long
@given(programs(), st.booleans())
@settings(few, max_examples=500)
def test_many_runs_again(program, strict): same_again(program, strict)

# ---- the kinds of call one by one

def run(replies, context="a b c", query="How many?", **kw):
    rlm = RLM(ScriptedLM(replies), **kw)
    try: rlm.completion(query, context)
    except Exception: pass
    return rlm.last.trajectory

def test_a_session_and_every_way_to_ask():
    with RLM(ScriptedLM([tool_call("n = len(context)\nFINAL(n)"), tool_call("FINAL(n + 1)")])).session("abc") as s:
        s.completion("How long?")
        s.completion("And one more?")
    t = s.trajectory
    for ask in ("completion", "stream", "acompletion"):
        with RLM(Replay(t, strict=True)).session("abc") as s:
            if ask == "completion": got = [s.completion(o).answer for o in ("How long?", "And one more?")]
            elif ask == "acompletion": got = [asyncio.run(s.acompletion(o)).answer for o in ("How long?", "And one more?")]
            else:
                got = []
                for o in ("How long?", "And one more?"):
                    stream = s.stream(o)
                    list(stream)
                    got.append(stream.result.answer)
        assert got == [3, 4]

def test_a_log_can_be_asked_again_and_again():
    t = run([tool_call("FINAL(llm_query('x'))"), "one"])
    rlm = RLM(Replay(t))
    assert [rlm.completion("How many?", "a b c").answer for _ in range(3)] == ["one"]*3
    assert RLM(pickle.loads(pickle.dumps(Replay(t)))).completion("How many?", "a b c").answer == "one"

def test_a_direct_run_and_text_as_it_arrives():
    t = run(["two words"], direct_below=100)
    stream = RLM(Replay(t), direct_below=100).stream("How many?", "a b c")
    assert "".join(e.text for e in stream if e.kind == "replydelta") == "two words"
    assert stream.result.how == "direct"

def test_failures_come_back_as_they_were():
    t = run([LMRequestError("root: it did not like it (the provider does not accept this request as it is).")])
    with pytest.raises(LMRequestError, match="did not like it"): RLM(Replay(t)).completion("How many?", "a b c")
    t = run([tool_call("llm_query_batched(['a', 'b'])"), "fine", Fault(400, "odd"), "FINAL(x)"])
    assert [bool(e.error) for e in RLM(Replay(t)).completion("How many?", "a b c").trajectory.sub_calls] == [False, True]

def test_limits_act_as_they_did():
    big = ScriptedLM([tool_call("x = 1\n#" + "y"*4000)]*5 + ["FINAL(?)"], model="openai/gpt-4o")
    r = RLM(big, limits=Limits(max_cost=.02)).completion("How many?", "a b c")
    again = RLM(Replay(r.trajectory), limits=Limits(max_cost=.02)).completion("How many?", "a b c")
    assert r.limit == "max_cost" and (again.limit, again.steps, again.cost) == (r.limit, r.steps, r.cost)

def test_compaction_and_a_window_that_was_too_small():
    def reply(messages, tools, parts=iter(range(6)), failed=[]):
        if "nearly too long for you" in messages[-1]["content"]: return "Parts are done."
        i = sum(m["role"] == "assistant" for m in messages)
        if i == 3 and not failed:
            failed.append(1)
            return Fault(400, "maximum context length exceeded")
        k = next(parts)
        return tool_call("FINAL(part_0)" if k == 5 else f"part_{k} = {k}\nprint(*range(100))")
    rlm = RLM(ScriptedLM(reply, window=10**6), compact=True)
    r = rlm.completion("Sum?", "numbers")
    assert any(e.kind == "summary" for e in r.trajectory)
    again = RLM(Replay(r.trajectory), compact=True).completion("Sum?", "numbers")
    assert plainly(again.trajectory) == plainly(r.trajectory)

def test_something_new_says_what_and_where():
    t = run([tool_call("FINAL(llm_query('Who was late in May? ' + context))"), "Acme"])
    with pytest.raises(ReplayError, match="This question is not in the log. Now: 'How few.'. The nearest there: 'How many.'"):
        RLM(Replay(t)).completion("How few?", "a b c")
    with pytest.raises(ReplayError, match="(?s)Step 2 of 'How many.' is not in the log.*Before, code had asked.*Now: '.*another text'"):
        RLM(Replay(t)).completion("How many?", "another text")
    with pytest.raises(ReplayError, match="Step 1: the conversation is another one"): RLM(Replay(t, strict=True)).completion("How many?", "another text")
    with pytest.raises(InputError, match="no run in this log"): Replay(Trajectory())
    for odd in ("run.jsonl", None, RLM(Replay(t)).completion("How many?", "a b c")):
        with pytest.raises(InputError, match="Replay takes a trajectory, such as Trajectory.load"): Replay(odd)

def test_a_loop_of_plain_values():
    def go(model):
        sh = prep_shell("a b c", model)
        return list(advanced_toolloop("How many?", "Explore.", [make_run_repl(sh)], sh, model=model))
    first = go(ScriptedLM([tool_call("n = llm_query('count')"), "3", tool_call("FINAL(n)")]))
    again = go(Replay(first[-1]["trajectory"]))
    assert again[-1]["answer"] == "3" and len(again) == len(first)

def test_a_log_of_many_runs_is_quick():
    t = Trajectory()
    top = t.append(Run(query="q", model="m", sub_model="s"))
    for i in range(20_000): t.append(Subcall(run=top.id, batch=i, prompt_hash=f"{i:x}", prompt="p", reply="r", usage=Usage(calls=1)))
    start = time.perf_counter()
    Replay(t)
    assert time.perf_counter() - start < 3
