"use strict";

/* An element with text; what comes from data is only ever text, never markup. */
function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

/* The places of the target in a list of titles: its rank where the list has it there, else equal titles. */
function targetPlaces(titles, target, rank) {
  if (titles[rank - 1] === target) return [rank - 1];
  return titles.flatMap((title, place) => (title === target ? [place] : []));
}

function history(found) {
  const part = element("section");
  part.append(element("h4", "History, oldest first"));
  const list = element("ol", undefined, "history");
  for (const row of found.history) {
    const item = element("li");
    item.append(element("time", row.date), " ", element("span", row.title));
    list.append(item);
  }
  const next = element("p", undefined, "target");
  next.append("Bought next: ", element("strong", found.target));
  part.append(list, next);
  return part;
}

function answer(found, model) {
  const part = element("section", undefined, found.hit[model] ? "answer right" : "answer");
  const verdict = found.hit[model] ? "✓ right" : "wrong";
  part.append(element("h4", model), element("p", `rank ${found.ranks[model]}, ${verdict}`));
  const list = element("ol");
  const places = targetPlaces(found.top[model], found.target, found.ranks[model]);
  found.top[model].forEach((title, place) => {
    const item = element("li");
    item.append(element(places.includes(place) ? "mark" : "span", title));
    list.append(item);
  });
  part.append(list);
  return part;
}

function browse(frame) {
  const { models, cases } = JSON.parse(frame.querySelector("script").textContent);
  const parts = {};
  for (const part of frame.querySelectorAll("[data-part]")) parts[part.dataset.part] = part;
  let shown = [];
  let place = 0;

  const tests = {
    all: () => true,
    a: (a, b) => a && !b,
    b: (a, b) => b && !a,
    both: (a, b) => a && b,
    neither: (a, b) => !a && !b,
  };

  function show() {
    const found = shown[place];
    parts.previous.disabled = place <= 0;
    parts.next.disabled = place >= shown.length - 1;
    if (!found) {
      parts.place.textContent = `none of ${cases.length}`;
      parts.case.replaceChildren(element("p", "No user fits this choice."));
      return;
    }
    parts.place.textContent = `${place + 1} of ${shown.length}` +
      (shown.length < cases.length ? ` (of ${cases.length} users)` : "");
    const answers = element("div", undefined, "answers");
    const [a, b] = [models[parts.a.value], models[parts.b.value]];
    for (const model of new Set([a, b, ...models])) answers.append(answer(found, model));
    parts.case.replaceChildren(element("h4", `User ${found.user}`, "user"), history(found), answers);
  }

  function choose() {
    const [a, b] = [models[parts.a.value], models[parts.b.value]];
    shown = cases.filter((one) => tests[parts.filter.value](one.hit[a], one.hit[b]));
    place = 0;
    show();
  }

  function step(by) {
    place = Math.min(Math.max(place + by, 0), shown.length - 1);
    show();
  }

  for (const part of [parts.a, parts.b, parts.filter]) part.addEventListener("change", choose);
  parts.previous.addEventListener("click", () => step(-1));
  parts.next.addEventListener("click", () => step(1));
  choose();
}

document.querySelectorAll(".cases").forEach(browse);

/* Paper has nothing to click on: what is folded is printed too, and folded again after that. */
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const part of unfolded) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of unfolded) part.open = false;
});
