
"use strict";
// Sorting and choosing; without it the page shows everything, the most outlying first.
const list = document.getElementById("cards");
const cards = [...list.children];
const ranks = new Map(cards.map((card, rank) => [card, rank]));
const collator = new Intl.Collator("en", { numeric: true });
const controls = Object.fromEntries(["sort", "site", "state", "who"].map((id) => [id, document.getElementById(id)]));
const orders = {
  score: (a, b) => ranks.get(a) - ranks.get(b),
  name: (a, b) => collator.compare(a.dataset.name, b.dataset.name) || orders.score(a, b),
  site: (a, b) => collator.compare(a.dataset.site, b.dataset.site) || orders.score(a, b),
  row: (a, b) => a.dataset.row - b.dataset.row,
};

function fits(card) {
  const { site, state, who } = controls;
  const code = state.value.startsWith("code:") ? state.value.slice(5) : "";
  return (!site.value || card.dataset.site === site.value)
    && (!state.value || (code ? card.dataset.codes.split(" ").includes(code) : card.classList.contains(state.value)))
    && card.dataset.name.toLowerCase().includes(who.value.trim().toLowerCase());
}

function choose() {
  let shown = 0;
  for (const card of cards) {
    card.hidden = !fits(card);
    shown += card.hidden ? 0 : 1;
  }
  document.getElementById("count").value = `${shown} of ${cards.length} shown`;
  document.getElementById("nothing").hidden = shown > 0;
}

controls.sort.addEventListener("change", () => list.append(...[...cards].sort(orders[controls.sort.value])));
for (const id of ["site", "state", "who"]) controls[id].addEventListener("input", choose);
const form = document.querySelector(".controls");
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
choose();
