"""`python client_data_allocation.py NUM_CLIENT DIFF_QUANTITY`, the original's command.

Deals `new-databricks-dolly-15k.json` of the working folder out into `data/NUM_CLIENT`;
the same as `flockllm data allocate`, which takes other files and has more options.
"""

import sys

from flockllm.cli import main

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python client_data_allocation.py NUM_CLIENT DIFF_QUANTITY")
    source = "new-databricks-dolly-15k.json"
    options = ["--clients", sys.argv[1], "--diff-quantity", sys.argv[2]]
    main(["data", "allocate", source, *options])
