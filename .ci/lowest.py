"Print pip constraints that allow only the lowest version of each requirement in settings.ini."
import re
from configparser import ConfigParser

ini = ConfigParser(interpolation=None)
ini.read("settings.ini", encoding="utf-8")
for key, value in ini["DEFAULT"].items():
    if not key.endswith("requirements"): continue
    for line in value.split():
        if m := re.match(r"([\w.-]+)[^>]*>=([\w.]+)", line): print(f"{m[1]}=={m[2]}")
        elif "[" not in line: raise SystemExit(f"settings.ini: {line} has no lower bound")
