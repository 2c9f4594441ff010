"The loop against unruly models: every way of ending, every malformed turn, and what must hold of the history and the log"
import asyncio, json, os, signal, subprocess, sys, textwrap, threading, time
from datetime import date
from pathlib import Path

import pytest

from rlm import prompts
from rlm import model
from rlm.core import advanced_toolloop
from rlm.events import InputError, Limits, LMError, LMRequestError, RLMError
from rlm.offline import Fault, ScriptedLM, Slow, tool_call, tool_calls
from rlm.reply import read_turn, said, scan, TextEnd
from rlm.shell import InProcessShell
from rlm.tools import make_run_repl, prep_shell
from rlm.trajectory import Trajectory

CONTEXT = "alpha\nbeta\ngamma"

def run(*args, **kwargs): return model.run(*args, **kwargs).trajectory
async def arun(*args, **kwargs): return (await model.arun(*args, **kwargs)).trajectory
def ask(replies, context=CONTEXT, **kw): return run("Which?", context, ScriptedLM(replies), **kw)
def ends(text): return [(o.kind, o.arg) for o in scan(text)[0] if isinstance(o, TextEnd)]

# ---- ends in text

@pytest.mark.parametrize("text,arg", [
    ("FINAL(total (incl. tax) = 5)", "total (incl. tax) = 5"),
    ("FINAL(f(g(x)) + (1))", "f(g(x)) + (1)"),
    ("FINAL(It's Anna's (the eldest's) book)", "It's Anna's (the eldest's) book"),
    ("FINAL(:) a smile)", ":) a smile"),
    ('FINAL("a) b")', "a) b"),
    ("FINAL('''one)\ntwo''')", "one)\ntwo"),
    ('FINAL("""say "hi" (twice)""")', 'say "hi" (twice)'),
    ("FINAL(a\nb\nc)", "a\nb\nc"),
    ("FINAL(\n  spread out\n)", "spread out"),
    ("FINAL(0)", "0"), ("FINAL()", ""), ('FINAL("")', ""), ("FINAL(None)", "None"), ("FINAL(False)", "False"),
    ("  FINAL(indented)  ", "indented"), ("**FINAL(bold)**", "bold"), ("`FINAL(ticks)`", "ticks"), ("> FINAL(quoted).", "quoted"),
    ("FINAL (spaced)", "spaced"), ("- FINAL(item)", "item"),
    ("Some thoughts.\n\nFINAL(after text)", "after text"),
    ("FINAL(see ```python\nx = 1\n``` there)", "see ```python\nx = 1\n``` there"),
    ("FINAL(first)\nno, rather\nFINAL(second)", "second"),
    ("FINAL(ünï (cödé) 漢字)", "ünï (cödé) 漢字"),
])
def test_text_ends(text, arg): assert ends(text)[-1] == ("FINAL", arg)

@pytest.mark.parametrize("text", [
    "I will call FINAL(x) when I know.", "FINAL(x) is what I would call", "When done: use FINAL(...)", "FINALLY(x)", "FINAL_ANSWER(x)",
    "MY_FINAL(x)", "FINAL", "FINAL(never closed", "FINAL is near (very)",
    "<think>FINAL(no)</think>", "<think>\nFINAL(no)\n</think>\nStill looking.", "<think>\nFINAL(no) and no end of thought",
    "thoughts without a beginning\nFINAL(no)\n</think>\nStill looking.",
    "```\nFINAL(no)\n```", "~~~text\nFINAL(no)\n~~~", "```python\nFINAL(no)", "````\n```\nFINAL(no)\n```\n````",
])
def test_no_text_end(text): assert ends(text) == []

def test_two_ends_are_not_merged(): assert ends("FINAL(a)\nFINAL(b)") == [("FINAL", "a"), ("FINAL", "b")]

def test_scanning_is_linear():
    "A hostile reply of a megabyte is read in no time"
    for text in ("FINAL(" * 20_000, "FINAL(\n" * 20_000, "FINAL('\n" * 20_000, "(" * 1_000_000, "FINAL(" + "'" * 200_000, "```\n" * 100_000, "<think>" * 50_000, " *" * 200_000, "FINAL: x\n" * 50_000, "a\n" * 300_000):
        start = time.monotonic()
        said(dict(content=text))
        assert time.monotonic() - start < 5, text[:10]

