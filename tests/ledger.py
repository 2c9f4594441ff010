"A loopback server whose every reply has a number, and what the logs say of these numbers: who has paid for what, and how often"
import asyncio, inspect, itertools, json, os, threading, time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from rlm.events import Reply, Subcall, Usage
from rlm.io import io_loop
from rlm.offline import Server, Slow

class Ledger(Server):
    "Each reply has a number: it goes along as `reasoning_tokens`, and `usage` is kept under it"
    def __init__(self, reply, **kw): # reply(messages, params), which may be async
        super().__init__("", record=False, **kw)
        self._static,self.reply,self.numbers,self.texts = None,reply,itertools.count(1),{}

    async def _reply(self, messages, params):
        res,pause = self.reply(messages, params),0
        if inspect.isawaitable(res): res = await res
        while isinstance(res, Slow): res,pause = await res.wait()
        return res,pause

    async def _respond(self, request, response, pause, options):
        n = next(self.numbers)
        details = dict(reasoning_tokens=n)
        response = dict(response, model=str(n), usage=dict(response["usage"], completion_tokens_details=details))
        self.texts[n] = json.dumps(response["choices"])[:150]
        return await super()._respond(request, response, pause, options)

    @property
    def sent(self):
        "`Usage` by number of the replies that went out whole"
        return {int(k): u for k,u in self.usage.items()}

def paid(trajectories):
    "How often each reply is in the logs, by its number, and the events that have none though they are no failure"
    numbers,odd = Counter(),[]
    for t in trajectories:
        for e in t:
            if not isinstance(e, (Reply, Subcall)) or not e.usage.calls: continue
            if e.usage.reasoning_tokens: numbers[e.usage.reasoning_tokens] += 1
            else: odd.append(e)
    return numbers,odd

def total(usages):
    "Tokens and calls in all"
    u = sum(usages, Usage())
    return u.prompt_tokens,u.completion_tokens,u.calls

# ---- what is left over

def threads(): return sorted(t.name for t in threading.enumerate() if not t.name.startswith(("rlm-io", "rlm-serve", "asyncio_", "ThreadPool", "MainThread")))
def children():
    "Ids of the processes that this one has started"
    return sorted(int(o) for t in Path("/proc/self/task").iterdir() for o in (t/"children").read_text().split())
def links():
    "What is open"
    res = []
    for o in os.listdir("/proc/self/fd"):
        with suppress(OSError): res.append(os.readlink(f"/proc/self/fd/{o}")) # the one of the listing itself is gone
    return sorted(res)
def files(): return [o for o in links() if not o.startswith("socket:")] # connections are kept for the next call
def sockets(): return len(links()) - len(files())
def tasks():
    "What is still going on on the I/O loop, beside LiteLLM's own logging"
    return [o for o in asyncio.all_tasks(io_loop()) if not o.done() and "LoggingWorker" not in str(o.get_coro())]
def memory(): return int(next(o for o in Path("/proc/self/status").read_text().splitlines() if o.startswith("VmRSS")).split()[1]) / 1024

def until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(0.01)
    return condition()
