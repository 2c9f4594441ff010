"Batches: here, in pools of threads and processes, on a Dask cluster; interrupted, resumed, with workers that die."
import asyncio, multiprocessing, os, pickle, signal, subprocess, sys, textwrap, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import BaseModel

from rlm.batch import Lease, Parcel, Watch, abatch, as_item, batch
from rlm.events import InputError, Limits, Reply, Usage
from rlm.model import RLM
from rlm.offline import Fault, ScriptedLM, serve, tool_call
from rlm.trajectory import Trajectory

facts = {"Acme": "Acme was late twice in May.", "Bolt": "Bolt was never late in May.", "Cord": "Cord was late once in June."}
questions = [(f"How often was {k} late?", v) for k,v in facts.items()]

def words(messages, tools): return tool_call("FINAL(len(context.split()))")
def asked(server): return len(server.requests)

@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool: yield pool

@pytest.fixture(params=["here", "threads", "processes"])
def executor(request):
    if request.param == "here": yield None
    elif request.param == "processes": yield request.getfixturevalue("processes")
    else:
        with ThreadPoolExecutor(2) as pool: yield pool

@pytest.fixture
def server():
    with serve(words) as srv: yield srv

def over(server, **kw): return RLM("openai/x", base_url=server.base_url, **kw)

# ---- the same everywhere

def test_everywhere(executor, server, tmp_path):
    heard = []
    rlm = over(server, on_event=heard.append)
    items = [("How many words?", " ".join("a"*n)) for n in range(1, 6)] + [("How many?", tmp_path/"gone.txt")]
    res = batch(rlm, items, executor=executor, log_dir=tmp_path/"logs", progress=False)
    assert [o.answer for o in res] == [1, 2, 3, 4, 5, None] and [o.status for o in res] == ["done"]*5 + ["error"]
    assert "gone.txt" in res[5].error and res[0].usage.calls == 1 and all(o.shell is None for o in res)
    assert asked(server) == 5 and rlm.usage.calls == 5 and rlm.usage.prompt_tokens == sum(o.prompt_tokens for o in server.usage.values())
    assert rlm.cost_summary()["runs"] == 5 and sum(isinstance(e, Reply) for e in heard) == 5
    logs = sorted((tmp_path/"logs").iterdir())
    assert len(logs) == 5 and {Trajectory.load(o).status for o in logs} == {"done"} and {o.log for o in res[:5]} == {*logs}
    again = batch(rlm, items, executor=executor, log_dir=tmp_path/"logs", progress=False)
    assert [o.answer for o in again] == [1, 2, 3, 4, 5, None] and all(o.reused for o in again[:5])
    assert asked(server) == 5 and rlm.usage.calls == 5 and sorted((tmp_path/"logs").iterdir()) == logs
    assert not rlm._open

def test_extractive(executor):
    res = batch(RLM("offline/extractive"), questions, executor=executor, progress=False)
    assert [o.status for o in res] == ["done"]*3 and [o.query for o in res] == [q for q,_ in questions]
    alone = [RLM("offline/extractive").completion(q, c).answer for q,c in questions]
    assert [o.answer for o in res] == alone

def test_types(executor, server, tmp_path):
    items = [dict(query="How many?", context="a b"), dict(query="How many?", context="a", response_format=list[int])]
    res = batch(over(server, limits=Limits(max_steps=2)), items, response_format=int, executor=executor, progress=False, log_dir=tmp_path)
    assert (res[0].parsed, res[0].status) == (2, "done") and res[1].status == "limit"

def test_failures_stay_in_their_slots(executor):
    def reply(messages, tools): return Fault(400, message="no") if "Bad" in str(messages) else words(messages, tools)
    with serve(reply) as srv:
        rlm = over(srv)
        res = batch(rlm, [("Bad?", "x"), ("A?", "x y"), ("Bad?", "z")], executor=executor, progress=False)
    assert [o.status for o in res] == ["error", "done", "error"] and "no" in res[0].error and res[1].answer == 2

def test_nothing_to_do(executor): assert batch(RLM("offline/extractive"), [], executor=executor) == []

# ---- what may be asked

