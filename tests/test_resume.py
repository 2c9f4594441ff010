"A run that is killed at any moment goes on from its log: the same answer, and nothing that was paid for is asked again"
import asyncio, hashlib, json, os, random, re, signal, subprocess, sys, textwrap, threading, time
from contextlib import suppress
from pathlib import Path

import pytest

from ledger import Ledger
from rlm import Limits
from rlm.events import Cell, InputError, LMServerError, Reply, Resume, Run, Subcall
from rlm.model import RLM
from rlm.offline import Fault, ScriptedLM, Slow, tool_call
from rlm.replay import ReplayError
from rlm.revisit import resume
from rlm.trajectory import LogWarning, Trajectory

# ---- a model that does the same whenever it is asked the same

CONTEXT = [f"part {i}" for i in range(6)]
CELLS = ["a = llm_query_batched(['read ' + o for o in context])\nb = llm_query('is it so?', response_format=int)",
         "kids = rlm_query_batched(['sum it up']*2, [context[:2], context[2:]])",
         "import time\ntime.sleep(.1)\nc = llm_query('and the last?')\ncite(context[1])",
         "FINAL([a, b, kids, c])"]
KID = ["x = llm_query_batched(['kid ' + o for o in context])", "FINAL(x)"]

def whole(message):
    usage = dict(prompt_tokens=10, completion_tokens=5, total_tokens=15)
    return dict(id="x", object="chat.completion", created=0, choices=[dict(index=0, finish_reason="stop", message=message)], usage=usage)

class Told(Ledger):
    "Notes what each number was asked"
    def __init__(self, pause=.03):
        super().__init__(self.answer)
        self.keys,self.asked,self.pause,self._lock = {},[],pause,threading.Lock()

    def answer(self, messages, params):
        if messages[0]["role"] == "system":
            done = sum(m["role"] == "assistant" for m in messages)
            cells = KID if "sum it up" in messages[1]["content"] else CELLS
            res = tool_call(cells[done], id=f"call_{done}")
        else:
            again,text = len(messages) > 1,messages[0]["content"]
            text = ("7" if again else "seven or so") if text.startswith("is it so") else text.upper()
            res = dict(role="assistant", content=text)
        return Slow(self.pause*random.uniform(.2, 1.5), whole(res))

    async def _reply(self, messages, params):
        res,_ = await super()._reply(messages, params)
        return res | dict(key=hashlib.sha1(json.dumps(messages).encode()).hexdigest()),0

    async def _respond(self, request, response, pause, options):
        n = next(self.numbers)
        key = response.pop("key")
        self.keys[n] = key
        self.asked.append(key)
        details = dict(response["usage"], completion_tokens_details=dict(reasoning_tokens=n))
        return await super(Ledger, self)._respond(request, dict(response, model=str(n), usage=details), pause, options)

    def recorded(self, log):
        "What the log has the replies to"
        return [self.keys[e.usage.reasoning_tokens] for e in log if isinstance(e, (Reply, Subcall)) and e.usage.calls]

# ---- processes that are forked from one in which everything is imported

ZYGOTE = """
import json, os, sys
import rlm.model, rlm.revisit
from rlm import Limits
from rlm.events import InputError
from rlm.lm import litellm_module
from rlm.trajectory import Trajectory
litellm_module()
print("ready", flush=True)
for line in sys.stdin:
    url,log,context = json.loads(line)
    if pid := os.fork():
        print(pid, flush=True)
        status = os.waitpid(pid, 0)[1]
        print(status, flush=True)
        continue
    try: begun = Trajectory.load(log).run is not None
    except InputError: begun = False
    if begun: r = rlm.revisit.resume(log, context, base_url=url, api_key="key")
    else:
        if os.path.exists(log): os.unlink(log)
        r = rlm.model.RLM("openai/root", "openai/sub", base_url=url, api_key="key", limits=Limits(max_depth=2)).completion("What is it?", context, log=log)
    with open(log + ".answer", "w") as f: json.dump([r.answer, r.status, [o.quote for o in r.citations]], f)
    os._exit(0)
"""

