"The prompts together: their length, the names they use, and what must never be in them."
import builtins, functools, importlib.util, json, re
from pathlib import Path

import pytest

from rlm import prompts
from rlm.context import facts
from rlm.prompts import *
from rlm.reading import reading_functions
from rlm.shell import model_functions
from rlm.tools import prep_shell

sh = prep_shell("text")
functions = list((sh.functions | model_functions() | reading_functions()).values())
query = "Which suppliers missed their service level in the third quarter, and by how much?"

def everything(dialect="tools", context={"a": ["x"*1_000_000]*5}):
    return system_prompt(REPL_SYSTEM_PROMPT, functions, dialect) + user_prompt(query, facts(context))

@pytest.mark.parametrize("dialect", ["tools", "fenced"])
def test_everything_is_about_1000_tokens(dialect): assert len(everything(dialect))/3.5 < 1100

def test_tokens_as_cl100k_counts_them(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    spec = importlib.util.find_spec("litellm")
    cache = spec and Path(spec.origin).parent/"litellm_core_utils/tokenizers" # LiteLLM ships the encoding
    if not (cache and cache.is_dir()): pytest.skip("no encoding offline")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    n = len(tiktoken.get_encoding("cl100k_base").encode(everything("fenced")))
    assert n < 1000 and n < len(everything("fenced"))/3.5

def test_only_names_that_always_exist():
    known = {o.__name__ for o in functions} | {"run_repl", "map", "join", "range", "len", "print", "type"}
    for text in (REPL_SYSTEM_PROMPT, FENCED_PROMPT, LAST_STEP_PROMPT):
        assert set(re.findall(r"\b([A-Za-z_]\w*)\(", text)) <= known
    for name in ("context", "llm_query", "llm_query_batched", "FINAL", "FINAL_VAR", "SHOW_VARS"): assert name in REPL_SYSTEM_PROMPT

def test_listed_functions_are_those_given():
    listed = system_prompt("Base.", functions + [lambda: 0, len])
    assert re.findall(r"(?m)^- (\w+)\(", listed) == [f.__name__ for f in functions] + ["len"]
    assert "- len(obj, /): Return the number of items in a container." in listed

def test_signatures_do_not_vary_or_raise():
    def local(x: "NoSuchName", y=object(), *args, z: int=3, text="canary"*10, **kw): pass
    assert signature_of(local) == "(x: NoSuchName, y=..., *args, z: int = 3, text=..., **kw)"
    class Tool:
        "Does things."
        def __call__(self, n: int = 1): pass
        def method(self, n): "Of a tool."
    assert describe_function("tool", Tool()) == "- tool(n: int = 1): Does things."
    assert describe_function("method", Tool().method) == "- method(n): Of a tool."
    assert describe_function("three", functools.partial(local, 3)).startswith("- three(")
    for f in vars(builtins).values():
        if callable(f): describe_function("f", f)
    assert describe_functions({"1x": len, "class": len, "_p": len, "x": 3}) == ""

def test_a_replaced_docstring_is_kept_to_one_line():
    def f(): "\n\n   First.\n\n   Second.\n"
    assert describe_function("f", f) == "- f(): First."

def test_descriptions():
    d = lambda x: describe_context(facts(x))
    assert d("") == "`context` is of type str: 0 characters in 0 lines."
    assert d("x") == "`context` is of type str: 1 character in 1 line."
    assert d([]) == "`context` is of type list: 0 items."
    assert d({}) == "`context` is of type dict: 0 entries."
    assert d({1: [2]}) == "`context` is of type dict: 1 entry, keys int, values list, nested 2 deep."
    assert d(3) == "`context` is of type int."
    assert d(b"abc") == "`context` is of type bytes: length 3."
    assert d("x\n"*5_000_000).startswith("`context` is of type str: 10,000,000 characters in about 5,000,000 lines (mean 2")
    assert "about 500,000 characters of text in all (1 to 1 each, median 1, in a sample)" in d(["x"]*500_000)

CANARY = "Xylokanarienvogel"
class Holder:
    def __init__(self): self.text = CANARY
    def __repr__(self): return CANARY
    def __len__(self): return 7

@pytest.mark.parametrize("context", [CANARY, f"{CANARY}\n"*3, CANARY*400_000, [CANARY], (CANARY, 1), {CANARY: 1}, {1: CANARY}, {CANARY: {CANARY: [CANARY]}},
    {CANARY}, frozenset({CANARY}), [{"text": CANARY}]*20_000, CANARY.encode(), Holder(), [Holder()], {(CANARY, 1): None}, Path(CANARY)], ids=lambda x: type(x).__name__)
def test_never_any_content(context):
    found = facts(context)
    for text in (json.dumps(found), describe_context(found), user_prompt("Q", found)):
        assert CANARY not in text and CANARY[:6] not in text

def test_query_comes_first_and_whole():
    text = user_prompt("  Two\nlines?  ", facts("abc"))
    assert text.startswith("Question: Two\nlines?\n\n`context` is")

def test_notes_are_one_bounded_line():
    long = "x\n"*100_000
    notes = [note_no_end(), note_no_end("fenced"), note_bad_arguments(long, long), note_unknown_tool(long, [long]*50),
        note_open_fence(), note_unknown_variable(long, [long]*500), note_repeated_call()]
    for o in notes:
        assert "\n" not in o and len(o) < 1200 and o.endswith(".")
    assert "none" in note_unknown_variable("a", [])
    assert "480 more" in note_unknown_variable("a", ["b"]*500)

def test_the_module_needs_nothing_of_ours():
    source = Path(prompts.__file__).read_text()
    assert not re.search(r"(?m)^\s*(from \.|from rlm|import rlm)", source)
