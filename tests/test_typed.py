"What an answer must be: any object as plain data, schemas, checks that survive hostile values, answers as text."
import collections, dataclasses, datetime as dt, enum, ipaddress, json, math, pickle, re, subprocess, sys, time, typing, uuid
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict

import numpy as np, pandas as pd, pytest, typing_extensions
from hypothesis import example, given, settings, strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel, TypeAdapter, field_validator

from rlm.events import AnswerError, InputError
from rlm.plain import *
from rlm.typed import *
from rlm.typed import _adapter, _entries, _simple

root = Path(__file__).resolve().parent.parent

class Kind(enum.Enum):
    goods = "goods"
    other = 7

class Row(TypedDict):
    name: str
    days: NotRequired[int|None]

class Point(typing.NamedTuple):
    x: int
    y: float

@dataclass
class Place:
    name: str
    since: dt.date
    points: list[Point] = dataclasses.field(default_factory=list)

class Report(BaseModel):
    "What came out"
    model_config = ConfigDict(extra="forbid")
    places: list[Place]
    total: int = Field(ge=0)
    kind: Kind = Kind.goods
    by: dict[str, float]|None = None
    renamed: int = Field(default=0, alias="reNamed")

class Node(BaseModel):
    name: str
    kids: list["Node"] = []

report = dict(places=[dict(name="A", since="2020-05-01", points=[dict(x=1, y=2.5)])], total=3)

def wrong(t, value, *words, how="check"):
    "The message about `value`"
    with pytest.raises(AnswerError) as e: getattr(AnswerType(t), how)(value)
    text = str(e.value)
    assert text.startswith("The answer does not fit ") and len(text) <= 1_500
    for o in words: assert o in text, text
    return text

# Round trips

json_values = st.recursive(st.none()|st.booleans()|st.integers(-2**70, 2**70)|st.floats(allow_nan=False, allow_infinity=False)|st.text(),
    lambda o: st.lists(o, max_size=4)|st.dictionaries(st.text(), o, max_size=4), max_leaves=20)

@given(json_values)
def test_json_is_plain_already(v):
    assert plain(v) == v and json.loads(json.dumps(plain(v))) == v
    assert AnswerType(Any).check(v) == v and AnswerType({}).check(v) == v

text = st.text(st.characters(exclude_categories=["Cs"]))
times = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 1, 1))
typed = st.sampled_from([ # types with values that a shell may hold
    (int, st.integers(-2**60, 2**60)), (float, st.floats(allow_nan=False, allow_infinity=False)), (str, text), (bool, st.booleans()), (type(None), st.none()),
    (dt.date, st.dates()), (dt.datetime, times), (dt.time, st.times()), (dt.timedelta, st.timedeltas(dt.timedelta(-10_000), dt.timedelta(10_000))),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)), (uuid.UUID, st.uuids()), (Kind, st.sampled_from(Kind)), (Path, st.sampled_from([Path("a/b"), Path(".")])),
    (Literal["a", 2, True], st.sampled_from(["a", 2])), (bytes, text.map(str.encode)), (ipaddress.IPv4Address, st.ip_addresses(v=4)),
    (Point, st.builds(Point, st.integers(-9, 9), st.floats(-1e9, 1e9))),
    (Place, st.builds(Place, text, st.dates(), st.lists(st.builds(Point, st.integers(0, 9), st.floats(0, 9)), max_size=2))),
    (Report, st.builds(lambda t, k, b, r: Report.model_validate(dict(places=[], total=t, kind=k, by=b, reNamed=r)),
        st.integers(0, 9), st.sampled_from(Kind), st.none()|st.dictionaries(text, st.floats(-9, 9)), st.integers(0, 9))),
    (Row, st.fixed_dictionaries(dict(name=text), optional=dict(days=st.none()|st.integers(0, 9))))])

