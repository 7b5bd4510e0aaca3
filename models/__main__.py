"""Lists the models: `python -m models`."""

import importlib

from models.command import names

for name in names():
    text = importlib.import_module(f"models.{name}").__doc__
    assert text
    print(f"{name:24} {text.splitlines()[0]}")
