"""Own model code of strangers: packed as an OCI image, run apart from the machine it runs on."""

from flockllm.sandbox.engines import HOW_TO_GET_ONE, Engine, Limits, choose
from flockllm.sandbox.image import Image, open_image, pack, unpack
from flockllm.sandbox.model import SandboxedModel

__all__ = [
    "HOW_TO_GET_ONE",
    "Engine",
    "Image",
    "Limits",
    "SandboxedModel",
    "choose",
    "open_image",
    "pack",
    "unpack",
]
