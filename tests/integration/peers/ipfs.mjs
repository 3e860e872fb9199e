// js-ipfs as a daemon with the Kubo RPC on a free port, offline but for peers it is told to dial.
// Usage: node ipfs.mjs NODE_MODULES REPO; prints the RPC's port; ends with its standard input.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

Promise.withResolvers ??= function () { // Node 20
  let resolve, reject
  const promise = new Promise((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const [modules, repo] = process.argv.slice(2)
const from = createRequire(pathToFileURL(modules + '/'))
const load = async (name) => import(pathToFileURL(modules + '/' + name))
const { create } = await load('ipfs-core/src/index.js')
const { HttpApi } = await load('ipfs-http-server/src/index.js')

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
