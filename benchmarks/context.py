"What a context of 500 MB costs until the first request leaves."
import sys, time, tracemalloc

from benchmarks.measure import LINE, Row, interleaved, ms
from rlm.model import run
from rlm.offline import ScriptedLM, tool_call

MB = 1_000_000


def first_request(context):
    "Seconds from calling `run` to its first request"
    sent = []
    def reply(messages, tools):
        sent.append(time.perf_counter())
        return tool_call("FINAL(len(context))")
    start = time.perf_counter()
    t = run("How long is it?", context, ScriptedLM(reply))
    assert t.answer == len(context)
    return sent[0] - start


def peak_rss():
    "The most memory this process ever had, in MB"
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB


def traced_peak(context):
    "The most memory that one run had allocated at once, in MB"
    tracemalloc.start()
    try:
        first_request(context)
        return tracemalloc.get_traced_memory()[1] / MB
    finally: tracemalloc.stop()


def rows(rounds=20):
    "A long and a short context, and what the long one takes"
    small,large = LINE*10,LINE*(500*MB//len(LINE))
    first_request(small)
    before = peak_rss() if sys.platform != "win32" else 0
    a,b = map(ms, interleaved(rounds, lambda: first_request(large), lambda: first_request(small)))
    def memory(what, amount): return Row(what, [amount], unit="MB", compare="value", target=50)
    res = [Row("500 MB to the first request, over 1 KB", a, b, compare="over", target=20),
           memory("memory allocated by the run", traced_peak(large))]
    return res + ([memory("growth of the process's peak memory", peak_rss() - before)] if before else [])