def test_mistakes_cost_nothing(server):
    rlm = over(server)
    for bad in (3, dict(question="Who?"), dict(query="Who?", contxt="x"), dict(query="Who?", response_format=3), ["a", "b", "c"],
                (Path("f.txt"), "Who?"), (["a", "b"], "Who?"), dict(query=None), dict(query=[])):
        with pytest.raises(InputError): batch(rlm, [("How many?", "a"), bad])
    for bad in ("Who?", dict(query="Who?"), None, 3):
        with pytest.raises(InputError, match="list"): batch(rlm, bad)
    with pytest.raises(InputError, match="get_executor"): batch(rlm, ["Who?"], executor=object())
    with pytest.raises(InputError, match="max_concurrency"): batch(rlm, ["Who?"], max_concurrency=0)
    with pytest.raises(InputError, match="gone.txt"): batch(rlm, ["Who?"], context=Path("gone.txt"))
    assert asked(server) == 0
    assert batch(rlm, ["", ("How many?", "a")], progress=False)[0].status == "error"

def test_shared_context(server, tmp_path, executor):
    (tmp_path/"f.txt").write_text("a b c")
    with open(tmp_path/"f.txt") as f:
        for context in ("a b c", tmp_path/"f.txt", f):
            res = batch(over(server), ["How many?", "And how many?"], context=context, executor=executor, progress=False)
            assert [o.answer for o in res] == [3, 3]

def test_messages(server):
    messages = [dict(role="user", content="Acme was late."), dict(role="user", content="Who was late?")]
    assert as_item(messages).query == messages and as_item((messages, "x")).context == "x"
    with serve(lambda m, tools: tool_call("FINAL(context[0]['content'])")) as srv:
        assert batch(over(srv), [messages], progress=False)[0].answer == "Acme was late."

def test_what_a_verifier_has_said_is_in_the_log(server, tmp_path):
    with RLM("openai/x", base_url=server.base_url, log_dir=tmp_path, verify=lambda q, a, e: a == 3) as rlm:
        for reused in (False, True):
            res = batch(rlm, [("How many?", "a b c"), ("How many?", "a b")], progress=False)
            assert [(o.answer, o.verified, o.reused) for o in res] == [(3, True, reused), (2, False, reused)]
    assert sorted(Trajectory.load(o).verified for o in tmp_path.iterdir()) == [False, True]

# ---- here

@pytest.mark.long
def test_concurrency_and_closed_shells():
    async def slow(messages, tools):
        await asyncio.sleep(0.05)
        return words(messages, tools)
    with serve(slow) as srv:
        rlm = over(srv)
        batch(rlm, [("How many?", "a")]*2, progress=False)
        threads,fds = threading.active_count(),len(os.listdir("/proc/self/fd"))
        res = batch(rlm, [("How many?", "a b")]*40, max_concurrency=4, progress=False)
        assert [o.answer for o in res] == [2]*40 and 2 <= srv.in_flight_max <= 4
        assert threading.active_count() <= threads + 6 and len(os.listdir("/proc/self/fd")) <= fds + 6

@pytest.mark.long
def test_shells_in_processes_are_gone(server, processes):
    res = batch(over(server, shell="process"), [("How many?", "a b")]*6, max_concurrency=3, progress=False)
    assert [o.answer for o in res] == [2]*6
    res = batch(over(server, shell="process"), [("How many?", "a b")]*2, executor=processes, progress=False)
    assert [o.answer for o in res] == [2]*2
    left = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True).stdout
    assert "rlm.worker" not in left

def test_on_any_loop(server):
    async def main(): return await abatch(over(server), [("How many?", "a b")]*3, progress=False)
    assert [o.answer for o in asyncio.run(main())] == [2]*3

