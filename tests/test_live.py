"A run shows itself in a real kernel: below its own cell, as it happens, several at once, and quietly where nobody looks."
import json, os, re, threading, time

import pytest
from kernel import Kernel

from rlm.events import (Cell, CellOutput, CellStart, End, Final, Reply, ReplyDelta, Resume, Run, Subcall, SubcallStart,
    Usage)
from rlm.trajectory import Trajectory
from rlm.view import TerminalView
from rlm.watch import NotebookView, kernel_shell, watching

setup = """import asyncio, time
from pathlib import Path
from rlm import RLM
from rlm.offline import ScriptedLM, Slow, tool_call
def lm(*more): return ScriptedLM([Slow(.5, tool_call("print('<b>printed</b>')")), *more, Slow(.5, tool_call("FINAL('at nine')", content="That is it."))], "openai/gpt-4o-mini")
async def sub(messages, tools):
    await asyncio.sleep(.5)
    return "nothing here"
"""

@pytest.fixture(scope="module")
def kernel():
    with Kernel() as k:
        k.run(setup)
        k.run("RLM(lm(), verbose=False).completion('Warm?', 'up')") # LiteLLM is imported once
        yield k

# In a kernel

def test_a_run_is_one_output_that_changes_and_folds(kernel):
    got = kernel.run("""ask = tool_call("print('now', flush=True)\\nx = llm_query_batched([str(i) for i in range(30)])", content="Slowly " + "word " * 25)
RLM(lm(Slow(.04, ask, drip=True)), ScriptedLM(sub, "openai/gpt-4o-mini")).completion("Who comes <at nine>?", "Anna comes at nine.")""")
    assert got.error is None and got.result.startswith("Result('at nine', done, 3 steps")
    times,ids,data = zip(*got.frames)
    pages = [o["text/html"] for o in data]
    assert len(set(ids)) == 1 and [k for k,_ in [(m["msg_type"], m) for _,m in got.messages] if k == "display_data"] == ["display_data"]
    assert times[0] < 1 and len(times) >= 6 and len(times) <= 4*times[-1] + 4
    assert any("is writing" in o and "Slowly word" in o for o in pages), "text as it is written"
    assert any("of 30 sub-calls" in o and "sub-calls are running" in o and ">now<" in o for o in pages), "calls and output while the cell runs"
    assert all("Who comes &lt;at nine&gt;?" in o for o in pages[2:]) and "&lt;b&gt;printed&lt;/b&gt;" in pages[-1]
    assert pages[-1].split("</style>")[1].lstrip().startswith("<div class='rlm-run mathjax_ignore tex2jax_ignore'><details><summary><span class='rlm-dim'>done · 3 steps · 30 sub-calls")
    assert "waiting" not in pages[-1] and not any("<b>" in o.split("</style>")[1] for o in pages)

def test_several_at_once_each_below_its_own_cell(kernel):
    got = kernel.run("rs = await asyncio.gather(*(RLM(lm()).acompletion(q, 'text') for q in ('First?', 'Second?')))\n[r.answer for r in rs]")
    assert got.result == "['at nine', 'at nine']" and len(got.last) == 2
    assert sorted(re.search(r"(First|Second)\?", o)[0] for o in got.last.values()) == ["First?", "Second?"]
    assert all("done · 2 steps" in o for o in got.last.values())

def test_an_interrupt_keeps_what_there_is_and_says_how_to_go_on(kernel, tmp_path):
    got = kernel.run(f"""slow = tool_call("print('it begins', flush=True)\\nimport time\\ntime.sleep(60)")
model = RLM(ScriptedLM([tool_call("answer['content'] = 'a draft'"), slow]), log_dir={str(tmp_path)!r})
model.completion("Who?", "text")""", interrupt="<pre class='rlm-output'>it begins")
    assert got.error == "KeyboardInterrupt"
    [page] = got.last.values()
    [log] = tmp_path.iterdir()
    assert "interrupted · 2 steps" in page and ".last of the RLM" in page and f"rlm.resume(&#x27;{log}&#x27;, context)" in page and "it begins" in page
    assert kernel.run("model.last.answer, model.last.status").result == "('a draft', 'cancelled')"

def test_runs_on_threads(kernel):
    got = kernel.run("""import threading
threads = [threading.Thread(target=RLM(lm()).completion, args=("Who?", "text")) for _ in range(2)]
for o in threads: o.start()
for o in threads: o.join()""")
    assert got.error is None and len(got.last) == 2 and all("done · 2 steps" in o for o in got.last.values())

