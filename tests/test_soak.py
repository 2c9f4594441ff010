"""Hundreds of questions at once to a provider that does everything wrong now and then, the same way each time: each one ends well or
with a name, nothing is left over, and nothing is paid twice."""
import asyncio, gc, hashlib, itertools, json, random, re, tempfile, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from ledger import Ledger, children, files, memory, paid, sockets, tasks, threads, total, until
from rlm import RLM, Limits
from rlm import lm as lm_module
from rlm.cache import Cache
from rlm.events import RLMError
from rlm.lm import LM, litellm_module
from rlm.offline import Fault, Slow, tool_call, tool_calls
from rlm.sandbox import WorkerShell
from rlm.session import Session
from rlm.shell import InProcessShell
from rlm.trajectory import Trajectory

pytestmark = [pytest.mark.filterwarnings(f"ignore:{o}") for o in ("Accessing the 'model_", "Item.*ReadOnly", "Pydantic serializer")] # LiteLLM's, with the newest pydantic
PATIENCE = 3 # seconds for one reply

# ---- the provider

JSON = {"content-type": "application/json"}
def whole(finish="stop", **message):
    return dict(id="x", object="chat.completion", created=0, model="m", usage=dict(prompt_tokens=11, completion_tokens=3, total_tokens=14),
                choices=[dict(index=0, finish_reason=finish, message=dict(role="assistant", **message))])
def call(name="run_repl", arguments="{}", id="a"): return dict(id=id, type="function", function=dict(name=name, arguments=arguments))

faults = dict(
    storm=Fault(429), storm_with_pause=Fault(429, headers={"Retry-After": "0.05"}), storm_for_an_hour=Fault(429, headers={"Retry-After": "3600"}),
    error_500=Fault(500), error_502=Fault(502, body="<html><h1>Bad Gateway</h1>"), error_503=Fault(503), hang=Fault("hang"),
    stall=Fault("stall", body="One, two,"), drop=Fault("drop"), drop_later=Fault("drop", body="One, two,"), reset=Fault("reset"), reset_later=Fault("reset", body="One, two,"),
    cut=Fault("cut", body="x"*5000), html=Fault(200, body="<html>Welcome!", headers={"content-type": "text/html"}), html_called_json=Fault(200, body="<html>", headers=JSON),
    half=Fault(200, body=json.dumps(whole(content="An answer that ends in the mid"))[:150], headers=JSON), empty=Fault(200, body="", headers=JSON),
    null=Fault(200, body="null", headers=JSON), no_choices=Fault(200, body=json.dumps(whole() | dict(choices=[])), headers=JSON),
    parts=Fault(200, body=json.dumps(whole(content=[dict(type="text", text="a")])), headers=JSON))
final = dict(too_long=Fault(400, "This model's maximum context length is 8192 tokens"), refused=Fault(400, "temperature must be 1"), no_model=Fault(404), no_key=Fault(401))
odd = dict(
    none=whole(content=None), nothing=whole(), blank=whole(content=" "), refusal=whole(content=None, refusal="I cannot."), reasoning=whole(content=None, reasoning_content="hm"),
    cut_short=whole("length", content="An answer that"), filtered=whole("content_filter", content=None), nul=whole(content="a\0b"), unicode=whole(content="é中😀\u2028"),
    not_json=whole("tool_calls", content=None, tool_calls=[call(arguments="print(1")]), unknown=whole("tool_calls", content=None, tool_calls=[call("no_such_tool")]),
    twice=whole("tool_calls", content=None, tool_calls=[call(), call()]), no_id=whole("tool_calls", content=None, tool_calls=[call(id=None)]),
    bad_code=tool_call("this is no Python", id="b"), raises=tool_call("1/0", id="z"), many=tool_calls(*[tool_call("1", id=f"m{i}") for i in range(5)]))
huge = "word" * 2_500_000 # one piece, also when it is streamed

def text_of(m): return m["content"] if isinstance(m.get("content"), str) else ""