def test_cancelled(tmp_path):
    async def reply(messages, tools):
        if "slow" in str(messages): await asyncio.sleep(30)
        return words(messages, tools)
    async def main(rlm):
        task = asyncio.create_task(abatch(rlm, [("quick?", "a"), ("slow?", "a"), ("slow?", "b"), ("quick?", "b")], log_dir=tmp_path,
                                          max_concurrency=3, progress=False))
        while len(srv.requests) < 4: await asyncio.sleep(0.05)
        while [Trajectory.load(o).status for o in tmp_path.iterdir()].count("done") < 2: await asyncio.sleep(0.05)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        return time.monotonic() - start
    with serve(reply) as srv:
        assert asyncio.run(main(over(srv))) < 3
        while srv.in_flight: time.sleep(0.05)
    statuses = sorted(Trajectory.load(o).status for o in tmp_path.iterdir())
    assert statuses == ["cancelled", "cancelled", "done", "done"]

# ---- again

@pytest.mark.long
def test_asked_again(tmp_path):
    fails = [True]
    def reply(messages, tools): return Fault(400) if fails[0] and "Bad" in str(messages) else words(messages, tools)
    with serve(reply) as srv:
        rlm,items = over(srv),[("A?", "x y"), ("Bad?", "x")]
        def once(rlm=rlm, items=items): return batch(rlm, items, log_dir=tmp_path, progress=False)
        assert [o.status for o in once()] == ["done", "error"]
        fails[0] = False
        res = once()
        assert [(o.status, o.reused) for o in res] == [("done", True), ("done", False)]
        log = Trajectory.load(res[1].log)
        assert [e.status for e in log if e.kind == "end"] == ["error", "done"] and len([*tmp_path.iterdir()]) == 2
        n = asked(srv)
        assert all(o.reused for o in once()) and asked(srv) == n
        for other in (over(srv, temperature=1), over(srv, prompt="Be quick."), over(srv, limits=Limits(max_depth=2))):
            assert not any(o.reused for o in once(other))
        assert all(o.reused for o in once(over(srv, limits=Limits(max_cost=1.0), api_key="sk-other")))
        assert not any(o.reused for o in once(items=[("A?", "x z"), ("B?", "y")]))
        assert not any(o.reused for o in once(items=[dict(query="A?", context="x y", response_format=int), dict(query="Bad?", context="x", id=1)]))

@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_was_begun_is_gone_on_with(tmp_path, elsewhere):
    "A question that was cut off is not asked from the beginning, nor counted twice"
    fails = [True]
    def reply(messages, tools):
        if sum(m["role"] == "assistant" for m in messages) < 2: return tool_call("n = len(context)\nprint(n)")
        return Fault(400) if fails[0] else tool_call("FINAL(n)")
    with serve(reply) as srv, ThreadPoolExecutor(2) as pool:
        how = dict(log_dir=tmp_path, progress=False, executor=pool if elsewhere else None)
        first, = batch(over(srv), [("How long?", "a b c")], **how)
        fails[0],n = False,asked(srv)
        assert (first.status, first.steps, n) == ("error", 2, 3)
        rlm = over(srv)
        then, = batch(rlm, [("How long?", "a b c")], **how)
        assert (then.answer, then.status, then.steps, then.log) == (5, "done", 3, first.log)
        assert asked(srv) == n + 1 and rlm.usage.calls == 1 and then.usage.calls == 3

class Report(BaseModel):
    name: str
    late: list[int]

@pytest.mark.parametrize("value", ["dict(name='Acme', late=[1, 2])", "Report()", "json.dumps(dict(name='Acme', late=[1, 2]))"])
def test_typed_answers_are_read_back(tmp_path, value):
    code = f"import json\nclass Report:\n    def __init__(self): self.name,self.late = 'Acme',[1, 2]\nFINAL({value})"
    with serve(lambda m, tools: tool_call(code)) as srv:
        first,again = (batch(over(srv, limits=Limits(max_steps=2)), ["Who?"], response_format=Report, log_dir=tmp_path, progress=False)[0] for _ in range(2))
    assert first.status == again.status
    if first.status == "done": assert again.reused and asked(srv) == 1 and again.parsed == first.parsed == Report(name="Acme", late=[1, 2])

def test_citations_are_read_back(tmp_path):
    with serve(lambda m, tools: tool_call("cite('Acme was late')\nFINAL('Acme')")) as srv:
        (tmp_path/"f.txt").write_text("In May Acme was late.")
        first,again = (batch(over(srv), ["Who?"], context=tmp_path/"f.txt", log_dir=tmp_path/"logs", progress=False)[0] for _ in range(2))
    assert again.reused and again.citations == first.citations and "In May" in str(again.citations[0])

