"Every limit holds for a question with all that it starts, ends it with the best answer there is, and says so"
import asyncio, copy, time

import pytest

from rlm import RLM, Limits
from rlm.events import Cell, End, InputError, Reply, Subcall
from rlm.lm import LM, litellm_module
from rlm.offline import ScriptedLM, Slow, serve, tool_call

TEXT = "The depot in Bergen closed in 1987.\n" * 20
litellm_module() # whose import takes seconds

def cells(replies): return [tool_call(o[3:], id=f"c{i}") if isinstance(o, str) and o.startswith(">>>") else o for i,o in enumerate(replies)]
def make(replies, subs=None, limits=None, tools=True, **kw):
    subs = subs if subs is None or isinstance(subs, LM) else ScriptedLM(subs)
    return RLM(ScriptedLM(cells(replies) if not callable(replies) else replies, tools=tools), subs, limits=Limits(**limits or {}), **kw)
def ask(*args, **kw):
    with make(*args, **kw) as m: return m.completion("Which?", TEXT)
def of(r, cls): return [e for e in r.trajectory if isinstance(e, cls)]
def last(m): return m.models[0].requests[-1]["messages"][-1]["content"]
def usage(prompt, completion, text="ok"):
    "A whole response that tells this usage"
    msg = text if isinstance(text, dict) else dict(role="assistant", content=text)
    return dict(id="x", object="chat.completion", created=0, model="m", choices=[dict(index=0, finish_reason="stop", message=msg)],
                usage=dict(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt+completion))

# ---- values

def test_limits_are_values():
    "The same limits and the same RLM, twice, one after the other and at once: each question has all of it"
    limits = Limits(max_steps=3, max_sub_calls=2)
    before = copy.copy(limits)
    def root(messages, tools): return tool_call("FINAL(llm_query_batched(['a', 'b']))", id="c")
    with RLM(ScriptedLM(root), ScriptedLM(lambda m, t: "x"), limits=limits, cache=False) as m:
        for _ in range(2): assert m.completion("Which?", TEXT).answer == ["x", "x"]
        async def both(): return await asyncio.gather(*(m.acompletion("Which?", TEXT) for _ in range(4)))
        assert [r.answer for r in asyncio.run(both())] == [["x", "x"]]*4
        assert RLM(ScriptedLM(root), ScriptedLM(lambda m, t: "y"), limits=limits).completion("Which?", TEXT).answer == ["y", "y"]
    assert limits == before and m.limits is limits
    with pytest.raises(Exception): limits.max_steps = 9

@pytest.mark.parametrize("kw", [dict(max_steps=0), dict(max_steps=-1), dict(max_steps=True), dict(max_steps="3"), dict(max_depth=0), dict(max_steps=None),
    dict(max_cost=-0.1), dict(max_seconds=float("nan")), dict(max_tokens=-5), dict(max_sub_calls="many"), dict(max_errors=-1), dict(max_steps=2.5)])
def test_impossible_limits(kw):
    with pytest.raises(InputError): Limits(**kw)

def test_limits_must_be_limits():
    for o in (dict(max_steps=3), None, 3):
        with pytest.raises(InputError): RLM(ScriptedLM([]), limits=o)

# ---- steps and errors

@pytest.mark.parametrize("tools", [True, False])
def test_max_steps_leaves_a_last_chance(tools):
    def code(s): return f">>>{s}" if tools else f"```repl\n{s}\n```"
    m = make([code("x = 5"), code("x += 1"), "FINAL_VAR(x)"], limits=dict(max_steps=3), tools=tools)
    with m: r = m.completion("Which?", TEXT)
    assert (r.answer, r.status, r.limit, r.steps) == (6, "limit", "max_steps", 3) and "last step" in last(m)
    if tools: assert [o["params"].get("tool_choice") for o in m.models[0].requests] == ["auto", "auto", "none"]

@pytest.mark.parametrize("reply,answer", [("It may be Bergen.", "It may be Bergen."), (">>>y = 1", "I think Oslo"), ("FINAL(Bergen)", "Bergen"), (">>>FINAL('Bergen')", "Bergen"), ("FINAL_VAR(nothing)", "I think Oslo")])
def test_max_steps_best_answer(reply, answer):
    replies = [tool_call("x = 1", content="I think Oslo", id="a"), reply]
    r = ask(replies, limits=dict(max_steps=2))
    assert r.status == "limit" and r.limit == "max_steps" and r.answer == answer and "max_steps" in repr(r)
    if reply.startswith(">>>"): assert r.code_executions == 1

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_max_errors(shell):
    "Failures in a row; one that works begins the count anew"
    m = make([">>>1/0", ">>>1/0", ">>>1", ">>>1/0", ">>>1/0", ">>>1/0", "FINAL(gave up)"], limits=dict(max_errors=3), shell=shell)
    with m: r = m.completion("Which?", TEXT)
    assert (r.answer, r.limit, r.steps) == ("gave up", "max_errors", 7) and "last step" in last(m)

