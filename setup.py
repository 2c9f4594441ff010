"Give setuptools what `settings.ini` says is to be installed; all other metadata is in `pyproject.toml`."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ini = ConfigParser(interpolation=None)
ini.read(Path(__file__).parent/"settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

def lines(key): return [line for line in cfg[key].splitlines() if line]

setup(author=cfg["author"], keywords=cfg["keywords"], install_requires=lines("requirements"),
      extras_require={key.removesuffix("_requirements"): lines(key) for key in cfg if key.endswith("_requirements")},
      # The last is how nbdev links other projects' documentation to ours.
      entry_points=dict(console_scripts=lines("console_scripts"), pytest11=["rlm.testing = rlm.testing"],
                        nbdev=["rlm = rlm._modidx:d"]))
