// BullMQ, on Redis: delayed jobs, one worker with a concurrency of 50.

import { Queue, Worker } from "bullmq";
import { REDIS_URL, ran, serve, slices } from "./kit.mjs";

const parts = new URL(REDIS_URL);
const connection = {
  host: parts.hostname,
  port: Number(parts.port || 6379),
  username: parts.username || undefined,
  password: parts.password || undefined,
  db: Number(parts.pathname.slice(1) || 0),
};
const queue = new Queue("bench", { connection });
const job = (number, due) => ({
  name: "noop",
  data: { number },
  opts: { delay: Math.max(0, Math.round(due * 1000 - Date.now())), removeOnComplete: { count: 1_000 } },
});
let worker;

serve({
  async setup() {
    await queue.waitUntilReady();
  },
  async work() {
    worker = new Worker("bench", async ({ data }) => ran(data.number), {
      connection: { ...connection, maxRetriesPerRequest: null },
      concurrency: 50,
    });
    await worker.waitUntilReady();
  },
  async createOne(number, due) {
    const { name, data, opts } = job(number, due);
    await queue.add(name, data, opts);
  },
  async store(first, due) {
    for (const pairs of slices(first, due)) await queue.addBulk(pairs.map((pair) => job(...pair)));
  },
  async left() {
    // Those of the pending work are delayed by a year, and so not counted there.
    const counts = await queue.getJobCounts("wait", "active", "prioritized", "failed");
    return Object.values(counts).reduce((sum, count) => sum + count, 0);
  },
  async close() {
    await worker?.close();
    await queue.close();
  },
});
