"use strict";
// The numbers of a point beside the pointer, and its trial marked in every figure. Without this script a browser shows
// the same numbers as the point's own title, and its link works.
const tip = document.querySelector('[role="tooltip"]');
let shown = null;

for (const point of document.querySelectorAll(".point")) {
  const title = point.querySelector("title");
  point.numbers = title.textContent;
  title.remove();
}

function show(point, x, y) {
  hide();
  shown = point;
  for (const each of document.querySelectorAll(".point")) each.classList.toggle("lit", each.dataset.trial === point.dataset.trial);
  tip.textContent = point.numbers + (point.hasAttribute("href") ? "\nOpen it for its curve" : "");
  tip.hidden = false;
  const room = document.documentElement;
  tip.style.left = Math.max(4, Math.min(x + 14, room.clientWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = (y + 14 + tip.offsetHeight > room.clientHeight ? y - 14 - tip.offsetHeight : y + 14) + "px";
}

function hide() {
  if (shown) for (const each of document.querySelectorAll(".lit")) each.classList.remove("lit");
  shown = null;
  tip.hidden = true;
}

addEventListener("pointermove", (event) => {
  const point = event.target.closest?.(".point");
  if (point && event.pointerType === "mouse") show(point, event.clientX, event.clientY);
  else if (event.pointerType === "mouse") hide();
});
addEventListener("click", (event) => {  // a finger shows the numbers first, and follows the link when it comes again
  const point = event.target.closest?.(".point");
  if (event.pointerType === "mouse") return;
  if (!point) return hide();
  if (point !== shown) {
    event.preventDefault();
    show(point, event.clientX, event.clientY);
  }
});
addEventListener("scroll", hide, { passive: true });
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
