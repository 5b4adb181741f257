// Keeps what runs up to date. Without it the page tells the same, as of when it was loaded.
"use strict";

const section = document.getElementById("running");
const list = document.getElementById("activities");
const lost = document.getElementById("lost");

function made(name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function item(one) {
  const li = made("li", "", { "data-id": one.id });
  const says = made("p");
  says.append(made("strong", one.what), `, asked for by ${one.by}`, made("br"), made("span", "", { class: "says" }));
  li.append(says, made("progress", "", { max: 100, "aria-label": one.what }));
  if (list.dataset.mayCancel === "yes") {
    const form = made("form", "", { method: "post", action: "/cancel" });
    form.append(made("input", "", { type: "hidden", name: "activity", value: one.id }), made("button", "Cancel"));
    li.append(form);
  }
  return li;
}

function show(activities) {
  const running = activities.filter((one) => !one.outcome);
  const before = new Map([...list.children].map((li) => [li.dataset.id, li]));
  for (const one of running) {
    const li = before.get(one.id) ?? list.appendChild(item(one));
    before.delete(one.id);
    li.querySelector(".says").textContent = one.says;
    const bar = li.querySelector("progress");
    if (one.part === null) bar.removeAttribute("value");
    else bar.value = one.part;
  }
  for (const li of before.values()) li.remove();
  section.hidden = running.length === 0;
  if (before.size && location.pathname === "/") location.reload(); // something has ended: how do things stand now?
}

if (document.body.dataset.live) {
  const source = new EventSource(document.body.dataset.live);
  source.onmessage = (event) => {
    lost.hidden = true;
    show(JSON.parse(event.data));
  };
  source.onerror = () => {
    lost.hidden = false;
  };
}
