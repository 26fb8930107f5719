// The form, who shares a step now, and what goes wrong.

import * as images from "./images.js";
import * as server from "./server.js";

const $ = (id) => document.getElementById(id);
const ESTIMATES = 16; // of an image on its way
let known = [];

const actions = {
  again: (wish) => generate(wish),
  use: (wish) => { problem(""); fill(wish); $("prompt").focus(); },
  problem,
  changed: () => { $("stop").disabled = !images.anyGoing(); },
};

function problem(text) {
  $("problem").textContent = text;
  if (text) $("problem").scrollIntoView({ block: "nearest" });
}

function model() {
  return known.find((one) => one.id === $("model").value) ?? known[0];
}

function options(select, names) {
  select.replaceChildren(...names.map((name) => new Option(name, name)));
}

/** The choices and defaults of the model that is chosen. */
function choose() {
  const one = model();
  $("classes").replaceChildren(...one.classes.map((name) => new Option(name.split(",")[0])));
  options($("sampler"), one.samplers);
  $("sampler").value = one.sampler ?? one.samplers[0];
  $("steps").value = one.steps;
  $("guidance").value = one.guidance;
  $("guidance").disabled = !one.guided;
  $("promptlabel").textContent = one.text ? "Prompt" : "Class, by name or number";
  $("prompt").placeholder = one.text ? "a red fox in the snow" : one.classes[0].split(",")[0];
  $("what").textContent = one.text ? "write a prompt" : "choose a class";
  $("negativerow").hidden = !one.negative;
  $("sizerow").hidden = !one.text;
  $("size").placeholder = `${one.width}x${one.height}`;
  const takes = one.text ? "takes words" : `${one.classes.length} classes`;
  $("server").textContent = `${one.id}: ${takes}, ${one.width} x ${one.height}`;
}

function fill(wish) {
  $("model").value = wish.model;
  choose();
  $("prompt").value = wish.prompt;
  $("negative").value = wish.negative_prompt ?? "";
  $("size").value = wish.size ?? "";
  $("seed").value = wish.seed ?? "";
  $("count").value = wish.n;
  $("steps").value = wish.num_inference_steps;
  $("guidance").value = wish.guidance_scale ?? "";
  $("sampler").value = wish.sampler;
}

function wishOfForm() {
  const steps = Number($("steps").value);
  return {
    model: model().id,
    prompt: $("prompt").value.trim(),
    negative_prompt: (model().negative && $("negative").value.trim()) || null,
    size: (model().text && $("size").value.trim()) || null,
    n: Number($("count").value),
    seed: $("seed").value.trim() || null,
    num_inference_steps: steps,
    guidance_scale: model().guided ? Number($("guidance").value) : null,
    sampler: $("sampler").value,
    preview_every: Math.max(1, Math.round(steps / ESTIMATES)),
  };
}

async function generate(wish) {
  problem("");
  try {
    images.add(await server.create(wish), wish, actions);
  } catch (error) {
    refused(error);
  }
}

function refused(error) {
  problem(error.message);
  if (error.status === 401) {
    $("keyrow").hidden = false;
    $("key").focus();
  }
}

/** Who shares a step now, in as many places as a batch has. */
async function look() {
  if (document.hidden || !known.length) return;
  let now;
  try {
    now = await server.status();
  } catch (error) {
    $("load").textContent = error.message;
    return;
  }
  const lane = now.models[model().id];
  const mine = images.ownNumbers();
  const slots = Array.from({ length: now.max_batch }, (_, i) => slot(lane.running[i], mine));
  $("slots").replaceChildren(...slots);
  const own = lane.running.filter((one) => mine.has(one.number)).length;
  $("slots").setAttribute("aria-label", `${lane.running.length} of ${now.max_batch} places taken, ${own} by this page`);
  const fill = now.turns ? (now.image_steps / now.turns).toFixed(1) : "0";
  $("load").textContent =
    `${lane.running.length} of ${now.max_batch} places, ${own} yours; ${lane.waiting} waiting; ` +
    `${(1000 * now.turn_seconds).toFixed(1)} ms a step, ${fill} images in one on average`;
}

function slot(one, mine) {
  const place = document.createElement("span");
  place.className = "slot";
  if (!one) return place;
  place.classList.toggle("own", mine.has(one.number));
  place.title = `step ${one.step} of ${one.steps}`;
  const bar = document.createElement("i");
  bar.style.height = `${Math.round((100 * Math.max(1, one.step)) / one.steps)}%`;
  place.append(bar);
  return place;
}

async function begin() {
  try {
    known = await server.models();
  } catch (error) {
    $("server").textContent = error.message;
    refused(error);
    return;
  }
  $("keyrow").hidden = true;
  problem("");
  options($("model"), known.map((one) => one.id));
  choose();
  await images.restore(actions);
  actions.changed();
}

$("model").addEventListener("change", choose);
$("stop").addEventListener("click", images.cancelAll);
$("key").addEventListener("change", () => { server.setKey($("key").value.trim()); begin(); });
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (known.length) generate(wishOfForm());
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && images.anyGoing()) images.cancelAll();
});
setInterval(look, 400);
begin();
