"What the log of a long run costs: to write, to read back, and to compute with."
import json, tempfile, time
from pathlib import Path

from benchmarks.measure import Row, interleaved, ms, seconds
from rlm.events import Cell, End, event_to_json, Final, Reply, Run, Subcall, Usage
from rlm.trajectory import Trajectory

EVENTS = 100_000
FOLDS = "steps", "counts", "messages", "kept", "usage"


def long_run(n, path=None):
    "The trajectory of a run of `n` events, most of them sub-calls and a tenth of them in children"
    t,usage = Trajectory(path),Usage(12_000, 300, 11_000, calls=1, cost=0.0123)
    t.append(Run(query="Which?", model="root", system="s"*8000, prompt="p"*500))
    def step(run, k, calls):
        code = "parts = chunks(context)\nprint(llm_query_batched([f'Who is late? {o}' for o in parts]))"
        call = dict(id=f"c{k}", type="function",
                    function=dict(name="run_repl", arguments=json.dumps(dict(python_code=code))))
        message = dict(role="assistant", content="Let me look at the rest of it.", tool_calls=[call])
        r = t.append(Reply(run=run, parent=run, step=k, model="root", message=message, usage=usage, seconds=2.0))
        cell = t.new_id()
        asked = dict(model="sub", prompt="a contract "*10, prompt_chars=5000, prompt_hash="0f"*16,
                     reply="nobody is "*10, usage=usage, seconds=1.0)
        for i in range(calls): t.append(Subcall(run=run, parent=cell, batch=k, index=i, of=calls, **asked))
        yield cell
        ran = dict(call_id=f"c{k}", tool="run_repl", code=code, output="not late\n"*40)
        t.append(Cell(id=cell, run=run, parent=r.id, step=k, **ran))
    k = 0
    while len(t) < n - 2:
        k += 1
        for cell in step(1, k, 20):
            child = t.append(Run(run=1, parent=cell, depth=1, query="And here?", model="sub", prompt="p"*100)).id
            for _ in step(child, 1, 0): pass
            t.append(End(run=child))
    t.append(Final(run=1, answer="nobody"))
    t.append(End(run=1))
    t.close()
    return t


def write_row(t, folder, rounds):
    "Appending an event, beside its line alone"
    events,n = t.events[:5000],iter(range(1_000_000))
    def ours():
        log = Trajectory(folder/f"{next(n)}.jsonl")
        return seconds(lambda: [log.append(e) for e in events])/len(events)
    def floor():
        lines = [json.loads(event_to_json(e)) for e in events]
        def write():
            with open(folder/f"{next(n)}.jsonl", "w") as f:
                for o in lines:
                    f.write(json.dumps(o) + "\n")
                    f.flush()
        return seconds(write)/len(events)
    return Row("an event is written, over its JSON alone", *map(ms, interleaved(rounds, ours, floor)),
               compare="value", target=0.2)


def load_rows(path, rounds):
    "The file read back, beside the JSON in it"
    def parse(): return [json.loads(o) for o in path.read_text().splitlines()]
    ours,floor = interleaved(rounds, lambda: seconds(Trajectory.load, path), lambda: seconds(parse))
    what = f"{EVENTS:,} events, {path.stat().st_size/1e6:.0f} MB, read back"
    return [Row(what, ours, floor, "s", "value", target=2),
            Row("the same, over `json.loads` of each line", ours, floor, "s")]


def fold_row(name, many, few, rounds):
    "What is computed of the events, beside ten times the time for a tenth of them"
    def took(t): return seconds(lambda: getattr(t, name)() if callable(getattr(type(t), name)) else getattr(t, name))
    ours,tenth = interleaved(rounds, lambda: took(many), lambda: took(few))
    return Row(f"`{name}` of {EVENTS:,} events, over 10 × a tenth of them", ms(ours), ms([10*o for o in tenth]),
               target=3)


def rows():
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        many,few = long_run(EVENTS, folder/"run.jsonl"),long_run(EVENTS//10)
        return [write_row(few, folder, 5), *load_rows(folder/"run.jsonl", 5),
                *[fold_row(o, many, few, 5) for o in FOLDS]]
