// Paint pixels of a 32 x 32 picture. The mask goes to Python when a stroke ends: a hexadecimal number a row of pixels.
const SIZE = 32;
const canvas = () => element.querySelector("canvas");
let mask = new Uint8Array(SIZE * SIZE);
let ink = 1;
let last = null; // pixel of the stroke
let picture = new Image();

function draw() {
  const context = canvas().getContext("2d");
  context.clearRect(0, 0, SIZE, SIZE);
  if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0);
  if (!mask.some((pixel) => pixel)) return;
  const shown = context.getImageData(0, 0, SIZE, SIZE);
  mask.forEach((on, i) => {
    for (let c = 0; c < 3; c++) {
      const veil = on ? [0, 140, 255][c] : 0;
      shown.data[4 * i + c] = on ? 0.5 * shown.data[4 * i + c] + 0.5 * veil : 0.55 * shown.data[4 * i + c];
    }
  });
  context.putImageData(shown, 0, 0);
}

function send() {
  const rows = [];
  for (let y = 0; y < SIZE; y++) {
    let bits = "";
    for (let x = 0; x < SIZE; x++) bits += mask[y * SIZE + x];
    rows.push(parseInt(bits, 2).toString(16).padStart(8, "0"));
  }
  trigger("input", { rows: rows });
}

function fill(rule) {
  for (let i = 0; i < mask.length; i++) mask[i] = rule(i % SIZE, Math.floor(i / SIZE)) ? 1 : 0;
  draw();
  send();
}

function place(event) {
  const box = canvas().getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((part) =>
    Math.min(SIZE - 1, Math.max(0, Math.floor(part * SIZE))),
  );
}

function dab(to) {
  const steps = Math.max(1, Math.abs(to[0] - last[0]), Math.abs(to[1] - last[1]));
  for (let step = 0; step <= steps; step++) {
    const [x, y] = [0, 1].map((k) => Math.round(last[k] + ((to[k] - last[k]) * step) / steps));
    for (let dy = -1; dy <= 1; dy++)
      for (let dx = -1; dx <= 1; dx++)
        if (x + dx >= 0 && x + dx < SIZE && y + dy >= 0 && y + dy < SIZE) mask[(y + dy) * SIZE + x + dx] = ink;
  }
  last = to;
  draw();
}

function show() {
  mask = new Uint8Array(SIZE * SIZE);
  (props.rows ?? []).forEach((row, y) => {
    const bits = parseInt(row, 16).toString(2).padStart(SIZE, "0");
    for (let x = 0; x < SIZE; x++) mask[y * SIZE + x] = Number(bits[x]);
  });
  picture = new Image();
  picture.onload = draw;
  picture.src = props.value;
}

element.addEventListener("pointerdown", (event) => {
  if (event.target !== canvas()) return;
  event.preventDefault();
  canvas().setPointerCapture(event.pointerId);
  last = place(event);
  dab(last);
});
element.addEventListener("pointermove", (event) => {
  if (last) dab(place(event));
});
for (const name of ["pointerup", "pointercancel"])
  element.addEventListener(name, () => {
    if (last) send();
    last = null;
  });
element.addEventListener("click", (event) => {
  const what = event.target.closest("button[data-do]")?.dataset.do;
  if (what === "paint" || what === "erase") {
    ink = what === "paint" ? 1 : 0;
    for (const name of ["paint", "erase"])
      element.querySelector(`[data-do=${name}]`).setAttribute("aria-pressed", String(name === what));
  }
  if (what === "left") fill((x) => x < SIZE / 2);
  if (what === "right") fill((x) => x >= SIZE / 2);
  if (what === "clear") fill(() => false);
});
watch(["value", "rows"], show);
show();