def test_a_run_that_goes_on_shows_what_came_before(kernel, tmp_path):
    log = str(tmp_path/"run.jsonl")
    kernel.run(f"""from rlm import Limits, resume
model = ScriptedLM([tool_call("n = 1", content="First."), "FINAL(perhaps)", tool_call("FINAL(n)", content="Then.")])
RLM(model, limits=Limits(max_steps=2)).completion("Who?", "text", log={log!r})""")
    got = kernel.run(f"resume({log!r}, 'text', model, limits=Limits(max_steps=9)).answer")
    [page] = got.last.values()
    assert got.result == "1" and "resumed after step 1" in page and "First." in page and "Then." in page and "done · 3 steps" in page

def test_a_failure_is_said(kernel):
    got = kernel.run("RLM(ScriptedLM([tool_call('1')])).completion('Who?', 'text')")
    [page] = got.last.values()
    assert got.error == "ScriptExhausted" and "failed · 1 step" in page
    got = kernel.run("RLM(lm()).completion('Who?', Path('/nowhere'))")
    assert got.error == "ContextError" and not any(got.last.values()) # a run that never began leaves nothing

@pytest.mark.parametrize("code", ["%%capture\nRLM(lm()).completion('Who?', 'text')", "RLM(lm(), verbose=False).completion('Who?', 'text').answer",
    "for e in RLM(lm()).stream('Who?', 'text'): pass", "for e in RLM(lm()).session('text').stream('Who?'): pass"])
def test_quiet(kernel, code):
    got = kernel.run(code)
    assert got.error is None and got.frames == []

def test_a_batch_shows_its_own_line_only(kernel):
    got = kernel.run("[r.answer for r in RLM(lm()).batch(['Who?'], context='text')]")
    assert got.result == "['at nine']" and not any("rlm-run" in o for o in got.last.values())

def test_a_session_shows_each_question_below_its_cell(kernel):
    kernel.run("s = RLM(ScriptedLM([tool_call('FINAL(1)'), tool_call('FINAL(2)')])).session('text')")
    for n in (1, 2):
        got = kernel.run(f"s.completion('Number {n}?').answer")
        [page] = got.last.values()
        assert got.result == str(n) and f"Number {n}?" in page and "done · 1 step" in page

def test_a_task_that_outlives_its_cell(kernel):
    kernel.run("task = asyncio.ensure_future(RLM(lm()).acompletion('Who?', 'text'))")
    assert kernel.run("(await task).answer").result == "'at nine'"

def test_an_interrupt_of_an_async_cell(kernel):
    got = kernel.run("""slow = tool_call("print('it begins', flush=True)\\nimport time\\ntime.sleep(60)")
model = RLM(ScriptedLM([tool_call("answer['content'] = 'a draft'"), slow]))
await model.acompletion("Who?", "text")""", interrupt="<pre class='rlm-output'>it begins")
    [page] = got.last.values()
    assert got.error == "CancelledError" and "interrupted · 2 steps" in page and got.messages[-1][0] < 10
    assert kernel.run("model.last.answer").result == "'a draft'"

# Elsewhere

def test_nobody_looks_at_a_test():
    assert kernel_shell() is None and watching() is watching(False) is None and isinstance(watching(True), TerminalView)

# What is drawn

class Shell:
    def __init__(self): self.display_pub,self.shown = self,[]
    def publish(self, **kw): self.shown.append(kw)

evil = "\x1b]0;title\x07</pre></style><script>alert(1)</script><img src=x onerror=alert(1)> & ' \" \u202eabc \ud800 \x00"
acts = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

def call(code): return dict(function=dict(name="run_repl", arguments=json.dumps(dict(python_code=code))))

