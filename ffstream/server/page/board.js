// The drawing board: an image of the network's own size, drawn with a pointer or with keys.

const BRUSH = 0.045; // radius of the brush, in shares of the shorter side: as thick as the strokes of MNIST
const THINNEST = 0.75; // pixels; a thinner dot between pixels would leave no trace
const STEP = 0.25; // pixels between two dots of a stroke

export class Board {
  #canvas;
  #context;
  #height;
  #width;
  #channels;
  #pixels;
  #last = null;
  #cursor = null;
  #onChange;
  #isSample = false;
  paint = [255, 255, 255];

  /** `shape`: [height, width, channels]. Calls `onChange()` after each change of the image. */
  constructor(canvas, shape, onChange) {
    [this.#height, this.#width, this.#channels] = shape;
    this.#canvas = canvas;
    this.#onChange = onChange;
    this.#pixels = new Uint8ClampedArray(this.#height * this.#width * this.#channels);
    Object.assign(canvas, { width: this.#width, height: this.#height });
    this.#context = canvas.getContext("2d");
    canvas.addEventListener("pointerdown", event => this.#begin(event));
    canvas.addEventListener("pointermove", event => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { this.#last = null; });
    canvas.addEventListener("keydown", event => this.#key(event));
    canvas.addEventListener("blur", () => { this.#cursor = null; this.#show(); });
    this.#show();
  }

  get isEmpty() {
    return this.#pixels.every(value => value === 0);
  }

  clear() {
    this.#pixels.fill(0);
    this.#isSample = false;
    this.#changed();
  }

  /** Puts a whole image on the board. */
  load(image) {
    this.#pixels.set(image);
    this.#isSample = true;
    this.#changed();
  }

  /** The image as numbers from 0 to 255 in the network's order. With `centred`, a drawing's centre of mass is in the middle. */
  image(centred) {
    return Array.from(centred && !this.#isSample ? this.#centred() : this.#pixels);
  }

  #centred() {
    let mass = 0, sumX = 0, sumY = 0;
    this.#eachPixel((x, y, at) => {
      const value = this.#pixels[at];
      mass += value;
      sumX += value * x;
      sumY += value * y;
    });
    const dx = mass ? Math.round((this.#width - 1) / 2 - sumX / mass) : 0;
    const dy = mass ? Math.round((this.#height - 1) / 2 - sumY / mass) : 0;
    const moved = new Uint8ClampedArray(this.#pixels.length);
    this.#eachPixel((x, y, at) => {
      const [toX, toY] = [x + dx, y + dy];
      if (toX < 0 || toY < 0 || toX >= this.#width || toY >= this.#height) return;
      const to = (toY * this.#width + toX) * this.#channels;
      moved.set(this.#pixels.subarray(at, at + this.#channels), to);
    });
    return moved;
  }

  #eachPixel(visit) {
    for (let y = 0; y < this.#height; y += 1)
      for (let x = 0; x < this.#width; x += 1) visit(x, y, (y * this.#width + x) * this.#channels);
  }

  // --- drawing ---

  #begin(event) {
    event.preventDefault();
    this.#canvas.focus({ preventScroll: true });
    this.#canvas.setPointerCapture(event.pointerId);
    this.#last = this.#place(event);
    this.#stroke(this.#last, this.#last);
    this.#changed();
  }

  #move(event) {
    if (!this.#last) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      const place = this.#place(each);
      this.#stroke(this.#last, place);
      this.#last = place;
    }
    this.#changed();
  }

  /** Where a pointer is, in pixels of the image; the middle of the first one is (0, 0). */
  #place({ clientX, clientY }) {
    const box = this.#canvas.getBoundingClientRect();
    const [left, top] = [box.left + this.#canvas.clientLeft, box.top + this.#canvas.clientTop];
    return [
      ((clientX - left) / this.#canvas.clientWidth) * this.#width - 0.5,
      ((clientY - top) / this.#canvas.clientHeight) * this.#height - 0.5,
    ];
  }

  #stroke([fromX, fromY], [toX, toY]) {
    const steps = Math.max(1, Math.ceil(Math.hypot(toX - fromX, toY - fromY) / STEP));
    for (let step = 0; step <= steps; step += 1) {
      const share = step / steps;
      this.#dot(fromX + share * (toX - fromX), fromY + share * (toY - fromY));
    }
  }

  #dot(x, y) {
    const radius = Math.max(THINNEST, BRUSH * Math.min(this.#height, this.#width));
    const reach = Math.ceil(radius + 0.5);
    for (let row = Math.max(0, Math.round(y) - reach); row <= Math.min(this.#height - 1, Math.round(y) + reach); row += 1) {
      for (let column = Math.max(0, Math.round(x) - reach); column <= Math.min(this.#width - 1, Math.round(x) + reach); column += 1) {
        const cover = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(column - x, row - y)));
        const at = (row * this.#width + column) * this.#channels;
        for (let channel = 0; channel < this.#channels; channel += 1)
          this.#pixels[at + channel] = Math.max(this.#pixels[at + channel], cover * this.paint[channel % 3]);
      }
    }
  }

  #key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const known = event.key in steps || [" ", "Delete", "Backspace"].includes(event.key);
    if (!known || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (event.key === "Delete" || event.key === "Backspace") { this.clear(); return; }
    const [x, y] = this.#cursor ?? [Math.floor(this.#width / 2), Math.floor(this.#height / 2)];
    const [dx, dy] = steps[event.key] ?? [0, 0];
    const next = [Math.min(this.#width - 1, Math.max(0, x + dx)), Math.min(this.#height - 1, Math.max(0, y + dy))];
    this.#cursor = next;
    if (event.key === " " || event.shiftKey) {
      this.#stroke([x, y], next);
      this.#changed();
    } else this.#show();
  }

  #changed() {
    this.#show();
    this.#onChange();
  }

  #show() {
    drawImage(this.#context, this.#pixels, [this.#height, this.#width, this.#channels]);
    if (!this.#cursor) return;
    this.#context.fillStyle = "#e69f00";
    this.#context.fillRect(...this.#cursor, 1, 1);
  }
}

/** Height, width and channels: an image without a height is drawn as a square if it can be one, and otherwise as a row. */
export function pictureShape([height, width, channels]) {
  if (width) return [height, width, channels ?? 1];
  const side = Math.sqrt(height);
  return Number.isInteger(side) ? [side, side, 1] : [1, height, 1];
}

/** Draws numbers from 0 to 255 in row-major order on a canvas of that size. */
export function drawImage(context, pixels, [height, width, channels]) {
  const shown = context.createImageData(width, height);
  for (let at = 0; at < height * width; at += 1) {
    for (let channel = 0; channel < 3; channel += 1)
      shown.data[4 * at + channel] = pixels[at * channels + (channels >= 3 ? channel : 0)];
    shown.data[4 * at + 3] = 255;
  }
  context.putImageData(shown, 0, 0);
}
