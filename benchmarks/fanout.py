"What `llm_query_batched` takes for many calls at once."
import asyncio, time

from benchmarks.measure import MODEL, Row, interleaved, model_server, seconds
from rlm.io import io_loop
from rlm.lm import LM, litellm_module
from rlm.tools import prep_shell

IN_FLIGHT = 64


def prompts(n): return [f"Question {i}: what is this? " + 200*"word " for i in range(n)]


def ours(url, n):
    "Seconds in which a cell gets `n` answers, in a new shell"
    sh = prep_shell("", LM(MODEL, base_url=url, max_concurrency=IN_FLIGHT))
    sh.user_ns["prompts"] = prompts(n)
    start = time.perf_counter()
    r = sh.run("replies = llm_query_batched(prompts)\nFINAL(replies)")
    took = time.perf_counter() - start
    assert r.final == n*["ok"], r
    sh.close()
    return took


def bare(url, n):
    "Seconds in which LiteLLM gets them"
    litellm = litellm_module()
    async def one(prompt, slots):
        messages = [dict(role="user", content=prompt)]
        async with slots: return await litellm.acompletion(MODEL, messages, base_url=url, api_key="none")
    async def together():
        slots = asyncio.Semaphore(IN_FLIGHT)
        return await asyncio.gather(*(one(o, slots) for o in prompts(n)))
    # On the loop of our own calls: LiteLLM's logger serves one loop at a time, and moving it costs both sides
    return seconds(lambda: asyncio.run_coroutine_threadsafe(together(), io_loop()).result())


def compared(latency, n, rounds):
    "Ours and bare LiteLLM for `n` calls of this latency, in seconds"
    with model_server("ok", latency) as url:
        for f in (ours, bare): f(url, IN_FLIGHT)
        return interleaved(rounds, lambda: ours(url, n), lambda: bare(url, n))


def rows(rounds=5):
    "Slow calls against the ideal, instant calls against LiteLLM"
    slow,bare_slow = compared(1.0, 256, 2)
    a,b = compared(0.0, 500, rounds)
    ideal = [256/IN_FLIGHT]*len(slow)
    return [Row(f"256 calls of 1 s, {IN_FLIGHT} in flight, over the ideal", slow, ideal, "s", target=1.15),
            Row("the same by litellm.acompletion alone", bare_slow, ideal, "s"),
            Row(f"500 calls of 0 s, {IN_FLIGHT} in flight, over litellm.acompletion", a, b, "s", target=1.1)]