def test_the_same_question_twice(server, tmp_path):
    items = [("How many?", "a b")]*3
    first = batch(over(server), items, log_dir=tmp_path, progress=False)
    assert len({o.log for o in first}) == 3 and asked(server) == 3
    assert [o.log for o in batch(over(server), items, log_dir=tmp_path, progress=False)] == [o.log for o in first] and asked(server) == 3

def test_two_batches_do_not_ask_the_same_at_once(tmp_path):
    "Of two that begin together, or one after the other, one leaves the question to the other and says so"
    release, asked = threading.Event(), []
    async def reply(messages, tools):
        asked.append(1)
        while not release.is_set(): await asyncio.sleep(.01)
        return tool_call("FINAL(len(context))")
    def one(): return batch(RLM(ScriptedLM(reply)), [("How long?", "Acme")], log_dir=tmp_path, progress=False)[0]
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(one) for _ in range(2)]
        while not any(o.done() for o in first): time.sleep(.01)
        late = one()
        release.set()
        res = sorted([late, *(o.result() for o in first)], key=lambda o: o.status)
    assert [o.status for o in res] == ["done", "error", "error"] and len(asked) == 1 and len(list(tmp_path.iterdir())) == 1
    assert all(str(res[0].log) in o.error and not o.usage.calls for o in res[1:]) and one().reused

def test_ids_name_logs(server, tmp_path):
    res = batch(over(server), [dict(query="How many?", context="a", id="../a b/Ü 7")], log_dir=tmp_path, progress=False)
    assert res[0].log.parent == tmp_path and res[0].log.name.startswith("a-b-7-")

@pytest.mark.parametrize("damage", [b"", b"{", b"null\n", b"\xff\xfe\n", b'{"kind": "end", "status": "done"}\n'])
def test_damaged_logs_are_kept_aside(server, tmp_path, damage):
    log = batch(over(server), [("How many?", "a b")], log_dir=tmp_path, progress=False)[0].log
    log.write_bytes(damage)
    res, = batch(over(server), [("How many?", "a b")], log_dir=tmp_path, progress=False)
    assert res.answer == 2 and not res.reused and log.with_name(f"{log.stem}.1.jsonl").read_bytes() == damage

def test_logs_of_the_rlm_are_looked_at(server, tmp_path):
    rlm = over(server, log_dir=tmp_path)
    for n in (1, 2): assert [o.answer for o in batch(rlm, [("How many?", "a b")], progress=False)] == [2]
    assert len([*tmp_path.iterdir()]) == 1 == asked(server)
    assert not batch(rlm, [("How many?", "a b")], log_dir=tmp_path/"other", progress=False)[0].reused and asked(server) == 2

# ---- what travels

def test_parcels():
    def sent(o): return pickle.loads(pickle.dumps(o))
    assert sent(Parcel(lambda: 3)).open()() == 3
    assert sent(sent(Parcel("a", or_text=True))).open() == "a"
    class Odd:
        def __str__(self): raise ValueError
        def __reduce__(self): raise ValueError("no")
    with pytest.raises(InputError, match="cannot be sent.*no"): sent(Parcel(Odd())).open()
    assert "cannot be sent" in sent(Parcel(Odd(), or_text=True)).open()

@pytest.mark.long
def test_what_cannot_travel_breaks_nothing(processes, server, tmp_path):
    lock = threading.Lock()
    def held(): return lock.locked()
    res = batch(over(server, tools=[held]), [("How many?", "a")], executor=processes, progress=False)
    assert res[0].status == "error" and "cannot be sent to another process" in res[0].error
    res = batch(over(server), [("How many?", lock), ("How many?", "a b")], executor=processes, progress=False)
    assert [o.answer for o in res] == [None, 2]
    def twice(n: int) -> int: return 2*n
    with serve([tool_call("FINAL(twice(4))")]) as srv:
        assert batch(over(srv, tools=[twice]), ["8?"], executor=processes, progress=False)[0].answer == 8
    codes = ["import threading\nFINAL(threading.Lock())", "class A: pass\nFINAL(A())", "FINAL({1, 2})",
             "class B:\n    def __reduce__(self): return int, ('x',)\nFINAL(B())"]
    def reply(messages, tools): return tool_call(codes[next(i for i in range(4) if f"number {i}" in str(messages))])
    with serve(reply) as srv:
        res = batch(over(srv), [f"number {i}" for i in range(4)], executor=processes, progress=False)
    assert [o.status for o in res] == ["done"]*4 and res[2].answer == {1, 2} and "lock" in res[0].answer and isinstance(res[3].answer, str)