# ---- sub-calls

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_max_sub_calls_is_told_in_code(shell):
    code = """>>>a = llm_query('1')
try: llm_query_batched(['2', '3', '4'])
except Exception as e: print(type(e).__name__, e)
b = llm_query_batched(['2', '3'])
try: llm_query('4')
except Exception as e: print(type(e).__name__, e)
FINAL([a, b])"""
    r = ask([code], lambda m, t: m[0]["content"], limits=dict(max_sub_calls=3), shell=shell)
    assert r.answer == ["1", ["2", "3"]] and r.sub_calls == 3 and r.status == "done" and of(r, Cell)[0].output.count("LimitExceeded max_sub_calls") == 2

def nested(shell="inprocess", **limits):
    "A root whose children make calls of their own; every reply is 1,000 tokens"
    def root(messages, tools):
        if messages[-1]["role"] == "tool" or "last step" in messages[-1]["content"]: return usage(900, 100, "FINAL_VAR(got)")
        return usage(900, 100, tool_call("got = rlm_query_batched([f'q{i}' for i in range(4)], ['c']*4)\nfor o in got: print(o)", id="r"))
    def child(messages, tools):
        if messages[0]["role"] != "system": return usage(900, 100, "leaf")
        if "last step" in str(messages[-1]["content"]): return usage(900, 100, "FINAL(cut short)")
        return usage(900, 100, tool_call("FINAL(llm_query_batched([Q + str(i) for i in range(3)]))".replace("Q", repr(messages[1]["content"][10:12])), id="c"))
    m = RLM(ScriptedLM(root), ScriptedLM(child), limits=Limits(max_depth=2, **limits), shell=shell)
    with m: return m.completion("Which?", TEXT)

@pytest.mark.parametrize("n", [0, 1, 4, 9, 16])
def test_max_sub_calls_of_the_tree(n):
    "Steps of children and the calls they make all count"
    r = nested(max_sub_calls=n)
    made = sum(isinstance(e, Subcall) and not e.cached for e in r.trajectory) + sum(isinstance(e, Reply) and e.run != r.trajectory.run.id for e in r.trajectory)
    assert made == r.sub_calls <= n and len(r.answer) == 4
    if n == 16: assert r.answer == [["leaf"]*3]*4
    else: assert any("max_sub_calls" in o or "cut short" in o for o in map(str, r.answer))

@pytest.mark.parametrize("shell", ["inprocess", "process"])
@pytest.mark.parametrize("tokens", [None, 30_000, 15_000])
def test_max_tokens_of_the_tree(tokens, shell):
    "Children and their calls use the same tokens; whoever hits the limit, the root still answers"
    def root(messages, tools):
        if messages[-1]["role"] == "tool" or "last step" in messages[-1]["content"]: return "FINAL(done)"
        return tool_call("got = rlm_query_batched([f'q{i}' for i in range(4)], ['c']*4)\nfor o in got: print(o)", id="r")
    def child(messages, tools):
        if messages[0]["role"] != "system": return "leaf"
        return "FINAL(cut short)" if "last step" in str(messages[-1]["content"]) else tool_call("FINAL(llm_query_batched(['the '*2500 + str(i) for i in range(3)]))", id="c")
    m = RLM(ScriptedLM(root), ScriptedLM(child), limits=Limits(max_depth=2, max_tokens=tokens), shell=shell, cache=False)
    with m: r = m.completion("Which?", TEXT)
    assert r.usage.total_tokens > 30_000 if tokens is None else 5_000 < r.usage.total_tokens <= tokens*1.05
    assert r.answer == "done" and r.limit in ("max_tokens", None) and all(r.trajectory.of(o.id).status for o in r.trajectory.runs)
    assert sum(u.total_tokens for u in r.usage_by_depth.values()) == r.usage.total_tokens