@st.composite
def types_and_values(draw):
    t,values = draw(typed)
    shape = draw(st.sampled_from("one list set tuple dict none".split()))
    hashable = t not in (Place, Report, Row, Point)
    if shape == "list": return list[t], draw(st.lists(values, max_size=4))
    if shape == "set" and hashable: return set[t], draw(st.sets(values, max_size=4))
    if shape == "tuple": return tuple[t, ...], tuple(draw(st.lists(values, max_size=4)))
    if shape == "dict": return dict[str, t], draw(st.dictionaries(text, values, max_size=4))
    if shape == "none": return t|None if t is not type(None) else t, draw(st.none()|values)
    return t, draw(values)

@settings(max_examples=400, deadline=None)
@given(types_and_values())
def test_objects_of_a_type_pass_and_come_back(pair):
    t,v = pair
    a = AnswerType(t)
    got = a.check(v)
    assert got == v and type(got) is type(v)
    data = plain(v)
    json.dumps(data, allow_nan=False)
    assert a.check(data) == v
    if "prefixItems" not in json.dumps(a.schema): assert AnswerType(a.schema).check(data) == data # named tuples have names in `plain`
    if t is not str: assert a.from_text(json.dumps(data)) == v
    assert from_plain(t, v if _simple(t) else data) == v
    assert a.name and a.describe()

@settings(max_examples=200, deadline=None)
@given(typed, json_values)
def test_a_check_gives_the_type_or_says_what_is_wrong(pair, v):
    a = AnswerType(list[pair[0]])
    for how,o in [(a.check, v), (a.from_text, json.dumps(v)), (AnswerType(a.schema).check, v)]:
        try: how(o)
        except AnswerError as e: assert len(str(e)) <= 1_500

@given(st.text(max_size=200))
@example("["*100_000)
@example("-"*90_000 + "1")
@example("9"*5_000)
@example("```\n"*200)
@settings(deadline=None)
def test_any_text_is_an_answer_or_an_error(s):
    for t in (int, list[str], Report, dict, Literal["a"]):
        try: AnswerType(t).from_text(s)
        except AnswerError: pass
    assert AnswerType(str).from_text(s) == s

# Plain data

class Plain:
    def __init__(self): self.a,self._b = 1, 2

class Rooted(RootModel[list[int]]): pass

@dataclass
class WithMethod:
    n: int
    def tolist(self): return "not this"

@pytest.mark.parametrize("value,want", [
    (np.int64(3), 3), (np.float32("nan"), None), (np.bool_(True), True), (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]), (np.array(5), 5),
    (np.datetime64("2026-01-01"), "2026-01-01T00:00:00"), (np.array(["2026-01-01T10:00"], "M8[ns]"), ["2026-01-01T10:00:00"]), (np.longdouble(1.5), 1.5),
    (np.ma.array([1, 2], mask=[0, 1]), [1, None]), (pd.NaT, None), (pd.NA, None), (pd.Timestamp("2026-01-01 10:00"), "2026-01-01T10:00:00"),
    (pd.Series([1, None]), [1.0, None]), (pd.Series([1, None], dtype="Int64"), [1, None]), (pd.Series([1, 2], index=["a", "b"]), dict(a=1, b=2)),
    (pd.Series([1, 2], index=["a", "a"]), [1, 2]), (pd.Index(["a"]), ["a"]), (pd.Categorical(["a", None]), ["a", None]), (pd.DataFrame(), []),
    (pd.DataFrame(dict(a=[1, 2]), index=[5, 9]), [dict(a=1), dict(a=2)]), (pd.DataFrame(dict(a=[1]), index=["r"]), [dict(index="r", a=1)]),
    (pd.DataFrame({("a", "sum"): [1]}), [{"a, sum": 1}]), (pd.DataFrame({1: [dt.date(2026, 1, 1)]}), [{"1": "2026-01-01"}]),
    (pd.DataFrame(dict(k=["x", "x", "y"], n=[1, 2, 3])).groupby("k", as_index=False).n.agg(["sum", "max"]), [dict(k="x", sum=3, max=2), dict(k="y", sum=3, max=3)]),
    ({3, 1, 2}, [1, 2, 3]), (collections.Counter("aab"), dict(a=2, b=1)), (collections.deque([1]), [1]), (range(3), [0, 1, 2]), ({1: 2}.keys(), [1]),
    ((o for o in "ab"), ["a", "b"]), ({None: 1, True: 2, 1.5: 3}, {"null": 1, "true": 2, "1.5": 3}), ({(1, "a"): 1}, {"1, a": 1}),
    (Point(1, 2.5), dict(x=1, y=2.5)), (Plain(), dict(a=1)), (Rooted([1]), [1]), (WithMethod(1), dict(n=1)), (Kind.other, 7), (enum.IntEnum("E", "a").a, 1),
    (Decimal("1e400"), "1E+400"), (Decimal("NaN"), None), (Decimal("1E+999999999"), "1E+999999999"), (1e308*10, None), (bytearray(b"a"), "a"), (re.compile("a"), "re.compile('a')"),
    (int, "<class 'int'>"), (ValueError("x"), "x"), (1+2j, "(1+2j)"), (np.str_("a"), "a"), (ipaddress.ip_address("::1"), "::1"), (dt.timedelta(days=-1), "-P1DT0.000000S")])
