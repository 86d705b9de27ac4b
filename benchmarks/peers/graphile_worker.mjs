// graphile-worker, on PostgreSQL; BENCH_LOCAL_QUEUE is the size of its local queue (0: none).

import { makeWorkerUtils, run } from "graphile-worker";
import pg from "pg";
import { DB_URL, instant, ran, serve, slices } from "./kit.mjs";

const LOCAL_QUEUE = Number(process.env.BENCH_LOCAL_QUEUE ?? 0);
const CONCURRENCY = 10;
const pool = new pg.Pool({ connectionString: DB_URL, max: 32 });
let utils;
let runner;

const connected = async () => (utils ??= await makeWorkerUtils({ pgPool: pool }));

serve({
  async setup() {
    await (await connected()).migrate();
  },
  async work() {
    const worker = { connectionString: DB_URL, concurrentJobs: CONCURRENCY, maxPoolSize: 12 };
    if (LOCAL_QUEUE) {
      Object.assign(worker, { localQueue: { size: LOCAL_QUEUE }, completeJobBatchDelay: 0, failJobBatchDelay: 0 });
    }
    runner = await run({
      preset: { worker },
      noHandleSignals: true,
      taskList: { noop: async ({ number }) => ran(number) },
    });
  },
  async createOne(number, due) {
    await (await connected()).addJob("noop", { number }, { runAt: instant(due) });
  },
  async store(first, due) {
    const to = await connected();
    for (const pairs of slices(first, due)) {
      await to.addJobs(
        pairs.map(([number, moment]) => ({ identifier: "noop", payload: { number }, runAt: instant(moment) })),
      );
    }
  },
  async left() {
    // A job that has succeeded is deleted.
    const { rows } = await pool.query(
      "SELECT count(*)::int AS number FROM graphile_worker._private_jobs WHERE run_at <= now()",
    );
    return rows[0].number;
  },
  async close() {
    await runner?.stop();
    await utils?.release();
  },
});
