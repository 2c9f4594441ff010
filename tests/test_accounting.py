"Every account of a question agrees with the server's own count, to the token, however the question is asked and ended"
import asyncio, hashlib, json, random, re, tempfile, time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ledger import Ledger, paid, tasks, total, until
from rlm import RLM, Limits
from rlm import lm as lm_module
from rlm.cache import Cache
from rlm.events import Reply, Subcall, Usage
from rlm.lm import LM, litellm_module
from rlm.offline import Fault, Slow, serve, tool_call
from rlm.trajectory import Trajectory

pytestmark = [pytest.mark.filterwarnings(f"ignore:{o}") for o in ("Accessing the 'model_", "Item.*ReadOnly")] # LiteLLM's, with the newest pydantic
PRICES = dict(input_cost_per_token=1e-6, output_cost_per_token=1e-5)
few = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@pytest.fixture(autouse=True, scope="module")
def quick():
    litellm_module()
    before,lm_module.first_pause = lm_module.first_pause,0.005
    yield
    lm_module.first_pause = before

# ---- a model that does what the question says

def text_of(m): return m["content"] if isinstance(m.get("content"), str) else ""

def whole(message, model, key):
    "A response with some usage of its own, always the same for the same request"
    rng = random.Random(key)
    if isinstance(message, str): message = dict(role="assistant", content=message)
    p,c = rng.randrange(1, 2000),rng.randrange(1, 500)
    usage = dict(prompt_tokens=p, completion_tokens=c, total_tokens=p+c)
    return dict(id="x", object="chat.completion", created=0, model=model, choices=[dict(index=0, finish_reason="stop", message=message)], usage=usage)

class Model:
    "Runs the cells of the question one after the other; its sub-calls reply with numbers, now and then wrongly, or not at all at first"
    def __init__(self, cells, faults=0., seconds=0.): self.cells,self.faults,self.seconds,self.seen,self.refused = cells,faults,seconds,{},0

    def __call__(self, messages, params):
        key = hashlib.sha1(json.dumps(messages).encode()).hexdigest()
        n = self.seen[key] = self.seen.get(key, 0) + 1
        rng = random.Random(f"{key}{n}")
        if rng.random() < self.faults: return rng.choice([Fault(429, headers={"Retry-After": "0.01"}), Fault(500), Fault("reset"), Fault("cut", body="x"*500)])
        reply,model = self.said(messages, params)
        return Slow(rng.random()*self.seconds, whole(reply, model, key + str(n)))

    def said(self, messages, params):
        said,last = "\n".join(map(text_of, messages)),text_of(messages[-1])
        if "Decide whether the answer" in last:
            self.refused += 1
            return ("REFUSE: look again" if self.refused == 1 else "ACCEPT"),"judge"
        done = re.findall(r"stage (\d+) ok", said)
        if "nearly too long for you" in last: return "So far: " + ", ".join(f"stage {o} ok" for o in done),"root"
        if messages[0]["role"] != "system": return ("no number" if "wrong" in last and "Reply again" not in last else "7"),"sub"
        child = "leaf" in text_of(messages[1])
        cells = ["got = llm_query_batched(['x' + context, 'y' + context])"] if child else self.cells
        i = max(map(int, done), default=-1) + 1
        code = cells[i] + f"\nprint('stage', {i}, 'ok')" if i < len(cells) and "no more code" not in last else "FINAL(7)"
        if "no more code" in last: return "FINAL(7)","sub" if child else "root"
        return (tool_call(code, id=f"c{len(messages)}") if params.get("tools") else f"```repl\n{code}\n```"),"sub" if child else "root"

def asks(kind, n, x):
    "A cell"
    return dict(
        batch=f"got = llm_query_batched([f'p{x} {{i}}' for i in range({n})])", same=f"got = llm_query_batched(['same'] * {n}) + [llm_query('same')]",
        one=f"got = [llm_query(f'one {{i}}') for i in range({n})]", typed=f"got = llm_query_batched([f'{{\"wrong\" * (i % 2)}} {x} {{i}}' for i in range({n})], response_format=int)",
        gather=f"import asyncio\ngot = await asyncio.gather(*(allm_query(f'g{x} {{i}}') for i in range({n})))", long=f"print('word ' * 1200 + '{x}')",
        tree=f"got = rlm_query_batched([f'leaf {x} {{i}}' for i in range({min(n, 4)})], [f'c{x}{{i}}' for i in range({min(n, 4)})])")[kind]

plans = st.lists(st.tuples(st.sampled_from("batch same one typed gather tree long".split()), st.integers(1, 16)), min_size=2, max_size=5)