def test_plain(value, want):
    got = plain(value)
    assert got == want and type(got) is type(want)
    json.dumps(got, allow_nan=False)

def test_plain_needs_no_library_that_is_not_loaded():
    pytest.importorskip("polars")
    code = ("import sys; from rlm.typed import plain; import polars; print(plain([polars.DataFrame(dict(a=[1, None])), polars.Series(['x'])])); "
        "print([o for o in ('pandas', 'numpy', 'pydantic', 'jsonschema', 'fastcore') if o in sys.modules])")
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert r.stdout.splitlines()[0] == "[[{'a': 1}, {'a': None}], ['x']]", r.stderr
    assert "pydantic" not in r.stdout and "pandas" not in r.stdout

def test_plain_says_what_it_cannot_write():
    d = {}
    d["self"] = [d]
    with pytest.raises(ValueError, match="dict holds itself"): plain(d)
    with pytest.raises(ValueError, match="same name"): plain(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    wrong(Any, d, "holds itself")
    wrong(dict, {"a": Unreadable()}, "not today")

class Unreadable:
    def __init__(self): self.a = 1
    def __getattribute__(self, name):
        if name == "a": raise OSError("not today")
        return object.__getattribute__(self, name)

def test_an_endless_iterator_ends():
    import itertools
    assert len(plain(itertools.repeat(None))) == MAX_DRAWN

def test_a_large_frame_takes_seconds():
    df = pd.DataFrame(dict(a=np.arange(100_000), b="x", c=0.5))
    start = time.monotonic()
    assert len(AnswerType(list[dict[str, Any]]).check(df)) == 100_000
    assert time.monotonic() - start < 15

# Types

@pytest.mark.parametrize("t,name", [(int, "int"), (list[str], "list[str]"), (Optional[int], "int|None"), (int|None, "int|None"), (dict[str, list[Place]], "dict[str, list[Place]]"),
    (Literal["a", 1], "Literal['a', 1]"), (tuple[int, ...], "tuple[int, ...]"), (Annotated[int, Field(ge=0)], "int"), (Report, "Report"), (Any, "Any"),
    (dict(type="integer"), "int"), (dict(title="Order", type="object"), "Order"), (dict(properties={c*40: {} for c in "abc"}), "the schema")])
def test_names(t, name):
    assert AnswerType(t).name == name
    assert repr(AnswerType(t)) == f"AnswerType({name})"

@pytest.mark.parametrize("t", [None, "list[str]", "__import__('os')", 3, ["a"], print, lambda o: o, Place("a", dt.date(2026, 1, 1)), sys, pd.DataFrame, list[pd.DataFrame], typing.TypeVar("T"), True])
def test_what_is_no_type(t):
    with pytest.raises(InputError) as e: AnswerType(t)
    assert "is not a type that an answer can have" in str(e.value) and not isinstance(e.value, AnswerError) and len(str(e.value)) < 1_000

@pytest.mark.parametrize("t", [int, str, float, bool, list, dict, list[str], dict[str, int], list[list[int|None]], Literal["a", "b"], Optional[str], Any])
@given(v=json_values)
@settings(max_examples=60, deadline=None)
def test_the_simple_schema_means_what_pydantic_means(t, v):
    def fits(schema):
        try: AnswerType(schema).check(v)
        except AnswerError: return False
        return True
    assert fits(_simple(t)) == fits(TypeAdapter(t).json_schema())

class OldRow(typing_extensions.TypedDict):
    name: str

class Less(Row, total=False):
    more: Annotated[int, Field(ge=1)]

@dataclass
class HasRow:
    row: OldRow

def test_typed_dicts():
    assert {k: needed for k,(_,needed) in _entries(Less).items()} == dict(name=True, days=False, more=False)
    for t in (Row, OldRow, list[Row], Row|None, dict[str, Row], Annotated[list[Row], Field(min_length=1)], tuple[Row, ...], Less):
        assert AnswerType(t).schema
    assert AnswerType(list[Row]).check(pd.DataFrame(dict(name=["a"], days=[2.0]))) == [dict(name="a", days=2)]
    assert AnswerType(Row).check(dict(name="a", more=1)) == dict(name="a")
    wrong(Less, dict(name="a", more=0), "more: should be greater than or equal to 1")
    wrong(Row, dict(days=1), "name: is missing")
    assert AnswerType(HasRow).check(HasRow(dict(name="a"))).row == dict(name="a")

def test_a_type_that_holds_itself():
    a = AnswerType(Node)
    assert a.check(Node(name="a", kids=[Node(name="b")])).kids[0].name == "b"
    assert a.describe().splitlines() == ["Node", 'Node: {"name": str, "kids"?: list[Node]}', "A key with ? may be left out."]
    wrong(Node, dict(name="a", kids=[dict(name="b", kids=[dict()])]), "kids[0].kids[0].name: is missing")

def test_schemas_in_other_clothes():
    inner = dict(type="object", properties=dict(n=dict(type="integer")), required=["n"])
    a = AnswerType(dict(type="json_schema", json_schema=dict(name="x", schema=inner, strict=True)))
    assert a.schema == inner and AnswerType(dict(type="json_object")).schema == dict(type="object")
    assert AnswerType(a).schema == inner and to_schema(inner) is inner and to_schema(list[str]) == AnswerType(list[str]).schema
    for odd in (dict(type="json_schema"), dict(type="json_schema", json_schema=3), dict(type="json_schema", json_schema=dict(schema="x"))):
        with pytest.raises(InputError): AnswerType(odd)

def test_answer_types_can_be_sent_to_other_processes():
    for t in (Report, list[str], dict(type="integer")):
        a = AnswerType(t)
        a.check(report if t is Report else ["a"] if t == list[str] else 1)
        assert pickle.loads(pickle.dumps(a)).schema == a.schema

# Checks

def test_what_is_accepted():
    assert AnswerType(int).check(3.0) == 3 and type(AnswerType(int).check(3.0)) is int
    assert AnswerType(float).check(3) == 3.0 and AnswerType(Any).check(3.0) == 3.0 and type(AnswerType(int|float).check(3.0)) is float
    assert AnswerType(list[dict[str, int]]).check([dict(a=1.0), dict(a=2)]) == [dict(a=1), dict(a=2)]
    assert AnswerType(dict[int, str]).check({1: "a"}) == {1: "a"}
    assert AnswerType(dt.date).check(pd.Timestamp("2026-01-02")) == dt.date(2026, 1, 2)
    assert AnswerType(dt.datetime).check(dt.date(2026, 1, 2)) == dt.datetime(2026, 1, 2)
    got = AnswerType(Report).check({**report, "reNamed": 4})
    assert got.renamed == 4 and got.places[0].points == [Point(1, 2.5)] == AnswerType(Report).check(got).places[0].points
    assert AnswerType(Report).check({**report, "renamed": 5}).renamed == 5

@pytest.mark.parametrize("t,value", [(int, "3"), (int, True), (int, 3.5), (int, None), (float, "3"), (float, True), (str, 3), (bool, 1), (bool, "yes"), (list[str], "abc"), (list[int], {"a": 1}),
    (dict, [1]), (dt.date, "tomorrow"), (dt.date, pd.Timestamp("2026-01-02 10:00")), (float, math.nan), (Literal["a"], "b"), (Kind, "bads")])
def test_what_is_not_accepted(t, value):
    wrong(t, value, "the answer: ")
    if t is not Kind and t is not dt.date: wrong(to_schema(t), value, "the answer: ")

def test_a_number_of_thousands_of_digits(): wrong(int, 10**5000, "4300 digits")

def test_messages_name_places_and_are_short():
    bad = dict(places=[dict(name="A", since="soon"), dict(since=None, points=[dict(x="1", y=1)])], total=-1, kind="bads", extra="y"*10_000)
    told = wrong(Report, bad, "\n- places[0].since: should be a valid date", "(got the str 'soon')", "\n- places[1].name: is missing", "\n- places[1].points[0].x: should be a valid integer",
        "\n- total: should be greater than or equal to 0 (got the int -1)", "\n- extra: is not a field")
    assert "y"*100 not in told
    secret = "s"*1_000
    for t in (list[int], to_schema(list[int]), Literal["a"], to_schema(Literal["a"]), dict[str, int], dict(maxLength=5), dict(type="object", additionalProperties=False), {"not": {}}):
        for v in ([secret]*1000, secret, {secret: secret}, {f"{i}{secret}": [secret] for i in range(1000)}):
            try: AnswerType(t).check(v)
            except AnswerError as e: assert "s"*90 not in str(e) and len(str(e)) <= 1_500
    assert wrong(list[int], ["x"]*1000).endswith("- and 980 more")

def test_the_callers_own_checks():
    class Even(BaseModel):
        n: int
        @field_validator("n")
        def even(cls, v):
            if v == 1: raise ValueError("must be even")
            return v if v % 2 == 0 else v.not_there
    assert AnswerType(Even).check(dict(n=2)).n == 2
    wrong(Even, dict(n=1), "- n: must be even (got the int 1)")
    wrong(Even, dict(n=3), "not_there")

def test_several_names_for_a_field():
    class Many(BaseModel):
        n: int = Field(validation_alias=AliasChoices("a", "b"))
    assert [AnswerType(Many).check(o).n for o in (dict(a=1), dict(b=1), dict(n=1), Many(a=1))] == [1]*4

def test_a_model_that_was_changed_is_checked_again():
    r = Report.model_validate(report)
    r.total = "three"
    wrong(Report, r, "total: should be a valid integer")
    wrong(Report, Report.model_construct(places=[], total=-1), "total: ")

def test_lone_surrogates_are_an_error():
    wrong(list[str], ["a\udc80"], "surrogate")

# Schemas from elsewhere

@pytest.mark.parametrize("schema,good,bad,told", [
    (dict(type="integer"), [3, 3.0], [True, "3", 3.5], "should be of type integer"),
    (dict(type=["integer", "null"]), [3, None], ["x"], 'should be of type ["integer", "null"]'),
    (dict(minimum=2, maximum=4), [2, 4, "x"], [1], "should be >= 2 (got the int 1)"),
    (dict(multipleOf=3), [6], [7], "should be a multiple of 3"),
    (dict(type="array", minItems=2, uniqueItems=True), [[1, 2], [1, "1"], [True, 1]], [[1, 1], [1, 1.0], [{"a": 1, "b": 2}, {"b": 2, "a": 1}]], "should have no item twice"),
    (dict(enum=["a", 1]), ["a"], ["b"], 'should be one of ["a", 1]'),
    (dict(const=5), [5], [6], "should be 5"),
    (dict(pattern="^a+$"), ["aa", 3], ["b"], 'should match "^a+$" (got the str \'b\')'),
    (dict(properties=dict(a={}), patternProperties={"^x": dict(type="integer")}, additionalProperties=False), [dict(a=1, x1=2)], [dict(b=1)], "b: is not wanted"),
    (dict(patternProperties={"^x": dict(type="integer")}), [dict(x=1, y="a")], [dict(x="a")], "x: should be of type integer"),
    (dict(additionalProperties=dict(type="integer")), [dict(x=1)], [dict(x="a")], "x: should be of type integer"),
    (dict(required=["a", "b"]), [dict(a=1, b=2)], [dict(a=1)], "lacks the key 'b'"),
    (dict(anyOf=[dict(type="integer"), dict(type="array", items=dict(type="string"))]), [1, ["a"]], [[1]], "[0]: should be of type string"),
    (dict(format="date", type="string"), ["2026-01-01", dt.date(2026, 1, 1)], ["soon"], "should be in the format date"),
    ({"$ref": "#/$defs/n", "$defs": dict(n=dict(type="integer"))}, [1], ["x"], "should be of type integer"),
    ({"not": dict(type="null")}, [1], [None], 'should not be {"type": "null"}'),
    ({"if": dict(type="integer"), "then": dict(minimum=3)}, [3, "a"], [2], "should be >= 3"),
    ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 2, "exclusiveMinimum": True}, [3], [2], "should be >= 2"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "definitions": dict(n=dict(type="integer")), "$ref": "#/definitions/n"}, [3], ["2"], "integer")])
