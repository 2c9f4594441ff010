"""Recursive Language Models: answer questions over contexts far larger than a model's window

Modules:

- `rlm.analysis`: What a run has read, as a strip; its events as a table; two runs beside each other; time and cost as a plot.
- `rlm.batch`: Many questions at once: here, in a pool of processes, or on a cluster; what is answered is not asked again.
- `rlm.cell`: What one cell of code did, as a model and as a person sees it: output that stays small, short tracebacks, one result.
- `rlm.cli`: `rlm ask`: a question, some files, an answer; for people at a terminal and for scripts in a pipe. The runs are kept, and
- `rlm.context`: Turn files, folders and objects into a context, and describe any context without showing it.
- `rlm.core`: Ask the model, run its code, show it the output, until it ends: written once, without I/O.
- `rlm.coverage`: Which passages of a context stand in a text: in a prompt, in what code printed, in an answer.
- `rlm.doctor`: `diagnose()` tries where code can run and which models can be reached, and says how to get the rest.
- `rlm.environment`: Questions and a reward become an environment for reinforcement learning: its rollouts run this package's loop.
- `rlm.events`: What happens in a run, as small typed values; what it may use, what it has used, and the errors that stop it.
- `rlm.export`: A run as a notebook or script that runs again without a model, as chats to train on, and as another package's log.
- `rlm.files`: Read files and folders: text exactly, documents as text, data and pictures as what they are.
- `rlm.lm`: One model behind one object: synchronous, asynchronous or streamed, retried, counted and safe to call from anywhere.
- `rlm.logs`: Where the record of a run is kept, and how it is found again.
- `rlm.magics`: `%load_ext rlm`, and a cell of a notebook can be a question about its variables.
- `rlm.model`: One object that replaces the call of a language model, for input of any size.
- `rlm.offline`: Stand-ins for a language model, without key or network: a keyword extractor, scripted replies, a server on loopback.
- `rlm.page`: A run to read, search and pass on: one HTML file that opens anywhere, and the same in short below a notebook's cell.
- `rlm.prompts`: What a model is told: how to work in the shell, what is in it, and what kind of thing `context` is.
- `rlm.quiet`: An IPython shell that leaves the process around it alone: it can be made in any program, many times, and forgotten.
- `rlm.reading`: Find, page, cut, search and cite in texts of any size, with offsets that always point into the original.
- `rlm.recording`: An application runs with a model once, and from then on with the record of that run.
- `rlm.replay`: A log in the place of models: the same run again, and a stopped run brought back to where it was.
- `rlm.result`: What comes back: the answer, how it was found, what it cost, and the shell to go on in.
- `rlm.revisit`: Go on with a run that was stopped, look around in one that is over, or take it another way from any step.
- `rlm.routing`: Gives each cell of model-written code what it printed, and the host what the host printed, however many run at once.
- `rlm.session`: A shell and a conversation about what is in it: ask, look, and ask again.
- `rlm.shell`: Runs one cell of a model's code in a real IPython shell, and returns just what it printed, showed, raised or answered.
- `rlm.subcalls`: What makes the language model recursive: code can call one, or start a whole run of its own.
- `rlm.testing`: A pytest plugin: models answer from recorded runs, so that the tests of an application need no key and no patience.
- `rlm.tools`: The shell a model works in, and the tool it works with.
- `rlm.trajectory`: A run is its log: events, appended to one file, from which everything else is computed.
- `rlm.typed`: What an answer must be, told to a model and checked with messages it can act on.
- `rlm.watch`: A run shows itself below the cell that started it: the step it is in, as it is written and printed, and what it has cost."""

__version__ = "0.1.0"

# The docstring above is written by nbdev-export; the rest of this file is written by hand.
# Each name is imported from its module when it is first used, so that `import rlm` costs nothing.
_names = dict(
    trajectory="Trajectory", events="""Limits Usage RLMError InputError AnswerError ContextError ShellError
        SandboxUnavailable LimitExceeded LMError LMAuthError LMNotFoundError LMConnectionError LMTimeoutError
        LMRateLimitError LMContextLengthError LMRequestError LMServerError""",
    lm="LM", tools="prep_shell make_run_repl", core="advanced_toolloop", result="Result", model="RLM run arun",
    replay="Replay ReplayError", revisit="resume aresume", magics="load_ipython_extension")
_module_of = {name: module for module, names in _names.items() for name in names.split()}
__all__ = [name for name in _module_of if name != "load_ipython_extension"] # which is for `%load_ext rlm`

def __getattr__(name):
    if name not in _module_of: raise AttributeError(f"module 'rlm' has no attribute {name!r}")
    from importlib import import_module
    value = globals()[name] = getattr(import_module(f"rlm.{_module_of[name]}"), name)
    return value

def __dir__(): return sorted({*globals(), *__all__})
