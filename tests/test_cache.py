"The cache of replies: made once, never an error, shared by threads, processes and forks, and never worth a run."
import asyncio, json, multiprocessing, os, pickle, sqlite3, subprocess, sys, textwrap, threading, warnings

import pytest

from rlm.cache import Cache, CacheWarning, Completion, _dump, _load
from rlm.events import LimitExceeded, LMError, LMRequestError, Usage
from rlm.lm import LM
from rlm.offline import Fault, ScriptedLM, serve, tool_call

def reply(text="Hello."): return Completion(dict(role="assistant", content=text), Usage(3, 1, calls=1), "m", "stop", 1.0, object())
def echo(messages, tools): return messages[-1]["content"].upper()

@pytest.fixture(params=["memory", "file"])
def cache(request, tmp_path): return Cache(tmp_path/"some"/"where.db" if request.param == "file" else None)

# ---- what is kept

def test_kept(cache):
    async def call(): return reply()
    async def twice(): return await cache.fetch("k", call), await cache.fetch("k", call)
    a,b = asyncio.run(twice())
    assert not a.cached and a.usage.calls == 1 and a.response
    assert (b.cached, b.usage, b.message, b.model, b.finish_reason, b.response) == (True, Usage(), a.message, "m", "stop", None)
    b.message["content"] = "changed"
    assert asyncio.run(twice())[0].text == "Hello." and len(cache) == 1
    cache.clear()
    assert len(cache) == 0 and not asyncio.run(twice())[0].cached

def test_what_cannot_be_kept(cache):
    async def call(): return Completion(dict(role="assistant", content="a", thinking_blocks=[object()]), Usage(), "m")
    async def twice(): return [await cache.fetch("k", call) for _ in range(2)]
    assert [o.cached for o in asyncio.run(twice())] == [False, False] and len(cache) == 0
    assert not asyncio.run(cache.fetch(None, call)).cached

def test_all_of_a_message_is_kept(cache):
    sent = tool_call("1 + 1", "Look: \ud800 é")
    with serve([sent]) as srv:
        lm = LM("openai/x", base_url=srv.base_url)
        a,b = (lm.complete("Hi", cache=cache) for _ in range(2))
    assert b.cached and b.message == a.message and b.tool_calls[0]["function"]["name"] == "run_repl"

@pytest.mark.parametrize("text", ["", "null", "[]", "3", "{", '{"message": "x", "model": "m", "finish_reason": null}', '{"message": {}}', None])
def test_damaged_entries_count_as_none(text): assert _load(text) is None

def test_damaged_entry_in_a_file(tmp_path):
    cache = Cache(tmp_path/"c.db")
    async def call(): return reply()
    asyncio.run(cache.fetch("k", call))
    len(cache) # written by now
    with sqlite3.connect(tmp_path/"c.db") as db: db.execute("update replies set value = '{oops'")
    db.close()
    assert not asyncio.run(cache.fetch("k", call)).cached and asyncio.run(cache.fetch("k", call)).cached

# ---- keys

def test_key():
    cache,lm,hi = Cache(),LM("openai/gpt-5", temperature=0),[dict(role="user", content="Hi")]
    def key(lm=lm, messages=hi, **params): return cache.key(lm, messages, params)
    assert len({key(), key(timeout=3), key(api_key="sk-other"), key(temperature=0), key(LM("openai/gpt-5", api_key="sk-other", temperature=0, timeout=3, retries=1))}) == 1
    different = [key(), key(temperature=1), key(LM("openai/gpt-5")), key(LM("openai/gpt-5-mini", temperature=0)), key(messages=hi*2), key(seed=1), key(tools=[]),
                 key(LM("openai/gpt-5", base_url="http://localhost:1/v1", temperature=0)), key(messages=[dict(role="system", content="Hi")])]
    assert len(set(different)) == len(different) and all(len(o) == 64 for o in different)
    assert key(n=object()) is None and key(n={1: 2, "a": 3}) is None
    nested = []
    nested.append(nested)
    assert key(n=nested) is None