def test_keywords(schema, good, bad, told):
    a = AnswerType(schema)
    for o in good: assert a.check(o) == plain(o)
    for o in bad: wrong(schema, o, told if o is bad[0] else "")
    assert a.describe()

nest = {}
for _ in range(3000): nest = dict(items=nest)

@pytest.mark.parametrize("schema", [dict(type="text"), dict(type=5), dict(properties=3), dict(required="a"), dict(pattern="("), dict(pattern="(?=a)b"), dict(pattern=r"(a)\1"), dict(pattern=5),
    dict(pattern="(a{1000}){1000}"), dict(patternProperties={"[": {}}), dict(patternProperties=[1]), {"$ref": "https://127.0.0.1:1/x"}, {"$ref": "file:///etc/passwd"}, {"$ref": 3},
    {"$schema": ["x"]}, dict(unevaluatedProperties=False, patternProperties={"a": {}}), dict(enum=["x"*300_000]), dict(default={1, 2}), nest, dict(properties=dict(a="x")),
    {"$dynamicRef": "https://127.0.0.1:1/x", "type": "nothing"}], ids=lambda o: "-".join(map(str, o)))
def test_schemas_that_are_refused(schema):
    with pytest.raises(InputError) as e: AnswerType(schema)
    assert not isinstance(e.value, AnswerError) and len(str(e.value)) < 600

