// What the programs of the peers for Node share: the same commands and answers as in kit.py.

import fs from "node:fs";
import readline from "node:readline";

export const DB_URL = (process.env.BENCH_DB ?? "").replace("+psycopg2", "");
export const REDIS_URL = process.env.BENCH_REDIS ?? "";
export const SIZE = 1_000;
const PRELOADED_AT_ONCE = 20_000;
const ledger = fs.openSync(process.env.BENCH_LEDGER ?? "/dev/null", "a");

/** Note that a task has started: all that a handler does, and the same for every peer. */
export function ran(number) {
  fs.writeSync(ledger, `${number} ${((performance.timeOrigin + performance.now()) / 1000).toFixed(6)}\n`);
}

/** [number, due] in batches. */
export function* slices(first, due, size = SIZE) {
  for (let begin = 0; begin < due.length; begin += size) {
    yield due.slice(begin, begin + size).map((moment, place) => [first + begin + place, moment]);
  }
}

export const instant = (due) => new Date(due * 1000);

function figures(taken, seconds, size = 1) {
  taken.sort((a, b) => a - b);
  return {
    number: taken.length * size,
    seconds,
    p50_ms: taken[Math.floor(taken.length / 2)],
    p99_ms: taken[Math.floor(taken.length * 0.99)],
  };
}

const now = () => performance.now() / 1000;

/** A peer has setup, work, createOne(number, due), store(first, due), left and close. */
const commands = {
  setup: (peer) => peer.setup(),
  work: (peer) => peer.work(),
  store: (peer, { first, due }) => peer.store(first, due),
  left: async (peer) => ({ value: await peer.left() }),
  async create(peer, { seconds, connections, due, step }) {
    const begin = now();
    const taken = [];
    let next = 0;
    const caller = async () => {
      while (now() - begin < seconds) {
        const number = next++;
        const start = performance.now();
        await peer.createOne(number, due + number * step);
        taken.push(performance.now() - start);
      }
    };
    await Promise.all(Array.from({ length: connections }, caller));
    return figures(taken, now() - begin);
  },
  async batch(peer, { seconds, due }) {
    const begin = now();
    const taken = [];
    while (now() - begin < seconds) {
      const start = performance.now();
      await peer.store(taken.length * SIZE, new Array(SIZE).fill(due));
      taken.push(performance.now() - start);
    }
    return figures(taken, now() - begin, SIZE);
  },
  async preload(peer, { number, due }) {
    for (let first = 0; first < number; first += PRELOADED_AT_ONCE) {
      await peer.store(first, new Array(Math.min(PRELOADED_AT_ONCE, number - first)).fill(due));
    }
  },
};

/** Answer commands until the input ends. */
export async function serve(peer) {
  const reply = (answer) => fs.writeSync(1, JSON.stringify(answer ?? { value: null }) + "\n");
  console.log = console.info = console.debug = console.error;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { do: command, ...given } = JSON.parse(line);
    try {
      reply(await commands[command](peer, given));
    } catch (error) {
      reply({ error: String(error).slice(0, 600) });
    }
  }
  await peer.close();
  process.exit(0);
}