# ---- ends in code

@pytest.mark.parametrize("value", [0, "", None, [], False, 0.0])
def test_empty_answers_are_answers(value):
    t = ask([tool_call(f"FINAL({value!r})")])
    assert (t.answer, t.how, t.status) == (value, "code", "done")

def test_code_after_final_does_not_run():
    seen = []
    t = ask([tool_call("FINAL('yes')\nnote('ran on')")], tools=[lambda_named("note", seen.append)])
    assert (t.answer, seen) == ("yes", [])

def lambda_named(name, fn):
    fn2 = lambda *a: fn(*a)
    fn2.__name__ = name
    return fn2

def test_blocks_and_calls_after_the_end_do_not_run():
    seen = []
    note = lambda_named("note", seen.append)
    t = ask(["```repl\nnote(1)\n```\nFINAL(done)\n```repl\nnote(2)\n```"], tools=[note])
    assert (t.answer, seen) == ("done", [1])
    t = ask([tool_calls(tool_call("FINAL('done')"), tool_call("note(3)"))], tools=[note])
    assert (t.answer, seen) == ("done", [1])

@pytest.mark.parametrize("code", [
    "try: FINAL(7)\nexcept BaseException: pass", "try: FINAL(7)\nexcept: x = 1", "import threading\nt = threading.Thread(target=lambda: FINAL(7))\nt.start()\nt.join()",
    "async def f(): FINAL(7)\nawait f()", "x = 7\nFINAL_VAR('x')", "answer['content'] = 7\nanswer['ready'] = True", "answer.update(content=7, ready=True)",
    "answer = dict(content=7, ready=True)", "for i in range(9):\n    if i == 7: FINAL(i)",
])
def test_ends_in_code(code): assert (t := ask([tool_call(code)])).answer == 7 and t.how == "code"

def test_answer_not_ready_is_no_end():
    t = ask([tool_call("answer['content'] = 'draft'"), tool_call("answer['ready'] = True")])
    assert (t.answer, len(t.replies)) == ("draft", 2)

def test_a_variable_named_answer_is_just_a_variable():
    t = ask([tool_call("answer = 'mine'"), tool_call("FINAL_VAR('answer')")])
    assert t.answer == "mine"

@pytest.mark.parametrize("reply", [tool_call("FINAL_VAR('missing')"), "FINAL_VAR(missing)"])
def test_unknown_variable_is_told_with_the_names_there_are(reply):
    t = ask([tool_call("found = 'beta'"), reply, "FINAL_VAR(found)"])
    assert (t.answer, t.how) == ("beta", "text")
    told = t.cells[1].output
    assert "missing" in told and "found" in told

def test_final_of_a_bare_variable_means_its_value():
    assert ask([tool_call("total = 5"), "FINAL(total)"]).answer == 5
    assert ask([tool_call("total = 5"), "FINAL(beta)"]).answer == "beta"

def test_code_end_wins_over_text(): assert ask([tool_call("FINAL('code')", content="FINAL(text)")]).answer == "code"

def test_custom_patterns():
    t = ask(["The answer is\nANSWER: beta"], patterns=[r"ANSWER: (\w+)"])
    assert (t.answer, t.how) == ("beta", "pattern")
    assert ask(["<done/>"], patterns=["<done/>"]).answer == "<done/>"

# ---- malformed turns: told in one sentence, and the run goes on

def bad_json(name="run_repl"): return dict(content=None, tool_calls=[dict(id="c1", type="function", function=dict(name=name, arguments='{"python_code": "1'))])

@pytest.mark.parametrize("dialect", ["tools", "fenced"])
@pytest.mark.parametrize("reply,told", [
    ("I wonder.", "neither code nor an end"),
    ("", "neither code nor an end"),
    (dict(content=None), "neither code nor an end"),
    (dict(content=[dict(type="text", text="Part "), dict(type="text", text="two.")]), "neither code nor an end"),
    (dict(content=None, reasoning_content="I think."), "neither code nor an end"),
    ("```\njust text\n```", "neither code nor an end"),
])
def test_idle_turns(reply, told, dialect):
    t = ask([reply, "FINAL(ok)"], dialect=dialect)
    assert t.answer == "ok" and told in t.cells[0].output