def test_no_schema_goes_to_the_network(monkeypatch):
    import urllib.request
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kw: pytest.fail("a request was made"))
    for ref in ("https://example.com/a", "http://localhost/a", "//example.com/a"):
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            for schema in ({key: ref}, {"$id": ref, "items": {key: "other"}}, {"$schema": ref, "items": {"$id": ref, key: "x#/y"}}):
                try: AnswerType(schema).check([1])
                except InputError: pass

def test_patterns_take_linear_time():
    start = time.monotonic()
    for schema in (dict(pattern="^(a+)+$"), dict(patternProperties={"^(a+)+$": False}), dict(patternProperties={"^(a+)+$": {}}, additionalProperties=dict(type="string")),
                   dict(propertyNames=dict(pattern="^(a|a)*$"))):
        value = "a"*100_000 + "!"
        try: AnswerType(schema).check(value if "pattern" in schema else {value: "x"})
        except AnswerError: pass
    assert time.monotonic() - start < 3

def test_a_schema_that_multiplies_is_stopped(monkeypatch):
    monkeypatch.setattr("rlm.typed.MAX_CHECK", 0.2)
    bomb = {"$defs": {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i+1}"}]*2} for i in range(40)}, "$ref": "#/$defs/a0"}
    bomb["$defs"]["a40"] = dict(type="integer")
    start = time.monotonic()
    assert "takes more than 0.2 s" in wrong(bomb, 1)
    assert time.monotonic() - start < 3
    wrong({"$ref": "#"}, 1, "nested too deep")
    wrong({"$ref": "#/$defs/none"}, 1, "cannot be checked")

def test_items_are_compared_in_linear_time():
    start = time.monotonic()
    AnswerType(dict(uniqueItems=True)).check([{"a": [i]} for i in range(20_000)])
    assert time.monotonic() - start < 3

def test_schemas_are_looked_at_in_linear_time():
    start = time.monotonic()
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "enum": [{"a": i} for i in range(15_000)]}
    assert AnswerType(schema).check({"a": 3}) == {"a": 3}
    assert time.monotonic() - start < 3

