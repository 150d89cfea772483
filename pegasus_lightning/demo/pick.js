// A click on a button with data-pick is an event with what it stands for.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-pick]");
  if (button) trigger("select", { picked: Number(button.dataset.pick) });
});