class Provider:
    "Knows the answers, and misbehaves with each request as its seed says, however the requests are mixed"
    def __init__(self, seed, rate): self.seed,self.rate,self.seen,self.done = seed,rate,Counter(),Counter()

    async def __call__(self, messages, params):
        key = hashlib.sha1(re.sub(r"\[step .*?\]", "", json.dumps(messages)).encode()).hexdigest()
        self.seen[key] += 1
        rng = random.Random(f"{self.seed} {key} {self.seen[key]}")
        right = honest(messages, params)
        if rng.random() > self.rate: return Slow(rng.random()*0.02, right)
        special = dict(slow=Slow(rng.random()*0.5, right), drip=Slow(0.005, right, drip=True), huge=huge)
        kinds = dict(faults=faults, odd=odd, final=final) | {k: {k: v} for k,v in special.items()}
        kind = kinds[rng.choices(list(kinds), [60, 22, 5, 8, 4, 1])[0]]
        name = rng.choice(list(kind))
        self.done[name] += 1
        return kind[name]

def honest(messages, params):
    "What a model that understands its task says"
    last = text_of(messages[-1])
    if "Decide whether the answer" in last: return "ACCEPT"
    said = "\n".join(map(text_of, messages))
    if "nearly too long for you" in last: return "So far: " + ", ".join(sorted(set(re.findall(r"stage \d ok", said))))
    if messages[0]["role"] == "user" and "Question: Task plain" in last: return "20"
    if m := re.search(r"double (\d+)", last if messages[0]["role"] != "system" else ""): return str(2*int(m[1]))
    kind,x = re.findall(r"Task (\w+) (\d+)", said)[-1]
    fresh = said.rpartition(f"Task {kind} {x}")[2]
    stages = tasks_of(kind, int(x))
    i = max([int(o) for o in re.findall(r"stage (\d) ok", fresh)], default=-1) + 1
    if "no more code will run" in last or params.get("tool_choice") == "none": return "FINAL_VAR(got)"
    code = stages[i] + f"\nprint('stage', {i}, 'ok')" if i < len(stages) else "FINAL(got)"
    if i == len(stages) and int(x) % 3 == 0: return "That is it.\nFINAL_VAR(got)"
    return tool_call(code, id=f"c{len(messages)}") if params.get("tools") else f"I run this.\n```repl\n{code}\n```"

# ---- what is asked

def tasks_of(kind, x):
    "The cells that lead to the answer"
    doubles = f"[f'double {{i}}' for i in range({x}00, {x}00 + {SIZES.get(kind)})]"
    return dict(
        plain=["n = context.count('word')", "got = n"],
        one=[f"got = llm_query('double {x}')"],
        same=[f"got = [llm_query('double {x % 7}') for _ in range(3)]"],
        batch=[f"got = llm_query_batched({doubles})", "print(got)"],
        typed=[f"res = llm_query_batched({doubles}, response_format=int)", "got = [o for o in res if isinstance(o, int)]"],
        tree=[f"got = rlm_query_batched([f'Task one {{i}}' for i in range({x}00, {x}00 + 3)], ['word ' * 50] * 3)"],
        gather=[f"import asyncio\ngot = await asyncio.gather(*map(allm_query, {doubles}))"],
        long=["print('a' * 6000)", "print('b' * 6000)", "print('c' * 6000)", f"got = llm_query('double {x}')"],
        error=["got = 5", "try: 1/0\nexcept ZeroDivisionError: print('caught')", "got += 1"])[kind]

SIZES = dict(batch=12, typed=6, gather=5)
KINDS = "plain one same batch typed tree gather long error".split()
ODDLY = {o["choices"][0]["message"].get("content") or "" for o in odd.values() if "choices" in o} | {"I cannot.", huge}

def is_right(kind, x, answer):
    "Whether `answer` is what it should be; a failed call of a batch leaves a text that says so, and odd replies go through"
    def told(o, n): return o == str(2*n) or isinstance(o, str) and (o.startswith("ERROR") or o in ODDLY)
    if kind in ("plain", "error"): return answer == dict(plain=20, error=6)[kind]
    if kind in ("one", "long"): return told(answer, x)
    if kind == "same": return len(answer) == 3 and all(told(o, x % 7) for o in answer)
    if kind == "typed": return set(answer) <= {2*i for i in range(x*100, x*100 + SIZES[kind])}
    return len(answer) == SIZES.get(kind, 3) and all(told(o, i) for i,o in enumerate(answer, x*100))

# ---- asking

