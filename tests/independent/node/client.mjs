// A client of Towerbridge for Node, from the contract's files alone: `node client.mjs SCENE`, or no scene for one visit.
//
// TARGET is HOST:PORT, PROTOS the folder protos/, SERVICE_CONFIG the JSON of docs/calling.md (optional), ROOT a PEM file (TLS),
// and TOWERBRIDGE_API_KEY the key; `load` also takes IDS (a world's ids.json), RATE (a second) and DURATION (seconds). A scene
// prints what it saw, as JSON.
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const { TARGET, PROTOS, SERVICE_CONFIG, ROOT, TOWERBRIDGE_API_KEY, IDS, RATE = '20', DURATION = '5' } = process.env;
const DEADLINE_MS = 10_000;
const FILES = ['event', 'item', 'recommendation', 'release', 'user'].map((name) => `towerbridge/v1/${name}.proto`);

// longs: a 64-bit integer does not fit into JavaScript's number; as a string it is exact.
const reading = { includeDirs: [PROTOS], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };
const { v1 } = grpc.loadPackageDefinition(loader.loadSync(FILES, reading)).towerbridge;

function credentials() {
  if (!ROOT) return grpc.credentials.createInsecure();
  const channel = grpc.credentials.createSsl(readFileSync(ROOT));
  if (!TOWERBRIDGE_API_KEY) return channel;
  const metadata = new grpc.Metadata();
  metadata.set('authorization', `Bearer ${TOWERBRIDGE_API_KEY}`);
  const key = grpc.credentials.createFromMetadataGenerator((_, give) => give(null, metadata));
  return grpc.credentials.combineChannelCredentials(channel, key); // grpc-js refuses to send a key in plain text
}

const options = {
  'grpc.keepalive_time_ms': 360_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.keepalive_permit_without_calls': 0,
  ...(SERVICE_CONFIG ? { 'grpc.service_config': readFileSync(SERVICE_CONFIG, 'utf8') } : {}),
};
const connect = (Service) => new Service(TARGET, credentials(), options);
const events = connect(v1.EventService);
const recommendations = connect(v1.RecommendationService);
const users = connect(v1.UserService);

// A call's answer. The error of a call that failed has `code`, `details` and `metadata`, which holds the trailers.
function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + DEADLINE_MS;
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// How a call that must fail does, or its answer if it does not.
async function ending(promise) {
  try {
    return { answer: await promise };
  } catch (error) {
    return { code: grpc.status[error.code], details: error.details, trailers: error.metadata.getMap() };
  }
}

const recommend = (visitor_id, more = {}) =>
  call(recommendations, 'Recommend', { subject: { visitor_id }, limit: 5, exclude_seen: true, ...more });

function agree(visitor_id) {
  const agreed = { purpose: 'PURPOSE_PERSONALISATION', granted: true, source: 'the Node client' };
  return call(users, 'SetConsent', { person: { visitor_id }, consents: [agreed] });
}

async function visit() {
  const visitor = `node-${randomUUID()}`;
  const record = (event_id) =>
    call(events, 'RecordEvents', { events: [{ event_id, visitor_id: visitor, item_id: 'item-00000000', type: 'view' }] });
  const before = await recommend(visitor);
  const dropped = await record(`${visitor}-0`);
  await agree(visitor);
  const accepted = await record(`${visitor}-1`);
  const again = await record(`${visitor}-1`);
  const after = await recommend(visitor, { min_revision: accepted.revision });
  return { visitor, before, dropped, accepted, again, after };
}

// What a server says to calls that are wrong, or not allowed.
async function refusals() {
  return {
    limit: await ending(recommend('somebody', { limit: 0 })),
    nobody: await ending(call(recommendations, 'Recommend', { limit: 5 })),
    item: await ending(call(recommendations, 'FindSimilarItems', { item_id: 'no-such-item', limit: 5 })),
    read: await ending(recommend('somebody')),
    ingest: await ending(call(events, 'RecordEvents', { events: [] })),
  };
}

// One stream of events with a result for each. `first` is called when the first result is there; then the stream goes on.
function stream(visitor_id, event_ids, first = async () => {}) {
  return new Promise((resolve, reject) => {
    const results = [];
    const pipe = events.StreamEvents({ deadline: Date.now() + DEADLINE_MS });
    const send = (event_id) => pipe.write({ events: [{ event_id, visitor_id, item_id: 'item-00000001', type: 'view' }] });
    pipe.on('data', async (reply) => {
      results.push(reply);
      if (results.length > 1) return;
      await first();
      event_ids.slice(1).forEach(send);
      pipe.end();
    });
    pipe.on('error', reject);
    pipe.on('end', () => resolve(results));
    send(event_ids[0]);
  });
}

// As docs/calling.md asks: repeated only when the server says when, and not before.
async function backingOff(attempt, waited) {
  try {
    return await attempt();
  } catch (error) {
    const [said] = error.metadata?.get('grpc-retry-pushback-ms') ?? [];
    if (error.code !== grpc.status.RESOURCE_EXHAUSTED || said === undefined || Number(said) < 0) throw error;
    waited.push({ details: error.details, pushback_ms: Number(said) });
    await sleep(Number(said));
    return backingOff(attempt, waited);
  }
}

// A second stream while there is room for one only.
async function crowd() {
  const visitor = `node-${randomUUID()}`;
  await agree(visitor);
  const waited = [];
  let second;
  const first = await stream(visitor, [`${visitor}-1`, `${visitor}-2`, `${visitor}-3`], async () => {
    second = backingOff(() => stream(visitor, [`${visitor}-4`]), waited);
    while (!waited.length) await sleep(5);
  });
  return { first, second: await second, waited };
}

// One Recommend, by what the service config says.
const once = async () => ending(recommend('somebody'));

// An open loop: calls at random times, whatever became of the earlier ones, and each counted from when it was due.
async function load() {
  const { user_ids } = JSON.parse(readFileSync(IDS, 'utf8'));
  await new Promise((ready, failed) =>
    recommendations.waitForReady(Date.now() + DEADLINE_MS, (error) => (error ? failed(error) : ready())),
  );
  const [codes, taken, calls] = [{}, [], []];
  const begin = performance.now();
  for (let due = 0, number = 0; ; number += 1) {
    due += (-Math.log(1 - Math.random()) / Number(RATE)) * 1000; // Poisson: exponential gaps
    if (due >= Number(DURATION) * 1000) break;
    const wait = begin + due - performance.now();
    if (wait > 0) await sleep(wait); // to a millisecond, which is what Node's timers can do
    const subject = { user_id: user_ids[number % user_ids.length] };
    const ended = ending(call(recommendations, 'Recommend', { subject, limit: 10 })).then(({ code = 'OK' }) => {
      codes[code] = (codes[code] ?? 0) + 1;
      if (code === 'OK') taken.push(performance.now() - begin - due);
    });
    calls.push(ended);
  }
  await Promise.all(calls);
  taken.sort((a, b) => a - b);
  const at = (share) => taken[Math.min(taken.length - 1, Math.floor(share * taken.length))];
  return { calls: calls.length, codes, latency_ms: { p50: at(0.5), p99: at(0.99), max: at(1) } };
}

const scene = { visit, refusals, crowd, once, load }[process.argv[2] ?? 'visit'];
console.log(JSON.stringify(await scene()));
for (const client of [events, recommendations, users]) client.close();
