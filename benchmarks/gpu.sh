#!/bin/sh
# Speed, memory and MFU of LoRA on a 7B Llama on a GPU, ours against transformers' Trainer.
# Unattended, under 9 minutes, on a machine that has PyTorch and transformers; what else is missing
# (peft, bitsandbytes, Liger) is installed beside them if an index is in reach, else left out.
#     sh benchmarks/gpu.sh [--json FILE] [--tiny]
set -eu
cd "$(dirname "$0")/.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="src:$site${PYTHONPATH:+:$PYTHONPATH}"
for package in accelerate peft safetensors bitsandbytes liger_kernel; do
    python3 -c "import importlib.util as u; exit(u.find_spec('$package') is None)" ||
        timeout 60 python3 -m pip install -q --no-deps --target "$site" \
            "$(echo $package | tr _ -)" || echo "$package is not here and cannot be installed"
done
exec_time=${GPU_SECONDS:-460}
timeout $((exec_time + 40)) python3 benchmarks/gpu.py --seconds "$exec_time" "$@"
