"A real Jupyter kernel, for tests of what a notebook shows."
import json, time

from jupyter_client.manager import start_new_kernel

class Kernel:
    "A real kernel, and what its cells show"
    def __init__(self):
        self.manager,self.client = start_new_kernel()
        self.client.allow_stdin = False

    def __enter__(self): return self
    def __exit__(self, *args):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code, interrupt=None):
        "Messages of a cell with the seconds at which they came; `interrupt`: text after which to press the button"
        id,got,start = self.client.execute(code),[],time.monotonic()
        while time.monotonic() - start < 60:
            m = self.client.get_iopub_msg(timeout=60)
            if m["parent_header"].get("msg_id") != id: continue
            got.append((time.monotonic()-start, m))
            if interrupt and interrupt in json.dumps(m["content"]):
                self.manager.interrupt_kernel()
                interrupt = None
            if m["msg_type"] == "status" and m["content"]["execution_state"] == "idle": return Shown(got)
        raise TimeoutError(code)

    def complete(self, code):
        "What the tab key offers after `code`"
        id = self.client.complete(code, len(code))
        while (m := self.client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != id: pass
        return m["content"]["matches"]

    def help(self, code):
        "What `code?` shows"
        id = self.client.execute(code)
        while (m := self.client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != id: pass
        return m["content"]["payload"][0]["data"]["text/plain"]

class Shown:
    "The messages that came of a cell"
    def __init__(self, messages): self.messages = messages
    def of(self, *kinds): return [(t, m["content"]) for t,m in self.messages if m["msg_type"] in kinds]
    @property
    def frames(self): return [(t, c["transient"]["display_id"], c["data"]) for t,c in self.of("display_data", "update_display_data") if "display_id" in c.get("transient", {})]
    @property
    def last(self): return {id: data["text/html"] for _,id,data in self.frames}
    @property
    def result(self): return next((c["data"]["text/plain"] for _,c in self.of("execute_result")), None)
    @property
    def error(self): return next((c["ename"] for _,c in self.of("error")), None)

    @property
    def text(self): return "".join(c["text"] for _,c in self.of("stream"))