class Asked:
    "One question, made by chance out of its number, and what came of it"
    def __init__(self, x, srv, place, caches, processes):
        self.x,self.log,rng = x,place/f"{x}.jsonl",random.Random(f"{srv.reply.seed} run {x}")
        self.rng,self.kind = rng,rng.choice(KINDS)
        self.mode = rng.choices(["await", "thread", "stream", "astream", "leave", "cancel", "session"], [6, 3, 2, 2, 1, 2, 2])[0]
        self.wanted = dict(plain=int, typed=list[int]).get(self.kind) if rng.random() < 0.6 else None
        limit = dict(rng.choices([{}, dict(max_tokens=rng.randrange(500, 30_000)), dict(max_sub_calls=4), dict(max_seconds=1.5), dict(max_steps=2), dict(max_errors=1)],
                                 [12, 1, 1, 1, 1, 1])[0])
        kw = dict(base_url=srv.base_url, timeout=PATIENCE, retries=3, max_concurrency=8)
        root,sub = LM("openai/root", window=4000 if self.kind == "long" else None, **kw),LM("openai/sub", **kw)
        self.rlm = RLM(root, sub, shell="process" if rng.random() < processes else "inprocess", limits=Limits(**dict(max_steps=14, max_depth=2) | limit), cache=rng.choice(caches),
            verify=sub if rng.random() < 0.15 else None, dialect=rng.choice(["tools", "fenced"]), compact=0.6 if self.kind == "long" else False, offload=rng.random() < 0.2,
            direct_below=1000 if self.kind == "plain" and rng.random() < 0.3 else 0, keep=rng.choice([0, 4]))
        self.results,self.outcome,self.took = [],None,0

    def __str__(self): return f"{self.x} ({self.kind}, {self.mode}, {self.rlm.shell}): {self.outcome}"

async def ask(self):
    q,context,m,mode,rng = f"Task {self.kind} {self.x}","word " * 20,self.rlm,self.mode,self.rng
    args = q,context,self.wanted,self.log
    if mode == "await": return [await m.acompletion(*args)]
    if mode == "thread": return [await asyncio.to_thread(m.completion, *args)]
    if mode == "stream":
        def listened():
            s = m.stream(*args)
            for _ in s: pass
            return s.result
        return [await asyncio.to_thread(listened)]
    if mode in ("astream", "leave"):
        s,n = m.astream(*args),rng.randrange(2, 40) if mode == "leave" else 10**9
        async for e in s:
            if (n := n-1) < 0: break
        s.close()
        return [s.result] if s.result else []
    if mode == "session":
        with m.session(context, self.log) as s:
            res = [await s.acompletion(q, self.wanted)]
            return res + [await s.acompletion(q, self.wanted)]
    task = asyncio.create_task(m.acompletion(*args))
    await asyncio.wait([task], timeout=rng.random() * 1.5)
    task.cancel()
    return [await task]

async def run(self):
    "Ask, and note the outcome; nothing but an `RLMError` may come instead of a result"
    begun = time.monotonic()
    try: self.results = await asyncio.wait_for(ask(self), 120)
    except RLMError as e: self.outcome = type(e).__name__
    except asyncio.CancelledError: self.outcome = "cancelled"
    except TimeoutError: self.outcome = "HUNG"
    except Exception as e: self.outcome = f"UNNAMED {type(e).__name__}: {e}"
    else:
        r = self.results[-1] if self.results else None
        self.outcome = "left" if r is None else r.limit or r.status
        for r in self.results:
            direct = r.trajectory.run.dialect == "direct" and str(r.answer) in ODDLY | {"20"}
            if r.status == "done" and not direct and not is_right(self.kind, self.x, r.parsed if self.wanted else r.answer): self.outcome = f"WRONG {r.answer!r:.300}"
    self.took = time.monotonic() - begun
    await asyncio.to_thread(self.rlm.close)
    self.reported = [(o.trajectory.run.id, o.usage) for o in self.results]
    self.results,self.rlm.last = [],None # which hold all that was said

async def run_all(asked, at_once, watch):
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(at_once + 4))
    slots = asyncio.Semaphore(at_once)
    async def one(o):
        async with slots: await run(o)
        watch(o)
    await asyncio.gather(*map(one, asked))

