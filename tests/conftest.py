"Every test, and every process a test starts, sees this checkout, no keys and nothing of the user's or the CI's settings."
import os, signal, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def join(sep, *parts): return sep.join(filter(None, parts))

settings = ("_API_KEY", "_API_BASE", "_BASE_URL", "GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "NO_COLOR", "COLUMNS")
for name in list(os.environ):
    if name.startswith("RLM_") and name != "RLM_TEST_IMAGE" or name.endswith(settings): del os.environ[name]

# Shells start what runs in the background with interrupts ignored, and tests send some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["PYTHONPATH"] = join(os.pathsep, str(root), os.environ.get("PYTHONPATH"))
for name in ("NO_PROXY", "no_proxy"): os.environ[name] = join(",", os.environ.get(name), "127.0.0.1,localhost")
home = tempfile.TemporaryDirectory(prefix="rlm-tests-")
for name in ("XDG_STATE_HOME", "IPYTHONDIR"): os.environ[name] = f"{home.name}/{name.lower()}"

def put(folder, named):
    "Write files into `folder`: texts or bytes by name"
    for name,data in named.items():
        path = folder/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder
