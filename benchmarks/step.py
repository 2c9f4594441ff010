"How much a step of the loop adds to the LM call in it, and how much a run adds to its steps."
import asyncio, tempfile, time
from pathlib import Path

from benchmarks.measure import MODEL, Row, interleaved, model_server, ms, seconds
from rlm.events import Limits, Reply
from rlm.io import io_loop
from rlm.lm import litellm_module
from rlm.model import run
from rlm.offline import tool_call
from rlm.tools import Tool, make_run_repl, prep_shell
from rlm.trajectory import to_messages

STEPS = 8


def timed_run(url, log):
    "Of a run of `STEPS` steps, but the first and the last: seconds from reply to reply, and messages of each request"
    times = []
    def on_event(e):
        if isinstance(e, Reply): times.append(time.perf_counter())
    limits = Limits(max_steps=STEPS)
    t = run("What is x?", "abc"*300, MODEL, base_url=url, limits=limits, log=log, on_event=on_event).trajectory
    requests = [to_messages(t[:i]) for i,e in enumerate(t) if isinstance(e, Reply)]
    return [b-a for a,b in zip(times, times[1:])][:-1],requests[1:-1]


def step_row(url, folder, rounds):
    "A step with a trivial cell against bare calls of the same messages, in a thread and on an event loop"
    litellm = litellm_module()
    tools = [Tool(make_run_repl(prep_shell(""))).schema]
    kw = dict(model=MODEL, base_url=url, api_key="none", tools=tools, tool_choice="auto")
    requests = timed_run(url, folder/"warm.jsonl")[1]
    log = iter(range(1_000_000))
    def ours(): return timed_run(url, folder/f"{next(log)}.jsonl")[0]
    def bare(): return [seconds(litellm.completion, messages=o, **kw) for o in requests]
    async def one(messages):
        start = time.perf_counter()
        await litellm.acompletion(messages=messages, **kw)
        return time.perf_counter() - start
    async def each(): return [await one(o) for o in requests]
    # On the loop of our own calls: LiteLLM's logger serves one loop at a time, and moving it costs both sides
    def abare(): return asyncio.run_coroutine_threadsafe(each(), io_loop()).result()
    bare(), abare()
    a,b,c = map(ms, interleaved(rounds, ours, bare, abare))
    return [Row("step, over litellm.completion", a, b, target=1.25), Row("step, over litellm.acompletion", a, c)]


def rest_row(url, folder, rounds):
    "A run of one step, less the time in which it waits for the model"
    log = iter(range(1_000_000))
    def one():
        start = time.perf_counter()
        r = run("What is x?", "abc"*300, MODEL, base_url=url, log=folder/f"{next(log)}.jsonl")
        return time.perf_counter() - start - sum(o.seconds for o in r.trajectory.replies)
    one()
    return [Row("all else in a run of one step", ms(interleaved(rounds, one)[0]), compare="value", target=15)]


def rows(rounds=40):
    "A step, and the rest of a run"
    with tempfile.TemporaryDirectory() as d:
        with model_server(tool_call("x = 1\nx")) as url: res = step_row(url, Path(d), rounds)
        with model_server(tool_call("FINAL('done')")) as url: return res + rest_row(url, Path(d)/"rest", rounds)
