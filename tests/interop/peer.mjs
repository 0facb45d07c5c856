// A js-libp2p peer, for the tests in tests/it/interop.rs. One command a run:
//
//   node peer.mjs ping ADDR                      identify and ping over the address's transport
//   node peer.mjs put ADDR NET KEY VALUE         stores a value with Kademlia
//   node peer.mjs get ADDR NET KEY               finds one
//   node peer.mjs gossip ADDR NET TEXT AWAITED   says a line, and waits for another
//   node peer.mjs unsigned ADDR NET TEXT         says a line without gossipsub's signature
//
// NET is the network id in hex. Prints a JSON object a line; exits with 1 when something is not as it should be.

import './older-node.mjs'

import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { gossipsub } from '@chainsafe/libp2p-gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const [command, address, net = '00'.repeat(32), ...rest] = process.argv.slice(2)
const network = Buffer.from(net, 'hex')
const short = net.slice(0, 8)
const topic = `/quelea/${short}/broadcast`
const deadline = AbortSignal.timeout(30_000)
deadline.addEventListener('abort', () => fail('nothing happened for 30 s'))

const tell = (what) => console.log(JSON.stringify(what))
const fail = (why) => {
  console.error(why)
  process.exit(1)
}

/// Waits until `ready` gives something.
async function until(ready) {
  for (;;) {
    const found = await ready()
    if (found) return found
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

const key = await generateKeyPair('Ed25519')
const node = await createLibp2p({
  privateKey: key,
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp(), webSockets()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: inNetwork,
    ping: ping(),
    ...(['put', 'get'].includes(command) && {
      dht: kadDHT({
        protocol: `/quelea/${short}/kad/1`,
        clientMode: false,
        peerInfoMapper: passthroughMapper,
        validators: { quelea: async () => {} },
        selectors: { quelea: () => 0 }
      })
    }),
    ...(['gossip', 'unsigned'].includes(command) && { pubsub: gossip })
  }
})

/// A peer that names no network in identify, or another one, is left out of Kademlia.
function inNetwork(components) {
  const service = identify()(components)
  service.host.protocolVersion = `/quelea/${short}/id/1`
  return service
}

function gossip(components) {
  const service = gossipsub({
    globalSignaturePolicy: command === 'gossip' ? 'StrictSign' : 'StrictNoSign',
    allowPublishToZeroTopicPeers: true,
    floodPublish: true
  })(components)
  service.multicodecs = [`/quelea/${short}/gossip/1`]
  return service
}

/// The signed envelope of a line: see protocols/wire/src/envelope.rs and protocols/broadcast.
async function line(text) {
  const sent = Buffer.alloc(8)
  sent.writeBigUInt64LE(BigInt(Date.now()))
  const body = Buffer.concat([sent, Buffer.from(text)])
  const signature = await key.sign(Buffer.concat([Buffer.from('quelea/broadcast/1\0'), network, Buffer.from([1]), body]))
  const length = Buffer.alloc(2)
  length.writeUInt16LE(body.length)
  return Buffer.concat([Buffer.from([1, 1]), key.publicKey.raw, length, body, signature])
}

const daemon = multiaddr(address)
const peer = peerIdFromString(daemon.getPeerId())
const identified = new Promise((resolve) => node.addEventListener('peer:identify', ({ detail }) => resolve(detail)))
const connection = await node.dial(daemon, { signal: deadline })
const { agentVersion, protocols, observedAddr } = await identified
tell({
  peer: node.peerId.toString(),
  agent: agentVersion,
  protocols,
  observed: observedAddr?.toString(),
  encryption: connection.encryption,
  multiplexer: connection.multiplexer,
  over: connection.remoteAddr.toString()
})

/// Waits until the daemon stands in the routing table.
const inTable = () => until(() => node.services.dht.routingTable.find(peer))
/// Waits until the daemon stands in the mesh of the topic: what is said then goes to it.
const inMesh = () => until(() => node.services.pubsub.getMeshPeers(topic).includes(peer.toString()))

switch (command) {
  case 'ping': {
    tell({ milliseconds: await node.services.ping.ping(daemon, { signal: deadline }) })
    break
  }
  case 'put': {
    await inTable()
    const kept = []
    for await (const event of node.services.dht.put(Buffer.from(rest[0]), Buffer.from(rest[1]), { signal: deadline })) {
      if (event.name === 'PEER_RESPONSE' && event.messageName === 'PUT_VALUE') kept.push(event.from.toString())
    }
    tell({ kept })
    break
  }
  case 'get': {
    await inTable()
    let value = null
    for await (const event of node.services.dht.get(Buffer.from(rest[0]), { signal: deadline })) {
      if (event.name === 'VALUE') value = Buffer.from(event.value).toString()
    }
    tell({ value })
    break
  }
  case 'gossip': {
    const heard = new Promise((resolve) =>
      node.services.pubsub.addEventListener('message', ({ detail }) => {
        const text = Buffer.from(detail.data).subarray(44, -64).toString()
        if (text === rest[1]) resolve({ heard: text, type: detail.type, from: detail.from.toString() })
      })
    )
    node.services.pubsub.subscribe(topic)
    await inMesh()
    const { recipients } = await node.services.pubsub.publish(topic, await line(rest[0]))
    tell({ said: rest[0], to: recipients.map(String) })
    tell(await heard)
    break
  }
  case 'unsigned': {
    node.services.pubsub.subscribe(topic)
    await inMesh()
    const { recipients } = await node.services.pubsub.publish(topic, await line(rest[0]))
    tell({ said: rest[0], to: recipients.map(String) })
    // The daemon has read it when it has answered what was sent behind it.
    await node.services.ping.ping(daemon, { signal: deadline })
    break
  }
  default:
    fail(`no command ${command}`)
}
await node.stop()
process.exit(0)
