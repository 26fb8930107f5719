// openapi.json as a page.

const said = await (await fetch("/openapi.json")).json();
const place = document.getElementById("operations");

function add(parent, tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  parent.append(element);
  return element;
}

const kind = (field) => field.enum?.join(", ") ?? field.type ?? field.anyOf?.map((one) => one.type).join(" or ") ?? "";

for (const [address, methods] of Object.entries(said.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const block = add(place, "div", "");
    block.className = "operation";
    add(block, "h2", `${method.toUpperCase()} ${address}`);
    add(block, "p", operation.summary);
    const body = operation.requestBody?.content["application/json"].schema.$ref;
    if (!body) continue;
    const list = add(block, "dl", "");
    const schema = said.components.schemas[body.split("/").pop()];
    for (const [name, field] of Object.entries(schema.properties)) {
      add(list, "dt", schema.required?.includes(name) ? `${name} (required)` : name);
      add(list, "dd", [kind(field), field.description].filter(Boolean).join(": "));
    }
  }
}