# Text

@pytest.mark.parametrize("t,text,want", [(int, "3", 3), (int, "```\n3\n```", 3), (float, " 2.5\n", 2.5), (bool, "True", True), (bool, "true", True), (str, "3", "3"), (str, "", ""),
    (list[str], "['a', 'b']", ["a", "b"]), (list[int], "First ```json\n[1]\n``` but then\n```json\n[2]\n```", [2]), (list[int], "see [9]: it is [1, 2]", [1, 2]),
    (dict, 'It is {"a": {"b": 1}}.', {"a": {"b": 1}}), (Literal["yes", "no"], '"yes"', "yes"), (Literal["yes", "no"], " yes ", "yes"), (str|None, "null", None), (str|None, "about", "about"),
    (str|list[str], 'they are ["a"]', 'they are ["a"]'), (Kind, "goods", Kind.goods), (Kind, "7", Kind.other), (dt.date, "2026-01-02", dt.date(2026, 1, 2)), (Decimal, "1.10", Decimal("1.10")),
    (dict(type="integer"), "3", 3), (dict(type="string"), '"x"', '"x"'), (dict(enum=["3"]), "3", "3"), (dict[str, int], "~~~\nx\n~~~ {'a': 1} {\"b\": 2}", {"b": 2})])
def test_answers_as_text(t, text, want): assert AnswerType(t).from_text(text) == want

