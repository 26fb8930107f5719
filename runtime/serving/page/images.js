// The history: a card for each image of each job of this visit, kept over a reload.

import * as server from "./server.js";

const VISIT = "ditedge.jobs";
const ENDED = ["done", "failed", "cancelled"];
const SMALL = 128; // pixels: smaller pictures are shown in squares, not blurred

const cards = document.getElementById("cards");
const template = document.getElementById("card");
const own = new Set(); // numbers of images of this visit that go on
const going = new Map(); // id of a job -> how to give it up

/** Numbers of this visit's images that go on. */
export const ownNumbers = () => own;
export const anyGoing = () => going.size > 0;
export const cancelAll = () => { for (const giveUp of going.values()) giveUp(); };

const remembered = () => JSON.parse(sessionStorage.getItem(VISIT) ?? "[]");

/** Shows a job from now on. wish: what it was asked with. actions: again(wish), use(wish), problem(text), changed(). */
export function add(job, wish, actions) {
  sessionStorage.setItem(VISIT, JSON.stringify([...remembered(), { id: job.id, wish }].slice(-100)));
  show(job, wish, actions);
}

/** Shows the jobs of this visit again that the server still knows. */
export async function restore(actions) {
  const kept = [];
  for (const entry of remembered()) {
    try {
      show(await server.job(entry.id), entry.wish, actions);
      kept.push(entry);
    } catch (error) {
      if (error.status !== 404) kept.push(entry);
    }
  }
  sessionStorage.setItem(VISIT, JSON.stringify(kept));
}

function show(job, wish, actions) {
  const made = job.images.map((image, i) => card(job, i, wish, actions));
  document.getElementById("none").hidden = true;
  cards.prepend(...made.map((one) => one.element));
  const update = (newest) => {
    newest.images.forEach((image, i) => made[i].update(image));
    const over = made.every((one) => one.ended());
    if (over) going.delete(job.id);
    actions.changed();
    return over;
  };
  going.set(job.id, () => server.cancel(job.id).then(update, (error) => actions.problem(error.message)));
  if (!update(job)) watch(job.id, update, actions);
}

async function watch(id, update, actions) {
  for (let tries = 0; going.has(id); tries += 1) {
    try {
      await server.follow(id, update);
      if (going.has(id)) update(await server.job(id)); // the server ended the stream before the job
    } catch (error) {
      if (error.status === 404 || tries > 20) {
        going.delete(id);
        actions.problem(error.message);
        actions.changed();
        return;
      }
    }
    await new Promise((next) => setTimeout(next, 500));
  }
}

function card(job, i, wish, actions) {
  const element = template.content.firstElementChild.cloneNode(true);
  const part = (name) => element.querySelector(name);
  const image = part("img");
  const seed = job.images[i].seed;
  const its = { ...wish, n: 1, seed: String(wish.seed == null ? seed : BigInt(wish.seed) + BigInt(i)) };
  part(".caption").textContent = job.images[i].prompt;
  part(".detail").textContent = `${job.model}, ${job.images[i].program}, seed ${its.seed}`;
  image.alt = `${job.images[i].prompt}, seed ${its.seed}`;
  image.addEventListener("load", () => part(".frame").classList.toggle("small", image.naturalWidth < SMALL));
  part(".cancel").addEventListener("click", () => going.get(job.id)?.());
  part(".again").addEventListener("click", () => actions.again({ ...its, seed: String(BigInt(its.seed) + 1n) }));
  part(".settings").addEventListener("click", () => actions.use(its));
  let ended = false;
  const update = (now) => {
    if (ended) return; // an answer to a request may come after a later event
    const over = ended = ENDED.includes(now.status);
    over ? own.delete(now.number) : own.add(now.number);
    part(".state").textContent = sentence(now);
    part(".state").classList.toggle("bad", now.status === "failed");
    part("progress").value = now.step / now.steps;
    part("progress").hidden = over;
    part(".cancel").hidden = over;
    if (now.url) {
      image.src = now.url;
      part(".download").href = now.url;
      part(".download").download = `${now.prompt.split(",")[0].replace(/\W+/g, "-").slice(0, 60)}-seed${its.seed}.png`;
      part(".download").hidden = false;
    } else if (now.preview) {
      image.src = `data:image/png;base64,${now.preview.b64_png}`;
    }
  };
  return { element, update, ended: () => ended };
}

function sentence(now) {
  const waited = `${now.queued_seconds.toFixed(2)} s in the queue`;
  switch (now.status) {
    case "queued": return "waiting";
    case "running": return `step ${now.step} of ${now.steps}, ${now.together} in the batch`;
    case "decoding": return "making the pixels";
    case "done": return `${now.seconds.toFixed(2)} s, ${waited}`;
    default: return now.error.message;
  }
}
