"""Write `vN.jsonl` for the version of the format that this code writes, and `vN.json` with what is to be read in it: `python tests/logs/make.py`.

Run once for each version, before it changes: what is stored here are logs as they were really written, and `test_trajectory.py`
reads all of them. The models are scripts."""
import json, re, sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path[:0] = [str(here.parent.parent), str(here.parent)]

from rlm import RLM, Limits
from rlm import trajectory
from rlm.offline import Fault, ScriptedLM, tool_call

CONTEXT = {"north.txt": "Harbor station closed in 1987.\nIts clock went to the museum.\n", "south.txt": "Mill station closed in 1991.\n"}
CELLS = {
    "When did they close?": [
        "print(len(context), list(context))",
        "years = llm_query_batched([f'The year, please: {t}' for t in context.values()])\nprint(years, llm_query('fail'))",
        "1/0",
        "print(rlm_query('Which clock?', context['north.txt']))\nprint('line ' * 600)",
        "print('line ' * 600)",
        "cite('closed in 1987')\ncite('nowhere at all')\nFINAL(dict(zip(context, years)))"],
    "And the clock?": ["from IPython.display import HTML\ndisplay(HTML('<b>museum</b>'))", "FINAL('in the museum')"],
    "Is there more?": ["print('still looking')"]*3 + ["FINAL('no')"]}
CHILD = ["print(context[:20])\nprint(llm_query('The year, please: ' + context))", "FINAL('the one of Harbor')"]


def sub(messages, tools):
    "Sub-calls, and the root model of children"
    last = messages[-1]["content"]
    if "Decide whether" in str(last): return "ACCEPT"
    if messages[0]["role"] == "system": return tool_call(CHILD[sum(m["role"] == "assistant" for m in messages)], id=f"s{len(messages)}")
    return Fault(400, "refused") if last == "fail" else re.search(r"\d{4}", last).group()


def root(messages, tools):
    "Runs the cells of the last question, one a step"
    told = [str(m["content"]) for m in messages if m["role"] == "user"]
    if "nearly too long for you" in told[-1]: return "Both years are known: see `years`."
    if "no more code" in messages[-1]["content"]: return "I do not know."
    asked = max((q for q in CELLS if any(q in o for o in told)), key=lambda q: max(i for i,o in enumerate(told) if q in o))
    if root.asked != asked: root.asked,root.step = asked,0
    root.step += 1
    return tool_call(CELLS[asked][root.step-1], id=f"c{root.step}", content=f"Step {root.step} of {asked}")

root.asked = None


def make(path):
    path.unlink(missing_ok=True)
    small = ScriptedLM(sub, model="openai/gpt-4o-mini")
    m = RLM(ScriptedLM(root, model="openai/gpt-4o", window=3000), small, compact=0.8, dialect="tools", limits=Limits(max_depth=2, max_steps=8), verify=small)
    with m.session(CONTEXT, path) as s:
        for question in list(CELLS)[:2]: assert s.completion(question).status == "done"
        m.limits = Limits(max_depth=2, max_steps=3)
        assert s.completion("Is there more?").status == "limit"
        s.trajectory.close()
    if version == 1: return
    m.limits = Limits(max_depth=2, max_steps=8)
    assert m.resume(path, CONTEXT).answer == "no"


version = getattr(trajectory, "VERSION", 1)

if __name__ == "__main__":
    make(here/f"v{version}.jsonl")
    from test_trajectory import stored_folds
    t = trajectory.Trajectory.load(here/f"v{version}.jsonl")
    (here/f"v{version}.json").write_text(json.dumps(stored_folds(t)) + "\n")
