// Helia as a trustless gateway, as a UnixFS importer, and as a peer of others over bitswap.
// Prints the port of its HTTP server on 127.0.0.1; ends with its standard input.
//   GET  /ipfs/CID?format=raw|car   the gateway
//   POST /add                       a file, cut by Helia itself; answers its CID
//   POST /import                    a CAR
//   POST /connect?peer=MULTIADDR    dials
import { createServer } from 'node:http'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

import { withBitswap } from '@helia/bitswap'
import { car } from '@helia/car'
import { withLibp2pLight } from '@helia/libp2p'
import { unixfs } from '@helia/unixfs'
import { CarReader } from '@ipld/car'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createHeliaLight } from 'helia'
import { CID } from 'multiformats/cid'

const helia = withBitswap(withLibp2pLight(createHeliaLight(), {
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
}))
await helia.start()
const files = unixfs(helia)
const cars = car(helia)

async function answer (request, response) {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost')
  if (pathname.startsWith('/ipfs/')) {
    const cid = CID.parse(pathname.slice('/ipfs/'.length))
    const signal = AbortSignal.timeout(20_000)
    if (searchParams.get('format') === 'car') {
      return await pipeline(Readable.from(cars.export(cid, { signal })), response)
    }
    return await pipeline(Readable.from(helia.blockstore.get(cid, { signal })), response)
  }
  switch (pathname) {
    case '/add':
      return response.end((await files.addByteStream(request, { profile: 'unixfs-v1-2025' })).toString())
    case '/import':
      await cars.import(await CarReader.fromIterable(request))
      return response.end()
    case '/connect':
      await helia.libp2p.dial(multiaddr(searchParams.get('peer')))
      return response.end()
  }
  response.writeHead(404).end()
}

const server = createServer((request, response) => {
  answer(request, response).catch((error) => {
    if (response.headersSent) return response.destroy()
    response.writeHead(error.name === 'NotFoundError' ? 404 : 500).end(String(error))
  })
})
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
process.stdin.resume().on('end', () => process.exit(0))