@pytest.mark.parametrize("tokens", [1, 200, 1_000, 3_000, 20_000])
def test_max_tokens_ends_with_an_answer_where_one_was_given(tokens):
    m = make([tool_call(f"y{i} = 'x'*100", content=f"So far {i}", id=f"t{i}") for i in range(6)] + ["FINAL(all)"], limits=dict(max_tokens=tokens))
    with m: r = m.completion("Which?", TEXT)
    assert r.status == ("done" if tokens == 20_000 else "limit") and r.usage.total_tokens <= tokens*1.05
    if r.status == "limit": assert r.limit == "max_tokens" and r.answer == (f"So far {r.steps-1}" if r.steps else None)

def test_the_draft_is_the_best_answer_so_far():
    r = ask([">>>answer = dict(content='perhaps Oslo', ready=False)", ">>>llm_query('more')"] + [">>>1"]*20, lambda m, t: usage(50_000, 10), limits=dict(max_tokens=40_000))
    assert r.answer == "perhaps Oslo" and r.limit == "max_tokens"

PRICES = dict(input_cost_per_token=1e-6, output_cost_per_token=1e-5)

@pytest.mark.parametrize("model,params", [("anything", PRICES), ("gpt-4o-mini", {})])
def test_max_cost(model, params):
    "Over HTTP: what the server counts is what is charged, and a call for which there is no room is not made"
    def reply(messages, tools): return tool_call("got = llm_query_batched(['the ' * 2500 + str(i) for i in range(8)])\nprint(len(got))", id=f"c{len(messages)}") if tools and "last step" not in str(messages[-1]) and len(messages) < 9 else "FINAL(enough)" if tools else "ok"
    with serve(reply) as srv, RLM(model, base_url=srv.base_url, limits=Limits(max_cost=0.012 if params else 0.0025), cache=False, api_key="k", dialect="tools", **params) as m:
        r = m.completion("Which?", TEXT)
        u = sum(srv.usage.values(), type(r.usage)())
    assert (u.prompt_tokens, u.completion_tokens, u.calls) == (r.usage.prompt_tokens, r.usage.completion_tokens, r.usage.calls)
    assert 0 < r.cost <= m.limits.max_cost * 1.05 and len(of(r, Subcall)) >= 3, r.cost
    assert r.answer == "enough" and r.limit in (None, "max_cost") and r.cost == pytest.approx(m.usage.cost)
    assert any("max_cost" in (e.error or "") for e in of(r, Subcall)) or r.limit == "max_cost"

def test_unknown_prices_hold_nothing_back():
    r = ask([">>>FINAL(llm_query('q'))"], ["x"], limits=dict(max_cost=0.000001))
    assert r.answer == "x" and r.cost is None and "cost unknown" in repr(r)

# ---- seconds

FOREVER = dict(cell="while True: pass", sleeps="import time\ntime.sleep(60)", stubborn="import time\nend = time.monotonic() + 15\nwhile time.monotonic() < end:\n    try: time.sleep(9)\n    except BaseException: pass")

@pytest.mark.parametrize("shell", ["inprocess", "process"])
@pytest.mark.parametrize("code", ["cell", "sleeps", "stubborn"])
def test_max_seconds_during_a_cell(code, shell):
    "The cell is stopped, its variables stay, and the model is asked for its answer"
    m = make([Slow(0.2, tool_call(f"found = 'Bergen'\n{FOREVER[code]}")), Slow(0.2, "FINAL_VAR(found)")], limits=dict(max_seconds=3), shell=shell)
    start = time.monotonic()
    with m: r = m.completion("Which?", TEXT)
    assert time.monotonic() - start < 8 and "3 s of this run are over" in of(r, Cell)[0].output
    assert r.status in ("limit", "done") and (r.answer == "Bergen" or code == "stubborn" and shell == "process") and of(r, Cell)[0].error == "TimeoutError"

def test_max_seconds_during_a_root_call():
    async def first(messages): return tool_call("x = 1", content="Perhaps Oslo.", id="c")
    async def hang(messages, tools): return await asyncio.sleep(30) if len(messages) > 3 else await first(messages)
    start = time.monotonic()
    r = ask(hang, limits=dict(max_seconds=1))
    assert time.monotonic() - start < 8 and (r.status, r.limit, r.answer) == ("limit", "max_seconds", "Perhaps Oslo.")

