"""What `pip install rlm` gives: the wheel in an empty environment, without extras.

LiteLLM releases differ in what they import for a completion with tools; the newest one that pip finds is tried here."""
import json, os, shutil, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
root = Path(__file__).resolve().parent.parent

class Stub(BaseHTTPRequestHandler):
    "An OpenAI-compatible server whose model always calls the first tool it is offered"
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = dict(id="call_1", type="function", function=dict(
            name=asked["tools"][0]["function"]["name"], arguments='{"python_code": "1+1"}'))
        body = json.dumps(dict(id="c", object="chat.completion", created=0, model=asked["model"],
            choices=[dict(index=0, finish_reason="tool_calls",
                message=dict(role="assistant", content=None, tool_calls=[call]))],
            usage=dict(prompt_tokens=11, completion_tokens=7, total_tokens=18))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()

def sh(*args, **kwargs):
    "Run a command away from this checkout and its environment, and return what it prints"
    env = {k: v for k,v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PIP_REQUIRE_VIRTUALENV")}
    r = subprocess.run(list(map(str, args)), capture_output=True, text=True, timeout=900, env=env, **kwargs)
    assert r.returncode == 0, f"{args}\n{r.stdout[-3000:]}\n{r.stderr[-6000:]}"
    return r.stdout

@pytest.fixture(scope="module")
def python(tmp_path_factory):
    "The Python of an environment with nothing but the wheel and what it requires"
    tmp = tmp_path_factory.mktemp("wheel")
    copy = tmp/"rlm"
    skip = shutil.ignore_patterns(".git", ".venv*", "_docs", "_proc", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(root, copy, symlinks=True, ignore=skip)
    # As a release is made: the wheel comes from the source distribution, so that one must be whole, too.
    sh(sys.executable, "-m", "build", "--outdir", tmp/"dist", copy, cwd=tmp)
    [wheel] = (tmp/"dist").glob("*.whl")
    sh(sys.executable, "-m", "venv", tmp/"empty", cwd=tmp)
    python = tmp/"empty"/"bin"/"python"
    sh(python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile", wheel, cwd=tmp)
    yield python
    shutil.rmtree(tmp)

ask = '''
import sys
from rlm import LM

tool = dict(type="function", function=dict(name="run_repl", description="Run Python",
    parameters=dict(type="object", properties=dict(python_code=dict(type="string")), required=["python_code"])))
lm = LM("openai/stub", base_url=sys.argv[1], api_key="none")
reply = lm.complete("What is 1+1?", tools=[tool])
[call] = reply.message["tool_calls"]
print(call["function"]["name"], call["function"]["arguments"], reply.usage.total_tokens)
'''

def test_wheel(python, endpoint, tmp_path):
    import rlm
    version = sh(python, "-c", "import rlm, sys; print(rlm.__version__, 'litellm' in sys.modules)", cwd=tmp_path)
    assert version.split() == [rlm.__version__, "False"]
    assert sh(python, "-c", ask, endpoint, cwd=tmp_path) == 'run_repl {"python_code": "1+1"} 18\n'
    assert "ask" in sh(python.with_name("rlm"), "--help", cwd=tmp_path)
    assert "ask" in sh(python, "-m", "rlm", "--help", cwd=tmp_path)
    sh(python, "-m", "pip", "check", cwd=tmp_path)

def test_wheel_holds_the_package_and_its_description(python, tmp_path):
    import rlm
    files = sh(python, "-m", "pip", "show", "-f", "rlm", cwd=tmp_path).split("Files:")[1].split()
    assert {f.partition("/")[0] for f in files if not f.startswith("../")} == {"rlm", f"rlm-{rlm.__version__}.dist-info"}
    assert "../../../bin/rlm" in files
    meta = json.loads(sh(python, "-c", "import json; from importlib.metadata import metadata; "
        "print(json.dumps(metadata('rlm').json))", cwd=tmp_path))
    assert meta["requires_python"] == ">=3.11" and meta["license_expression"] == "Apache-2.0"
    assert meta["author"] and meta["keywords"] and any(o.startswith("litellm") for o in meta["requires_dist"])
