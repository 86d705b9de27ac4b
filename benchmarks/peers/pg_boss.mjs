// pg-boss, on PostgreSQL: batches of 500, polled every 0.5 s, the shortest that it allows.

import PgBoss from "pg-boss";
import { DB_URL, instant, ran, serve, slices } from "./kit.mjs";

let boss;

async function started() {
  if (!boss) {
    boss = new PgBoss({ connectionString: DB_URL, max: 32 });
    boss.on("error", (error) => console.error(error));
    await boss.start();
  }
  return boss;
}

serve({
  async setup() {
    await (await started()).createQueue("noop");
  },
  async work() {
    const options = { batchSize: 500, pollingIntervalSeconds: 0.5 };
    await (await started()).work("noop", options, async (jobs) => {
      for (const job of jobs) ran(job.data.number);
    });
  },
  async createOne(number, due) {
    await (await started()).send("noop", { number }, { startAfter: instant(due) });
  },
  async store(first, due) {
    const to = await started();
    for (const pairs of slices(first, due)) {
      await to.insert(pairs.map(([number, moment]) => ({ name: "noop", data: { number }, startAfter: instant(moment) })));
    }
  },
  async left() {
    const { rows } = await (await started())
      .getDb()
      .executeSql("SELECT count(*)::int AS number FROM pgboss.job WHERE name = 'noop' AND state < 'completed' AND start_after <= now()", []);
    return rows[0].number;
  },
  async close() {
    await boss?.stop({ graceful: false });
  },
});