@pytest.mark.parametrize("shell", ["inprocess", "process"])
@pytest.mark.parametrize("code", ["llm_query('q')", "llm_query_batched(['a', 'b', 'c'])", "await allm_query('q')", "rlm_query('q', 'c')", "rlm_query_batched(['a', 'b'])"])
def test_max_seconds_during_sub_calls(code, shell):
    "What is being waited for is dropped in time, wherever it hangs, children included"
    async def sub(messages, tools):
        await asyncio.sleep(30)
        return "never"
    m = make([f">>>print('before')\nx = {code}", "FINAL(what I have)"], sub, limits=dict(max_seconds=1.5, max_depth=2), shell=shell)
    start = time.monotonic()
    with m: r = m.completion("Which?", TEXT)
    took = time.monotonic() - start
    assert took < 8 and r.status in ("limit", "done") and "before" in of(r, Cell)[0].output
    assert all(r.trajectory.of(o.id).status for o in r.trajectory.runs), [r.trajectory.of(o.id).status for o in r.trajectory.runs]
    assert isinstance(r.trajectory[-1], End) and r.trajectory[-1].run == r.trajectory.run.id

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_max_seconds_in_a_child(shell):
    "A child's endless cell is stopped with the whole, whose answer still comes"
    def child(messages, tools): return tool_call("while True: pass", id="c") if len(messages) < 4 else "FINAL(child)"
    m = make([">>>x = rlm_query('q', 'c')\nprint('got', x)", "FINAL(root)"], child, limits=dict(max_seconds=2, max_depth=2), shell=shell)
    start = time.monotonic()
    with m: r = m.completion("Which?", TEXT)
    assert time.monotonic() - start < 8 and r.status in ("limit", "done") and r.answer in ("root", None)
    assert [r.trajectory.of(o.id).status for o in r.trajectory.runs][1:] != [None]

def test_max_seconds_over_http():
    with serve(lambda m, t: Slow(30, "never")) as srv:
        start = time.monotonic()
        r = RLM("any", base_url=srv.base_url, limits=Limits(max_seconds=1)).completion("Which?", TEXT)
        assert time.monotonic() - start < 8 and r.limit == "max_seconds" and r.answer is None
        deadline = time.monotonic() + 5
        while srv.in_flight and time.monotonic() < deadline: time.sleep(0.01)
        assert srv.in_flight == 0

# ---- approval

@pytest.mark.parametrize("shell", ["inprocess", "process"])
def test_on_fanout(shell):
    "Told before a batch, with size and price; refused batches are told to the code, single calls go through"
    plans = []
    def approve(plan):
        plans.append(plan)
        return plan.calls < 3
    code = """>>>print(llm_query_batched(['a', 'b']))
try: llm_query_batched(['a', 'b', 'c'])
except Exception as e: print('no:', e)
FINAL([llm_query('one'), llm_query_batched(['only'])])"""
    with serve(lambda m, t: "ok" if not t else tool_call(code[3:])) as srv:
        with RLM("any", base_url=srv.base_url, on_fanout=approve, shell=shell, cache=False, dialect="tools", **PRICES) as m: r = m.completion("Which?", TEXT)
    assert r.answer == ["ok", ["ok"]] and [o.calls for o in plans] == [2, 3] and all(o.tokens > 0 and o.cost > 0 and o.model == "any" for o in plans)
    assert "no: A batch of 3 calls" in of(r, Cell)[0].output and "not approved" in of(r, Cell)[0].output and r.sub_calls == 4

def test_on_fanout_that_fails_makes_no_calls():
    def fails(plan): raise ValueError("who knows")
    r = ask([">>>llm_query_batched(['a', 'b'])", "FINAL(no)"], lambda m, t: "x", on_fanout=fails)
    assert r.answer == "no" and r.sub_calls == 0 and "who knows" in of(r, Cell)[0].output

@pytest.mark.parametrize("said", [0, "", "no", [], "async"])
def test_on_fanout_says_yes_or_nothing(said):
    "Whatever else it answers refuses the batch, as does a coroutine, whose answer nobody has waited for"
    async def later(plan): return False
    approve = later if said == "async" else lambda plan: said
    r = ask([">>>llm_query_batched(['a', 'b'])", "FINAL(no)"], lambda m, t: "x", on_fanout=approve)
    assert r.answer == "no" and r.sub_calls == 0 and "not approved" in of(r, Cell)[0].output

def test_on_fanout_of_children():
    plans = []
    r = ask([">>>rlm_query_batched(['a', 'b'], ['c', 'd'])", "FINAL(no)"], lambda m, t: "x", on_fanout=lambda p: plans.append(p) or False, limits=dict(max_depth=2))
    assert r.answer == "no" and not r.trajectory.children and plans[0].calls == 2 and "not approved" in of(r, Cell)[0].output
