#!/bin/sh
# The original's command: puts everything a participant needs into the store, prints its CID last.
# ./build_and_upload.sh [TASK.TOML|FOLDER] [OPTIONS]; without arguments it packs examples/task.toml.
here=$(dirname "$0")
[ $# -gt 0 ] || set -- "$here/examples/task.toml"
[ -x "$here/.venv/bin/python" ] && python="$here/.venv/bin/python"
exec "${python:-python3}" -m flockllm.cli task pack "$@"
