// js-ipfs with the Kubo RPC on a free port of 127.0.0.1, and without any network.
// Usage: node ipfs.mjs NODE_MODULES REPO; prints the port; ends with its standard input.
import { pathToFileURL } from 'node:url'

const [modules, repo] = process.argv.slice(2)
const { create } = await import(pathToFileURL(`${modules}/ipfs-core/src/index.js`))
const { HttpApi } = await import(pathToFileURL(`${modules}/ipfs-http-server/src/index.js`))

const ipfs = await create({
  repo,
  silent: true,
  init: { emptyRepo: true, algorithm: 'Ed25519' },
  config: {
    Addresses: { Swarm: [], API: '/ip4/127.0.0.1/tcp/0', Gateway: '' },
    Bootstrap: [],
    Discovery: { MDNS: { Enabled: false } },
    Routing: { Type: 'none' }
  }
})
const api = new HttpApi(ipfs)
await api.start()
console.log(api._apiServers[0].info.port)
process.stdin.resume().on('end', () => process.exit(0))
