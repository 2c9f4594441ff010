"Every name of ours that the page for those who come from other packages mentions is there, with these parameters."
import ast, builtins, importlib, inspect, json, keyword, re, typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

page = Path(__file__).resolve().parent.parent/"nbs"/"explanations"/"migrating.ipynb"
modules = """trajectory prompts budget cache lm offline files context typed reading cell shell launch sandbox routing subcalls tools reply
    judge result core session model view page export environment benchmarks""".split()
requests = "max_tokens temperature timeout extra_headers api_version".split() # what goes along with every request to a model

def markdown():
    for cell in json.loads(page.read_text())["cells"]:
        if cell["cell_type"] == "markdown": yield "".join(cell["source"])

def rows():
    "Columns and cells of each row of each table"
    for text in markdown():
        head = None
        for line in text.splitlines():
            if not line.startswith("|"): head = None
            elif head is None: head = cells_of(line)
            elif not set(line) <= set("|- "): yield head,cells_of(line)

def cells_of(line): return [o.strip() for o in line.strip().strip("|").split("|")]

def spans(text): return re.findall(r"`([^`]+)`", text)

@pytest.fixture(scope="module")
def names():
    "What the page may speak of, by name: in tables about the shell, and elsewhere"
    from rlm import RLM, prep_shell
    from rlm.offline import ScriptedLM, tool_call
    ours = {}
    for m in map(importlib.import_module, (f"rlm.{o}" for o in modules)):
        ours |= {k: v for k,v in vars(m).items() if getattr(v, "__module__", m.__name__).startswith("rlm.") and k[0] != "_"}
    lm = ScriptedLM(lambda messages, tools: tool_call("FINAL(len(context))"))
    rlm = RLM(lm)
    r,sh = rlm.completion("How long?", "a text"),prep_shell("a text")
    s = rlm.session("a text").open()
    final = {k: None for k in "type answer how status trajectory".split()}
    ours |= dict(rlm=rlm, r=r, sh=sh, s=s, lm=lm, c=lm.complete("?"), e=r.trajectory[0], final=final, Path=Path,
                 TypedDict=typing.TypedDict, evidence=SimpleNamespace(trajectory=r.trajectory))
    shell = {k: v for k,v in sh.user_ns.items() if k[0] != "_"} | dict(_result_1="", _result_2="", context_1="")
    words = parameters(shell | ours)
    yield dict(ours=shell | ours | dict(words=words), shell=ours | shell | dict(words=words))
    s.close()
    sh.close()
    rlm.close()

def value(node, known):
    "The object that an expression names; `LookupError` if there is none"
    if isinstance(node, ast.Name):
        if node.id in known: return known[node.id]
        if hasattr(builtins, node.id): return getattr(builtins, node.id)
        raise LookupError(node.id)
    if isinstance(node, ast.Attribute):
        base = value(node.value, known)
        if hasattr(base, node.attr): return getattr(base, node.attr)
        if is_dataclass(base) and node.attr in {f.name for f in fields(base)}: return None
        raise LookupError(f"{node.attr} of {base!r}")
    if isinstance(node, ast.Call): return check_call(node, known)
    if isinstance(node, ast.Await): return value(node.value, known)
    if isinstance(node, ast.Subscript):
        base = value(node.value, known)
        return base[node.slice.value] if isinstance(base, dict) and isinstance(node.slice, ast.Constant) else None
    if isinstance(node, ast.Constant): return node.value
    return None

def check_call(node, known):
    "Raise unless what is called takes these arguments; an example of what it gives, where the page goes on with it"
    fn = value(node.func, known)
    for o in ast.walk(node):
        if o is not node and isinstance(o, ast.Call): check_call(o, known)
    if fn is None or getattr(fn, "__module__", None) == "builtins" or not callable(fn): return None
    sig,kw = inspect.signature(fn),[o.arg for o in node.keywords]
    lm = kw and fn in (known["RLM"], known["LM"]) or getattr(fn, "__name__", "") in ("complete", "acomplete")
    allowed = {*sig.parameters, *(inspect.signature(known["LM"]).parameters if fn is known["RLM"] else ()), *(requests if lm else ())}
    free = any(p.kind is p.VAR_KEYWORD for p in sig.parameters.values()) and getattr(fn, "__name__", "") in ("protect", "ScriptedLM")
    if not free and not {*kw} <= allowed: raise LookupError(f"{ast.unparse(node)}: there is no {', '.join({*kw} - allowed)}")
    sig.bind_partial(*[None]*len(node.args), **{k: None for k in kw})
    if fn is known["make_run_repl"]: return fn(known["sh"])
    if getattr(fn, "__name__", "") == "run_repl": return fn("")
    return {"completion": known["r"], "acompletion": known["r"], "run": known["sh"].run("")}.get(getattr(fn, "__name__", ""))