def counted(srv): return {f"openai/{k}": (u.prompt_tokens, u.completion_tokens, u.calls) for k,u in srv.usage.items()}
def sums(usages): return {k: total([u]) for k,u in usages.items() if u.calls}

def agree(srv, m, r, budget):
    "All accounts are the server's"
    there,n = counted(srv),total(srv.usage.values())
    assert n == total([r.usage]) == total([m.usage]) == total([m.cost_summary()["total"]]) == total([budget.usage]), (n, r.usage, m.usage, budget.usage)
    assert there == sums(r.usage_by_model) == sums(m.cost_summary()["models"])
    by_depth = {}
    for (d,model),u in r.usage_by_depth.items(): by_depth[model] = by_depth.get(model, Usage()) + u
    assert there == sums(by_depth)
    cost = n[0]*1e-6 + n[1]*1e-5
    assert r.cost == pytest.approx(cost) and budget.cost == pytest.approx(cost) and m.usage.cost == pytest.approx(cost)
    assert total(e.usage for e in r.trajectory if isinstance(e, (Reply, Subcall))) == n
    assert r.sub_calls + r.cache_hits == sum(isinstance(e, Subcall) for e in r.trajectory) + sum(isinstance(e, Reply) and e.run != r.trajectory.run.id for e in r.trajectory)

def make(srv, **kw):
    lm = dict(base_url=srv.base_url, timeout=10, retries=8, max_concurrency=16, **PRICES)
    return RLM(LM("openai/root", **lm, **kw.pop("root", {})), LM("openai/sub", **lm), **dict(dict(limits=Limits(max_depth=2)), **kw)),lm

# ---- questions that end

@few
@given(plan=plans, dialect=st.sampled_from(["tools", "fenced"]), stream=st.booleans(), verify=st.booleans(), compact=st.booleans(), faults=st.sampled_from([0, 0.15]),
       cache=st.sampled_from([None, False]), limited=st.booleans())
def test_accounts_agree(plan, dialect, stream, verify, compact, faults, cache, limited):
    model = Model([asks(k, n, x) for x,(k,n) in enumerate(plan)], faults)
    with serve(lambda messages, tools, **p: model(messages, dict(tools=tools)), record=False) as srv:
        m,lm = make(srv, dialect=dialect, verify=LM("openai/judge", base_url=srv.base_url, retries=8, **PRICES) if verify else None, compact=0.5 if compact else False, cache=cache,
                    root=dict(window=3000 if compact else None), limits=Limits(max_depth=2, max_tokens=10**7 if limited else None, max_cost=100. if limited else None))
        with m, m.session("some text") as s:
            if stream:
                with s.stream("Which?", int) as events:
                    for _ in events: pass
                r = events.result
            else: r = s.completion("Which?", int)
            assert r.parsed == 7 and r.status == "done", r
            agree(srv, m, r, s.budget)
            assert s.budget._tokens == s.budget._sub_tokens == 0 and s.budget._cost == pytest.approx(0)
            assert s.budget.sub_calls == r.sub_calls
            again = s.completion("Which, then?")
            assert total(srv.usage.values()) == total([m.usage]) == total([r.usage + again.usage]) and total([s.budget.usage]) == total([again.usage])

def test_accounts_agree_from_another_process():
    model = Model([asks(k, 6, x) for x,k in enumerate(("batch", "typed", "same", "tree", "gather"))], 0.1)
    with serve(lambda messages, tools, **p: model(messages, dict(tools=tools)), record=False) as srv:
        m,_ = make(srv, dialect="tools", shell="process")
        with m, m.session("some text") as s: agree(srv, m, s.completion("Which?"), s.budget)

def test_many_questions_at_once():
    "One RLM, 12 questions in 4 threads and on a loop, a cache between them"
    model = Model([asks(k, 8, x) for x,k in enumerate(("batch", "same", "tree"))], 0.05)
    with serve(lambda messages, tools, **p: model(messages, dict(tools=tools)), record=False) as srv:
        m,_ = make(srv, dialect="tools", cache=Cache())
        async def main():
            return await asyncio.gather(*(m.acompletion(f"Which {i}?", "text") for i in range(8)), *(asyncio.to_thread(m.completion, f"Which {i}?", "text") for i in range(4)))
        with m: rs = asyncio.run(main())
        assert total(srv.usage.values()) == total([m.usage]) == total(r.usage for r in rs) and m.cost_summary()["runs"] == 12
        assert counted(srv) == sums(m.cost_summary()["models"])