@pytest.mark.parametrize("reply,told", [
    (bad_json(), "run_repl"), (bad_json("search"), "search"),
    (dict(content=None, tool_calls=[dict(id="c1", type="function", function=dict(name="run_repl", arguments="[1]"))]), "run_repl"),
    (dict(content=None, tool_calls=[dict(id="c1", type="function", function=dict(name="run_repl", arguments=None))]), "run_repl"),
    (dict(content=None, tool_calls=[dict(id="c1", type="function", function=dict(name="run_repl", arguments='{"code": "1"}'))]), "python_code"),
    (dict(content=None, tool_calls=[dict(id="c1", type="function", function=dict(name=None, arguments="{}"))]), "run_repl"),
    ("```repl\nx = 1", "not closed"),
])
def test_unusable_turns(reply, told):
    t = ask([reply, tool_call("FINAL('ok')")])
    assert t.answer == "ok"
    assert told in t.cells[0].output
    for m in t.messages():
        for c in m.get("tool_calls") or []: json.loads(c["function"]["arguments"])

def test_two_calls_in_one_turn_run_in_order():
    t = ask([tool_calls(tool_call("x = 1"), tool_call("FINAL(x + 1)"))])
    assert t.answer == 2 and [c.code for c in t.cells] == ["x = 1", "FINAL(x + 1)"]

def test_the_same_call_twice_runs_once():
    t = ask([tool_call("n = 0"), tool_calls(tool_call("n += 1"), tool_call("n += 1")), tool_call("FINAL(n)")])
    assert t.answer == 1
    calls = [c.call_id for c in t.cells]
    assert len(calls) == len(set(calls)) == 4

def test_every_call_is_answered():
    t = ask([tool_calls(tool_call("1"), tool_call("FINAL(2)"), tool_call("3")), "never"])
    asked = [c["id"] for r in t.replies for c in r.message.get("tool_calls") or []]
    assert asked == [c.call_id for c in t.cells]

@pytest.mark.parametrize("dialect", ["tools", "fenced"])
def test_text_and_call_together(dialect):
    t = ask([tool_call("y = 3", content="I set y now:\n```python\ny = 4\n```"), tool_call("FINAL(y)")], dialect=dialect)
    assert t.answer == 3 if dialect == "tools" else t.answer in (3, 4)

def test_fenced_history_has_no_tool_calls():
    lm = ScriptedLM([tool_call("z = 1"), "FINAL_VAR(z)"])
    t = run("Which?", CONTEXT, lm, dialect="fenced")
    assert t.answer == 1
    for r in lm.requests:
        assert not r["params"].get("tools") and all("tool_calls" not in m and m["role"] != "tool" for m in r["messages"])

def test_code_error_keeps_names_and_the_run():
    t = ask([tool_call("kept = 1\n1/0"), tool_call("FINAL(kept)")])
    assert t.answer == 1 and t.cells[0].error == "ZeroDivisionError"

@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "exit()", "quit()", "input('?')", "raise SystemExit"])
def test_exits_are_cell_errors(code):
    t = ask([tool_call("kept = 2"), tool_call(code), tool_call("FINAL(kept)")])
    assert t.answer == 2 and t.cells[1].error

# ---- limits and fallbacks

def test_fallback_after_two_idle_turns(): assert (t := ask(["One.", "Two.", "Three."])).answer == "Two." and t.status == "fallback" and len(t.replies) == 2

def test_a_label_ends_nothing_but_says_what_the_answer_is():
    assert (t := ask(["Plan.\nFINAL: report the sum", tool_call("FINAL(5)")])).answer == 5 and t.status == "done"
    assert (t := ask(["Plan.\nFINAL: report the sum", "It is 5.\n\n### Final Answer: 5"])).answer == "5" and t.status == "fallback"

def test_idle_turns_apart_are_each_pointed_out():
    t = ask(["Hm.", tool_call("1"), "Hm.", tool_call("FINAL('ok')")])
    assert t.answer == "ok"

