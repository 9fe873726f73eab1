"""What the real model answers bare and with the memory of a repository's session: python told.py TRAJECTORIES OUT."""

import json
import sys
from pathlib import Path

import rune
from rune.serving.settings import Config, Serve

QUESTION = "Write the Python function with_tax(cents, percent): the price with so many per cent of tax."

config = Config(serve=Serve(registry=sys.argv[2] + ".registry"))
memory = rune.remember(sys.argv[1], project="shop", config=config)
told = {"question": QUESTION, "adapter": memory.adapter_id, "rank": memory.rank}
told["bare"] = rune.chat(QUESTION, max_tokens=96, config=config)
told["with memory"] = rune.chat(QUESTION, memory=memory, max_tokens=96, config=config)
Path(sys.argv[2]).write_text(json.dumps(told, indent=1), encoding="utf-8")
