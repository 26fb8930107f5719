// What the page says to the server, and how it reads the answers.

const KEY = "ditedge.key";

/** A refusal of the server: its sentence, and its status. */
export class Refusal extends Error {
  constructor(message, status, after) {
    super(message);
    this.status = status;
    this.after = after;
  }
}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
}

async function ask(path, options = {}) {
  const headers = { ...(options.body ? { "content-type": "application/json" } : {}) };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("the server does not answer", 0);
  }
  if (answer.ok) return answer;
  let message = `the server answers ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch { /* no sentence of ours */ }
  throw new Refusal(message, answer.status, answer.headers.get("retry-after"));
}

export const models = async () => (await (await ask("/v1/models")).json()).data;
export const status = async () => (await ask("/v1/status")).json();
export const job = async (id) => (await ask(`/v1/jobs/${id}?preview=true`)).json();
export const cancel = async (id) => (await ask(`/v1/jobs/${id}`, { method: "DELETE" })).json();
export const create = async (wish) => (await ask("/v1/jobs", { method: "POST", body: wishText(wish) })).json();

/** JSON with the seed as the digits that were typed: numbers of JavaScript have 53 bits, seeds 64. */
function wishText({ seed, ...rest }) {
  const text = JSON.stringify(rest);
  return seed === null ? text : `${text.slice(0, -1)},"seed":${BigInt(seed)}}`;
}

/** Calls told(job) for every event of a job until it has ended. */
export async function follow(id, told) {
  const answer = await ask(`/v1/jobs/${id}/events`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) told(JSON.parse(data.slice(6)));
    }
  }
}