@pytest.mark.parametrize("dialect", ["tools", "fenced"])
@pytest.mark.parametrize("last,answer", [("FINAL(best)", "best"), ("just text", "just text"), ("FINAL_VAR(x)", 5),
                                         ("So then.\n\n**FINAL ANSWER:** 3", "3"),
                                         ("```repl\nFINAL_VAR('x')\n```", 5), ("```repl\nFINAL('in code')\n```", "in code"), ("", "Look."),
                                         (tool_call("FINAL_VAR('x')"), 5)])
def test_last_step(last, answer, dialect):
    lm = ScriptedLM([tool_call("x = 5", content="Look."), last, "never asked for"])
    t = run("Which?", CONTEXT, lm, limits=Limits(max_steps=2), dialect=dialect)
    assert (t.status, t.limit, len(lm.requests)) == ("limit", "max_steps", 2)
    if not (dialect == "fenced" and last == ""): assert t.answer == answer
    assert lm.requests[-1]["messages"][-1]["content"].endswith(prompts.LAST_STEP_PROMPT)
    if dialect == "tools": assert lm.requests[-1]["params"]["tool_choice"] == "none"

def test_one_step_only():
    lm = ScriptedLM(["FINAL(quick)"])
    t = run("Which?", CONTEXT, lm, limits=Limits(max_steps=1))
    assert t.answer == "quick" and lm.requests[0]["params"]["tool_choice"] == "none"

def test_token_limit_keeps_the_draft():
    "A step that leaves no room for another one is the last, and asks for an answer; one that has no room itself is not made"
    replies = [tool_call("answer['content'] = 'so far'"), "FINAL(last words)"]
    usage = [e.usage.total_tokens for e in ask(replies).replies]
    t = ask(replies, limits=Limits(max_tokens=sum(usage)+100))
    assert (t.status, t.limit, t.answer, len(t.replies)) == ("limit", "max_tokens", "last words", 2)
    assert t.usage.total_tokens <= sum(usage) + 100
    t = ask([replies[0] | dict(content="word " * 5_000), "never"], limits=Limits(max_tokens=usage[0]*4))
    assert (t.status, t.limit, t.answer, len(t.replies)) == ("limit", "max_tokens", "so far", 1)
    assert len(ask(["never"], limits=Limits(max_tokens=10)).replies) == 0

def test_sub_call_limit_is_told_and_not_fatal():
    t = run("Which?", CONTEXT, ScriptedLM([tool_call("llm_query_batched(['a', 'b', 'c'])"), tool_call("FINAL('went on')")]),
            ScriptedLM(["x"] * 3), limits=Limits(max_sub_calls=2))
    assert t.answer == "went on" and "max_sub_calls" in t.cells[0].output and not t.sub_calls

# ---- failures

def test_provider_failure_carries_the_trajectory(tmp_path):
    log = tmp_path/"run.jsonl"
    with pytest.raises(LMRequestError) as e: ask([tool_call("answer['content'] = 'draft'"), Fault(400, "no")], log=log)
    t = e.value.trajectory
    assert (t.status, t.answer, t.how, len(t.replies)) == ("error", "draft", "fallback", 1)
    assert [e.kind for e in Trajectory.load(log)] == ["run", "reply", "cell", "final", "end"]

@pytest.mark.parametrize("q", ["", "  \n", None, 3])
def test_empty_question(q):
    with pytest.raises(InputError, match="question"): run(q, CONTEXT, ScriptedLM([]))

def test_bad_dialect():
    with pytest.raises(InputError, match="dialect"): ask([], dialect="xml")

def test_failing_sub_call_is_an_error_in_its_slot():
    sub = ScriptedLM(lambda m, tools: Fault(400, "refused") if "b" in m[0]["content"] else m[0]["content"] * 2)
    t = run("Which?", CONTEXT, ScriptedLM([tool_call("FINAL(llm_query_batched(['a', 'b', 'c']))")]), sub)
    assert [t.answer[0], t.answer[2]] == ["aa", "cc"] and t.answer[1].startswith("ERROR: ")
    assert {e.index: e.error is None for e in t.sub_calls} == {0: True, 1: False, 2: True}

def test_order_is_kept_whatever_finishes_first():
    sub = ScriptedLM(lambda m, tools: Slow(0.05 if m[0]["content"] == "0" else 0, m[0]["content"]))
    t = run("Which?", CONTEXT, ScriptedLM([tool_call("FINAL(llm_query_batched([str(i) for i in range(20)]))")]), sub)
    assert t.answer == [str(i) for i in range(20)]