def test_text_without_an_answer():
    wrong(int, "three", "should be a valid integer (got the str 'three')", how="from_text")
    wrong(int, '"3"', "(got the str '3')", how="from_text")
    wrong(Report, json.dumps({**report, "total": "x"}), "- total: should be a valid integer (got the str 'x')", how="from_text")
    assert AnswerType(Report).from_text(f"Here it is:\n```json\n{json.dumps(report, indent=2)}\n```\nDone.").total == 3

def test_hostile_text_is_quick():
    start = time.monotonic()
    for text in ("[" * 1_000_000, "{" * 1_000_000, "```\n" * 100_000, "```a\n" * 100_000, "````\n```\n" * 50_000, "`" * 500_000, " " * 1_000_000 + "x", "```a\n" + " \n" * 200_000, "[1," * 300_000, "\t" * 500_000 + "```\n"):
        wrong(int, text, how="from_text")
    assert time.monotonic() - start < 10

# Elsewhere

def test_it_works_without_fastcore_and_pydantic():
    "As in a container that has nothing but Python and IPython"
    code = """if True:
        import sys
        for name in ("fastcore", "pydantic", "jsonschema", "typing_extensions"): sys.modules[name] = None
        from typing import TypedDict, Literal
        from dataclasses import dataclass
        from rlm.typed import plain, to_schema, from_plain
        Row = TypedDict("Row", dict(name=str))
        @dataclass
        class Place: name: str
        print(to_schema(list[Row])["items"]["required"], from_plain(list[Row], [dict(name="a")]), plain(Place("a")), to_schema(Literal["a"]|None))
        for t in (Place, "x"):
            try: to_schema(t)
            except ValueError as e: print(e)"""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    out = r.stdout.splitlines()
    assert out and out[0] == "['name'] [{'name': 'a'}] {'name': 'a'} {'anyOf': [{'enum': ['a']}, {'type': 'null'}]}", r.stderr
    assert out[1].startswith("Place needs pydantic, which is missing here") and "is not a type" in out[2]