def check_command(text):
    "Raise unless the command takes these options"
    from typer.main import get_command
    from rlm.cli import app
    words = text.split()[1:]
    command = get_command(app)
    if words and not words[0].startswith("-"): command = command.commands[words.pop(0)]
    there = {o for p in command.params for o in p.opts} | {"--help", "-h"}
    wrong = [o for o in words if o.startswith("-") and o not in there]
    if wrong: raise LookupError(f"{text}: there is no {', '.join(wrong)}")

def check(text, known):
    if text == "rlm" or re.match(r"rlm (ask|demo|doctor|--)", text): return check_command(text)
    if text.startswith(("!", "%%", "RLM_", ".env")) or keyword.iskeyword(text) or re.fullmatch("[A-Z]+_API_KEY", text): return
    if text.endswith("=") and text[:-1] in known["words"]: return
    for line in ast.parse(text).body:
        node = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "value", None)
        if isinstance(node, ast.Name) and node.id in known["words"]: continue
        if node is None and not isinstance(line, ast.Import): raise LookupError(text)
        if node is not None: value(node, known)
        for o in ast.walk(line):
            if isinstance(o, ast.Call): check_call(o, known)

def parameters(known):
    "Names of parameters, fields and variables that the page speaks of"
    types = [o for o in known.values() if isinstance(o, type)]
    found = {p for o in (*types, *filter(inspect.isfunction, known.values())) if o.__module__.startswith("rlm")
             for p in signature_of(o)}
    return found | {"context", "question", "final", "role", "tool_call_id", "name", "content", "runs", "models", "total", "run_repl"}

def signature_of(o):
    try: return inspect.signature(o).parameters
    except (TypeError, ValueError): return ()

ours = [(head[1], o) for head,row in rows() for o in spans(row[1])]
remarks = [(head[1], o) for head,row in rows() for o in spans(row[2])]

def test_the_page_has_tables():
    assert len(ours) > 250 and all(len(head) == len(row) == 3 for head,row in rows())
    assert {head[1] for head,_ in rows()} == {"here", "ours", "ours, in the shell"}

@pytest.mark.parametrize("head,text", dict.fromkeys(ours + remarks))
def test_names_of_ours(head, text, names):
    try: check(text, names["shell" if "shell" in head else "ours"])
    except (LookupError, TypeError, SyntaxError) as e: pytest.fail(f"`{text}`: {e!r}", pytrace=False)

@pytest.mark.parametrize("text", ["RLM(model, max_iterations=3)", "r.response", "Limits(max_budget=1)", "rlm ask --question x", "rlm.ask(1)",
    "llm_query_batch(prompts)", "completion(", "RLM(model, limits=Limits(steps=3))", "rlm.completion(1, 2, 3, 4, 5)", "Cell.stdout"])
def test_the_check_finds_what_is_not_there(text, names):
    with pytest.raises((LookupError, TypeError, SyntaxError)): check(text, names["ours"])

def prose():
    for text in markdown():
        lines = [o for o in re.sub(r"```.*?```", "", text, flags=re.S).splitlines() if not o.startswith("|")]
        yield from spans("\n".join(lines))

@pytest.mark.parametrize("text", dict.fromkeys(prose()))
def test_names_in_prose(text, names): test_names_of_ours("ours", text, names)

def test_no_counterpart_has_a_reason():
    for head,row in rows():
        if "–" in spans(row[1]) or row[1] == "–": assert len(row[2]) > 10, row
        if not row[1]: pytest.fail(f"nothing is said of {row[0]}")