# ---- history and log

def scripted_run(log=None, dialect="tools"):
    lm = ScriptedLM(["Hm.", tool_call("print(len(context))"), "```repl\nprint(1)\n```\n```repl\nprint(2)\n```", bad_json(), tool_call("FINAL('x')")])
    return lm,run("Which?", CONTEXT, lm, dialect=dialect, log=log)

@pytest.mark.parametrize("dialect", ["tools", "fenced"])
def test_each_request_begins_with_the_one_before(dialect):
    lm,t = scripted_run(dialect=dialect)
    reqs = [r["messages"] for r in lm.requests]
    assert len(reqs) == 5
    for a,b in zip(reqs, reqs[1:]): assert b[:len(a)] == a and len(b) > len(a)

@pytest.mark.parametrize("dialect", ["tools", "fenced"])
def test_the_conversation_is_in_the_log(tmp_path, dialect):
    lm,t = scripted_run(tmp_path/"r.jsonl", dialect)
    loaded = Trajectory.load(tmp_path/"r.jsonl")
    assert loaded.messages() == t.messages()
    assert loaded.messages()[:len(lm.requests[-1]["messages"])] == lm.requests[-1]["messages"]
    assert (loaded.answer, loaded.status, loaded.usage) == (t.answer, t.status, t.usage)

def test_tool_messages_follow_their_calls():
    lm,_ = scripted_run()
    for m,n in zip(lm.requests[-1]["messages"], lm.requests[-1]["messages"][1:]):
        if m.get("tool_calls"): assert n["role"] == "tool" and n["tool_call_id"] == m["tool_calls"][0]["id"]

def test_log_grows_with_new_text_only(tmp_path):
    big,log = "needle " + "x" * 50_000_000,tmp_path/"r.jsonl"
    t = run("Which?", big, ScriptedLM([tool_call("len(context)"), tool_call("context"), tool_call("llm_query(context[:200_000])"), tool_call("FINAL(context[:6])")]),
            ScriptedLM(["fine"]), log=log)
    assert t.answer == "needle" and log.stat().st_size < 100_000

def test_fidelity(tmp_path):
    odd = "a\r\nb\x00c\udc80 漢\U0001f600"
    context = {1: odd, "k": [b"bytes", None, date(2026, 1, 2)]}
    t = run("Which?", context, ScriptedLM([tool_call("print(context[1])\nsame = context"), tool_call("FINAL(same['k'] + [same[1]])")]),
            log=tmp_path/"r.jsonl")
    assert t.answer == [b"bytes", None, date(2026, 1, 2), odd]
    assert Trajectory.load(tmp_path/"r.jsonl").answer == ["bytes", None, "2026-01-02", odd]

# ---- asynchronous, in threads, interrupted, killed

def test_sync_and_async_agree():
    replies = [tool_call("x = await __import__('asyncio').sleep(0, 41)"), "```repl\nprint(x)\n```", tool_call("FINAL(x + 1)")]
    a,b = ask(replies),asyncio.run(arun("Which?", CONTEXT, ScriptedLM(replies)))
    strip = lambda t: [(e.kind, getattr(e, "output", None), getattr(e, "answer", None)) for e in t]
    assert strip(a) == strip(b) and a.answer == 42

def test_sync_run_inside_a_running_loop():
    async def main(): return ask([tool_call("import asyncio\nasync def f(): return 5\nasyncio.run(f())"), tool_call("FINAL(_)")])
    assert asyncio.run(main()).answer == 5

def test_runs_in_threads_do_not_mix():
    def one(i):
        t = run("Which?", str(i), ScriptedLM([tool_call("import time\nfor k in range(20): print(context, k)\ntime.sleep(0.001)"), tool_call("FINAL(context)")]))
        out[i] = t.answer,t.cells[0].output
    out = {}
    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    for i in range(8): assert out[i][0] == str(i) and out[i][1].splitlines()[:20] == [f"{i} {k}" for k in range(20)]