@pytest.mark.long
def test_listeners_stay_here(server, processes):
    seen,lock = [],threading.Lock()
    def hear(e):
        with lock: seen.append(e.kind)
    batch(over(server, on_event=hear), [("How many?", "a b")], executor=processes, progress=False)
    assert seen == ["run", "reply", "cell", "final", "end"]

def test_another_machine(server, tmp_path, monkeypatch):
    "What comes back without a log is written here"
    from rlm import batch as mod
    def far(sent, lease, n):
        rlm,item = sent.open()
        return mod.answer(Parcel((rlm, mod.replace(item, log=None))), lease, n)
    class Far(ThreadPoolExecutor):
        def submit(self, fn, *args): return super().submit(far, *args)
    with Far(1) as pool:
        first, = batch(over(server), [("How many?", "a b")], executor=pool, log_dir=tmp_path, progress=False)
        again, = batch(over(server), [("How many?", "a b")], executor=pool, log_dir=tmp_path, progress=False)
    assert first.log.exists() and again.reused and again.answer == 2 and again.usage == first.usage

# ---- stopping what runs elsewhere

def test_lease(tmp_path):
    a = Lease()
    b = pickle.loads(pickle.dumps(a))
    c = pickle.loads(pickle.dumps(a))
    c.place = "elsewhere",0,0
    a.end()
    a.end()
    assert a.is_over() and b.is_over() and not c.is_over()

@pytest.mark.long
@pytest.mark.parametrize("executor", ["threads", "processes"], indirect=True)
def test_cancelled_elsewhere(executor, tmp_path):
    async def reply(messages, tools):
        if "slow" in str(messages): await asyncio.sleep(30)
        return words(messages, tools)
    async def main(rlm):
        items = [("quick?", "a")] + [("slow?", f"{i}") for i in range(9)]
        task = asyncio.create_task(abatch(rlm, items, executor=executor, log_dir=tmp_path, progress=False))
        while len(srv.requests) < 3: await asyncio.sleep(0.05)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        while srv.in_flight: await asyncio.sleep(0.05)
        return time.monotonic() - start
    with serve(reply) as srv:
        assert asyncio.run(main(rlm := over(srv))) < 3
        n = asked(srv)
        with serve(words) as other: assert batch(over(other), [("How many?", "a b")]*4, executor=executor, progress=False)[3].answer == 2
        assert asked(srv) == n <= 4 and rlm.usage.calls == 1
    assert [Trajectory.load(o).status for o in tmp_path.iterdir()].count("done") == 1