# ---- questions that are stopped

@settings(few, max_examples=2)
@given(seed=st.integers(0, 10**6), how=st.sampled_from(["cancel", "max_seconds", "leave", "max_sub_calls"]))
def test_accounts_of_stopped_runs(seed, how):
    "What has arrived is counted, once, also what arrives within a moment of the stop"
    rng = random.Random(seed)
    model = Model([asks(k, 6, x) for x,k in enumerate(("tree", "batch", "tree", "gather"))], 0, 0.25)
    with Ledger(model).start() as srv, tempfile.TemporaryDirectory() as place:
        limits = dict(max_seconds=dict(max_seconds=rng.random() + 0.1), max_sub_calls=dict(max_sub_calls=rng.randrange(30))).get(how, {})
        async def one(i):
            m,_ = make(srv, dialect="tools", limits=Limits(max_depth=2, **limits), cache=False)
            log = Path(place)/f"{i}.jsonl"
            if how == "leave":
                async for e in (s := m.astream("Which?", f"text {i}", log=log)):
                    if rng.random() < 0.03: break
                await asyncio.to_thread(s.close)
            else:
                task = asyncio.create_task(m.acompletion("Which?", f"text {i}", log=log))
                if how == "cancel":
                    await asyncio.sleep(rng.random())
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(m.close)
            return m,log
        async def main(): return await asyncio.gather(*(one(i) for i in range(4)))
        got = asyncio.run(main())
        assert until(lambda: not srv.in_flight)
        until(lambda: not tasks())
        logs = [Trajectory.load(log) if log.exists() else Trajectory() for _,log in got]
        numbers,odd = paid(logs)
        assert not odd and set(numbers.values()) <= {1} and numbers.keys() <= srv.sent.keys()
        assert len(srv.sent.keys() - numbers.keys()) <= len(srv.sent) // 50 # those that were still on the way after the last moment
        for (m,_),t in zip(got, logs): assert total([m.usage]) == total([t.usage])

# ---- limits, with many calls in flight

def flood(n, children, limits, **kw):
    "The result of a question that would make 400 calls of 2,000 tokens, `n` at once, and the server"
    async def held(): # the first ones until all are there
        end = time.monotonic() + 3
        while srv.in_flight_max < n - 2 and time.monotonic() < end: await asyncio.sleep(0.01)
        return tokens("7")
    def reply(messages, tools):
        if "no more code" in text_of(messages[-1]) or messages[-1]["role"] == "tool" and messages[0]["role"] == "system": return tokens("FINAL(7)")
        if messages[0]["role"] != "system": return held()
        if "leaf" in text_of(messages[1]): return tokens(tool_call(f"FINAL(len(llm_query_batched([str(i) + context for i in range(50)])))", id="c"))
        code = "got = rlm_query_batched([f'leaf {i}' for i in range(8)], [f'c{i}' for i in range(8)])" if children else "got = llm_query_batched([str(i) for i in range(400)])"
        return tokens(tool_call(code, id="r"))
    def tokens(o): return whole(o, "m", 0) | dict(usage=dict(prompt_tokens=1000, completion_tokens=1000, total_tokens=2000))
    with serve(reply, record=False) as srv:
        lm = LM("openai/m", base_url=srv.base_url, max_concurrency=n, timeout=30, **PRICES)
        with RLM(lm, limits=Limits(max_depth=2, **limits), cache=False, dialect="tools") as m: r = m.completion("Which?", "text")
        return r,srv.in_flight_max,total(srv.usage.values())

@pytest.mark.parametrize("children", [False, True], ids=["batch", "children"])
@pytest.mark.parametrize("limits", [dict(max_tokens=300_000), dict(max_cost=1.65), dict(max_sub_tokens=300_000)], ids=lambda o: next(iter(o)))
def test_limits_hold_with_64_in_flight(limits, children):
    r,at_once,there = flood(64, children, limits)
    (name,limit), = limits.items()
    used = r.cost if name == "max_cost" else r.usage.total_tokens
    one = 0.011 if name == "max_cost" else 2000
    assert at_once >= 60 and there == total([r.usage])
    assert limit*0.9 <= used <= limit + (64 + 1)*one, used
    assert r.status in ("limit", "done") and sum("max_" in (e.error or "") for e in r.trajectory if isinstance(e, Subcall)) > 50

def test_sub_calls_hold_with_64_in_flight():
    for children in (False, True):
        r,at_once,there = flood(64, children, dict(max_sub_calls=150))
        assert r.sub_calls <= 150 and there == total([r.usage])
