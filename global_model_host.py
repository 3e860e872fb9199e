"""`python global_model_host.py --base_model … --lora_weights_path … --lora_config_path …`

The original's command; the same as `flockllm host`, which spells its options with hyphens.
"""

import sys

from flockllm.cli import main

if __name__ == "__main__":
    names = (word.partition("=") for word in sys.argv[1:])
    words = [(n.replace("_", "-") if n.startswith("--") else n) + e + v for n, e, v in names]
    main(["host", *words])