@pytest.mark.long
def test_lost_worker(tmp_path):
    def reply(messages, tools):
        if "dies" not in str(messages): return words(messages, tools)
        return tool_call("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with serve(reply) as srv, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        rlm = over(srv)
        res = batch(rlm, [("How many?", "a b"), ("dies?", "x"), ("How many?", "a b c")], executor=pool, log_dir=tmp_path, progress=False)
        assert res[1].steps == 1 and "terminated" in res[1].error and rlm.usage.calls == asked(srv)
        others = res[0],res[2] # as many as the one worker had done by then
        assert all(o.status == ("done" if o.answer else "error") for o in others)
        again = batch(rlm, [("How many?", "a b"), ("How many?", "a b c")], log_dir=tmp_path, progress=False)
        assert [o.answer for o in again] == [2, 3] and [o.reused for o in again] == [o.status == "done" for o in others]

script = """
    import multiprocessing, sys
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
    from rlm.batch import batch
    from rlm.model import RLM
    def main(url, folder, how):
        rlm = RLM("openai/x", base_url=url)
        items = [("quick?", "a")] + [("slow?", str(i)) for i in range(9)]
        pools = dict(threads=lambda: ThreadPoolExecutor(2), processes=lambda: ProcessPoolExecutor(2, multiprocessing.get_context("spawn")))
        pool = pools[how]() if how in pools else None
        try: batch(rlm, items, executor=pool, log_dir=folder)
        except KeyboardInterrupt: print("stopped", rlm.usage.calls, flush=True)
        if pool: pool.shutdown(cancel_futures=True)
    if __name__ == "__main__": main(*sys.argv[1:])
"""

@pytest.mark.long
@pytest.mark.parametrize("how", ["here", "threads", *(pytest.param(o, marks=pytest.mark.long) for o in ("processes", "terminal"))])
def test_interrupted(how, tmp_path):
    async def reply(messages, tools):
        if "slow" in str(messages): await asyncio.sleep(30)
        return words(messages, tools)
    (tmp_path/"script.py").write_text(textwrap.dedent(script))
    with serve(reply) as srv:
        pool = "processes" if how == "terminal" else how
        p = subprocess.Popen([sys.executable, tmp_path/"script.py", srv.base_url, tmp_path/"logs", pool], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
        def done(): return [o for o in (tmp_path/"logs").glob("*") if Trajectory.load(o).status == "done"]
        while p.poll() is None and (len(srv.requests) < 3 or not done()): time.sleep(0.1)
        start = time.monotonic()
        if how == "terminal": os.killpg(p.pid, signal.SIGINT) # to the workers as well
        else: p.send_signal(signal.SIGINT)
        assert p.stdout.readline().split() == ["stopped", "1"] and time.monotonic() - start < 3
        out,err = p.communicate(timeout=30)
        assert not srv.in_flight and (err == "" or how == "terminal"), err
    assert {Trajectory.load(o).status for o in (tmp_path/"logs").glob("*")} == {"cancelled", "done"}

# ---- watching

def test_progress(capsys, server):
    rlm = over(server)
    batch(rlm, [("How many?", "a")])
    assert capsys.readouterr() == ("", "")
    batch(rlm, [("How many?", "a")], progress=True)
    out,err = capsys.readouterr()
    assert "1/1" in err and not out

def test_line():
    w = Watch(1000, False)
    w.hear(Reply(model="a", usage=Usage(1000, 200, calls=1, cost=None)))
    assert str(w) == "0/1000 · 1,200 tokens"

# ---- a cluster

@pytest.mark.slow
def test_dask(tmp_path):
    distributed = pytest.importorskip("distributed")
    async def reply(messages, tools):
        if "slow" in str(messages): await asyncio.sleep(30)
        return words(messages, tools)
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path/"dask"))
    with serve(reply) as srv, cluster, distributed.Client(cluster) as client:
        rlm,pool = over(srv),client.get_executor()
        items = [("How many words?", " ".join("a"*n)) for n in range(1, 7)]
        res = batch(rlm, items + items[:2], executor=pool, log_dir=tmp_path/"logs", progress=False)
        assert [o.answer for o in res] == [1, 2, 3, 4, 5, 6, 1, 2] and rlm.usage.calls == asked(srv) == 8
        assert all(o.reused for o in batch(rlm, items + items[:2], executor=pool, log_dir=tmp_path/"logs", progress=False))
        res = batch(RLM("offline/extractive"), questions, executor=pool, progress=False)
        assert [o.status for o in res] == ["done"]*3
        lock = threading.Lock()
        res = batch(rlm, [("How many?", lock), ("How many?", "a b")], executor=pool, progress=False)
        assert [o.status for o in res] == ["error", "done"] and rlm.usage.calls == 9
        async def stopped():
            task = asyncio.create_task(abatch(rlm, [("slow?", f"{i}") for i in range(8)], executor=pool, progress=False))
            while not srv.in_flight: await asyncio.sleep(0.05)
            start = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError): await task
            while srv.in_flight: await asyncio.sleep(0.05)
            return time.monotonic() - start
        assert asyncio.run(stopped()) < 3
        assert batch(rlm, [("How many?", "a b")], executor=pool, progress=False)[0].answer == 2
