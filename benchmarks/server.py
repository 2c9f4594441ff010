"A model server on loopback with one reply, until its input ends: `python -m benchmarks.server REPLY-AS-JSON LATENCY`."
import json, sys

from rlm.offline import serve

if __name__ == "__main__":
    with serve(json.loads(sys.argv[1]), latency=float(sys.argv[2]), record=False) as srv:
        print(srv.base_url, flush=True)
        sys.stdin.read()