def everywhere(text):
    "A run in which `text` is in every place where a model or a provider can put one"
    code = f"print({text!r})\n# {text}"
    yield Run(id=1, query=text, model=text, context=dict(type=text), origin=dict(log=text, step=text))
    yield ReplyDelta(run=1, step=1, text=text)
    yield Reply(run=1, step=1, model=text, message=dict(content=f"<think>{text}</think>{text}", reasoning_content=text, tool_calls=[call(code), call(text)]), cached=True)
    yield CellStart(run=1, id=4, step=1, code=code)
    yield SubcallStart(run=1, of=3, model=text)
    yield Subcall(run=1, of=3, model=text, prompt=text, error=text)
    yield CellOutput(run=1, parent=4, text=text)
    yield Run(id=7, run=1, query=text, depth=1)
    yield Reply(run=7, message=dict(content=text))
    yield CellOutput(run=7, parent=4, text="of the child")
    yield Cell(run=1, id=4, step=1, code=code, output=f"{text}\nTraceback (most recent call last):\n{text}", error=text)
    yield Cell(run=1, step=1, code=None, output=text)
    yield Resume(run=1, after=4, model=text)
    yield Reply(run=1, step=2, message=dict(content=f"```repl\n{text}\n```"))
    yield Final(run=1, answer=text)
    yield End(run=1, status="limit", limit=text, error=text)

def test_nothing_a_model_writes_acts_on_the_page():
    shell = Shell()
    view = NotebookView(shell, evil)
    view.every = 60
    for e in everywhere(evil):
        view(e)
        view.show()
    for o in shell.shown:
        page = o["data"]["text/html"]
        page.encode() # no lone surrogates
        assert not acts.search(page.replace("\n", "")) and not acts.search(o["data"]["text/plain"])
        assert "<script" not in page and "<img" not in page and page.count("</style>") == 1
        assert "of the child" not in page
    tags = set(re.findall(r"<(\w+)", page))
    assert tags <= {"style", "div", "span", "details", "summary", "pre", "progress"}
    assert set(re.findall(r"<\w+[^>]*?\s(\w+)=", page.split("</style>")[1])) <= {"class", "value", "max"} and "`" not in page.split("</style>")[1]

def test_events_from_many_threads_are_not_held_up():
    shell = Shell()
    with NotebookView(shell) as view:
        view(Run(id=1, query="q", model="m"))
        view(Reply(run=1, step=1))
        start = time.perf_counter()
        def work(n):
            for i in range(500): view(Subcall(run=1, batch=n, index=i, of=500, usage=Usage(10, calls=1)))
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for o in threads: o.start()
        for o in threads: o.join()
        took = time.perf_counter() - start
    assert took < 4 and len(shell.shown) <= took/view.every + 4
    assert view.steps[0].calls.n == 2000 and "2,000 of 2,000 sub-calls" in shell.shown[-1]["data"]["text/html"] and not shell.shown[0]["update"]

def test_a_long_run_stays_small():
    view = NotebookView(Shell())
    view.every = 60
    view(Run(id=1, query="q", model="m"))
    for i in range(300):
        view(Reply(run=1, step=i+1, message=dict(content="word "*2000, tool_calls=[call("x = 1\n"*500)])))
        view(Cell(run=1, step=i+1, code="x = 1\n"*500, output="y"*100_000 + "\n"*5000))
    start = time.perf_counter()
    view.show()
    assert time.perf_counter() - start < .1
    assert len(view.page()) < 1_500_000

def test_what_a_child_does_belongs_to_the_step_that_started_it():
    view = NotebookView(Shell())
    view.every = 60
    for e in [Run(id=1, query="q", model="m"), Reply(run=1, step=1, usage=Usage(calls=1, cost=1)), CellStart(run=1, id=2, step=1, code="x"),
              Run(id=3, run=1, depth=1), Reply(run=3, step=1, usage=Usage(calls=1, cost=2)), Subcall(run=3, usage=Usage(calls=1, cost=4)),
              ReplyDelta(run=3, step=2, text="of the child"), Reply(run=3, step=2, usage=Usage(calls=1, cost=8))]: view(e)
    assert [o.number for o in view.steps] == [1] and "of the child" not in view.page()
    view(Cell(run=1, id=2, step=1, code="x"))
    view(Reply(run=1, step=2, usage=Usage(calls=1, cost=16)))
    assert [(o.number, o.facts()[:-1]) for o in view.steps] == [(1, ["1 child run", "3 sub-calls", "$15.00"]), (2, ["$16.00"])]

def test_a_resumed_run_knows_what_came_before():
    events = list(everywhere("text"))
    shell = Shell()
    view = NotebookView(shell).catch_up(Trajectory(events=events[:1] + [e for e in events[1:12] if not isinstance(e, (ReplyDelta, CellStart, CellOutput, SubcallStart))]))
    assert shell.shown == []
    for e in events[12:]: view(e)
    page = shell.shown[-1]["data"]["text/html"]
    assert "resumed after step 1" in page and "2 steps" in page and "forked at step text of text" in page and "step 1 <span" in page
