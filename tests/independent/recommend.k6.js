// A shop's visits: a person views an item, and asks what to show next. docs/load-testing.md says how to run it.
//
// TARGET, IDS (a world's ids.json), RATE (visits a second) and DURATION come with --env; ROOT (a PEM file) turns TLS on, and
// the key comes from TOWERBRIDGE_API_KEY.
import grpc from 'k6/net/grpc';
import exec from 'k6/execution';
import { check } from 'k6';

// Read once, here: k6 opens files only before the load begins.
const ids = JSON.parse(open(__ENV.IDS));
const root = __ENV.ROOT ? open(__ENV.ROOT) : null;
const key = __ENV.TOWERBRIDGE_API_KEY;
const run = Date.now();

const client = new grpc.Client();
client.load(['../../protos'], 'towerbridge/v1/event.proto', 'towerbridge/v1/recommendation.proto');

const RECORD = 'towerbridge.v1.EventService/RecordEvents';
const RECOMMEND = 'towerbridge.v1.RecommendationService/Recommend';
const params = { timeout: '5s', metadata: key ? { authorization: `Bearer ${key}` } : {} };

export const options = {
  scenarios: {
    // An open loop: visits begin at the rate, however long the earlier ones take, while there are VUs to make them.
    visits: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 20),
      duration: __ENV.DURATION || '5s',
      preAllocatedVUs: Number(__ENV.VUS || 20),
    },
  },
  thresholds: {
    checks: ['rate==1'],
    iterations: ['count>0'], // a run that did nothing passes every check
    dropped_iterations: ['count==0'], // visits that were never made: what would have been slow is missing from the figures
  },
  summaryTrendStats: ['med', 'p(90)', 'p(99)', 'p(99.9)', 'max', 'count'],
};

let connected = false;

export default function () {
  if (!connected) {
    client.connect(__ENV.TARGET, root ? { tls: { cacerts: root }, timeout: '10s' } : { plaintext: true, timeout: '10s' });
    connected = true; // one connection a VU
  }
  const visit = exec.scenario.iterationInTest;
  const person = ids.user_ids[visit % ids.user_ids.length];
  const viewed = ids.item_ids[visit % ids.item_ids.length];

  const event = { event_id: `k6-${run}-${visit}`, user_id: person, item_id: viewed, type: ids.event_types[0] };
  const recorded = client.invoke(RECORD, { events: [event] }, params);
  check(recorded, {
    'the event is acknowledged': (reply) => reply.status === grpc.StatusOK,
    'the event is accepted': (reply) => reply.message.results[0].status === 'EVENT_STATUS_ACCEPTED',
  });

  const request = { subject: { user_id: person }, limit: 10, exclude_seen: true, min_revision: recorded.message.revision };
  const answer = client.invoke(RECOMMEND, request, params);
  check(answer, {
    'the person is answered': (reply) => reply.status === grpc.StatusOK,
    'items of this catalogue come back': (reply) =>
      reply.message.itemIds.length > 0 && reply.message.itemIds.every((item) => ids.item_ids.includes(item)),
    'what was viewed is not shown again': (reply) => !reply.message.itemIds.includes(viewed),
    'the answer includes the event': (reply) => reply.message.eventsBehind === 0 && reply.message.degraded.length === 0,
  });
}