class Host:
    "Runs questions in processes that may be killed"
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def run(self, url, log, after=None):
        "Whether a run came to its end, and was not killed after so many seconds"
        self.process.stdin.write(json.dumps([url, str(log), CONTEXT]) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if after is not None:
            time.sleep(after)
            with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
        return int(self.process.stdout.readline()) == 0

    def close(self):
        self.process.stdin.close()
        self.process.wait()

@pytest.fixture(scope="module")
def host():
    res = Host()
    yield res
    res.close()

def answer_of(log): return json.loads(Path(f"{log}.answer").read_text())

def kill_and_resume(host, folder, seed, span):
    "A run, killed up to three times"
    rng,log = random.Random(seed),folder/f"{seed}.jsonl"
    with Told().start() as server:
        for _ in range(rng.choice([1, 1, 2, 3])):
            if host.run(server.base_url, log, rng.uniform(.02, span)): break
            if not log.exists() or b"\n" not in log.read_bytes(): continue
            loaded = Trajectory.load(log) # whatever there is, it loads
            known,n = set(server.recorded(loaded)),len(server.asked)
            server.fence = known,n
        assert host.run(server.base_url, log)
        t = Trajectory.load(log)
        twice = [k for k in set(server.asked) if server.recorded(t).count(k) > 1]
        assert not twice, "a call is in the log twice"
        if hasattr(server, "fence"):
            known,n = server.fence
            assert not known & set(server.asked[n:]), "a recorded call was made again"
    return answer_of(log),t

@pytest.fixture(scope="module")
def usual(host, tmp_path_factory):
    "The answer of a run that nobody kills, and how long it takes"
    log = tmp_path_factory.mktemp("usual")/"log.jsonl"
    with Told().start() as server:
        start = time.monotonic()
        assert host.run(server.base_url, log)
        return answer_of(log),time.monotonic() - start

def check_kills(host, usual, folder, seeds):
    answer,span = usual
    assert answer[1] == "done" and answer[0][1] == 7 and answer[0][2] == [["KID PART 0", "KID PART 1"], [f"KID PART {i}" for i in range(2, 6)]]
    resumed = 0
    for seed in seeds:
        (got,status,cited),t = kill_and_resume(host, folder, seed, span)
        assert [got, status] == answer[:2], seed
        assert set(cited) == set(answer[2])
        assert t.status == "done" and all(o.id in t._ended for o in t.runs)
        resumed += any(isinstance(e, Resume) for e in t)
    return resumed

def test_kill_9(host, usual, tmp_path): assert check_kills(host, usual, tmp_path, range(7)) >= 2

@pytest.mark.long
def test_kill_9_at_many_moments(host, usual, tmp_path): assert check_kills(host, usual, tmp_path, range(100, 300)) > 60

# ---- other ways in which a run ends too early

def run(replies, context="a b c", query="How many?", limits=Limits(), **kw):
    "The trajectory of a run, however it ends, and its models"
    rlm = RLM(ScriptedLM(replies), limits=limits, **kw)
    try: rlm.completion(query, context)
    except Exception: pass
    return rlm.last.trajectory

def calls(lm): return len(lm.requests)

def test_a_failed_run_goes_on():
    t = run([tool_call("n = len(context.split())"), LMServerError("down")])
    assert t.status == "error"
    lm = ScriptedLM([tool_call("FINAL(n)")])
    r = resume(t, "a b c", lm)
    assert (r.answer, r.status, r.steps, calls(lm)) == (3, "done", 2, 1)
    assert [m["role"] for m in lm.requests[0]["messages"]] == ["system", "user", "assistant", "tool"]

def test_the_last_result_goes_on_in_its_file(tmp_path):
    rlm = RLM(ScriptedLM([tool_call("n = 3"), LMServerError("down"), tool_call("FINAL(n)")]), log_dir=tmp_path)
    with pytest.raises(LMServerError): rlm.completion("How many?", "a b c")
    log = rlm.last.log
    assert rlm.resume(rlm.last).answer == 3 and rlm.last.log == log
    assert Trajectory.load(log).answer == 3 and len(list(tmp_path.iterdir())) == 1

def test_a_killed_question_and_another_one(tmp_path):
    t = run([tool_call("n = 3"), tool_call("m = 4"), LMServerError("down")])
    cut = Trajectory(events=t.events[:4]) # the second cell never came to its end
    assert [e.kind for e in cut] == ["run", "reply", "cell", "reply"]
    lm = ScriptedLM([tool_call("FINAL(n)")])
    with RLM(lm).session("a b c", cut) as s: assert s.completion("What is n?").answer == 3
    assert [m["role"] for m in lm.requests[0]["messages"]] == ["system", "user", "assistant", "tool", "assistant", "tool", "user"]

def test_patterns_are_looked_at_at_once():
    with pytest.raises(InputError, match="patterns are regular expressions"): RLM("openai/gpt-5", patterns=["("])

def test_a_run_that_is_over_is_only_read(tmp_path):
    with_log = RLM(ScriptedLM([tool_call("FINAL(len(context))")])).completion("How long?", "abc", response_format=int, log=tmp_path/"a.jsonl")
    before = (tmp_path/"a.jsonl").read_bytes()
    r = resume(tmp_path/"a.jsonl", None)
    assert (r.answer, r.parsed, r.status) == (3, 3, "done")
    assert (tmp_path/"a.jsonl").read_bytes() == before
    assert with_log.usage == r.usage

@pytest.mark.parametrize("limits,more,limit", [(Limits(max_steps=2), Limits(max_steps=4), "max_steps"),
    (Limits(max_errors=1), Limits(max_errors=3), "max_errors"), (Limits(max_tokens=3000), Limits(max_tokens=10**6), "max_tokens")])
def test_a_run_at_a_limit_goes_on_with_more(limits, more, limit):
    big = "x = 1\n#" + "y"*4000
    t = run([tool_call("1/0" if limit == "max_errors" else big), "FINAL(?)"] + ["FINAL(?)"]*3, limits=limits)
    assert t.limit == limit
    with pytest.raises(InputError, match=f"stopped at {limit}, which was .* pass limits=Limits.{limit}="): resume(t, "a b c", ScriptedLM([]))
    lm = ScriptedLM([tool_call("FINAL('more')")])
    r = resume(t, "a b c", lm, limits=more)
    assert (r.answer, r.status, calls(lm)) == ("more", "done", 1)
    assert "last step" not in str(lm.requests[0]["messages"][2:])
    assert r.usage.calls == sum(e.usage.calls for e in t if isinstance(e, (Reply, Subcall))) # what it had cost counts
    again = Trajectory(events=t.events)
    assert (again.answer, again.status) == ("more", "done")

def test_out_of_time_goes_on_with_the_same_limit():
    t = run([tool_call("import time\nn = 5\ntime.sleep(60 if n == 5 and 'done' not in globals() else 0)"), "FINAL(?)"], limits=Limits(max_seconds=2))
    assert (t.limit, t.cells[0].error) == ("max_seconds", "TimeoutError")
    lm = ScriptedLM([tool_call("FINAL(n)")])
    r = resume(t, "a b c", lm, limits=Limits(max_seconds=2))
    assert r.limit == "max_seconds" # it takes just as long

def test_recorded_calls_of_the_pending_cell_are_not_made_again():
    asked = []
    def sub(messages, tools):
        asked.append(messages[0]["content"])
        if len(asked) == 3: raise LMServerError("down")
        return messages[0]["content"].upper()
    code = "a = llm_query('one')\nb = llm_query('two')\nc = llm_query('three')\nFINAL(a + b + c)"
    cut = Trajectory(events=[e for e in run([tool_call(code), "FINAL(?)"], sub_model=ScriptedLM(sub)).events if e.kind != "cell"][:5])
    assert [e.kind for e in cut] == ["run", "reply", "subcall", "subcall", "subcall"]
    asked.clear()
    r = resume(cut, "a b c", ScriptedLM([]), sub_model=ScriptedLM(sub))
    assert (r.answer, asked) == ("ONETWOTHREE", ["three"]) # what had failed is asked again
    assert {e.parent for e in r.trajectory.sub_calls} == {r.trajectory.cells[0].id}
    assert r.sub_calls == 4

def test_a_changed_context_or_model_is_refused():
    t = run([tool_call("n = 1"), LMServerError("down")], context="a b c")
    with pytest.raises(InputError, match=r"another context \(.*in 1 line\); `insist=True`"): resume(t, "a b", ScriptedLM([]))
    with pytest.raises(InputError, match="pass the context, as it was"): resume(Trajectory(events=t.events), None, ScriptedLM([]))
    with pytest.raises(InputError, match="the model was scripted/model, not other"): resume(t, "a b c", ScriptedLM([], model="other"))
    n = len(t.events)
    with pytest.warns(LogWarning, match="another context"): r = resume(t, "a b", ScriptedLM([tool_call("FINAL(context)")]), insist=True)
    assert r.answer == "a b" and len(t.events) > n

def test_a_missing_tool_is_refused():
    def price(name): return 5
    t = run([tool_call("p = price('Acme')"), LMServerError("down")], tools=[price])
    with pytest.raises(InputError, match="function price of yours: pass tools="): resume(t, "a b c", ScriptedLM([]))
    assert resume(t, "a b c", ScriptedLM([tool_call("FINAL(p)")]), tools=[price]).answer == 5

def test_a_cell_that_does_something_else_is_an_error(tmp_path):
    (tmp_path/"f").write_text("here")
    code = f"n = open({str(tmp_path/'f')!r}).read()"
    t = run([tool_call(code), LMServerError("down")])
    (tmp_path/"f").unlink()
    n = len(t.events)
    with pytest.raises(ReplayError, match="Step 1: the cell fails with FileNotFoundError now, and in the log it works"): resume(t, "a b c", ScriptedLM([]))
    assert len(t.events) == n # nothing was written
    with pytest.warns(LogWarning, match="Step 1"): r = resume(t, "a b c", ScriptedLM([tool_call("FINAL(0)")]), insist=True)
    assert r.answer == 0

def test_another_question_of_the_code_is_an_error():
    code = "import os\nx = llm_query('for ' + os.environ.get('RLM_T', 'nobody'))"
    t = run([tool_call(code), "yes", LMServerError("down")])
    os.environ["RLM_T"] = "me"
    try:
        with pytest.raises(ReplayError, match="Step 1: This prompt is not in the log. Now: 'for me'. The nearest there: 'for nobody'"):
            resume(t, "a b c", ScriptedLM([]))
    finally: del os.environ["RLM_T"]

def test_what_was_refused_is_refused_again():
    code = "try: llm_query_batched(['a']*9)\nexcept Exception as e: n = type(e).__name__"
    t = run([tool_call(code), LMServerError("down")], limits=Limits(max_sub_calls=5))
    r = resume(t, "a b c", ScriptedLM([tool_call("FINAL(n)")]))
    assert r.answer == "LimitExceeded"
    r = resume(run([tool_call(code), LMServerError("down")], limits=Limits(max_sub_calls=5)), "a b c", ScriptedLM([tool_call("FINAL(n)")]), limits=Limits(max_sub_calls=50))
    assert r.answer == "LimitExceeded"

def test_an_interrupted_cell_runs_again():
    go,begun = threading.Event(),threading.Event()
    def wait():
        begun.set()
        return 7 if go.is_set() else time.sleep(60)
    rlm = RLM(ScriptedLM([tool_call("a = 1"), tool_call("n = wait()")]), tools=[wait], shell="process")
    async def cancelled():
        task = asyncio.create_task(rlm.acompletion("How many?", "x"))
        while not begun.is_set(): await asyncio.sleep(.01)
        task.cancel()
        await asyncio.wait([task])
    asyncio.run(cancelled())
    t = rlm.last.trajectory
    assert (t.status, t.cells[-1].code) == ("cancelled", "n = wait()")
    go.set()
    r = resume(t, "x", ScriptedLM([tool_call("FINAL(a + n)")]), tools=[wait])
    assert (r.answer, r.status) == (8, "done")

def test_the_last_question_of_a_session_goes_on(tmp_path):
    log = tmp_path/"s.jsonl"
    lm = ScriptedLM([tool_call("n = llm_query('count')\nFINAL(n)"), "3", tool_call("m = n + 'x'"), LMServerError("down")])
    with RLM(lm).session("a b c", log) as s:
        s.add("more", "notes")
        s.completion("How many?")
        with pytest.raises(LMServerError): s.completion("And now?")
    with pytest.raises(InputError, match="there was a context notes"): resume(log, "a b c", ScriptedLM([]))
    lm = ScriptedLM([tool_call("FINAL(m)")])
    r = resume(log, "a b c", lm, contexts=dict(notes="more"))
    assert (r.answer, r.query, calls(lm)) == ("3x", "And now?", 1)
    t = Trajectory.load(log)
    assert [o.query for o in t.runs] == ["How many?", "And now?"] and t.status == "done"
    with RLM(ScriptedLM([tool_call("FINAL(m + n + notes)")])).session("a b c", log) as s:
        s.add("more", "notes")
        assert s.completion("Both?").answer == "3x3more"

def test_a_direct_run_goes_on(tmp_path):
    t = run([LMServerError("down")], direct_below=100)
    assert t.run.dialect == "direct"
    assert resume(t, "a b c", ScriptedLM(["3"])).answer == "3"

def test_a_check_that_was_paid_is_not_asked_again():
    judge = ScriptedLM(["REFUSE: no", LMServerError("down")] )
    rlm = RLM(ScriptedLM([tool_call("FINAL(1)"), tool_call("n = 2"), LMServerError("down")]), verify=judge)
    with pytest.raises(LMServerError): rlm.completion("How many?", "x")
    judge = ScriptedLM(["ACCEPT"])
    r = resume(rlm.last.trajectory, "x", ScriptedLM([tool_call("FINAL(n)")]), verify=judge)
    assert (r.answer, r.verified, calls(judge)) == (2, True, 1)

def test_a_summary_is_kept():
    def reply(messages, tools, parts=iter(range(4))):
        if "nearly too long for you" in messages[-1]["content"]: return "Parts are done."
        if (i := next(parts)) == 3: raise LMServerError("down")
        return tool_call(f"part_{i} = {i}\nprint(*range(1000))")
    rlm = RLM(ScriptedLM(reply, window=5000), compact=True)
    with pytest.raises(LMServerError): rlm.completion("Sum?", "numbers")
    t = rlm.last.trajectory
    assert any(e.kind == "summary" for e in t)
    lm = ScriptedLM([tool_call("FINAL(part_0 + part_2)")], window=5000)
    assert (resume(t, "numbers", lm).answer, calls(lm)) == (2, 1)
    assert lm.requests[0]["messages"][2]["content"].startswith(("Summary", "The conversation")) or "Parts are done." in str(lm.requests[0])

@pytest.mark.parametrize("dialect", ["tools", "fenced"])
def test_the_settings_of_the_log(tmp_path, dialect):
    log = tmp_path/"log.jsonl"
    rlm = RLM(ScriptedLM(["```repl\nn = 1\n```" if dialect == "fenced" else tool_call("n = 1"), LMServerError("down")]), dialect=dialect,
              final_var="answer_is", patterns=[r"DONE: (\d+)"], max_output=100, limits=Limits(max_steps=7))
    with pytest.raises(LMServerError): rlm.completion("How many?", "x", log=log)
    r = resume(log, "x", ScriptedLM(["DONE: 5"]))
    assert (r.answer, r.how) == ("5", "pattern")
    assert r.trajectory.run.settings["max_output"] == 100 and "api_key" not in log.read_text()

def test_keys_are_not_in_a_log(tmp_path):
    with Told(pause=0).start() as server:
        url = server.base_url.replace("http://", "http://me:topsecret@") + "?key=topsecret"
        rlm = RLM("openai/root", "openai/sub", base_url=server.base_url, api_key="sk-topsecret", temperature=.5, limits=Limits(max_depth=2))
        rlm.completion("What is it?", CONTEXT, log=tmp_path/"a.jsonl")
    text = (tmp_path/"a.jsonl").read_text()
    assert "topsecret" not in text and '"temperature": 0.5' in text
    assert "topsecret" not in str(RLM("openai/root", base_url=url, api_key="sk-topsecret").settings())

def test_in_another_process():
    t = run([tool_call("n = llm_query('count')"), "3", LMServerError("down")], shell="process")
    lm = ScriptedLM([tool_call("FINAL(n)")])
    r = resume(t, "a b c", lm)
    assert (r.answer, calls(lm), t.run.shell) == ("3", 1, "process")

# ---- cut off after any event

from hypothesis import HealthCheck, given, settings, strategies as st
from test_replay import models, programs, setup

def cut_and_resume(program, data):
    "A run that was cut off after some event, perhaps twice, has the answer and the cost that it would have had"
    root,child,how,seed = program
    def rlm():
        a,b,c = (ScriptedLM(o, model=name) for o,name in zip(models(*program), ("root", "middle", "leaf")))
        verify = dict(verify=ScriptedLM(models(*program)[0], model="judge")) if how["verify"] else {}
        return RLM(a, [b, c], choices=dict(strong=ScriptedLM(models(*program)[2], model="strong")), **setup(how), **verify)
    with rlm() as m: first = m.completion("What is it?", "alpha beta gamma", how["typed"])
    t = Trajectory(events=first.trajectory.events)
    for _ in range(data.draw(st.integers(1, 2))):
        t = Trajectory(events=t.events[:data.draw(st.integers(1, len(t)))])
        with rlm() as m:
            try: r = m.resume(t, "alpha beta gamma", how["typed"])
            except InputError as e:
                assert "stopped at" in str(e) and t.limit
                return
    assert (r.answer, r.parsed, r.status, r.limit) == (first.answer, first.parsed, first.status, first.limit)
    if not first.limit: assert (r.usage.calls, r.steps) == (first.usage.calls, first.steps)
    assert [m for m in r.history if m["role"] == "assistant"] == [m for m in first.history if m["role"] == "assistant"]

few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@given(programs(), st.data())
@few
def test_cut_off_after_any_event(program, data): cut_and_resume(program, data)

@pytest.mark.long
@given(programs(), st.data())
@settings(few, max_examples=500)
def test_many_runs_cut_off(program, data): cut_and_resume(program, data)
