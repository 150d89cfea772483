"use strict";
// The page is complete without this script; it adds sliders, sorting, copying and the choice of a theme.

const each = (selector, within, act) => within.querySelectorAll(selector).forEach(act);

// The interpolation slider sets one CSS variable; the style sheet moves all pictures by it.
each(".pairs", document, (section) => {
  const slider = section.querySelector(".ratio");
  const output = section.querySelector(".slider output");
  const play = section.querySelector(".play");
  const ratios = JSON.parse(slider.dataset.ratios);
  let timer = 0;
  let direction = 1;

  const show = () => {
    const ratio = ratios[slider.value];
    const inside = ratio > 0.4 - 1e-6 && ratio < 0.6 + 1e-6;
    section.style.setProperty("--frame", slider.value);
    output.textContent = ratio.toFixed(2);
    slider.setAttribute("aria-valuetext", ratio.toFixed(2) + (inside ? ", where a pegasus is looked for" : ""));
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  const step = () => {
    const place = Number(slider.value);
    if (place + direction < 0 || place + direction >= ratios.length) direction = -direction;
    slider.value = place + direction;
    show();
  };

  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    timer = setInterval(step, 120);
    play.textContent = "Stop";
    play.setAttribute("aria-pressed", "true");
  });
  play.hidden = false;
  show(); // browsers may restore the slider after a reload
});

// The epoch slider and the kinds of pictures.
each(".time", document, (block) => {
  const slider = block.querySelector(".epoch");
  const output = block.querySelector("output");
  const epochs = JSON.parse(slider.dataset.epochs);

  const show = () => {
    const epoch = epochs[slider.value];
    const kind = block.querySelector("input[type=radio]:checked").value;
    each("[data-kind]", block, (picture) => {
      picture.hidden = picture.dataset.kind !== kind || Number(picture.dataset.epoch) !== epoch;
    });
    output.textContent = epoch;
    slider.setAttribute("aria-valuetext", `epoch ${epoch}`);
  };
  slider.addEventListener("input", show);
  block.addEventListener("change", show);
  show();
});

// Tables: a click on a head sorts, a second click reverses; undefined values stay last.
each(".sortable", document, (table) => {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.disabled = false;
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
        return (value(a) - value(b)) * (descending ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
    });
  });
});
each(".figures", document, (block) => {
  const choice = block.querySelector(".all");
  if (!choice) return;
  choice.hidden = false;
  const show = () => block.classList.toggle("some", !choice.firstElementChild.checked);
  choice.addEventListener("change", show);
  show();
});

// Commands.
each(".copy", document, (button) => {
  const code = button.parentElement.querySelector("code");
  button.hidden = false;
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
});

// Theme: that of the system, or as chosen. A page opened from a file may not have storage to remember it.
const button = document.getElementById("theme");
const themes = ["auto", "light", "dark"];
const setTheme = (theme) => {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  button.firstElementChild.textContent = theme;
};
let theme = "auto";
try { theme = localStorage.getItem("theme") || theme; } catch { /* no storage */ }
setTheme(themes.includes(theme) ? theme : "auto");
button.hidden = false;
button.addEventListener("click", () => {
  theme = themes[(themes.indexOf(button.firstElementChild.textContent) + 1) % themes.length];
  setTheme(theme);
  try { localStorage.setItem("theme", theme); } catch { /* no storage */ }
});