def test_key_of_a_type():
    from pydantic import create_model
    cache,lm = Cache(),LM("m")
    def key(t): return cache.key(lm, [], dict(response_format=t))
    one,same,other = create_model("A", x=(int, ...)),create_model("A", x=(int, ...)),create_model("A", x=(str, ...))
    assert key(one) == key(same) != key(other) and key(one)

def test_key_in_another_process():
    code = 'from rlm.cache import Cache; from rlm.lm import LM; print(Cache().key(LM("m", b=1, a=2), [dict(role="user", content="é")], dict(stop={"y": 1, "x": 2})))'
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    assert there == Cache().key(LM("m", a=2, b=1), [dict(content="é", role="user")], dict(stop={"x": 2, "y": 1}))

# ---- made once

def test_concurrent_calls_are_made_once(cache):
    with serve(echo, latency=0.02) as srv:
        lm = LM("openai/x", base_url=srv.base_url)
        started,ended = [],{}
        res = lm.batch(["a", "b", "a", "a", "b"], started.append, ended.__setitem__, cache)
        assert [o.text for o in res] == ["A", "B", "A", "A", "B"] and len(srv.requests) == len(started) == 2 and ended == dict(enumerate(res))
        assert sum(o.usage for o in res).calls == sum(srv.usage.values()).calls == 2 and sum(o.cached for o in res) == 3
        got = []
        threads = [threading.Thread(target=lambda: got.append(lm.complete("c", cache=cache).cached)) for _ in range(12)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert sorted(got) == [False] + [True]*11 and len(srv.requests) == 3

def test_waiting_for_the_same_call_takes_no_slot(cache):
    with serve(echo, latency=0.05) as srv:
        lm = LM("openai/x", base_url=srv.base_url, max_concurrency=2)
        lm.batch(["a"]*5 + ["b"], cache=cache)
        assert srv.in_flight_max == 2

def test_errors_are_not_kept(cache):
    with serve([Fault(400), Fault(400), "ok"]) as srv:
        lm = LM("openai/x", base_url=srv.base_url)
        res = lm.batch(["a"]*4, cache=cache)
        assert [getattr(o, "text", type(o)) for o in res] == [LMRequestError, LMRequestError, "ok", "ok"] and len(srv.requests) == 3 and len(cache) == 1

def test_refused_beforehand(cache):
    def before(i):
        if i == 0: raise LimitExceeded("max_sub_calls", 1, 0)
    res = ScriptedLM(["ok"]).batch(["a"]*3, before, cache=cache)
    assert [getattr(o, "text", type(o)) for o in res] == [LimitExceeded, "ok", "ok"]

def test_cancelled_call_is_made_by_the_next(cache):
    with serve([Fault("hang"), "ok"]) as srv:
        lm = LM("openai/x", base_url=srv.base_url)
        async def main():
            first = asyncio.create_task(lm.acomplete("Hi", cache=cache))
            while not srv.in_flight: await asyncio.sleep(0.005)
            second = asyncio.create_task(lm.acomplete("Hi", cache=cache))
            await asyncio.sleep(0.02)
            first.cancel()
            return await asyncio.wait_for(second, 3)
        c = asyncio.run(main())
        assert c.text == "ok" and not c.cached

def test_many_loops(cache):
    made = []
    async def call():
        made.append(1)
        await asyncio.sleep(0.01)
        return reply()
    async def some(): return [o.text for o in await asyncio.gather(*(cache.fetch("k", call) for _ in range(5)))]
    for _ in range(3): assert asyncio.run(some()) == ["Hello."]*5
    assert len(made) == 1 and not cache._locks

def test_shown_at_once(cache):
    lm,seen = ScriptedLM(["one two"]),[]
    for _ in range(2): lm.complete("Hi", on_text=seen.append, cache=cache)
    assert seen == ["one", " two", "one two"]

# ---- files

def ask(cache, words):
    "Which of these replies were there"
    async def fetch(o):
        async def call(): return reply(o.upper())
        return await cache.fetch(o, call)
    async def all(): return await asyncio.gather(*map(fetch, words))
    res = asyncio.run(all())
    assert [o.text for o in res] == [o.upper() for o in words] and len(cache) >= len(set(words))
    return [o.cached for o in res]

def test_other_processes(tmp_path):
    path,words = tmp_path/"c.db",[f"word {i}" for i in range(40)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        assert ask(Cache(path), words) == [False]*40
        with multiprocessing.get_context("spawn").Pool(2) as pool: assert pool.starmap(ask, [(Cache(path), words)]*4) == [[True]*40]*4

@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks(tmp_path):
    code = f"""
        import os, sys, warnings
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_cache import Cache, CacheWarning, ask as fetch
        warnings.simplefilter("error", CacheWarning)
        cache = Cache({str(tmp_path/"c.db")!r})
        def ask(*words): return fetch(cache, words)
        assert ask("a", "b") == [False, False] and len(cache) == 2
        children = []
        for i in range(3):
            if not (pid := os.fork()):
                ok = ask("a", "b", f"child {{i}}") == [True, True, False] and len(cache) >= 3
                os._exit(0 if ok else 1)
            children.append(pid)
        assert ask("a", "c") == [True, False]
        assert [os.waitpid(o, 0)[1] for o in children] == [0]*3
        assert ask("child 0", "child 1", "child 2", "c") == [True]*4
        """
    p = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (p.returncode, p.stdout, p.stderr) == (0, "", "")

def unusable(case, path):
    if case == "damaged": path.write_bytes(b"This is no database. " * 1000)
    if case == "directory": path.mkdir()
    if case == "beneath a file":
        path.write_text("")
        return path/"c.db"
    return path

@pytest.mark.parametrize("case", ["damaged", "directory", "beneath a file", "locked", "another table"])
def test_files_that_cannot_be_used(case, tmp_path):
    path,lm,other = unusable(case, tmp_path/"c.db"),ScriptedLM(echo),None
    if case == "another table":
        with sqlite3.connect(path) as db: db.execute("create table replies (id int)")
        db.close()
    if case == "locked":
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("begin exclusive")
    cache = Cache(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        res = [lm.complete("a", cache=cache) for _ in range(3)] + lm.batch(["a", "b"], cache=cache)
        assert [o.text for o in res] == ["A"]*4 + ["B"] and [o.cached for o in res] == [False, True, True, True, False]
        assert len(cache) == 2 and cache.clear() is None and len(cache) == 0
    if other: other.close()
    [told] = [o for o in said if o.category is CacheWarning]
    assert str(path) in str(told.message) and "replies kept in memory" in str(told.message)

def test_file_taken_away(tmp_path):
    cache,lm = Cache(tmp_path/"c.db"),ScriptedLM(echo)
    lm.complete("a", cache=cache)
    len(cache)
    (tmp_path/"c.db").unlink()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert [lm.complete("a", cache=cache).text for _ in range(2)] == ["A"]*2

def test_damaged_while_in_use(tmp_path):
    cache,lm = Cache(tmp_path/"c.db"),ScriptedLM(echo)
    lm.complete("a", cache=cache)
    len(cache)
    (tmp_path/"c.db").write_bytes(b"\0" * 50_000)
    with pytest.warns(CacheWarning): assert [lm.complete("a", cache=cache).text for _ in range(2)] == ["A"]*2

def test_no_key_and_no_code_in_the_file(tmp_path):
    cache = Cache(tmp_path/"c.db")
    ScriptedLM(echo, api_key="sk-never-to-be-seen", extra_headers={"Authorization": "Bearer never-to-be-seen"}).complete("a", cache=cache)
    len(cache)
    data = (tmp_path/"c.db").read_bytes()
    assert b"never-to-be-seen" not in data and b'"content": "A"' in data

def test_pickled(tmp_path):
    cache = Cache(tmp_path/"c.db")
    ScriptedLM(echo).complete("a", cache=cache)
    len(cache)
    assert len(pickle.loads(pickle.dumps(cache))) == 1 and len(pickle.loads(pickle.dumps(Cache()))) == 0 and repr(Cache()) == "Cache()"

def test_import_is_light():
    code = "import sys, rlm.cache; Cache = rlm.cache.Cache('c.db'); print([o for o in ('peewee', 'sqlite3', 'litellm') if o in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