# ---- the test

KEPT = RLM, Session, InProcessShell, WorkerShell, Trajectory

def left():
    "Objects that should be gone with their runs"
    gc.collect()
    return Counter(type(o).__name__ for o in gc.get_objects() if type(o) in KEPT)

def soak(n, seed, place, rate, processes, at_once, monkeypatch):
    litellm_module()
    monkeypatch.setattr(lm_module, "first_pause", 0.01)
    for o in ("tmp", "logs"): (place/o).mkdir()
    there = dict(threads=lambda: [o for o in threads() if o != "rlm-spawner"], children=children, objects=left, files=files, tasks=tasks)
    base = {k: Counter(f()) for k,f in there.items()}
    def more(k): return Counter(there[k]()) - base[k]
    monkeypatch.setenv("TMPDIR", str(place/"tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with Ledger(Provider(seed, 0)).start() as srv: # so that everything is there that stays
        asyncio.run(run_all([Asked(x, srv, place, [None], 1) for x in range(4)], 4, lambda o: None))
    base["files"] = Counter(files())
    sizes,finished = [],itertools.count(1)
    def watch(o):
        if next(finished) % 50 == 0: sizes.append(round(memory()))
    begun = time.monotonic()
    with Ledger(Provider(seed, rate)).start() as srv:
        caches = [None, None, False, Cache(), Cache(place/"calls.sqlite")]
        asked = [Asked(x, srv, place/"logs", caches, processes) for x in range(n)]
        asyncio.run(run_all(asked, at_once, watch))
        took = time.monotonic() - begun
        assert until(lambda: not more("tasks") and not srv.in_flight), (more("tasks"), srv.in_flight)
        sent,texts = srv.sent,srv.texts
    logs = [Trajectory.load(o.log) if o.log.exists() else Trajectory() for o in asked]
    numbers,odd = paid(logs)
    outcomes = Counter(o.outcome.split()[0] for o in asked)
    print(f"\n{n} runs in {took:.0f} s, the longest {max(o.took for o in asked):.1f} s; {len(sent)} replies, {sum(srv.reply.done.values())} oddities; {outcomes}")
    print(dict(srv.reply.done), "memory", sizes)
    pairs = list(zip(asked, logs))
    report = dict(bad=[str(o) for o in asked if o.outcome.split()[0] in ("HUNG", "UNNAMED", "WRONG")], twice={k: v for k,v in numbers.items() if v > 1},
        lost={k: texts[k] for k in sent.keys() - numbers.keys() if huge[:20] not in texts[k]}, # 10 MB are sent before they are read unsent={k: texts[k] for k in numbers.keys() - sent.keys()}, odd=odd,
        sums=[(str(o), total([o.rlm.usage]), total([t.usage])) for o,t in pairs if total([o.rlm.usage]) != total([t.usage])],
        results=[str(o) for o,t in pairs for id,u in o.reported if total([t.of(id).usage]) != total([u])],
        unended=[str(o) for o,t in pairs if any(not t.of(r.id).status for r in t.runs if not r.depth or o.outcome not in ("cancelled", "left"))])
    if len(report["lost"]) <= len(sent)//1000: report["lost"] = {} # that were on the way when their run was stopped
    for k,v in report.items():
        if v: print(k, len(v), list(v.items() if isinstance(v, dict) else v)[:8])
    del asked, logs, pairs, srv, caches, odd
    gc.collect()
    until(lambda: not more("threads"), 15)
    leaks = {k: more(k) for k in there if more(k)} | {o.name: "temporary" for o in (place/"tmp").iterdir()}
    print("left over:", leaks, "sockets:", sockets())
    assert not leaks and not any(report.values()) and sockets() < 50
    return outcomes,sizes

def test_soak(tmp_path, monkeypatch):
    outcomes,_ = soak(40, 1, tmp_path, 0.12, 0.05, 12, monkeypatch)
    assert outcomes["done"] > 20

@pytest.mark.long
def test_soak_long(tmp_path, monkeypatch):
    outcomes,sizes = soak(1000, 2, tmp_path, 0.12, 0.08, 16, monkeypatch)
    assert outcomes["done"] > 500 and sizes[-1] - sizes[len(sizes)//3] < 100, sizes