def test_cancelling_stops_the_run():
    async def main():
        task = asyncio.create_task(arun("Which?", CONTEXT, ScriptedLM([Slow(30, "late")]), on_event=events.append))
        await asyncio.sleep(0.3)
        task.cancel()
        start = time.monotonic()
        with pytest.raises(asyncio.CancelledError): await task
        return time.monotonic() - start
    events = []
    assert asyncio.run(main()) < 1
    assert events[-1].kind == "end" and events[-1].status == "cancelled"

SCRIPT = """
import sys, time
from rlm.model import run
from rlm.offline import ScriptedLM, Slow, tool_call
print("go", flush=True)
run("Which?", "text", ScriptedLM([tool_call("print('paid for')"), {last}]), log=sys.argv[1])
"""

def started(tmp_path, last):
    log = tmp_path/"r.jsonl"
    p = subprocess.Popen([sys.executable, "-c", SCRIPT.format(last=last), str(log)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (log.exists() and '"cell"' in log.read_text()):
        assert time.monotonic() < end and p.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    return p,log

@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("last", ["Slow(60, 'late')", "tool_call('import time\\nprint(1)\\ntime.sleep(60)')", "tool_call('while True: pass')"])
def test_ctrl_c_ends_at_once_with_what_there_is(tmp_path, last):
    p,log = started(tmp_path, last)
    sent = time.time()
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=30)
    t = Trajectory.load(log)
    assert "KeyboardInterrupt" in err and t[-1].time - sent < 1
    assert t.status == "cancelled" and "paid for" in t.cells[0].output

@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_killed_run_keeps_what_was_paid_for(tmp_path):
    p,log = started(tmp_path, "Slow(60, 'late')")
    p.kill()
    p.communicate()
    t = Trajectory.load(log)
    assert [e.kind for e in t] == ["run", "reply", "cell"] and t.status is None and t.usage.calls == 1

# ---- advanced_toolloop

def test_advanced_toolloop_yields_plain_values():
    sh = prep_shell(CONTEXT, model=ScriptedLM(["sub"]))
    lm = ScriptedLM([tool_call("llm_query('x')"), "FINAL(done)"])
    out = list(advanced_toolloop("Which?", prompts.REPL_SYSTEM_PROMPT, [make_run_repl(sh)], sh, model=lm))
    assert out[0].choices[0].message.tool_calls and out[0]["choices"][0]["message"]
    assert out[1]["role"] == "tool" and out[1]["tool_call_id"] == out[0].choices[0].message.tool_calls[0].id and "sub" in out[1]["content"]
    assert out[-1]["type"] == "final" and out[-1]["answer"] == "done" and len(out) == 4

def test_advanced_toolloop_final_prompt_is_sent():
    lm = ScriptedLM([tool_call("1"), "so be it"])
    *_,final = advanced_toolloop("Which?", "sp", [make_run_repl(prep_shell(CONTEXT))], model=lm, max_steps=2, final_prompt="Now!")
    assert final["answer"] == "so be it" and lm.requests[-1]["messages"][-1] == dict(role="user", content="Now!")

def test_advanced_toolloop_needs_a_model():
    with pytest.raises(InputError, match="model"): next(advanced_toolloop("Which?", "sp", [make_run_repl(prep_shell(CONTEXT))]))

def test_advanced_toolloop_uses_the_shells_model_by_default():
    sh = prep_shell(CONTEXT, model=ScriptedLM(["FINAL(same)"]))
    *_,final = advanced_toolloop("Which?", "sp", [make_run_repl(sh)])
    assert final["answer"] == "same"

def test_tools_that_fail_are_told():
    def fetch(url: str) -> str:
        "Fetch."
        raise OSError("no network")
    lm = ScriptedLM([tool_call(name="fetch", arguments=dict(url="x")), tool_call(name="fetch", arguments=dict(uri="x")), "FINAL(ok)"])
    out = list(advanced_toolloop("Which?", "sp", [fetch], model=lm))
    assert "OSError: no network" in out[1]["content"] and "url" in out[3]["content"] and out[-1]["answer"] == "ok"

def test_prompt_and_namespace_agree():
    "Every function that the system prompt names is in a shell, and the other way round"
    sh = prep_shell(CONTEXT, model=ScriptedLM([]))
    for name in ("context", "llm_query", "llm_query_batched", "FINAL", "FINAL_VAR", "SHOW_VARS"):
        assert name in prompts.REPL_SYSTEM_PROMPT and name in sh.user_ns
