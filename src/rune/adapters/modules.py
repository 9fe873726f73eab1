"""Names of the linear layers that a LoRA may change, as Qwen2 and Llama call them. Loads no torch."""

from __future__ import annotations

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
