// Replicate's client for JavaScript, called as its users call it; prints what a scenario saw as JSON.
// It is installed in the folder that this runs in, which is not where this file is.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename } from "node:path";
import { text } from "node:stream/consumers";

const Replicate = createRequire(`${process.cwd()}/`)("replicate");
const { validateWebhook } = Replicate;
const replicate = new Replicate({ baseUrl: process.env.BASE_URL });

// Returns a value with every file in it as what can be read from it.
async function seen(value) {
  if (value instanceof ReadableStream) {
    const url = value.url().href;
    if (url.startsWith("data:")) return { url };
    const blob = await value.blob();
    return { url, type: blob.type, content: Buffer.from(await blob.arrayBuffer()).toString("base64") };
  }
  if (Array.isArray(value)) return Promise.all(value.map(seen));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(await Promise.all(Object.entries(value).map(async ([key, item]) => [key, await seen(item)])));
}

async function collected(stream) {
  const events = [];
  for await (const { event, data, id } of stream) events.push([event, await seen(data), id]);
  return events;
}

const scenarios = {
  async run({ model, input, ...options }) {
    const statuses = [];
    const output = await seen(await replicate.run(model, { input, ...options }, ({ status }) => statuses.push(status)));
    return { output, statuses };
  },

  async run_error({ model, input }) {
    try {
      return { output: await replicate.run(model, { input }) };
    } catch (error) {
      return { error: error.message };
    }
  },

  // A file as each type that can be given.
  async run_with_file({ model, path, kind }) {
    const content = await readFile(path);
    const kinds = {
      buffer: () => content,
      blob: () => new Blob([content], { type: "text/plain" }),
      file: () => new File([content], basename(path), { type: "text/plain" }),
    };
    return seen(await replicate.run(model, { input: { source: kinds[kind]() } }));
  },

  async run_aborted({ model, input }) {
    const aborter = new AbortController();
    let last;
    const progress = (prediction) => {
      last = prediction;
      if (prediction.status === "processing") aborter.abort();
    };
    const wait = { mode: "poll", interval: 50 };
    const output = await replicate.run(model, { input, wait, signal: aborter.signal }, progress);
    return { output, status: last.status, id: last.id };
  },

  // Streams, and looks at the prediction when the first event is here.
  async stream({ model, input }) {
    const events = [];
    let status;
    for await (const { event, data, id } of replicate.stream(model, { input })) {
      if (!status) {
        const [latest] = (await replicate.predictions.list()).results;
        ({ status } = await replicate.predictions.get(latest.id));
      }
      events.push([event, await seen(data), id]);
    }
    return { status, events };
  },

  async stream_error({ model, input }) {
    try {
      return { events: await collected(replicate.stream(model, { input })) };
    } catch (error) {
      return { error: error.message };
    }
  },

  async files({ path }) {
    const content = await readFile(path);
    const file = new File([content], basename(path), { type: "text/plain" });
    const made = await replicate.files.create(file, { customer: "7" });
    const unnamed = await replicate.files.create(content);
    const got = await replicate.files.get(made.id);
    const listed = (await replicate.files.list()).results.map(({ id }) => id).slice(0, 2);
    const deleted = [await replicate.files.delete(made.id), await replicate.files.delete(unnamed.id)];
    const gone = await replicate.files.get(made.id).catch(({ response }) => response.status);
    return { made, unnamed, got, listed, deleted, gone };
  },

  // Validates a delivery in both ways of calling, and the same with another body.
  async webhook({ headers, body }) {
    const { key } = await replicate.webhooks.default.secret.get();
    const [id, timestamp, signature] = ["id", "timestamp", "signature"].map((name) => headers[`webhook-${name}`]);
    return {
      key,
      valid: [
        await validateWebhook({ headers: new Headers(headers), body }, key),
        await validateWebhook({ id, timestamp, signature, body, secret: key }),
        await validateWebhook({ headers, body: `${body} ` }, key),
      ],
    };
  },

  async pages() {
    const pages = [];
    for await (const page of replicate.paginate(replicate.predictions.list)) pages.push(page.map(({ id }) => id));
    return pages;
  },
};

const play = scenarios[process.argv[2]];
process.stdout.write(JSON.stringify(await play(JSON.parse(await text(process.stdin)))));
