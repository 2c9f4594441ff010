"Many runs at once, what a step leaves in memory, and what the root model is sent."
import asyncio, gc, tracemalloc

from benchmarks.measure import LINE, MODEL, Row, interleaved, model_server, seconds
from rlm import RLM, Limits
from rlm.io import io_loop
from rlm.lm import LM, litellm_module
from rlm.offline import ScriptedLM, Slow, tool_call

RUNS,AT_ONCE,STEPS,LATENCY = 200,32,3,0.1
IDEAL = -(-RUNS//AT_ONCE) * STEPS * LATENCY
SIZES = {"10 KB": 10_000, "1 MB": 1_000_000, "100 MB": 100_000_000, "1 GB": 1_000_000_000}
LOOK = "n = len(context)\nprint(n, context[:1000])"


def stepped(messages): return sum(m["role"] == "assistant" for m in messages)


def scripted(messages, tools):
    "Two looks and an end, after the latency"
    return Slow(LATENCY, tool_call(LOOK if stepped(messages) < STEPS-1 else "FINAL(n)"))


def timed(one, run=asyncio.run):
    "Seconds for many runs, some at a time"
    litellm_module() # whose import takes its time on a thread of its own
    async def all_of(n):
        slots = asyncio.Semaphore(AT_ONCE)
        async def ask():
            async with slots: await one()
        await asyncio.gather(*(ask() for _ in range(n)))
    run(all_of(AT_ONCE))
    return seconds(run, all_of(RUNS))


def together(lm):
    "Seconds for our runs"
    async def one(): assert (r := await rlm.acompletion("How long is it?", LINE*100)).steps == STEPS, r
    with RLM(lm, limits=Limits(max_steps=STEPS)) as rlm: return timed(one)


def bare(url):
    "Seconds for as many calls by LiteLLM alone, three after one another"
    messages = [dict(role="user", content=LINE*50)]
    async def one():
        for _ in range(STEPS): await litellm_module().acompletion(MODEL, messages, base_url=url, api_key="none")
    return timed(one, lambda coro: asyncio.run_coroutine_threadsafe(coro, io_loop()).result())


def over_http():
    "Ours, and LiteLLM alone, with the model on the other side of a socket"
    with model_server(tool_call(LOOK), LATENCY) as url:
        return interleaved(3, lambda: together(LM(MODEL, base_url=url, max_concurrency=AT_ONCE)), lambda: bare(url))


def memory_per_step(steps=100):
    "KB that a step leaves behind, with an output of 5,000 characters that the model is shown"
    sizes = []
    def reply(messages, tools):
        if (n := stepped(messages)) in (20, steps-2):
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
        return tool_call(f"print('x'*100_000)\nv{n} = {n}" if n < steps-1 else "FINAL(1)")
    tracemalloc.start()
    try: RLM(ScriptedLM(reply), limits=Limits(max_steps=steps+1)).completion("Go on?", LINE*100)
    finally: tracemalloc.stop()
    return (sizes[1] - sizes[0]) / (steps-22) / 1000


def prompt_tokens(size):
    "Tokens of the last request of the same three steps over a context of this size"
    lm = ScriptedLM(lambda messages, tools: tool_call(LOOK if stepped(messages) < STEPS-1 else "FINAL(n)"))
    r = RLM(lm).completion("How long is it?", LINE*(size//len(LINE)))
    return r.trajectory.replies[-1].usage.prompt_tokens


PRINTS = [20_000, 3_000, 60_000, 800, 150_000, 2_000, 30_000, 500]

def sent(**options):
    "Prompt tokens, in thousands, of a run that prints much and little"
    def reply(messages, tools):
        n = stepped(messages)
        return tool_call(f"print(context[{1000*n}:][:{PRINTS[n]}])" if n < len(PRINTS) else "FINAL(1)")
    r = RLM(ScriptedLM(reply), **options).completion("What is in it?", LINE*10_000)
    return r.usage.prompt_tokens / 1000


def rows():
    "Throughput, memory, prompts"
    (http,litellm),alone = over_http(),[together(ScriptedLM(scripted)) for _ in range(3)]
    what = f"{RUNS} runs of {STEPS} steps at {1000*LATENCY:g} ms, {AT_ONCE} at a time, over the ideal"
    res = [Row(what, http, [IDEAL]*3, "s", target=1.2),
           Row("as many calls by litellm.acompletion alone", litellm, [IDEAL]*3, "s"),
           Row("the runs without HTTP and LiteLLM", alone, [IDEAL]*3, "s", target=1.2),
           Row("memory that a step leaves", [memory_per_step()], unit="KB", compare="value", target=100)]
    tokens = {k: prompt_tokens(n) for k,n in SIZES.items()}
    least = tokens["10 KB"]
    res += [Row(f"prompt of the third step, context of {k}, over 10 KB", [n], [least], "tokens", target=1.05)
            for k,n in tokens.items()]
    full = sent(max_output=10**9)
    about = f"prompt tokens of {len(PRINTS)+1} steps that print {sum(PRINTS):,} characters, over full outputs"
    return res + [Row(f"{about}: outputs clipped", [sent()], [full], "k"),
                  Row(f"{about}: outputs offloaded", [sent(offload=True)], [full], "k"),
                  Row(f"{about}: clipped to 1,000", [sent(max_output=1000)], [full], "k")]
