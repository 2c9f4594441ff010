"How much a run writes."
import json, tempfile
from pathlib import Path

from benchmarks.measure import LINE, Row
from rlm.model import run
from rlm.offline import ScriptedLM, tool_call

CELLS = ["print(len(context))\nprint(context[:20_000])",
         "parts = [context[i:i+100_000] for i in range(0, len(context), 5_000_000)]\n"
         "print(llm_query_batched(['What is this?\\n\\n' + p for p in parts]))",
         "FINAL(llm_query('Which? ' + context[:100_000]))"]


def rows():
    "The log of a run that prints, asks and ends"
    context = LINE*(100_000_000//len(LINE))
    sub = ScriptedLM(lambda messages, tools: "It is the log of a server. " * 5)
    with tempfile.TemporaryDirectory() as d:
        t = run("What is it?", context, ScriptedLM([tool_call(o) for o in CELLS]), sub, log=Path(d)/"run.jsonl")
        assert t.status == "done", t.error
        size = (Path(d)/"run.jsonl").stat().st_size
    said = len(json.dumps(t.history))
    what = "3 steps, 21 sub-calls over 100 MB, beside the conversation alone"
    return [Row(what, [size/1000], [said/1000], "KB", "value", target=100)]
