// The picture of the row nearest to the chosen ratio is marked.
watch("value", () => {
  const ratio = Number(element.querySelector("figure").dataset.ratio);
  const away = (button) => Math.abs(Number(button.dataset.pick) - ratio);
  const buttons = [...document.querySelectorAll("#row button[data-pick]")];
  const nearest = Math.min(...buttons.map(away));
  for (const button of buttons) button.setAttribute("aria-pressed", String(away(button) === nearest));
});
